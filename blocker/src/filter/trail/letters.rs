//! The letters a pattern's automaton reads a text in: the bytes that it does not tell apart are one, and the end of the
//! text is one too. A letter also says what a look beside it sees, such as a part of a word.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use regex_automata::{
    nfa::thompson::NFA,
    util::look::{Look, LookSet},
};
use regex_syntax::hir::{Class, HirKind};

/// What looks can tell apart on one side of a place; a text of each kind, the first for the edge of the text.
const KINDS: [&str; 6] = ["", "-", "a", "\n", "\r", "é"];
pub(super) const EDGE: u8 = 0;
const OTHER: u8 = 1;
const WORD: u8 = 2;
const LINE_FEED: u8 = 3;
const CARRIAGE_RETURN: u8 = 4;
/// Part of a word in Unicode and not in ASCII.
const WIDE_WORD: u8 = 5;

/// The letters of one pattern.
#[derive(Debug)]
pub(super) struct Letters {
    by_byte: [u16; 256],
    /// The same for bytes of a character that is part of a word and not ASCII.
    in_word: [u16; 256],
    letters: Vec<Letter>,
    /// The letter at the end of the text.
    end: u16,
    /// Whether some look must know what is part of a word in Unicode.
    unicode: bool,
    /// Which looks hold between two kinds.
    holds: [[LookSet; KINDS.len()]; KINDS.len()],
}

/// One letter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter {
    /// One of its bytes; none for the end of the text.
    pub(super) byte: Option<u8>,
    /// What a look to its right sees of it.
    pub(super) kind: u8,
    /// The assertions that hold before it.
    pub(super) asserts: LookSet,
}

impl Letters {
    /// `None` when there are too many of them. Of each there is one for every set of these `assertions`.
    pub(super) fn new(nfa: &NFA, assertions: &[Look]) -> Option<Self> {
        let used = assertions.iter().fold(nfa.look_set_any(), |used, look| used.remove(*look));
        let unicode = used.contains_word_unicode();
        let classes = nfa.byte_classes();
        let mut new = Self {
            by_byte: [0; 256],
            in_word: [0; 256],
            letters: Vec::new(),
            end: 0,
            unicode,
            holds: [[LookSet::empty(); KINDS.len()]; KINDS.len()],
        };
        for (left, row) in new.holds.iter_mut().enumerate() {
            for (right, holds) in row.iter_mut().enumerate() {
                *holds = looks_between(nfa, used, KINDS[left], KINDS[right]);
            }
        }
        let mut of_class: Vec<Option<u16>> = vec![None; classes.alphabet_len()];
        for byte in 0..=255_u8 {
            let class = usize::from(classes.get(byte));
            let kind = new.plainest(kind_of(byte));
            let letter = match of_class[class] {
                Some(letter) => letter,
                None => *of_class[class].insert(new.add(Some(byte), kind)?),
            };
            // Bytes of one class look alike to every look of the pattern.
            if new.letters[usize::from(letter)].kind != kind {
                return None;
            }
            new.by_byte[usize::from(byte)] = letter;
        }
        new.in_word = new.by_byte;
        let mut of_class: Vec<Option<u16>> = vec![None; classes.alphabet_len()];
        for byte in (128..=255_u8).filter(|_| unicode) {
            let class = usize::from(classes.get(byte));
            new.in_word[usize::from(byte)] = match of_class[class] {
                Some(letter) => letter,
                None => *of_class[class].insert(new.add(Some(byte), WIDE_WORD)?),
            };
        }
        new.end = new.add(None, EDGE)?;
        let plain = new.letters.clone();
        for set in 1..1_usize << assertions.len() {
            let held = assertions.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
            let asserts = held.fold(LookSet::empty(), |asserts, (_, look)| asserts.insert(*look));
            new.letters.extend(plain.iter().map(|letter| Letter { asserts, ..*letter }));
        }
        u16::try_from(new.letters.len()).ok()?;
        Some(new)
    }

    fn add(&mut self, byte: Option<u8>, kind: u8) -> Option<u16> {
        let number = u16::try_from(self.letters.len()).ok()?;
        self.letters.push(Letter { byte, kind, asserts: LookSet::empty() });
        Some(number)
    }

