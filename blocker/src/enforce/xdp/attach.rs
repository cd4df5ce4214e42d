//! What is attached where: one program an interface, by the best way that interface allows, and never over somebody
//! else's.
//!
//! The ways are tried in order: native XDP, TCX, generic XDP. Each link is pinned under a name that says the interface
//! and the way; a restart goes by these names and swaps the program atomically. An interface that is guarded stays so
//! as long as it exists, whatever becomes of its name, its addresses or its place; [`select`] decides about the rest
//! each time something changes. Where the way in force is not the best, the better ones are tried again when something
//! changes about the interface, and the worse link goes once the better one is there.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use aya::util::KernelVersion;
use rustix::mount::{MountFlags, mount};

use super::{
    EnforceError, Health, dispatcher,
    link::{Hook, Link},
    programs::{Kind, Loaded, Programs},
    refused,
    rtnl::{self, INTERFACES_MAX, Interface, Watch},
    select::{self, Interfaces, LinkLayer, Verdict},
};

/// The type of bpffs in statfs(2).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Repairs between two looks at all interfaces where no change was told: not all of them are.
const SCAN_EVERY: u32 = 10;
/// Interfaces that are left alone and named one by one.
const LEFT_MAX: usize = 16;

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

/// The program on one interface.
#[derive(Debug)]
struct Attachment {
    index: u32,
    name: String,
    mode: Mode,
    kind: Kind,
    /// Why it is not a better mode, and what that would need; empty for the best.
    reason: String,
    hold: Hold,
    program: u32,
    tried: Facts,
}

/// What keeps a program where it is.
#[derive(Debug)]
enum Hold {
    /// Held so that losing the pin alone does not end enforcement.
    Link { link: Link, id: u32 },
    /// The pins of the dispatcher that it is in; it is pinned with us to say so.
    Dispatcher,
}

/// What a better mode may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    mtu: u32,
    master: Option<u32>,
    program: Option<u32>,
}

impl Facts {
    fn of(interface: &Interface) -> Self {
        Self { mtu: interface.mtu, master: interface.master, program: interface.program }
    }
}

/// What became of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sound,
    /// Somebody put another program into the link.
    Replaced,
    /// Somebody removed the pin, or put another one in its place.
    Unpinned,
    /// Somebody detached the link, or the interface is gone.
    Detached,
}

impl Attachment {
    fn pin(&self, pins: &Path) -> PathBuf {
        pins.join(pin_name(self.index, self.mode))
    }

    fn state(&self, pins: &Path) -> State {
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
    since_scan: u32,
}

/// The kernel does not say how a link is attached, so its pin's name does.
fn pin_name(index: u32, mode: Mode) -> String {
    format!("link-{index}-{}", mode.name())
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
        Ok(this)
    }

    fn nothing_attached(&self) -> EnforceError {
        let causes: Vec<&str> = self.refused.iter().map(|(_, why)| why.as_str()).collect();
        let names: Vec<&str> = self.refused.iter().map(|(name, _)| name.as_str()).collect();
        let cause = causes.join("; ");
        let hint = match hint(&cause) {
            "" => "take it out of `[enforce] interfaces`, or use `backend = \"nftables\"`",
            hint => hint,
        };
        refused(format!("attach to {}", names.join(", ")), cause, hint)
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
                State::Replaced => swap(attachment, &self.pins, programs),
                State::Unpinned => pin(attachment, &self.pins, programs),
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
        if self.held.is_empty() && !self.refused.is_empty() {
            return Err(self.nothing_attached());
        }
        outcome.map(|()| health)
    }

