//! Reads what fail2ban's files say about each jail.
//!
//! Every section but `[DEFAULT]` and `[INCLUDES]` is a jail. Its filter is read twice: first as it stands, so that the
//! jail can say `%(known/failregex)s`, then with the jail's options over it. What is wrong with a jail is kept with it
//! and harms no other. Nothing here knows what an option does; [`super::jail`] does.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    call::{self, Call},
    definition::{self, Definition, Kind},
    ini::{RawValue, text_of, value_at},
    interpolate::{self, Vars},
    layers::{Files, Layers, is_there},
    spec::{ActionUse, FilterUse, JailSpec, LogPath, Text, Wrong},
    unknown,
    words::{is_true, truth},
};
use crate::{
    config::diagnostic::{Diagnostic, Findings, Severity},
    filter::{Pattern, Place},
};

/// `%(fail2ban_version)s`, which some actions tell to others: the version whose language is read here.
pub const FAIL2BAN_VERSION: &str = "1.0.2";
/// Jails at most; further sections are not read.
pub const JAILS_MAX: usize = 1_024;
/// Actions of one jail at most.
const ACTIONS_MAX: usize = 32;

/// What is wrong with a misspelt option.
const NOTHING_NAMES_IT: &str = "there is no such option, and no value names it, so it does nothing";

/// A jail's options, other than those that a filter has too.
pub(super) const OPTIONS: [&str; 23] = [
    "enabled",
    "backend",
    "filter",
    "action",
    "maxretry",
    "maxmatches",
    "findtime",
    "bantime",
    "bantime.increment",
    "bantime.factor",
    "bantime.formula",
    "bantime.multipliers",
    "bantime.maxtime",
    "bantime.rndtime",
    "bantime.overalljails",
    "ignorecommand",
    "ignoreself",
    "ignoreip",
    "ignorecache",
    "logtimezone",
    "logencoding",
    "logpath",
    // Newer than 1.0.2: whether a jail may run without a log.
    "skip_if_nologs",
];

/// All jails below a directory.
#[derive(Debug, Default)]
pub(super) struct Jails {
    pub(super) jails: Vec<JailSpec>,
    /// For showing the lines of the jail files.
    pub(super) layers: Layers,
}

/// Reads every jail below `dir`. With `all` just as fail2ban would if each were enabled; without, disabled ones are not
/// looked into, and one whose logs are not there reads the journal if it says which entries of it.
pub(super) fn jails(dir: &Path, all: bool, findings: &mut Findings) -> Jails {
    let mut files = Files::default();
    let mut layers = files.layers(&dir.join("jail"), findings);
    if layers.docs.is_empty() {
        let (message, hint) = if ["jail.conf", "jail.local"].iter().any(|name| is_there(&dir.join(name))) {
            (
                "neither jail.conf nor jail.local can be read; nothing is imported",
                "mend what is said about them",
            )
        } else {
            (
                "there is neither a jail.conf nor a jail.local here; nothing is imported",
                "name the directory that holds them, commonly /etc/fail2ban",
            )
        };
        findings.push(Diagnostic::about_file(Severity::Warning, dir, message.to_owned(), hint));
        return Jails { layers, ..Jails::default() };
    }
    let confpath = dir.display().to_string().trim_end_matches('/').replace('%', "%%");
    for (option, value) in [("fail2ban_version", FAIL2BAN_VERSION), ("fail2ban_confpath", &confpath)] {
        layers.defaults.insert(option.to_owned(), value_at(value, &Place::default()));
    }
    for (option, meant) in unknown::misspelt(&layers, &layers.defaults) {
        let at = layers.defaults.get(option).map(|value| place_of(value)).unwrap_or_default();
        let (key, hint) = (format!("DEFAULT.{option}"), format!("did you mean `{meant}`?"));
        findings.push(layers.diagnostic(&at, &key, NOTHING_NAMES_IT.to_owned(), &hint));
    }
    let names: Vec<(String, Place)> =
        layers.order.iter().filter(|(name, _)| name != "INCLUDES").cloned().collect();
    if names.len() > JAILS_MAX {
        let message = format!("more than {JAILS_MAX} jails; those from here on are not read");
        let (name, at) = &names[JAILS_MAX];
        findings.push(layers.diagnostic(at, name, message, "take out what is not used"));
    }
    let mut jails = Vec::new();
    for (name, at) in names.iter().take(JAILS_MAX) {
        let filters = dir.join(Kind::Filter.folder());
        let mut reading =
            Reading { files: &mut files, dir, filters, layers: &layers, findings, name, wrong: Vec::new() };
        jails.push(reading.jail(at, all));
    }
    Jails { jails, layers }
}

