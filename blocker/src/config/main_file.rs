//! Reads `blocker.toml` itself.
//!
//! Paths of what is read together with it (`filter_dirs`, `[import]`) may be relative to its own directory; paths of
//! what exists at run time (logs, sockets, state) must be absolute. In our own language a jail runs unless it says
//! `enabled = false`, and a ban lasts an hour; everything else has fail2ban's defaults.
#![forbid(unsafe_code)]

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use toml::de::DeTable;

use super::{
    AttachMode, Backend, Config, EnforceConfig, Interfaces, TableKind,
    diagnostic::{Document, Findings, suggest},
    fail2ban::{self, BanPorts},
    filters::{self, FilterStore},
    jails::{self, Draft, JailState, Jails, Origin, Rules},
    reader::{Reader, Table, Value},
    rules::{self, RULE_KEYS, TomlRules},
    sockets::{self, NAMING_KEYS, SOCKET_KEYS},
    syntax_error,
};
use crate::{
    filter::{Filter, FilterSpec, LINE_BYTES_MAX},
    glob,
    net::SCOPES_MAX,
    policy::{ActionSpec, ContainerFormat, JournalMatches, Limits, Policy, SourceSpec},
    time::span_text,
};

/// How long a ban lasts where nothing says otherwise.
pub(super) const BANTIME: Duration = Duration::from_secs(3_600);

/// Most bans at once that may be configured: the bucket table then takes about 300 MB, hash maps 2.4 GB, and the agent up to
/// 200 bytes for each ban there is.
const BANS_CEILING: u64 = 8_388_608;

/// Most failing addresses that may be tracked: about 1.5 GB.
const TRACKED_CEILING: u64 = 16_777_216;

/// Most earlier bans that may be remembered; all of them are read at each start.
const OFFENDERS_CEILING: u64 = 4_194_304;

/// Most connections that a filter may remember of one source: an attacker can make each take some 100 KB.
const CONNECTIONS_CEILING: u64 = 10_000;

/// Most connections to sockets: each takes a descriptor, and up to 64 KiB.
const SOCKET_CONNECTIONS_CEILING: u64 = 65_536;

/// Fewest and most bytes of one socket's lines that may wait: room for one line of the greatest length, and a second
/// of a fast sender.
const SOCKET_WAITING_BYTES: Range<u64> = LINE_BYTES_MAX as u64..(64 << 20) + 1;

/// The shortest and longest that a connection may be silent.
const SOCKET_IDLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30 * 86_400));

/// Fewest and most bytes of lines that may be joined: room for one line of the greatest length, and what a pattern can
/// be run over once a line.
const JOINED_BYTES: Range<u64> = LINE_BYTES_MAX as u64..(4 << 20) + 1;

const KEYS: &[&str] = &[
    "allowlist",
    "state_dir",
    "socket",
    "dbpurgeage",
    "enforce",
    "limits",
    "defaults",
    "import",
    "filter_dirs",
    "action",
    "jail",
];
const ENFORCE_KEYS: &[&str] = &[
    "backend",
    "close_connections",
    "counters",
    "exact",
    "exclude",
    "interfaces",
    "max_bans",
    "modes",
    "pin_dir",
    "table",
];
/// The ways to attach, the best first.
const ATTACH_MODES: [(&str, AttachMode); 4] = [
    ("native", AttachMode::Native),
    ("dispatcher", AttachMode::Dispatcher),
    ("tcx", AttachMode::Tcx),
    ("generic", AttachMode::Generic),
];
/// Bytes of a pattern of interfaces' names: classes of characters make it longer than any name.
const PATTERN_BYTES_MAX: usize = 64;
const LIMITS_KEYS: &[&str] = &[
    "max_tracked",
    "max_offenders",
    "max_connections",
    "max_joined_bytes",
    "max_socket_connections",
    "max_socket_waiting",
    "socket_idle",
];
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

