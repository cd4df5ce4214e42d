//! The keys of a jail that name sockets, and who may write to them.
//!
//! Users and groups are looked up here, once a load; hosts are not, so that nothing waits for a resolver. Jails may read
//! one socket together; one of them says who may write, or all say the same.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use nix::unistd::{Group, User};
use toml::de::DeValue;

use super::{
    jails::Jails,
    reader::{Reader, Table},
};
use crate::policy::{Access, Form, SOCKETS_MAX, SocketAddress, SocketSpec, SourceSpec};

/// Keys of a jail that are read here.
pub(super) const SOCKET_KEYS: [&str; 8] = [
    "socket",
    "stream_socket",
    "syslog",
    "socket_users",
    "socket_groups",
    "socket_mode",
    "socket_owner",
    "syslog_allow",
];
/// Those that name sockets.
pub(super) const NAMING_KEYS: [&str; 3] = ["socket", "stream_socket", "syslog"];
/// The port of syslog (RFC 5426, section 3.3).
const SYSLOG_PORT: u16 = 514;
/// The longest path of a unix socket, in bytes (unix(7)).
const PATH_BYTES_MAX: usize = 107;
/// Users, groups or prefixes of one jail at most.
const ENTRIES_MAX: usize = 1_024;
const SYSLOG_HINT: &str =
    "write \"udp://127.0.0.1:5514\", \"tcp://[::1]:5514\" or \"unix:///run/blocker/log\"";

/// A socket, and where it is named.
pub(super) type Named = (SocketSpec, Range<usize>, &'static str);

/// The sockets that a jail names.
pub(super) fn read(reader: &mut Reader<'_>, table: Table<'_>) -> Vec<Named> {
    let mut sockets: Vec<Named> = Vec::new();
    let of = |address, form| SocketSpec { address, form, access: None };
    for (name, address) in [
        ("socket", SocketAddress::Datagram as fn(_) -> SocketAddress),
        ("stream_socket", SocketAddress::Stream),
    ] {
        let key = table.key_of(name);
        if let Some((text, span)) = reader.text(table, name)
            && let Some(path) = reader.absolute(text, span.clone(), &key)
            && fits(reader, text, &span, &key)
        {
            sockets.push((of(address(path), Form::Line), span, name));
        }
    }
    let key = table.key_of("syslog");
    for (text, span) in reader.texts(table, "syslog").unwrap_or_default() {
        if let Some(address) = syslog_address(reader, text, &span, &key) {
            sockets.push((of(address, Form::Syslog), span, "syslog"));
        }
    }
    let access = access(reader, table, &sockets);
    for (spec, ..) in &mut sockets {
        spec.access.clone_from(&access);
    }
    sockets
}

fn fits(reader: &mut Reader<'_>, path: &str, span: &Range<usize>, key: &str) -> bool {
    let fits = path.len() <= PATH_BYTES_MAX;
    if !fits {
        let message =
            format!("the path of a socket has at most {PATH_BYTES_MAX} bytes, this has {}", path.len());
        reader.error(span.clone(), key, message, "choose a shorter one, as in /run/blocker");
    }
    fits
}

fn syslog_address(
    reader: &mut Reader<'_>,
    text: &str,
    span: &Range<usize>,
    key: &str,
) -> Option<SocketAddress> {
    let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
    match scheme {
        "unix" => {
            let path = reader.absolute(rest, span.clone(), key)?;
            return fits(reader, rest, span, key).then_some(SocketAddress::Datagram(path));
        }
        "udp" | "tcp" if !rest.is_empty() => {}
        _ => {
            reader.error(span.clone(), key, format!("{text:?} names no place for syslog"), SYSLOG_HINT);
            return None;
        }
    }
    let bare = rest.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(rest);
    let alone = || bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, SYSLOG_PORT));
    match rest.parse::<SocketAddr>().ok().or_else(alone) {
        Some(address) if address.port() == 0 => {
            reader.error(span.clone(), key, "there is no port 0".to_owned(), "write a port from 1 to 65535");
            None
        }
        Some(address) if scheme == "udp" => Some(SocketAddress::Udp(address)),
        Some(address) => Some(SocketAddress::Tcp(address)),
        None => {
            let message = format!("{rest:?} is no address with a port");
            let hint = format!("names are not resolved: {SYSLOG_HINT}");
            reader.error(span.clone(), key, message, &hint);
            None
        }
    }
}

