//! Bans in maps that an XDP program reads for every packet, before the network stack sees it.
//!
//! Link and maps are pinned, so the kernel keeps dropping and expiring without an agent; a restart adopts what is
//! pinned and swaps the program atomically. It refuses to touch an XDP program that is not ours.
//!
//! There are two layouts of the maps, each with a program: the bucket table, and hash maps where that cannot be had.
//! Each is pinned in a folder that is named for its version; a change of layout fills the new maps while the old ones
//! are in force, and then swaps the program. What a layout that cannot be read holds is filled in by the agent, from its
//! ledger; until it says that all is there, the former program stays in force, and nothing else is attached.
//!
//! Kernel deadlines run on the kernel's clocks; the wall clock is converted here and nowhere else.
#![deny(unsafe_code)]

use std::{
    fs,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use blocker_ebpf::{LAYOUT_VERSION, table::LAYOUT};

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};

mod attach;
mod bans;
mod dispatcher;
mod hash;
mod key;
#[expect(unsafe_code, reason = "bpf(2) calls that the library does not offer")]
mod link;
#[expect(unsafe_code, reason = "bpf(2) calls that the library does not offer")]
mod order;
mod pins;
mod programs;
mod refusal;
mod rtnl;
mod select;
#[expect(unsafe_code, reason = "bpf(2) itself")]
mod syscall;
mod table;

pub use attach::Mode;
pub use pins::remove;
pub use select::Interfaces;

use attach::{Attachments, Plan};
use bans::{Bans, Held, held};
use hash::Hash;
use pins::{holds_maps, layouts, remove_layout, set_apart};
use programs::Kind;
use refusal::{chain, refused};
use table::{AHEAD, Buckets};

/// Where objects are pinned when nobody says.
pub const PIN_DIR: &str = "/sys/fs/bpf/blocker";

/// Whether this binary holds the XDP programs.
pub fn is_built_in() -> bool {
    hash::is_built_in() && table::is_built_in()
}

/// How bans lie in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Fingerprints in buckets of one cache line, written through shared memory.
    #[default]
    Buckets,
    /// The kernel's hash maps and prefix tries.
    Hash,
}

impl Layout {
    fn version(self) -> u64 {
        match self {
            Self::Buckets => LAYOUT,
            Self::Hash => LAYOUT_VERSION.into(),
        }
    }

    fn pins(self, pin_dir: &Path) -> PathBuf {
        pin_dir.join(format!("v{}", self.version()))
    }

    fn other(self) -> Self {
        match self {
            Self::Buckets => Self::Hash,
            Self::Hash => Self::Buckets,
        }
    }
}

/// What to attach, and where to keep it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where strangers' packets come in.
    pub interfaces: Interfaces,
    /// Patterns of interfaces that are not meant.
    pub exclude: Vec<String>,
    /// How to attach, in the order in which it is tried.
    pub modes: Vec<Mode>,
    /// Whether nothing is to be attached where one of the interfaces takes no program.
    pub all: bool,
    /// Bans at once; of each hash map, entries.
    pub bans_max: usize,
    /// A folder on bpffs; made when it is missing.
    pub pin_dir: PathBuf,
    /// Hash maps are taken where the bucket table cannot be had.
    pub layout: Layout,
    /// Whether the bucket table compares whole prefixes on a match.
    pub exact: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interfaces: Interfaces::Auto,
            exclude: Vec::new(),
            modes: Mode::ALL.to_vec(),
            all: false,
            bans_max: 65_536,
            pin_dir: PathBuf::from(PIN_DIR),
            layout: Layout::default(),
            exact: false,
        }
    }
}

/// The XDP enforcer.
#[derive(Debug)]
pub struct Xdp {
    bans: Bans,
    pins: PathBuf,
    plan: Plan,
    /// `None` while a program over maps that cannot be read is in force.
    attachments: Option<Attachments>,
    /// What is pinned of other layouts, to be removed once this one is in force.
    former: Vec<PathBuf>,
    /// Why it is not the layout that was asked for; empty when it is.
    reason: String,
}

impl Xdp {
    /// Loads the program with the maps that are pinned, or new ones, and attaches it to every interface.
    ///
    /// # Errors
    /// When a capability or bpffs is missing, or no interface takes the program. Nothing new stays attached then.
    pub fn open(options: &Options) -> Result<Self, EnforceError> {
        let mut layout = options.layout;
        let mut reason = String::new();
        set_apart(&options.pin_dir)?;
        let load = |layout: Layout| {
            let pins = layout.pins(&options.pin_dir);
            attach::make_pin_dir(&options.pin_dir, &pins)?;
            Bans::load(layout, &pins, options)
        };
        let mut bans = match load(layout) {
            Err(error) if layout == Layout::Buckets => {
                let help = match error.cause.contains("erifier") {
                    true => "; a newer kernel takes it (Linux 6.12 does)",
                    false => "",
                };
                reason = format!("hash maps, because the bucket table was refused: {error}{help}");
                layout = Layout::Hash;
                load(layout)?
            }
            loaded => loaded?,
        };
        let pins = layout.pins(&options.pin_dir);
        let former: Vec<PathBuf> = layouts(&options.pin_dir).filter(|folder| *folder != pins).collect();
        // The other one is read where that is possible; of any third, nothing is known but its links.
        let readable = layout.other().pins(&options.pin_dir);
        let can_read = reason.is_empty() && holds_maps(&readable);
        if can_read {
            bans = bans.take_over(&mut load(layout.other())?)?;
        }
        let holds_unread = |folder: &PathBuf| {
            !(can_read && *folder == readable) && attach::link_pins(folder).next().is_some()
        };
        let waits = former.iter().any(holds_unread);
        let plan = Plan {
            wanted: options.interfaces.clone(),
            exclude: options.exclude.clone(),
            modes: options.modes.clone(),
            all: options.all,
        };
        let mut xdp = Self { bans, pins, plan, attachments: None, former, reason };
        if !waits {
            xdp.take_force()?;
        }
        if let Bans::Buckets(table) = &mut xdp.bans {
            table.retire_others()?;
        }
        Ok(xdp)
    }

