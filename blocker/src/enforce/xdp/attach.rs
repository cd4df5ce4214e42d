//! Attaching to an interface: native where the driver can, generic where it cannot, and never over somebody else.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, Xdp as Program, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use rustix::mount::{MountFlags, mount};

use super::{EnforceError, chain, link, refused};

/// The type of bpffs in statfs(2).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The program on one interface.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) interface: String,
    pub(super) mode: &'static str,
    /// Why it is not a better mode; empty for the best.
    pub(super) reason: String,
    index: u32,
    /// Held so that losing the pin alone does not end enforcement.
    link: Option<FdLink>,
}

impl Attachment {
    fn pin(&self, pins: &Path) -> PathBuf {
        pins.join(pin_name(self.index, self.mode))
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Makes it unsound, so that it is attached again.
    pub(super) fn give_up(&mut self) {
        self.link = None;
    }

    /// Whether link and pin are there and the interface is the one it was attached to.
    pub(super) fn is_sound(&self, pins: &Path) -> bool {
        self.is_live() && link::attached_to(&self.pin(pins)) == Some(self.index)
    }

    /// Whether the interface still exists under its index and we hold the link.
    pub(super) fn is_live(&self) -> bool {
        self.link.is_some() && link::interface_index(&self.interface) == Some(self.index)
    }

    /// Pins the link where somebody took the pin away.
    pub(super) fn pin_again(&mut self, pins: &Path) -> Result<(), EnforceError> {
        let path = self.pin(pins);
        if path.exists() {
            // A pin that is there while it is not sound belongs to a link that is dead.
            self.link = None;
            fs::remove_file(&path)
                .map_err(|error| refused(format!("remove {}", path.display()), error.to_string(), ""))?;
            return Err(refused(
                format!("keep XDP on {}", self.interface),
                "the link was detached",
                "it is attached again at once",
            ));
        }
        let Some(held) = self.link.take() else { return Ok(()) };
        let pinned = held.pin(&path).map_err(|error| {
            refused(format!("pin the link of {} again", self.interface), chain(&error), "")
        })?;
        self.link = Some(pinned.into());
        Ok(())
    }
}

/// The kernel does not say how a link is attached, so its pin's name does.
fn pin_name(index: u32, mode: &str) -> String {
    format!("link-{index}-{mode}")
}

const NATIVE: &str = "native";
const GENERIC: &str = "generic";

/// The interfaces' indices in this network namespace.
pub(super) fn indices(names: &[String]) -> Result<Vec<(String, u32)>, EnforceError> {
    let index_of = |name: &String| match link::interface_index(name) {
        Some(index) => Ok((name.clone(), index)),
        None => Err(refused(
            format!("attach XDP to {name:?}"),
            "there is no such interface",
            format!("there are: {}", existing().join(", ")),
        )),
    };
    names.iter().map(index_of).collect()
}

/// Unlike /sys/class/net, this shows the network namespace of the caller.
fn existing() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

/// Makes `pins` below `pin_dir` on bpffs, mounting that where nothing is mounted yet.
pub(super) fn make_pin_dir(pin_dir: &Path, pins: &Path) -> Result<(), EnforceError> {
    if pins.is_dir() {
        return Ok(());
    }
    let root = Path::new("/sys/fs/bpf");
    let below_root = pin_dir.starts_with(root);
    if below_root && !is_bpffs(root) {
        let mounted = mount("bpf", root, "bpf", MountFlags::empty(), None);
        mounted.map_err(|error| {
            refused(
                "mount bpffs at /sys/fs/bpf",
                error.to_string(),
                "run as root, or `mount -t bpf bpf /sys/fs/bpf`",
            )
        })?;
    }
    let failed = |error: io::Error| {
        refused(
            format!("make the folder {}", pins.display()),
            error.to_string(),
            "it must lie on bpffs and be writable: run as root",
        )
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(pins).map_err(failed)?;
    if is_bpffs(pins) {
        Ok(())
    } else {
        let _gone = fs::remove_dir(pins);
        Err(refused(
            format!("pin below {}", pin_dir.display()),
            "that is not on bpffs",
            "set `[enforce] pin_dir` to a folder below /sys/fs/bpf",
        ))
    }
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type.cast_unsigned() == BPF_FS_MAGIC)
}

/// What helps against a refusal of the kernel.
pub(super) fn hint(cause: &str) -> &'static str {
    if cause.contains("os error 1)") || cause.contains("os error 13)") {
        "this needs the capabilities CAP_BPF and CAP_NET_ADMIN: run as root, or with the shipped systemd unit"
    } else {
        ""
    }
}

