//! The patterns of a filter as the proof sees them: one expression for what a line must hold from end to end.
//!
//! A `prefregex` and a `failregex` in its `<F-CONTENT>` become one; the address becomes a plain run of characters that
//! can be in one, since what an address is the automaton knows better than the pattern.
#![forbid(unsafe_code)]

use regex_syntax::hir::{Capture, Dot, Hir, HirKind, Look, Repetition};

use super::nfa::Refusal;
use crate::filter::{
    Dialect, FilterSpec, Pattern,
    dialect::{self, Imported},
};

/// Stands for `address` where a reading is put to the engine: nothing else in a line is this long a number. Its ends
/// are colons where those of the address are, for the sake of word boundaries.
pub(super) fn marker(address: &str) -> String {
    let colon = |is: bool| if is { ":" } else { "" };
    format!(
        "{}77777777777777777777777777777777{}",
        colon(address.starts_with(':')),
        colon(address.ends_with(':'))
    )
}

/// A pattern with what is around it.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) hir: Hir,
    /// The pattern has parts that no automaton has; they are left out, so this matches more.
    pub(super) is_wider: bool,
}

/// Whether a group of this name holds the address.
pub(super) fn is_host(name: &str) -> bool {
    name == HOST
}

/// What the groups that hold the address are called here.
const HOST: &str = "host";
/// The group of a prefregex that the failregexes see.
const CONTENT: &str = "content";

/// One pattern of `spec` by itself, with nothing grouped but what holds the address.
pub(super) fn expression(spec: &FilterSpec, pattern: &Pattern) -> Result<Hir, Refusal> {
    if spec.prefregex.is_some() {
        return shape(spec, pattern).map(|shape| shape.hir);
    }
    parse(pattern, spec).map(|(hir, _)| hir)
}

/// The shape of one failregex of `spec`.
pub(super) fn shape(spec: &FilterSpec, pattern: &Pattern) -> Result<Shape, Refusal> {
    if spec.fail2ban.maxlines > 1 {
        return Err("it is matched over several lines (maxlines)");
    }
    let (own, mut is_wider) = parse(pattern, spec)?;
    let Some(prefix) = &spec.prefregex else { return with_address(own, is_wider) };
    let (mut outer, prefix_is_wider) = parse(prefix, spec)?;
    is_wider |= prefix_is_wider;
    if has_group(&own, &is_host) {
        outer = replace(&outer, &is_host, &|inner| inner.clone());
    }
    if !has_group(&outer, &|name| name == CONTENT) {
        return Err("it is tried on the whole line behind a prefregex without <F-CONTENT>");
    }
    let any = Hir::repetition(Repetition {
        min: 0,
        max: None,
        greedy: true,
        sub: Box::new(Hir::dot(Dot::AnyChar)),
    });
    let branches = match own.kind() {
        HirKind::Alternation(branches) => branches.clone(),
        _ => vec![own],
    };
    let mut anywhere = Vec::new();
    for branch in branches {
        let mut parts = match branch.into_kind() {
            HirKind::Concat(parts) => parts,
            kind => vec![hir_of(kind)],
        };
        let is_look =
            |part: Option<&Hir>, look| matches!(part.map(Hir::kind), Some(HirKind::Look(l)) if *l == look);
        if is_look(parts.first(), Look::Start) {
            parts.remove(0);
        } else {
            parts.insert(0, any.clone());
        }
        if is_look(parts.last(), Look::End) {
            parts.pop();
        } else {
            parts.push(any.clone());
        }
        let looks = |part: &Hir| part.properties().look_set().contains_anchor();
        if parts.iter().any(looks) {
            return Err("it asks in its middle where the <F-CONTENT> of the prefregex begins or ends");
        }
        anywhere.push(Hir::concat(parts));
    }
    let inner = Hir::alternation(anywhere);
    with_address(replace(&outer, &|name| name == CONTENT, &|_| inner.clone()), is_wider)
}

fn with_address(hir: Hir, is_wider: bool) -> Result<Shape, Refusal> {
    if has_group(&hir, &is_host) {
        Ok(Shape { hir, is_wider })
    } else {
        Err("it names no address; an earlier line does")
    }
}

fn hir_of(kind: HirKind) -> Hir {
    match kind {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(repetition) => Hir::repetition(repetition),
        HirKind::Capture(capture) => Hir::capture(capture),
        HirKind::Concat(parts) => Hir::concat(parts),
        HirKind::Alternation(parts) => Hir::alternation(parts),
    }
}

