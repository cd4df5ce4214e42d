//! fail2ban's jails as blocker's TOML, for those who want to leave its files behind.
//!
//! What is printed loads to the same policy as the files themselves; the ports that fail2ban's bans are on are a comment,
//! since ours are on all. Each thing that could not be carried over is a comment at its place, with file, line and reason. Filters stay
//! in fail2ban's language, expanded.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt::Write as _, path::Path, sync::Arc, time::Duration};

use super::{
    action::{self, Translated},
    jail::{BanPorts, Importing, Told},
    read, server,
    spec::JailSpec,
};
use crate::{
    config::{
        diagnostic::{Diagnostic, Findings, place_text, printable},
        jails::{Draft, JailState, Jails, Rules},
    },
    filter::{Filter, FilterSpec},
    policy::{ActionSpec, CommandLine, Escalation, IgnoreCommand, SourceSpec},
    time::BanTime,
};

/// Where filters go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterPlace {
    /// Into the jails.
    Inline,
    /// Into files of their own, in the directory `filters` beside the main file.
    Files,
}

/// The TOML of a fail2ban configuration.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// The main file.
    pub main: String,
    /// Filter files by name, without `.toml`.
    pub filters: BTreeMap<String, String>,
    /// Jails in force, and enabled ones that are not.
    pub enabled: usize,
    /// Enabled jails that cannot run.
    pub refused: usize,
}

/// Translates every jail below `dir`.
pub fn export(dir: &Path, place: FilterPlace) -> Exported {
    let mut findings = Findings::default();
    let read = read::jails(dir, false, &mut findings);
    let (mut jails, mut allow) = (Jails::default(), Vec::new());
    let mut told = Told::default();
    let mut compiled = Vec::new();
    let mut writing = Writing { place, exported: Exported::default(), names: BTreeMap::new() };
    let (mut texts, mut actions) = (String::new(), BTreeMap::new());
    let (mut off, mut off_notes) = (Vec::new(), Vec::new());
    for spec in &read.jails {
        let mut own = Findings::default();
        let importing =
            Importing { read: &read, ban_ports: BanPorts::All, told: &mut told, compiled: &mut compiled };
        let draft = importing.jail(spec, &mut own, &jails, &mut allow);
        let notes = own.finish().unwrap_or_else(|errors| errors.0);
        match &draft.state {
            JailState::Disabled => {
                off.push(spec.name.clone());
                off_notes.extend(notes);
            }
            JailState::Refused(why) => {
                writing.exported.refused += 1;
                let _ = write!(texts, "\n# [jail.{}] is not in force: {}\n", shown(&spec.name), shown(why));
                notes.iter().for_each(|note| comment(&mut texts, note));
            }
            JailState::Enabled => {
                writing.exported.enabled += 1;
                texts.push_str(&writing.jail(spec, &draft, notes));
                for action in &draft.rules.actions.value {
                    actions.insert(action.name.to_string(), Arc::clone(action));
                }
            }
        }
        if !jails.add(draft) {
            texts.push_str("# More sources than blocker reads: the jail above is one too many.\n");
        }
    }
    let mut main = format!(
        "# fail2ban's configuration in {}, as blocker reads it.\n",
        shown(&dir.display().to_string())
    );
    main.push_str(
        "# Not carried over: fail2ban.conf. Its socket speaks Python's pickle, which runs code, and is not served; `blocker`\n\
         # has its own. Its database of bans is read by `[import] fail2ban = ..`, once.\n",
    );
    let memory = server::memory(dir, &mut findings);
    findings.finish().unwrap_or_else(|errors| errors.0).iter().for_each(|note| comment(&mut main, note));
    if let Some(remember) = memory.remember {
        let _ = write!(main, "\n# As fail2ban.conf has it.\ndbpurgeage = {}\n", span(remember));
    }
    allow.sort_unstable();
    allow.dedup();
    if !allow.is_empty() {
        main.push_str("\n# `ignoreip` of [DEFAULT]: never dropped, whoever asks.\n");
        let words: Vec<String> = allow.iter().map(|prefix| quoted(&prefix.to_string())).collect();
        let _ = writeln!(main, "allowlist = [{}]", words.join(", "));
    }
    if place == FilterPlace::Files {
        main.push_str("filter_dirs = [\"filters\"]\n");
    }
    for action in actions.values() {
        action_table(&mut main, action);
    }
    main.push_str(&texts);
    if !off.is_empty() {
        let _ = write!(main, "\n# Not enabled there:");
        for name in off {
            let width = main.len() - main.rfind('\n').map_or(0, |at| at + 1);
            let name = shown(&name);
            let _ =
                if width + name.len() > 110 { write!(main, "\n#   {name}") } else { write!(main, " {name}") };
        }
        main.push('\n');
        off_notes.iter().for_each(|note| comment(&mut main, note));
    }
    writing.exported.main = main;
    writing.exported
}

