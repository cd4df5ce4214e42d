//! What is attached where: one program an interface, by the best way that interface allows, and never over somebody
//! else's.
//!
//! The ways are tried in order: native XDP, TCX, generic XDP. Each link is pinned under a name that says the interface
//! and the way; a restart goes by these names and swaps the program atomically. An interface that is guarded stays so
//! as long as it exists, whatever becomes of its name, its addresses or its place; [`select`] decides about the rest
//! each time something changes. Where the way in force is not the best, the better ones are tried again when something
//! changes about the interface, and the worse link goes once the better one is there. Where several programs may be
//! attached, ours is put first; who is put before it later stays there, and is said.
#![forbid(unsafe_code)]

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use super::{
    EnforceError, Health, dispatcher,
    link::Hook,
    programs::Programs,
    refused,
    rtnl::{self, INTERFACES_MAX, Interface, Watch},
    select::{self, Interfaces, Verdict},
};

mod held;
mod ladder;
mod pins;
mod report;

use held::{Attachment, Facts, State};
use ladder::{climb, reason};
pub(super) use pins::{hint, let_go, link_pins, make_pin_dir, move_links};

/// Repairs between two looks at all interfaces where no change was told: not all of them are.
const SCAN_EVERY: u32 = 10;

/// A way to run the program on what an interface receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// XDP in the driver: before there is a packet buffer.
    Native,
    /// XDP, as one of the programs that libxdp's dispatcher calls.
    Dispatcher,
    /// Before everything else in the stack, beside other programs; Linux 6.6 and later.
    Tcx,
    /// XDP in the stack.
    Generic,
}

impl Mode {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [Self::Native, Self::Dispatcher, Self::Tcx, Self::Generic];

    /// As it is written in the configuration, in `status` and in the names of pins.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Dispatcher => "dispatcher",
            Self::Tcx => "tcx",
            Self::Generic => "generic",
        }
    }

    /// Where a link of our own is; in a dispatcher it is another's.
    fn hook(self) -> Option<Hook> {
        match self {
            Self::Native => Some(Hook::Native),
            Self::Dispatcher => None,
            Self::Tcx => Some(Hook::Tcx),
            Self::Generic => Some(Hook::Generic),
        }
    }
}

/// What to attach to, and how.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) wanted: Interfaces,
    /// Patterns of names that are not meant, whatever else says so.
    pub(super) exclude: Vec<String>,
    /// In the order in which they are tried.
    pub(super) modes: Vec<Mode>,
    /// Whether one interface that cannot be attached to is reason enough not to begin.
    pub(super) all: bool,
}

/// Everything that is attached, and why the rest is not.
#[derive(Debug)]
pub(super) struct Attachments {
    plan: Plan,
    pins: PathBuf,
    /// `None` where the kernel tells us nothing; then all interfaces are looked at each time.
    watch: Option<Watch>,
    held: Vec<Attachment>,
    /// Interfaces that are to be guarded and cannot be, and why.
    refused: Vec<(String, String)>,
    /// Interfaces that are named and not there.
    missing: Vec<String>,
    /// Interfaces that are left alone, and why.
    left: Vec<(String, String)>,
    /// Interfaces that keep their guard although they are not asked for any more, and why.
    kept: Vec<(String, String)>,
    /// Why the interfaces could not be looked at, or not all of them.
    unseen: Option<String>,
    /// Programs that others put before ours where several may be, since the start.
    overtaken: u64,
    since_scan: u32,
}

impl Attachments {
    /// Attaches to all that there is to attach to, and lets go of what is pinned beside that.
    pub(super) fn open(plan: Plan, pins: &Path, programs: &mut Programs<'_>) -> Result<Self, EnforceError> {
        let before: Vec<PathBuf> = link_pins(pins).collect();
        let mut this = Self {
            plan,
            pins: pins.to_owned(),
            watch: Watch::new().ok(),
            held: Vec::new(),
            refused: Vec::new(),
            missing: Vec::new(),
            left: Vec::new(),
            kept: Vec::new(),
            unseen: None,
            overtaken: 0,
            since_scan: 0,
        };
        this.scan(programs)?;
        if !this.refused.is_empty() && (this.plan.all || this.held.is_empty()) {
            for attachment in &this.held {
                let pin = attachment.pin(pins);
                if !before.contains(&pin) {
                    let _gone = let_go(&pin);
                }
            }
            return Err(this.nothing_attached());
        }
        for pin in link_pins(pins) {
            if !this.held.iter().any(|attachment| attachment.pin(pins) == pin) {
                let _gone = let_go(&pin);
            }
        }
        this.look_before();
        Ok(this)
    }

