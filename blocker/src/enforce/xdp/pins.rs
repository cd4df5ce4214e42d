//! What is pinned below the folder of pins: a folder for each layout, named for its version.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use blocker_ebpf::{TOTALS, table::LAYOUT};

use super::{EnforceError, Layout, attach, refused, table};

/// Detaches and removes everything pinned below `pin_dir`, of any layout; nothing when there is nothing.
///
/// # Errors
/// When something pinned cannot be removed.
pub fn remove(pin_dir: &Path) -> Result<(), EnforceError> {
    for layout in layouts(pin_dir) {
        attach::link_pins(&layout).try_for_each(|pin| attach::let_go(&pin))?;
        remove_layout(&layout).map_err(|error| {
            refused(format!("remove what is pinned below {}", pin_dir.display()), error.to_string(), "")
        })?;
    }
    Ok(())
}

/// The folders of all layouts, of whatever version.
pub(super) fn layouts(pin_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(pin_dir).into_iter().flatten().flatten();
    let is_ours = |name: &str| name.strip_prefix('v').is_some_and(|number| number.parse::<u64>().is_ok());
    entries.filter(move |entry| is_ours(&entry.file_name().to_string_lossy())).map(|entry| entry.path())
}

/// Gives the folder of the bucket table the name that the version in its maps asks for, where that is another one: what
/// is in it is not for this program to read.
pub(super) fn set_apart(pin_dir: &Path) -> Result<(), EnforceError> {
    let pins = Layout::Buckets.pins(pin_dir);
    let Some(version) = table::foreign_version(&pins)? else { return Ok(()) };
    let to = pin_dir.join(format!("v{version}"));
    fs::rename(&pins, &to).map_err(|error| {
        refused(
            format!("set apart the table in {}", pins.display()),
            format!(
                "its layout is {version}, this blocker knows {LAYOUT}, and it cannot be renamed: {error}"
            ),
            "`blocker flush --yes` with the blocker that made it lets go of it",
        )
    })
}

/// A folder of pins, and the folders of generations in it.
pub(super) fn remove_layout(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_layout(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Whether maps are pinned there, of either layout.
pub(super) fn holds_maps(folder: &Path) -> bool {
    folder.join(TOTALS).exists()
}