/// Who may write, if the jail says.
fn access(reader: &mut Reader<'_>, table: Table<'_>, sockets: &[Named]) -> Option<Access> {
    let is_unix =
        |(spec, ..): &Named| matches!(spec.address, SocketAddress::Datagram(_) | SocketAddress::Stream(_));
    let named = NAMING_KEYS.iter().any(|name| reader.value(table, name).is_some());
    let mut access = Access::default();
    let mut said = false;
    for name in ["socket_users", "socket_groups", "socket_mode", "socket_owner", "syslog_allow"] {
        let Some(value) = reader.value(table, name) else { continue };
        said = true;
        let (fitting, what, hint) = if name == "syslog_allow" {
            let fitting = sockets.iter().any(|socket| !is_unix(socket));
            (
                fitting,
                "the jail reads no syslog over UDP or TCP",
                "add syslog = [\"udp://...\"], or take it out",
            )
        } else {
            let fitting = sockets.iter().any(is_unix);
            (fitting, "the jail reads no unix socket", "add socket = \"/run/blocker/...\", or take it out")
        };
        // A socket that was refused has been reported.
        if !fitting && (!named || !sockets.is_empty()) {
            reader.error(value.span(), &table.key_of(name), what.to_owned(), hint);
        }
    }
    access.users = ids(reader, table, "socket_users", user);
    access.groups = ids(reader, table, "socket_groups", group);
    mode(reader, table, &mut access);
    owner(reader, table, &mut access);
    if let Some((allow, at)) = reader.prefixes(table, "syslog_allow") {
        if allow.len() > ENTRIES_MAX {
            let start = reader.doc.offset(&at);
            let message = format!("more than {ENTRIES_MAX} prefixes");
            reader.error(start..start, &table.key_of("syslog_allow"), message, "name wider ones");
        }
        access.allow = allow;
    }
    said.then_some(access)
}

/// Numbers, and names that are looked up.
fn ids(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    name: &str,
    look_up: impl Fn(&str) -> Result<u32, String>,
) -> Vec<u32> {
    let Some(value) = reader.value(table, name) else { return Vec::new() };
    let key = table.key_of(name);
    let wanted = "write a list of names or numbers: [\"www-data\", 1000]";
    let DeValue::Array(list) = value.get_ref() else {
        let message = format!("this is a TOML {}", value.get_ref().type_str());
        reader.error(value.span(), &key, message, wanted);
        return Vec::new();
    };
    if list.len() > ENTRIES_MAX {
        reader.error(value.span(), &key, format!("more than {ENTRIES_MAX} entries"), "use a group");
        return Vec::new();
    }
    let mut ids = Vec::new();
    for element in list.iter() {
        let found = match element.get_ref() {
            DeValue::String(name) => look_up(name),
            // The last number stands for "no change" in chown(2) and its kin.
            DeValue::Integer(number) => match u32::from_str_radix(number.as_str(), number.radix()) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(format!("{} is out of range", number.as_str())),
            },
            other => Err(format!("this is a TOML {}", other.type_str())),
        };
        match found {
            Ok(id) if !ids.contains(&id) => ids.push(id),
            Ok(_) => {}
            Err(message) => reader.error(element.span(), &key, message, wanted),
        }
    }
    ids
}

fn user(name: &str) -> Result<u32, String> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("there is no user {name:?} on this host")),
        Err(error) => Err(format!("the user {name:?} cannot be looked up: {error}")),
    }
}

fn group(name: &str) -> Result<u32, String> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group {name:?} on this host")),
        Err(error) => Err(format!("the group {name:?} cannot be looked up: {error}")),
    }
}

