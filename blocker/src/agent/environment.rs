//! What a command is told, and the only way it is told: variables of its environment.
#![forbid(unsafe_code)]

use crate::{
    cli::clean,
    engine::{Ask, Occasion},
    ledger::Ban,
    time::Until,
};

/// Bytes of matched lines that a command is given: the kernel takes 128 KiB in one variable (execve(2)).
const MATCHES_BYTES_MAX: usize = 64 << 10;

/// About a question to an ignorecommand.
pub(super) fn of_ask(ask: &Ask) -> Vec<(String, String)> {
    vec![
        ("BLOCKER_ACTION".to_owned(), "ignore".to_owned()),
        ("BLOCKER_JAIL".to_owned(), ask.jail.to_string()),
        ("BLOCKER_IP".to_owned(), ask.address.to_string()),
        ("BLOCKER_FAILURES".to_owned(), ask.failures.to_string()),
        family(ask.address.is_ipv4()),
    ]
}

fn family(v4: bool) -> (String, String) {
    ("BLOCKER_FAMILY".to_owned(), if v4 { "inet4" } else { "inet6" }.to_owned())
}

/// About a run of a jail's action.
pub(super) fn of_occasion(jail: &str, occasion: &Occasion) -> Vec<(String, String)> {
    let (verb, ban) = match occasion {
        Occasion::Start => ("start", None),
        Occasion::Stop => ("stop", None),
        Occasion::Ban { ban, .. } => ("ban", Some(ban)),
        Occasion::Unban { ban } => ("unban", Some(ban)),
    };
    let mut environment =
        vec![("BLOCKER_ACTION".to_owned(), verb.to_owned()), ("BLOCKER_JAIL".to_owned(), jail.to_owned())];
    environment.extend(ban.into_iter().flat_map(of_ban));
    if let Occasion::Ban { matches, restored, .. } = occasion {
        let restored = if *restored { "1" } else { "0" };
        environment.push(("BLOCKER_RESTORED".to_owned(), restored.to_owned()));
        environment.push(("BLOCKER_MATCHES".to_owned(), joined(matches)));
    }
    environment
}

fn of_ban(ban: &Ban) -> Vec<(String, String)> {
    let bantime = match ban.until {
        Until::At(end) => end.saturating_since(ban.since).as_secs().to_string(),
        Until::Forever => "-1".to_owned(),
    };
    let value = |name: &str, value: String| (name.to_owned(), value);
    let ports = (!ban.scope.is_all()).then(|| value("BLOCKER_PORTS", ban.scope.to_string()));
    let mut variables = vec![
        value("BLOCKER_IP", ban.prefix.to_string()),
        value("BLOCKER_FAILURES", ban.failures.to_string()),
        value("BLOCKER_BANTIME", bantime),
        value("BLOCKER_BANCOUNT", ban.count.to_string()),
        value("BLOCKER_TIME", ban.since.as_secs().to_string()),
        family(ban.prefix.address().is_ipv4()),
    ];
    variables.extend(ports);
    variables
}

/// A line each, the latest ones when not all fit, and in none of them anything that steers a terminal.
fn joined(matches: &[String]) -> String {
    let mut lines = Vec::new();
    let mut bytes = 0;
    for line in matches.iter().rev() {
        let line = clean(line);
        bytes += line.len() + 1;
        if bytes > MATCHES_BYTES_MAX {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    lines.join("\n")
}
