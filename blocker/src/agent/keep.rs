//! Keeps how far every source was read together with what was counted up to there, so that a killed agent goes on where
//! it was: no failure lost, none counted twice.
//!
//! A group commit: the first failure after one sets the time of the next, and all that comes until then goes with it.
//! It comes after the kernel has the bans, never before. Where a commit takes long the next one waits in proportion, so
//! that a slow disk takes a bounded share of the loop's time.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Agent;
use crate::{
    cli::clean,
    source::{file, journal},
    store::{Read, StoreError},
};

/// How long a failure may be counted and not kept. A line in a file or journal is then read again; a datagram cannot be,
/// so this is what a SIGKILL can lose of it.
pub(super) const KEEP_EVERY: Duration = Duration::from_millis(250);
/// A commit takes at most the so-many-th part of the time.
const SHARE: u32 = 10;
/// The longest wait, however slow the disk is.
const KEEP_EVERY_MAX: Duration = Duration::from_secs(10);

/// The stored positions, by what they are of.
#[derive(Debug, Default)]
pub(super) struct Positions {
    pub(super) files: Vec<file::Position>,
    pub(super) journals: Vec<journal::JournalPosition>,
}

impl Positions {
    /// Where one is not understood, nothing that was kept with it is used either.
    pub(super) fn read(read: &mut Read) -> Self {
        let mut all = Self::default();
        for (name, json) in &read.positions {
            if let Ok(position) = serde_json::from_str::<file::Position>(json)
                && position.v == 1
            {
                all.files.push(position);
            } else if let Ok(position) = serde_json::from_str::<journal::JournalPosition>(json)
                && position.v == 1
            {
                all.journals.push(position);
            } else {
                let why = format!(
                    "the read position of {} is of a form that this version does not know",
                    clean(name)
                );
                *read = Read::refused(&why);
                return Self::default();
            }
        }
        all
    }
}

/// When the next commit is due, and what came of the last.
#[derive(Debug)]
pub(super) struct Keeping {
    due: Option<Instant>,
    every: Duration,
    /// Before this, a disk that refused is not tried again.
    again_at: Option<Instant>,
    /// Lines were read since the last commit, failures or not.
    pub(super) read: bool,
    refused: bool,
}

impl Default for Keeping {
    /// What is read from now on begins where the sources stand now, which is not kept yet.
    fn default() -> Self {
        Self { due: None, every: KEEP_EVERY, again_at: None, read: true, refused: false }
    }
}

impl Keeping {
    /// Whether the whole ledger was just tried, in vain. Of a million bans a try takes seconds.
    pub(super) fn is_too_soon(&self) -> bool {
        self.again_at.is_some_and(|at| Instant::now() < at)
    }
}

impl Agent {
    /// Sets the time of the next commit where there is something to keep, and commits when it has come. Called after
    /// everything the engine said is carried out.
    pub(super) fn keep_in_time(&mut self) {
        let instant = Instant::now();
        if self.files.take_opened() {
            return self.keep();
        }
        match self.keeping.due {
            Some(due) if due <= instant => self.keep(),
            None if self.engine.has_news() && self.degraded.store.is_none() => {
                self.keeping.due = Some(instant + self.keeping.every);
            }
            _ => {}
        }
    }

    /// When [`Self::keep_in_time`] is to be called.
    pub(super) fn keep_at(&self) -> Option<Instant> {
        self.keeping.due
    }

    /// Commits, unless nothing was read or counted.
    pub(super) fn keep_if_read(&mut self) {
        if self.keeping.read || self.engine.has_news() {
            self.keep();
        }
    }

    fn keep(&mut self) {
        if self.degraded.store.is_some() {
            // The ledger on disk may lack bans that were made for what is counted: `repair` writes all of it at once.
            self.keeping.due = None;
            return;
        }
        let positions = self.positions();
        let start = Instant::now();
        let outcome = self.store.keep(&positions, &self.engine.counted());
        self.kept(start, outcome);
    }

    /// What came of a commit that began at `start`.
    pub(super) fn kept(&mut self, start: Instant, outcome: Result<(), StoreError>) {
        self.keeping.due = None;
        self.keeping.every = (start.elapsed() * SHARE).clamp(KEEP_EVERY, KEEP_EVERY_MAX);
        self.keeping.again_at = None;
        match outcome {
            Ok(()) => {
                self.engine.kept();
                self.keeping.read = false;
                if std::mem::take(&mut self.keeping.refused) {
                    info!("read positions are kept again");
                }
            }
            Err(error) => {
                // The next commit has it all; until then a restart reads from the last one.
                self.keeping.every = KEEP_EVERY_MAX;
                self.keeping.again_at = Some(Instant::now() + start.elapsed() * SHARE);
                if !std::mem::replace(&mut self.keeping.refused, true) {
                    warn!("read positions are not kept: {error}");
                }
                // `repair` writes everything anew as soon as the disk takes it.
                self.degraded.store.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// How far every source was read, by name.
    pub(super) fn positions(&self) -> Vec<(String, String)> {
        let files = self.files.positions();
        let files = files.iter().map(|position| (position.key(), serde_json::to_string(position)));
        let journals = self.journal.positions();
        let journals = journals.iter().map(|position| (position.key(), serde_json::to_string(position)));
        files.chain(journals).filter_map(|(key, json)| Some((key, json.ok()?))).collect()
    }
}
