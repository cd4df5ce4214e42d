//! Which forms of date a long line can hold, by one walk over it instead of one for each form.
//!
//! Looks for all forms at once, without the ends of words beside them, so it never misses one; what it lets through is
//! looked for properly.
#![forbid(unsafe_code)]

use regex_automata::{
    Input, MatchKind, PatternSet,
    meta::{Config, Regex},
    nfa::thompson::WhichCaptures,
};
use regex_syntax::hir::{Hir, HirKind, Look, Repetition};

use super::template::Template;

/// Bytes that the compiled forms may take, and those of the automaton's states that are kept.
const COMPILED_BYTES_MAX: usize = 32 << 20;
const CACHE_BYTES_MAX: usize = 8 << 20;

/// With fewer forms than this, one walk for each is as good.
const FORMS_MIN: usize = 3;

/// All forms that may stand anywhere.
#[derive(Debug)]
pub(super) struct Sieve {
    regex: Regex,
    /// By pattern: the form it is of, and the number of its expression there.
    forms: Vec<(usize, usize)>,
    /// By form: whether it is among them.
    sieved: Vec<bool>,
}

/// What a line may hold: by form, its expressions.
#[derive(Debug)]
pub(super) struct Possible(Vec<Expressions>);

/// Some of a form's expressions, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expressions(u64);

impl Possible {
    /// Those of the form with this number.
    pub(super) fn of(&self, form: usize) -> Expressions {
        self.0.get(form).copied().unwrap_or(Expressions::ALL)
    }
}

impl Expressions {
    pub(super) const ALL: Self = Self(u64::MAX);
    const NONE: Self = Self(0);

    /// Whether the one with this number is among them.
    pub(super) fn has(self, number: usize) -> bool {
        number >= 64 || self.0 >> number & 1 == 1
    }

    pub(super) fn are_none(self) -> bool {
        self == Self::NONE
    }
}

impl Sieve {
    /// Of forms numbered in this order; `None` when they are few, or take too much memory.
    pub(super) fn new<'a>(templates: impl Iterator<Item = &'a Template>) -> Option<Self> {
        let (mut parts, mut forms, mut sieved) = (Vec::new(), Vec::new(), Vec::new());
        for (form, template) in templates.enumerate() {
            // One bound to the line's start is cheap to look for.
            let own: Option<Vec<Hir>> = (!template.anchored)
                .then(|| template.linear_supersets()?.iter().map(|pattern| parsed(pattern)).collect())
                .flatten();
            sieved.push(own.is_some());
            for (number, hir) in own.into_iter().flatten().enumerate() {
                parts.push(hir);
                forms.push((form, number));
            }
        }
        if forms.len() < FORMS_MIN {
            return None;
        }
        let config = Config::new()
            .match_kind(MatchKind::All)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(COMPILED_BYTES_MAX))
            .hybrid_cache_capacity(CACHE_BYTES_MAX);
        let regex = Regex::builder().configure(config).build_many_from_hir(&parts).ok()?;
        Some(Self { regex, forms, sieved })
    }

    /// The forms that `line` may hold.
    pub(super) fn possible(&self, line: &str) -> Possible {
        let mut found = PatternSet::new(self.regex.pattern_len());
        self.regex.which_overlapping_matches(&Input::new(line), &mut found);
        let none_yet = |sieved: &bool| if *sieved { Expressions::NONE } else { Expressions::ALL };
        let mut possible: Vec<Expressions> = self.sieved.iter().map(none_yet).collect();
        for pattern in found.iter() {
            if let Some((form, number)) = self.forms.get(pattern.as_usize()) {
                possible[*form].0 |= 1 << number.min(&63);
            }
        }
        Possible(possible)
    }
}

fn parsed(pattern: &str) -> Option<Hir> {
    regex_syntax::parse(pattern).ok().map(without_looks)
}

/// Matches wherever `hir` does.
fn without_looks(hir: Hir) -> Hir {
    match hir.into_kind() {
        // The line's beginning is sought at no cost, and few forms that may stand only there do so.
        HirKind::Look(Look::Start) => Hir::look(Look::Start),
        HirKind::Empty | HirKind::Look(_) => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Repetition(repetition) => {
            let sub = Box::new(without_looks(*repetition.sub));
            Hir::repetition(Repetition { sub, ..repetition })
        }
        HirKind::Capture(capture) => without_looks(*capture.sub),
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(without_looks).collect()),
        HirKind::Alternation(branches) => Hir::alternation(branches.into_iter().map(without_looks).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_a_line_holds_is_never_left_out() {
        let templates: Vec<Template> =
            super::super::DEFAULTS.iter().filter_map(|pattern| Template::new(pattern).ok()).collect();
        let sieve = Sieve::new(templates.iter()).expect("a sieve");
        let dates = [
            "2026-11-24T02:47:40.123+01:00",
            "Tue Nov 24 02:47:40.123 2026",
            "Tue Nov 24 2026 02:47:40",
            "24/11/2026 02:47:40",
            "24/Nov/2026:02:47:40 +0000",
            "11/24/2026:02:47:40",
            "11-24-2026 02:47:40.123",
            "audit(1795488460.123)",
            "261124 02:47:40",
            "Nov 24, 2026 2:47:40 AM",
            "20261124T024740",
            "CET Nov 24 02:47:40",
            "+01:00 Nov 24 02:47:40",
            "@4000000069cbd5c42a5e1d2c",
        ];
        let mut held = 0;
        for date in dates {
            for line in [date.to_owned(), format!("é {date} x"), format!("{date}{date}"), format!("[{date}]")]
            {
                let possible = sieve.possible(&line);
                for (form, template) in templates.iter().enumerate() {
                    let found = template.find(&line, 0, Expressions::ALL);
                    held += usize::from(found.is_some());
                    assert_eq!(
                        found,
                        template.find(&line, 0, possible.of(form)),
                        "{} in {line}",
                        template.name
                    );
                }
            }
            let none = sieve.possible("no date: 1.2.3.4 12:3 2026-11");
            assert!(templates.iter().enumerate().all(|(form, t)| t.anchored || none.of(form).are_none()));
        }
        assert!(held >= dates.len() * 3, "{held}");
    }
}