    /// Attaches, in the place of what other layouts have attached, and removes these.
    fn take_force(&mut self) -> Result<(), EnforceError> {
        if self.attachments.is_some() {
            return Ok(());
        }
        self.former.iter().try_for_each(|folder| attach::move_links(folder, &self.pins))?;
        let plan = self.plan.clone();
        self.attachments = Some(Attachments::open(plan, &self.pins, &mut self.bans.programs())?);
        for folder in std::mem::take(&mut self.former) {
            remove_layout(&folder).map_err(|error| {
                refused(format!("remove the maps in {}", folder.display()), error.to_string(), "")
            })?;
        }
        Ok(())
    }

    /// The layout that is in force, which is not the one asked for where the kernel refused that.
    pub fn layout(&self) -> Layout {
        match self.bans {
            Bans::Buckets(_) => Layout::Buckets,
            Bans::Hash(_) => Layout::Hash,
        }
    }

    /// The loaded program, for benchmarks and tests through BPF_PROG_TEST_RUN.
    pub fn program_fd(&mut self) -> Option<std::os::fd::OwnedFd> {
        Some(self.bans.programs().get(Kind::Xdp).ok()?.fd)
    }

    /// Puts a table that was made anew in the place of the one in force.
    fn replace(&mut self, mut anew: Box<Buckets>) -> Result<(), EnforceError> {
        let swap = |attachments: &mut Attachments| attachments.swap(&mut anew.programs());
        let mut outcome = self.attachments.as_mut().map_or(Ok(()), swap);
        if let Bans::Buckets(old) = &mut self.bans {
            outcome = outcome.and(anew.absorb(old));
        }
        outcome = outcome.and(anew.retire_others());
        self.bans = Bans::Buckets(anew);
        outcome
    }

    fn change(&mut self, change: &Change, now: Timestamp) -> Result<(), EnforceError> {
        let anew = match change {
            // Never widened: whoever bans on some ports wants the others open.
            Change::Ban(ban) if !ban.scope.is_all() => Err(refused(
                format!("ban {} on {}", ban.prefix, ban.scope),
                "XDP bans on all ports only".to_owned(),
                "set `[enforce] backend = \"nftables\"`, or ban on all ports",
            )),
            Change::Unban { scope, .. } if !scope.is_all() => Ok(None),
            Change::Ban(ban) if ban.until.is_over(now) => self.bans.unban(ban.prefix).map(|()| None),
            Change::Ban(ban) => self.bans.ban(&held(ban, now)),
            Change::Unban { prefix, .. } => self.bans.unban(*prefix).map(|()| None),
            Change::Allow { prefix } => self.bans.allow(&[*prefix]),
            Change::Disallow { prefix } => self.bans.disallow(*prefix),
            Change::Flush => self.bans.flush().map(|()| None),
        }?;
        anew.map_or(Ok(()), |anew| self.replace(anew))
    }

    /// All at once, where looking for the bans inside them costs a look at every slot.
    fn allow(&mut self, batch: &[Change]) -> Result<(), EnforceError> {
        let prefix = |change: &Change| match change {
            Change::Allow { prefix } => Some(*prefix),
            _ => None,
        };
        let prefixes: Vec<Prefix> = batch.iter().filter_map(prefix).collect();
        match self.bans.allow(&prefixes)? {
            None => Ok(()),
            Some(anew) => self.replace(anew),
        }
    }
}

impl Xdp {
    /// Bans, or unbans, in hash maps: what [`Enforcer::apply`] has found to be of one kind.
    fn many(hash: &mut Hash, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        let (mut bans, mut unbans) = (Vec::new(), Vec::new());
        for change in batch {
            match change {
                Change::Ban(ban) => bans.push(held(ban, now)),
                Change::Unban { prefix, .. } => unbans.push(*prefix),
                _ => {}
            }
        }
        if bans.is_empty() { hash.unban_all(&unbans) } else { hash.ban_all(&bans) }
    }
}

