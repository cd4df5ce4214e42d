//! What is attached and what is not, as `status` says it.
#![forbid(unsafe_code)]

use super::{
    super::{EnforceError, order, refused},
    Attachments, Mode,
    held::{Attachment, State},
    ladder::reason,
    pins::hint,
};

/// Interfaces that are left alone and named one by one.
const LEFT_MAX: usize = 16;

impl Attachments {
    pub(super) fn nothing_attached(&self) -> EnforceError {
        let causes: Vec<&str> = self.refused.iter().map(|(_, why)| why.as_str()).collect();
        let names: Vec<&str> = self.refused.iter().map(|(name, _)| name.as_str()).collect();
        let cause = causes.join("; ");
        let hint = match hint(&cause) {
            // Then nftables guards the host.
            "" if self.plan.all => "XDP is tried again at the next start",
            "" => "take it out of `[enforce] interfaces`, or use `backend = \"nftables\"`",
            hint => hint,
        };
        refused(format!("attach to {}", names.join(", ")), cause, hint)
    }

    /// `eth0: native`, one for each interface that is guarded.
    pub(in super::super) fn attached(&self) -> Vec<String> {
        self.held
            .iter()
            .map(|attachment| format!("{}: {}", attachment.name, attachment.mode.name()))
            .collect()
    }

    /// Why attachments are no better, and why interfaces are left alone.
    pub(in super::super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.held.iter().filter_map(|held| self.why_no_better(held)).collect();
        notes.extend(self.kept.iter().map(|(name, why)| format!("{name}: {why}")));
        notes.extend(
            self.left.iter().take(LEFT_MAX).map(|(name, why)| format!("{name} is left alone: {why}")),
        );
        if let Some(more @ 1..) = self.left.len().checked_sub(LEFT_MAX) {
            notes.push(format!("{more} further interfaces are left alone for reasons like these"));
        }
        if self.overtaken > 0 {
            notes.push(format!(
                "programs of others that were found before blocker's by TCX since it started: {}",
                self.overtaken
            ));
        }
        if self.held.is_empty() && self.refused.is_empty() && self.missing.is_empty() {
            notes.push("there is no interface to guard yet; each is guarded as it appears".to_owned());
        }
        notes
    }

    /// Why a guarded interface has no better mode, and what that would need; nothing for the best.
    fn why_no_better(&self, held: &Attachment) -> Option<String> {
        let better = Mode::ALL.iter().take_while(|mode| **mode != held.mode);
        // There is nothing to choose about a dispatcher: it is there or not.
        let unasked = better.filter(|mode| **mode != Mode::Dispatcher && !self.plan.modes.contains(mode));
        let unasked: Vec<String> = unasked.map(|mode| format!("no {}", mode.name())).collect();
        if unasked.is_empty() {
            return (!held.reason.is_empty()).then(|| held.reason.clone());
        }
        let why = format!("{}, since `[enforce] modes` does not name it", unasked.join(" and "));
        let more = held.reason.strip_prefix(&reason(&held.name, held.mode, "")).unwrap_or(&held.reason);
        let why = if more.is_empty() { why } else { format!("{why}; {more}") };
        Some(reason(&held.name, held.mode, &why))
    }

    /// What is not as it is meant to be, looked at now.
    pub(in super::super) fn troubles(&self) -> Vec<String> {
        let held = self.held.iter().filter_map(|attachment| {
            let what = match attachment.state(&self.pins) {
                State::Sound | State::Unpinned => return None,
                State::Replaced => "another program was put into blocker's link",
                State::Detached if attachment.mode == Mode::Dispatcher => {
                    "blocker's program was taken out of the dispatcher"
                }
                State::Detached => "blocker's link was detached",
            };
            Some(format!("{} is not guarded: {what}; it is mended within a second", attachment.name))
        });
        let overtaken = self.held.iter().filter_map(|attachment| {
            let before: Vec<String> = attachment.runs_after().into_iter().map(called).collect();
            (!before.is_empty()).then(|| {
                format!(
                    "{name} is guarded behind others only: {} runs before blocker's program by TCX, and what it accepts or redirects does not come to blocker; it is not moved. Detach it or attach it after blocker's (`bpftool net show dev {name}` lists them in their order), or let blocker attach anew, before it: `bpftool link detach pinned {}`",
                    before.join(", then "),
                    attachment.pin(&self.pins).display(),
                    name = attachment.name,
                )
            })
        });
        // Where there is nothing else, [`Self::repair`] has said it.
        let refused = self.refused.iter().filter(|_| !self.held.is_empty());
        let refused = refused.map(|(name, why)| format!("{name} is not guarded: {why}"));
        let missing = self.missing.iter().map(|name| {
            format!(
                "{name} is not guarded: there is no such interface yet; it is waited for (a pattern such as \"{name}*\" is content with none)"
            )
        });
        held.chain(overtaken).chain(refused).chain(missing).chain(self.unseen.clone()).collect()
    }
}

/// A program as people can find it.
fn called(program: u32) -> String {
    match order::name(program) {
        Some(name) => format!("program {program} ({name})"),
        None => format!("program {program}"),
    }
}
