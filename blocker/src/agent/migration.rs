//! Takes over, once, the bans of the fail2ban that is imported, so that nobody is unbanned by the change.

use std::collections::BTreeSet;

use tracing::info;

use crate::{
    config::Config,
    net::{Prefix, Scope},
    store::{Store, Stored},
    time::{BanTime, Timestamp},
};

/// Adds fail2ban's bans to what was stored. A database that is not there is no fault: fail2ban may never have run.
pub(super) fn take_over(config: &Config, store: &mut Store, stored: &mut Stored, now: Timestamp) {
    let Some(path) = config.former_bans.as_ref().filter(|path| path.exists()) else { return };
    let rules = |jail: &str| match config.policy.jails.iter().find(|known| &*known.name == jail) {
        Some(jail) => (jail.bantime, jail.scope.clone()),
        // fail2ban's own default.
        None => (BanTime::For(std::time::Duration::from_secs(600)), Scope::ALL),
    };
    match store.take_over(path, &stored.bans, &stored.offences, now, &rules) {
        Ok(None) => {}
        Ok(Some(taken)) => {
            let unusable = match taken.unusable {
                0 => String::new(),
                rows => format!(", {rows} rows that name nobody who can be banned"),
            };
            info!(
                "fail2ban's bans in {} are taken over: {} in force{unusable}",
                path.display(),
                taken.bans.len()
            );
            let replaced: BTreeSet<(Prefix, &Scope)> =
                taken.bans.iter().map(|ban| (ban.prefix, &ban.scope)).collect();
            stored.bans.retain(|held| !replaced.contains(&(held.prefix, &held.scope)));
            stored.bans.extend(taken.bans);
            stored.offences.extend(taken.offences);
        }
        Err(error) => stored.notes.push(error.to_string()),
    }
}
