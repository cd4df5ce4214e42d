//! The program on one interface: what keeps it there, and what others have made of that.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{
    super::{
        EnforceError, dispatcher,
        link::Link,
        order,
        programs::{Kind, Programs},
        refused,
        rtnl::Interface,
    },
    Mode,
    pins::pin_name,
};

/// The program on one interface.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) kind: Kind,
    /// Why it is not a better mode, and what that would need; empty for the best.
    pub(super) reason: String,
    pub(super) hold: Hold,
    pub(super) program: u32,
    pub(super) tried: Facts,
    /// Programs of others that ran before it when that was looked at last, by their ids.
    pub(super) before: Vec<u32>,
}

/// What keeps a program where it is.
#[derive(Debug)]
pub(super) enum Hold {
    /// Held so that losing the pin alone does not end enforcement.
    Link { link: Link, id: u32 },
    /// The pins of the dispatcher that it is in; it is pinned with us to say so.
    Dispatcher,
}

/// What a better mode may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    mtu: u32,
    master: Option<u32>,
    program: Option<u32>,
}

impl Facts {
    pub(super) fn of(interface: &Interface) -> Self {
        Self { mtu: interface.mtu, master: interface.master, program: interface.program }
    }
}

/// What became of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Sound,
    /// Somebody put another program into the link.
    Replaced,
    /// Somebody removed the pin, or put another one in its place.
    Unpinned,
    /// Somebody detached the link, or the interface is gone.
    Detached,
}

impl Attachment {
    pub(super) fn pin(&self, pins: &Path) -> PathBuf {
        pins.join(pin_name(self.index, self.mode))
    }

    pub(super) fn state(&self, pins: &Path) -> State {
        let Hold::Link { link, id } = &self.hold else {
            return match dispatcher::holds(self.index, self.program) {
                false => State::Detached,
                true if self.pin(pins).exists() => State::Sound,
                true => State::Unpinned,
            };
        };
        let Ok(info) = link.info() else { return State::Detached };
        if info.interface != Some(self.index) {
            return State::Detached;
        }
        if info.program != self.program {
            return State::Replaced;
        }
        let pinned = Link::open(&self.pin(pins)).and_then(|link| link.info());
        if pinned.is_ok_and(|pinned| pinned.id == *id) { State::Sound } else { State::Unpinned }
    }

    /// The ids of others' programs that run before it and may let pass what it would drop. XDP has but one program, and a
    /// dispatcher does as its own order says.
    pub(super) fn runs_after(&self) -> Vec<u32> {
        // Where the kernel cannot tell, there is no such order.
        let is_one_of_many = self.mode == Mode::Tcx;
        is_one_of_many.then(|| order::before(self.program, self.index).ok()).flatten().unwrap_or_default()
    }

    /// Looks at what runs before it. How many programs came there since the last time.
    pub(super) fn look_before(&mut self) -> u64 {
        let before = self.runs_after();
        let came = before.iter().filter(|id| !self.before.contains(id)).count();
        self.before = before;
        came as u64
    }

    /// Puts the program that belongs there into the link, or into the next dispatcher.
    pub(super) fn swap(&mut self, pins: &Path, programs: &mut Programs<'_>) -> Result<(), EnforceError> {
        let failed = |name: &str, cause: String| {
            refused(format!("put the program into the place of the one on {name}"), cause, "")
        };
        match &self.hold {
            Hold::Link { link, .. } => {
                let program = programs.get(self.kind)?;
                let updated = link.update(program.fd.as_fd());
                self.program = program.id;
                updated.map_err(|error| failed(&self.name, error.to_string()))
            }
            Hold::Dispatcher => {
                let joined = dispatcher::join(self.index, &self.pin(pins), programs);
                self.program = joined.map_err(|cause| failed(&self.name, cause))?;
                Ok(())
            }
        }
    }

    /// Pins the link where its pin is gone or another's.
    pub(super) fn pin_again(&mut self, pins: &Path, programs: &mut Programs<'_>) -> Result<(), EnforceError> {
        let Hold::Link { link, .. } = &self.hold else { return self.swap(pins, programs) };
        let path = self.pin(pins);
        let failed =
            |error: io::Error| refused(format!("pin the link of {} again", self.name), error.to_string(), "");
        if path.exists() {
            fs::remove_file(&path).map_err(failed)?;
        }
        link.pin(&path).map_err(failed)
    }
}
