//! One compiled pattern of an imported filter, and what its groups are called.
#![forbid(unsafe_code)]

use std::{cell::Cell, net::IpAddr, ops::Range, sync::Arc};

use memchr::memmem::Finder;

use super::failure::{Facts, Value};
use crate::filter::{
    FilterError, Pattern,
    dialect::{self, Imported},
    literal,
    pattern::whole_address,
    regexp::{Groups, Regexp, Search},
};

/// Groups that can name who failed; a pattern without any blames nobody.
const IDENTIFYING: [&str; 5] = ["fid", "ip4", "ip6", "dns", "mlfid"];

/// A pattern ready to match.
#[derive(Debug)]
pub(super) struct Compiled {
    regexp: Regexp,
    /// One of them is in every line whose text matches, with its date or without; `None` when nothing is known.
    pub(super) literals: Option<Vec<Vec<u8>>>,
    /// What is in every text that matches.
    finder: Option<Finder<'static>>,
    /// The named groups, by number.
    names: Vec<(usize, Arc<str>)>,
    /// Groups that stand in for another one when that captured nothing, in order.
    alternates: Vec<(usize, Arc<str>)>,
    /// Groups whose captures join another one's, in order.
    tuples: Vec<(usize, Arc<str>)>,
    /// The groups of lines that `<SKIPLINES>` passed over.
    pub(super) skips: Vec<usize>,
    /// It says that a dot and a port follow the address, as in `192.0.2.1.50550`.
    dotted_port: bool,
}

/// How a pattern says so.
const DOTTED_PORTS: [&str; 3] = [r"<ADDR>\.\d", r"<HOST>\.\d", r"<IP4>\.\d"];

impl Compiled {
    pub(super) fn new(pattern: &Pattern, options: Imported) -> Result<Self, FilterError> {
        let error =
            |what: String, hint: &str| FilterError { at: pattern.at.clone(), what, hint: hint.to_owned() };
        let translated = dialect::translate_imported(&pattern.text, options)
            .map_err(|(what, hint)| error(format!("{what} in the pattern {:?}", pattern.text), &hint))?;
        let regexp = Regexp::any(&translated).map_err(|cause| {
            error(
                format!("the pattern does not compile: {cause}"),
                "check it with Python's `re`, whose language it must be in",
            )
        })?;
        let names: Vec<(usize, Arc<str>)> =
            regexp.names().into_iter().map(|(number, name)| (number, Arc::from(name))).collect();
        let parts = |prefix: &str| {
            let mut parts: Vec<_> = names
                .iter()
                .filter_map(|(number, name)| Some((name, *number, part_of(name.strip_prefix(prefix)?))))
                .collect();
            parts.sort();
            parts.into_iter().map(|(_, number, whole)| (number, Arc::from(whole))).collect()
        };
        let (alternates, tuples) = (parts("alt_"), parts("tuple_"));
        let skips = names.iter().filter(|(_, n)| n.starts_with("skiplines")).map(|(i, _)| *i).collect();
        let linear = if regexp.is_linear() { &translated.full } else { &translated.gate };
        let literals = literal::required_of_line(linear);
        let finder = literal::required(linear).and_then(|set| match set.as_slice() {
            [only] => Some(Finder::new(only).into_owned()),
            _ => None,
        });
        let dotted_port = DOTTED_PORTS.iter().any(|tag| pattern.text.contains(tag));
        Ok(Self { regexp, literals, finder, names, alternates, tuples, skips, dotted_port })
    }

    /// Whether some group can name who failed.
    pub(super) fn identifies(&self) -> bool {
        let whole = self.alternates.iter().chain(&self.tuples).chain(&self.names);
        whole.into_iter().any(|(_, name)| IDENTIFYING.contains(&&**name))
    }

    /// See [`Regexp::slow_searches`].
    pub(super) fn slow_searches(&self) -> u64 {
        self.regexp.slow_searches()
    }

    pub(super) fn is_match(&self, text: &str, gave_up: &Cell<u64>) -> bool {
        if !self.has_literal(text) {
            return false;
        }
        match self.regexp.test(text) {
            Search::Found(()) => true,
            Search::None => false,
            Search::GaveUp => {
                gave_up.set(gave_up.get() + 1);
                false
            }
        }
    }

    /// The leftmost match in `text`. Allocates only when there is one.
    pub(super) fn find(&self, text: &str, gave_up: &Cell<u64>) -> Option<Groups> {
        if !self.has_literal(text) {
            return None;
        }
        match self.regexp.search(text, 0, &[]) {
            Search::Found(groups) => Some(groups),
            Search::None => None,
            Search::GaveUp => {
                gave_up.set(gave_up.get() + 1);
                None
            }
        }
    }

    fn has_literal(&self, text: &str) -> bool {
        self.finder.as_ref().is_none_or(|finder| finder.find(text.as_bytes()).is_some())
    }

