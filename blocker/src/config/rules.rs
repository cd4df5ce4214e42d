//! Reads from TOML when a jail bans, for how long, whom it asks before and what it has run: `[defaults]`, `[jail.NAME]`
//! and `[action.NAME]`.
#![forbid(unsafe_code)]

use std::{ops::Range, sync::Arc, time::Duration};

use toml::de::DeValue;

use super::{
    diagnostic::suggest,
    jails::Rules,
    reader::{Reader, Table, Value},
    services::service_port,
};
use crate::{
    filter::Place,
    net::{PortRange, Scope},
    policy::{
        ActionSpec, CommandLine, Escalation, Formula, FormulaError, IGNORE_TIMEOUT, IgnoreCache,
        IgnoreCommand, MATCHES_MAX, MULTIPLIERS_MAX, TIMEOUT_MAX,
    },
    time::BanTime,
};

/// Keys of `[defaults]`, each of them also a jail's.
pub(super) const RULE_KEYS: [&str; 12] = [
    "maxretry",
    "findtime",
    "bantime",
    "ban_ports",
    "ignoreip",
    "ipv6_prefix",
    "ignoreself",
    "observe",
    "maxmatches",
    "actions",
    "escalation",
    "ignorecommand",
];
const ESCALATION_KEYS: [&str; 7] =
    ["enabled", "factor", "multipliers", "formula", "maxtime", "rndtime", "overalljails"];
const IGNORE_KEYS: [&str; 4] = ["command", "timeout", "cache_count", "cache_time"];
const ACTION_KEYS: [&str; 8] =
    ["start", "stop", "ban", "unban", "timeout", "environment", "restored", "matches"];

/// Actions at most.
const ACTIONS_MAX: usize = 1_024;
/// Variables of one action at most.
const ENVIRONMENT_MAX: usize = 64;
/// Parts of one command at most.
const PARTS_MAX: usize = 64;
/// Answers of one ignorecommand that may be remembered.
const CACHE_COUNT_MAX: u64 = 100_000;

/// Rules with what they hold in reserve: a jail may enable what `[defaults]` only describes.
#[derive(Clone)]
pub(super) struct TomlRules {
    pub(super) rules: Rules,
    escalation: Escalation,
    ignorecommand: IgnoreCommand,
}

impl TomlRules {
    pub(super) fn new(rules: Rules) -> Self {
        let ignorecommand = IgnoreCommand {
            command: CommandLine::Program(Vec::new()),
            timeout: IGNORE_TIMEOUT,
            cache: Some(IgnoreCache::default()),
        };
        Self { rules, escalation: Escalation::default(), ignorecommand }
    }

