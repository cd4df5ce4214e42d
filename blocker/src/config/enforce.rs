//! `[enforce]`: where bans go, and how they get there.
#![forbid(unsafe_code)]

use std::{ops::Range, path::PathBuf};

use super::{
    AttachMode, Backend, Config, EnforceConfig, Interfaces, TableKind,
    diagnostic::suggest,
    reader::{Reader, Table},
};
use crate::glob;

/// Most bans at once that may be configured: the bucket table then takes about 300 MB, hash maps 2.4 GB, and the agent up to
/// 200 bytes for each ban there is.
const BANS_CEILING: u64 = 8_388_608;

const KEYS: &[&str] = &[
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
/// What holds where the table says nothing.
pub(super) fn defaults() -> EnforceConfig {
    EnforceConfig {
        backend: Backend::Auto,
        interfaces: Interfaces::Auto,
        exclude: Vec::new(),
        modes: ATTACH_MODES.map(|(_, mode)| mode).to_vec(),
        pin_dir: PathBuf::from("/sys/fs/bpf/blocker"),
        counters: None,
        close_connections: true,
        table: TableKind::Buckets,
        exact: false,
    }
}

/// Reads the table, where there is one.
pub(super) fn read(reader: &mut Reader<'_>, root: Table<'_>, config: &mut Config) {
    let Some((entries, _)) = reader.table(root, "enforce") else { return };
    let table = Table { entries, key: "enforce" };
    reader.only(table, KEYS);
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
    reader.path_into(table, "pin_dir", &mut config.enforce.pin_dir);
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
