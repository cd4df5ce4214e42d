//! The allowlist in the table: entries that pass, and bans inside them, which sleep.
#![forbid(unsafe_code)]

use blocker_ebpf::table::PASSES;

use super::{
    super::memory::Memory, Entry, Filling, Refusal, Writer, bury, prints::fingerprint, search::Located,
};
use crate::net::Prefix;

impl Writer {
    /// Lets these pass, whatever bans cover them.
    pub(in super::super) fn allow(
        &mut self,
        memory: &mut impl Memory,
        prefixes: &[Prefix],
    ) -> Result<(), Refusal> {
        let fresh: Vec<Prefix> =
            prefixes.iter().copied().filter(|prefix| self.allowed.insert(*prefix)).collect();
        let done = self.settle(memory, &fresh).and_then(|()| {
            for prefix in &fresh {
                let print = fingerprint(*prefix, self.seed, false);
                match self.room(memory, print) {
                    Located::At(_) => continue,
                    Located::NoRoom => return Err(Refusal::NoRoom),
                    Located::Free(slot) => {
                        self.count(memory, *prefix, false);
                        let prefix = *prefix;
                        self.fill(
                            memory,
                            slot,
                            Filling { prefix, print, is_dormant: false, end: PASSES, packets: 0 },
                        );
                    }
                }
            }
            Ok(())
        });
        if done.is_err() {
            for prefix in &fresh {
                self.allowed.remove(*prefix);
            }
            // Bans that were laid to sleep are woken; where one finds no room, the caller makes the table anew.
            let _refused_anyway = self.settle(memory, &fresh);
        }
        done
    }

    /// Lets a prefix pass no longer.
    pub(in super::super) fn disallow(
        &mut self,
        memory: &mut impl Memory,
        prefix: Prefix,
    ) -> Result<(), Refusal> {
        if !self.allowed.remove(prefix) {
            return Ok(());
        }
        if let Located::At(slot) = self.locate(memory, fingerprint(prefix, self.seed, false)) {
            bury(memory, slot, prefix);
            self.uncount(memory, prefix, false);
        }
        self.settle(memory, &[prefix])
    }

    pub(super) fn is_allowed(&self, prefix: Prefix) -> bool {
        self.allowed.covering(prefix).is_some()
    }

    /// Moves the bans inside these prefixes to the fingerprint that is theirs now.
    pub(super) fn settle(&mut self, memory: &mut impl Memory, within: &[Prefix]) -> Result<(), Refusal> {
        if self.bans == 0 || within.is_empty() {
            return Ok(());
        }
        for entry in self.scan(memory) {
            let is_within = within.iter().any(|prefix| prefix.covers(entry.prefix));
            let is_dormant = self.is_allowed(entry.prefix);
            if !entry.is_ban() || !is_within || entry.is_dormant == is_dormant {
                continue;
            }
            let print = fingerprint(entry.prefix, self.seed, is_dormant);
            match self.room(memory, print) {
                // The other half of a move that was cut short.
                Located::At(_) => self.uncount(memory, entry.prefix, true),
                Located::Free(slot) => {
                    let Entry { prefix, end, packets, .. } = entry;
                    self.fill(memory, slot, Filling { prefix, print, is_dormant, end, packets });
                }
                Located::NoRoom => return Err(Refusal::NoRoom),
            }
            // Not where it was found: room may have been made by moving it.
            if let Located::At(slot) = self.locate(memory, fingerprint(entry.prefix, self.seed, !is_dormant))
            {
                bury(memory, slot, entry.prefix);
            }
        }
        Ok(())
    }
}
