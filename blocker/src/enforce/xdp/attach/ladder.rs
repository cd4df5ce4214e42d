//! How the program gets on an interface: each way in turn until one is to be had, and why the others are not.
#![forbid(unsafe_code)]

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::util::KernelVersion;

use super::{
    super::{
        dispatcher,
        link::{Hook, Link},
        order,
        programs::{Kind, Loaded, Programs},
        rtnl::Interface,
        select::{self, LinkLayer},
    },
    Mode,
    held::{Attachment, Facts, Hold},
    pins::pin_name,
};

/// Attaches by the first of these modes that is to be had; else says why each is not.
pub(super) fn climb(
    modes: &[Mode],
    pins: &Path,
    interface: &Interface,
    programs: &mut Programs<'_>,
) -> Result<Attachment, String> {
    let mut why = WhyNot::default();
    // Where nothing is attached there is nothing to join.
    let is_open = |mode: &&Mode| **mode != Mode::Dispatcher || interface.program.is_some();
    for mode in modes.iter().filter(is_open) {
        match attach(*mode, pins, interface, programs) {
            Ok(attachment) => {
                let reason = match (why.text(), &attachment.reason) {
                    (why, of_program) if why.is_empty() => of_program.clone(),
                    (why, of_program) => {
                        let why = reason(&interface.name, *mode, &why);
                        if of_program.is_empty() { why } else { format!("{why}; {of_program}") }
                    }
                };
                return Ok(Attachment { reason, ..attachment });
            }
            Err(cause) => why.not(*mode, cause),
        }
    }
    match why.text() {
        text if text.is_empty() => Err("`[enforce] modes` allows none".to_owned()),
        text => Err(text),
    }
}

/// Why modes were not to be had, those of one cause together.
#[derive(Debug, Default)]
struct WhyNot(Vec<(Vec<Mode>, String)>);

impl WhyNot {
    fn not(&mut self, mode: Mode, cause: String) {
        match self.0.iter_mut().find(|(_, known)| *known == cause) {
            Some((modes, _)) => modes.push(mode),
            None => self.0.push((vec![mode], cause)),
        }
    }

    /// `no native and no generic, since ..; no tcx, since ..`; nothing where nothing was refused.
    fn text(&self) -> String {
        let causes = self.0.iter().map(|(modes, cause)| {
            let modes: Vec<String> = modes.iter().map(|mode| format!("no {}", mode.name())).collect();
            format!("{}, since {cause}", modes.join(" and "))
        });
        causes.collect::<Vec<_>>().join("; ")
    }
}

pub(super) fn reason(name: &str, mode: Mode, why: &str) -> String {
    format!("{name} is {}: {why}", mode.name())
}

/// Attaches in one mode: by swapping the program into the link that is pinned for it, else by a new link.
fn attach(
    mode: Mode,
    pins: &Path,
    interface: &Interface,
    programs: &mut Programs<'_>,
) -> Result<Attachment, String> {
    let kind = kind(interface, mode)?;
    let program = programs.get(kind).map_err(|error| error.to_string())?;
    let pin = pins.join(pin_name(interface.index, mode));
    let (hold, id) = match mode.hook() {
        Some(hook) => (link(mode, hook, &pin, pins, interface, &program)?, program.id),
        None => (Hold::Dispatcher, dispatcher::join(interface.index, &pin, programs)?),
    };
    let reason = program.one_buffer.map_or_else(String::new, |why| {
        format!(
            "{}: frames over several buffers, so an MTU over some 3,500, are refused by XDP of this kernel (5.18 and later have it): {why}",
            interface.name
        )
    });
    Ok(Attachment {
        index: interface.index,
        name: interface.name.clone(),
        mode,
        kind,
        reason,
        hold,
        program: id,
        tried: Facts::of(interface),
        before: Vec::new(),
    })
}

