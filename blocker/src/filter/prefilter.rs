//! Finds the lines of a block that some pattern could match, and which patterns those are.
//!
//! Every pattern says which texts a line must hold one of for it to match (`literal`). A few of these, the *needles*,
//! are searched for over the whole block at once, which is many times faster than looking at each line. What is found
//! says which patterns are worth trying: usually one of hundreds.
#![forbid(unsafe_code)]

use aho_corasick::{AhoCorasick, AhoCorasickKind, Span, StartKind, packed};
use memchr::memmem::Finder;

/// Up to so many needles are searched for with vector instructions; more need an automaton that looks at each byte.
const VECTOR_NEEDLES_MAX: usize = 64;
/// The vector search looks at so many bytes of a needle's beginning, and at the rest only where they are there.
const BEGINNING_BYTES: usize = 4;
/// Bytes in the order in which logs are full of them; those that are not here are rarer.
const COMMON: &[u8] = b" 0123456789e:.ratonisdcl-pu/h[]mfg,bw=\"vk_(y;T";
/// Needles looked at in one line; in a line with more, every pattern is tried.
const HITS_MAX: usize = 64;

/// The texts of one pattern, one of which a line must hold; `None` when nothing is known and every line must be tried.
pub(super) type Required = Option<Vec<Vec<u8>>>;

/// Numbers of patterns, as a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Candidates(Vec<u64>);

impl Candidates {
    /// Whether the pattern with this number may match.
    pub(super) fn has(&self, pattern: usize) -> bool {
        self.0.get(pattern / 64).is_some_and(|word| word >> (pattern % 64) & 1 == 1)
    }

    /// Whether one of these may match.
    pub(super) fn has_any(&self, patterns: std::ops::Range<usize>) -> bool {
        let known = patterns.start..patterns.end.min(self.0.len() * 64);
        known.into_iter().any(|pattern| self.has(pattern))
    }

    fn insert(&mut self, pattern: usize) {
        let word = pattern / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (pattern % 64);
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    fn become_like(&mut self, other: &Self) {
        self.0.clone_from(&other.0);
    }
}

/// A needle found in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    /// Where it begins.
    pub(super) start: usize,
    needle: usize,
}

/// Finds candidates for a list of patterns.
#[derive(Debug)]
pub(super) struct Prefilter {
    search: Search,
    /// Whether every line is a candidate, since some pattern has nothing to look for.
    pub(super) every_line: bool,
    /// Patterns worth trying whatever the line holds.
    always: Candidates,
    /// All of them.
    all: Candidates,
    /// By needle: the patterns worth trying in a line in which it was found.
    by_needle: Vec<Candidates>,
}

#[derive(Debug)]
enum Search {
    Nothing,
    One(Box<Finder<'static>>),
    Vector(packed::Searcher),
    Automaton(AhoCorasick),
}

impl Prefilter {
    /// For patterns numbered in this order.
    pub(super) fn new(patterns: &[Required]) -> Self {
        let literals: Vec<&[u8]> = patterns.iter().flatten().flatten().map(Vec::as_slice).collect();
        let mut least = least_of(literals.clone());
        if least.len() <= VECTOR_NEEDLES_MAX {
            least = least_of(literals.into_iter().map(from_rarest).collect());
        }
        let search = search_for(&least);
        let mut prefilter = Self {
            every_line: false,
            always: Candidates(vec![0; patterns.len().div_ceil(64)]),
            all: Candidates(vec![0; patterns.len().div_ceil(64)]),
            by_needle: vec![Candidates(vec![0; patterns.len().div_ceil(64)]); least.len()],
            search,
        };
        for (pattern, required) in patterns.iter().enumerate() {
            prefilter.all.insert(pattern);
            let Some(required) = required else {
                prefilter.every_line = true;
                prefilter.always.insert(pattern);
                continue;
            };
            for literal in required {
                // The longest tells most.
                let inside = least.iter().enumerate().filter(|(_, needle)| contains(literal, needle));
                if let Some((needle, _)) = inside.max_by_key(|(_, needle)| needle.len()) {
                    prefilter.by_needle[needle].insert(pattern);
                }
            }
        }
        prefilter
    }