/// Reads the whole file; the result is only meant for use when no error was found.
pub(super) fn read(doc: &Document, findings: &mut Findings) -> Config {
    let mut config = Config {
        path: doc.path.clone(),
        policy: Policy::default(),
        enforce: EnforceConfig {
            backend: Backend::Auto,
            interfaces: Interfaces::Auto,
            exclude: Vec::new(),
            modes: ATTACH_MODES.map(|(_, mode)| mode).to_vec(),
            pin_dir: PathBuf::from("/sys/fs/bpf/blocker"),
            counters: None,
            close_connections: true,
            table: TableKind::Buckets,
            exact: false,
        },
        socket: PathBuf::from("/run/blocker/blocker.sock"),
        state_dir: PathBuf::from("/var/lib/blocker"),
        former_bans: None,
        warnings: Vec::new(),
        jails: Vec::new(),
    };
    let (root, syntax) = DeTable::parse_recoverable(&doc.text);
    syntax_error(doc, findings, &syntax);
    if !syntax.is_empty() {
        // What a broken file seems to say would only add errors that are none.
        return config;
    }
    let mut reader = Reader { doc, findings };
    let table = Table { entries: root.get_ref(), key: "" };
    reader.only(table, KEYS);
    if let Some((allow, _)) = reader.prefixes(table, "allowlist") {
        config.policy.allow = allow;
    }
    path_into(&mut reader, table, "state_dir", &mut config.state_dir);
    path_into(&mut reader, table, "socket", &mut config.socket);
    enforce(&mut reader, table, &mut config);
    limits(&mut reader, table, &mut config.policy.limits);
    if let Some((remember, _)) = reader.find_time(table, "dbpurgeage") {
        config.policy.remember = remember;
    }
    let actions = rules::actions(&mut reader, table);
    let rules = defaults(&mut reader, table, &actions);
    let mut filters = FilterStore::new(filter_dirs(&mut reader, table));
    let mut jails = Jails::default();
    own_jails(&mut reader, table, &rules, &actions, &mut filters, &mut jails);
    import(&mut reader, table, &mut config, &mut jails);
    config.policy.jails = jails.jails;
    config.policy.sources = jails.sources;
    config.policy.allow.sort_unstable();
    config.policy.allow.dedup();
    config.jails = jails.reports;
    config
}

fn path_into(reader: &mut Reader<'_>, table: Table<'_>, name: &str, path: &mut PathBuf) {
    if let Some((text, span)) = reader.text(table, name)
        && let Some(absolute) = reader.absolute(text, span, &table.key_of(name))
    {
        *path = absolute;
    }
}