    /// Takes what `table` says over what there is.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, table: Table<'_>, actions: &[Arc<ActionSpec>]) {
        let small = |(n, at): (u64, _)| (u32::try_from(n).unwrap_or(u32::MAX), at);
        let rules = &mut self.rules;
        rules.maxretry.replace(reader.number(table, "maxretry", 1..10_001).map(small));
        rules.findtime.replace(reader.find_time(table, "findtime"));
        rules.bantime.replace(reader.ban_time(table, "bantime"));
        rules.scope.replace(scope(reader, table, "ban_ports"));
        rules.ignoreip.replace(reader.prefixes(table, "ignoreip"));
        let length = |(n, at): (u64, _)| (u8::try_from(n).unwrap_or(128), at);
        rules.ipv6_prefix.replace(reader.number(table, "ipv6_prefix", 1..129).map(length));
        rules.ignoreself.replace(reader.boolean(table, "ignoreself"));
        rules.observe.replace(reader.boolean(table, "observe"));
        let lines = reader.number(table, "maxmatches", 0..u64::from(MATCHES_MAX) + 1).map(small);
        rules.maxmatches.replace(lines);
        rules.actions.replace(named_actions(reader, table, actions));
        self.escalation(reader, table);
        self.ignorecommand(reader, table);
    }

    fn escalation(&mut self, reader: &mut Reader<'_>, outer: Table<'_>) {
        let Some((entries, _)) = reader.table(outer, "escalation") else { return };
        let key = outer.key_of("escalation");
        let table = Table { entries, key: &key };
        reader.only(table, &ESCALATION_KEYS);
        let grows = &mut self.escalation;
        if let Some(factor) = factor(reader, table) {
            grows.factor = factor;
        }
        if let Some(multipliers) = reader.numbers(table, "multipliers", 1..u64::from(u32::MAX)) {
            if multipliers.len() > MULTIPLIERS_MAX {
                let at = reader.value(table, "multipliers").map_or(0..0, Value::span);
                let message = format!("more than {MULTIPLIERS_MAX} multipliers");
                reader.error(
                    at,
                    &table.key_of("multipliers"),
                    message,
                    "the last one holds for all further bans",
                );
            }
            grows.multipliers =
                multipliers.into_iter().map(|n| u32::try_from(n).unwrap_or(u32::MAX)).collect();
        }
        if let Some((text, span)) = reader.text(table, "formula") {
            match Formula::parse(text) {
                Ok(formula) => grows.formula = formula,
                Err(error) => not_arithmetic(reader, &table.key_of("formula"), &span, &error),
            }
        }
        match reader.ban_time(table, "maxtime") {
            Some((BanTime::For(most), _)) => grows.maxtime = Some(most),
            Some((BanTime::Permanent, _)) => grows.maxtime = None,
            None => {}
        }
        if let Some((span, _)) = reader.span(table, "rndtime") {
            grows.rndtime = span;
        }
        if let Some((overall, _)) = reader.boolean(table, "overalljails") {
            grows.overalljails = overall;
        }
        let enabled = reader.boolean(table, "enabled");
        let was = &self.rules.escalation;
        let (on, at) = match enabled {
            Some((on, at)) => (on, Some(at)),
            None => (was.value.is_some(), was.at.clone()),
        };
        self.rules.escalation.value = on.then(|| Arc::new(self.escalation.clone()));
        self.rules.escalation.at = at;
    }

    fn ignorecommand(&mut self, reader: &mut Reader<'_>, outer: Table<'_>) {
        let Some((entries, _)) = reader.table(outer, "ignorecommand") else { return };
        let key = outer.key_of("ignorecommand");
        let table = Table { entries, key: &key };
        reader.only(table, &IGNORE_KEYS);
        let asked = &mut self.ignorecommand;
        if let Some((timeout, _)) = timeout(reader, table) {
            asked.timeout = timeout;
        }
        let mut cache = asked.cache.unwrap_or(IgnoreCache { count_max: 0, ..IgnoreCache::default() });
        if let Some((count, _)) = reader.number(table, "cache_count", 0..CACHE_COUNT_MAX + 1) {
            cache.count_max = usize::try_from(count).unwrap_or(usize::MAX);
        }
        if let Some((time, _)) = reader.find_time(table, "cache_time") {
            cache.time_max = time;
        }
        asked.cache = Some(cache);
        let command = command(reader, table, "command");
        let (on, at) = match command {
            Some((Some(command), at)) => {
                asked.command = command;
                (true, Some(at))
            }
            Some((None, at)) => (false, Some(at)),
            None => (self.rules.ignorecommand.value.is_some(), self.rules.ignorecommand.at.clone()),
        };
        self.rules.ignorecommand.value = on.then(|| {
            let cache = asked.cache.filter(|cache| cache.count_max > 0);
            Arc::new(IgnoreCommand { cache, ..asked.clone() })
        });
        self.rules.ignorecommand.at = at;
    }
}

