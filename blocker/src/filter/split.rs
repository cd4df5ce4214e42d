//! Finds the address without captures, which cost several times what a plain test does.
//!
//! Works for a pattern that is one part before the address, ending in fixed text, and one part behind it. That text
//! is looked for in the line; what follows it is the pattern's address if the part before matches up to it and the
//! part behind matches from it on. Where that leaves a doubt (two such places, or an end that is not plain) it says
//! so, and the captures decide.
//!
//! Where the pattern begins with the address, or with something optional and the address, the address is at the line's
//! beginning if that something is not there.
//!
//! A part before that ends in `.*` and the text costs one look at the line however many places there are: what stands
//! before the `.*` matches up to somewhere, and every place from there on will do.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use memchr::memmem::Finder;
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

use super::{dialect, pattern::whole_address, steps::Piece};

/// Places of one line that are tried in full; each may cost a walk over the line. A hostile line with more is left to
/// the captures.
const PLACES_MAX: usize = 8;
/// Looks behind an address for more than fixed text; each of these may be a walk over the line too.
const WALKS_MAX: usize = 16;

/// A pattern cut in two at its address.
#[derive(Debug)]
pub(super) struct Split {
    before: Before,
    /// The text in front of the address; empty where it begins the line.
    lead: Finder<'static>,
    /// Whether a `[` may stand between.
    bracket: bool,
    behind: Behind,
    /// The part behind begins with a byte that is in no address, so the address is the whole run of bytes that are.
    plain_end: bool,
}

/// What must stand before the lead.
#[derive(Debug)]
enum Before {
    /// Nothing: the address begins the line, unless the line begins with this.
    Nothing(Option<Piece>),
    /// Anything.
    Anything,
    /// A match of this, then anything.
    Head(Piece),
    /// A match of this that ends with the address' beginning.
    UpToAddress(Piece),
}

/// What must stand behind the address.
#[derive(Debug)]
enum Behind {
    Text {
        text: Box<[u8]>,
        /// Nothing follows it.
        last: bool,
    },
    Match(Piece),
}

/// What a pattern makes of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It matches, with this address.
    Blame(IpAddr),
    /// It does not match, or what it takes for an address is none.
    Nothing,
    /// The captures must decide.
    Doubt,
}

