//! `<tag>` in values, as filters and actions expand it.
//!
//! A tag is replaced by the value of that name until none is left that has one; a tag without a value (`<HOST>`,
//! `<F-USER>`, a group's name) stays as it is. Tags nest: in `<re-<mode>>` the inner one is replaced first. Who knows
//! the values is for the caller to say. Steps and size are bounded.
#![forbid(unsafe_code)]

use super::ini::{RawValue, ValueLine, text_of};

/// Tags replaced in one value at most; fail2ban's own filters for several lines of sshd need more than a thousand.
const TAGS_MAX: usize = 8_192;
/// Bytes of one value at most, after its tags are replaced.
const VALUE_BYTES_MAX: usize = 1 << 18;
/// How deep lines that are nothing but a tag may lead to one another.
const DEPTH_MAX: usize = 25;
/// Why a value that names itself is not used.
const ENDLESS: &str = "tags name one another without end";

/// What a tag stands for; `None` leaves it as it is.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Option<Result<RawValue, String>> + 'a;

/// Replaces every tag of `value`, which is the value of the option `own`.
///
/// # Errors
/// Says what does not end or grows too large.
pub(super) fn replace(own: &str, value: &[ValueLine], lookup: &Lookup<'_>) -> Result<RawValue, String> {
    let mut replacing = Replacing { own, lookup, replaced: 0, bytes: 0 };
    replacing.lines(value, 0)
}

struct Replacing<'a> {
    own: &'a str,
    lookup: &'a Lookup<'a>,
    replaced: usize,
    bytes: usize,
}

impl Replacing<'_> {
    fn lines(&mut self, value: &[ValueLine], depth: usize) -> Result<RawValue, String> {
        if depth > DEPTH_MAX {
            return Err(ENDLESS.to_owned());
        }
        let mut found = RawValue::new();
        for line in value {
            self.line(line, depth, &mut found)?;
        }
        Ok(found)
    }

    fn line(&mut self, line: &ValueLine, depth: usize, found: &mut RawValue) -> Result<(), String> {
        let mut text = line.text.clone();
        let mut from = 0;
        while let Some((start, end)) = innermost(&text, from) {
            let name = &text[start + 1..end];
            let Some(value) = (self.lookup)(name) else {
                from = end + 1;
                continue;
            };
            self.replaced += 1;
            if name == self.own || self.replaced > TAGS_MAX {
                return Err(ENDLESS.to_owned());
            }
            let value = value?;
            if (start, end + 1) == (0, text.len()) {
                // A line that is nothing but a tag is the lines of its value, with their places.
                found.extend(self.lines(&value, depth + 1)?);
                return Ok(());
            }
            text.replace_range(start..=end, &text_of(&value));
            self.grown(text.len())?;
            // An outer tag may have become whole: `<re-<mode>>` holds `<mode>`.
            let outer = text[..start].rfind('<').filter(|open| !text[*open..start].contains([' ', '>']));
            from = outer.unwrap_or(start);
        }
        self.bytes += text.len();
        self.grown(0)?;
        found.extend(text.split('\n').map(|text| ValueLine { text: text.to_owned(), at: line.at.clone() }));
        Ok(())
    }

    fn grown(&self, by: usize) -> Result<(), String> {
        if self.bytes + by > VALUE_BYTES_MAX {
            return Err(format!("the value grows past {VALUE_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

/// The first `<name>` from `from` on that holds no other and no space.
fn innermost(text: &str, from: usize) -> Option<(usize, usize)> {
    let mut start = None;
    for (at, byte) in text.bytes().enumerate().skip(from) {
        match byte {
            b'<' => start = Some(at),
            b' ' => start = None,
            b'>' => match start.take() {
                Some(start) if at > start + 1 => return Some((start, at)),
                _ => {}
            },
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{config::fail2ban::ini::value_at, filter::Place};

    fn replaced(text: &str, tags: &[(&str, &str)]) -> Result<String, String> {
        let tags: BTreeMap<&str, &str> = tags.iter().copied().collect();
        let at = Place::default();
        let lookup = |name: &str| tags.get(name).map(|value| Ok(value_at(value, &at)));
        replace("own", &value_at(text, &at), &lookup).map(|value| text_of(&value))
    }

    #[test]
    fn tags_are_replaced_innermost_first_until_none_is_left() {
        let tags = &[("a", "1"), ("b", "<a>2"), ("re-1", "x\ny"), ("e", ""), ("re-", "none"), ("l", "<")];
        for (text, expected) in [
            ("<a>", "1"),
            ("<b><b>", "1212"),
            ("<re-<a>>", "x\ny"),
            ("(<re-<a>>)", "(x\ny)"),
            ("<re-<e>>", "none"),
            ("<HOST> <a> <F-X>", "<HOST> 1 <F-X>"),
            ("< a> <a >", "< a> <a >"),
            ("<<a>", "<1"),
            ("(?P<a>x)", "(?P1x)"),
            ("<l>a>", "1"),
        ] {
            assert_eq!(replaced(text, tags).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_names_itself_or_grows_without_bound_ends_in_an_error() {
        let doubling: Vec<(String, String)> =
            (0..30).map(|n| (format!("d{n}"), format!("x<d{}><d{0}>", n + 1))).collect();
        let doubling: Vec<(&str, &str)> = doubling.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        for (text, tags) in [
            ("<own>", &[("own", "x")][..]),
            ("<a>", &[("a", "<b>"), ("b", "<a>")]),
            ("x<a>", &[("a", "y<a>")]),
            ("x<a>", &[("a", "<a>")]),
            ("<d0>", &doubling),
        ] {
            assert!(replaced(text, tags).is_err(), "{text}");
        }
    }
}
