//! One compiled pattern of ours, and the rule of what is a whole address.
#![forbid(unsafe_code)]

use std::{net::IpAddr, ops::Range};

use memchr::memmem::Finder;

use super::{
    FilterError, Pattern, dialect, literal,
    regexp::{LONG_BYTES, Regexp, Search},
    split::{Outcome, Split},
};
use crate::net::parse_address;

/// A pattern ready to match.
#[derive(Debug)]
pub(super) struct Compiled {
    regexp: Regexp,
    /// One of them is in every text that matches; `None` when nothing is known.
    pub(super) literals: Option<Vec<Vec<u8>>>,
    finder: Option<Finder<'static>>,
    /// The quick way to the address, where the pattern has the shape for it.
    split: Option<Split>,
    hosts: Vec<usize>,
    content: Option<usize>,
    /// All of these.
    wanted: Vec<usize>,
}

/// What a match captured, as byte ranges of the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) host: Option<Range<usize>>,
    pub(super) content: Option<Range<usize>>,
}

impl Compiled {
    pub(super) fn new(pattern: &Pattern) -> Result<Self, FilterError> {
        let error =
            |what: String, hint: &str| FilterError { at: pattern.at.clone(), what, hint: hint.to_owned() };
        let translated = dialect::translate(&pattern.text)
            .map_err(|(what, hint)| error(format!("{what} in the pattern {:?}", pattern.text), &hint))?;
        let regexp = Regexp::linear(&translated.full).map_err(|cause| {
            error(
                format!("the pattern does not compile: {cause}"),
                "native patterns are those of the Rust crate `regex`: no look-around, no back-references",
            )
        })?;
        let names = regexp.names();
        let content = names.iter().find(|(_, name)| name == "content").map(|(index, _)| *index);
        let hosts: Vec<usize> = names
            .iter()
            .filter(|(_, name)| name == "host" || name.starts_with("host_"))
            .map(|(index, _)| *index)
            .collect();
        let literals = literal::required(&translated.full);
        let finder = literals.as_deref().and_then(|set| match set {
            [only] => Some(Finder::new(only).into_owned()),
            _ => None,
        });
        let split = match (hosts.as_slice(), content) {
            ([_], None) => Split::new(&translated.full),
            _ => None,
        };
        let wanted = hosts.iter().copied().chain(content).collect();
        Ok(Self { regexp, split, literals, finder, hosts, content, wanted })
    }

    /// Whether some part of it captures an address.
    pub(super) fn names_host(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// See [`Regexp::slow_searches`].
    pub(super) fn slow_searches(&self) -> u64 {
        self.regexp.slow_searches()
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.has_literal(text) && self.regexp.test(text) == Search::Found(())
    }

    /// Whom the leftmost match in `text` blames: `Some(None)` where the pattern names no address. A match whose address
    /// is none, such as 999.1.1.1, is no match.
    pub(super) fn blames(&self, text: &str) -> Option<Option<IpAddr>> {
        // In a long text each of the looks that `split` takes may be a walk over it.
        let split = self.split.as_ref().filter(|_| text.len() <= LONG_BYTES);
        match split.map(|split| split.find(text)) {
            Some(Outcome::Blame(address)) => Some(Some(address)),
            Some(Outcome::Nothing) => None,
            Some(Outcome::Doubt) | None => match self.find(text)?.host {
                Some(span) => whole_address(text, span).map(Some),
                None => Some(None),
            },
        }
    }

    /// The leftmost match in `text`, by captures. Allocates only when there is one.
    pub(super) fn find(&self, text: &str) -> Option<Hit> {
        if !self.has_literal(text) {
            return None;
        }
        let Search::Found(groups) = self.regexp.search(text, 0, &self.wanted) else { return None };
        let get = |index: usize| groups.get(index).cloned().flatten();
        Some(Hit {
            host: self.hosts.iter().find_map(|index| get(*index)),
            content: self.content.and_then(get),
        })
    }

    /// As [`Self::blames`], by the crate's captures alone.
    #[cfg(test)]
    pub(super) fn blames_plainly(&self, text: &str) -> Option<Option<IpAddr>> {
        let groups = self.regexp.search_plainly(text)?;
        match self.hosts.iter().find_map(|index| groups.get(*index).cloned().flatten()) {
            Some(span) => whole_address(text, span).map(Some),
            None => Some(None),
        }
    }

    fn has_literal(&self, text: &str) -> bool {
        self.finder.as_ref().is_none_or(|finder| finder.find(text.as_bytes()).is_some())
    }
}

/// The address at `span` of `text`, if it is a whole token there: an address that goes on to either side, as in
/// `1.2.3.4.5`, `1.2.3.4.example.org` or `2001:db8::1.2.3.4`, is another word, and a wrong address bans a stranger.
/// A full stop or colon that ends a sentence, and the port behind `1.2.3.4:`, belong to the text around it.
pub(super) fn whole_address(text: &str, span: Range<usize>) -> Option<IpAddr> {
    let mut token = text.get(span.clone())?;
    // A colon after an address that ends in `::` is taken for a part of it.
    if token.ends_with(":::") {
        token = &token[..token.len() - 1];
    }
    let address = parse_address(token)?;
    let (left, right) = (&text[..span.start], &text[span.start + token.len()..]);
    (starts_token(left, token) && ends_token(right, token)).then_some(address)
}

fn starts_token(left: &str, token: &str) -> bool {
    let mut before = left.chars().rev();
    match before.next() {
        None => true,
        Some(c) if c.is_alphanumeric() || c == '_' => false,
        Some('.' | '-') => !before.next().is_some_and(|c| c.is_alphanumeric()),
        Some(':') => {
            // `client:1.2.3.4` is a label; `2001:db8::1.2.3.4` or `1:2.3.4.5` is an address cut in two.
            let word = left
                .rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, ':' | '.')))
                .map_or(left, |at| left.get(at..).unwrap_or(left));
            let mapped = word.trim_start_matches(|c: char| c != ':').eq_ignore_ascii_case("::ffff:");
            let label = word.bytes().any(|b| b.is_ascii_alphabetic() && !b.is_ascii_hexdigit());
            let colon_only =
                word.len() == 1 || word.strip_prefix(|c: char| !c.is_ascii_alphanumeric()) == Some(":");
            (mapped && !token.contains(':')) || (label && !word.ends_with("::")) || colon_only
        }
        Some(_) => true,
    }
}