impl Split {
    /// Cuts `pattern`, if it has the shape for it.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let hir = regex_syntax::parse(pattern).ok()?;
        let HirKind::Concat(parts) = hir.kind() else { return None };
        // A group of another shape, such as IPv4 alone, means other tokens than those found here.
        let address = regex_syntax::parse(&dialect::any_address()).ok()?;
        let is_host = |part: &Hir| match part.kind() {
            HirKind::Capture(capture) => capture.name.as_deref() == Some("host") && *capture.sub == address,
            _ => false,
        };
        let at = parts.iter().position(is_host)?;
        let (before, behind) = (&parts[..at], &parts[at + 1..]);
        let one_host = before.iter().chain(behind).map(captures).sum::<usize>() == 0;
        // Each half is tested on its own text, so it must not look across the cut; the token check looks instead.
        let before: Vec<Hir> = before.iter().filter(|part| !is_start_half(part)).cloned().collect();
        let looks_fit = before.iter().all(|part| looks_only_at(part, Look::Start))
            && behind.iter().all(|part| looks_only_at(part, Look::End));
        if !one_host || !looks_fit {
            return None;
        }
        let dot = regex_syntax::parse(".").ok()?;
        let begins = begins_line(&before);
        let (rest, lead, bracket) = if begins.is_some() { (&[][..], &[][..], false) } else { lead(&before)? };
        let before = match rest {
            _ if let Some(optional) = begins => Before::Nothing(match optional.as_slice() {
                [] => None,
                _ => Some(Piece::new(&Hir::alternation(optional), true)?),
            }),
            [] => Before::Anything,
            [head @ .., gap] if let Some(gap) = repeated(gap, &dot).filter(|gap| gap.max.is_none()) => {
                // `.+` is one of anything, and then anything.
                let least = Repetition { max: Some(gap.min), ..gap.clone() };
                let head = [head, &[Hir::repetition(least)]].concat();
                if head.iter().all(|part| matches!(part.kind(), HirKind::Empty | HirKind::Look(_))) {
                    Before::Anything
                } else {
                    Before::Head(Piece::new(&Hir::concat(head), false)?)
                }
            }
            _ => Before::UpToAddress(Piece::new(
                &Hir::concat([&before[..], &[Hir::look(Look::End)]].concat()),
                false,
            )?),
        };
        // A text is one line, which `.*$` always matches.
        let behind = match behind {
            [behind @ .., gap, end]
                if matches!(end.kind(), HirKind::Look(Look::End))
                    && repeated(gap, &dot).is_some_and(|gap| gap.min == 0 && gap.max.is_none()) =>
            {
                behind
            }
            _ => behind,
        };
        let mut firsts = [false; 256];
        let empty = first_bytes(&Hir::concat(behind.to_vec()), &mut firsts);
        let plain_end = !empty && (0..=255_u8).all(|byte| !firsts[usize::from(byte)] || !in_token(byte));
        let behind = match behind {
            [] => Behind::Text { text: Box::default(), last: false },
            [end] if matches!(end.kind(), HirKind::Look(Look::End)) => {
                Behind::Text { text: Box::default(), last: true }
            }
            [text] if let HirKind::Literal(text) = text.kind() => {
                Behind::Text { text: text.0.clone(), last: false }
            }
            [text, end]
                if let HirKind::Literal(text) = text.kind()
                    && matches!(end.kind(), HirKind::Look(Look::End)) =>
            {
                Behind::Text { text: text.0.clone(), last: true }
            }
            _ => Behind::Match(Piece::new(&Hir::concat(behind.to_vec()), true)?),
        };
        Some(Self { before, lead: Finder::new(lead).into_owned(), bracket, behind, plain_end })
    }

    /// What the pattern makes of `text`, which is one line.
    pub(super) fn find(&self, text: &str) -> Outcome {
        let bytes = text.as_bytes();
        // Everything before the first of these may be before the lead.
        let reach = match &self.before {
            Before::Head(head) => match head.end(text) {
                Some(end) => end,
                None => return Outcome::Nothing,
            },
            Before::Nothing(Some(optional)) if optional.is_match(text) => return Outcome::Doubt,
            _ => 0,
        };
        let mut blamed: Option<Option<IpAddr>> = None;
        let (mut places, mut walks) = (0, 0);
        let mut at = 0;
        while let Some(lead) = self.next_lead(bytes, at) {
            at = lead + 1;
            let mut start = lead + self.lead.needle().len();
            if self.bracket && bytes.get(start) == Some(&b'[') {
                start += 1;
            }
            let run = bytes.get(start..).unwrap_or_default();
            let run = &run[..run.iter().position(|byte| !in_token(*byte)).unwrap_or(run.len())];
            // Two dots or colons are the least an address can have.
            if run.iter().filter(|byte| matches!(byte, b'.' | b':')).nth(1).is_none() {
                continue;
            }
            let separators_only = run.iter().all(|byte| matches!(byte, b'.' | b':'));
            let address = if separators_only {
                None
            } else if self.plain_end {
                let end = start + run.len();
                walks += usize::from(matches!(self.behind, Behind::Match(_)));
                if walks > WALKS_MAX {
                    return Outcome::Doubt;
                }
                if !self.matches_behind(text, end) {
                    continue;
                }
                whole_address(text, start..end)
            } else {
                let whole = ends(run)
                    .map(|len| start..start + len)
                    .find_map(|span| Some((whole_address(text, span.clone())?, span)));
                // Where the address ends elsewhere, the captures see it.
                match whole {
                    Some((address, span)) if self.matches_behind(text, span.end) => Some(address),
                    _ => None,
                }
            };
            places += 1;
            if places > PLACES_MAX {
                return Outcome::Doubt;
            }
            if !self.matches_before(text, lead, start, reach) {
                continue;
            }
            if separators_only || (address.is_none() && !self.plain_end) {
                return Outcome::Doubt;
            }
            match blamed {
                // None of two is an address, so it does not matter which the pattern means.
                Some(None) if address.is_none() => {}
                Some(_) => return Outcome::Doubt,
                None => blamed = Some(address),
            }
        }
        blamed.flatten().map_or(Outcome::Nothing, Outcome::Blame)
    }

    /// Where the next text that may stand in front of the address begins, from `at` on.
    fn next_lead(&self, bytes: &[u8], at: usize) -> Option<usize> {
        match self.before {
            Before::Nothing(_) => (at == 0).then_some(0),
            _ => self.lead.find(bytes.get(at..)?).map(|offset| at + offset),
        }
    }

    fn matches_before(&self, text: &str, lead: usize, start: usize, reach: usize) -> bool {
        let up_to = |end: usize| text.get(..end).unwrap_or("");
        match &self.before {
            Before::Nothing(_) | Before::Anything => true,
            // The end that was found need not be the first one.
            Before::Head(head) => reach <= lead || head.is_match(up_to(lead)),
            Before::UpToAddress(before) => before.is_match(up_to(start)),
        }
    }

    fn matches_behind(&self, text: &str, end: usize) -> bool {
        let rest = text.get(end..).unwrap_or("");
        match &self.behind {
            Behind::Text { text, last: false } => rest.as_bytes().starts_with(text),
            Behind::Text { text, last: true } => rest.as_bytes() == &**text,
            Behind::Match(piece) => piece.is_match(rest),
        }
    }
}

