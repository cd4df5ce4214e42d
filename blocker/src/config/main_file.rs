//! Reads `blocker.toml` itself.
//!
//! Paths of what is read together with it (`filter_dirs`, `[import]`) may be relative to its own directory; paths of
//! what exists at run time (logs, sockets, state) must be absolute. In our own language a jail runs unless it says
//! `enabled = false`, and a ban lasts an hour; everything else has fail2ban's defaults.
#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use toml::de::DeTable;

use super::{
    Config,
    diagnostic::{Document, Findings},
    enforce,
    fail2ban::{self, BanPorts},
    filters::FilterStore,
    jails::{Jails, Rules},
    limits, own_jails,
    reader::{Reader, Table},
    rules::{self, RULE_KEYS, TomlRules},
    syntax_error,
};
use crate::policy::{ActionSpec, Policy};

/// How long a ban lasts where nothing says otherwise.
pub(super) const BANTIME: Duration = Duration::from_secs(3_600);

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
/// Reads the whole file; the result is only meant for use when no error was found.
pub(super) fn read(doc: &Document, findings: &mut Findings) -> Config {
    let mut config = Config {
        path: doc.path.clone(),
        policy: Policy::default(),
        enforce: enforce::defaults(),
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
    reader.path_into(table, "state_dir", &mut config.state_dir);
    reader.path_into(table, "socket", &mut config.socket);
    enforce::read(&mut reader, table, &mut config);
    limits::read(&mut reader, table, &mut config.policy.limits);
    if let Some((remember, _)) = reader.find_time(table, "dbpurgeage") {
        config.policy.remember = remember;
    }
    let actions = rules::actions(&mut reader, table);
    let rules = defaults(&mut reader, table, &actions);
    let mut filters = FilterStore::new(filter_dirs(&mut reader, table));
    let mut jails = Jails::default();
    own_jails::read(&mut reader, table, &rules, &actions, &mut filters, &mut jails);
    import(&mut reader, table, &mut config, &mut jails);
    config.policy.jails = jails.jails;
    config.policy.sources = jails.sources;
    config.policy.allow.sort_unstable();
    config.policy.allow.dedup();
    config.jails = jails.reports;
    config
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
