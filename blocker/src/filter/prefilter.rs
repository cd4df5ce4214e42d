//! Finds the lines of a block that some pattern could match, and which patterns those are.
//!
//! Every pattern says which texts a line must hold one of for it to match (`literal`). A few of these, the *needles*,
//! are searched for over the whole block at once, which is many times faster than looking at each line. What is found
//! says which patterns are worth trying: usually one of hundreds.
#![forbid(unsafe_code)]

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind, StartKind};
use memchr::memmem::Finder;

/// Up to so many needles are searched for with vector instructions; more need an automaton that looks at each byte.
const VECTOR_NEEDLES_MAX: usize = 64;
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
    end: usize,
    needle: usize,
}

impl Hit {
    /// The same place, counted from `start` on.
    pub(super) fn within(self, start: usize) -> Self {
        Self { start: self.start - start, end: self.end - start, ..self }
    }
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
    /// Reports needles that do not overlap.
    Vector(AhoCorasick),
    /// Reports every needle.
    Automaton(AhoCorasick),
}

impl Prefilter {
    /// For patterns numbered in this order.
    pub(super) fn new(patterns: &[Required]) -> Self {
        let mut needles: Vec<&[u8]> = patterns.iter().flatten().flatten().map(Vec::as_slice).collect();
        needles.sort_unstable_by_key(|needle| (needle.len(), *needle));
        needles.dedup();
        // A line that holds the longer one holds the shorter.
        let mut least: Vec<&[u8]> = Vec::new();
        for needle in needles {
            if !least.iter().any(|shorter| contains(needle, shorter)) {
                least.push(needle);
            }
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
        if matches!(prefilter.search, Search::Vector(_)) {
            // A needle that begins inside another one is not reported.
            let own = prefilter.by_needle.clone();
            for (candidates, needle) in prefilter.by_needle.iter_mut().zip(&least) {
                for (hidden, other) in own.iter().zip(&least) {
                    if (1..needle.len()).any(|at| other.starts_with(&needle[at..])) {
                        candidates.add(hidden);
                    }
                }
            }
        }
        prefilter
    }

    /// The first needle in `block`.
    pub(super) fn find(&self, block: &[u8]) -> Option<Hit> {
        match &self.search {
            Search::Nothing => None,
            Search::One(finder) => {
                finder.find(block).map(|start| Hit { start, end: start + finder.needle().len(), needle: 0 })
            }
            Search::Vector(search) | Search::Automaton(search) => search.find(block).map(|found| Hit {
                start: found.start(),
                end: found.end(),
                needle: found.pattern().as_usize(),
            }),
        }
    }

    /// The patterns worth trying in `line`, whose first needle is `first` if that is known.
    pub(super) fn candidates(&self, line: &[u8], first: Option<Hit>, found: &mut Candidates) {
        found.become_like(&self.always);
        let Some(first) = first.or_else(|| self.find(line)) else { return };
        found.add(&self.by_needle[first.needle]);
        match &self.search {
            Search::Nothing | Search::One(_) => {}
            Search::Vector(search) => {
                let mut at = first.end;
                for _ in 0..HITS_MAX {
                    let Some(hit) = line.get(at..).and_then(|rest| search.find(rest)) else { return };
                    found.add(&self.by_needle[hit.pattern().as_usize()]);
                    at += hit.end();
                }
                found.become_like(&self.all);
            }
            Search::Automaton(search) => {
                let rest = line.get(first.start..).unwrap_or_default();
                let mut hits = search.find_overlapping_iter(rest);
                for hit in hits.by_ref().take(HITS_MAX) {
                    found.add(&self.by_needle[hit.pattern().as_usize()]);
                }
                if hits.next().is_some() {
                    found.become_like(&self.all);
                }
            }
        }
    }
}

fn search_for(needles: &[&[u8]]) -> Search {
    let mut builder = AhoCorasick::builder();
    builder.start_kind(StartKind::Unanchored);
    let built = match needles {
        [] => None,
        [only] => return Search::One(Box::new(Finder::new(only).into_owned())),
        _ if needles.len() <= VECTOR_NEEDLES_MAX => {
            // The default match kind has no vectorised search.
            builder.match_kind(MatchKind::LeftmostFirst).build(needles).ok().map(Search::Vector)
        }
        _ => builder
            .kind(Some(AhoCorasickKind::DFA))
            .prefilter(false)
            .build(needles)
            .ok()
            .map(Search::Automaton),
    };
    built.unwrap_or(Search::Nothing)
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
            prefilter.candidates(line.as_bytes(), None, &mut found);
            let found: Vec<usize> = (0..patterns.len()).filter(|pattern| found.has(*pattern)).collect();
            assert_eq!(found, wanted, "{line}");
        }
        assert!(Prefilter::new(&patterns).every_line);
        assert!(!Prefilter::new(&patterns[..3]).every_line);
    }

    /// Words that begin inside each other.
    const WORDS: &[&str] =
        &["ab", "bab", "abab", "ba", "bba", "aabb", "bbaa", "abb", "aab", "bbb", "aaa", "abba"];

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
            prefilter.candidates(line.as_bytes(), None, &mut found);
            let mut any = false;
            for (pattern, words) in chosen.iter().enumerate() {
                let holds = words.iter().any(|word| line.contains(word));
                any |= holds;
                prop_assert!(found.has(pattern) || !holds, "{:?} in {:?}", words, line);
            }
            prop_assert_eq!(any, prefilter.find(line.as_bytes()).is_some());
            if let (Some(hit), false) = (prefilter.find(line.as_bytes()), many) {
                let mut again = Candidates::default();
                prefilter.candidates(line.as_bytes(), Some(hit), &mut again);
                prop_assert_eq!(found, again);
            }
        }
    }
}