impl Enforcer for Xdp {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        self.bans.begin()?;
        let mut first = Ok(());
        let many = matches!(self.bans, Bans::Hash(_));
        // What goes in one call with others of its kind.
        let kind = |change: &Change| match change {
            Change::Allow { .. } => Some(0),
            Change::Ban(ban) if many && ban.scope.is_all() && !ban.until.is_over(now) => Some(1),
            Change::Unban { scope, .. } if many && scope.is_all() => Some(2),
            _ => None,
        };
        let mut done = 0;
        for run in batch.chunk_by(|a, b| kind(a).is_some_and(|kind_of_a| kind(b) == Some(kind_of_a))) {
            let Some(change) = run.first() else { continue };
            if let Some(Change::Ban(ban)) = batch.get(done + AHEAD) {
                self.bans.expect(ban.prefix);
            }
            done += run.len();
            let prefix = match change {
                Change::Ban(ban) => Some(ban.prefix),
                Change::Unban { prefix, .. } | Change::Allow { prefix } | Change::Disallow { prefix } => {
                    Some(*prefix)
                }
                Change::Flush => None,
            };
            let outcome = match (&mut self.bans, change) {
                _ if run.len() == 1 => self.change(change, now),
                (Bans::Hash(hash), Change::Ban(_) | Change::Unban { .. }) => Self::many(hash, run, now),
                _ => self.allow(run),
            };
            if let Err(error) = outcome
                && first.is_ok()
            {
                first = Err(EnforceError { prefix: error.prefix.or(prefix), ..error });
            }
        }
        first
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let until =
            |left: Option<Duration>| left.map_or(Until::Forever, |left| Until::At(now.saturating_add(left)));
        let held = self.bans.held()?.into_iter();
        let mut entries: Vec<Entry> = held
            .map(|held| Entry {
                prefix: held.prefix,
                scope: Scope::ALL,
                until: until(held.left),
                packets: held.packets,
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.prefix);
        Ok(entries)
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        let mut allowed = self.bans.allowed()?;
        allowed.sort_unstable();
        Ok(allowed)
    }

    fn counters(&mut self) -> Result<Counters, EnforceError> {
        let [packets, bytes] = self.bans.sums()?;
        Ok(Counters { packets, bytes })
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        let mut health = Health::Sound;
        attach::make_pin_dir(self.pins.parent().unwrap_or(Path::new("/")), &self.pins)?;
        for (name, path) in self.bans.pinned() {
            if !path.exists() {
                let failed = |cause: String| refused(format!("pin the map {name} again"), cause, "");
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
                }
                let data = self.bans.ebpf().map_mut(name);
                let data = data.ok_or_else(|| failed("the built-in object has none".to_owned()))?;
                data.pin(&path).map_err(|error| failed(chain(&error)))?;
                health = Health::Repaired;
            }
        }
        let attached = match &mut self.attachments {
            Some(attachments) => attachments.repair(&mut self.bans.programs())?,
            None => Health::Sound,
        };
        if attached == Health::Repaired {
            health = Health::Repaired;
        }
        if let Bans::Buckets(table) = &mut self.bans {
            table.tick()?;
        }
        Ok(health)
    }

    fn describe(&self) -> Description {
        let attachments = self.attachments.as_ref().map_or_else(Vec::new, Attachments::attached);
        Description { backend: "xdp", attachments, reason: self.reason.clone() }
    }

    fn notes(&self) -> Vec<String> {
        let of_maps = match &self.bans {
            Bans::Buckets(table) => table.note(),
            Bans::Hash(hash) => hash.note(),
        };
        let waits = || {
            let folders: Vec<String> =
                self.former.iter().map(|folder| folder.display().to_string()).collect();
            vec![format!(
                "the program of another version of blocker stays in force until the ledger's bans are in this one's maps, since what is pinned in {} cannot be read",
                folders.join(", ")
            )]
        };
        let notes = self.attachments.as_ref().map_or_else(waits, Attachments::notes);
        notes.into_iter().chain(of_maps).collect()
    }

    fn troubles(&self) -> Vec<String> {
        self.attachments.as_ref().map_or_else(Vec::new, Attachments::troubles)
    }

    fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.attachments.as_ref().and_then(Attachments::changes)
    }

    fn be_alone(&mut self, _now: Timestamp) -> Result<(), EnforceError> {
        self.take_force()
    }

    fn close(self: Box<Self>, keep: Keep) -> Result<(), EnforceError> {
        if keep == Keep::Nothing {
            remove(self.pins.parent().unwrap_or(&self.pins))?;
        }
        Ok(())
    }
}

/// Looks at pinned maps without being the agent: for benchmarks.
#[derive(Debug)]
pub struct Reader(table::Reader);

impl Reader {
    /// Opens the table pinned below `pin_dir`.
    ///
    /// # Errors
    /// When there is none, or it is not ours.
    pub fn open(pin_dir: &Path) -> Result<Self, EnforceError> {
        table::Reader::open(&Layout::Buckets.pins(pin_dir)).map(Self)
    }

    /// Whether a packet from this address would be dropped.
    pub fn holds(&self, address: std::net::IpAddr) -> bool {
        self.0.holds(address)
    }
}
