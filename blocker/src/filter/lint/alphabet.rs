//! The letters the proof is made over: sets of characters that no pattern and no rule of addresses tells apart.
//!
//! A class such as `\w` has some 140,000 characters, yet a few dozen letters are enough to say everything that the
//! patterns of a filter can say. A letter knows its [`Kind`] and a character that stands for it in a witness.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, sync::LazyLock};

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Letters of one proof at most.
const LETTERS_MAX: usize = 256;

/// What the rules of addresses and of word boundaries see in a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Digit,
    /// `f` and `F`, of which `::ffff:` is made.
    LetterF,
    /// The other hexadecimal letters.
    Hex,
    /// The other ASCII letters.
    Alpha,
    Underscore,
    Dot,
    Dash,
    Colon,
    Percent,
    CarriageReturn,
    /// Letters and digits beyond ASCII.
    WideAlnum,
    /// What else `\w` takes beyond ASCII.
    WideMark,
    Other,
}

impl Kind {
    /// Every kind, in the order in which a witness prefers them.
    pub(super) const ALL: [Self; 13] = [
        Self::Alpha,
        Self::Digit,
        Self::Other,
        Self::Dot,
        Self::Colon,
        Self::LetterF,
        Self::Hex,
        Self::Dash,
        Self::Underscore,
        Self::Percent,
        Self::WideAlnum,
        Self::WideMark,
        Self::CarriageReturn,
    ];

    pub(super) fn is_alnum(self) -> bool {
        matches!(self, Self::Digit | Self::LetterF | Self::Hex | Self::Alpha | Self::WideAlnum)
    }

    pub(super) fn is_hex(self) -> bool {
        matches!(self, Self::Digit | Self::LetterF | Self::Hex)
    }

    fn is_word(self) -> bool {
        self.is_alnum() || matches!(self, Self::Underscore | Self::WideMark)
    }

    fn is_ascii_word(self) -> bool {
        self.is_word() && !matches!(self, Self::WideAlnum | Self::WideMark)
    }
}

/// Whether a look-around of one character holds between `before` and `after`; `None` is the end of the text.
pub(super) fn holds(look: Look, before: Option<Kind>, after: Option<Kind>) -> bool {
    let wide = |kind: Option<Kind>| kind.is_some_and(Kind::is_word);
    let ascii = |kind: Option<Kind>| kind.is_some_and(Kind::is_ascii_word);
    match look {
        Look::Start | Look::StartLF => before.is_none(),
        Look::End | Look::EndLF => after.is_none(),
        Look::StartCRLF => before.is_none_or(|kind| kind == Kind::CarriageReturn),
        Look::EndCRLF => after.is_none_or(|kind| kind == Kind::CarriageReturn),
        Look::WordAscii => ascii(before) != ascii(after),
        Look::WordAsciiNegate => ascii(before) == ascii(after),
        Look::WordUnicode => wide(before) != wide(after),
        Look::WordUnicodeNegate => wide(before) == wide(after),
        Look::WordStartAscii => !ascii(before) && ascii(after),
        Look::WordEndAscii => ascii(before) && !ascii(after),
        Look::WordStartUnicode => !wide(before) && wide(after),
        Look::WordEndUnicode => wide(before) && !wide(after),
        Look::WordStartHalfAscii => !ascii(before),
        Look::WordEndHalfAscii => !ascii(after),
        Look::WordStartHalfUnicode => !wide(before),
        Look::WordEndHalfUnicode => !wide(after),
    }
}

/// A set of letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Letters([u64; LETTERS_MAX / 64]);