/// `"all"`, or a list of ports; each one that is none is reported at its place.
fn scope(reader: &mut Reader<'_>, table: Table<'_>, name: &str) -> Option<(Scope, Place)> {
    const WANTED: &str = "\"all\", or a list of ports: [\"ssh\", \"8000-8010\", \"53/udp\"]";
    let value = reader.value(table, name)?;
    let (key, at) = (table.key_of(name), reader.doc.place(value.span().start));
    if let DeValue::String(text) = value.get_ref() {
        if text != "all" {
            reader.error(value.span(), &key, format!("{text:?} is not \"all\""), &format!("write {WANTED}"));
        }
        return Some((Scope::ALL, at));
    }
    let errors_before = reader.findings.errors();
    let mut ranges = Vec::new();
    for (text, span) in reader.texts(table, name)? {
        match PortRange::parse(text, &service_port) {
            Ok(range) => ranges.push(range),
            Err(message) => reader.error(span, &key, message, "write a number, or a name from /etc/services"),
        }
    }
    if reader.findings.errors() > errors_before {
        return None;
    }
    match Scope::ports(ranges) {
        Ok(scope) => Some((scope, at)),
        Err(message) => {
            reader.error(value.span(), &key, message, &format!("write {WANTED}"));
            None
        }
    }
}

/// A number, or arithmetic in quotes.
fn factor(reader: &mut Reader<'_>, table: Table<'_>) -> Option<f64> {
    let value = reader.value(table, "factor")?;
    let key = table.key_of("factor");
    let text = match value.get_ref() {
        DeValue::Integer(integer) => integer.as_str().to_owned(),
        DeValue::Float(float) => float.as_str().to_owned(),
        _ => reader.text(table, "factor")?.0.to_owned(),
    };
    match Formula::constant(&text) {
        Ok(factor) if factor > 0.0 => Some(factor),
        Ok(_) => {
            let message = "no ban gets that short".to_owned();
            reader.error(value.span(), &key, message, "write a number above 0");
            None
        }
        Err(error) => {
            not_arithmetic(reader, &key, &value.span(), &error);
            None
        }
    }
}

/// The place is exact in a string without escapes.
fn not_arithmetic(reader: &mut Reader<'_>, key: &str, span: &Range<usize>, error: &FormulaError) {
    let start = (span.start + 1 + error.offset).min(span.end.saturating_sub(1)).max(span.start);
    reader.error(start..start + 1, key, error.what.clone(), &error.hint);
}

fn timeout(reader: &mut Reader<'_>, table: Table<'_>) -> Option<(Duration, Place)> {
    let (timeout, at) = reader.find_time(table, "timeout")?;
    if timeout > TIMEOUT_MAX {
        let span = reader.value(table, "timeout").map_or(0..0, Value::span);
        let message = format!("a command may not run for more than {} s", TIMEOUT_MAX.as_secs());
        reader.error(span, &table.key_of("timeout"), message, "let it start a service of its own");
    }
    Some((timeout, at))
}

/// A list is a program with its arguments, a string is for the shell, an empty one is none.
fn command(reader: &mut Reader<'_>, table: Table<'_>, name: &str) -> Option<(Option<CommandLine>, Place)> {
    let value = reader.value(table, name)?;
    let key = table.key_of(name);
    let at = reader.doc.place(value.span().start);
    if let DeValue::String(text) = value.get_ref() {
        if text.contains('\0') {
            reader.error(value.span(), &key, "a command cannot hold a NUL byte".to_owned(), "take it out");
            return None;
        }
        let command = (!text.trim().is_empty()).then(|| CommandLine::Shell(text.to_string()));
        return Some((command, at));
    }
    if !matches!(value.get_ref(), DeValue::Array(_)) {
        let found = value.get_ref().type_str();
        let hint = "write a list: [\"/path/of/program\", \"argument\"], or a string for the shell";
        reader.error(value.span(), &key, format!("this is a TOML {found}"), hint);
        return None;
    }
    let parts = reader.texts(table, name)?;
    let Some((program, span)) = parts.first() else { return Some((None, at)) };
    reader.absolute(program, span.clone(), &key)?;
    if parts.len() > PARTS_MAX || parts.iter().any(|(part, _)| part.contains('\0')) {
        let message = format!("more than {PARTS_MAX} arguments, or a NUL byte in one");
        reader.error(value.span(), &key, message, "put it into a script");
        return None;
    }
    Some((Some(CommandLine::Program(parts.iter().map(|(part, _)| (*part).to_owned()).collect())), at))
}