fn in_token(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':')
}

/// How long the address at the start of this run of token bytes can be: all of it, without the stop or colon that
/// ends a clause, or up to the port.
fn ends(run: &[u8]) -> impl Iterator<Item = usize> {
    let trimmed = run.iter().rposition(|b| !matches!(b, b'.' | b':')).map_or(0, |last| last + 1);
    let port = run.iter().position(|b| *b == b':').unwrap_or(0);
    [run.len(), run.len().saturating_sub(1), trimmed, port].into_iter()
}

fn captures(part: &Hir) -> usize {
    part.properties().explicit_captures_len()
}

fn is_start_half(part: &Hir) -> bool {
    matches!(part.kind(), HirKind::Look(Look::WordStartHalfAscii))
}

fn looks_only_at(part: &Hir, anchor: Look) -> bool {
    part.properties().look_set().iter().all(|look| look == anchor)
}

fn repeated<'a>(part: &'a Hir, sub: &Hir) -> Option<&'a Repetition> {
    match part.kind() {
        HirKind::Repetition(repetition) if *repetition.sub == *sub => Some(repetition),
        _ => None,
    }
}

/// If these parts are the line's beginning and then nothing that must be there: what may be there, each at least one
/// character.
fn begins_line(parts: &[Hir]) -> Option<Vec<Hir>> {
    let [start, optional @ ..] = parts else { return None };
    if !matches!(start.kind(), HirKind::Look(Look::Start)) {
        return None;
    }
    let what = |part: &Hir| match part.kind() {
        HirKind::Repetition(Repetition { min: 0, sub, .. })
            if sub.properties().minimum_len().is_some_and(|len| len > 0) =>
        {
            Some((**sub).clone())
        }
        _ => None,
    };
    optional.iter().map(what).collect()
}

