//! A place in a libxdp dispatcher: one XDP program on an interface that calls others, each in a slot of its own.
//!
//! Whoever wants in or out builds the next dispatcher with the programs of the present one, pins it where the protocol
//! says, and swaps the two atomically (xdp-tools, lib/libxdp/protocol.org). So it is done here too: what others have in
//! it stays in it, with the priority and the actions that they asked for. Packets of banned sources die first.
//!
//! Our part is known by its name, so one blocker is all that a dispatcher holds.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData},
    programs::{
        Extension, ProgramError, ProgramFd, Xdp,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use rustix::fs::{FlockOperation, flock};

use super::{attach, chain, programs::Programs};

mod format;
mod swap;

use format::{Config, HAS_FRAGS, SLOTS, Slot, V1_BYTES, V2_BYTES};
use swap::Attached;

const NAME: &str = "xdp_dispatcher";
/// What libxdp gives to whoever asks for nothing is 50; the lowest goes first.
const PRIORITY: u32 = 5;
/// Who changes a dispatcher at the same time is met again so often.
const ATTEMPTS: usize = 3;
/// How long somebody else may hold the lock, times [`LOCK_PAUSE`].
const LOCK_ATTEMPTS: usize = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// libxdp's is 16 kB.
const OBJECT_BYTES_MAX: u64 = 1 << 20;
/// Names that the kernel keeps of programs.
const KERNEL_NAME_BYTES: usize = 15;

/// Why something cannot be done, for `status`.
type Because<T> = Result<T, String>;

/// A program in a dispatcher.
struct Part {
    name: String,
    slot: Slot,
    /// `None` where it is ours, and yet to be loaded.
    program: Option<Extension>,
}

/// The dispatcher on an interface.
struct Dispatcher {
    program: ProgramFd,
    config: Config,
    parts: Vec<Part>,
    folder: PathBuf,
}

/// What became of an attempt to swap.
enum Swapped {
    Done,
    /// Somebody else was faster.
    Changed,
}

/// Whether a program by this name, as the kernel keeps it, is ours.
fn is_ours(name: &str) -> bool {
    use blocker_ebpf::{PROGRAM, PROGRAM_ONE_BUFFER, table};
    [PROGRAM, PROGRAM_ONE_BUFFER, table::PROGRAM, table::PROGRAM_ONE_BUFFER]
        .iter()
        .any(|ours| ours.get(..KERNEL_NAME_BYTES).unwrap_or(ours) == name)
}

/// Puts our program into the dispatcher on an interface, in the place of what we have in it already; its id. It is
/// pinned at `marker` too, which says that there is something to [`leave`].
pub(super) fn join(index: u32, marker: &Path, programs: &mut Programs<'_>) -> Because<u32> {
    if !root().exists() {
        return Err(format!(
            "the program there is none of libxdp's, which has pinned nothing in {}",
            root().display()
        ));
    }
    for _ in 0..ATTEMPTS {
        let _lock = lock()?;
        let present =
            swap::attached(index).map_err(|error| format!("its program cannot be asked for: {error}"))?;
        let present = present.ok_or("there is none")?;
        let mut old = Dispatcher::read(index, &present)?.ok_or_else(|| {
            format!("the program that is attached by XDP (id {}) is none of libxdp's", present.program)
        })?;
        old.parts.retain(|part| !is_ours(&part.name));
        if old.parts.len() >= SLOTS {
            return Err(format!("all {SLOTS} places in it are taken"));
        }
        let one_buffer =
            programs.get(super::programs::Kind::Xdp).map_err(|error| error.to_string())?.one_buffer;
        let (mut ebpf, name) = programs.extension(one_buffer.is_some()).map_err(|error| error.to_string())?;
        let flags = if one_buffer.is_none() { HAS_FRAGS } else { 0 };
        let slot = Slot { actions: format::PASS_ON, priority: PRIORITY, flags };
        let place =
            old.parts.partition_point(|part| (part.slot.priority, part.name.as_str()) < (PRIORITY, name));
        old.parts.insert(place, Part { name: name.to_owned(), slot, program: None });
        let program = ebpf.program_mut(name).ok_or("the built-in object has no such program")?;
        let ours: &mut Extension = program.try_into().map_err(|error: ProgramError| chain(&error))?;
        if matches!(old.rebuild(index, &present, Some((ours, marker)))?, Swapped::Done) {
            return ours.info().map(|info| info.id()).map_err(|error| chain(&error));
        }
    }
    Err("others keep changing it".to_owned())
}

/// Takes our program out of the dispatcher on an interface, and takes the dispatcher away where nobody else is in it.
/// Nothing where there is none, or where we are not in it.
pub(super) fn leave(index: u32) -> Because<()> {
    for _ in 0..ATTEMPTS {
        let Ok(Some(present)) = swap::attached(index) else { return Ok(()) };
        if !root().exists() {
            return Ok(());
        }
        let _lock = lock()?;
        let Some(mut old) = Dispatcher::read(index, &present)? else { return Ok(()) };
        let Some(place) = old.parts.iter().position(|part| is_ours(&part.name)) else { return Ok(()) };
        old.parts.retain(|part| !is_ours(&part.name));
        match old.rebuild(index, &present, None) {
            Ok(Swapped::Done) => return Ok(()),
            Ok(Swapped::Changed) => {}
            // An empty slot passes everything on.
            Err(why) => {
                let link = old.folder.join(format!("prog{place}-link"));
                return fs::remove_file(link).map_err(|_| why);
            }
        }
    }
    Err("others keep changing the dispatcher".to_owned())
}

/// Whether the program by this id is in the dispatcher that is on the interface now, whoever built that.
pub(super) fn holds(index: u32, program: u32) -> bool {
    let Ok(Some(present)) = swap::attached(index) else { return false };
    pinned_in(&folder(index, present.program), program)
}

/// Removes what the dispatchers of an interface that is gone have left, where this program was in them.
pub(super) fn forget(index: u32, program: u32) {
    let start = format!("dispatch-{index}-");
    for entry in fs::read_dir(root()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&start) && pinned_in(&entry.path(), program) {
            let _gone = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a link of this program is pinned in the folder of a dispatcher.
fn pinned_in(folder: &Path, program: u32) -> bool {
    (0..SLOTS).any(|place| {
        let link = PinnedLink::from_pin(folder.join(format!("prog{place}-link")));
        link.and_then(|link| FdLink::from(link).info()).is_ok_and(|info| info.program_id() == program)
    })
}

/// Where libxdp pins (libxdp(3), "LIBXDP_BPFFS").
fn root() -> PathBuf {
    std::env::var_os("LIBXDP_BPFFS").map_or_else(|| PathBuf::from("/sys/fs/bpf"), PathBuf::from).join("xdp")
}

fn folder(index: u32, dispatcher: u32) -> PathBuf {
    root().join(format!("dispatch-{index}-{dispatcher}"))
}

/// The protocol's lock; held until it is dropped.
fn lock() -> Because<File> {
    let at = root();
    let failed = |error: io::Error| format!("{} cannot be locked: {error}", at.display());
    let folder = File::open(&at).map_err(failed)?;
    for _ in 0..LOCK_ATTEMPTS {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(format!("somebody else keeps {} locked", at.display()))
}

impl Dispatcher {
    /// What is attached; `None` where that is no dispatcher.
    fn read(index: u32, present: &Attached) -> Because<Option<Self>> {
        let failed = |error: &dyn std::error::Error| {
            let cause = chain(error);
            let hint = match attach::hint(&cause) {
                "" => "",
                _ => "; looking at the programs of others needs CAP_SYS_ADMIN",
            };
            format!("the program that is attached by XDP cannot be looked at: {cause}{hint}")
        };
        let mut found = None;
        for program in loaded_programs() {
            let program = program.map_err(|error| failed(&error))?;
            if program.id() == present.program {
                found = Some(program);
                break;
            }
        }
        let Some(info) = found else { return Ok(None) };
        if info.name() != NAME.as_bytes() {
            return Ok(None);
        }
        let maps = info.map_ids().map_err(|error| failed(&error))?.unwrap_or_default();
        let [map] = maps.as_slice() else { return Ok(None) };
        let data = MapData::from_id(*map).map_err(|error| failed(&error))?;
        let bytes = data.info().map_err(|error| failed(&error))?.value_size();
        let value = match bytes {
            V1_BYTES => value::<{ V1_BYTES as usize }>(data),
            V2_BYTES => value::<{ V2_BYTES as usize }>(data),
            _ => Err(format!("of {bytes} bytes")),
        };
        let unknown = |what: String| format!("its dispatcher is of a version that is not known here: {what}");
        let config = Config::parse(&value.map_err(unknown)?).map_err(unknown)?;
        let folder = folder(index, present.program);
        let parts = config.slots.iter().enumerate().map(|(place, slot)| {
            let pin = folder.join(format!("prog{place}-prog"));
            let program = Extension::from_pin(&pin).map_err(|error| {
                format!("what is in it cannot be taken over: {}: {}", pin.display(), chain(&error))
            })?;
            let info = program.info().map_err(|error| failed(&error))?;
            let name = String::from_utf8_lossy(info.name()).into_owned();
            Ok(Part { name, slot: *slot, program: Some(program) })
        });
        let parts = parts.collect::<Because<Vec<Part>>>()?;
        let program = info.fd().map_err(|error| failed(&error))?;
        Ok(Some(Self { program, config, parts, folder }))
    }

    /// Puts a dispatcher with these parts, `ours` among them, in the place of this one.
    fn rebuild(
        &mut self,
        index: u32,
        present: &Attached,
        mut ours: Option<(&mut Extension, &Path)>,
    ) -> Because<Swapped> {
        let swapped = if self.parts.is_empty() {
            swap::replace(index, None, self.program.as_fd(), present.mode)
        } else {
            self.config.slots = self.parts.iter().map(|part| part.slot).collect();
            self.config.frags = self.parts.iter().all(|part| part.slot.flags & HAS_FRAGS != 0);
            let mut ebpf = load(&self.config)?;
            let next: &mut Xdp = ebpf
                .program_mut(NAME)
                .and_then(|program| program.try_into().ok())
                .ok_or("libxdp's object has no dispatcher in it")?;
            next.load()
                .map_err(|error| format!("the kernel refuses the next dispatcher: {}", chain(&error)))?;
            let failed =
                |error: ProgramError| format!("the next dispatcher cannot be looked at: {}", chain(&error));
            let id = next.info().map_err(failed)?.id();
            let target = next.fd().map_err(failed)?;
            let mut pins = Pins::new(folder(index, id))?;
            for (place, part) in self.parts.iter_mut().enumerate() {
                let slot = format!("prog{place}");
                let program = match (&mut part.program, &mut ours) {
                    (Some(theirs), _) => theirs,
                    (None, Some((ours, _))) => {
                        let target = target.try_clone().map_err(|error| error.to_string())?;
                        ours.load(target, &slot).map_err(|error| refused(&part.name, &error))?;
                        &mut **ours
                    }
                    (None, None) => continue,
                };
                pins.put(program, target, &slot).map_err(|why| format!("{}: {why}", part.name))?;
            }
            // Before it is in force: what is not marked would not be taken out again.
            if let Some((ours, marker)) = &mut ours {
                let marker: &Path = marker;
                let _gone = fs::remove_file(marker);
                ours.pin(marker).map_err(|error| format!("{}: {}", marker.display(), chain(&error)))?;
            }
            let swapped = swap::replace(index, Some(target.as_fd()), self.program.as_fd(), present.mode);
            if swapped.is_ok() {
                pins.keep();
            }
            swapped
        };
        match swapped {
            Ok(()) => {
                let _gone = fs::remove_dir_all(&self.folder);
                Ok(Swapped::Done)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(Swapped::Changed),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                Err("its dispatcher is attached by a link, which only its owner can change".to_owned())
            }
            Err(error) => Err(format!("the kernel refuses to swap the dispatcher: {error}")),
        }
    }
}

fn refused(name: &str, error: &ProgramError) -> String {
    let cause = chain(error);
    let hint = match attach::hint(&cause) {
        "" => "",
        _ => "; programs in a dispatcher need CAP_PERFMON",
    };
    format!("the kernel refuses {name} as part of it: {cause}{hint}")
}

/// The one value of an array.
fn value<const N: usize>(data: MapData) -> Because<Vec<u8>>
where
    [u8; N]: Pod,
{
    let array = Array::<_, [u8; N]>::try_from(Map::Array(data)).map_err(|error| chain(&error))?;
    array.get(&0, 0).map(|value| value.to_vec()).map_err(|error| chain(&error))
}

/// libxdp's dispatcher, set up and not yet in the kernel.
fn load(config: &Config) -> Because<Ebpf> {
    let folders = [
        std::env::var_os("LIBXDP_OBJECT_PATH").map(PathBuf::from).unwrap_or_default(),
        PathBuf::from(format!("/usr/lib/{}-linux-gnu/bpf", std::env::consts::ARCH)),
        PathBuf::from("/usr/lib64/bpf"),
        PathBuf::from("/usr/lib/bpf"),
        PathBuf::from("/usr/local/lib64/bpf"),
        PathBuf::from("/usr/local/lib/bpf"),
    ];
    let path = folders
        .iter()
        .map(|folder| folder.join("xdp-dispatcher.o"))
        .find(|path| path.is_absolute() && path.is_file())
        .ok_or("libxdp's xdp-dispatcher.o is not installed (Debian: libxdp1)")?;
    let failed = |cause: String| format!("{}: {cause}", path.display());
    let bytes = fs::metadata(&path).map_err(|error| failed(error.to_string()))?.len();
    if bytes > OBJECT_BYTES_MAX {
        return Err(failed(format!("it has {bytes} bytes, which is more than any dispatcher")));
    }
    let mut object = fs::read(&path).map_err(|error| failed(error.to_string()))?;
    if config.frags {
        object =
            format::with_frags(&object).ok_or_else(|| failed("it is no object of libxdp's".to_owned()))?;
    }
    let value = config.bytes();
    let mut loader = EbpfLoader::new();
    loader.override_global("conf", value.as_slice(), true);
    loader
        .load(&object)
        .map_err(|error| failed(format!("it does not fit the dispatcher there: {}", chain(&error))))
}

/// The folder of a dispatcher that is not in force yet; removed on drop unless it is kept.
struct Pins(Option<PathBuf>);

impl Pins {
    fn new(folder: PathBuf) -> Because<Self> {
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(|error| format!("{} cannot be made: {error}", folder.display()))?;
        Ok(Self(Some(folder)))
    }

    /// Attaches a program to a slot of the dispatcher, and pins both it and its link.
    fn put(&mut self, program: &mut Extension, dispatcher: &ProgramFd, slot: &str) -> Because<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        let id = program.attach_to_program(dispatcher, slot).map_err(|error| {
            format!("it cannot be in two dispatchers (Linux 5.10 and later): {}", chain(&error))
        })?;
        let link: FdLink = program.take_link(id).map_err(|error| chain(&error))?.into();
        link.pin(folder.join(format!("{slot}-link"))).map_err(|error| chain(&error))?;
        program.pin(folder.join(format!("{slot}-prog"))).map_err(|error| chain(&error))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            let _gone = fs::remove_dir_all(folder);
        }
    }
}