    /// Puts other programs into the place of those that are attached, after all maps were replaced. Where that fails,
    /// the rest is swapped all the same, and [`Self::repair`] tries again.
    pub(super) fn swap(&mut self, programs: &mut Programs<'_>) -> Result<(), EnforceError> {
        let mut outcome = Ok(());
        for attachment in &mut self.held {
            // Whatever program is in the link now is none of these.
            attachment.program = 0;
            let swapped = swap(attachment, &self.pins, programs);
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

    /// `eth0: native`, one for each interface that is guarded.
    pub(super) fn attached(&self) -> Vec<String> {
        self.held
            .iter()
            .map(|attachment| format!("{}: {}", attachment.name, attachment.mode.name()))
            .collect()
    }

    /// Why attachments are no better, and why interfaces are left alone.
    pub(super) fn notes(&self) -> Vec<String> {
        let reasons = self.held.iter().map(|attachment| attachment.reason.clone());
        let mut notes: Vec<String> = reasons.filter(|reason| !reason.is_empty()).collect();
        notes.extend(self.kept.iter().map(|(name, why)| format!("{name}: {why}")));
        notes.extend(
            self.left.iter().take(LEFT_MAX).map(|(name, why)| format!("{name} is left alone: {why}")),
        );
        if let Some(more @ 1..) = self.left.len().checked_sub(LEFT_MAX) {
            notes.push(format!("{more} further interfaces are left alone for reasons like these"));
        }
        if self.held.is_empty() && self.refused.is_empty() && self.missing.is_empty() {
            notes.push("there is no interface to guard yet; each is guarded as it appears".to_owned());
        }
        notes
    }

    /// What is not as it is meant to be, looked at now.
    pub(super) fn troubles(&self) -> Vec<String> {
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
        // Where there is nothing else, [`Self::repair`] has said it.
        let refused = self.refused.iter().filter(|_| !self.held.is_empty());
        let refused = refused.map(|(name, why)| format!("{name} is not guarded: {why}"));
        let missing = self.missing.iter().map(|name| {
            format!(
                "{name} is not guarded: there is no such interface yet; it is waited for (a pattern such as \"{name}*\" is content with none)"
            )
        });
        held.chain(refused).chain(missing).chain(self.unseen.clone()).collect()
    }
}

/// What program an interface wants in a mode; or why none is to be had.
fn kind(interface: &Interface, mode: Mode) -> Result<Kind, String> {
    match (select::link_layer(interface), mode) {
        (Some(LinkLayer::Ethernet), Mode::Native | Mode::Dispatcher | Mode::Generic) => Ok(Kind::Xdp),
        (Some(LinkLayer::Ethernet), Mode::Tcx) => Ok(Kind::Tcx),
        (Some(LinkLayer::Bare), Mode::Tcx) => Ok(Kind::TcxBare),
        (Some(LinkLayer::Bare), _) => {
            Err("its packets have no Ethernet header, which XDP counts on".to_owned())
        }
        (None, _) => Err(format!(
            "its packets have headers of link type {} before them, which no program here reads",
            interface.link_layer
        )),
    }
}

/// Attaches by the first of these modes that is to be had; else says why each is not.
fn climb(
    modes: &[Mode],
    pins: &Path,
    interface: &Interface,
    programs: &mut Programs<'_>,
) -> Result<Attachment, String> {
    let mut why: Vec<String> = Vec::new();
    // Where nothing is attached there is nothing to join.
    let is_open = |mode: &&Mode| **mode != Mode::Dispatcher || interface.program.is_some();
    for mode in modes.iter().filter(is_open) {
        match attach(*mode, pins, interface, programs) {
            Ok(attachment) => {
                let reason = match (why.is_empty(), &attachment.reason) {
                    (true, of_program) => of_program.clone(),
                    (false, of_program) => {
                        let why = reason(&interface.name, *mode, &why.join("; "));
                        if of_program.is_empty() { why } else { format!("{why}; {of_program}") }
                    }
                };
                return Ok(Attachment { reason, ..attachment });
            }
            Err(cause) => why.push(format!("no {}, since {cause}", mode.name())),
        }
    }
    if why.is_empty() {
        why.push("`[enforce] modes` allows none".to_owned());
    }
    Err(why.join("; "))
}

fn reason(name: &str, mode: Mode, why: &str) -> String {
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
    })
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
                |id| format!("another program (id {id})"),
            );
            format!(
                "{which} is attached by XDP and is not replaced; once it is detached, this is tried again"
            )
        }
        (Mode::Native, Some(libc::EOPNOTSUPP)) => {
            let kind = if interface.kind.is_empty() { "network card" } else { &interface.kind };
            format!("its driver ({kind}) has no native XDP")
        }
        (Mode::Tcx, _) if !at_least(6, 6) => "this kernel has no TCX (6.6 and later have)".to_owned(),
        (Mode::Native | Mode::Generic, _) if !at_least(5, 9) => {
            "this kernel has no links for XDP (5.9 and later have)".to_owned()
        }
        (Mode::Native, Some(libc::EINVAL | libc::ERANGE)) => format!(
            "its driver refuses it as the interface is set up, with an MTU of {} ({error})",
            interface.mtu
        ),
        _ => format!("the kernel refuses it ({error})"),
    }
}

/// Puts the program that belongs there into a link, or into the next dispatcher.
fn swap(attachment: &mut Attachment, pins: &Path, programs: &mut Programs<'_>) -> Result<(), EnforceError> {
    let failed = |name: &str, cause: String| {
        refused(format!("put the program into the place of the one on {name}"), cause, "")
    };
    match &attachment.hold {
        Hold::Link { link, .. } => {
            let program = programs.get(attachment.kind)?;
            let updated = link.update(program.fd.as_fd());
            attachment.program = program.id;
            updated.map_err(|error| failed(&attachment.name, error.to_string()))
        }
        Hold::Dispatcher => {
            let joined = dispatcher::join(attachment.index, &attachment.pin(pins), programs);
            attachment.program = joined.map_err(|cause| failed(&attachment.name, cause))?;
            Ok(())
        }
    }
}

/// Pins a link where its pin is gone or another's.
fn pin(attachment: &mut Attachment, pins: &Path, programs: &mut Programs<'_>) -> Result<(), EnforceError> {
    let Hold::Link { link, .. } = &attachment.hold else { return swap(attachment, pins, programs) };
    let path = attachment.pin(pins);
    let failed = |error: io::Error| {
        refused(format!("pin the link of {} again", attachment.name), error.to_string(), "")
    };
    if path.exists() {
        fs::remove_file(&path).map_err(failed)?;
    }
    link.pin(&path).map_err(failed)
}

/// Removes the pin of a link, which detaches it where nobody holds it, or takes our part out of a dispatcher.
pub(super) fn let_go(pin: &Path) -> Result<(), EnforceError> {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let rest = name.strip_prefix("link-").and_then(|rest| rest.strip_suffix(Mode::Dispatcher.name()));
    if let Some(index) = rest.and_then(|rest| rest.strip_suffix('-')?.parse().ok()) {
        let hint = "`xdp-loader unload` takes programs out of a dispatcher";
        dispatcher::leave(index).map_err(|cause| refused("leave the dispatcher", cause, hint))?;
    }
    fs::remove_file(pin).map_err(|error| refused(format!("remove {}", pin.display()), error.to_string(), ""))
}

/// The pins of links in a folder.
pub(super) fn link_pins(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("link-")).map(|entry| entry.path())
}

/// Takes the links that are pinned in the folder of another layout, without letting go of them.
pub(super) fn move_links(from: &Path, to: &Path) -> Result<(), EnforceError> {
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