/// Reads the filter `name` in the folder `home` with these options, for a jail that adds nothing.
///
/// # Errors
/// A sentence that says why it cannot be used.
pub(super) fn filter(
    home: &Path,
    name: &str,
    options: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Result<FilterUse, String> {
    let (mut files, layers, at) = (Files::default(), Layers::default(), Place::default());
    let (dir, filters) = (home, home.to_owned());
    let mut reading =
        Reading { files: &mut files, dir, filters, layers: &layers, findings, name: "", wrong: Vec::new() };
    let options = options.iter().map(|(option, value)| (option.clone(), value.clone())).collect();
    let call = Call { name: name.to_owned(), options };
    let none = Vars::new();
    let read = reading.filter_files(call, &at).map(|read| read.with_logtype(false));
    let read = read.and_then(|read| reading.filter(&read, &at, &none, &none, &BTreeMap::new()));
    read.map_err(|Kept| reading.wrong.pop().map(|wrong| wrong.what).unwrap_or_default())
}

struct Reading<'a> {
    files: &'a mut Files,
    dir: &'a Path,
    /// The folder of the filters.
    filters: PathBuf,
    layers: &'a Layers,
    findings: &'a mut Findings,
    name: &'a str,
    wrong: Vec<Wrong>,
}

/// Something is wrong that was kept already.
struct Kept;