fn enforce(reader: &mut Reader<'_>, root: Table<'_>, config: &mut Config) {
    let Some((entries, _)) = reader.table(root, "enforce") else { return };
    let table = Table { entries, key: "enforce" };
    reader.only(table, ENFORCE_KEYS);
    if let Some((text, span)) = reader.text(table, "backend") {
        match text {
            "auto" => config.enforce.backend = Backend::Auto,
            "xdp" => config.enforce.backend = Backend::Xdp,
            "nftables" => config.enforce.backend = Backend::Nftables,
            _ => {
                let hint = suggest(text, ["auto", "xdp", "nftables"]);
                reader.error(span, "enforce.backend", format!("there is no backend {text:?}"), &hint);
            }
        }
    }
    if let Some(value) = reader.value(table, "interfaces") {
        if value.get_ref().is_str() {
            let text = value.get_ref().as_str().unwrap_or_default();
            if text != "auto" {
                let hint = format!("write \"auto\", or a list of names: [{text:?}]");
                let message = format!("{text:?} is not \"auto\"");
                reader.error(value.span(), "enforce.interfaces", message, &hint);
            }
        } else if let Some(names) = reader.texts(table, "interfaces") {
            let of = |(name, span)| interface(reader, "enforce.interfaces", name, span);
            let names: Vec<String> = names.into_iter().filter_map(of).collect();
            if names.is_empty() {
                let hint = "write \"auto\", or a list of names: [\"eth0\"]";
                reader.error(value.span(), "enforce.interfaces", "no interface is named".to_owned(), hint);
            }
            config.enforce.interfaces = Interfaces::Named(names);
        }
    }
    let exclude = reader.texts(table, "exclude").unwrap_or_default().into_iter();
    config.enforce.exclude =
        exclude.filter_map(|(name, span)| interface(reader, "enforce.exclude", name, span)).collect();
    modes(reader, table, &mut config.enforce.modes);
    if let Some((bans, _)) = reader.number(table, "max_bans", 1..BANS_CEILING + 1) {
        config.policy.limits.bans_max = usize::try_from(bans).unwrap_or(usize::MAX);
    }
    path_into(reader, table, "pin_dir", &mut config.enforce.pin_dir);
    if let Some((counters, _)) = reader.boolean(table, "counters") {
        config.enforce.counters = Some(counters);
    }
    if let Some((close, _)) = reader.boolean(table, "close_connections") {
        config.enforce.close_connections = close;
    }
    if let Some((text, span)) = reader.text(table, "table") {
        match text {
            "buckets" => config.enforce.table = TableKind::Buckets,
            "hash" => config.enforce.table = TableKind::Hash,
            _ => {
                let hint = suggest(text, ["buckets", "hash"]);
                reader.error(span, "enforce.table", format!("there is no table {text:?}"), &hint);
            }
        }
    }
    if let Some((exact, _)) = reader.boolean(table, "exact") {
        config.enforce.exact = exact;
    }
}

/// `[limits]`; the bound on bans is the kernel tables' size and stands in `[enforce]`.
fn limits(reader: &mut Reader<'_>, root: Table<'_>, limits: &mut Limits) {
    let Some((entries, _)) = reader.table(root, "limits") else { return };
    let table = Table { entries, key: "limits" };
    reader.only(table, LIMITS_KEYS);
    for (key, bounds, limit) in [
        ("max_tracked", 1..TRACKED_CEILING + 1, &mut limits.tracked_max),
        ("max_offenders", 1..OFFENDERS_CEILING + 1, &mut limits.offenders_max),
        ("max_connections", 1..CONNECTIONS_CEILING + 1, &mut limits.connections_max),
        ("max_joined_bytes", JOINED_BYTES, &mut limits.joined_bytes_max),
        ("max_socket_connections", 1..SOCKET_CONNECTIONS_CEILING + 1, &mut limits.sockets.connections_max),
        ("max_socket_waiting", SOCKET_WAITING_BYTES, &mut limits.sockets.queue_bytes_max),
    ] {
        if let Some((number, _)) = reader.number(table, key, bounds) {
            *limit = usize::try_from(number).unwrap_or(usize::MAX);
        }
    }
    if let Some((idle, at)) = reader.find_time(table, "socket_idle") {
        if idle < SOCKET_IDLE.0 || idle > SOCKET_IDLE.1 {
            let start = reader.doc.offset(&at);
            let message = format!("{} is out of range", span_text(idle));
            let hint =
                format!("write a span from {} to {}", span_text(SOCKET_IDLE.0), span_text(SOCKET_IDLE.1));
            reader.error(start..start + 1, "limits.socket_idle", message, &hint);
        }
        limits.sockets.idle = idle;
    }
}

/// `[enforce] modes`: each at most once, in the order in which they are tried.
fn modes(reader: &mut Reader<'_>, table: Table<'_>, modes: &mut Vec<AttachMode>) {
    let Some(texts) = reader.texts(table, "modes") else { return };
    let mut found = Vec::new();
    for (text, span) in texts {
        match ATTACH_MODES.iter().find(|(name, _)| *name == text) {
            Some((_, mode)) if found.contains(mode) => {
                let hint = "name each once";
                reader.error(span, "enforce.modes", format!("{text:?} is there already"), hint);
            }
            Some((_, mode)) => found.push(*mode),
            None => {
                let hint = suggest(text, ATTACH_MODES.map(|(name, _)| name));
                reader.error(span, "enforce.modes", format!("there is no mode {text:?}"), &hint);
            }
        }
    }
    if found.is_empty()
        && let Some(value) = reader.value(table, "modes")
    {
        let hint = "write some of \"native\", \"dispatcher\", \"tcx\", \"generic\", or leave the key out";
        reader.error(value.span(), "enforce.modes", "no mode is named".to_owned(), hint);
    }
    *modes = found;
}