/// The fixed text that these parts end in, perhaps with a `[` behind it, and what stands before that text. Its last
/// byte is in no address, so that the address begins where a run of token bytes begins.
fn lead(parts: &[Hir]) -> Option<(&[Hir], &[u8], bool)> {
    let text = |part: &Hir| match part.kind() {
        HirKind::Literal(literal) => literal.0.last().is_some_and(|b| !in_token(*b) && b.is_ascii()),
        _ => false,
    };
    let is_bracket = |part: &Hir| match part.kind() {
        HirKind::Repetition(Repetition { min: 0, max: Some(1), sub, .. }) => {
            matches!(sub.kind(), HirKind::Literal(literal) if *literal.0 == *b"[")
        }
        _ => false,
    };
    let (rest, last, bracket) = match parts {
        [rest @ .., last, bracket] if is_bracket(bracket) => (rest, last, true),
        [rest @ .., last] => (rest, last, false),
        [] => return None,
    };
    match last.kind() {
        HirKind::Literal(literal) if text(last) => Some((rest, &literal.0, bracket)),
        _ => None,
    }
}

/// Notes which bytes a match can begin with; true if it can be empty. At the end of the text it begins with none.
fn first_bytes(hir: &Hir, firsts: &mut [bool; 256]) -> bool {
    match hir.kind() {
        HirKind::Empty => true,
        HirKind::Look(look) => *look != Look::End,
        HirKind::Literal(literal) => {
            if let Some(first) = literal.0.first() {
                firsts[usize::from(*first)] = true;
            }
            literal.0.is_empty()
        }
        HirKind::Class(class) => {
            let mut range = |start: u32, end: u32| {
                (start.min(255)..=end.min(255)).for_each(|byte| firsts[byte as usize] = true);
            };
            match class {
                Class::Unicode(class) => {
                    class.iter().for_each(|r| range(u32::from(r.start()), u32::from(r.end())));
                }
                Class::Bytes(class) => {
                    class.iter().for_each(|r| range(u32::from(r.start()), u32::from(r.end())));
                }
            }
            false
        }
        HirKind::Repetition(repetition) => first_bytes(&repetition.sub, firsts) || repetition.min == 0,
        HirKind::Capture(capture) => first_bytes(&capture.sub, firsts),
        HirKind::Concat(parts) => parts.iter().all(|part| first_bytes(part, firsts)),
        HirKind::Alternation(branches) => {
            // Every branch counts, also behind one that can be empty.
            branches.iter().filter(|branch| first_bytes(branch, firsts)).count() > 0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const PATTERNS: [(&str, bool); 22] = [
        (r"^ ?\S+ sshd: Failed for .* from <ADDR> port \d+ ssh2$", true),
        (r"^x user .*, client: <ADDR>, server: .*$", true),
        (r"by <ADDR>", true),
        (r"by <ADDR>\.?$", true),
        (r"Login Fail.*by \[?<HOST>\]?", true),
        (r"^(?: ?\S+ sshd: |\s*)(?:Failed for |x user )(?:a )?.+ from <ADDR>$", true),
        (r"^.* from \[?<ADDR>\]?:\d+ ssh2", true),
        (r#"^x user (?:[^ \[]|\[.)* from <ADDR>, server: $"#, true),
        (r"(?:h|h sshd: F|a).*? from <ADDR>[.:]", true),
        (r"from from <ADDR> ", true),
        (r"^\s*by <ADDR>(?: port 22)? ?", true),
        (r"^x (?:\d+)?.*(?:a+)? by <ADDR>(?:-+)?(?:8+)?$", true),
        (r"^<ADDR> ", true),
        (r"^(?:[\w.]+:\d{1,5} )?<ADDR>(?: by|: ).*a$", true),
        (r"^\s*(?:h|from )?<ADDR>$", true),
        (r"^(?:x |by )*<ADDR>-?", true),
        (r".*<ADDR>", false),
        (r"(?:a|b <ADDR>)", false),
        (r"by <ADDR>\b", false),
        (r"by <ADDR> (<ADDR>)", false),
        (r"by <IP4> ", false),
        (r"by (?P<host>\S+) ", false),
    ];

    const FRAGMENTS: [&str; 27] = [
        " ",
        "h sshd: ",
        "Failed for ",
        " from ",
        "by ",
        "Login Fail",
        "x user ",
        ", client: ",
        ", server: ",
        " port 22 ssh2",
        "1.2.3.4",
        "2001:db8::1",
        "::ffff:9.9.9.9",
        "1.2.3.4.5",
        "999.1.1.1",
        ".",
        ":",
        ":443",
        "[",
        "]",
        "é",
        "a",
        "-",
        "8",
        "12:34:56",
        "2001:db8::",
        "fe80::1%eth0",
    ];

    fn translated(index: usize) -> String {
        dialect::translate(PATTERNS[index].0).unwrap().full
    }

    #[test]
    fn only_patterns_of_the_shape_are_cut() {
        for (index, (pattern, cut)) in PATTERNS.iter().enumerate() {
            assert_eq!(Split::new(&translated(index)).is_some(), *cut, "{pattern}");
        }
    }

    /// Each pattern that can be cut, cut and whole.
    static ENGINES: LazyLock<Vec<(Split, regex::Regex)>> = LazyLock::new(|| {
        (0..16)
            .map(|i| (Split::new(&translated(i)).unwrap(), regex::Regex::new(&translated(i)).unwrap()))
            .collect()
    });

    #[test]
    fn it_says_where_there_is_a_doubt() {
        let many =
            format!("x user a from 1.2.3.4{}", ", server: , server:  from 5.6.7.8".repeat(PLACES_MAX + 1));
        for (index, text, found) in [
            (0, "h sshd: Failed for a from 1.2.3.4 port 22 ssh2 from 5.6.7.8 port 22 ssh2", "5.6.7.8"),
            (0, "h sshd: Failed for from 5.6.7.8 port 22 ssh2", "nothing"),
            (0, "h sshd: Failed for  from 999.6.7.8 port 22 ssh2", "nothing"),
            (1, "x user a, client: 1.2.3.4, server: b", "1.2.3.4"),
            (1, "x user a, client: 1.2.3.4, server: b, client: 1.2.3.5, server: c", "doubt"),
            (1, "x user a, client: ::, server: b", "doubt"),
            (2, "by 1.2.3.4: x", "1.2.3.4"),
            (2, "by 2001:db8::1: x", "2001:db8::1"),
            (4, "Login Fail 'x' by [2001:db8::1]", "2001:db8::1"),
            (2, "by ::", "doubt"),
            (2, "by 1.2.3.4 by 5.6.7.8", "doubt"),
            (4, "Login Fail 'by 1.2.3.4' by 5.6.7.8.9", "doubt"),
            (9, "from from from 1.2.3.4 ", "1.2.3.4"),
            (7, &many, "nothing"),
            (12, "1.2.3.4 - x", "1.2.3.4"),
            (12, "1.2.3.4.5 - x", "nothing"),
            (12, "x 1.2.3.4 ", "nothing"),
            (13, "2001:db8::1 by a", "2001:db8::1"),
            (13, "1.2.3.4:80 5.6.7.8 by a", "doubt"),
            (14, "from 1.2.3.4", "doubt"),
            (15, "1.2.3.4-", "1.2.3.4"),
        ] {
            let outcome = match ENGINES[index].0.find(text) {
                Outcome::Blame(address) => address.to_string(),
                Outcome::Nothing => "nothing".to_owned(),
                Outcome::Doubt => "doubt".to_owned(),
            };
            assert_eq!(outcome, found, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn what_it_finds_is_what_captures_find(
            index in 0_usize..16,
            parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..14),
        ) {
            let text = parts.concat();
            let (split, captures) = &ENGINES[index];
            let host = captures.captures(&text).and_then(|c| c.name("host")).map(|m| m.range());
            let blamed = host.and_then(|span| whole_address(&text, span));
            match split.find(&text) {
                Outcome::Doubt => {}
                Outcome::Nothing => prop_assert_eq!(blamed, None, "{}", text),
                Outcome::Blame(address) => prop_assert_eq!(blamed, Some(address), "{}", text),
            }
        }
    }
}
