//! What `blocker check` doubts: filters that log text could steer, and logs in which whole lines could be forged.
#![forbid(unsafe_code)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    config::{Config, place_text},
    filter::{
        Dialect, Filter, SourceKind,
        lint::{self, Safety},
    },
    policy::{Access, Form, Jail, SocketAddress, SocketSpec, SourceSpec},
};

/// How long all proofs together may take.
const PROOF_SPAN_MAX: Duration = Duration::from_secs(2);
/// States that one proof may look at; `blocker filter lint` looks at more.
const PROOF_STATES_MAX: usize = 20_000;
/// Files that are syslog's by convention: entries are framed in them.
const SYSLOG_FILES: [&str; 9] = [
    "auth.log",
    "syslog",
    "messages",
    "secure",
    "mail.log",
    "maillog",
    "mail.warn",
    "daemon.log",
    "user.log",
];

/// Everything that is doubtful in the filters of a configuration, and in what they read.
pub(super) fn of(config: &Config) -> Vec<String> {
    let mut doubts = unsafe_filters(config);
    for jail in &config.policy.jails {
        for filter in &jail.filters {
            doubts.extend(forgeable_lines(config, jail, filter));
        }
        doubts.extend(unattributed(config, jail));
        doubts.extend(unasked(config, jail));
    }
    doubts
}

/// Filters that are not ours, since ours are proven when they are built.
fn unsafe_filters(config: &Config) -> Vec<String> {
    let mut seen: Vec<&Arc<Filter>> = Vec::new();
    let mut doubts = Vec::new();
    let mut unproven = Vec::new();
    let start = Instant::now();
    for filter in config.policy.jails.iter().flat_map(|jail| &jail.filters) {
        let spec = filter.spec();
        if spec.path.starts_with("built-in:") || seen.iter().any(|known| Arc::ptr_eq(known, filter)) {
            continue;
        }
        seen.push(filter);
        let mut proofs = lint::proofs(spec, PROOF_STATES_MAX);
        let found = loop {
            if start.elapsed() > PROOF_SPAN_MAX {
                unproven.push(filter.name.to_string());
                break None;
            }
            match proofs.next() {
                Some(proof) if proof.safety == Safety::Unsafe => break Some(proof),
                Some(_) => {}
                None => break None,
            }
        };
        if let Some(proof) = found {
            doubts.push(format!(
                "warning: {}: the filter {:?} is UNSAFE: the text of a line can choose whom this pattern blames; see \
                 `blocker filter lint`",
                place_text(&proof.at),
                filter.name
            ));
        }
    }
    if !unproven.is_empty() {
        doubts.push(format!(
            "warning: there was no time to prove the filters {}; ask `blocker filter lint` about each",
            unproven.join(", ")
        ));
    }
    doubts
}

/// Sources of a jail in which a line break may be an attacker's.
fn forgeable_lines(config: &Config, jail: &Jail, filter: &Filter) -> Vec<String> {
    // Imported filters declare nothing, and patterns in the jail itself cannot.
    let spec = filter.spec();
    if spec.dialect == Dialect::Fail2ban || spec.path == config.path {
        return Vec::new();
    }
    let is_safe = |kind| filter.newline_safe.contains(&kind);
    let sources = jail.sources.iter().filter_map(|id| config.policy.sources.get(usize::from(id.0)));
    let forgeable = sources.filter_map(|source| match source {
        // A record is a line, and a container that writes a line break begins another one.
        SourceSpec::Container(path, _) => (!is_safe(SourceKind::File)).then(|| path.display().to_string()),
        SourceSpec::File(path) => {
            let is_framed = is_safe(SourceKind::Journal) && is_syslog(path);
            (!is_safe(SourceKind::File) && !is_framed).then(|| path.display().to_string())
        }
        SourceSpec::Socket(spec) => (!is_safe(kind_of(spec))).then(|| spec.to_string()),
        SourceSpec::Stdin => (!is_safe(SourceKind::File)).then(|| "standard input".to_owned()),
        // Of what a daemon writes to its standard error, journald makes an entry a line.
        SourceSpec::Journal { .. } => (!is_safe(SourceKind::Journal)).then(|| "the journal".to_owned()),
        SourceSpec::Ledger => None,
    });
    let advice = if is_safe(SourceKind::Journal) {
        "read the same lines from a file that a syslog daemon writes"
    } else {
        "its daemon writes what it is told as it is; set `observe = true` in the jail to ban nobody by it"
    };
    forgeable
        .map(|source| {
            format!(
                "warning: jail {:?}: in {source} whoever is logged may write a line break, and with it a whole line \
                 for the filter {:?}; {advice}",
                jail.name, filter.name
            )
        })
        .collect()
}

/// Matches that do not say whose the entries are: most daemons' would not be read.
fn unattributed(config: &Config, jail: &Jail) -> Vec<String> {
    let sources = jail.sources.iter().filter_map(|id| config.policy.sources.get(usize::from(id.0)));
    let groups = sources.filter_map(|source| match source {
        SourceSpec::Journal { matches, .. } => Some(matches.groups()),
        SourceSpec::File(_)
        | SourceSpec::Container(..)
        | SourceSpec::Socket(_)
        | SourceSpec::Stdin
        | SourceSpec::Ledger => None,
    });
    let unattributed = groups.flatten().filter(|group| !group.is_attributed());
    unattributed
        .map(|group| {
            format!(
                "warning: jail {:?}: any user can write entries of the journal that {group} selects, so only root's are \
                 read, under the name of the process; add _SYSTEMD_UNIT=... or _UID=... of the daemon",
                jail.name
            )
        })
        .collect()
}

/// Sockets on which the kernel cannot say who sends.
fn unasked(config: &Config, jail: &Jail) -> Vec<String> {
    let sources = jail.sources.iter().filter_map(|id| config.policy.sources.get(usize::from(id.0)));
    let sockets = sources.filter_map(|source| match source {
        SourceSpec::Socket(spec) => Some(spec),
        _ => None,
    });
    let loopback = Access::default().allow;
    let doubt = |spec: &SocketSpec| {
        let is_udp = match spec.address {
            SocketAddress::Udp(_) => true,
            SocketAddress::Tcp(_) => false,
            SocketAddress::Datagram(_) | SocketAddress::Stream(_) => return None,
        };
        let allow = spec.access.as_ref().map_or(&loopback, |access| &access.allow);
        let (who, advice) = if allow.iter().any(|prefix| loopback.iter().any(|own| own.overlaps(*prefix))) {
            (
                "any user of this host",
                "a socket such as \"unix:///run/blocker/log\" takes only those it is told to",
            )
        } else if is_udp {
            (
                "whoever can reach it",
                "the sender of a datagram can be made up, that of a connection (tcp://) cannot",
            )
        } else {
            return None;
        };
        Some(format!(
            "warning: jail {:?}: {who} can send to {spec} and have others banned; {advice}",
            jail.name
        ))
    };
    sockets.filter_map(doubt).collect()
}

/// How lines are told apart in a socket: where a message is one, its sender's line breaks make no further one. In a
/// stream of lines they do; syslog daemons, which send over TCP, escape them.
fn kind_of(spec: &SocketSpec) -> SourceKind {
    match (spec.form, &spec.address) {
        (Form::Syslog, _) => SourceKind::Journal,
        (Form::Line, SocketAddress::Stream(_) | SocketAddress::Tcp(_)) => SourceKind::File,
        (Form::Line, SocketAddress::Datagram(_) | SocketAddress::Udp(_)) => SourceKind::Socket,
    }
}

fn is_syslog(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| SYSLOG_FILES.contains(&name))
}
