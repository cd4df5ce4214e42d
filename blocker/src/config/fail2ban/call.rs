//! `NAME[a=1, b="x,y"][c='z']`: how a jail names a filter or an action and gives it options.
//!
//! Knows the notation only; what an option means is for the file that is named.
#![forbid(unsafe_code)]

use super::ini::is_space;

/// Options given in one such call at most.
const OPTIONS_MAX: usize = 256;

/// A name and the options given to it, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) options: Vec<(String, String)>,
}

/// Reads one call.
///
/// # Errors
/// Says what does not fit.
pub(super) fn parse(text: &str) -> Result<Call, String> {
    let text = text.trim_matches(is_space);
    let Some((name, inner)) = text.split_once('[') else {
        return if text.is_empty() { Err("no name".to_owned()) } else { Ok(plain(text)) };
    };
    let Some(mut rest) = inner.strip_suffix(']') else {
        return Err(format!("after {:?} a `]` is missing at the end", excerpt(name)));
    };
    let mut call = plain(name.trim_end_matches(is_space));
    if call.name.is_empty() {
        return Err("no name before `[`".to_owned());
    }
    loop {
        let unseparated = rest.strip_prefix(',').unwrap_or(rest);
        if unseparated.trim_start_matches(is_space).is_empty() {
            return Ok(call);
        }
        let Some((option, value, after)) = option(rest) else {
            return Err(format!("`option=value` is expected at {:?}", excerpt(rest)));
        };
        if call.options.len() == OPTIONS_MAX {
            return Err(format!("more than {OPTIONS_MAX} options"));
        }
        let value = value.trim_matches(is_space).to_owned();
        match call.options.iter_mut().find(|(known, _)| known == option) {
            Some((_, known)) => *known = value,
            None => call.options.push((option.to_owned(), value)),
        }
        let after = after.trim_start_matches(is_space);
        rest = match after.strip_prefix(',').or_else(|| next_group(after)) {
            Some(next) => next,
            None if after.is_empty() => return Ok(call),
            None => return Err(format!("after `{option}=..` a `,` is expected at {:?}", excerpt(after))),
        };
    }
}

fn plain(name: &str) -> Call {
    Call { name: name.to_owned(), options: Vec::new() }
}

/// Characters of the text shown in an error.
fn excerpt(text: &str) -> String {
    text.chars().take(25).collect()
}

/// `NAME=VALUE` at the beginning; the value in quotes of either kind, or up to `,` or `]`.
fn option(text: &str) -> Option<(&str, &str, &str)> {
    let text = text.trim_start_matches(is_space);
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let end = text.find(|c| !is_name(c))?;
    let (name, value) = (&text[..end], text[end..].strip_prefix('=')?);
    if name.is_empty() {
        return None;
    }
    for quote in ['"', '\''] {
        if let Some((quoted, after)) = value.strip_prefix(quote).and_then(|inner| inner.split_once(quote)) {
            return Some((name, quoted, after));
        }
    }
    let end = value.find([',', ']']).unwrap_or(value.len());
    Some((name, &value[..end], &value[end..]))
}

/// What comes after `][`.
fn next_group(text: &str) -> Option<&str> {
    text.strip_prefix(']')?.trim_start_matches(is_space).strip_prefix('[')
}

/// Cuts a list of calls, one after the other with any space between; options may go on over lines.
pub(super) fn split(text: &str) -> Vec<&str> {
    let mut calls = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let bare = rest.find(|c: char| c == '[' || is_space(c)).unwrap_or(rest.len());
        let ends = |end: &usize| rest[*end..].chars().next().is_none_or(is_space);
        let end = bracket(rest, bare)
            .filter(|end| bare > 0 && ends(end))
            .or_else(|| Some(bare).filter(|end| bare > 0 && ends(end)))
            .unwrap_or_else(|| rest.find(is_space).unwrap_or(rest.len()));
        calls.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    calls
}

/// Where the options that begin at `from`, perhaps after space, end.
fn bracket(text: &str, from: usize) -> Option<usize> {
    let mut rest = text[from..].trim_start_matches(is_space).strip_prefix('[')?;
    while let Some((_, _, after)) = option(rest) {
        let after = after.trim_start_matches(is_space);
        rest = after.strip_prefix(',').or_else(|| next_group(after)).unwrap_or(after);
    }
    rest = rest.trim_start_matches(is_space);
    rest.strip_prefix(']').map(|after| text.len() - after.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_filter_is_named_with_its_options() {
        for (text, expected) in [
            ("sshd", Some("sshd")),
            ("sshd[]", Some("sshd")),
            ("sshd[mode=aggressive]", Some("sshd mode=aggressive")),
            ("a[x=1, y=\"b, c]\", z='d']", Some("a x=1 y=b, c] z=d")),
            ("a[x=1][y='2']", Some("a x=1 y=2")),
            ("a[x=1] [y=2, ]", Some("a x=1 y=2")),
            ("a[x=\"1\",\n  y= 2 ]\n", Some("a x=1 y=2")),
            ("a[x=1, x=2]", Some("a x=2")),
            ("a[x=\"1]", Some("a x=\"1")),
            ("a[x=]", Some("a x=")),
            ("a b", Some("a b")),
            ("", None),
            ("[x=1]", None),
            ("a[x", None),
            ("a[x]", None),
            ("a[x = 1]", None),
            ("a[x=\"1\"y=2]", None),
        ] {
            let found = parse(text).ok().map(|call| {
                let options = call.options.iter().map(|(option, value)| format!(" {option}={value}"));
                call.name.clone() + &options.collect::<String>()
            });
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_list_of_actions_is_cut_where_their_options_end() {
        for (text, expected) in [
            ("", &[][..]),
            ("a", &["a"]),
            ("a b\n  c", &["a", "b", "c"]),
            ("a[x=1, y=\"p q\"]\nb[z=1]", &["a[x=1, y=\"p q\"]", "b[z=1]"]),
            ("a[x=1,\n   y=2] b", &["a[x=1,\n   y=2]", "b"]),
            ("a[x=1][y='2 3'] b", &["a[x=1][y='2 3']", "b"]),
            ("a [x=1] b", &["a [x=1]", "b"]),
            ("a[x=1]b c", &["a[x=1]b", "c"]),
            ("a[x y] c", &["a[x", "y]", "c"]),
        ] {
            assert_eq!(split(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_nothing_is_lost(text in "[a-c=\"',\\[\\] \n\u{e9}]{0,60}") {
            let _read = parse(&text);
            let kept: String = split(&text).concat().chars().filter(|c| !is_space(*c)).collect();
            let all: String = text.chars().filter(|c| !is_space(*c)).collect();
            prop_assert_eq!(kept, all);
        }
    }
}