struct Writing {
    place: FilterPlace,
    exported: Exported,
    /// Filters with a file, by what they say.
    names: BTreeMap<String, String>,
}

impl Writing {
    fn jail(&mut self, spec: &JailSpec, draft: &Draft, mut notes: Vec<Diagnostic>) -> String {
        let mut body = String::new();
        let header = format!("jail.{}", key(&spec.name));
        let files = draft.sources.iter().filter_map(|source| match source {
            SourceSpec::File(path) | SourceSpec::Container(path, _) => {
                Some(quoted(&path.display().to_string()))
            }
            _ => None,
        });
        let files: Vec<String> = files.collect();
        said(&mut body, &mut notes, &["logpath", "backend"]);
        if draft.sources.contains(&SourceSpec::Ledger) {
            body.push_str(
                "# It reads fail2ban's own log for bans; here bans are in the ledger.\nledger = true\n",
            );
        }
        if !files.is_empty() {
            list(&mut body, "files", &files);
        }
        for source in &draft.sources {
            if let SourceSpec::Journal { matches, namespace } = source {
                let groups: Vec<String> =
                    matches.groups().iter().map(|group| quoted(&group.to_string())).collect();
                list(&mut body, "journal", &groups);
                if let Some(namespace) = namespace {
                    let _ = writeln!(body, "journal_namespace = {}", quoted(namespace));
                }
            }
        }
        rules(&mut body, &draft.rules, &mut notes);
        said(&mut body, &mut notes, &["action", "port"]);
        self.actions(&mut body, spec, &draft.rules);
        said(
            &mut body,
            &mut notes,
            &["filter", "usedns", "failregex", "ignoreregex", "prefregex", "maxlines"],
        );
        let mut tables = String::new();
        if let Some(filter) = draft.filters.first() {
            match self.place {
                FilterPlace::Inline => {
                    let _ = writeln!(tables, "\n[{header}.filter]");
                    filter_keys(&mut tables, filter.spec());
                }
                FilterPlace::Files => {
                    let name = self.filter_file(filter, &spec.name);
                    list(&mut body, "filters", &[quoted(&name)]);
                }
            }
        }
        said(&mut tables, &mut notes, &["bantime."]);
        if let Some(escalation) = &draft.rules.escalation.value {
            let _ = writeln!(tables, "\n[{header}.escalation]");
            escalation_keys(&mut tables, escalation);
        }
        said(&mut tables, &mut notes, &["ignorecommand", "ignorecache"]);
        if let Some(command) = &draft.rules.ignorecommand.value {
            let _ = writeln!(tables, "\n[{header}.ignorecommand]");
            ignore_keys(&mut tables, command);
        }
        let mut text = format!("\n# {}\n[{header}]\n", shown(&place_text(&spec.at)));
        notes.iter().for_each(|note| comment(&mut text, note));
        text + &body + &tables
    }

    fn actions(&self, body: &mut String, spec: &JailSpec, rules: &Rules) {
        for used in &spec.actions {
            if let Translated::Dropping(_) = action::translate(used, &spec.name) {
                let _ = writeln!(body, "# {}: bans are blocker's own, on all ports.", shown(&used.file));
            }
        }
        if !rules.ports.is_all() {
            let ports: Vec<String> =
                rules.ports.ranges().iter().map(|range| quoted(&range.to_string())).collect();
            let _ = writeln!(body, "# Those of fail2ban are on these:\n# ban_ports = [{}]", ports.join(", "));
        }
        let names: Vec<String> = rules.actions.value.iter().map(|action| quoted(&action.name)).collect();
        if !names.is_empty() {
            list(body, "actions", &names);
        }
    }

