//! Tests short pieces of patterns step by step, which costs less than to start an automaton and to feed it each byte.
//!
//! What stands before and behind an address is text, runs of some class, and a few choices between them. A step takes
//! all of its text or run at once; where it fails, the last choice is taken the other way, and a run gives back what it
//! took. That can take long on hostile text, and letters beyond ASCII are not known here, so both have a bound: beyond
//! it nothing is said, and the automaton decides.
#![forbid(unsafe_code)]

use regex_automata::{Anchored, Input, meta::Regex};
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

/// Steps for one text; a line that a daemon wrote takes some twenty.
const STEPS_MAX: usize = 256;
/// What a run takes costs one of those steps for each so many bytes, so a long text is soon the automaton's.
const STEP_BYTES: usize = 64;
/// Choices that are open at once.
const CHOICES_MAX: usize = 12;
/// A piece that needs more steps to be written down is no short one.
const LENGTH_MAX: usize = 256;
/// Counted repetitions are written out up to this.
const COUNT_MAX: u32 = 4;

/// A piece of a pattern that begins where its text does.
#[derive(Debug)]
pub(super) struct Piece {
    steps: Option<Steps>,
    regex: Regex,
    anchored: Anchored,
}

impl Piece {
    /// `None` where it cannot be compiled. `bound` to the beginning of the text, whether it says so or not.
    pub(super) fn new(hir: &Hir, bound: bool) -> Option<Self> {
        let anchored = if bound { Anchored::Yes } else { Anchored::No };
        let begins = bound || hir.properties().look_set_prefix().contains(Look::Start);
        // From the parsed form, since the text that `Hir` prints for `(?:a+)?` means another pattern.
        let regex = Regex::builder().build_from_hir(hir).ok()?;
        Some(Self { steps: if begins { Steps::new(hir) } else { None }, regex, anchored })
    }

    /// Where some match ends, not always the first one.
    pub(super) fn end(&self, text: &str) -> Option<usize> {
        let known = self.steps.as_ref().and_then(|steps| steps.end(text.as_bytes()).ok());
        known.unwrap_or_else(|| {
            let input = Input::new(text).anchored(self.anchored).earliest(true);
            self.regex.search_half(&input).map(|found| found.offset())
        })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.end(text).is_some()
    }
}

/// A program; it goes on with the next step where nothing else is said.
#[derive(Debug)]
struct Steps(Vec<Step>);

#[derive(Debug)]
enum Step {
    /// This is here.
    Text(Box<[u8]>),
    /// One character of the set is.
    One(Set),
    /// As many of the set as there are, or fewer if what follows needs them; at least one, or perhaps none.
    Run(Set, bool),
    /// What follows, or the step of this number.
    Choice(usize),
    Jump(usize),
    Start,
    End,
    Match,
}

/// Characters.
#[derive(Clone, Copy, Debug)]
struct Set {
    /// The bytes that they begin with; of those beyond ASCII, all or none.
    bytes: [u64; 4],
    /// It holds some characters beyond ASCII, but not all.
    partly: bool,
}

/// More is needed than this knows.
#[derive(Debug, PartialEq, Eq)]
struct Unsure;

/// What to try when a step fails: to go on at `step` with what begins at `at`, or, for a run, nearer to `least`.
#[derive(Clone, Copy, Default)]
struct Open {
    step: usize,
    at: usize,
    least: usize,
}

impl Steps {
    fn new(hir: &Hir) -> Option<Self> {
        let mut steps = Vec::new();
        write(hir, &mut steps)?;
        steps.push(Step::Match);
        (steps.len() <= LENGTH_MAX).then_some(Self(steps))
    }

