//! `%(option)s` in values, as fail2ban's file reader expands it.
//!
//! An option is looked for among those given from outside (a jail's, for its filter), in the section, then in
//! `[DEFAULT]`; `%(section/x)s`, `%(default/x)s` and `%(known/x)s` say where. What was found is expanded in turn where
//! it was asked for: its own names are looked up in the first section, not in that which it came from. Depth, steps and
//! size are bounded, so a value that names itself ends in an error and not in a hang.
#![forbid(unsafe_code)]

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    ini::{RawValue, ValueLine, text_of},
    layers::Layers,
};

/// How deep values may name one another: Python's own limit is 10.
const DEPTH_MAX: usize = 10;
/// Bytes of one value at most, after expansion.
pub(super) const VALUE_BYTES_MAX: usize = 1 << 20;
/// Options named while one value is expanded at most; empty ones would never meet the limit in bytes.
const NAMED_MAX: usize = 4_096;
/// Lines of one value at most, after expansion.
const LINES_MAX: usize = 16_384;
/// Why a value that names itself is not used.
pub(super) const ENDLESS: &str = "values name one another without end";

/// Options given from outside a file; they stand before its own.
pub(super) type Vars = BTreeMap<String, RawValue>;

/// The value of `section`/`option` with every `%(x)s` expanded; `None` when there is no such option. Lines that an
/// expansion within a line brings in have the place of the line that asked for them.
///
/// # Errors
/// Names what could not be found or did not end.
pub(super) fn value(
    layers: &Layers,
    section: &str,
    option: &str,
    vars: &Vars,
) -> Option<Result<RawValue, String>> {
    let raw = vars.get(option).or_else(|| layers.get(section, option))?;
    let mut expanding = Expanding { layers, section, vars, named: 0, bytes: 0 };
    Some(expanding.lines(raw, 1))
}

struct Expanding<'a> {
    layers: &'a Layers,
    section: &'a str,
    vars: &'a Vars,
    /// Options named so far.
    named: usize,
    /// Bytes made so far.
    bytes: usize,
}

impl<'a> Expanding<'a> {
    fn lines(&mut self, raw: &[ValueLine], depth: usize) -> Result<RawValue, String> {
        if depth > DEPTH_MAX {
            return Err(ENDLESS.to_owned());
        }
        let mut found = RawValue::new();
        for line in raw {
            let whole = line.text.strip_prefix("%(").and_then(|text| text.strip_suffix(")s"));
            match whole.filter(|name| !name.is_empty() && !name.contains(')')).map(|name| self.find(name)) {
                // A line that is nothing but another option is that option, with its places.
                Some(named) => found.extend(self.lines(&named?, depth + 1)?),
                None => {
                    let text = self.text(&line.text, depth)?;
                    let texts = text.split('\n');
                    found.extend(texts.map(|text| ValueLine { text: text.to_owned(), at: line.at.clone() }));
                }
            }
            if found.len() > LINES_MAX {
                return Err(format!("the value grows past {LINES_MAX} lines"));
            }
        }
        Ok(found)
    }

    fn text(&mut self, text: &str, depth: usize) -> Result<String, String> {
        if depth > DEPTH_MAX {
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
                continue;
            }
            let reference = rest.strip_prefix('(').and_then(|inner| {
                let (name, after) = inner.split_once(')')?;
                Some((name, after.strip_prefix('s')?)).filter(|_| !name.is_empty())
            });
            let Some((name, after)) = reference else {
                return Err("a single `%` must be written `%%`, or begin `%(option)s`".to_owned());
            };
            let found = text_of(&self.find(name)?);
            out.push_str(&if found.contains('%') { self.text(&found, depth + 1)? } else { found });
            rest = after;
        }
        out.push_str(rest);
        // Counted as made, not as kept: what is made and thrown away costs time too.
        self.bytes += out.len();
        if self.bytes > VALUE_BYTES_MAX {
            return Err(format!("the value grows past {VALUE_BYTES_MAX} bytes"));
        }
        Ok(out)
    }

    /// The raw option that `%(name)s` means.
    fn find(&mut self, name: &str) -> Result<Cow<'a, RawValue>, String> {
        self.named += 1;
        if self.named > NAMED_MAX {
            return Err(ENDLESS.to_owned());
        }
        let layers = self.layers;
        let option = name.to_lowercase();
        if option == "__name__" {
            let at = layers.order.iter().find(|(known, _)| known == self.section);
            let at = at.map(|(_, at)| at.clone()).unwrap_or_default();
            // A name is text: a percent sign in it names nothing.
            return Ok(Cow::Owned(vec![ValueLine { text: self.section.replace('%', "%%"), at }]));
        }
        let direct = self.vars.get(&option).or_else(|| layers.get(self.section, &option));
        let found = direct.or_else(|| {
            let (home, option) = option.split_once('/')?;
            let (written, _) = name.split_once('/')?;
            match home {
                "default" => layers.defaults.get(option),
                "known" => layers
                    .known
                    .get(self.section)
                    .and_then(|known| known.get(option))
                    .or_else(|| layers.defaults.get(option)),
                _ => {
                    let section = layers.sections.get(written)?;
                    section.get(option).or_else(|| layers.defaults.get(option))
                }
            }
        });
        found.map(Cow::Borrowed).ok_or_else(|| format!("`%({name})s` names an option that is not there"))
    }
}