fn mode(reader: &mut Reader<'_>, table: Table<'_>, access: &mut Access) {
    let Some((text, span)) = reader.text(table, "socket_mode") else { return };
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    match u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777) {
        Some(mode) => access.mode = mode,
        None => {
            let message = format!("{text:?} is no mode of a file");
            reader.error(span, &table.key_of("socket_mode"), message, "write it as chmod does: \"0660\"");
        }
    }
}

/// `user`, `user:group` or `:group`, names or numbers.
fn owner(reader: &mut Reader<'_>, table: Table<'_>, access: &mut Access) {
    let Some((text, span)) = reader.text(table, "socket_owner") else { return };
    let (user_name, group_name) = text.split_once(':').unwrap_or((text, ""));
    let id = |text: &str, look_up: fn(&str) -> Result<u32, String>| match text {
        "" => Ok(None),
        text => text.parse().ok().filter(|id| *id != u32::MAX).map_or_else(|| look_up(text), Ok).map(Some),
    };
    match (id(user_name, user), id(group_name, group)) {
        (Ok(None), Ok(None)) => {
            let hint = "write \"root:www-data\", \"root\" or \":www-data\"";
            reader.error(span, &table.key_of("socket_owner"), "this names nobody".to_owned(), hint);
        }
        (Ok(owner), Ok(group)) => (access.owner, access.group) = (owner, group),
        (Err(message), _) | (_, Err(message)) => {
            let hint = "a number needs no name: \"0:33\"";
            reader.error(span, &table.key_of("socket_owner"), message, hint);
        }
    }
}

/// Brings the sockets of a jail together with those that other jails read.
pub(super) fn agree(reader: &mut Reader<'_>, table: Table<'_>, named: &mut [Named], jails: &mut Jails) {
    let known = |spec: &&SourceSpec| matches!(spec, SourceSpec::Socket(_));
    let mut count = jails.sources.iter().filter(known).count();
    for at in 0..named.len() {
        let (before, rest) = named.split_at_mut(at);
        let Some((spec, span, name)) = rest.first_mut() else { return };
        if before.iter().any(|(other, ..)| other.address != spec.address && same_path(other, spec)) {
            let message = "this path is named for another kind of socket, too".to_owned();
            reader.error(span.clone(), &table.key_of(name), message, "give one of them another path");
            continue;
        }
        let same = jails.sources.iter_mut().find_map(|known| match known {
            SourceSpec::Socket(known) if known.address == spec.address || same_path(known, spec) => {
                Some(known)
            }
            _ => None,
        });
        let key = table.key_of(name);
        match same {
            None => {
                count += 1;
                if count > SOCKETS_MAX {
                    let message = format!("more than {SOCKETS_MAX} sockets in all");
                    reader.error(span.clone(), &key, message, "let jails share one");
                    return;
                }
            }
            Some(known) if (&known.address, known.form) != (&spec.address, spec.form) => {
                let message = format!("another jail reads {known}, which is another kind of socket");
                reader.error(span.clone(), &key, message, "give one of them another path");
            }
            Some(known) => match (&known.access, &spec.access) {
                (Some(theirs), Some(ours)) if theirs != ours => {
                    let message = format!("another jail says otherwise who may write to {spec}");
                    let hint = "say it in one of the jails, or in all of them the same";
                    reader.error(span.clone(), &key, message, hint);
                }
                (None, Some(_)) => known.access.clone_from(&spec.access),
                (Some(_), _) | (None, None) => spec.access.clone_from(&known.access),
            },
        }
    }
}

fn same_path(a: &SocketSpec, b: &SocketSpec) -> bool {
    let path = |spec: &SocketSpec| match &spec.address {
        SocketAddress::Datagram(path) | SocketAddress::Stream(path) => Some(path.clone()),
        SocketAddress::Udp(_) | SocketAddress::Tcp(_) => None,
    };
    path(a).is_some() && path(a) == path(b)
}