/// Attaches the program to an interface: by swapping it into the pinned link, else natively, else generically.
pub(super) fn attach(
    program: &mut Program,
    pins: &Path,
    interface: &str,
    index: u32,
) -> Result<Attachment, EnforceError> {
    for mode in [NATIVE, GENERIC] {
        if let Some(adopted) = adopt(program, &pins.join(pin_name(index, mode)), interface, index, mode)? {
            return Ok(adopted);
        }
    }
    let what = || format!("attach XDP to {interface}");
    let (id, mode, reason) = match program.attach_to_if_index(index, XdpMode::Driver) {
        Ok(id) => (id, NATIVE, String::new()),
        Err(error) if is_taken(&error) => {
            return Err(refused(
                what(),
                "another program is attached there and is not replaced",
                "detach it, or use `backend = \"nftables\"`",
            ));
        }
        Err(native) => {
            let cause = chain(&native);
            let id = program.attach_to_if_index(index, XdpMode::Skb).map_err(|error| {
                let cause = chain(&error);
                refused(what(), &cause, hint(&cause))
            })?;
            (id, GENERIC, format!("{interface} is generic because its driver refused native XDP ({cause})"))
        }
    };
    let pin = pins.join(pin_name(index, mode));
    let link: XdpLink = program.take_link(id).map_err(|error| refused(what(), chain(&error), ""))?;
    let link: FdLink = link.try_into().map_err(|error: aya::programs::links::LinkError| {
        refused(
            what(),
            chain(&error),
            "this kernel has no XDP links (5.9 and later have); use `backend = \"nftables\"`",
        )
    })?;
    let pinned =
        link.pin(&pin).map_err(|error| refused(format!("pin {}", pin.display()), chain(&error), ""))?;
    Ok(Attachment { interface: interface.to_owned(), mode, reason, index, link: Some(pinned.into()) })
}

/// Puts the program into the link pinned at `pin`, atomically; `None` when there is none that lives.
fn adopt(
    program: &mut Program,
    pin: &Path,
    interface: &str,
    index: u32,
    mode: &'static str,
) -> Result<Option<Attachment>, EnforceError> {
    if !pin.exists() {
        return Ok(None);
    }
    if link::attached_to(pin) != Some(index) {
        // Its interface was deleted: the link is dead, and the pin holds nothing.
        fs::remove_file(pin)
            .map_err(|error| refused(format!("remove {}", pin.display()), error.to_string(), ""))?;
        return Ok(None);
    }
    let what = || format!("adopt the XDP link of {interface}");
    let failed = |error: &dyn std::error::Error| refused(what(), chain(error), hint(&chain(error)));
    let link: FdLink = PinnedLink::from_pin(pin).map_err(|error| failed(&error))?.into();
    let link: XdpLink = link.try_into().map_err(|error: aya::programs::links::LinkError| failed(&error))?;
    let id = program.attach_to_link(link).map_err(|error| failed(&error))?;
    let link = program.take_link(id).map_err(|error| failed(&error))?;
    let link: FdLink = link.try_into().map_err(|error: aya::programs::links::LinkError| failed(&error))?;
    let reason = if mode == GENERIC {
        format!("{interface} is generic since its driver refused native XDP")
    } else {
        String::new()
    };
    Ok(Some(Attachment { interface: interface.to_owned(), mode, reason, index, link: Some(link) }))
}

/// EBUSY: another link or program holds the interface; EEXIST: one in the other mode.
fn is_taken(error: &ProgramError) -> bool {
    match error {
        ProgramError::SyscallError(error) => {
            matches!(error.io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
        }
        _ => false,
    }
}

/// Detaches from interfaces that are not configured any more.
pub(super) fn drop_others(pins: &Path, attachments: &[Attachment]) {
    for entry in fs::read_dir(pins).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = attachments.iter().any(|attachment| pin_name(attachment.index, attachment.mode) == name);
        if name.starts_with("link-") && !ours {
            let _gone = fs::remove_file(entry.path());
        }
    }
}

/// Takes the links that are pinned in the folder of another layout, without letting go of them.
pub(super) fn move_links(from: &Path, to: &Path) -> Result<(), EnforceError> {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("link-") && !to.join(&name).exists() {
            fs::rename(entry.path(), to.join(&name)).map_err(|error| {
                refused(format!("move the pin {}", entry.path().display()), error.to_string(), "")
            })?;
        }
    }
    Ok(())
}