    /// The text of the group `content`, if it captured any.
    pub(super) fn content<'t>(&self, text: &'t str, groups: &Groups) -> Option<&'t str> {
        let (number, _) = self.names.iter().find(|(_, name)| &**name == "content")?;
        text.get(groups.get(*number)?.clone()?).filter(|content| !content.is_empty())
    }

    /// Takes out whatever the pattern has a group for: what it did not capture is not there. Only who failed stays, if
    /// it `names` nobody itself: fail2ban 1.0 would forget the address that the prefix of the line gave, 1.1 does not.
    pub(super) fn clear(&self, facts: &mut Facts, names: bool) {
        for (_, name) in self.names.iter().filter(|(_, name)| names || !IDENTIFYING.contains(&&**name)) {
            facts.groups.remove(name);
            facts.addresses.remove(name);
        }
    }

    /// Notes what the groups captured.
    pub(super) fn facts(&self, text: &str, groups: &Groups, facts: &mut Facts) {
        let span = |number: usize| groups.get(number).cloned().flatten();
        let note = |facts: &mut Facts, number: usize, name: &Arc<str>| {
            let Some(captured) = span(number).and_then(|span| text.get(span)) else { return };
            if IDENTIFYING.contains(&&**name) {
                let end = span(0).map_or(text.len(), |whole| whole.end);
                match span(number).and_then(|span| address(text, span, end, self.dotted_port)) {
                    Some(address) => facts.addresses.insert(Arc::clone(name), address),
                    None => facts.addresses.remove(name),
                };
            }
            facts.groups.insert(Arc::clone(name), Value::bounded(captured));
        };
        for (number, name) in &self.names {
            note(facts, *number, name);
        }
        for (number, name) in &self.alternates {
            if !facts.says(name) && span(*number).is_some_and(|span| !span.is_empty()) {
                note(facts, *number, name);
            }
        }
        for (number, name) in &self.tuples {
            let part = span(*number).and_then(|span| text.get(span)).map(str::to_owned);
            let parts = match facts.groups.remove(name) {
                Some(Value::Tuple(mut parts)) => {
                    parts.push(part);
                    parts
                }
                Some(Value::Text(first)) => vec![Some(first), part],
                None => vec![None, part],
            };
            facts.addresses.remove(name);
            facts.groups.insert(Arc::clone(name), Value::Tuple(parts));
        }
    }
}

/// Digits of a port at most.
const PORT_DIGITS_MAX: usize = 5;

/// The address at `span`, if it is a whole token, or the match, which ends at `end`, goes on with its port: in
/// `2001:db8::1:443` only the pattern knows where the address ends. So it does with a `dotted` port, which otherwise
/// would make another word of it.
fn address(text: &str, span: Range<usize>, end: usize, dotted: bool) -> Option<IpAddr> {
    whole_address(text, span.clone()).or_else(|| {
        let behind = text.get(span.end..end)?;
        let behind =
            behind.strip_prefix([':', '-']).or_else(|| behind.strip_prefix('.').filter(|_| dotted))?;
        let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
        let mut rest = text.get(span.end + 1 + digits..)?.chars();
        let in_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let ends = match rest.next() {
            Some(':' | '.' | '-') => !in_word(rest.next()),
            next => !in_word(next),
        };
        ((1..=PORT_DIGITS_MAX).contains(&digits) && ends)
            .then(|| whole_address(text.get(..span.end)?, span))
            .flatten()
    })
}

/// The group that one of several belongs to: `user` for `user_1`.
fn part_of(name: &str) -> String {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let bare = &name[..name.len() - digits];
    let whole = if digits > 0 { bare.strip_suffix('_').unwrap_or(name) } else { name };
    match whole {
        "id" => "fid".to_owned(),
        "port" => "fport".to_owned(),
        whole => whole.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_ends_at_its_port_where_the_pattern_says_so() {
        for (text, token, consumed, dotted, whole) in [
            ("x 2001:db8::1:443 y", "2001:db8::1", ":443 y", false, true),
            ("x 2001:db8::1:443 y", "2001:db8::1", "", false, false),
            ("x 2001:db8::1:443", "2001:db8::1", ":443", false, true),
            ("x 2001:db8::1:443:5", "2001:db8::1", ":443", false, false),
            ("x 1.2.3.4:443: y", "1.2.3.4", ":443: y", false, true),
            ("x 1.2.3.4-443;y", "1.2.3.4", "-443;", false, true),
            ("x 1.2.3.4-443.example", "1.2.3.4", "-443.", false, false),
            ("x 1.2.3.4-x", "1.2.3.4", "-x", false, false),
            ("x 1.2.3.4.5", "1.2.3.4", ".5", false, false),
            ("x 1.2.3.4.50550 y", "1.2.3.4", ".50550 y", true, true),
            ("x 1.2.3.4.50550 y", "1.2.3.4", ".50550 y", false, false),
            ("x 1.2.3.4.5.6 y", "1.2.3.4", ".5.6 y", true, false),
            ("x 11.2.3.4:443 y", "1.2.3.4", ":443 y", false, false),
            ("x 1.2.3.4:443123 y", "1.2.3.4", ":443123 y", false, false),
        ] {
            let start = text.find(token).unwrap();
            let end = start + token.len();
            let found = address(text, start..end, end + consumed.len(), dotted);
            assert_eq!(found.is_some(), whole, "{text} {consumed}");
        }
    }
}
