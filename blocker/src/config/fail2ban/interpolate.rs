//! Puts values into values: `%(option)s` as the file reader does it, then `<tag>` as filters do it.
//!
//! `%(x)s` looks in the section, then in `[DEFAULT]`; `%(section/x)s`, `%(default/x)s` and `%(known/x)s` say where.
//! `<x>` comes from a filter's own options and those given to it; a tag that is none of them (`<HOST>`, `<F-USER>`,
//! a group's name) stays as it is. Both are bounded in steps and size, so a value that names itself ends in an
//! error and not in a hang.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{
    ini::{RawValue, ValueLine},
    layers::Layers,
};

/// How deep values may name one another.
const DEPTH_MAX: usize = 32;
/// Bytes of one value at most, after expansion.
const VALUE_BYTES_MAX: usize = 1 << 18;
/// Options named while one value is expanded at most; empty ones would never meet the limit in bytes.
const NAMED_MAX: usize = 4_096;
/// Lines of one value at most, after expansion.
const LINES_MAX: usize = 16_384;
/// Why a value that names itself is not used.
const ENDLESS: &str = "values name one another without end";
/// Tags replaced in one value at most; fail2ban's own filters for several lines of sshd need more than a thousand.
const TAGS_MAX: usize = 8_192;

/// The value of `section`/`option` with every `%(x)s` expanded; `None` when there is no such option. Lines that an
/// expansion within a line brings in have the place of the line that asked for them.
///
/// # Errors
/// Names what could not be found or did not end.
pub(super) fn value(layers: &Layers, section: &str, option: &str) -> Option<Result<RawValue, String>> {
    let raw = layers.get(section, option)?;
    Some(lines(layers, section, raw, 0, &mut { NAMED_MAX }))
}

fn lines(
    layers: &Layers,
    section: &str,
    raw: &RawValue,
    depth: usize,
    left: &mut usize,
) -> Result<RawValue, String> {
    if depth > DEPTH_MAX || *left == 0 {
        return Err(ENDLESS.to_owned());
    }
    let mut found = RawValue::new();
    for line in raw {
        let whole = line.text.strip_prefix("%(").and_then(|text| text.strip_suffix(")s"));
        if let Some(name) = whole.filter(|name| !name.contains(')') && *name != "__name__") {
            // A line that is nothing but another option is that option, with its places.
            *left = left.saturating_sub(1);
            let (home, raw) = find(layers, section, name)?;
            found.extend(lines(layers, home, raw, depth + 1, left)?);
        } else {
            let text = expand(layers, section, &line.text, depth, left)?;
            let texts = text.split('\n').map(str::trim);
            found.extend(texts.map(|text| ValueLine { text: text.to_owned(), at: line.at.clone() }));
        }
        if found.len() > LINES_MAX {
            return Err(format!("the value grows past {LINES_MAX} lines"));
        }
    }
    Ok(found)
}

fn expand(
    layers: &Layers,
    section: &str,
    text: &str,
    depth: usize,
    left: &mut usize,
) -> Result<String, String> {
    if depth > DEPTH_MAX || *left == 0 {
        return Err(ENDLESS.to_owned());
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(')
            && let Some((name, after)) = inner.split_once(")s")
        {
            *left = left.saturating_sub(1);
            out.push_str(&named(layers, section, name, depth, left)?);
            rest = after;
        } else {
            return Err("a single `%` must be written `%%`, or begin `%(option)s`".to_owned());
        }
        if out.len() > VALUE_BYTES_MAX {
            return Err(format!("the value grows past {VALUE_BYTES_MAX} bytes"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn named(
    layers: &Layers,
    section: &str,
    name: &str,
    depth: usize,
    left: &mut usize,
) -> Result<String, String> {
    if name.eq_ignore_ascii_case("__name__") {
        return Ok(section.to_owned());
    }
    let (home, raw) = find(layers, section, name)?;
    let mut texts = Vec::new();
    for line in raw {
        texts.push(expand(layers, home, &line.text, depth + 1, left)?);
    }
    Ok(texts.join("\n"))
}

/// The option that `%(name)s` in `section` means, and the section to go on in.
fn find<'a>(layers: &'a Layers, section: &'a str, name: &'a str) -> Result<(&'a str, &'a RawValue), String> {
    let option = name.to_lowercase();
    let (home, raw) = match name.split_once('/') {
        Some((home, rest)) if home.eq_ignore_ascii_case("default") => {
            (section, layers.defaults.get(&rest.to_lowercase()))
        }
        Some(("known", rest)) => {
            // The value hidden by a later file, or else the one that the section's own hides.
            let hidden = layers.sections.get(section).and_then(|s| s.get(&option));
            (section, hidden.or_else(|| layers.defaults.get(&rest.to_lowercase())))
        }
        Some((home, rest)) => (home, layers.sections.get(home).and_then(|s| s.get(&rest.to_lowercase()))),
        None => (section, layers.get(section, &option)),
    };
    raw.map(|raw| (home, raw)).ok_or_else(|| format!("`%({name})s` names an option that is not there"))
}

/// Options that may stand in a value as `<name>`.
pub(super) type Tags = BTreeMap<String, String>;

/// Replaces every `<name>` that `tags` has, innermost first, until none is left.
///
/// # Errors
/// Says which tag does not end.
pub(super) fn tags(text: &str, tags: &Tags) -> Result<String, String> {
    let mut text = text.to_owned();
    let mut from = 0;
    for _ in 0..TAGS_MAX {
        let Some((start, end)) = innermost(&text, from) else { return Ok(text) };
        match tags.get(&text[start + 1..end]) {
            Some(value) => {
                text.replace_range(start..=end, value);
                // An outer tag may have become whole: `<mode-<x>>` holds `<x>`.
                from = 0;
                if text.len() > VALUE_BYTES_MAX {
                    return Err(format!("the value grows past {VALUE_BYTES_MAX} bytes"));
                }
            }
            None => from = end + 1,
        }
    }
    Err("tags name one another without end".to_owned())
}

/// The first `<name>` from `from` on that holds no other and no space.
fn innermost(text: &str, from: usize) -> Option<(usize, usize)> {
    let mut start = None;
    for (at, byte) in text.bytes().enumerate().skip(from) {
        match byte {
            b'<' => start = Some(at),
            b' ' | b'\n' => start = None,
            b'>' => match start.take() {
                Some(start) if at > start + 1 => return Some((start, at)),
                _ => {}
            },
            _ => {}
        }
    }
    None
}
