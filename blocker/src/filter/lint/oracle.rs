//! The proof against brute force: every way of laying small patterns on every small text, by a matcher that shares
//! nothing with the automata.

use std::{collections::BTreeSet, ops::Range};

use proptest::prelude::*;

use super::{PRODUCT_STATES_MAX, Safety, lint};
use crate::filter::{FilterSpec, Pattern, Place, pattern::whole_address};

#[derive(Clone, Debug)]
enum Part {
    Text(&'static str),
    Any,
    NoSpace,
    Digit,
    Host,
    Seq(Vec<Part>),
    Either(Vec<Part>),
    Maybe(Box<Part>),
    Many(Box<Part>),
}

/// A pattern, and whether it is anchored at its ends.
type Whole = (Part, bool, bool);

fn written(part: &Part) -> String {
    match part {
        Part::Text(text) => text.replace('.', r"\."),
        Part::Any => ".".to_owned(),
        Part::NoSpace => r"[^ ]".to_owned(),
        Part::Digit => "[0-9]".to_owned(),
        Part::Host => "<ADDR>".to_owned(),
        Part::Seq(parts) => parts.iter().map(written).collect(),
        Part::Either(parts) => format!("(?:{})", parts.iter().map(written).collect::<Vec<_>>().join("|")),
        Part::Maybe(part) => format!("(?:{})?", written(part)),
        Part::Many(part) => format!("(?:{})*", written(part)),
    }
}

/// A place reached, and the address read on the way.
type Reached = BTreeSet<(usize, Option<(usize, usize)>)>;

fn lay(part: &Part, text: &str, from: &Reached) -> Reached {
    let step = |takes: &dyn Fn(char) -> bool| {
        from.iter()
            .filter_map(|(at, host)| {
                let c = text[*at..].chars().next().filter(|c| takes(*c))?;
                Some((at + c.len_utf8(), *host))
            })
            .collect()
    };
    match part {
        Part::Text(wanted) => from
            .iter()
            .filter(|(at, _)| text[*at..].starts_with(wanted))
            .map(|(at, host)| (at + wanted.len(), *host))
            .collect(),
        Part::Any => step(&|c| c != '\n'),
        Part::NoSpace => step(&|c| c != ' '),
        Part::Digit => step(&|c| c.is_ascii_digit()),
        Part::Host => {
            let mut reached = Reached::new();
            for (at, _) in from {
                for end in at + 1..=text.len() {
                    if text.is_char_boundary(end) && whole_address(text, *at..end).is_some() {
                        reached.insert((end, Some((*at, end))));
                    }
                }
            }
            reached
        }
        Part::Seq(parts) => parts.iter().fold(from.clone(), |from, part| lay(part, text, &from)),
        Part::Either(parts) => parts.iter().flat_map(|part| lay(part, text, from)).collect(),
        Part::Maybe(part) => from.union(&lay(part, text, from)).copied().collect(),
        Part::Many(part) => {
            let mut all = from.clone();
            loop {
                let more: Reached = lay(part, text, &all).difference(&all).copied().collect();
                if more.is_empty() {
                    return all;
                }
                all.extend(more);
            }
        }
    }
}

/// Where the address can be in `text`.
fn readings((part, start, end): &Whole, text: &str) -> Vec<Range<usize>> {
    let from = text.char_indices().map(|(at, _)| at).chain([text.len()]).filter(|at| !start || *at == 0);
    let from: Reached = from.map(|at| (at, None)).collect();
    let hosts: BTreeSet<_> = lay(part, text, &from)
        .into_iter()
        .filter(|(at, _)| !end || *at == text.len())
        .filter_map(|(_, host)| host)
        .collect();
    hosts.into_iter().map(|(from, to)| from..to).collect()
}

fn differ(one: &Whole, other: &Whole, text: &str) -> bool {
    let addresses = |whole| {
        let spans = readings(whole, text);
        spans.into_iter().filter_map(|span| whole_address(text, span)).collect::<BTreeSet<_>>()
    };
    let (one, other) = (addresses(one), addresses(other));
    one.iter().any(|a| other.iter().any(|b| a != b))
}

fn spec(patterns: &[&Whole]) -> FilterSpec {
    let text = |(part, start, end): &Whole| {
        format!("{}{}{}", if *start { "^" } else { "" }, written(part), if *end { "$" } else { "" })
    };
    let failregex =
        patterns.iter().map(|whole| Pattern { text: text(whole), at: Place::default() }).collect();
    FilterSpec { failregex, ..FilterSpec::default() }
}

const WORDS: [&str; 12] =
    ["x", " ", ":", "1.2.3.4", "9.9.9.9", "1::2", "::ffff:", "a", "7", " x ", "-", "from "];

fn part() -> impl Strategy<Value = Part> {
    let leaf = prop_oneof![
        prop::sample::select(&["x", " ", ":", "a", " x ", "from ", "7", "::ffff:"][..]).prop_map(Part::Text),
        Just(Part::Any),
        Just(Part::NoSpace),
        Just(Part::Digit),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|part| Part::Many(Box::new(part))),
            inner.clone().prop_map(|part| Part::Maybe(Box::new(part))),
            prop::collection::vec(inner.clone(), 1..3).prop_map(Part::Seq),
            prop::collection::vec(inner, 1..3).prop_map(Part::Either),
        ]
    })
}