fn ends_token(right: &str, token: &str) -> bool {
    let mut after = right.chars();
    match after.next() {
        None => true,
        Some(c) if c.is_alphanumeric() || c == '_' => false,
        Some('.' | '-') => !after.next().is_some_and(|c| c.is_alphanumeric()),
        // A zone id names an interface of ours, not an attacker elsewhere.
        Some('%') => !token.contains(':'),
        Some(':') => {
            // A port, or the end of a clause. Behind an IPv6 address without brackets only five digits are surely a
            // port: no part of the address has as many.
            let digits = after.as_str().bytes().take_while(u8::is_ascii_digit).count();
            let may_be_port = token.contains('.') || digits == 5;
            if !may_be_port {
                return !after.next().is_some_and(|c| c.is_ascii_hexdigit() || c == ':');
            }
            let mut rest = after.as_str()[digits..].chars();
            digits <= 5
                && match rest.next() {
                    Some(c) if c.is_alphanumeric() || c == '_' => false,
                    Some('.' | ':') => !rest.next().is_some_and(|c| c.is_alphanumeric() || c == ':'),
                    _ => true,
                }
        }
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_token_is_an_address() {
        for (text, token, whole) in [
            ("from 1.2.3.4", "1.2.3.4", true),
            ("from 1.2.3.4.", "1.2.3.4", true),
            ("from 1.2.3.4: x", "1.2.3.4", true),
            ("from 1.2.3.4:443 x", "1.2.3.4", true),
            ("from 1.2.3.4:443, x", "1.2.3.4", true),
            ("from 1.2.3.4:443: x", "1.2.3.4", true),
            ("client:1.2.3.4", "1.2.3.4", true),
            ("[1.2.3.4]", "1.2.3.4", true),
            ("ip=1.2.3.4 ", "1.2.3.4", true),
            ("/1.2.3.4#53", "1.2.3.4", true),
            ("[2001:db8::1]", "2001:db8::1", true),
            ("x 2001:db8::1: y", "2001:db8::1", true),
            ("x 2001:db8::: y", "2001:db8:::", true),
            ("x ::ffff:1.2.3.4", "1.2.3.4", true),
            ("1.2.3.4.5", "1.2.3.4", false),
            ("1.2.3.4.5", "2.3.4.5", false),
            ("11.2.3.4", "1.2.3.4", false),
            ("1.2.3.45", "1.2.3.4", false),
            ("1.2.3.4.example.org", "1.2.3.4", false),
            ("x1.2.3.4", "1.2.3.4", false),
            ("é1.2.3.4", "1.2.3.4", false),
            ("a-1.2.3.4", "1.2.3.4", false),
            ("1.2.3.4-a", "1.2.3.4", false),
            ("2001:db8::1.2.3.4", "1.2.3.4", false),
            ("2001:db8::1", "db8::1", false),
            ("2001:db8::1:2", "2001:db8::1", false),
            ("2001:db8::1:4002]", "2001:db8::1", false),
            ("2001:db8::1:40022]", "2001:db8::1", true),
            ("2001:db8::1:400221]", "2001:db8::1", false),
            ("2001:db8::1:40022:1]", "2001:db8::1", false),
            ("2001:db8::1:4002a]", "2001:db8::1", false),
            ("::ffff:1.2.3.4:443 x", "::ffff:1.2.3.4", true),
            ("::ffff:1.2.3.4:443 x", "1.2.3.4", true),
            ("::ffff:1.2.3.4%eth0", "::ffff:1.2.3.4", false),
            ("fe80::1%eth0", "fe80::1", false),
            ("1.2.3.4:1.2.3.4", "1.2.3.4", false),
            ("1.2.3.4:443:5", "1.2.3.4", false),
            ("1.2.3.4:443::", "1.2.3.4", false),
            ("999.1.1.1", "999.1.1.1", false),
            ("01.2.3.4", "01.2.3.4", false),
        ] {
            let start = text.find(token).unwrap();
            let found = whole_address(text, start..start + token.len());
            assert_eq!(found.is_some(), whole, "{token} in {text}");
        }
    }
}