impl Letters {
    fn insert(&mut self, letter: u8) {
        self.0[usize::from(letter) / 64] |= 1 << (letter % 64);
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    /// The letter that a witness prefers.
    pub(super) fn first(&self) -> Option<u8> {
        let word = self.0.iter().position(|word| *word != 0)?;
        u8::try_from(word * 64 + self.0[word].trailing_zeros() as usize).ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first().is_none()
    }
}

/// The letters of one proof.
#[derive(Debug, Default)]
pub(super) struct Alphabet {
    /// Where a stretch of characters begins, and its letter; the line break has none.
    stretches: Vec<(u32, Option<u8>)>,
    /// For each letter what it is and the character that stands for it.
    letters: Vec<(Kind, char)>,
    kinds: [Letters; Kind::ALL.len()],
}

type Ranges = Vec<(u32, u32)>;

static WORD: LazyLock<Ranges> = LazyLock::new(|| ranges_of(r"\w"));
static ALNUM: LazyLock<Ranges> = LazyLock::new(|| ranges_of(r"[\p{Alphabetic}\p{N}]"));

fn ranges_of(class: &str) -> Ranges {
    match regex_syntax::parse(class).map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(class)) => ranges(&class),
        _ => Ranges::new(),
    }
}

fn ranges(class: &Class) -> Ranges {
    match class {
        Class::Unicode(class) => {
            class.ranges().iter().map(|range| (u32::from(range.start()), u32::from(range.end()))).collect()
        }
        Class::Bytes(class) => {
            class.ranges().iter().map(|range| (u32::from(range.start()), u32::from(range.end()))).collect()
        }
    }
}

