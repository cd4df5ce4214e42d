//! Jails whose logs are not there: nothing fails, and nobody is banned either, which the operator is to know.

use crate::{
    policy::{Jail, Policy, SourceSpec},
    source::file,
};

/// Says so, and what to do, of a jail that reads files of which none is there.
pub fn unlogged(policy: &Policy, jail: &Jail) -> Option<String> {
    let specs = jail.sources.iter().filter_map(|id| policy.sources.get(usize::from(id.0)));
    let mut absent = Vec::new();
    for spec in specs {
        match spec {
            SourceSpec::File(path) | SourceSpec::Container(path, _) if !file::is_there(path) => {
                absent.push(path.display().to_string());
            }
            SourceSpec::File(_)
            | SourceSpec::Container(..)
            | SourceSpec::Socket(_)
            | SourceSpec::Stdin
            | SourceSpec::Journal { .. }
            | SourceSpec::Ledger => return None,
        }
    }
    (!absent.is_empty()).then(|| {
        format!(
            "[{}] none of its logs is there: {}. They are read as soon as they are. If the daemon writes to the journal \
             only, write `journal = [\"_SYSTEMD_UNIT=...\"]` instead, or have rsyslog write them",
            jail.name,
            absent.join(", ")
        )
    })
}
