//! `[jail.NAME]`: jails in our own language, each with what it reads, its filters and its rules.
#![forbid(unsafe_code)]

use std::{ops::Range, path::PathBuf, sync::Arc};

use super::{
    diagnostic::suggest,
    filters::{self, FilterStore},
    jails::{self, Draft, JailState, Jails, Origin, Rules},
    reader::{Reader, Table, Value},
    rules::{RULE_KEYS, TomlRules},
    sockets::{self, NAMING_KEYS, SOCKET_KEYS},
};
use crate::{
    filter::{Filter, FilterSpec},
    net::SCOPES_MAX,
    policy::{ActionSpec, ContainerFormat, JournalMatches, SourceSpec},
};

/// Keys of a jail beside [`RULE_KEYS`] and [`SOCKET_KEYS`].
const JAIL_KEYS: [&str; 11] = [
    "enabled",
    "files",
    "format",
    "stdin",
    "journal",
    "journal_namespace",
    "ledger",
    "filters",
    "filter",
    "failregex",
    "ignoreregex",
];

/// Reads every jail, in the order of the file.
pub(super) fn read(
    reader: &mut Reader<'_>,
    root: Table<'_>,
    rules: &TomlRules,
    actions: &[Arc<ActionSpec>],
    filters: &mut FilterStore,
    jails: &mut Jails,
) {
    let Some((entries, _)) = reader.table(root, "jail") else { return };
    // The parser sorts keys; people expect the order of the file.
    let mut names: Vec<_> = entries.keys().collect();
    names.sort_by_key(|name| name.span().start);
    for name in names {
        let key = format!("jail.{}", name.get_ref());
        if !jails::is_jail_name(name.get_ref()) {
            let hint = format!(
                "use letters, digits, `-`, `_`, `.`, `@`; at most {} of them",
                jails::JAIL_NAME_BYTES_MAX
            );
            reader.error(name.span(), &key, format!("{:?} cannot name a jail", name.get_ref()), &hint);
            continue;
        }
        let root = Table { entries, key: "jail" };
        if let Some((entries, _)) = reader.table(root, name.get_ref()) {
            let table = Table { entries, key: &key };
            let mut rules = rules.clone();
            rules.read(reader, table, actions);
            if !jails.has_room_for(&rules.rules.scope.value) {
                let at = reader.value(table, "ban_ports").map_or(name.span(), Value::span);
                let message = format!("jails have {SCOPES_MAX} different lists of ports already");
                reader.error(at, &table.key_of("ban_ports"), message, "give several jails the same list");
            }
            let draft = jail(reader, table, (name.get_ref(), name.span()), rules.rules, filters, jails);
            if !jails.add(draft) {
                let message = format!("more than {} sources in all", jails::SOURCES_MAX);
                reader.error(name.span(), &key, message, "name fewer files, or use a pattern such as *.log");
            }
        }
    }
}