impl Reading<'_> {
    fn jail(&mut self, at: &Place, all: bool) -> JailSpec {
        let none = Vars::new();
        let text = |value: Option<Text>, default: &str| {
            value.unwrap_or_else(|| Text { text: default.to_owned(), at: at.clone() })
        };
        let enabled = self.option("enabled", &none);
        if let Some(Text { text, at }) = enabled.as_ref().filter(|value| !value.text.is_empty())
            && let Err(why) = truth(text)
        {
            let what = format!("{text:?} is neither, so the jail is not enabled");
            self.wrong("enabled", at, what, &why);
        }
        let enabled = enabled.is_some_and(|value| is_true(&value.text));
        let mut spec = JailSpec {
            name: self.name.to_owned(),
            at: at.clone(),
            enabled,
            backend: text(None, "auto"),
            journal: false,
            options: BTreeMap::new(),
            logpath: Vec::new(),
            filter: None,
            actions: Vec::new(),
            wrong: Vec::new(),
        };
        if !enabled && !all {
            spec.wrong = std::mem::take(&mut self.wrong);
            return spec;
        }
        let own = self.layers.sections.get(self.name);
        for (option, meant) in own.map_or_else(Vec::new, |own| unknown::misspelt(self.layers, own)) {
            let at = own.and_then(|own| own.get(option)).map(|value| place_of(value)).unwrap_or_default();
            self.wrong(option, &at, NOTHING_NAMES_IT.to_owned(), &format!("did you mean `{meant}`?"));
        }
        spec.backend = text(self.option("backend", &none), "auto");
        let filter = text(self.option("filter", &none), "");
        let first = Vars::from([
            ("enabled".to_owned(), value_at(if enabled || all { "True" } else { "False" }, at)),
            ("backend".to_owned(), value_at(&spec.backend.text, &spec.backend.at)),
            ("filter".to_owned(), value_at(&filter.text, &filter.at)),
        ]);
        let by_backend = spec.backend.text.starts_with("systemd");
        let logs_absent = !all && spec.backend.text == "auto" && self.logs_are_absent();
        let read = self.filter_call(&filter).and_then(|call| {
            let read = self.filter_files(call, &filter.at)?;
            spec.journal = by_backend || (logs_absent && self.names_entries(&read));
            Ok(read.with_logtype(spec.journal))
        });
        let read = read.ok();
        let known = read.as_ref().filter(|_| self.asks_for_known()).map_or_else(Vars::new, |read| {
            let first_look = read.define(&filter.at, &first, &first);
            first_look.known()
        });
        let mut vars = first.clone();
        let mut patterns: BTreeMap<&str, RawValue> = BTreeMap::new();
        for option in OPTIONS {
            if let Some(value) = self.value(option, &known) {
                let value = Text { text: text_of(&value), at: place_of(&value) };
                vars.insert(option.to_owned(), value_at(&as_python_shows(option, &value.text), &value.at));
                spec.options.insert(option, value);
            }
        }
        for option in Kind::Filter.options() {
            if let Some(value) = self.value(option, &known) {
                vars.insert((*option).to_owned(), value.clone());
                patterns.insert(option, value);
            }
        }
        if let Some(read) = read {
            spec.filter = self.filter(&read, &filter.at, &first, &vars, &patterns).ok();
        }
        spec.logpath = spec.options.get("logpath").map(|_| self.logpath(&known)).unwrap_or_default();
        if let Some(value) = spec.options.get("action").cloned() {
            spec.actions = self.actions(&value, &vars);
        }
        spec.wrong = std::mem::take(&mut self.wrong);
        spec
    }

    /// Whether any value may name one of the filter's, `%(known/x)s`; making those is work.
    fn asks_for_known(&self) -> bool {
        let own = self.layers.sections.get(self.name);
        let values = self.layers.defaults.values().chain(own.into_iter().flat_map(|own| own.values()));
        values.flatten().any(|line| line.text.to_lowercase().contains("%(known/"))
    }

    fn wrong(&mut self, option: &str, at: &Place, what: String, hint: &str) -> Kept {
        let (option, at, hint) = (option.to_owned(), at.clone(), hint.to_owned());
        self.wrong.push(Wrong { option, at, what, hint });
        Kept
    }

    /// An option of the section, expanded; what does not expand is kept as wrong.
    fn value(&mut self, option: &str, vars: &Vars) -> Option<RawValue> {
        match interpolate::value(self.layers, self.name, option, vars)? {
            Ok(value) => Some(value),
            Err(why) => {
                let raw = self.layers.get(self.name, option).map_or(&[][..], Vec::as_slice);
                self.wrong(option, &place_of(raw), format!("this value is not used: {why}"), "");
                None
            }
        }
    }

    fn option(&mut self, option: &str, vars: &Vars) -> Option<Text> {
        self.value(option, vars).map(|value| Text { text: text_of(&value), at: place_of(&value) })
    }

    fn filter_call(&mut self, filter: &Text) -> Result<Call, Kept> {
        if filter.text.is_empty() {
            let hint = "add filter = NAME, a file in filter.d";
            return Err(self.wrong("filter", &filter.at, "it names no filter".to_owned(), hint));
        }
        call::parse(&filter.text).map_err(|why| {
            let what = format!("{:?} does not name a filter: {why}", filter.text);
            self.wrong("filter", &filter.at, what, "write NAME or NAME[option=value, other=\"a, b\"]")
        })
    }

    /// Whether its logs are plain files of which none is there. What a pattern stands for, nobody asks.
    fn logs_are_absent(&self) -> bool {
        let Some(Ok(logs)) = interpolate::value(self.layers, self.name, "logpath", &Vars::new()) else {
            return false;
        };
        let mut logs = logs.iter().map(|line| line.text.trim()).filter(|log| !log.is_empty()).peekable();
        logs.peek().is_some()
            && logs.all(|log| {
                let path = log.rsplit_once(' ').map_or(log, |(path, _)| path);
                !path.contains(['*', '?', '[']) && !Path::new(path).exists()
            })
    }

    /// Whether the jail or its filter says which entries of the journal are meant.
    fn names_entries(&self, read: &FilterFiles) -> bool {
        let says = |value: &RawValue| value.iter().any(|line| !line.text.trim().is_empty());
        match interpolate::value(self.layers, self.name, "journalmatch", &Vars::new()) {
            Some(Ok(own)) => says(&own),
            // It adds to the filter's.
            Some(Err(_)) => true,
            None => Definition::own(&read.layers, "journalmatch").is_some_and(says),
        }
    }

    fn filter_files(&mut self, call: Call, at: &Place) -> Result<FilterFiles, Kept> {
        let given = call.options.clone();
        let (layers, path) =
            definition::read(self.files, &self.filters, Kind::Filter, &call.name, self.findings).map_err(
                |why| {
                    let hint = "copy it from the fail2ban package, or name another filter";
                    self.wrong("filter", at, why, hint)
                },
            )?;
        // jail.conf gives every filter a `mode`, whether it has any or not.
        let counts = |option: &str| {
            self.name.is_empty() || option != "mode" && self.layers.own(self.name, "filter").is_some()
        };
        let given_for_nothing = |option: &str| counts(option) && !unknown::is_asked_for(&layers, option);
        for (option, _) in given.iter().filter(|(option, _)| given_for_nothing(option)) {
            let key = if self.name.is_empty() { String::new() } else { format!("{}.filter", self.name) };
            let message = format!("the filter {:?} has no option {option:?}", call.name);
            let hint = format!("its options are those that {} names", path.display());
            self.findings.push(match at.line {
                0 => Diagnostic::about_file(Severity::Warning, &path, message, &hint),
                _ => self.layers.diagnostic(at, &key, message, &hint),
            });
        }
        Ok(FilterFiles { layers, path, call, given })
    }

    fn filter(
        &mut self,
        read: &FilterFiles,
        at: &Place,
        first: &Vars,
        vars: &Vars,
        jail: &BTreeMap<&str, RawValue>,
    ) -> Result<FilterUse, Kept> {
        let definition = read.define(at, first, vars);
        let mut expanded: BTreeMap<&str, RawValue> = BTreeMap::new();
        for option in Kind::Filter.options() {
            match definition.option(option) {
                Some(Ok(value)) => drop(expanded.insert(option, value)),
                Some(Err(why)) => {
                    let what = format!(
                        "the filter {:?} cannot be used: its {option} cannot be expanded: {why}",
                        read.call.name
                    );
                    return Err(self.wrong("filter", at, what, "mend it, or name another filter"));
                }
                None => {}
            }
        }
        let one = |option: &str, jail_first: bool| {
            let (own, over) = (expanded.get(option), jail.get(option));
            let value = if jail_first { over.or(own) } else { own.or(over) };
            value.map(|value| Text { text: text_of(value), at: place_of(value) })
        };
        let lines = |option: &str| -> Vec<Text> {
            let both = expanded.get(option).into_iter().chain(jail.get(option)).flatten();
            let both = both.filter(|line| !line.text.is_empty());
            both.map(|line| Text { text: line.text.clone(), at: line.at.clone() }).collect()
        };
        let pattern = |value: Text| Pattern { text: value.text, at: value.at };
        let patterns = |option: &str| lines(option).into_iter().map(pattern).collect();
        let logtype = definition.tag("logtype").and_then(Result::ok);
        Ok(FilterUse {
            name: read.call.name.clone(),
            path: read.path.clone(),
            given: read.given.clone(),
            logtype: logtype.map(|value| text_of(&value)).unwrap_or_default(),
            failregex: patterns("failregex"),
            ignoreregex: patterns("ignoreregex"),
            prefregex: one("prefregex", false).filter(|value| !value.text.is_empty()).map(pattern),
            datepattern: one("datepattern", true).filter(|value| !value.text.is_empty()).map(pattern),
            maxlines: one("maxlines", false),
            usedns: one("usedns", false),
            journalmatch: lines("journalmatch"),
            layers: Rc::clone(&read.layers),
        })
    }

    fn logpath(&mut self, known: &Vars) -> Vec<LogPath> {
        let lines = self.value("logpath", known).unwrap_or_default();
        let lines = lines.into_iter().filter(|line| !line.text.is_empty());
        lines
            .map(|line| {
                let (path, from) = line.text.rsplit_once(' ').unwrap_or((&line.text, "head"));
                LogPath { path: PathBuf::from(path), from: from.to_owned(), at: line.at }
            })
            .collect()
    }

    fn actions(&mut self, value: &Text, vars: &Vars) -> Vec<ActionUse> {
        let mut actions = Vec::new();
        for text in call::split(&value.text) {
            if actions.len() == ACTIONS_MAX {
                let what = format!("more than {ACTIONS_MAX} actions; those from {text:?} on are not read");
                self.wrong("action", &value.at, what, "write a script that does the rest");
                break;
            }
            match call::parse(text) {
                Ok(call) => actions.extend(self.action(call, &value.at, vars)),
                Err(why) => {
                    let what = format!("{text:?} does not name an action: {why}");
                    let hint = "write NAME or NAME[option=value, other=\"a, b\"]";
                    self.wrong("action", &value.at, what, hint);
                }
            }
        }
        actions
    }

    fn action(&mut self, mut call: Call, at: &Place, vars: &Vars) -> Option<ActionUse> {
        let given = |call: &Call, option: &str| {
            call.options.iter().find(|(name, _)| name == option).map(|(_, value)| value.clone())
        };
        let file = call.name.clone();
        if let Some(class) = file.strip_suffix(".py") {
            let name = given(&call, "actname").unwrap_or_else(|| class.to_owned());
            call.options.retain(|(option, _)| option != "actname");
            return Some(ActionUse {
                name,
                file,
                options: call.options.into_iter().collect(),
                at: at.clone(),
            });
        }
        let name = given(&call, "name").unwrap_or_else(|| {
            call.options.push(("name".to_owned(), self.name.to_owned()));
            self.name.to_owned()
        });
        let actname = given(&call, "actname").unwrap_or_else(|| {
            // Two uses of one action in a jail are told apart by their names.
            let actname = match name.strip_prefix(self.name) {
                Some(rest) => format!("{file}{rest}"),
                None => format!("{file}-{name}"),
            };
            call.options.push(("actname".to_owned(), actname.clone()));
            actname
        });
        let home = self.dir.join(Kind::Action.folder());
        let layers = match definition::read(self.files, &home, Kind::Action, &file, self.findings) {
            Ok((layers, _)) => layers,
            // Its commands are not run, so nobody misses them.
            Err(_) if super::action::drops_packets(&file) => {
                let options = call.options.into_iter().collect();
                return Some(ActionUse { name: actname, file, options, at: at.clone() });
            }
            Err(why) => {
                self.wrong("action", at, why, "copy it from the fail2ban package, or name another action");
                return None;
            }
        };
        let definition = Definition::new(Kind::Action, layers, &call, at, vars.clone(), vars.clone());
        let mut options: BTreeMap<String, String> =
            definition.init().map(|(option, value)| (option.to_owned(), value)).collect();
        for option in Kind::Action.options() {
            match definition.option(option) {
                Some(Ok(value)) => {
                    let value = text_of(&value);
                    let truth = ["actionstart_on_demand", "actionrepair_on_unban", "norestored"];
                    let value = if truth.contains(option) { python_bool(&value).to_owned() } else { value };
                    options.insert((*option).to_owned(), value);
                }
                Some(Err(why)) => {
                    let what =
                        format!("the action {file:?} cannot be used: its {option} cannot be expanded: {why}");
                    self.wrong("action", at, what, "mend it, or name another action");
                    return None;
                }
                None => {}
            }
        }
        Some(ActionUse { name: actname, file, options, at: at.clone() })
    }
}

