//! Makes the kernel hold what the ledger says, by reading back what it holds and applying the difference.
//!
//! A few thousand bans are done before this returns. A million are done in slices between whatever else the loop has to
//! do, so that meanwhile logs are read and new bans are made, and the kernel keeps dropping what it held before.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::{Agent, backend, memory, now};
use crate::engine::{Change, Difference, diff_allowed};

/// How long [`Agent::reconcile`] may take over it before the rest is left to slices.
const AT_ONCE: Duration = Duration::from_millis(50);
/// About how long a slice takes.
const SLICE: Duration = Duration::from_millis(10);
/// How many prefixes a slice looks at, at least and at most.
const LOOK: (usize, usize) = (256, 1 << 16);
/// What failed is tried again after so many times what it took.
const SHARE: u32 = 10;
/// The longest wait for that.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// What `status` says meanwhile.
pub(super) const UNDER_WAY: &str =
    "the bans of the ledger are being put into the kernel, which may not hold all of them yet";

/// A difference that is being applied.
#[derive(Debug)]
pub(super) struct Reconciling {
    difference: Difference,
    look: usize,
    changes: usize,
    slices: usize,
    /// Whether the kernel lacked a ban, and anybody could connect.
    lacked: bool,
    /// In the loop's own time.
    took: Duration,
    refused: Option<String>,
}

/// What there is to reconcile, and when again.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    running: Option<Reconciling>,
    again_at: Option<Instant>,
    /// Whether the backend that is not used has been cleared away.
    alone: bool,
}

impl Upkeep {
    /// Whether [`Agent::reconcile_on`] has something to do.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

impl Agent {
    /// Begins anew, and does what is quickly done.
    pub(super) fn reconcile(&mut self) {
        let start = Instant::now();
        self.upkeep.running = None;
        match self.compare() {
            Ok(difference) => {
                let running = Reconciling {
                    difference,
                    look: LOOK.0,
                    changes: 0,
                    slices: 0,
                    lacked: false,
                    took: start.elapsed(),
                    refused: None,
                };
                self.upkeep.running = Some(running);
                while self.upkeep.is_running() && start.elapsed() < AT_ONCE {
                    self.reconcile_on();
                }
            }
            Err(error) => self.reconciled(Some(error), start.elapsed()),
        }
    }

    /// As [`Self::reconcile`], unless the last attempt was just now or is still under way.
    pub(super) fn reconcile_again(&mut self) {
        let too_soon = self.upkeep.again_at.is_some_and(|at| Instant::now() < at);
        if !too_soon && !self.upkeep.is_running() {
            self.reconcile();
        }
    }

    fn compare(&mut self) -> Result<Difference, String> {
        let instant = now();
        let mut compare = || {
            let entries = self.enforcer.entries(instant)?;
            let allowed = diff_allowed(&self.engine.allowed(), &self.enforcer.allowed()?);
            if !allowed.is_empty() {
                self.enforcer.apply(&allowed, instant)?;
            }
            let actual = entries.into_iter().map(|entry| (entry.scope, entry.prefix, entry.until)).collect();
            Ok(Difference::new(actual))
        };
        compare().map_err(|error: crate::enforce::EnforceError| error.to_string())
    }

    /// One slice.
    pub(super) fn reconcile_on(&mut self) {
        let Some(mut running) = self.upkeep.running.take() else { return };
        let start = Instant::now();
        let Some(changes) = running.difference.step(self.engine.desired(), running.look) else {
            if running.changes > 0 {
                let (changes, slices, took) = (running.changes, running.slices, running.took.as_millis());
                info!(
                    "{changes} changes in {slices} slices make the kernel hold the ledger's bans: {took} ms"
                );
            }
            if running.lacked {
                self.closing.look_at_all();
            }
            if running.slices > 1 {
                memory::give_back();
            }
            return self.reconciled(running.refused, running.took);
        };
        if !changes.is_empty() {
            running.changes += changes.len();
            running.slices += 1;
            running.lacked |= changes.iter().any(|change| matches!(change, Change::Ban(_)));
            if let Err(error) = self.enforcer.apply(&changes, now()) {
                running.refused.get_or_insert(error.to_string());
            }
        }
        let took = start.elapsed();
        running.took += took;
        if took < SLICE / 2 {
            running.look = (running.look * 2).min(LOOK.1);
        } else if took > SLICE * 2 {
            running.look = (running.look / 2).max(LOOK.0);
        }
        self.upkeep.running = Some(running);
    }

    /// It is through, or could not begin.
    fn reconciled(&mut self, refused: Option<String>, took: Duration) {
        let Some(error) = refused else {
            self.upkeep.again_at = None;
            if self.degraded.enforcer.take().is_some() {
                info!("the kernel holds the ledger's bans again");
            }
            return self.be_alone();
        };
        self.upkeep.again_at = Some(Instant::now() + (took * SHARE).min(AGAIN_MAX));
        if self.degraded.enforcer.is_none() {
            error!("the kernel does not hold what the ledger says: {error}");
        }
        self.degraded.enforcer = Some(error);
    }

    /// Once the kernel holds all bans, those the other backend left in it go.
    fn be_alone(&mut self) {
        if std::mem::replace(&mut self.upkeep.alone, true) {
            return;
        }
        if let Err(error) = backend::retire_other(&self.config, &mut *self.enforcer) {
            let warning = format!("what the other backend left in the kernel is still in force: {error}");
            warn!("{warning}");
            self.warnings.push(warning);
        }
    }
}
