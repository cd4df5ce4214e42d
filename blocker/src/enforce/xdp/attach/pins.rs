//! Where what is attached is pinned, so that it outlives the agent: the folder on bpffs, and the names of links in it.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};

use super::{
    super::{EnforceError, dispatcher, refused},
    Mode,
};

/// The type of bpffs in statfs(2).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// The kernel does not say how a link is attached, so its pin's name does.
pub(super) fn pin_name(index: u32, mode: Mode) -> String {
    format!("link-{index}-{}", mode.name())
}

/// Removes the pin of a link, which detaches it where nobody holds it, or takes our part out of a dispatcher.
pub(in super::super) fn let_go(pin: &Path) -> Result<(), EnforceError> {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let rest = name.strip_prefix("link-").and_then(|rest| rest.strip_suffix(Mode::Dispatcher.name()));
    if let Some(index) = rest.and_then(|rest| rest.strip_suffix('-')?.parse().ok()) {
        let hint = "`xdp-loader unload` takes programs out of a dispatcher";
        dispatcher::leave(index).map_err(|cause| refused("leave the dispatcher", cause, hint))?;
    }
    fs::remove_file(pin).map_err(|error| refused(format!("remove {}", pin.display()), error.to_string(), ""))
}

/// The pins of links in a folder.
pub(in super::super) fn link_pins(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("link-")).map(|entry| entry.path())
}

/// Takes the links that are pinned in the folder of another layout, without letting go of them.
pub(in super::super) fn move_links(from: &Path, to: &Path) -> Result<(), EnforceError> {
    for pin in link_pins(from) {
        let Some(name) = pin.file_name() else { continue };
        if !to.join(name).exists() {
            fs::rename(&pin, to.join(name))
                .map_err(|error| refused(format!("move the pin {}", pin.display()), error.to_string(), ""))?;
        }
    }
    Ok(())
}

/// Makes `pins` below `pin_dir` on bpffs, mounting that where nothing is mounted yet.
pub(in super::super) fn make_pin_dir(pin_dir: &Path, pins: &Path) -> Result<(), EnforceError> {
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
pub(in super::super) fn hint(cause: &str) -> &'static str {
    if cause.contains("os error 1)") || cause.contains("os error 13)") {
        "this needs the capabilities CAP_BPF and CAP_NET_ADMIN: run as root, or with the shipped systemd unit"
    } else {
        ""
    }
}
