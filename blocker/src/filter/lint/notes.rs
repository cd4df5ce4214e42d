//! What else can be said about a filter by reading its patterns: no verdict, but worth a look.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use regex_syntax::hir::{Class, Hir, HirKind, Look};

use super::shape::{self, is_host};
use crate::filter::{Dialect, FilterSpec, Pattern, Place};

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub at: Place,
    /// What, and why it matters.
    pub what: String,
}

/// What is worth a look in a filter.
pub fn notes(spec: &FilterSpec) -> Vec<Note> {
    let mut notes = Vec::new();
    if spec.newline_safe.is_empty() && spec.dialect == Dialect::Native {
        notes.push(Note {
            at: Place { path: spec.path.clone(), ..Place::default() },
            what: "newline_safe names no kind of source: whoever is logged may write a line break, and with it a whole \
                   line"
                .to_owned(),
        });
    }
    for pattern in &spec.failregex {
        let mut note = |what: String| notes.push(Note { at: pattern.at.clone(), what });
        let Ok(shape) = shape::shape(spec, pattern) else { continue };
        if shape.is_wider {
            note("look-around, a back-reference or a conditional: such a pattern may take many steps on a line, \
                  and counts as not matching when it takes too many"
                .to_owned());
        }
        let properties = shape.hir.properties();
        if !properties.look_set_prefix().contains(Look::Start) {
            note("it is not anchored at the start (^): any text may stand before what it matches".to_owned());
        }
        if !properties.look_set_suffix().contains(Look::End) && !ends_wide(&shape.hir) {
            note("it is not anchored at the end ($): any text may stand behind what it matches".to_owned());
        }
        notes.extend(of_host(&shape.hir, pattern));
        let mut stops = BTreeSet::new();
        excluded(&shape.hir, &mut stops);
        if !stops.is_empty() {
            let stops: Vec<String> = stops.iter().map(|c| format!("{c:?}")).collect();
            notes.push(Note {
                at: pattern.at.clone(),
                what: format!(
                    "evasion: where its author can bring {} into a part that takes nearly anything else, the line \
                     is no failure",
                    stops.join(" ")
                ),
            });
        }
    }
    notes
}

/// Whether the pattern ends in a part that takes anything, as `.*` does.
fn ends_wide(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Concat(parts) => parts.last().is_some_and(ends_wide),
        HirKind::Repetition(repetition) => {
            repetition.max.is_none() && takes(&repetition.sub).is_some_and(|taken| taken.len() == PRINTABLE)
        }
        _ => false,
    }
}

/// A group for the address that takes what is none.
fn of_host(hir: &Hir, pattern: &Pattern) -> Option<Note> {
    let host = find(hir)?;
    let mut chars = BTreeSet::new();
    characters(host, &mut chars);
    let strange: String =
        chars.into_iter().filter(|c| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':'))).take(8).collect();
    (!strange.is_empty()).then(|| Note {
        at: pattern.at.clone(),
        what: format!(
            "the address may be text that is none, with {strange:?} in it: names, or digits of other scripts; such a \
             line is no failure here, since only a whole address is taken"
        ),
    })
}

fn find(hir: &Hir) -> Option<&Hir> {
    match hir.kind() {
        HirKind::Capture(capture) if capture.name.as_deref().is_some_and(is_host) => Some(&capture.sub),
        HirKind::Capture(capture) => find(&capture.sub),
        HirKind::Repetition(repetition) => find(&repetition.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().find_map(find),
        _ => None,
    }
}

/// The first characters of everything that `hir` is made of.
fn characters(hir: &Hir, found: &mut BTreeSet<char>) {
    match hir.kind() {
        HirKind::Literal(literal) => found.extend(String::from_utf8_lossy(&literal.0).chars()),
        HirKind::Class(Class::Unicode(class)) => {
            found.extend(class.ranges().iter().flat_map(|range| [range.start(), range.end()]));
        }
        HirKind::Class(Class::Bytes(class)) => {
            found
                .extend(class.ranges().iter().flat_map(|range| [range.start() as char, range.end() as char]));
        }
        HirKind::Capture(capture) => characters(&capture.sub, found),
        HirKind::Repetition(repetition) => characters(&repetition.sub, found),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().for_each(|part| characters(part, found));
        }
        HirKind::Empty | HirKind::Look(_) => {}
    }
}

/// How many printable characters there are in ASCII.
const PRINTABLE: usize = 95;
/// A part that leaves out no more than this many takes nearly anything.
const EXCLUDED_MAX: usize = 4;

/// What wide parts of a pattern leave out.
fn excluded(hir: &Hir, found: &mut BTreeSet<char>) {
    match hir.kind() {
        HirKind::Repetition(repetition) if repetition.max.is_none() => match takes(&repetition.sub) {
            Some(taken) if taken.len() >= PRINTABLE - EXCLUDED_MAX => {
                found.extend((' '..='~').filter(|c| !taken.contains(c)));
            }
            _ => excluded(&repetition.sub, found),
        },
        HirKind::Repetition(repetition) => excluded(&repetition.sub, found),
        HirKind::Capture(capture) => excluded(&capture.sub, found),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().for_each(|part| excluded(part, found));
        }
        _ => {}
    }
}

/// The printable characters that a class takes.
fn takes(hir: &Hir) -> Option<BTreeSet<char>> {
    let HirKind::Class(Class::Unicode(class)) = hir.kind() else { return None };
    let within = |c: &char| class.ranges().iter().any(|range| (range.start()..=range.end()).contains(c));
    Some((' '..='~').filter(within).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_say_what_is_there() {
        for (dialect, pattern, says) in [
            (Dialect::Native, r"^x .* by <ADDR>$", &[][..]),
            (Dialect::Native, r"^x .* by <ADDR>,.*", &[]),
            (Dialect::Native, r"x by <ADDR>$", &["at the start"]),
            (Dialect::Native, r"^x by <ADDR> ", &["at the end"]),
            (Dialect::Native, r#"^x "[^"]*" by <ADDR>$"#, &["evasion", "'\"'"]),
            (Dialect::Fail2ban, r"^x (?!y) by <F-ID>\S+</F-ID>$", &["steps", "that is none"]),
        ] {
            let spec = FilterSpec {
                dialect,
                failregex: vec![Pattern { text: pattern.to_owned(), at: Place::default() }],
                newline_safe: vec![crate::filter::SourceKind::File],
                ..FilterSpec::default()
            };
            let found: Vec<String> = notes(&spec).into_iter().map(|note| note.what).collect();
            let found = found.join("\n");
            assert!(says.iter().all(|text| found.contains(text)), "{pattern}: {found}");
            assert_eq!(found.is_empty(), says.is_empty(), "{pattern}: {found}");
        }
    }
}