    /// The first kind that no look of the pattern tells from this one, so that fewer places differ.
    fn plainest(&self, kind: u8) -> u8 {
        let kind = usize::from(kind);
        let alike = |other: &usize| {
            self.holds[*other] == self.holds[kind] && self.holds.iter().all(|row| row[*other] == row[kind])
        };
        (1..kind).find(alike).and_then(|kind| u8::try_from(kind).ok()).unwrap_or(kind as u8)
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// The letter where the assertions of this set hold.
    pub(super) fn asserting(&self, letter: u16, set: u8) -> u16 {
        letter + (self.end + 1) * u16::from(set)
    }

    pub(super) fn get(&self, letter: usize) -> Option<Letter> {
        self.letters.get(letter).copied()
    }

    pub(super) fn end(&self) -> u16 {
        self.end
    }

    pub(super) fn of(&self, byte: u8) -> u16 {
        self.by_byte[usize::from(byte)]
    }

    /// The looks that hold between something of this kind and something of that.
    pub(super) fn holds(&self, left: u8, right: u8) -> LookSet {
        self.holds[usize::from(left)][usize::from(right)]
    }

    /// Whether the letters of this text are those of its bytes, each by itself.
    pub(super) fn are_bytes(&self, text: &str) -> bool {
        !self.unicode || text.is_ascii()
    }

    /// The letters of a text, whatever they are.
    pub(super) fn of_text<'a>(&'a self, text: &'a str) -> impl Iterator<Item = u16> + 'a {
        let mut letters = &self.by_byte;
        text.bytes().enumerate().map(move |(at, byte)| {
            if byte >= 0xC0 {
                let in_word = text.get(at..).and_then(|rest| rest.chars().next()).is_some_and(is_in_word);
                letters = if in_word { &self.in_word } else { &self.by_byte };
            }
            // The two agree on ASCII.
            letters[usize::from(byte)]
        })
    }

    /// All letters of a text.
    pub(super) fn all(&self, text: &str) -> Vec<u16> {
        if self.are_bytes(text) {
            return text.bytes().map(|byte| self.of(byte)).collect();
        }
        self.of_text(text).collect()
    }

    /// What a look sees that looks back from `at`.
    pub(super) fn kind_before(&self, text: &str, at: usize) -> u8 {
        match text.get(..at).and_then(|before| before.chars().next_back()) {
            None => EDGE,
            Some(c) if c.is_ascii() => self.plainest(kind_of(c as u8)),
            Some(c) if self.unicode && is_in_word(c) => WIDE_WORD,
            Some(_) => self.plainest(OTHER),
        }
    }
}

fn kind_of(byte: u8) -> u8 {
    match byte {
        b'\n' => LINE_FEED,
        b'\r' => CARRIAGE_RETURN,
        b'_' => WORD,
        byte if byte.is_ascii_alphanumeric() => WORD,
        _ => OTHER,
    }
}

fn looks_between(nfa: &NFA, used: LookSet, left: &str, right: &str) -> LookSet {
    let text = [left, right].concat();
    let holds = |look: &Look| nfa.look_matcher().matches(*look, text.as_bytes(), left.len());
    used.iter().filter(holds).fold(LookSet::empty(), |set, look| set.insert(look))
}

/// The characters of `\w`.
struct Words {
    /// A bit each for the first plane, whose characters text is made of.
    bits: Vec<u64>,
    /// All of them, in order.
    ranges: Vec<(u32, u32)>,
}

static WORDS: LazyLock<Words> = LazyLock::new(|| {
    let mut words = Words { bits: vec![0; (1 << 16) / 64], ranges: Vec::new() };
    if let Ok(hir) = regex_syntax::parse(r"\w")
        && let HirKind::Class(Class::Unicode(class)) = hir.kind()
    {
        for range in class.iter() {
            let (start, end) = (u32::from(range.start()), u32::from(range.end()));
            words.ranges.push((start, end));
            (start..=end.min(0xFFFF)).for_each(|c| words.bits[c as usize / 64] |= 1 << (c % 64));
        }
    }
    words
});

pub(super) fn is_in_word(c: char) -> bool {
    let Words { bits, ranges } = &*WORDS;
    let c = u32::from(c);
    match bits.get(c as usize / 64) {
        Some(word) => word >> (c % 64) & 1 == 1,
        None => {
            let at = ranges.partition_point(|(_, end)| *end < c);
            ranges.get(at).is_some_and(|(start, _)| *start <= c)
        }
    }
}
