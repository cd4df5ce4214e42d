//! Takes over, once, the bans of the fail2ban that is imported, so that nobody is unbanned by the change.

use std::collections::BTreeSet;

use tracing::info;

use crate::{
    config::Config,
    net::Prefix,
    store::{Store, Stored},
    time::{BanTime, Timestamp},
};

/// Adds fail2ban's bans to what was stored. A database that is not there is no fault: fail2ban may never have run.
pub(super) fn take_over(config: &Config, store: &mut Store, stored: &mut Stored, now: Timestamp) {
    let Some(path) = config.former_bans.as_ref().filter(|path| path.exists()) else { return };
    let bantime = |jail: &str| {
        let jail = config.policy.jails.iter().find(|known| &*known.name == jail);
        // fail2ban's own default.
        jail.map_or(BanTime::For(std::time::Duration::from_secs(600)), |jail| jail.bantime)
    };
    match store.take_over(path, &stored.bans, &stored.offences, now, &bantime) {
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
            let taken_prefixes: BTreeSet<Prefix> = taken.bans.iter().map(|ban| ban.prefix).collect();
            stored.bans.retain(|held| !taken_prefixes.contains(&held.prefix));
            stored.bans.extend(taken.bans);
            stored.offences.extend(taken.offences);
        }
        Err(error) => stored.notes.push(error.to_string()),
    }
}
