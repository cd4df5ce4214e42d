//! The agent's own log, in the words fail2ban's users grep for.
#![forbid(unsafe_code)]

use tracing::{error, info, warn};

use super::report;
use crate::{
    engine::{Event, Request},
    net::{SCOPES_MAX, Scope},
};

/// Writes down an event.
pub(super) fn note(event: &Event) {
    match event {
        Event::Failure { jail, address, count, maxretry } => {
            info!("[{jail}] Found {address} ({count}/{maxretry})");
        }
        Event::Allowlisted { jail, address } => info!("[{jail}] Ignore {address} (allowlisted)"),
        Event::NoAddress { jail } => warn!("[{jail}] a failure without a usable address; nobody is blamed"),
        Event::Banned(ban) if ban.count > 1 => {
            let on = on(&ban.scope);
            info!("[{}] Ban {}{on} (number {})", report::origin(&ban.origin), ban.prefix, ban.count);
        }
        Event::Banned(ban) => {
            info!("[{}] Ban {}{}", report::origin(&ban.origin), ban.prefix, on(&ban.scope));
        }
        Event::WouldBan(ban) => {
            info!("[{}] would ban {}, and only observes", report::origin(&ban.origin), ban.prefix);
        }
        Event::Ignored { jail, address } => info!("[{jail}] Ignore {address} (by its ignorecommand)"),
        Event::Unanswered { jail, address } => {
            warn!("[{jail}] no answer of its ignorecommand about {address}: it is banned");
        }
        Event::Unbanned { prefix, scope, why } => {
            info!("Unban {prefix}{} ({})", on(scope), report::ending(*why));
        }
        Event::Flushed { bans } => info!("Flush: {bans} bans lifted by an operator"),
        Event::Spared { prefix, allowed } => {
            warn!("not banned: {prefix} would cover {allowed}, which is protected");
        }
        Event::GaveWay { prefix } => warn!("the ban table is full: {prefix}, soonest to expire, gave way"),
        Event::TableFull { prefix } => error!("the ban table is full of manual bans: {prefix} is not banned"),
        Event::ScopesFull { prefix, scope } => error!(
            "bans are on {SCOPES_MAX} different lists of ports already: {prefix} is not banned on {scope}"
        ),
    }
}

/// What a ban is on, where that is not every port.
pub(super) fn on(scope: &Scope) -> String {
    if scope.is_all() { String::new() } else { format!(" on {scope}") }
}

/// A request, as it is asked.
pub(super) fn shown(request: &Request) -> String {
    match request {
        Request::Ban { prefix, scope, bantime, .. } => format!("ban {prefix}{} for {bantime}", on(scope)),
        Request::Unban { prefix, scope } => {
            format!("unban {prefix}{}", scope.as_ref().map_or_else(String::new, on))
        }
        Request::Allow { prefix } => format!("allow {prefix}"),
        Request::Disallow { prefix } => format!("disallow {prefix}"),
        Request::Flush => "flush".to_owned(),
    }
}
