//! Addresses as an automaton: what `net::parse_address` reads and `pattern::whole_address` lets stand.
//!
//! A little wider than those: the four parts of an IPv4 address may be any one to three digits. So nothing that the engine would blame escapes the proof, and a witness is put to the engine
//! itself before it is believed.
#![forbid(unsafe_code)]

use super::alphabet::Kind;

/// Where in an address its reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    /// Before its first character.
    Start,
    /// In an IPv4 address, or the dotted end of an IPv6 one.
    V4 { part: u8, digits: u8, tail: Tail },
    /// In an IPv6 address; `groups` are complete, `digits` of the next are read.
    V6 { groups: u8, digits: u8, decimal: bool, gap: bool, last: Last, mapped: u8 },
}

/// What the dotted part belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tail {
    /// It is the address.
    None,
    /// An IPv6 address.
    Of6,
    /// `::ffff:`, which makes it the same address as the dotted part alone.
    Mapped,
}

/// The last characters of an IPv6 address so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Last {
    Digit,
    /// A colon with nothing before it.
    Leading,
    Colon,
    Gap,
    /// `:::`, whose last colon the engine takes off again.
    Over,
}

const MAPPED: u8 = 7;

impl Address {
    /// After one more character; `None` when no address goes on so.
    pub(super) fn step(self, kind: Kind) -> Option<Self> {
        match self {
            Self::Start => match kind {
                Kind::Colon => Some(Self::V6 {
                    groups: 0,
                    digits: 0,
                    decimal: true,
                    gap: false,
                    last: Last::Leading,
                    mapped: 1,
                }),
                kind if kind.is_hex() => Some(Self::V6 {
                    groups: 0,
                    digits: 1,
                    decimal: kind == Kind::Digit,
                    gap: false,
                    last: Last::Digit,
                    mapped: u8::MAX,
                }),
                _ => None,
            },
            Self::V4 { part, digits, tail } => match kind {
                Kind::Digit if digits < 3 => Some(Self::V4 { part, digits: digits + 1, tail }),
                Kind::Dot if digits > 0 && part < 3 => Some(Self::V4 { part: part + 1, digits: 0, tail }),
                _ => None,
            },
            Self::V6 { groups, digits, decimal, gap, last, mapped } => {
                let room = if gap { 7 } else { 8 };
                // `::ffff:` letter by letter; anything else is no mapped address any more.
                let mapped = match (mapped, kind) {
                    (1, Kind::Colon) => 2,
                    (2..=5, Kind::LetterF) => mapped + 1,
                    (6, Kind::Colon) => MAPPED,
                    (MAPPED, Kind::Digit) => MAPPED,
                    _ => u8::MAX,
                };
                match (kind, last) {
                    (_, Last::Over) => None,
                    (Kind::Colon, Last::Digit) => Some(Self::V6 {
                        groups: groups + 1,
                        digits: 0,
                        decimal: true,
                        gap,
                        last: Last::Colon,
                        mapped,
                    })
                    .filter(|_| groups + 1 < 8),
                    (Kind::Colon, Last::Leading | Last::Colon) => (!gap).then_some(Self::V6 {
                        groups,
                        digits,
                        decimal,
                        gap: true,
                        last: Last::Gap,
                        mapped,
                    }),
                    (Kind::Colon, Last::Gap) => (groups > 0).then_some(Self::V6 {
                        groups,
                        digits,
                        decimal,
                        gap,
                        last: Last::Over,
                        mapped: u8::MAX,
                    }),
                    (Kind::Dot, Last::Digit) if decimal && digits <= 3 => {
                        let fits = if gap { groups + 2 <= 7 } else { groups + 2 == 8 };
                        let tail = match (groups, mapped_before(self)) {
                            (0, _) if !gap => Tail::None,
                            (_, true) => Tail::Mapped,
                            _ => Tail::Of6,
                        };
                        (fits || tail == Tail::None).then_some(Self::V4 { part: 1, digits: 0, tail })
                    }
                    (kind, Last::Digit | Last::Colon | Last::Gap) if kind.is_hex() => {
                        let decimal = decimal && kind == Kind::Digit;
                        (digits < 4 && groups < room).then_some(Self::V6 {
                            groups,
                            digits: digits + 1,
                            decimal,
                            gap,
                            last: Last::Digit,
                            mapped,
                        })
                    }
                    _ => None,
                }
            }
        }
    }

    /// Whether it may end here.
    pub(super) fn is_whole(self) -> bool {
        match self {
            Self::Start => false,
            Self::V4 { part, digits, .. } => part == 3 && digits > 0,
            Self::V6 { groups, digits, gap, last, .. } => match last {
                Last::Digit => digits > 0 && if gap { groups < 7 } else { groups == 7 },
                // `::` alone names nobody, and no pattern takes it.
                Last::Gap | Last::Over => groups > 0 && groups <= 7,
                Last::Leading | Last::Colon => false,
            },
        }
    }

