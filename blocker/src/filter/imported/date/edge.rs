//! What may stand behind a date: the prefilter must know which text the cut can join.
#![forbid(unsafe_code)]

use regex_syntax::hir::{Class, Hir, HirKind, Look};

use crate::filter::dialect::{self, Imported};

/// How fail2ban bounds the end of a date by a word's end.
const WORD_END: &str = r"(?=\b|\W|$)";

/// Whether the first group of `expression`, which is what is cut out, ends in a letter or digit with the end of the
/// word behind it, or joins nothing.
pub(super) fn cut_before_non_word(expression: &str) -> bool {
    let Ok(translated) = dialect::translate_imported(expression, Imported::default()) else { return false };
    let parse = |text: &str| regex_syntax::parse(text).ok();
    let Some(hir) = parse(&translated.full).or_else(|| parse(&translated.gate)) else { return false };
    let parts = match hir.kind() {
        HirKind::Concat(parts) => parts.as_slice(),
        _ => std::slice::from_ref(&hir),
    };
    let is_cut = |part: &Hir| matches!(part.kind(), HirKind::Capture(capture) if capture.index == 1);
    let Some(at) = parts.iter().position(is_cut) else { return false };
    let empty = |part: &Hir| part.properties().maximum_len() == Some(0);
    // A date that begins the line joins nothing.
    let first = at > 0
        && parts[..at].iter().all(empty)
        && parts[0].properties().look_set_prefix().contains(Look::Start);
    first
        || empty(&parts[at])
        || (expression.ends_with(WORD_END) && parts[at + 1..].iter().all(empty) && End::of(&parts[at]).word)
}

/// How a text that an expression matches can end.
struct End {
    /// Only in a letter, digit or underscore, if not empty.
    word: bool,
    empty: bool,
}

impl End {
    fn of(hir: &Hir) -> Self {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => Self { word: true, empty: true },
            HirKind::Literal(literal) => {
                let last = std::str::from_utf8(&literal.0).ok().and_then(|text| text.chars().next_back());
                Self { word: last.is_some_and(in_word), empty: false }
            }
            HirKind::Class(Class::Unicode(class)) => {
                // The signs of ASCII lie between its digits and letters; no range of letters spans them.
                let word = |start: char, end: char| {
                    (start..=end).take(128).all(in_word)
                        && in_word(end)
                        && (start > '\u{7f}' || end <= '\u{7f}')
                };
                Self { word: class.iter().all(|range| word(range.start(), range.end())), empty: false }
            }
            HirKind::Class(Class::Bytes(_)) => Self { word: false, empty: false },
            HirKind::Repetition(repetition) => {
                let inner = Self::of(&repetition.sub);
                Self { word: inner.word, empty: inner.empty || repetition.min == 0 }
            }
            HirKind::Capture(capture) => Self::of(&capture.sub),
            HirKind::Concat(parts) => {
                let mut end = Self { word: true, empty: true };
                for part in parts.iter().rev() {
                    let own = Self::of(part);
                    end.word &= own.word;
                    if !own.empty {
                        end.empty = false;
                        break;
                    }
                }
                end
            }
            HirKind::Alternation(branches) => {
                branches.iter().map(Self::of).fold(Self { word: true, empty: false }, |all, own| Self {
                    word: all.word && own.word,
                    empty: all.empty || own.empty,
                })
            }
        }
    }
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_date_that_ends_a_word_is_cut_there() {
        for (expression, known) in [
            (r"(?=^|\b|\W)(\d{4}-\d\d(?:[.,]\d+)?(?:\s*(?P<z>Z|[+-]\d\d))?)(?=\b|\W|$)", true),
            (r"^(?:\W{0,2})?(\d+)(?=\b|\W|$)", true),
            (r"^()", true),
            (r"^(<co \d+\s+)(?=\b|\W|$)", true),
            (r"^x(\d+)", false),
            (r"(?=^|\b|\W)(\d+\])(?=\b|\W|$)", false),
            (r"(?=^|\b|\W)(\d+\s?)(?=\b|\W|$)", false),
            (r"(?=^|\b|\W)(\d+)\s(?=\b|\W|$)", false),
        ] {
            assert_eq!(cut_before_non_word(expression), known, "{expression}");
        }
    }
}