/// A filter's files and how the jail calls it.
struct FilterFiles {
    layers: Rc<Layers>,
    path: PathBuf,
    call: Call,
    /// The options as written, without what is added.
    given: Vec<(String, String)>,
}

impl FilterFiles {
    /// Lines of the journal have another form than those of files, unless the jail or the filter itself says which.
    fn with_logtype(mut self, journal: bool) -> Self {
        let options = &mut self.call.options;
        let says = options.iter().any(|(option, value)| option == "logtype" && !value.is_empty());
        if !says && !Definition::is_own(&self.layers, "logtype") {
            let logtype = if journal { "journal" } else { "file" };
            options.retain(|(option, _)| option != "logtype");
            options.push(("logtype".to_owned(), logtype.to_owned()));
        }
        self
    }

    fn define(&self, at: &Place, first: &Vars, jail: &Vars) -> Definition {
        Definition::new(Kind::Filter, Rc::clone(&self.layers), &self.call, at, first.clone(), jail.clone())
    }
}

/// Where the first line with text is.
pub(super) fn place_of(value: &[super::ini::ValueLine]) -> Place {
    let line = value.iter().find(|line| !line.text.is_empty() && line.at.line > 0).or_else(|| value.first());
    line.map(|line| line.at.clone()).unwrap_or_default()
}

fn python_bool(text: &str) -> &'static str {
    if is_true(text) { "True" } else { "False" }
}

/// An option as `%(option)s` in a filter or action shows it: booleans and numbers were converted before.
fn as_python_shows(option: &str, text: &str) -> String {
    match option {
        "enabled" | "ignoreself" | "bantime.increment" | "bantime.overalljails" | "skip_if_nologs" => {
            python_bool(text).to_owned()
        }
        _ => text.to_owned(),
    }
}
