//! Finds the address without captures, which cost several times what a plain test does.
//!
//! Works for a pattern that is one part before the address, ending in fixed text, and one part behind it. The
//! addresses of a line are found by hand; each is the pattern's if the part before matches up to it and the part
//! behind matches from it on. Where that leaves a doubt (two such addresses, or a token there that is none) it says
//! nothing, and the captures decide.
#![forbid(unsafe_code)]

use std::ops::Range;

use regex::Regex;
use regex_syntax::hir::{Hir, HirKind, Look};

use super::pattern::whole_address;

/// Addresses of one line that are tried in full; each may cost a walk over the line. A hostile line with more is left
/// to the captures, which cost one.
const TOKENS_MAX: usize = 16;

/// A pattern cut in two at its address.
#[derive(Debug)]
pub(super) struct Split {
    /// Matches where the text ends at the address.
    before: Regex,
    /// Matches where the text begins behind the address.
    behind: Regex,
}

impl Split {
    /// Cuts `pattern`, if it has the shape for it.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let hir = regex_syntax::parse(pattern).ok()?;
        let HirKind::Concat(parts) = hir.kind() else { return None };
        let is_host = |part: &Hir| match part.kind() {
            HirKind::Capture(capture) => capture.name.as_deref() == Some("host"),
            _ => false,
        };
        let at = parts.iter().position(is_host)?;
        let (before, behind) = (&parts[..at], &parts[at + 1..]);
        let one_host = before.iter().chain(behind).map(captures).sum::<usize>() == 0;
        // Each half is tested on its own text, so it must not look across the cut; the token check looks instead.
        let before: Vec<Hir> = before.iter().filter(|part| !is_start_half(part)).cloned().collect();
        let looks_fit = before.iter().all(|part| looks_only_at(part, Look::Start))
            && behind.iter().all(|part| looks_only_at(part, Look::End));
        if !one_host || !looks_fit || !ends_outside_token(&before) {
            return None;
        }
        Some(Self {
            before: Regex::new(&format!(r"(?:{})\z", Hir::concat(before))).ok()?,
            behind: Regex::new(&format!(r"\A(?:{})", Hir::concat(behind.to_vec()))).ok()?,
        })
    }

    /// Where the address of the pattern stands in `text`; `None` when there is none or there is a doubt.
    pub(super) fn find(&self, text: &str) -> Option<Range<usize>> {
        let bytes = text.as_bytes();
        let mut found = None;
        let mut at = 0;
        let mut tokens = 0;
        while let Some(start) = bytes.get(at..)?.iter().position(|b| in_token(*b)).map(|offset| at + offset) {
            let end =
                bytes[start..].iter().position(|b| !in_token(*b)).map_or(bytes.len(), |len| start + len);
            at = end;
            // Two dots or colons are the least an address can have, and `::` alone names nobody.
            let run = &bytes[start..end];
            let separators = run.iter().filter(|b| matches!(b, b'.' | b':')).count();
            if separators < 2 || separators == run.len() {
                continue;
            }
            match ends(&bytes[start..end])
                .map(|len| start..start + len)
                .find(|span| whole_address(text, span.clone()).is_some())
            {
                Some(span) if !self.behind.is_match(&text[span.end..]) => {}
                whole => {
                    tokens += 1;
                    if tokens > TOKENS_MAX {
                        return None;
                    }
                    if self.before.is_match(&text[..start]) {
                        // A second address, or a token in its place that is none.
                        if found.is_some() || whole.is_none() {
                            return None;
                        }
                        found = whole;
                    }
                }
            }
        }
        found
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

/// Whether text that these parts match always ends in a byte that can be in no address, perhaps with a `[` more, so
/// that the address begins where a run of token bytes begins.
fn ends_outside_token(parts: &[Hir]) -> bool {
    let ends = |part: &Hir| match part.kind() {
        HirKind::Literal(literal) => literal.0.last().is_some_and(|b| !in_token(*b) && b.is_ascii()),
        _ => false,
    };
    match parts {
        [.., before, last] => match last.kind() {
            HirKind::Repetition(repetition) => ends(&repetition.sub) && ends(before),
            _ => ends(last),
        },
        [last] => ends(last),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::dialect;

    const PATTERNS: [(&str, bool); 8] = [
        (r"^ ?\S+ sshd: Failed for .* from <ADDR> port \d+ ssh2$", true),
        (r"^x user .*, client: <ADDR>, server: .*$", true),
        (r"by <ADDR>", true),
        (r"by <ADDR>\.?$", true),
        (r"Login Fail.*by \[?<HOST>\]?", true),
        (r".*<ADDR>", false),
        (r"(?:a|b <ADDR>)", false),
        (r"by <ADDR>\b", false),
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
    static ENGINES: LazyLock<Vec<(Split, Regex)>> = LazyLock::new(|| {
        (0..5).map(|i| (Split::new(&translated(i)).unwrap(), Regex::new(&translated(i)).unwrap())).collect()
    });

    #[test]
    fn it_says_nothing_where_there_is_a_doubt() {
        let many = format!("by 1.2.3.4{}", " 5.6.7.8".repeat(TOKENS_MAX));
        for (index, text, found) in [
            (0, "h sshd: Failed for a from 1.2.3.4 port 22 ssh2 from 5.6.7.8 port 22 ssh2", Some("5.6.7.8")),
            (1, "x user a, client: 1.2.3.4, server: b", Some("1.2.3.4")),
            (2, "by 1.2.3.4: x", Some("1.2.3.4")),
            (2, "by 2001:db8::1: x", Some("2001:db8::1")),
            (4, "Login Fail 'x' by [2001:db8::1]", Some("2001:db8::1")),
            (2, "by ::", None),
            (2, "by 1.2.3.4 by 5.6.7.8", None),
            (4, "Login Fail 'by 1.2.3.4' by 5.6.7.8.9", None),
            (2, &many, None),
        ] {
            assert_eq!(ENGINES[index].0.find(text).map(|span| &text[span]), found, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn what_it_finds_is_what_captures_find(
            index in 0_usize..5,
            parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..12),
        ) {
            let text = parts.concat();
            let (split, captures) = &ENGINES[index];
            if let Some(span) = split.find(&text) {
                let host = captures.captures(&text).and_then(|c| c.name("host")).map(|m| m.range());
                let address = |span: Range<usize>| whole_address(&text, span);
                prop_assert_eq!(host.and_then(address), address(span), "{}", text);
            }
        }
    }
}
