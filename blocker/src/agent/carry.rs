//! Carries out what the engine says: the disk first, then the kernel, then people and commands are told.
//!
//! A disk or kernel that refuses degrades the agent and stops nothing; what they lack is tried again.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde_json::Value;
use tracing::{error, info, warn};

use super::{Agent, attached, note::note, now};
use crate::{
    control::{protocol::CallError, server::Reply},
    enforce::Health,
    engine::{Change, Command, Input, Response},
    ledger::OffenceChange,
    store::StoreError,
};

impl Agent {
    /// Carries out what the engine wants: one transaction, one batch, one sync, then what people are told.
    pub(super) fn drain(&mut self) {
        let (mut records, mut offences, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut replies, mut notes, mut acts) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(command) = self.engine.next_command() {
            match command {
                Command::Record(change) => records.push(change),
                Command::Remember(offence) => offences.push(offence),
                Command::Enforce(change) => changes.push(change),
                Command::Ask(ask) => self.runner.ask(&ask),
                Command::Act(act) => acts.push(act),
                Command::Reply(id, response) => replies.push((id, response)),
                Command::Note(event) => notes.push(event),
            }
        }
        // Written ahead, so that a killed agent knows what it enforced; on the disk before anybody is told it is done.
        let nothing = records.is_empty() && offences.is_empty();
        let recorded = if nothing { Ok(()) } else { self.record(&records, &offences) };
        let enforced = if changes.is_empty() { Ok(()) } else { self.enforce(&changes) };
        // On another thread, and what it makes of them is waited for by nobody.
        self.closing.banned(&changes);
        // Only now: no command comes before the kernel.
        acts.iter().for_each(|act| self.runner.act(act));
        let recorded = match (nothing, replies.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => recorded.map(|()| self.sync_soon()),
            // Whoever asked is told when it is on the disk.
            (false, false) => recorded.and_then(|()| self.sync()),
        };
        notes.iter().for_each(note);
        for (id, response) in replies {
            let Some(reply) = self.waiting.remove(&id) else { continue };
            let answer = answer(&response, recorded.as_ref().err(), enforced.as_ref().err());
            let _gone = reply.send(answer.map(Reply::Whole));
        }
    }

    /// Writes to the ledger on disk. A disk that refuses never stops enforcement: it is said, and tried again with
    /// the whole ledger by [`Self::repair`].
    fn record(&mut self, changes: &[Change], offences: &[OffenceChange]) -> Result<(), String> {
        let outcome = self.store.record(changes, offences, now());
        self.on_disk(outcome)
    }

    pub(super) fn sync(&mut self) -> Result<(), String> {
        let outcome = self.store.sync();
        self.on_disk(outcome)
    }

    /// Syncs on another thread, one sync at a time: those asked for while one runs are one more.
    fn sync_soon(&mut self) {
        if self.syncing {
            self.sync_again = true;
            return;
        }
        match self.store.syncer() {
            Ok(syncer) => {
                self.syncing = true;
                let synced = self.synced.clone();
                tokio::task::spawn_blocking(move || {
                    // The loop may have ended meanwhile.
                    let _gone = synced.send(syncer.sync());
                });
            }
            Err(error) => {
                let _said = self.on_disk(Err(error));
            }
        }
    }

    pub(super) fn sync_done(&mut self, outcome: Result<(), StoreError>) {
        self.syncing = false;
        let done = self.on_disk(outcome).is_ok();
        if std::mem::take(&mut self.sync_again) && done {
            self.sync_soon();
        }
    }

    fn on_disk(&mut self, outcome: Result<(), StoreError>) -> Result<(), String> {
        outcome.map_err(|error| {
            if self.degraded.store.is_none() {
                error!("the ledger is not on disk: {error}");
            }
            self.degraded.store.insert(error.to_string()).clone()
        })
    }

    fn enforce(&mut self, changes: &[Change]) -> Result<(), String> {
        let applied = self.enforcer.apply(changes, now());
        applied.map_err(|error| {
            error!("the kernel refused: {error}");
            if let Some(prefix) = error.prefix {
                self.engine.handle(now(), Input::Applied { prefix, ok: false });
            }
            self.degraded.enforcer.insert(error.to_string()).clone()
        })
    }

    pub(super) fn repair(&mut self) {
        match self.enforcer.repair() {
            Ok(Health::Sound) if self.degraded.enforcer.is_none() => {}
            Ok(health) => {
                if health == Health::Repaired {
                    warn!("enforcement had been removed from the kernel by another program and is back");
                    self.reconcile();
                } else {
                    self.reconcile_again();
                }
            }
            Err(error) => {
                if self.degraded.enforcer.is_none() {
                    error!("enforcement is not in force: {error}");
                }
                self.degraded.enforcer = Some(error.to_string());
            }
        }
        self.tell();
        if self.degraded.store.is_some() && !self.keeping.is_too_soon() {
            let (ledger, offences) = (self.engine.ledger_changes(), self.engine.offences());
            let (positions, start) = (self.positions(), Instant::now());
            let outcome = self.store.rewrite(ledger, offences, &positions, &self.engine.counted());
            let rewritten = outcome.is_ok();
            self.kept(start, outcome);
            if rewritten && self.store.sync().is_ok() {
                info!("the ledger is on disk again");
                self.degraded.store = None;
            }
        }
    }

    /// Logs what is attached and what is not, where that has changed.
    pub(super) fn tell(&mut self) {
        let (attachments, troubles) = (self.enforcer.describe().attachments, self.enforcer.troubles());
        if attachments != self.told.0 {
            info!("enforcing on {}", attached(&attachments));
        }
        troubles
            .iter()
            .filter(|trouble| !self.told.1.contains(trouble))
            .for_each(|trouble| error!("{trouble}"));
        self.told = (attachments, troubles);
    }
}

/// What the asker is told: done means in the kernel and on disk.
fn answer(response: &Response, disk: Option<&String>, kernel: Option<&String>) -> Result<Value, CallError> {
    if let Response::Refused { reason } = response {
        return Err(CallError::refused(reason));
    }
    match (kernel, disk) {
        (None, None) => serde_json::to_value(response).map_err(|error| CallError::failed(&error.to_string())),
        (Some(kernel), _) => {
            Err(CallError::failed(&format!("in the ledger, but the kernel refused: {kernel}")))
        }
        (None, Some(disk)) => {
            Err(CallError::failed(&format!("in force now, but not on disk, so a restart forgets it: {disk}")))
        }
    }
}