/// Every `[action.NAME]`.
pub(super) fn actions(reader: &mut Reader<'_>, root: Table<'_>) -> Vec<Arc<ActionSpec>> {
    let Some((entries, _)) = reader.table(root, "action") else { return Vec::new() };
    let outer = Table { entries, key: "action" };
    let mut actions = Vec::new();
    for name in entries.keys() {
        let key = outer.key_of(name.get_ref());
        if !super::jails::is_jail_name(name.get_ref()) || actions.len() >= ACTIONS_MAX {
            let hint = format!("use letters, digits, `-`, `_`, `.`, `@`, and at most {ACTIONS_MAX} actions");
            reader.error(name.span(), &key, format!("{:?} cannot name an action", name.get_ref()), &hint);
            continue;
        }
        if let Some((entries, _)) = reader.table(outer, name.get_ref()) {
            let table = Table { entries, key: &key };
            actions.push(Arc::new(action(reader, table, name.get_ref(), name.span())));
        }
    }
    actions
}

fn action(reader: &mut Reader<'_>, table: Table<'_>, name: &str, span: Range<usize>) -> ActionSpec {
    reader.only(table, &ACTION_KEYS);
    let mut action = ActionSpec::new(name);
    let mut run = |name| command(reader, table, name).and_then(|(command, _)| command);
    (action.start, action.stop) = (run("start"), run("stop"));
    (action.ban, action.unban) = (run("ban"), run("unban"));
    if let Some((timeout, _)) = timeout(reader, table) {
        action.timeout = timeout;
    }
    action.restored = reader.boolean(table, "restored").is_some_and(|(restored, _)| restored);
    action.matches = reader.boolean(table, "matches").is_some_and(|(matches, _)| matches);
    if let Some((entries, _)) = reader.table(table, "environment") {
        let key = table.key_of("environment");
        let table = Table { entries, key: &key };
        for variable in entries.keys() {
            let name = variable.get_ref().as_ref();
            let Some((value, span)) = reader.text(table, name) else { continue };
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !name.starts_with(|c: char| c.is_ascii_digit());
            if !plain || name.is_empty() || name.starts_with("BLOCKER_") || value.contains('\0') {
                let message = format!("{name:?} cannot be set here");
                reader.error(
                    span,
                    &table.key_of(name),
                    message,
                    "use letters, digits and `_`, and another name than BLOCKER_...",
                );
            } else if action.environment.len() >= ENVIRONMENT_MAX {
                let message = format!("more than {ENVIRONMENT_MAX} variables");
                reader.error(span, &table.key_of(name), message, "set them in a script");
                break;
            } else {
                action.environment.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    if ["start", "stop", "ban", "unban"].iter().all(|run| reader.value(table, run).is_none()) {
        let hint = "add ban = [\"/path/of/program\"]";
        reader.error(span, table.key, "this action runs nothing".to_owned(), hint);
    }
    action
}

fn named_actions(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    actions: &[Arc<ActionSpec>],
) -> Option<(Vec<Arc<ActionSpec>>, Place)> {
    let at = reader.doc.place(reader.value(table, "actions")?.span().start);
    let mut named: Vec<Arc<ActionSpec>> = Vec::new();
    for (name, span) in reader.texts(table, "actions")? {
        match actions.iter().find(|action| &*action.name == name) {
            Some(action) if named.iter().any(|known| known.name == action.name) => {
                let message = format!("{name:?} is named twice");
                reader.error(span, &table.key_of("actions"), message, "take one out");
            }
            Some(action) => named.push(Arc::clone(action)),
            None => {
                let hint = match suggest(name, actions.iter().map(|action| &*action.name)) {
                    hint if hint.is_empty() => format!("describe it in [action.{name}]"),
                    hint => hint,
                };
                reader.error(span, &table.key_of("actions"), format!("there is no action {name:?}"), &hint);
            }
        }
    }
    Some((named, at))
}
