//! Assertions about what follows, `(?=..)` and `(?!..)`, without going back and forth.
//!
//! Where such an assertion holds depends on the text alone, so one walk from the text's end notes it for every place;
//! to the walk forward it is one more thing that a letter says. In the pattern each has the place of a look that
//! fail2ban's language cannot express. Assertions that capture something, or look at what was captured, are left to the
//! backtracking engine.
#![forbid(unsafe_code)]

use std::sync::Mutex;

use regex_automata::{
    nfa::thompson::{NFA, WhichCaptures},
    util::look::Look,
};

use super::{
    GaveUp, letters,
    letters::Letters,
    look_ahead,
    steps::{Automaton, MATCHES, Steps},
};

/// Looks that no pattern of fail2ban's becomes: how they are written, and what they are read as.
pub(super) const STAND_INS: [(&str, Look); 3] =
    [(r"(?Rm:^)", Look::StartCRLF), (r"(?Rm:$)", Look::EndCRLF), (r"(?-u:\b{start})", Look::WordStartAscii)];

/// A pattern whose assertions are cut out, each for one of [`STAND_INS`].
#[derive(Debug, PartialEq, Eq)]
pub(in crate::filter) struct Cut {
    pub(super) pattern: String,
    /// What each says, and whether it says that this does not follow.
    pub(super) assertions: Vec<(String, bool)>,
}

/// One assertion.
#[derive(Debug)]
pub(super) struct Ahead {
    nfa: NFA,
    letters: Letters,
    looks: Vec<bool>,
    negative: bool,
    steps: Mutex<Steps>,
}

impl Cut {
    /// Of a translated pattern; `None` when it asks for more than such assertions, or for none.
    pub(in crate::filter) fn new(full: &str) -> Option<Self> {
        let mut cut = Self { pattern: String::with_capacity(full.len()), assertions: Vec::new() };
        if STAND_INS.iter().any(|(stand_in, _)| full.contains(stand_in)) {
            return None;
        }
        let mut at = 0;
        while let Some(rest) = full.get(at..).filter(|rest| !rest.is_empty()) {
            let len = if let Some(body) = rest.strip_prefix("(?=").or_else(|| rest.strip_prefix("(?!")) {
                let len = group_len(body)?;
                let (stand_in, _) = STAND_INS.get(cut.assertions.len())?;
                cut.pattern.push_str(stand_in);
                let inner = body.get(..len)?;
                let plain = regex_syntax::parse(inner).ok()?;
                if plain.properties().explicit_captures_len() > 0 {
                    return None;
                }
                cut.assertions.push((inner.to_owned(), rest.starts_with("(?!")));
                len + 4
            } else {
                let flags = rest.strip_prefix("(?").is_some_and(|rest| {
                    !rest.starts_with([':', 'P']) && !rest.starts_with("m:^)") && !rest.starts_with("m:$)")
                });
                // Flags would have to be handed on to the assertions; anything else is not linear.
                if flags || rest.starts_with("(?P=") {
                    return None;
                }
                let len = token_len(rest);
                if rest.starts_with('\\') && rest[1..].starts_with(|c: char| c.is_ascii_digit() && c != '0') {
                    return None;
                }
                cut.pattern.push_str(rest.get(..len)?);
                len
            };
            at += len;
        }
        (!cut.assertions.is_empty()).then_some(cut)
    }
}

/// Bytes of the class, the escape or the character that `text` begins with.
fn token_len(text: &str) -> usize {
    let char_len = |at: usize| text.get(at..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
    match text.as_bytes().first() {
        Some(b'\\') => 1 + char_len(1),
        Some(b'[') => {
            let mut at = 1;
            while let Some(byte) = text.as_bytes().get(at) {
                match byte {
                    b']' => return at + 1,
                    b'\\' => at += 1 + char_len(at + 1),
                    _ => at += 1,
                }
            }
            at
        }
        _ => char_len(0),
    }
}

/// Bytes up to the parenthesis that closes the group which `body` begins in.
fn group_len(body: &str) -> Option<usize> {
    let (mut at, mut open) = (0, 0);
    loop {
        let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
        match rest.as_bytes()[0] {
            b')' if open == 0 => return Some(at),
            b')' => open -= 1,
            b'(' => open += 1,
            _ => {}
        }
        at += token_len(rest);
    }
}

impl Ahead {
    pub(super) fn new(pattern: &str, negative: bool, compiled_bytes_max: usize) -> Option<Self> {
        let config = NFA::config()
            .reverse(true)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(compiled_bytes_max));
        let nfa = NFA::compiler().configure(config).build(pattern).ok()?;
        let letters = Letters::new(&nfa, &[])?;
        Some(Self { looks: look_ahead(&nfa), letters, negative, steps: Mutex::default(), nfa })
    }

    /// Notes `bit` at each place of `text` where the assertion holds.
    pub(super) fn note(&self, text: &str, bit: u8, places: &mut [u8]) -> Result<(), GaveUp> {
        let letters = self.letters.all(text);
        let mut kept = self.steps.try_lock();
        let mut own = Steps::default();
        let steps = kept.as_deref_mut().unwrap_or(&mut own);
        steps.begin();
        let automaton =
            Automaton { nfa: &self.nfa, letters: &self.letters, looks: &self.looks, every_match: true };
        let noted = (|| {
            let mut list = steps.first(&automaton, letters::EDGE)?;
            let before = letters.iter().rev().copied().chain([self.letters.end()]);
            for (letter, place) in before.zip(places.iter_mut().rev()) {
                let at = (list + u32::from(letter)) as usize;
                let mut step = steps.at(at);
                if Steps::is_special(step) {
                    step = steps.built(&automaton, at)?;
                }
                if (step & MATCHES != 0) != self.negative {
                    *place |= bit;
                }
                list = step & !MATCHES;
            }
            Some(())
        })();
        if noted.is_none() {
            *steps = Steps::default();
        }
        noted.ok_or(GaveUp)
    }
}
