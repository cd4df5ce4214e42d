//! Two hosts in namespaces, one guarded and one that sends to it, and what this kernel has to offer for it.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use blocker::{
    enforce::{Enforcer as _, Health, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::Scope,
    time::{Timestamp, Until},
};
use xtask::lab::{Netns, Scratch, agent::remove_pins, kernel, missing, skipped, wait_for, wire::Wire};

use crate::{bpf, foreign};

pub(crate) const BANNED: &str = "203.0.113.9";
pub(crate) const HONEST: &str = "198.51.100.7";
/// Those that are ours alone; tests/dispatcher.rs has the other.
pub(crate) const MODES: [xdp::Mode; 3] = [xdp::Mode::Native, xdp::Mode::Tcx, xdp::Mode::Generic];
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// A host that is guarded, and one that sends to it.
pub(crate) struct Stage {
    pub(crate) host: Netns,
    pub(crate) peer: Netns,
    pub(crate) options: xdp::Options,
    pub(crate) xdp: Option<Box<xdp::Xdp>>,
    _scratch: Scratch,
}

impl Stage {
    /// Two hosts without a wire and without a guard; `None`, and said, where that cannot be had.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if let Some(reason) = missing() {
            skipped(test, &reason);
            return None;
        }
        if !xdp::is_built_in() {
            skipped(test, "XDP was not built in (cargo xtask test builds it)");
            return None;
        }
        let (host, peer) = (Netns::new("host").unwrap(), Netns::new("peer").unwrap());
        let scratch = Scratch::new("attach").unwrap();
        let pin_dir = PathBuf::from("/sys/fs/bpf").join(scratch.path().file_name().unwrap());
        let options = xdp::Options { bans_max: 1_000, pin_dir, ..xdp::Options::default() };
        Some(Self { host, peer, options, xdp: None, _scratch: scratch })
    }

    /// The interface `name` of the host, wired to one of that name at the peer.
    pub(crate) fn wire(&self, name: &str) -> Wire {
        self.host.link(name, &self.peer, name).unwrap();
        self.host.ip(&format!("link set {name} address 02:00:00:00:00:01")).unwrap();
        Wire::new(&self.peer, name).unwrap()
    }

    pub(crate) fn named(&mut self, names: &[&str]) {
        self.options.interfaces = xdp::Interfaces::Named(names.iter().map(|&name| name.to_owned()).collect());
    }

    pub(crate) fn try_open(&mut self) -> Result<(), String> {
        let options = &self.options;
        let opened = self.host.enter(|| xdp::Xdp::open(options)).map_err(|error| error.to_string())?;
        self.xdp = Some(Box::new(opened));
        let until = Until::Forever;
        let origin = Origin::Operator;
        for prefix in [BANNED, "2001:db8:66::/64"].map(|text| text.parse().unwrap()) {
            let (since, origin, reason) = (now(), origin.clone(), String::new());
            let scope = Scope::ALL;
            let ban = Ban { prefix, scope, origin, since, until, failures: 0, count: 0, reason };
            self.xdp().apply(&[Change::Ban(ban)], now()).unwrap();
        }
        Ok(())
    }

    pub(crate) fn open(&mut self) {
        self.try_open().unwrap();
    }

    pub(crate) fn xdp(&mut self) -> &mut xdp::Xdp {
        self.xdp.as_mut().unwrap()
    }

    pub(crate) fn attached(&mut self) -> Vec<String> {
        self.xdp().describe().attachments
    }

    pub(crate) fn notes(&mut self) -> String {
        self.xdp().notes().join("\n")
    }

    pub(crate) fn troubles(&mut self) -> Vec<String> {
        let xdp = self.xdp.as_mut().unwrap();
        self.host.enter(move || xdp.troubles())
    }

    pub(crate) fn repair(&mut self) -> Health {
        let xdp = self.xdp.as_mut().unwrap();
        self.host.enter(|| xdp.repair()).unwrap()
    }

    pub(crate) fn dropped(&mut self) -> u64 {
        self.xdp().counters().unwrap().packets
    }

    /// Sends so many frames of the banned and of the honest source, and expects all of the former to be counted, and no
    /// more.
    pub(crate) fn check_counts(&mut self, what: &str, count: u64, send: impl Fn(IpAddr)) {
        let (before, bans_before) = (self.dropped(), self.of_bans());
        for _ in 0..count {
            send(BANNED.parse().unwrap());
            send(HONEST.parse().unwrap());
        }
        let all = wait_for(SOON, || (self.dropped() >= before + count).then_some(()));
        let counted = self.dropped() - before;
        assert!(all.is_some() && counted == count, "{what}: {count} sent, {counted} counted");
        assert_eq!(self.of_bans() - bans_before, count, "{what}: by ban");
        println!("{what}: {count} sent, {counted} counted");
    }

    pub(crate) fn of_bans(&mut self) -> u64 {
        self.xdp().entries(now()).unwrap().iter().map(|entry| entry.packets).sum()
    }

    /// Whether a frame is dropped, by our own count.
    pub(crate) fn drops(&mut self, wire: &Wire, frame: &[u8]) -> bool {
        let before = self.dropped();
        put(wire, frame);
        wait_for(Duration::from_millis(60), || (self.dropped() > before).then_some(())).is_some()
    }

    pub(crate) fn pin(&self, interface: &str, mode: &str) -> PathBuf {
        let folder = fs::read_dir(&self.options.pin_dir).unwrap().next().unwrap().unwrap().path();
        let index = self.host.ip(&format!("-o link show {interface}")).unwrap();
        folder.join(format!("link-{}-{mode}", index.split(':').next().unwrap()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.xdp = None;
        remove_pins(&self.options.pin_dir);
    }
}

pub(crate) fn put(wire: &Wire, frame: &[u8]) {
    wire.send_whole(frame).unwrap();
}

pub(crate) fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

/// Somebody else's program, attached natively as long as it is held.
pub(crate) fn foreign_program(host: &Netns, interface: &str) -> OwnedFd {
    let pass = bpf::floor(bpf::XDP_PASS, 0);
    host.enter(|| foreign::attach(pass.as_fd(), interface, foreign::XDP_FLAGS_DRV_MODE)).unwrap()
}

pub(crate) fn has_xdp(netns: &Netns, interface: &str) -> bool {
    netns.ip(&format!("-d link show {interface}")).unwrap().contains("prog/xdp")
}

/// Makes a device, or says that this kernel has none of its kind.
pub(crate) fn device(test: &str, netns: &Netns, args: &str) -> bool {
    match netns.ip(&format!("link add {args}")) {
        Ok(_) => true,
        Err(error) => {
            kernel::lacks(test, &format!("such a device: {error:#}"));
            false
        }
    }
}

pub(crate) fn has_tcx(test: &str) -> bool {
    kernel::has(test, "TCX", (6, 6))
}

/// The modes that this kernel has.
pub(crate) fn modes(test: &str) -> Vec<xdp::Mode> {
    let tcx = has_tcx(test);
    MODES.into_iter().filter(|mode| tcx || *mode != xdp::Mode::Tcx).collect()
}