/// An interface's name as the kernel allows it, or a pattern: 1 to 15 bytes (IFNAMSIZ), no slash, colon or space.
fn interface(reader: &mut Reader<'_>, key: &str, name: &str, span: Range<usize>) -> Option<String> {
    let length = 1..=if glob::is_pattern(name.as_bytes()) { PATTERN_BYTES_MAX } else { 15 };
    let fits = length.contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(|b| matches!(b, b'/' | b':' | 0) || b.is_ascii_whitespace());
    if !fits {
        let message = format!("{name:?} cannot be the name of an interface");
        reader.error(span, key, message, "`ip link` lists the names");
    }
    fits.then(|| name.to_owned())
}

fn defaults(reader: &mut Reader<'_>, root: Table<'_>, actions: &[Arc<ActionSpec>]) -> TomlRules {
    let mut rules = TomlRules::new(Rules::with_bantime(BANTIME));
    if let Some((entries, _)) = reader.table(root, "defaults") {
        let table = Table { entries, key: "defaults" };
        reader.only(table, &RULE_KEYS);
        rules.read(reader, table, actions);
    }
    rules
}

fn filter_dirs(reader: &mut Reader<'_>, root: Table<'_>) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for (text, span) in reader.texts(root, "filter_dirs").unwrap_or_default() {
        let dir = beside(reader.doc, text);
        if dir.is_dir() {
            dirs.push(dir);
        } else {
            let message = format!("there is no directory {}", dir.display());
            reader.error(span, "filter_dirs", message, "create it or take it out of the list");
        }
    }
    dirs
}

/// A path relative to the directory of the file that names it.
fn beside(doc: &Document, text: &str) -> PathBuf {
    doc.path.parent().map_or_else(|| PathBuf::from(text), |dir| dir.join(text))
}

fn own_jails(
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

fn import(reader: &mut Reader<'_>, root: Table<'_>, config: &mut Config, jails: &mut Jails) {
    let Some((entries, span)) = reader.table(root, "import") else { return };
    let table = Table { entries, key: "import" };
    reader.only(table, &["fail2ban", "ban_ports"]);
    let mut ban_ports = BanPorts::All;
    if let Some((text, span)) = reader.text(table, "ban_ports") {
        match text {
            "all" => {}
            "jail" => ban_ports = BanPorts::Jail,
            _ => {
                let hint = "write \"all\", or \"jail\" for the ports that each jail names";
                reader.error(span, "import.ban_ports", format!("{text:?} is neither of both"), hint);
            }
        }
    }
    let Some((text, at)) = reader.text(table, "fail2ban") else {
        if reader.value(table, "fail2ban").is_none() {
            let hint = "add fail2ban = \"/etc/fail2ban\"";
            reader.error(span, "import", "nothing is imported here".to_owned(), hint);
        }
        return;
    };
    let dir = beside(reader.doc, text);
    if !dir.is_dir() {
        let message = format!("there is no directory {}", dir.display());
        reader.error(at, "import.fail2ban", message, "name the directory that holds jail.conf or jail.local");
        return;
    }
    let memory = fail2ban::import(&dir, ban_ports, reader.findings, jails, &mut config.policy.allow);
    config.former_bans = memory.bans;
    if reader.value(root, "dbpurgeage").is_none() {
        config.policy.remember = memory.remember.unwrap_or(config.policy.remember);
    }
}