    /// The first needle in `block` that begins at `at` or later.
    pub(super) fn find(&self, block: &[u8], at: usize) -> Option<Hit> {
        let found = match &self.search {
            Search::Nothing => return None,
            Search::One(finder) => {
                let start = at + finder.find(block.get(at..)?)?;
                return Some(Hit { start, needle: 0 });
            }
            Search::Vector(search) => search.find_in(block, Span::from(at.min(block.len())..block.len()))?,
            Search::Automaton(search) => {
                let rest = search.find(block.get(at..)?)?;
                return Some(Hit { start: at + rest.start(), needle: rest.pattern().as_usize() });
            }
        };
        Some(Hit { start: found.start(), needle: found.pattern().as_usize() })
    }

    /// The patterns worth trying in the line that ends at `end` of `block`, where `first` is the first needle from its
    /// beginning on, if there is one. Returns the first needle behind the line.
    pub(super) fn candidates(
        &self,
        block: &[u8],
        first: Option<Hit>,
        end: usize,
        found: &mut Candidates,
    ) -> Option<Hit> {
        found.become_like(&self.always);
        let first = first?;
        if first.start >= end {
            return Some(first);
        }
        found.add(&self.by_needle[first.needle]);
        match &self.search {
            Search::Nothing | Search::One(_) => {}
            Search::Vector(_) => {
                let mut at = first.start + 1;
                for _ in 0..HITS_MAX {
                    // The next one may begin inside this one, and none holds a line break.
                    let hit = self.find(block, at)?;
                    if hit.start >= end {
                        return Some(hit);
                    }
                    found.add(&self.by_needle[hit.needle]);
                    at = hit.start + 1;
                }
                found.become_like(&self.all);
            }
            Search::Automaton(search) => {
                let rest = block.get(first.start..end).unwrap_or_default();
                let mut hits = search.find_overlapping_iter(rest);
                for hit in hits.by_ref().take(HITS_MAX) {
                    found.add(&self.by_needle[hit.pattern().as_usize()]);
                }
                if hits.next().is_some() {
                    found.become_like(&self.all);
                }
            }
        }
        self.find(block, end)
    }
}

/// The end of `literal`, at least half of it, that begins with its rarest bytes: a needle whose beginning is everywhere
/// is looked at everywhere.
fn from_rarest(literal: &[u8]) -> &[u8] {
    let rarity = |byte: &u8| COMMON.iter().position(|common| common == byte).unwrap_or(2 * COMMON.len());
    let beginnings = literal.windows(BEGINNING_BYTES).enumerate().take(literal.len() / 2 + 1);
    // The first of several leaves the longest needle.
    let rarest = beginnings
        .max_by_key(|(at, bytes)| (bytes.iter().map(rarity).sum::<usize>(), std::cmp::Reverse(*at)));
    rarest.map_or(literal, |(at, _)| &literal[at..])
}

/// Those that hold no other: a line that holds the longer one holds the shorter.
fn least_of(mut needles: Vec<&[u8]>) -> Vec<&[u8]> {
    needles.sort_unstable_by_key(|needle| (needle.len(), *needle));
    needles.dedup();
    let mut least: Vec<&[u8]> = Vec::new();
    for needle in needles {
        if !least.iter().any(|shorter| contains(needle, shorter)) {
            least.push(needle);
        }
    }
    least
}

fn search_for(needles: &[&[u8]]) -> Search {
    let mut builder = AhoCorasick::builder();
    builder.start_kind(StartKind::Unanchored);
    let built = match needles {
        [] => return Search::Nothing,
        [only] => return Search::One(Box::new(Finder::new(only).into_owned())),
        _ if needles.len() <= VECTOR_NEEDLES_MAX => packed::Searcher::new(needles).map(Search::Vector),
        _ => None,
    };
    // Also where the processor has no vector instructions for it.
    let automaton = || {
        builder.kind(Some(AhoCorasickKind::DFA)).prefilter(false).build(needles).ok().map(Search::Automaton)
    };
    built.or_else(automaton).unwrap_or(Search::Nothing)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn literals(texts: &[&str]) -> Required {
        Some(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
    }

    #[test]
    fn patterns_are_candidates_by_what_the_line_holds() {
        let patterns = [
            literals(&["Failed password"]),
            literals(&["Failed", "Invalid"]),
            literals(&["password for"]),
            None,
            literals(&["ssh2"]),
        ];
        for (line, wanted) in [
            ("nothing", &[3][..]),
            ("Failed login", &[0, 1, 3]),
            ("Invalid ssh2", &[1, 3, 4]),
            // The second needle begins inside the first.
            ("a Failed password for x", &[0, 1, 2, 3]),
        ] {
            let prefilter = Prefilter::new(&patterns);
            let mut found = Candidates::default();
            let first = prefilter.find(line.as_bytes(), 0);
            prefilter.candidates(line.as_bytes(), first, line.len(), &mut found);
            let found: Vec<usize> = (0..patterns.len()).filter(|pattern| found.has(*pattern)).collect();
            assert_eq!(found, wanted, "{line}");
        }
        assert!(Prefilter::new(&patterns).every_line);
        assert!(!Prefilter::new(&patterns[..3]).every_line);
    }

    #[test]
    fn a_needle_begins_where_its_literal_is_rare() {
        for (literal, needle) in [
            (", client: unix:, server: ", "ix:, server: "),
            ("Failed ", "Failed "),
            ("from X", "om X"),
            ("e e", "e e"),
        ] {
            assert_eq!(from_rarest(literal.as_bytes()), needle.as_bytes(), "{literal}");
        }
        // Both are looked for, though the second begins inside the first.
        let patterns = [literals(&["abcX"]), literals(&["cXd"])];
        let prefilter = Prefilter::new(&patterns);
        let mut found = Candidates::default();
        let first = prefilter.find(b"abcXd", 0);
        assert!(prefilter.candidates(b"abcXd", first, 5, &mut found).is_none());
        assert!(found.has(0) && found.has(1));
    }

    /// Words that begin inside each other.
    const WORDS: &[&str] = &[
        "ab", "bab", "abab", "ba", "bba", "aabb", "bbaa", "abb", "aab", "bbb", "aaa", "abba", "aaaabbbb",
        "aababab",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_pattern_whose_literal_is_there_is_left_out(
            chosen in prop::collection::vec(prop::sample::subsequence(WORDS, 1..3), 1..6),
            many in any::<bool>(),
            line in "[ab ]{0,150}",
        ) {
            let mut patterns: Vec<Required> = chosen.iter().map(|words| literals(words)).collect();
            if many {
                patterns.extend((0..80).map(|n| literals(&[&format!("{n:03}")])));
            }
            let prefilter = Prefilter::new(&patterns);
            let mut found = Candidates::default();
            let first = prefilter.find(line.as_bytes(), 0);
            prefilter.candidates(line.as_bytes(), first, line.len(), &mut found);
            let mut any = false;
            for (pattern, words) in chosen.iter().enumerate() {
                let holds = words.iter().any(|word| line.contains(word));
                any |= holds;
                prop_assert!(found.has(pattern) || !holds, "{:?} in {:?}", words, line);
            }
            prop_assert!(first.is_some() || !any);
            // In a block the line's candidates are the same, and the search goes on behind it.
            let block = format!("x\n{line}\nx ab abab\n");
            let mut again = Candidates::default();
            let (start, end) = (2, 2 + line.len());
            let next = prefilter.candidates(block.as_bytes(), prefilter.find(block.as_bytes(), start), end, &mut again);
            prop_assert_eq!(found, again);
            prop_assert_eq!(next.map(|hit| hit.start), prefilter.find(block.as_bytes(), end).map(|hit| hit.start));
        }
    }
}