/// What program an interface wants in a mode; or why none is to be had.
fn kind(interface: &Interface, mode: Mode) -> Result<Kind, String> {
    match (select::link_layer(interface), mode) {
        (Some(LinkLayer::Ethernet), Mode::Native | Mode::Dispatcher | Mode::Generic) => Ok(Kind::Xdp),
        (Some(LinkLayer::Ethernet), Mode::Tcx) => Ok(Kind::Tcx),
        (Some(LinkLayer::Bare), Mode::Tcx) => Ok(Kind::TcxBare),
        (Some(LinkLayer::Bare), _) => Err(
            "its packets have no Ethernet header, which XDP counts on; for such an interface TCX is the best"
                .to_owned(),
        ),
        (None, _) => Err(format!(
            "its packets have headers of link type {} before them, which no program here reads",
            interface.link_layer
        )),
    }
}

/// The link that is pinned, or a new one.
fn link(
    mode: Mode,
    hook: Hook,
    pin: &Path,
    pins: &Path,
    interface: &Interface,
    program: &Loaded,
) -> Result<Hold, String> {
    let failed = |error: io::Error| format!("its link cannot be kept: {error}");
    let link = match adopt(pin, interface.index, mode, program)? {
        Some(link) => link,
        None => {
            let link = Link::create(program.fd.as_fd(), interface.index, hook);
            let link = link.map_err(|error| cause(mode, &error, pins, interface))?;
            link.pin(pin).map_err(failed)?;
            link
        }
    };
    let id = link.info().map_err(failed)?.id;
    Ok(Hold::Link { link, id })
}

/// The link pinned at `pin` with the program in it; `None` when there is none that lives.
fn adopt(pin: &Path, index: u32, mode: Mode, program: &Loaded) -> Result<Option<Link>, String> {
    if !pin.exists() {
        return Ok(None);
    }
    let found = Link::open(pin).and_then(|link| Ok((link.info()?, link)));
    if let Ok((info, link)) = found
        && info.interface == Some(index)
        && info.is_tcx == (mode == Mode::Tcx)
        && link.update(program.fd.as_fd()).is_ok()
    {
        return Ok(Some(link));
    }
    // Its interface was deleted, or it is none of ours: the pin holds nothing that is of use.
    fs::remove_file(pin).map_err(|error| format!("{} cannot be removed: {error}", pin.display()))?;
    Ok(None)
}

/// Why a link was refused, and what would help.
fn cause(mode: Mode, error: &io::Error, pins: &Path, interface: &Interface) -> String {
    let at_least = |major, minor| {
        KernelVersion::current().is_ok_and(|current| current >= KernelVersion::new(major, minor, 0))
    };
    let is_own_generic = pins.join(pin_name(interface.index, Mode::Generic)).exists();
    match (mode, error.raw_os_error()) {
        (Mode::Native, Some(libc::EBUSY | libc::EEXIST)) if is_own_generic => {
            "blocker itself is attached as generic XDP".to_owned()
        }
        (Mode::Native | Mode::Generic, Some(libc::EBUSY | libc::EEXIST)) => {
            let which = interface.program.map_or_else(
                || "a program of an interface above it".to_owned(),
                |id| {
                    let name = order::name(id).map_or_else(String::new, |name| format!(", {name}"));
                    format!("another program (id {id}{name})")
                },
            );
            format!("{which} is attached by XDP and is not replaced; it would have to be detached")
        }
        (Mode::Native, Some(libc::EOPNOTSUPP)) => {
            let kind = if interface.kind.is_empty() { "network card" } else { &interface.kind };
            let help = match interface.lower {
                Some(_) => "that of the interface below it may have: name that one in `[enforce] interfaces`",
                None => "that of a newer kernel may have",
            };
            format!("its driver ({kind}) has no native XDP; {help}")
        }
        (Mode::Tcx, _) if !at_least(6, 6) => "this kernel has no TCX (6.6 and later have)".to_owned(),
        (Mode::Native | Mode::Generic, _) if !at_least(5, 9) => {
            "this kernel has no links for XDP (5.9 and later have)".to_owned()
        }
        (Mode::Native, Some(libc::EINVAL | libc::ERANGE)) => format!(
            "its driver refuses it as the interface is set up, with an MTU of {} ({error}); it may take it with a smaller one",
            interface.mtu
        ),
        _ => format!("the kernel refuses it ({error})"),
    }
}