    /// The name of the file with this filter, which is written if there is none yet.
    fn filter_file(&mut self, filter: &Arc<Filter>, jail: &str) -> String {
        let mut text = String::new();
        filter_keys(&mut text, filter.spec());
        if let Some(name) = self.names.get(&text) {
            return name.clone();
        }
        let plain = filter.name.to_string();
        let name = if self.exported.filters.contains_key(&plain) { format!("{plain}.{jail}") } else { plain };
        let path = shown(&filter.spec().path.display().to_string());
        self.exported
            .filters
            .insert(name.clone(), format!("# From {path}, as the jail {} uses it.\n{text}", shown(jail)));
        self.names.insert(text, name.clone());
        name
    }
}

fn rules(body: &mut String, rules: &Rules, notes: &mut Vec<Diagnostic>) {
    let plain = Rules::with_bantime(Duration::from_secs(3_600));
    said(body, notes, &["maxretry"]);
    let _ = writeln!(body, "maxretry = {}", rules.maxretry.value);
    said(body, notes, &["findtime"]);
    let _ = writeln!(body, "findtime = {}", span(rules.findtime.value));
    said(body, notes, &["bantime"]);
    let _ = writeln!(body, "bantime = {}", ban_time(rules.bantime.value));
    said(body, notes, &["ignoreip"]);
    if !rules.ignoreip.value.is_empty() {
        let words: Vec<String> =
            rules.ignoreip.value.iter().map(|prefix| quoted(&prefix.to_string())).collect();
        list(body, "ignoreip", &words);
    }
    said(body, notes, &["ignoreself"]);
    if rules.ignoreself.value != plain.ignoreself.value {
        let _ = writeln!(body, "ignoreself = {}", rules.ignoreself.value);
    }
    said(body, notes, &["maxmatches"]);
    if rules.maxmatches.value != plain.maxmatches.value {
        let _ = writeln!(body, "maxmatches = {}", rules.maxmatches.value);
    }
}

fn escalation_keys(text: &mut String, escalation: &Escalation) {
    text.push_str("enabled = true\n");
    let plain = Escalation::default();
    if escalation.factor != plain.factor {
        let _ = writeln!(text, "factor = {:?}", escalation.factor);
    }
    if escalation.formula != plain.formula {
        let _ = writeln!(text, "formula = {}", quoted(&escalation.formula.to_string()));
    }
    if !escalation.multipliers.is_empty() {
        let numbers: Vec<String> = escalation.multipliers.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "multipliers = [{}]", numbers.join(", "));
    }
    if let Some(most) = escalation.maxtime {
        let _ = writeln!(text, "maxtime = {}", span(most));
    }
    if !escalation.rndtime.is_zero() {
        let _ = writeln!(text, "rndtime = {}", span(escalation.rndtime));
    }
    if escalation.overalljails {
        text.push_str("overalljails = true\n");
    }
}

fn ignore_keys(text: &mut String, asked: &IgnoreCommand) {
    let _ = writeln!(text, "command = {}", command(&asked.command));
    let _ = writeln!(text, "timeout = {}", span(asked.timeout));
    match asked.cache {
        None => text.push_str("cache_count = 0\n"),
        Some(cache) => {
            let _ =
                writeln!(text, "cache_count = {}\ncache_time = {}", cache.count_max, span(cache.time_max));
        }
    }
}

fn action_table(text: &mut String, action: &ActionSpec) {
    let _ = writeln!(text, "\n[action.{}]", key(&action.name));
    for (name, run) in
        [("start", &action.start), ("stop", &action.stop), ("ban", &action.ban), ("unban", &action.unban)]
    {
        if let Some(run) = run {
            let _ = writeln!(text, "{name} = {}", command(run));
        }
    }
    let _ = writeln!(text, "timeout = {}", span(action.timeout));
    for (name, truth) in [("restored", action.restored), ("matches", action.matches)] {
        if truth {
            let _ = writeln!(text, "{name} = true");
        }
    }
}