fn pattern() -> impl Strategy<Value = Whole> {
    let side = || prop::collection::vec(part(), 0..3);
    (side(), side(), side(), any::<bool>(), any::<bool>(), 0..4_u8).prop_map(
        |(before, other, behind, start, end, shape)| {
            let host = match shape {
                0 => Part::Either(vec![
                    Part::Seq([other, vec![Part::Host]].concat()),
                    Part::Seq(vec![Part::Host, Part::Text(" ")]),
                ]),
                1 => Part::Seq(vec![Part::Maybe(Box::new(Part::Seq(other))), Part::Host]),
                _ => Part::Host,
            };
            (Part::Seq([before, vec![host], behind].concat()), start, end)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn what_is_proven_holds_on_every_small_text(
        one in pattern(),
        other in pattern(),
        texts in prop::collection::vec(prop::collection::vec(prop::sample::select(&WORDS[..]), 1..7), 40),
    ) {
        let wholes = [&one, &other];
        let filter = spec(&wholes);
        let proofs = lint(&filter, PRODUCT_STATES_MAX);
        prop_assert_eq!(proofs.len(), 3);
        for (proof, (a, b)) in proofs.iter().zip([(0, 0), (1, 1), (0, 1)]) {
            let shown = || format!("{:?}", filter.failregex.iter().map(|p| &p.text).collect::<Vec<_>>());
            match proof.safety {
                Safety::Unproven => prop_assert!(false, "{} {}", shown(), proof.reason),
                Safety::Unsafe => {
                    let witness = proof.witness.as_ref().unwrap();
                    for (which, (span, address)) in [a, b].into_iter().zip(&witness.hosts) {
                        let there = readings(wholes[which], &witness.line).contains(span);
                        prop_assert!(there, "{} {:?}", shown(), witness);
                        prop_assert_eq!(whole_address(&witness.line, span.clone()), Some(*address));
                    }
                    prop_assert_ne!(witness.hosts[0].1, witness.hosts[1].1);
                }
                Safety::Safe => for text in &texts {
                    let text = text.concat();
                    prop_assert!(!differ(wholes[a], wholes[b], &text), "{} {:?}", shown(), text);
                },
            }
        }
    }

    /// Texts made to fit: the pattern's own words around addresses, in any order.
    #[test]
    fn what_is_proven_holds_on_texts_of_the_patterns_own_words(
        one in pattern(),
        order in prop::collection::vec((0..64_usize, 0..4_usize), 1..9),
    ) {
        let proof = &lint(&spec(&[&one]), PRODUCT_STATES_MAX)[0];
        prop_assume!(proof.safety == Safety::Safe);
        let mut words = vec!["x"];
        collect(&one.0, &mut words);
        let hosts = ["1.2.3.4", "9.9.9.9", "1::2", "::ffff:1.2.3.4"];
        let text: String =
            order.iter().map(|(word, host)| match word % 3 {
                0 => hosts[*host],
                _ => words[word % words.len()],
            }).collect();
        prop_assert!(!differ(&one, &one, &text), "{:?} {:?}", proof.pattern, text);
    }
}

fn collect(part: &Part, words: &mut Vec<&'static str>) {
    match part {
        Part::Text(text) => words.push(text),
        Part::Seq(parts) | Part::Either(parts) => parts.iter().for_each(|part| collect(part, words)),
        Part::Maybe(part) | Part::Many(part) => collect(part, words),
        Part::Any | Part::NoSpace | Part::Digit | Part::Host => {}
    }
}
