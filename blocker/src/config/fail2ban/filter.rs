//! A fail2ban filter file as a [`FilterSpec`].
//!
//! `filter.d/NAME.conf` with its layers, its `[Init]`, and the options given in the jail (`filter = NAME[a=b]`), which
//! win. Every line of `failregex` becomes a pattern with its place. What a pattern means is the `filter` module's
//! business.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::{
    ini::{RawValue, ValueLine},
    interpolate::{self, Tags},
    layers::{self, Layers},
};
use crate::{
    config::diagnostic::Findings,
    filter::{Dialect, Fail2banOptions, FilterSpec, Pattern, Place},
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
    let tags = collect_tags(&layers, given)?;
    let mut reading = Reading { tags, given, path: spec.path.clone(), layers: &layers, findings };
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
    path: PathBuf,
    layers: &'a Layers,
    /// What the jail gives, over what the files say.
    given: &'a Tags,
    tags: Tags,
    findings: &'a mut Findings,
}

impl Reading<'_> {
    fn fill(&mut self, mut spec: FilterSpec) -> Result<FilterSpec, String> {
        spec.prefregex = self.folded("prefregex")?;
        spec.failregex = self.patterns("failregex")?;
        spec.ignoreregex = self.patterns("ignoreregex")?;
        spec.fail2ban = Fail2banOptions {
            datepattern: self.folded("datepattern")?,
            maxlines: self.maxlines()?,
            journalmatch: self.patterns("journalmatch")?.into_iter().map(|line| line.text).collect(),
            addresses_only: self.folded("usedns")?.is_some_and(|word| is_no(&word.text)),
            journal: interpolate::tags("<logtype>", &self.tags).is_ok_and(|logtype| logtype == "journal"),
            ..Fail2banOptions::default()
        };
        Ok(spec)
    }

    /// The lines of an option as one pattern.
    fn folded(&mut self, option: &str) -> Result<Option<Pattern>, String> {
        let lines = self.patterns(option)?.into_iter();
        Ok(lines
            .reduce(|first, next| Pattern { text: format!("{}\n{}", first.text, next.text), at: first.at }))
    }

    fn maxlines(&mut self) -> Result<usize, String> {
        let Some(lines) = self.folded("maxlines")? else { return Ok(1) };
        let max = lines.text.parse::<usize>().ok().filter(|max| *max > 0);
        Ok(max.unwrap_or_else(|| {
            let message =
                format!("{:?} is not used: it is no number of lines; each is matched alone", lines.text);
            self.warn(&lines.at, "maxlines", message, "write a number from 1 on");
            1
        }))
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

    /// An option of the filter: as given in the jail, else as `[Init]` has it, else as `[Definition]`.
    fn lines(&self, option: &str) -> Result<RawValue, String> {
        let section = if self.layers.is_own("Init", option) { "Init" } else { SECTION };
        let found = interpolate::value(self.layers, section, option);
        if let Some(text) = self.given.get(option) {
            let at = found.and_then(Result::ok).and_then(|lines| Some(lines.first()?.at.clone()));
            let at = at.unwrap_or_else(|| Place { path: self.path.clone(), ..Place::default() });
            return Ok(text
                .lines()
                .map(|text| ValueLine { text: text.to_owned(), at: at.clone() })
                .collect());
        }
        match found {
            None => Ok(RawValue::new()),
            Some(Ok(lines)) => Ok(lines),
            Some(Err(why)) => Err(format!("its {option} cannot be expanded: {why}")),
        }
    }

    fn warn(&mut self, at: &Place, key: &str, message: String, hint: &str) {
        let diagnostic = self.layers.diagnostic(at, key, message, hint);
        self.findings.push(diagnostic);
    }
}

/// Whether `usedns` says so; fail2ban takes a word that it does not know for `no`.
pub(super) fn is_no(usedns: &str) -> bool {
    !["yes", "warn", "raw", "true"].iter().any(|word| usedns.eq_ignore_ascii_case(word))
}
