//! The programs of one layout: each does the same over the same maps, at another place.
//!
//! They are given to the kernel when they are first needed, so that a host which needs but one holds but one.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{Ebpf, programs::Program};

use super::{EnforceError, attach, chain, refused};

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// XDP, native and generic.
    Xdp,
    /// TCX, behind an Ethernet header.
    Tcx,
    /// TCX, where nothing is before the packet.
    TcxBare,
}

/// What they are called in an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) xdp: &'static str,
    /// For kernels without XDP over several buffers.
    pub(super) xdp_one_buffer: &'static str,
    pub(super) tcx: &'static str,
    pub(super) tcx_bare: &'static str,
}

/// Loads an object again, given the name of a program.
pub(super) type Anew<'a> = dyn Fn(&str) -> Result<Ebpf, EnforceError> + 'a;

/// The programs in an object.
pub(super) struct Programs<'a> {
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) names: Names,
    /// The object once more over the same maps, with the program by this name to be part of another.
    pub(super) anew: Box<Anew<'a>>,
}

/// A program that is in the kernel.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
    /// Why it sees the first buffer only of a frame that has several; frames of 4 kB and more may.
    pub(super) one_buffer: Option<String>,
}

impl Programs<'_> {
    /// The program, loaded.
    pub(super) fn get(&mut self, kind: Kind) -> Result<Loaded, EnforceError> {
        match kind {
            Kind::Tcx => self.load(self.names.tcx),
            Kind::TcxBare => self.load(self.names.tcx_bare),
            Kind::Xdp => self.load(self.names.xdp).or_else(|refused| {
                // Where this one is refused too, it was not for the buffers.
                let Ok(loaded) = self.load(self.names.xdp_one_buffer) else { return Err(refused) };
                Ok(Loaded { one_buffer: Some(refused.cause), ..loaded })
            }),
        }
    }

    /// The object over the same maps with its XDP program to be part of another one, and the name of that.
    pub(super) fn extension(&self, one_buffer: bool) -> Result<(Ebpf, &'static str), EnforceError> {
        let name = if one_buffer { self.names.xdp_one_buffer } else { self.names.xdp };
        Ok(((self.anew)(name)?, name))
    }

    fn load(&mut self, name: &str) -> Result<Loaded, EnforceError> {
        let failed = |error: &dyn std::error::Error| {
            let cause = chain(error);
            refused(format!("load the program {name}"), &cause, attach::hint(&cause))
        };
        let program = self.ebpf.program_mut(name).ok_or_else(|| {
            refused(format!("find the program {name}"), "the built-in object has none", "build blocker again")
        })?;
        let is_loaded = program.fd().is_ok();
        match program {
            _ if is_loaded => {}
            Program::Xdp(xdp) => xdp.load().map_err(|error| failed(&error))?,
            Program::SchedClassifier(classifier) => classifier.load().map_err(|error| failed(&error))?,
            _ => return Err(refused(format!("load the program {name}"), "it is of another kind", "")),
        }
        let fd = program.fd().map_err(|error| failed(&error))?.as_fd().try_clone_to_owned();
        let id = program.info().map_err(|error| failed(&error))?.id();
        Ok(Loaded { fd: fd.map_err(|error| failed(&error))?, id, one_buffer: None })
    }
}