    /// Where some match that begins with the text, which is UTF-8, ends.
    fn end(&self, text: &[u8]) -> Result<Option<usize>, Unsure> {
        let mut open = [Open::default(); CHOICES_MAX];
        let (mut choices, mut step, mut at) = (0, 0, 0);
        let mut left = STEPS_MAX;
        while left > 0 {
            left -= 1;
            let next = match &self.0[step] {
                // Most of what is not there differs in the first byte.
                Step::Text(wanted) => (text.get(at) == wanted.first() && text[at..].starts_with(wanted))
                    .then_some((step + 1, at + wanted.len())),
                Step::One(set) => match text.get(at) {
                    Some(byte) if set.holds(*byte) => Some((step + 1, after(text, at))),
                    Some(0x80..) if set.partly => return Err(Unsure),
                    _ => None,
                },
                Step::Run(set, one) => {
                    let end = set.run(text, at)?;
                    left = left.saturating_sub((end - at) / STEP_BYTES);
                    if *one && end == at {
                        None
                    } else {
                        let least = if *one { after(text, at) } else { at };
                        if end > least {
                            *open.get_mut(choices).ok_or(Unsure)? = Open { step: step + 1, at: end, least };
                            choices += 1;
                        }
                        Some((step + 1, end))
                    }
                }
                Step::Choice(other) => {
                    *open.get_mut(choices).ok_or(Unsure)? = Open { step: *other, at, least: at };
                    choices += 1;
                    Some((step + 1, at))
                }
                Step::Jump(to) => Some((*to, at)),
                Step::Start => (at == 0).then_some((step + 1, at)),
                Step::End => (at == text.len()).then_some((step + 1, at)),
                Step::Match => return Ok(Some(at)),
            };
            (step, at) = match next {
                Some(next) => next,
                None => loop {
                    let Some(last) = choices.checked_sub(1) else { return Ok(None) };
                    let choice = &mut open[last];
                    if choice.at == choice.least {
                        // The other way of a choice; a run that has nothing to give back is not kept.
                        choices = last;
                        break (choice.step, choice.at);
                    }
                    match self.shorter(text, *choice) {
                        Some(at) if at > choice.least => {
                            choice.at = at;
                            break (choice.step, at);
                        }
                        Some(at) => {
                            choices = last;
                            break (choice.step, at);
                        }
                        None => choices = last,
                    }
                },
            };
        }
        Err(Unsure)
    }

    /// Where a run ends next that gives back at least one character.
    fn shorter(&self, text: &[u8], run: Open) -> Option<usize> {
        match &self.0[run.step] {
            Step::Text(wanted) => {
                let first = *wanted.first()?;
                memchr::memrchr(first, &text[run.least..run.at]).map(|offset| run.least + offset)
            }
            Step::End => None,
            _ => (run.least..run.at).rev().find(|at| !is_inside(text[*at])),
        }
    }
}

impl Set {
    fn new(class: &Class) -> Option<Self> {
        let (mut ascii, mut others) = (0, 0_u32);
        let mut add = |start: u32, end: u32| {
            for byte in start..=end.min(0x7f) {
                ascii |= 1_u128 << byte;
            }
            if end > 0x7f {
                others += end - start.max(0x80) + 1;
            }
        };
        match class {
            Class::Unicode(class) => class.iter().for_each(|r| add(u32::from(r.start()), u32::from(r.end()))),
            Class::Bytes(class) => class.iter().for_each(|r| add(u32::from(r.start()), u32::from(r.end()))),
        }
        // Ranges of all characters count those between that are none, the surrogates, too.
        let (beyond, partly) = match others {
            0 => (0, false),
            _ if matches!(class, Class::Bytes(_)) => return None,
            0x10_FF80 => (u64::MAX, false),
            _ => (0, true),
        };
        Some(Self { bytes: [ascii as u64, (ascii >> 64) as u64, beyond, beyond], partly })
    }

