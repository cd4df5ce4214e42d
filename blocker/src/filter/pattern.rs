//! One compiled pattern, linear or gated, and the rule of what is a whole address.
#![forbid(unsafe_code)]

use std::{net::IpAddr, ops::Range};

use memchr::memmem::Finder;
use regex::{Regex, RegexBuilder};

use super::{
    Dialect, FilterError, Pattern,
    dialect::{self, Translated},
    literal,
    split::Split,
};
use crate::net::parse_address;

/// Bytes one compiled pattern may occupy; the largest of fail2ban's own need more than the crate's default.
const COMPILED_BYTES_MAX: usize = 64 << 20;
/// Steps a pattern with look-around may take on one line before it counts as not matching.
const BACKTRACK_STEPS_MAX: usize = 100_000;

/// A pattern ready to match.
#[derive(Debug)]
pub(super) struct Compiled {
    engine: Engine,
    /// One of them is in every text that matches; `None` when nothing is known.
    pub(super) literals: Option<Vec<Vec<u8>>>,
    finder: Option<Finder<'static>>,
    /// The quick way to the address, where the pattern has the shape for it.
    split: Option<Split>,
    hosts: Vec<usize>,
    content: Option<usize>,
    nofail: Option<usize>,
}

#[derive(Debug)]
enum Engine {
    Linear(Regex),
    /// Look-around and the like, behind a linear pattern that matches a superset.
    Gated {
        gate: Regex,
        full: Box<fancy_regex::Regex>,
    },
}

/// What a match captured, as byte ranges of the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) host: Option<Range<usize>>,
    pub(super) content: Option<Range<usize>>,
    /// The pattern says that its match is no failure by itself.
    pub(super) nofail: bool,
}

impl Compiled {
    pub(super) fn new(pattern: &Pattern, dialect: Dialect) -> Result<Self, FilterError> {
        let error =
            |what: String, hint: &str| FilterError { at: pattern.at.clone(), what, hint: hint.to_owned() };
        let translated = dialect::translate(&pattern.text, dialect)
            .map_err(|(what, hint)| error(format!("{what} in the pattern {:?}", pattern.text), &hint))?;
        let linear = |text: &str| RegexBuilder::new(text).size_limit(COMPILED_BYTES_MAX).build();
        let Translated { full, gate } = translated;
        let (engine, required, names) = match (linear(&full), dialect) {
            (Ok(regex), _) => {
                let names = named(regex.capture_names());
                (Engine::Linear(regex), full, names)
            }
            (Err(cause), Dialect::Native) => {
                return Err(error(
                    format!("the pattern does not compile: {}", last_line(&cause.to_string())),
                    "native patterns are those of the Rust crate `regex`: no look-around, no back-references",
                ));
            }
            (Err(_), Dialect::Fail2ban) => {
                let fancy = fancy_regex::RegexBuilder::new(&full.replace(dialect::START_OF_TOKEN, ""))
                    .backtrack_limit(BACKTRACK_STEPS_MAX)
                    .delegate_size_limit(COMPILED_BYTES_MAX)
                    .build()
                    .map_err(|cause| {
                        error(
                            format!("the pattern does not compile: {}", last_line(&cause.to_string())),
                            "check it with Python's `re`, whose language it must be in",
                        )
                    })?;
                let names = named(fancy.capture_names());
                let gate_regex = linear(&gate).map_err(|cause| {
                    error(
                        format!(
                            "the pattern cannot be widened to a linear one: {}",
                            last_line(&cause.to_string())
                        ),
                        "write it without look-around, back-references or conditionals",
                    )
                })?;
                (Engine::Gated { gate: gate_regex, full: Box::new(fancy) }, gate, names)
            }
        };
        let group = |wanted: &str| names.iter().find(|(_, name)| name == wanted).map(|(index, _)| *index);
        let mut hosts: Vec<usize> = names
            .iter()
            .filter(|(_, n)| n == "host" || n.starts_with("host_"))
            .map(|(index, _)| *index)
            .collect();
        hosts.extend(group("fid"));
        let literals = literal::required(&required);
        let finder = literals.as_deref().and_then(|set| match set {
            [only] => Some(Finder::new(only).into_owned()),
            _ => None,
        });
        let (content, nofail) = (group("content"), group("nofail"));
        let split = match (&engine, hosts.as_slice(), content, nofail) {
            (Engine::Linear(_), [_], None, None) => Split::new(&required),
            _ => None,
        };
        Ok(Self { engine, split, literals, finder, hosts, content, nofail })
    }

