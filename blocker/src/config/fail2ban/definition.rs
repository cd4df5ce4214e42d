//! A file of `filter.d` or `action.d`: `[Definition]`, `[Init]`, and what the jail adds to them.
//!
//! An option's value is made in two steps: `%(x)s` by the file reader, which sees the jail's options before the file's
//! own; then `<x>`, which is looked for among the options given in the call (`NAME[x=1]`), in `[Init]`, then in
//! `[Definition]` and `[DEFAULT]`, and as `<section/x>` anywhere. What an option is for is not known here. An option
//! that cannot be expanded spoils only what asks for it.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    call::Call,
    ini::{RawValue, text_of, value_at},
    interpolate::{self, Vars},
    layers::{self, Files, Layers},
    tags,
};
use crate::{config::diagnostic::Findings, filter::Place};

const SECTION: &str = "Definition";
const INIT: &str = "Init";

/// What is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Filter,
    Action,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Action => "action",
        }
    }

    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Filter => "filter.d",
            Self::Action => "action.d",
        }
    }

    /// The options that mean something by themselves.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Filter => &[
                "usedns",
                "prefregex",
                "ignoreregex",
                "failregex",
                "maxlines",
                "datepattern",
                "journalmatch",
            ],
            Self::Action => &[
                "actionstart",
                "actionstart_on_demand",
                "actionstop",
                "actionflush",
                "actionreload",
                "actioncheck",
                "actionrepair",
                "actionrepair_on_unban",
                "actionban",
                "actionprolong",
                "actionreban",
                "actionunban",
                "norestored",
            ],
        }
    }
}

/// Options of one file that do not expand, after which no further one is tried: each may have cost all it may.
const SPOILED_MAX: usize = 16;

/// Tags of an action that only a ban fills in, whatever options of these names say.
const FILLED_IN_LATER: [&str; 5] = ["matches", "ipmatches", "ipjailmatches", "timeout", "bantime"];

/// Reads the files of the filter or action `name` in the folder `home`; also gives the path of the first.
///
/// # Errors
/// A sentence that says why there is none, to be shown where it is named.
pub(super) fn read(
    files: &mut Files,
    home: &Path,
    kind: Kind,
    name: &str,
    findings: &mut Findings,
) -> Result<(Rc<Layers>, PathBuf), String> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if !plain {
        return Err(format!("{name:?} cannot be the name of {} {}", article(kind), kind.noun()));
    }
    let base = home.join(name);
    let layers = files.layers(&base, findings);
    let conf = PathBuf::from(format!("{}.conf", base.display()));
    if layers.docs.is_empty() {
        let what = if layers::is_there(&conf) { "nothing can be read of the" } else { "there is no" };
        return Err(format!("{what} {} file {}", kind.noun(), conf.display()));
    }
    if !layers.sections.contains_key(SECTION) {
        return Err(format!("the {} {} has no section [{SECTION}]", kind.noun(), base.display()));
    }
    let path = layers.docs.iter().map(|doc| &doc.path).find(|path| path.with_extension("conf") == conf);
    let path = path.cloned().unwrap_or(conf);
    Ok((Rc::new(layers), path))
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::Action { "an" } else { "a" }
}

/// The files with what a jail adds.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    kind: Kind,
    layers: Rc<Layers>,
    /// Options given in the call, then those of `[Init]`, also as `known/x`.
    init: BTreeMap<String, Result<RawValue, String>>,
    /// Options that the jail itself sets; the file's own are not used then.
    jail: Vars,
    /// What `%(x)s` sees before the file's own options.
    vars: Vars,
    /// The same for a tag that names no option of `[Definition]`: of the jail's options only a few are seen there, so
    /// that a group called `action` is not taken for one.
    vars_of_tags: Vars,
    /// Option names that tags leave alone.
    ignored: BTreeSet<String>,
    /// Options with a condition, `x?key=value`, by the name without it.
    cases: BTreeMap<String, Vec<String>>,
}

impl Definition {
    /// The definition as called at `at` by a jail with these options, of which tags see the `first` ones.
    pub(super) fn new(
        kind: Kind,
        layers: Rc<Layers>,
        call: &Call,
        at: &Place,
        first: Vars,
        jail: Vars,
    ) -> Self {
        let mut init: BTreeMap<String, Result<RawValue, String>> = BTreeMap::new();
        let (mut vars_of_tags, mut vars) = (first, jail.clone());
        for (option, value) in &call.options {
            let value = value_at(value, at);
            vars.insert(option.to_lowercase(), value.clone());
            vars_of_tags.insert(option.to_lowercase(), value.clone());
            init.insert(option.clone(), Ok(value));
        }
        for option in layers.sections.get(INIT).into_iter().flat_map(|init| init.keys()) {
            let Some(value) = interpolate::value(&layers, INIT, option, &Vars::new()) else { continue };
            if kind == Kind::Filter
                && let Ok(value) = &value
            {
                vars.entry(option.clone()).or_insert_with(|| value.clone());
            }
            init.insert(format!("known/{option}"), value.clone());
            init.entry(option.clone()).or_insert(value);
        }
        let own = layers.sections.get(SECTION).into_iter().flat_map(|own| own.keys());
        let cases: BTreeMap<String, Vec<String>> = own
            .chain(init.keys())
            .filter_map(|option| Some((layers::condition(option)?.0.to_owned(), option.clone())))
            .fold(BTreeMap::new(), |mut cases, (plain, option)| {
                cases.entry(plain).or_insert_with(Vec::new).push(option);
                cases
            });
        let mut ignored: BTreeSet<String> = BTreeSet::new();
        if kind == Kind::Action {
            ignored.extend(cases.keys().cloned());
            ignored.extend(FILLED_IN_LATER.map(str::to_owned));
        }
        Self { kind, layers, init, jail, vars, vars_of_tags, ignored, cases }
    }

