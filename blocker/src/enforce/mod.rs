//! Where bans go: one trait, several kernels behind it.
//!
//! An enforcer knows nothing of jails, logs or why; it makes the kernel hold what the changes say and reads back
//! what the kernel really holds.

use std::{fmt, os::fd::BorrowedFd};

use crate::{
    engine::Change,
    ledger::Ban,
    net::{Prefix, SCOPES_MAX, Scope},
    time::{Timestamp, Until},
};

pub mod beside;
pub mod memory;
mod netlink;
pub mod nft;
pub mod sockets;
pub mod xdp;

/// Something that drops packets by source address.
///
/// Every implementation passes `tests/enforcers.rs`. Calls block for microseconds to milliseconds and are made from
/// one thread.
pub trait Enforcer: Send {
    /// Makes the kernel hold these changes, in order. Idempotent: banning again sets the new end, unbanning what is
    /// not banned is no error. A ban whose end is not after `now` is removed instead of added.
    ///
    /// # Errors
    /// Names the first change the kernel refused; those before it are in force, and the rest were tried.
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError>;

    /// Every live ban the kernel holds, read back and not remembered, in the order of scopes, all ports first, and prefixes.
    /// Entries whose end has passed are left out.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError>;

    /// Every allowlisted prefix the kernel holds, in prefix order, read back.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError>;

    /// Totals since the kernel half was loaded.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn counters(&mut self) -> Result<Counters, EnforceError>;

    /// Checks that the kernel half is still attached and repairs it where it can (link gone, table flushed by
    /// another program). `Repaired` means the caller must write the desired state again.
    ///
    /// # Errors
    /// When enforcement is not in force and could not be put back.
    fn repair(&mut self) -> Result<Health, EnforceError>;

    /// Which enforcer this is, how it is attached, and why that was chosen: for `status`.
    fn describe(&self) -> Description;

    /// Why parts of it are no better than they are and what would help, and what is left out: for `status`.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Where enforcement is not in force, looked at now: for `status`.
    fn troubles(&self) -> Vec<String> {
        Vec::new()
    }

    /// Readable once something has changed that [`Self::repair`] follows, so that it need not wait for its time.
    fn changes(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Removes what another enforcer left in the kernel where this one shares it; called once this one holds all bans.
    ///
    /// # Errors
    /// When what was to be removed could not be.
    fn be_alone(&mut self, _now: Timestamp) -> Result<(), EnforceError> {
        Ok(())
    }

    /// Ends the agent's hold.
    ///
    /// # Errors
    /// When what was to be removed could not be.
    fn close(self: Box<Self>, keep: Keep) -> Result<(), EnforceError>;
}

/// One ban as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which sources are dropped.
    pub prefix: Prefix,
    /// What of theirs is.
    pub scope: Scope,
    /// When the kernel stops dropping them, to within a second.
    pub until: Until,
    /// Packets dropped by this entry since it was added; kept when a ban is prolonged where the kernel can.
    pub packets: u64,
}

/// Totals over all bans, also of those that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets dropped.
    pub packets: u64,
    /// Bytes dropped, Ethernet header included where the kernel half sees it.
    pub bytes: u64,
}

/// What [`Enforcer::repair`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything is in place.
    Sound,
    /// Something was missing and is back, perhaps empty: apply the desired state again.
    Repaired,
    /// Everything is in place, and another program may have changed bans: compare them with the desired state.
    Doubtful,
}

/// What happens to the kernel half when the agent lets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The kernel keeps dropping and expiring.
    InForce,
    /// Everything is detached and removed.
    Nothing,
}

/// How bans are enforced, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `xdp`, `nftables` or `memory`.
    pub backend: &'static str,
    /// One per interface or hook: what is attached, and how, as in `eth0: native`.
    pub attachments: Vec<String>,
    /// Why this backend and this mode, and what a better one would need.
    pub reason: String,
}

/// The kernel refused, and what to do about it.
#[derive(Debug)]
pub struct EnforceError {
    /// What was tried, on what.
    pub what: String,
    /// What the kernel or library answered.
    pub cause: String,
    /// What the operator can do, or empty.
    pub hint: String,
    /// The change that was refused, where one was.
    pub prefix: Option<Prefix>,
}

/// That a ban has one list of ports too many. It is not put on other ports than were asked for.
fn scopes_full(ban: &Ban) -> EnforceError {
    EnforceError {
        what: format!("ban {} on {}", ban.prefix, ban.scope),
        cause: format!("bans are on {SCOPES_MAX} different lists of ports already"),
        hint: "ban on all ports, or on a list that `blocker bans` shows".to_owned(),
        prefix: Some(ban.prefix),
    }
}

impl fmt::Display for EnforceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for EnforceError {}