fn jail(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    (name, span): (&str, Range<usize>),
    rules: Rules,
    store: &mut FilterStore,
    jails: &mut Jails,
) -> Draft {
    let errors_before = reader.findings.errors();
    let known: Vec<&str> = JAIL_KEYS.iter().chain(&SOCKET_KEYS).chain(&RULE_KEYS).copied().collect();
    reader.only(table, &known);
    let enabled = reader.boolean(table, "enabled").is_none_or(|(enabled, _)| enabled);
    let mut files = Vec::new();
    let key = table.key_of("files");
    for (text, span) in reader.texts(table, "files").unwrap_or_default() {
        let Some(path) = reader.absolute(text, span.clone(), &key) else { continue };
        match jails::unusable_log(&path) {
            Some(why) => reader.error(span, &key, why.to_owned(), "write for example \"/var/log/app/*.log\""),
            None => files.push(path),
        }
    }
    let format = format(reader, table, &files);
    let mut sockets = sockets::read(reader, table);
    if enabled {
        sockets::agree(reader, table, &mut sockets, jails);
    }
    let stdin = reader.boolean(table, "stdin").is_some_and(|(stdin, _)| stdin);
    let ledger = reader.boolean(table, "ledger").is_some_and(|(ledger, _)| ledger);
    let named = reader.texts(table, "filters").unwrap_or_default();
    let has_inline = ["failregex", "filter"].iter().any(|key| reader.value(table, key).is_some());
    let journal = journal(reader, table);
    let mut naming = ["files", "journal"].iter().chain(&NAMING_KEYS);
    let reads_lines = naming.any(|key| reader.value(table, key).is_some()) || stdin;
    let has_filter = has_inline || !named.is_empty();
    // Bans are no lines: a jail that reads nothing else needs no filter.
    if enabled && (!ledger || reads_lines || has_filter) {
        if !reads_lines {
            let hint =
                "add files = [\"/var/log/...\"] or journal = [\"_SYSTEMD_UNIT=...\"], or enabled = false";
            reader.error(span.clone(), &table.key_of("files"), "this jail reads nothing".to_owned(), hint);
        } else if files.is_empty()
            && sockets.is_empty()
            && journal.is_none()
            && !stdin
            && reader.findings.errors() == errors_before
        {
            let hint = "add a file to the list, or enabled = false";
            reader.error(span.clone(), &table.key_of("files"), "this jail reads nothing".to_owned(), hint);
        }
        if !has_filter {
            let hint = "add filters = [\"...\"], or enabled = false";
            reader.error(span.clone(), &table.key_of("filters"), "this jail has no filter".to_owned(), hint);
        }
    }
    let mut filters = Vec::new();
    if enabled {
        let key = table.key_of("filters");
        for (name, span) in &named {
            filters.extend(store.get(reader, name, span.clone(), &key));
        }
    }
    // Checked also where it is not used, as every other key is.
    if has_inline || reader.value(table, "ignoreregex").is_some() {
        filters.extend(inline_filter(reader, table, name));
    }
    Draft {
        name: name.to_owned(),
        at: reader.doc.place(span.start),
        origin: Origin::Toml,
        state: if enabled { JailState::Enabled } else { JailState::Disabled },
        sources: (files.into_iter().map(|path| logs(path, format)))
            .chain(sockets.into_iter().map(|(spec, ..)| SourceSpec::Socket(spec)))
            .chain(journal)
            .chain(stdin.then_some(SourceSpec::Stdin))
            .chain(ledger.then_some(SourceSpec::Ledger))
            .collect(),
        filter_names: named
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .chain(has_inline.then(|| format!("jail.{name}")))
            .collect(),
        filters,
        rules,
    }
}

/// How the jail's files are written.
#[derive(Clone, Copy)]
enum Format {
    /// The path says it.
    Auto,
    Plain,
    Container(ContainerFormat),
}

fn format(reader: &mut Reader<'_>, table: Table<'_>, files: &[PathBuf]) -> Format {
    let Some((text, span)) = reader.text(table, "format") else { return Format::Auto };
    let key = table.key_of("format");
    if files.is_empty() && reader.value(table, "files").is_none() {
        let hint = "it says how `files` are written: add files = [\"...\"]";
        reader.error(span, &key, "the jail reads no files".to_owned(), hint);
        return Format::Auto;
    }
    match text {
        "auto" => Format::Auto,
        "plain" => Format::Plain,
        "docker" => Format::Container(ContainerFormat::Docker),
        "cri" => Format::Container(ContainerFormat::Cri),
        _ => {
            let hint = suggest(text, ["auto", "plain", "docker", "cri"]);
            reader.error(span, &key, format!("there is no format {text:?}"), &hint);
            Format::Auto
        }
    }
}

fn logs(path: PathBuf, format: Format) -> SourceSpec {
    match format {
        Format::Auto => SourceSpec::log(path),
        Format::Plain => SourceSpec::File(path),
        Format::Container(format) => SourceSpec::Container(path, format),
    }
}