    /// Whether the dotted part of a mapped address begins here: the same address begins here too.
    pub(super) fn is_before_mapped(self) -> bool {
        matches!(self, Self::V6 { mapped: MAPPED, digits: 0, .. })
    }

    /// Whether it ends in `:::`, and is the same address without the last colon.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::V6 { last: Last::Over, .. })
    }

    /// What may follow it.
    pub(super) fn owes(self) -> Owed {
        match self {
            Self::V4 { tail: Tail::None, .. } => Owed::After4,
            Self::V4 { .. } => Owed::AfterDotted6,
            _ if self.is_over() => Owed::NoHex,
            _ => Owed::After6,
        }
    }
}

fn mapped_before(address: Address) -> bool {
    matches!(address, Address::V6 { mapped: MAPPED, .. })
}

/// What the text behind an address must still hold to, so that the address is a whole token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owed {
    Nothing,
    /// The next character decides, for an IPv4 address, for an IPv6 one, and for one with a dotted end.
    After4,
    After6,
    AfterDotted6,
    /// Behind a full stop or a dash: the word does not go on.
    NoWord,
    /// Behind the colon after an IPv6 address.
    NoHex,
    /// Behind the colon after an IPv4 address or a dotted end: so many digits of a port.
    Port(u8),
    /// Behind the colon after an IPv6 address: so many digits, which five make a port.
    Port6(u8),
    /// Behind the full stop or colon after a port: neither a word nor another port.
    NoMore,
}

impl Owed {
    /// What is owed after one more character; `None` when the address was none.
    pub(super) fn step(self, kind: Kind) -> Option<Self> {
        let in_word = kind.is_alnum() || kind == Kind::Underscore;
        match (self, kind) {
            (Self::Nothing, _) => Some(Self::Nothing),
            (Self::After4 | Self::After6 | Self::AfterDotted6, _) if in_word => None,
            (Self::After4 | Self::After6 | Self::AfterDotted6, Kind::Dot | Kind::Dash) => Some(Self::NoWord),
            (Self::After6 | Self::AfterDotted6, Kind::Percent) => None,
            (Self::After4 | Self::AfterDotted6, Kind::Colon) => Some(Self::Port(0)),
            (Self::After6, Kind::Colon) => Some(Self::NoHex),
            (Self::NoWord, kind) if kind.is_alnum() => None,
            (Self::NoHex, Kind::Digit) => Some(Self::Port6(1)),
            (Self::NoHex, kind) if kind.is_hex() || kind == Kind::Colon => None,
            (Self::Port(digits), Kind::Digit) => (digits < 5).then_some(Self::Port(digits + 1)),
            (Self::Port6(digits), Kind::Digit) => (digits < 5).then_some(Self::Port6(digits + 1)),
            (Self::Port6(0..5), _) => None,
            (Self::Port(_) | Self::Port6(_), _) if in_word => None,
            (Self::Port(_) | Self::Port6(_), Kind::Dot | Kind::Colon) => Some(Self::NoMore),
            (Self::NoMore, kind) if kind.is_alnum() || kind == Kind::Colon => None,
            _ => Some(Self::Nothing),
        }
    }

    /// Whether the text may end here.
    pub(super) fn may_end(self) -> bool {
        !matches!(self, Self::Port6(0..5))
    }

    /// A number for a key.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::After4 => 1,
            Self::After6 => 2,
            Self::NoWord => 3,
            Self::NoHex => 4,
            Self::AfterDotted6 => 5,
            Self::NoMore => 6,
            Self::Port(digits) => 7 + digits,
            Self::Port6(digits) => 13 + digits,
        }
    }
}

/// What stands before a place in the text, as far as a beginning address or a look-around minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Left {
    /// The character before; `None` at the start.
    pub(super) kind: Option<Kind>,
    /// It is a full stop or dash that is part of a word.
    in_word: bool,
    /// It is the second of two colons.
    is_double: bool,
    word: Word,
}

/// The run of letters, digits, colons and full stops before a place: what a colon in front of an address says depends
/// on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Word {
    /// Up to three.
    length: u8,
    /// It is where the text begins, and begins with a colon or full stop.
    opens: bool,
    /// It holds a letter that can be in no address: `client:` is a label.
    is_label: bool,
    /// How much of `::ffff:` there is since its first colon.
    mapped: u8,
}

impl Word {
    fn step(self, kind: Kind, at_start: bool) -> Self {
        if !(kind.is_hex() || matches!(kind, Kind::Alpha | Kind::Dot | Kind::Colon)) {
            return Self::default();
        }
        Self {
            length: (self.length + 1).min(3),
            opens: if at_start { !kind.is_alnum() } else { self.opens },
            is_label: self.is_label || kind == Kind::Alpha,
            mapped: match (self.mapped, kind) {
                (0, Kind::Colon) => 1,
                (0, _) => 0,
                (1, Kind::Colon) => 2,
                (2..=5, Kind::LetterF) => self.mapped + 1,
                (6, Kind::Colon) => MAPPED,
                _ => u8::MAX,
            },
        }
    }
}