fn filter_keys(text: &mut String, spec: &FilterSpec) {
    text.push_str("dialect = \"fail2ban\"\n");
    if let Some(prefregex) = &spec.prefregex {
        let _ = writeln!(text, "prefregex = {}", quoted(&prefregex.text));
    }
    for (name, patterns) in [("failregex", &spec.failregex), ("ignoreregex", &spec.ignoreregex)] {
        if !patterns.is_empty() {
            let patterns: Vec<String> = patterns.iter().map(|pattern| quoted(&pattern.text)).collect();
            list(text, name, &patterns);
        }
    }
    let options = &spec.fail2ban;
    for (name, pattern) in [
        ("datepattern", &options.datepattern),
        ("logtimezone", &options.logtimezone),
        ("logencoding", &options.logencoding),
    ] {
        if let Some(pattern) = pattern {
            let _ = writeln!(text, "{name} = {}", quoted(&pattern.text));
        }
    }
    if options.maxlines > 1 {
        let _ = writeln!(text, "maxlines = {}", options.maxlines);
    }
    if !spec.journalmatch.is_empty() {
        let lines: Vec<String> = spec.journalmatch.iter().map(|line| quoted(line)).collect();
        list(text, "journalmatch", &lines);
    }
    for (name, truth) in [("addresses_only", options.addresses_only), ("journal", options.journal)] {
        if truth {
            let _ = writeln!(text, "{name} = true");
        }
    }
}

fn command(run: &CommandLine) -> String {
    match run {
        CommandLine::Shell(text) => quoted(text),
        CommandLine::Program(parts) => {
            let parts: Vec<String> = parts.iter().map(|part| quoted(part)).collect();
            format!("[{}]", parts.join(", "))
        }
    }
}

/// What was to be said about these options of the jail, as comments; an option that ends in a dot stands for all that
/// begin so.
fn said(text: &mut String, notes: &mut Vec<Diagnostic>, options: &[&str]) {
    let about = |note: &Diagnostic| {
        let option = note.key.split_once('.').map_or(note.key.as_str(), |(_, option)| option);
        options.iter().any(|known| option == *known || known.ends_with('.') && option.starts_with(known))
    };
    let (now, later) = std::mem::take(notes).into_iter().partition(about);
    *notes = later;
    let now: Vec<Diagnostic> = now;
    now.iter().for_each(|note| comment(text, note));
}

fn comment(text: &mut String, note: &Diagnostic) {
    let hint = if note.hint.is_empty() { String::new() } else { format!("; {}", note.hint) };
    let _ = writeln!(text, "# {}: {}{}", shown(&place_text(&note.place)), shown(&note.message), shown(&hint));
}

/// A list, over several lines if it is long.
fn list(text: &mut String, name: &str, items: &[String]) {
    let one = format!("{name} = [{}]", items.join(", "));
    if one.len() <= 110 {
        text.push_str(&one);
    } else {
        let _ = write!(text, "{name} = [");
        items.iter().for_each(|item| text.push_str(&format!("\n  {item},")));
        text.push_str("\n]");
    }
    text.push('\n');
}

fn ban_time(bantime: BanTime) -> String {
    match bantime {
        BanTime::For(length) => span(length),
        BanTime::Permanent => "\"permanent\"".to_owned(),
    }
}

/// Exactly, in the largest unit that it is a whole number of.
fn span(length: Duration) -> String {
    let secs = length.as_secs();
    let unit = [(86_400, "d"), (3_600, "h"), (60, "m")]
        .into_iter()
        .find(|(size, _)| secs > 0 && secs.is_multiple_of(*size));
    unit.map_or_else(|| secs.to_string(), |(size, name)| format!("\"{}{name}\"", secs / size))
}

/// A TOML key.
fn key(name: &str) -> String {
    let bare =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if bare { name.to_owned() } else { escaped(name) }
}

/// A TOML string: literal where that is possible, so that patterns read as they are.
fn quoted(text: &str) -> String {
    if !text.contains('\'') && !text.chars().any(char::is_control) {
        return format!("'{text}'");
    }
    let lines = text.contains('\n') && !text.contains("'''") && !text.ends_with('\'');
    if lines && !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return format!("'''\n{text}'''");
    }
    escaped(text)
}

/// A TOML string on one line, with escapes.
fn escaped(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// For a comment: on one line, with nothing in it that a terminal would obey.
fn shown(text: &str) -> String {
    printable(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back_from_toml(text in "[a'\"\\\\\n\t\r\u{1}\u{7f}\u{85}é ]{0,30}|.{0,20}") {
            let table: toml::Table = format!("{} = {}", key(&text), quoted(&text)).parse().unwrap();
            prop_assert_eq!(table.get(&text).and_then(toml::Value::as_str), Some(text.as_str()));
        }
    }

    #[test]
    fn spans_are_written_exactly() {
        for (secs, text) in [(0, "0"), (59, "59"), (600, "\"10m\""), (90_061, "90061"), (604_800, "\"7d\"")] {
            assert_eq!(span(Duration::from_secs(secs)), text);
        }
    }
}