    /// Whether the file itself sets the option in its own section.
    pub(super) fn is_own(layers: &Layers, option: &str) -> bool {
        Self::own(layers, option).is_some()
    }

    /// What the file itself sets the option to, as written.
    pub(super) fn own<'a>(layers: &'a Layers, option: &str) -> Option<&'a RawValue> {
        layers.own(SECTION, option)
    }

    /// The value of an option, expanded; `None` when nothing sets it, or when the jail does.
    ///
    /// # Errors
    /// Names what could not be found or did not end.
    pub(super) fn option(&self, option: &str) -> Option<Result<RawValue, String>> {
        let raw = match self.init.get(option) {
            Some(value) => value.clone(),
            None if self.jail.contains_key(option) => return None,
            None => interpolate::value(&self.layers, SECTION, option, &self.vars)?,
        };
        Some(raw.and_then(|raw| tags::replace(option, &raw, &|tag| self.tag(tag))))
    }

    /// The options given in the call and those of `[Init]`, not expanded further.
    pub(super) fn init(&self) -> impl Iterator<Item = (&str, String)> {
        let known = self.init.iter().filter(|(option, _)| !option.starts_with("known/"));
        known.filter_map(|(option, value)| Some((option.as_str(), text_of(value.as_ref().ok()?))))
    }

    /// Every option with its value, for `%(known/x)s` in the jail; what does not expand is not among them.
    pub(super) fn known(&self) -> Vars {
        let own = self.layers.sections.get(SECTION).into_iter().flat_map(|own| own.keys());
        let names = own.map(String::as_str).chain(self.init.keys().map(String::as_str));
        let names: BTreeSet<&str> = names.chain(self.kind.options().iter().copied()).collect();
        let mut known = Vars::new();
        let mut spoiled = 0;
        for option in names.into_iter().filter(|option| !option.starts_with("known/")) {
            match self.option(option) {
                Some(Ok(mut value)) => {
                    for line in &mut value {
                        // What is expanded already has no names in it.
                        line.text = line.text.replace('%', "%%");
                    }
                    known.insert(format!("known/{option}"), value);
                }
                Some(Err(_)) if spoiled == SPOILED_MAX => break,
                Some(Err(_)) => spoiled += 1,
                None => {}
            }
        }
        known
    }

    /// What `<tag>` stands for.
    pub(super) fn tag(&self, tag: &str) -> Option<Result<RawValue, String>> {
        if self.ignored.contains(tag) {
            return None;
        }
        self.in_case(tag).or_else(|| self.init.get(tag).cloned()).or_else(|| self.anywhere(tag))
    }

    /// `x?logtype=journal` for `<x>`, in a filter whose `logtype` is `journal`.
    fn in_case(&self, tag: &str) -> Option<Result<RawValue, String>> {
        if self.kind == Kind::Action {
            return None;
        }
        for option in self.cases.get(tag)? {
            let Some((_, case)) = option.split_once('?') else { continue };
            let Some((key, wanted)) = case.split_once('=') else { continue };
            let given = self.init.get(key).cloned().or_else(|| self.anywhere(key));
            if given.is_some_and(|given| given.is_ok_and(|given| text_of(&given) == wanted)) {
                return self.init.get(option).cloned().or_else(|| self.anywhere(option));
            }
        }
        None
    }

    fn anywhere(&self, tag: &str) -> Option<Result<RawValue, String>> {
        let none = Vars::new();
        if let Some((home, option)) = tag.split_once('/') {
            let option = option.to_lowercase();
            let found = match home.to_lowercase().as_str() {
                "known" => {
                    let hidden = self.layers.known.get(SECTION).and_then(|known| known.get(&option));
                    match hidden {
                        // In its own section, so that what it names in turn is found.
                        Some(hidden) => {
                            let vars = Vars::from([(option.clone(), hidden.clone())]);
                            interpolate::value(&self.layers, SECTION, &option, &vars)
                        }
                        None => interpolate::value(&self.layers, SECTION, &option, &none),
                    }
                }
                "default" => interpolate::value(&self.layers, "DEFAULT", &option, &none),
                _ if self.layers.sections.contains_key(home) => {
                    interpolate::value(&self.layers, home, &option, &none)
                }
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        let option = tag.to_lowercase();
        let own = self.layers.own(SECTION, &option).is_some();
        let vars = if own { &self.vars } else { &self.vars_of_tags };
        interpolate::value(&self.layers, SECTION, &option, vars)
    }
}