impl Alphabet {
    /// The letters for these patterns; `None` when they tell more than [`LETTERS_MAX`] apart.
    pub(super) fn new(hirs: &[&Hir]) -> Option<Self> {
        let mut sets = vec![WORD.clone(), ALNUM.clone()];
        for single in "\n\r.:-%_".chars() {
            sets.push(vec![(u32::from(single), u32::from(single))]);
        }
        for set in ["0-9", "fF", "a-fA-F", "a-zA-Z"] {
            sets.push(ranges_of(&format!("[{set}]")));
        }
        // Witnesses are read by people: what can be printed is apart from what cannot.
        sets.push(vec![(0x20, 0x7e)]);
        hirs.iter().for_each(|hir| collect(hir, &mut sets));
        sets.sort();
        sets.dedup();
        let mut cuts: Vec<u32> = sets.iter().flatten().flat_map(|(from, to)| [*from, to + 1]).collect();
        cuts.extend([0, 0xD800, 0xE000, 0x11_0000]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut members = vec![Vec::new(); cuts.len()];
        for (id, set) in sets.iter().enumerate() {
            for (from, to) in set {
                let first = cuts.partition_point(|cut| cut < from);
                for (at, cut) in cuts.iter().enumerate().skip(first) {
                    if cut > to {
                        break;
                    }
                    members[at].push(id);
                }
            }
        }
        let mut classes: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for (at, signature) in members.into_iter().enumerate() {
            if !matches!(cuts[at], 0xD800 | 0x0A | 0x11_0000) {
                classes.entry(signature).or_default().push(at);
            }
        }
        let nicest = |stretches: &[usize]| {
            let chars = stretches.iter().flat_map(|at| {
                let end = cuts.get(at + 1).copied().unwrap_or(cuts[*at] + 1);
                (cuts[*at]..end.min(cuts[*at] + 0x80)).filter_map(char::from_u32)
            });
            chars.min_by_key(|c| rank(*c)).unwrap_or('x')
        };
        let mut classes: Vec<(char, Vec<usize>)> =
            classes.into_values().map(|at| (nicest(&at), at)).collect();
        classes.sort_by_key(|(c, _)| (rank(*c), *c));
        let mut alphabet = Self {
            stretches: cuts.iter().map(|cut| (*cut, None)).collect(),
            letters: Vec::new(),
            kinds: [Letters::default(); Kind::ALL.len()],
        };
        for (index, (c, stretches)) in classes.into_iter().enumerate() {
            let letter = u8::try_from(index).ok()?;
            let kind = kind_of(c);
            alphabet.letters.push((kind, c));
            if let Some(at) = Kind::ALL.iter().position(|known| *known == kind) {
                alphabet.kinds[at].insert(letter);
            }
            for at in stretches {
                alphabet.stretches[at].1 = Some(letter);
            }
        }
        Some(alphabet)
    }

    /// The letters of each kind, in the order of [`Kind::ALL`].
    pub(super) fn by_kind(&self) -> impl Iterator<Item = (Kind, &Letters)> {
        Kind::ALL.into_iter().zip(&self.kinds)
    }

    /// The letters of a class.
    pub(super) fn class(&self, class: &Class) -> Letters {
        let mut found = Letters::default();
        for (from, to) in ranges(class) {
            self.add(from, to, &mut found);
        }
        found
    }

    /// The letter of one character; none for a line break.
    pub(super) fn char(&self, c: char) -> Letters {
        let mut found = Letters::default();
        self.add(u32::from(c), u32::from(c), &mut found);
        found
    }

    fn add(&self, from: u32, to: u32, found: &mut Letters) {
        let first = self.stretches.partition_point(|(start, _)| *start <= from).saturating_sub(1);
        for (start, letter) in &self.stretches[first..] {
            if *start > to {
                break;
            }
            if let Some(letter) = letter {
                found.insert(*letter);
            }
        }
    }

    /// The character that stands for a letter.
    pub(super) fn shown(&self, letter: u8) -> char {
        self.letters.get(usize::from(letter)).map_or('?', |(_, c)| *c)
    }
}

fn kind_of(c: char) -> Kind {
    let within = |ranges: &Ranges| ranges.iter().any(|(from, to)| (*from..=*to).contains(&u32::from(c)));
    match c {
        '0'..='9' => Kind::Digit,
        'f' | 'F' => Kind::LetterF,
        'a'..='e' | 'A'..='E' => Kind::Hex,
        'a'..='z' | 'A'..='Z' => Kind::Alpha,
        '_' => Kind::Underscore,
        '.' => Kind::Dot,
        '-' => Kind::Dash,
        ':' => Kind::Colon,
        '%' => Kind::Percent,
        '\r' => Kind::CarriageReturn,
        c if c.is_ascii() => Kind::Other,
        _ if within(&ALNUM) => Kind::WideAlnum,
        _ if within(&WORD) => Kind::WideMark,
        _ => Kind::Other,
    }
}

/// How unwelcome a character is in a witness.
fn rank(c: char) -> u8 {
    match c {
        'x' | '1' => 0,
        'a'..='z' => 1,
        '2'..='9' => 2,
        ' ' => 3,
        '0' | 'A'..='Z' => 4,
        '!'..='~' => 5,
        c if c.is_alphanumeric() => 6,
        c if !c.is_control() => 7,
        _ => 8,
    }
}

fn collect(hir: &Hir, sets: &mut Vec<Ranges>) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => {
            let text = String::from_utf8_lossy(&literal.0);
            sets.extend(text.chars().map(|c| vec![(u32::from(c), u32::from(c))]));
        }
        HirKind::Class(class) => sets.push(ranges(class)),
        HirKind::Repetition(repetition) => collect(&repetition.sub, sets),
        HirKind::Capture(capture) => collect(&capture.sub, sets),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().for_each(|part| collect(part, sets));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_as_many_as_the_patterns_tell_apart() {
        let hir = regex_syntax::parse(r"^\d+ [^x]* é\w .").unwrap();
        let alphabet = Alphabet::new(&[&hir]).unwrap();
        assert!(alphabet.letters.len() < 40, "{}", alphabet.letters.len());
        for (a, b, same) in [('2', '7', true), ('x', 'y', false), ('ü', 'é', false), ('g', 'q', true)] {
            assert_eq!(alphabet.char(a) == alphabet.char(b), same, "{a} {b}");
        }
        assert!(alphabet.char('\n').is_empty());
    }

    #[test]
    fn a_letter_is_of_one_kind() {
        let hir = regex_syntax::parse(r"\w \d [[:alpha:]] \p{Greek}").unwrap();
        let alphabet = Alphabet::new(&[&hir]).unwrap();
        for c in (0..0x11_0000).step_by(7).filter_map(char::from_u32).filter(|c| *c != '\n') {
            let letter = alphabet.char(c).first().unwrap();
            assert_eq!(alphabet.letters[usize::from(letter)].0, kind_of(c), "{c:?}");
        }
    }
}