/// The pattern as an expression, and whether it is wider than the pattern is.
fn parse(pattern: &Pattern, spec: &FilterSpec) -> Result<(Hir, bool), Refusal> {
    const UNREADABLE: Refusal = "the pattern does not compile";
    let translated = match spec.dialect {
        Dialect::Native => dialect::translate(&pattern.text),
        Dialect::Fail2ban => dialect::translate_imported(
            &pattern.text,
            Imported { names: !spec.fail2ban.addresses_only, lines: false },
        ),
    }
    .map_err(|_| UNREADABLE)?;
    let (hir, is_wider) = match regex_syntax::parse(&translated.full) {
        Ok(hir) => (hir, false),
        Err(_) => (regex_syntax::parse(&translated.gate).map_err(|_| UNREADABLE)?, true),
    };
    // Which groups hold the address, in the order in which they are asked.
    let named: [&dyn Fn(&str) -> bool; 3] = [
        &|name| name == HOST || name.starts_with("host_"),
        &|name| matches!(name, "ip4" | "ip6" | "dns"),
        &|name| name == "fid",
    ];
    let group = |name: &str, inner: &Hir| {
        Hir::capture(Capture { index: 1, name: Some(name.into()), sub: Box::new(inner.clone()) })
    };
    let hir = match named.into_iter().find(|named| has_group(&hir, named)) {
        Some(named) => replace(&hir, named, &|inner| group(HOST, inner)),
        None => hir,
    };
    // Other groups are of no interest, and two patterns made one must not have two of one name.
    Ok((ungrouped(&hir), is_wider))
}

fn ungrouped(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Capture(capture) => {
            let sub = Box::new(ungrouped(&capture.sub));
            match capture.name.as_deref() {
                Some(HOST | CONTENT) => Hir::capture(Capture { sub, ..capture.clone() }),
                _ => *sub,
            }
        }
        HirKind::Repetition(repetition) => {
            let sub = Box::new(ungrouped(&repetition.sub));
            Hir::repetition(Repetition { sub, ..repetition.clone() })
        }
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(ungrouped).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(ungrouped).collect()),
        _ => hir.clone(),
    }
}

fn has_group(hir: &Hir, wanted: &dyn Fn(&str) -> bool) -> bool {
    match hir.kind() {
        HirKind::Capture(capture) => {
            capture.name.as_deref().is_some_and(wanted) || has_group(&capture.sub, wanted)
        }
        HirKind::Repetition(repetition) => has_group(&repetition.sub, wanted),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().any(|part| has_group(part, wanted))
        }
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

/// `hir` with every group of a wanted name, and what is in it, made into something else.
fn replace(hir: &Hir, wanted: &dyn Fn(&str) -> bool, with: &dyn Fn(&Hir) -> Hir) -> Hir {
    match hir.kind() {
        HirKind::Capture(capture) if capture.name.as_deref().is_some_and(wanted) => with(&capture.sub),
        HirKind::Capture(capture) => {
            let sub = Box::new(replace(&capture.sub, wanted, with));
            Hir::capture(Capture { sub, ..capture.clone() })
        }
        HirKind::Repetition(repetition) => {
            let sub = Box::new(replace(&repetition.sub, wanted, with));
            Hir::repetition(Repetition { sub, ..repetition.clone() })
        }
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(|part| replace(part, wanted, with)).collect()),
        HirKind::Alternation(parts) => {
            Hir::alternation(parts.iter().map(|part| replace(part, wanted, with)).collect())
        }
        _ => hir.clone(),
    }
}

/// The shape for the automaton: where the group takes every address, a run of their characters in its place.
pub(super) fn for_automaton(hir: &Hir) -> Hir {
    let usual = usual_addresses();
    replace(hir, &is_host, &|inner| {
        let run = usual.iter().find(|(usual, _)| usual == inner).map(|(_, run)| run);
        let sub = Box::new(run.unwrap_or(inner).clone());
        Hir::capture(Capture { index: 1, name: Some(HOST.into()), sub })
    })
}

/// The shape as a pattern that finds the [`marker`] where the address was.
pub(super) fn for_marker(hir: &Hir, marker: &str) -> String {
    let marker = Hir::literal(marker.as_bytes());
    replace(hir, &is_host, &|_| marker.clone()).to_string()
}

/// What the address tags stand for, and the run of characters that does as well.
fn usual_addresses() -> Vec<(Hir, Hir)> {
    let native = |tag| dialect::translate(tag);
    let imported = |tag| dialect::translate_imported(tag, Imported::default());
    let (any, v4, v6) = ("[0-9A-Fa-f:.]+", "[0-9.]+", "[0-9A-Fa-f:]+");
    [
        (native("<ADDR>"), HOST, any),
        (native("<IP4>"), HOST, v4),
        (native("<IP6>"), HOST, any),
        (imported("<IP4>"), "ip4", v4),
        (imported("<IP6>"), "ip6", v6),
    ]
    .into_iter()
    .filter_map(|(translated, group, run)| {
        let hir = regex_syntax::parse(&translated.ok()?.full).ok()?;
        Some((inner(&hir, group)?.clone(), regex_syntax::parse(run).ok()?))
    })
    .collect()
}

fn inner<'a>(hir: &'a Hir, group: &str) -> Option<&'a Hir> {
    match hir.kind() {
        HirKind::Capture(capture) if capture.name.as_deref() == Some(group) => Some(&capture.sub),
        HirKind::Capture(capture) => inner(&capture.sub, group),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().find_map(|part| inner(part, group))
        }
        _ => None,
    }
}