    fn holds(&self, byte: u8) -> bool {
        self.bytes[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }

    /// Where the characters from `at` on end that are in it.
    fn run(&self, text: &[u8], at: usize) -> Result<usize, Unsure> {
        let rest = text.get(at..).unwrap_or_default();
        let len = rest.iter().position(|byte| !self.holds(*byte)).unwrap_or(rest.len());
        match rest.get(len) {
            Some(0x80..) if self.partly => Err(Unsure),
            _ => Ok(at + len),
        }
    }
}

/// Behind the character at `at`.
fn after(text: &[u8], at: usize) -> usize {
    let rest = text.get(at + 1..).unwrap_or_default();
    at + 1 + rest.iter().take_while(|byte| is_inside(**byte)).count()
}

/// Whether the byte goes on with a character.
fn is_inside(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// Adds the steps for `hir`; `None` where there are none for it.
fn write(hir: &Hir, steps: &mut Vec<Step>) -> Option<()> {
    if steps.len() > LENGTH_MAX {
        return None;
    }
    match hir.kind() {
        HirKind::Empty => {}
        HirKind::Literal(literal) => steps.push(Step::Text(literal.0.clone())),
        HirKind::Class(class) => steps.push(Step::One(Set::new(class)?)),
        HirKind::Look(Look::Start) => steps.push(Step::Start),
        HirKind::Look(Look::End) => steps.push(Step::End),
        HirKind::Look(_) | HirKind::Capture(_) => return None,
        HirKind::Concat(parts) => parts.iter().try_for_each(|part| write(part, steps))?,
        HirKind::Alternation(branches) => {
            let (last, others) = branches.split_last()?;
            let mut jumps = Vec::new();
            for branch in others {
                choice(steps, |steps| {
                    write(branch, steps)?;
                    jumps.push(steps.len());
                    steps.push(Step::Jump(0));
                    Some(())
                })?;
            }
            write(last, steps)?;
            let end = steps.len();
            jumps.into_iter().for_each(|jump| steps[jump] = Step::Jump(end));
        }
        HirKind::Repetition(repetition) => repeat(repetition, steps)?,
    }
    Some(())
}

fn repeat(repetition: &Repetition, steps: &mut Vec<Step>) -> Option<()> {
    let Repetition { min, max, sub, .. } = repetition;
    if let (HirKind::Class(class), 0..=1, None) = (sub.kind(), min, max) {
        steps.push(Step::Run(Set::new(class)?, *min == 1));
        return Some(());
    }
    if *min > COUNT_MAX || max.is_some_and(|max| max > COUNT_MAX) {
        return None;
    }
    for _ in 0..*min {
        write(sub, steps)?;
    }
    if let Some(max) = max {
        return optional(sub, max.saturating_sub(*min), steps);
    }
    // What may be nothing could be repeated for ever.
    if sub.properties().minimum_len().is_none_or(|len| len == 0) {
        return None;
    }
    // `(?:[a-z]|B)*` is `[a-z]*(?:B[a-z]*)*`, which takes the usual characters at once.
    let (usual, sub) = match sub.kind() {
        HirKind::Alternation(branches) => match branches.split_first() {
            Some((first, others)) if let HirKind::Class(class) = first.kind() => {
                (Some(Set::new(class)?), Hir::alternation(others.to_vec()))
            }
            _ => (None, (**sub).clone()),
        },
        _ => (None, (**sub).clone()),
    };
    steps.extend(usual.map(|set| Step::Run(set, false)));
    let again = steps.len();
    choice(steps, |steps| {
        write(&sub, steps)?;
        steps.extend(usual.map(|set| Step::Run(set, false)));
        steps.push(Step::Jump(again));
        Some(())
    })
}

fn optional(sub: &Hir, times: u32, steps: &mut Vec<Step>) -> Option<()> {
    if times == 0 {
        return Some(());
    }
    choice(steps, |steps| {
        write(sub, steps)?;
        optional(sub, times - 1, steps)
    })
}

/// The choice between what `inner` writes and what comes behind that.
fn choice(steps: &mut Vec<Step>, inner: impl FnOnce(&mut Vec<Step>) -> Option<()>) -> Option<()> {
    let at = steps.len();
    steps.push(Step::Jump(0));
    inner(steps)?;
    steps[at] = Step::Choice(steps.len());
    Some(())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const PATTERNS: [&str; 18] = [
        r"^(?: ?[0-9A-Za-z._:-]*[0-9A-Za-z._-] sshd(?:\[\d+\])?: |\s*(?:sshd: )?)Failed (?:a|b) for (?:a b )?[^:]* from $",
        r" port \d+(?: ssh[12]?)?$",
        r#"" user="(?:[^"\\]|\\.)*"$"#,
        r#", server: [^ ]*, request: ".*$"#,
        r"(?:a|ab)(?:b|bc)*c",
        r"[^a]+[^b]+$",
        r"\S+ \S*é",
        r"(?:a|\d|[^ab])*b$",
        r"(?i)ssh2 ?k",
        r"\d{1,3} \d{2,4}",
        r"^(?:x|)*a",
        r"(?:ab?){2,}$",
        r".*a.*b.*$",
        r"(?:[^b]|ba|bé)*\bb",
        r"[ab]?(?-u:[a-f:])*:",
        r"\W+(?:é|b+)*?$",
        r"(?:a*a*)*b",
        r"[a-z]{7}",
    ];

    /// Patterns that are not written as steps.
    const REFUSED: [usize; 4] = [10, 13, 16, 17];

    const FRAGMENTS: [&str; 24] = [
        " ",
        "a",
        "b",
        "ab",
        "c",
        "é",
        "\u{a0}",
        "1",
        "22",
        ":",
        "h sshd[7]: ",
        "sshd: ",
        "Failed a for ",
        "a b ",
        " from ",
        " port ",
        " ssh2",
        "ssh2k",
        "\u{17f}sh2\u{212a}",
        "\"",
        "\\",
        "\" user=\"",
        ", server: ",
        ", request: \"",
    ];

    static PIECES: LazyLock<Vec<(Piece, regex::Regex)>> = LazyLock::new(|| {
        let both = |pattern: &&str| {
            let piece = Piece::new(&regex_syntax::parse(pattern).unwrap(), true).unwrap();
            (piece, regex::Regex::new(&format!(r"\A(?:{pattern})")).unwrap())
        };
        PATTERNS.iter().map(both).collect()
    });

    #[test]
    fn common_shapes_have_steps_and_lines_do_not_need_the_automaton() {
        for (index, (piece, _)) in PIECES.iter().enumerate() {
            assert_eq!(piece.steps.is_none(), REFUSED.contains(&index), "{}", PATTERNS[index]);
        }
        let steps = |index: usize| PIECES[index].0.steps.as_ref().unwrap();
        for (index, text, whole) in [
            (0, " h sshd[123]: Failed a for a b admin from ", true),
            (0, " h sshd[123]: Failed c for a b admin from ", false),
            (1, " port 4022 ssh2", true),
            (2, r#"" user="m\"é\\""#, true),
            (3, ", server: a, b, request: ", false),
        ] {
            assert_eq!(steps(index).end(text.as_bytes()), Ok(whole.then_some(text.len())), "{text}");
        }
        // Another alphabet's digit, and a text that can be read in too many ways.
        assert_eq!(steps(1).end(" port 1١".as_bytes()), Err(Unsure));
        assert_eq!(steps(12).end("a".repeat(1_000).as_bytes()), Err(Unsure));
        // Only a few runs, but long ones.
        let long = format!(" port {}", "1".repeat(STEPS_MAX * STEP_BYTES));
        assert_eq!(steps(1).end(long.as_bytes()), Err(Unsure));
        assert!(PIECES[1].0.is_match(&long));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn steps_match_what_the_crate_matches(
            index in 0..PATTERNS.len(),
            parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..12),
        ) {
            let text = parts.concat();
            let (piece, regex) = &PIECES[index];
            let Some(Ok(end)) = piece.steps.as_ref().map(|steps| steps.end(text.as_bytes())) else { return Ok(()) };
            prop_assert_eq!(end.is_some(), regex.is_match(&text), "{} in {:?}", PATTERNS[index], text);
            if let Some(end) = end {
                // Some match ends there.
                let whole = regex::Regex::new(&format!(r"\A(?:{})\z", PATTERNS[index])).unwrap();
                prop_assert!(whole.is_match(&text[..end]), "{} in {:?} to {}", PATTERNS[index], text, end);
            }
        }
    }
}