    /// Readable once interfaces have changed; [`Self::repair`] is then to be called.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(|watch| watch.as_fd())
    }

    /// Puts back what others took away, and follows the interfaces.
    pub(super) fn repair(&mut self, programs: &mut Programs<'_>) -> Result<Health, EnforceError> {
        let changed = self.watch.as_ref().is_none_or(Watch::take);
        self.since_scan += 1;
        let mut health = Health::Sound;
        let mut detached = false;
        // One that cannot be mended keeps none of the others from it.
        let mut outcome = Ok(());
        for attachment in &mut self.held {
            let mended = match attachment.state(&self.pins) {
                State::Sound => continue,
                State::Replaced => attachment.swap(&self.pins, programs),
                State::Unpinned => attachment.pin_again(&self.pins, programs),
                State::Detached => {
                    detached = true;
                    continue;
                }
            };
            health = Health::Repaired;
            outcome = outcome.and(mended);
        }
        let waits = !(self.refused.is_empty() && self.missing.is_empty() && self.unseen.is_none());
        if (changed || detached || waits || self.since_scan >= SCAN_EVERY) && self.scan(programs)? {
            health = Health::Repaired;
        }
        self.look_before();
        if self.held.is_empty() && !self.refused.is_empty() {
            return Err(self.nothing_attached());
        }
        outcome.map(|()| health)
    }

    /// Counts who has put a program before ours. Nobody is moved, and we do not move either: two that each want to be first
    /// would go on for ever.
    fn look_before(&mut self) {
        self.overtaken += self.held.iter_mut().map(Attachment::look_before).sum::<u64>();
    }

    /// Puts other programs into the place of those that are attached, after all maps were replaced. Where that fails,
    /// the rest is swapped all the same, and [`Self::repair`] tries again.
    pub(super) fn swap(&mut self, programs: &mut Programs<'_>) -> Result<(), EnforceError> {
        let mut outcome = Ok(());
        for attachment in &mut self.held {
            // Whatever program is in the link now is none of these.
            attachment.program = 0;
            let swapped = attachment.swap(&self.pins, programs);
            outcome = outcome.and(swapped);
        }
        outcome
    }

    /// Looks at all interfaces. Whether something was attached again that had been lost.
    fn scan(&mut self, programs: &mut Programs<'_>) -> Result<bool, EnforceError> {
        let all = match rtnl::interfaces() {
            Ok(all) => all,
            Err(error) if self.held.is_empty() => {
                return Err(refused("look at the interfaces", error.to_string(), "this needs AF_NETLINK"));
            }
            Err(error) => {
                self.unseen = Some(format!("the interfaces cannot be looked at: {error}"));
                return Ok(false);
            }
        };
        self.since_scan = 0;
        self.unseen = (all.len() >= INTERFACES_MAX)
            .then(|| format!("there are more than {INTERFACES_MAX} interfaces; the rest is not looked at"));
        let mut lost: Vec<(u32, String)> = Vec::new();
        let pins = &self.pins;
        self.held.retain(|attachment| {
            let is_there = all.iter().any(|interface| interface.index == attachment.index);
            let is_kept = is_there && attachment.state(pins) != State::Detached;
            if !is_kept {
                // The link is dead, or in another namespace now; its pin would be taken for that of a new interface.
                let _gone = fs::remove_file(attachment.pin(pins));
                if attachment.mode == Mode::Dispatcher && !is_there {
                    dispatcher::forget(attachment.index, attachment.program);
                }
                lost.push((attachment.index, attachment.name.clone()));
            }
            is_kept
        });
        self.missing = select::missing(&self.plan.wanted, &all).into_iter().map(str::to_owned).collect();
        for list in [&mut self.refused, &mut self.left, &mut self.kept] {
            list.clear();
        }
        let mut again = false;
        let verdicts = select::select(&self.plan.wanted, &self.plan.exclude, &all);
        for (interface, verdict) in all.iter().zip(verdicts) {
            let held = self.held.iter().position(|attachment| attachment.index == interface.index);
            match (verdict, held) {
                (verdict, Some(place)) => {
                    if verdict != Verdict::Guard && matches!(self.plan.wanted, Interfaces::Named(_)) {
                        let why =
                            "`[enforce] interfaces` does not name it; it is guarded until the next start";
                        self.kept.push((interface.name.clone(), why.to_owned()));
                    }
                    self.follow(place, interface, programs);
                }
                (Verdict::Guard, None) => {
                    if self.begin(interface, programs) {
                        again |= lost
                            .iter()
                            .any(|(index, name)| *index == interface.index || *name == interface.name);
                    }
                }
                (Verdict::Leave(why), None) => self.left.push((interface.name.clone(), why)),
                (Verdict::Ignore, None) => {}
            }
        }
        Ok(again)
    }

    /// Attaches to an interface that is not guarded yet.
    fn begin(&mut self, interface: &Interface, programs: &mut Programs<'_>) -> bool {
        match climb(&self.plan.modes, &self.pins, interface, programs) {
            Ok(attachment) => {
                self.held.push(attachment);
                true
            }
            Err(why) => {
                self.refused.push((interface.name.clone(), why));
                false
            }
        }
    }

    /// Goes with an interface that is guarded and has perhaps changed.
    fn follow(&mut self, place: usize, interface: &Interface, programs: &mut Programs<'_>) {
        let Some(held) = self.held.get_mut(place) else { return };
        // The reason names it as it was called then.
        held.name.clone_from(&interface.name);
        let better = self.plan.modes.iter().position(|mode| *mode == held.mode).unwrap_or(0);
        if better == 0 || held.tried == Facts::of(interface) {
            return;
        }
        held.tried = Facts::of(interface);
        let modes = self.plan.modes.get(..better).unwrap_or_default();
        match climb(modes, &self.pins, interface, programs) {
            Ok(attachment) => {
                let worse = std::mem::replace(held, attachment);
                // What stays attached drops the same, and finds nothing left to drop.
                let _gone = let_go(&worse.pin(&self.pins));
            }
            Err(why) => held.reason = reason(&interface.name, held.mode, &why),
        }
    }
}
