//! A fail2ban filter file as a [`FilterSpec`].
//!
//! `filter.d/NAME.conf` with its layers, its `[Init]`, and the options given in the jail (`filter = NAME[a=b]`), which
//! win. Every line of `failregex` becomes a pattern with its place. Patterns that only make sense to fail2ban's joining
//! of several lines are left out, each with a warning: taken alone they would blame the innocent. What a pattern
//! means is the `filter` module's business.
#![forbid(unsafe_code)]

use std::path::Path;

use super::{
    ini::{RawValue, ValueLine},
    interpolate::{self, Tags},
    layers::{self, Layers},
};
use crate::{
    config::diagnostic::Findings,
    filter::{Dialect, FilterSpec, Pattern, Place},
};

const SECTION: &str = "Definition";

/// Reads the filter `name` below `dir` (which holds `filter.d`), with the options given in the jail.
///
/// # Errors
/// A sentence that says why there is no such filter, to be shown where it is named.
pub(super) fn read(
    dir: &Path,
    name: &str,
    given: &Tags,
    findings: &mut Findings,
) -> Result<(FilterSpec, Layers), String> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if !plain {
        return Err(format!("{name:?} cannot be the name of a filter"));
    }
    let base = dir.join("filter.d").join(name);
    let layers = layers::read(&base, findings);
    if layers.docs.is_empty() {
        return Err(format!("there is no filter file {}.conf", base.display()));
    }
    if !layers.sections.contains_key(SECTION) {
        return Err(format!("the filter {} has no section [{SECTION}]", base.display()));
    }
    let path =
        layers.docs.iter().map(|doc| &doc.path).find(|path| path.starts_with(dir) && stem_is(path, name));
    let spec = FilterSpec {
        name: name.to_owned(),
        path: path.cloned().unwrap_or_else(|| base.with_extension("conf")),
        dialect: Dialect::Fail2ban,
        ..FilterSpec::default()
    };
    let mut reading = Reading { tags: collect_tags(&layers, given)?, layers: &layers, findings };
    let spec = reading.fill(spec)?;
    Ok((spec, layers))
}

fn stem_is(path: &Path, name: &str) -> bool {
    path.file_stem().is_some_and(|stem| stem == name)
}

/// What may stand as `<name>`: options given in the jail, before `[Init]`, before `[Definition]`, before `[DEFAULT]`;
/// and every option of another section as `<section/option>`.
fn collect_tags(layers: &Layers, given: &Tags) -> Result<Tags, String> {
    let mut tags = Tags::new();
    let mut put = |section: &str, option: &str, tag: String| {
        // An option that does not expand is only missed where something asks for it, and then the tag stays.
        if let Some(Ok(lines)) = interpolate::value(layers, section, option) {
            tags.insert(tag, joined(&lines));
        }
    };
    for (section, options) in &layers.sections {
        for option in options.keys() {
            put(section, option, format!("{section}/{option}"));
        }
    }
    for section in [SECTION, "Init"] {
        let own = layers.sections.get(section);
        for option in layers
            .defaults
            .keys()
            .filter(|_| section == SECTION)
            .chain(own.into_iter().flat_map(|s| s.keys()))
        {
            put(section, option, option.clone());
        }
    }
    tags.extend(given.clone());
    Ok(tags)
}

fn joined(lines: &[ValueLine]) -> String {
    lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n").trim().to_owned()
}

struct Reading<'a> {
    layers: &'a Layers,
    tags: Tags,
    findings: &'a mut Findings,
}

impl Reading<'_> {
    fn fill(&mut self, mut spec: FilterSpec) -> Result<FilterSpec, String> {
        let prefregex = self.patterns("prefregex")?;
        spec.prefregex = prefregex.into_iter().reduce(|first, next| Pattern {
            // A pattern that was folded over several lines is one pattern.
            text: format!("{}\n{}", first.text, next.text),
            at: first.at,
        });
        let in_prefix = spec.prefregex.as_ref().is_some_and(|pattern| names_host(&pattern.text));
        for pattern in self.patterns("failregex")? {
            match unusable(&pattern.text, in_prefix) {
                None => spec.failregex.push(pattern),
                Some(why) => {
                    let hint = "the filter's other patterns are in use";
                    self.warn(&pattern.at, "failregex", format!("a pattern is left out: {why}"), hint);
                }
            }
        }
        spec.ignoreregex = self.patterns("ignoreregex")?;
        self.leftovers();
        Ok(spec)
    }

    /// The non-empty lines of an option, expanded.
    fn patterns(&mut self, option: &str) -> Result<Vec<Pattern>, String> {
        let mut patterns = Vec::new();
        for line in self.lines(option)? {
            let text = interpolate::tags(&line.text, &self.tags).map_err(|why| format!("{option}: {why}"))?;
            let texts = text.split('\n').map(str::trim).filter(|text| !text.is_empty());
            patterns.extend(texts.map(|text| Pattern { text: text.to_owned(), at: line.at.clone() }));
        }
        Ok(patterns)
    }

    fn lines(&self, option: &str) -> Result<RawValue, String> {
        match interpolate::value(self.layers, SECTION, option) {
            None => Ok(RawValue::new()),
            Some(Ok(lines)) => Ok(lines),
            Some(Err(why)) => Err(format!("its {option} cannot be expanded: {why}")),
        }
    }

    /// Says what else the file asks for that has no effect here.
    fn leftovers(&mut self) {
        for (option, harmless, message, hint) in [
            (
                "maxlines",
                &["", "1"][..],
                "patterns over several lines are not supported; each line is matched alone",
                "write a pattern that finds the address in one line",
            ),
            (
                "datepattern",
                &["", "{^LN-BEG}"][..],
                "blocker finds the date by itself; this pattern is not used",
                "compare `blocker check` with your log if its dates are unusual",
            ),
        ] {
            let Ok(lines) = self.lines(option) else { continue };
            let Some(at) = lines.first().map(|line| line.at.clone()) else { continue };
            let text = interpolate::tags(&joined(&lines), &self.tags).unwrap_or_default();
            if !harmless.contains(&text.trim()) {
                self.warn(&at, option, message.to_owned(), hint);
            }
        }
    }

    fn warn(&mut self, at: &Place, key: &str, message: String, hint: &str) {
        let diagnostic = self.layers.diagnostic(at, key, message, hint);
        self.findings.push(diagnostic);
    }
}

/// Why a pattern must not be used on one line alone, or `None`. One with `<F-NOFAIL>` may: its match ends the search
/// without a failure.
fn unusable(text: &str, host_in_prefix: bool) -> Option<&'static str> {
    if text.contains("<F-MLFGAINED>") || text.contains("(?P<mlfgained>") {
        Some("it marks a login that succeeded (<F-MLFGAINED>)")
    } else if !host_in_prefix && !names_host(text) {
        Some("it names no address; fail2ban takes the address from an earlier line")
    } else {
        None
    }
}

fn names_host(text: &str) -> bool {
    const TAGS: [&str; 9] =
        ["<HOST>", "<ADDR>", "<IP4>", "<IP6>", "<DNS>", "<CIDR>", "<SUBNET>", "(?P<host>", "<F-ADDR"];
    TAGS.iter().any(|tag| text.contains(tag)) || text.contains("(?P<ip4>") || text.contains("(?P<ip6>")
}