/// The jail's share of the journal.
fn journal(reader: &mut Reader<'_>, table: Table<'_>) -> Option<SourceSpec> {
    let key = table.key_of("journal_namespace");
    let mut namespace = None;
    if let Some((text, span)) = reader.text(table, "journal_namespace") {
        if reader.value(table, "journal").is_none() {
            let message = "the jail reads no journal".to_owned();
            reader.error(span, &key, message, "add journal = [\"_SYSTEMD_UNIT=...\"]");
        } else if jails::is_namespace(text) {
            namespace = Some(text.to_owned());
        } else {
            let message = format!("{text:?} cannot name a journal namespace");
            reader.error(span, &key, message, "write it as the unit's LogNamespace= has it");
        }
    }
    let texts = reader.texts(table, "journal")?;
    let key = table.key_of("journal");
    for (text, span) in &texts {
        if let Err(why) = JournalMatches::parse(&[text]) {
            reader.error(span.clone(), &key, why, "for example \"_SYSTEMD_UNIT=ssh.service _UID=0\"");
            return None;
        }
    }
    let (first, rest) = (texts.first()?, &texts);
    match JournalMatches::parse(&rest.iter().map(|(text, _)| *text).collect::<Vec<_>>()) {
        Ok(matches) => Some(SourceSpec::Journal { matches, namespace }),
        Err(why) => {
            reader.error(first.1.clone(), &key, why, "match by the unit alone");
            None
        }
    }
}

/// The filter written in the jail itself: its patterns alone, or a whole filter in `[jail.NAME.filter]`.
fn inline_filter(reader: &mut Reader<'_>, table: Table<'_>, name: &str) -> Option<Arc<Filter>> {
    let mut spec =
        FilterSpec { name: format!("jail.{name}"), path: reader.doc.path.clone(), ..FilterSpec::default() };
    let (failregex, ignoreregex) = (reader.value(table, "failregex"), reader.value(table, "ignoreregex"));
    let mut key = table.key_of("failregex");
    let named =
        reader.value(table, "filter").filter(|value| !matches!(value.get_ref(), toml::de::DeValue::Table(_)));
    if let Some(named) = named {
        let message = format!("this is a TOML {}", named.get_ref().type_str());
        let key = table.key_of("filter");
        let hint = format!(
            "name filters with `filters = [...]`; the table [{key}] is for a filter of the jail's own"
        );
        reader.error(named.span(), &key, message, &hint);
    } else if let Some((entries, _)) = reader.table(table, "filter") {
        for (name, value) in [("failregex", failregex), ("ignoreregex", ignoreregex)] {
            if let Some(value) = value {
                let message = "this jail has a filter of its own beside it".to_owned();
                let hint = format!("put it into [{}]", table.key_of("filter"));
                reader.error(value.span(), &table.key_of(name), message, &hint);
            }
        }
        let before = reader.findings.errors();
        let whole = table.key_of("filter");
        key = format!("{whole}.failregex");
        filters::read_table(reader, Table { entries, key: &whole }, &mut spec);
        if reader.findings.errors() > before {
            return None;
        }
    } else {
        spec.failregex = reader.patterns(table, "failregex");
        spec.ignoreregex = reader.patterns(table, "ignoreregex");
    }
    if spec.failregex.is_empty() {
        if let Some(value) = ignoreregex
            && failregex.is_none()
        {
            let message = "`ignoreregex` belongs to a `failregex` in the same jail".to_owned();
            let hint = "put it into the filter's own file";
            reader.error(value.span(), &table.key_of("ignoreregex"), message, hint);
        }
        return None;
    }
    match Filter::compile(spec) {
        Ok(filter) => {
            reader.findings.extend(filters::narrowed(filter.spec(), &key, Some(reader.doc)));
            Some(Arc::new(filter))
        }
        Err(error) => {
            let severity = super::Severity::Error;
            reader.findings.push(filters::refused_filter(&error, &key, Some(reader.doc), severity));
            None
        }
    }
}