    /// Whether some part of it captures an address.
    pub(super) fn names_host(&self) -> bool {
        !self.hosts.is_empty()
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        if self.finder.as_ref().is_some_and(|finder| finder.find(text.as_bytes()).is_none()) {
            return false;
        }
        match &self.engine {
            Engine::Linear(regex) => regex.is_match(text),
            Engine::Gated { gate, full } => gate.is_match(text) && full.is_match(text).unwrap_or(false),
        }
    }

    /// The leftmost match in `text`. Allocates only when there is one.
    pub(super) fn find(&self, text: &str) -> Option<Hit> {
        if self.finder.as_ref().is_some_and(|finder| finder.find(text.as_bytes()).is_none()) {
            return None;
        }
        if let Some(host) = self.split.as_ref().and_then(|split| split.find(text)) {
            return Some(Hit { host: Some(host), ..Hit::default() });
        }
        match &self.engine {
            Engine::Linear(regex) => {
                if !regex.is_match(text) {
                    return None;
                }
                let captures = regex.captures(text)?;
                Some(self.hit(|index| captures.get(index).map(|m| m.range())))
            }
            Engine::Gated { gate, full } => {
                if !gate.is_match(text) {
                    return None;
                }
                let captures = full.captures(text).ok().flatten()?;
                Some(self.hit(|index| captures.get(index).map(|m| m.start()..m.end())))
            }
        }
    }

    fn hit(&self, get: impl Fn(usize) -> Option<Range<usize>>) -> Hit {
        Hit {
            host: self.hosts.iter().find_map(|index| get(*index)),
            content: self.content.and_then(&get),
            nofail: self.nofail.and_then(&get).is_some(),
        }
    }
}

fn named<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Vec<(usize, String)> {
    names.enumerate().filter_map(|(index, name)| Some((index, name?.to_owned()))).collect()
}

/// The crates draw the pattern and put the reason last.
fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ")
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
            (mapped && token.contains('.')) || (label && !word.ends_with("::")) || colon_only
        }
        Some(_) => true,
    }
}

fn ends_token(right: &str, token: &str) -> bool {
    let mut after = right.chars();
    let v4 = !token.contains(':');
    match after.next() {
        None => true,
        Some(c) if c.is_alphanumeric() || c == '_' => false,
        Some('.' | '-') => !after.next().is_some_and(|c| c.is_alphanumeric()),
        // A zone id names an interface of ours, not an attacker elsewhere.
        Some('%') => v4,
        Some(':') if v4 => {
            // A port, or the end of a clause.
            let digits = after.as_str().bytes().take_while(u8::is_ascii_digit).count();
            let mut rest = after.as_str()[digits..].chars();
            digits <= 5
                && match rest.next() {
                    Some(c) if c.is_alphanumeric() || matches!(c, ':' | '_') => false,
                    Some('.') => !rest.next().is_some_and(char::is_alphanumeric),
                    _ => true,
                }
        }
        Some(':') => !after.next().is_some_and(|c| c.is_ascii_hexdigit() || c == ':'),
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
            ("fe80::1%eth0", "fe80::1", false),
            ("1.2.3.4:1.2.3.4", "1.2.3.4", false),
            ("999.1.1.1", "999.1.1.1", false),
            ("01.2.3.4", "01.2.3.4", false),
        ] {
            let start = text.find(token).unwrap();
            let found = whole_address(text, start..start + token.len());
            assert_eq!(found.is_some(), whole, "{token} in {text}");
        }
    }
}