impl Left {
    /// At the start of a text.
    pub(super) const START: Self = Self {
        kind: None,
        in_word: false,
        is_double: false,
        word: Word { length: 0, opens: false, is_label: false, mapped: 0 },
    };

    pub(super) fn step(self, kind: Kind) -> Self {
        let after_word = self.kind.is_some_and(Kind::is_alnum);
        Self {
            in_word: after_word && matches!(kind, Kind::Dot | Kind::Dash),
            is_double: kind == Kind::Colon && self.kind == Some(Kind::Colon),
            kind: Some(kind),
            word: self.word.step(kind, self.kind.is_none()),
        }
    }

    /// The automaton of an address that begins here as a whole token, if one can.
    pub(super) fn begin(self) -> Option<Address> {
        let begins = match self.kind {
            None => true,
            Some(Kind::Underscore) => false,
            Some(Kind::Dot | Kind::Dash) => !self.in_word,
            Some(Kind::Colon) => {
                let word = self.word;
                let is_colon_only = word.length == 1 || word.length == 2 && word.opens;
                let begins = word.is_label && !self.is_double || is_colon_only;
                if !begins && word.mapped == MAPPED {
                    return Some(Address::V4 { part: 0, digits: 0, tail: Tail::None });
                }
                begins
            }
            Some(kind) => !kind.is_alnum(),
        };
        begins.then_some(Address::Start)
    }

    /// As much of it as a beginning address minds; of what is before a colon only where one `minds_colons`.
    pub(super) fn simplified(self, minds_colons: bool) -> Self {
        let kind = self.kind.map(|kind| match kind {
            Kind::Underscore => Kind::Underscore,
            Kind::Dot | Kind::Dash => Kind::Dot,
            Kind::Colon if minds_colons => Kind::Colon,
            kind if kind.is_alnum() => Kind::Alpha,
            _ => Kind::Other,
        });
        match minds_colons {
            true => Self { kind, ..self },
            false => Self { kind, is_double: false, word: Word::default(), ..self },
        }
    }

    /// A number for a key.
    pub(super) fn code(self) -> u16 {
        let word = self.word;
        let mut code = self.kind.map_or(0, |kind| 1 + kind as u16);
        for (bits, value) in [
            (1, u16::from(self.in_word)),
            (1, u16::from(self.is_double)),
            (2, u16::from(word.length)),
            (1, u16::from(word.opens)),
            (1, u16::from(word.is_label)),
            (4, u16::from(word.mapped & 0xF)),
        ] {
            code = code << bits | value;
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filter::pattern::whole_address;

    fn kind(c: char) -> Kind {
        match c {
            '0'..='9' => Kind::Digit,
            'f' | 'F' => Kind::LetterF,
            'a'..='e' | 'A'..='E' => Kind::Hex,
            'a'..='z' => Kind::Alpha,
            '_' => Kind::Underscore,
            '.' => Kind::Dot,
            '-' => Kind::Dash,
            ':' => Kind::Colon,
            '%' => Kind::Percent,
            'é' => Kind::WideAlnum,
            _ => Kind::Other,
        }
    }

    /// Whether the automaton lets `text[start..end]` stand as an address.
    fn stands(text: &str, start: usize, end: usize) -> bool {
        let mut left = Left::START;
        for c in text[..start].chars() {
            left = left.step(kind(c));
        }
        let Some(mut address) = left.begin() else { return false };
        for c in text[start..end].chars() {
            match address.step(kind(c)) {
                Some(next) => address = next,
                None => return false,
            }
        }
        let owed = text[end..].chars().try_fold(address.owes(), |owed, c| owed.step(kind(c)));
        address.is_whole() && owed.is_some_and(Owed::may_end)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn what_the_engine_blames_stands(
            parts in prop::collection::vec(
                prop::sample::select(&["1", "12", "0", "f", "ffff", "a", "g", ".", ":", "::", "-", "%", " ", "_", "é",
                    "1.2.3.4", "::ffff:", "2001:db8::1", ":443", ":40022", "1:2:3:4:5:6:7:8"][..]),
                1..9,
            ),
        ) {
            let text = parts.concat();
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            for start in &places {
                for end in places.iter().filter(|end| *end > start) {
                    let span = *start..*end;
                    // The unspecified address, which is never banned.
                    if matches!(&text[span.clone()], "::" | ":::") {
                        continue;
                    }
                    let whole = whole_address(&text, span.clone()).is_some();
                    let ours = stands(&text, *start, *end);
                    prop_assert!(!whole || ours, "{:?} in {:?}", &text[span], text);
                    // The other way round but for what is wider on purpose.
                    let wider = text[span.clone()].split(['.', ':']).any(|part| {
                            (part.starts_with('0') && part.len() > 1) || part.parse::<u32>().is_ok_and(|part| part > 255)
                        });
                    prop_assert!(whole || !ours || wider || text[span.clone()].contains(":::"), "{:?} in {:?}", &text[span], text);
                }
            }
        }
    }
}
