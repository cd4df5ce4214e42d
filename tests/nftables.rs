//! What only the nftables enforcer can meet: other programs that change its table, another size, and a missing
//! capability. What every enforcer does is in `enforcers.rs`.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use blocker::{
    enforce::{Enforcer, Health, Keep, nft::Nft},
    engine::Change,
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use xtask::lab::{Netns, missing, probe, skipped};

const HOST: &str = "198.51.100.1";
const PEER: &str = "198.51.100.2";
const BANS_MAX: usize = 1_000;

fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn ban(text: &str, until: Until) -> Change {
    let origin = Origin::Operator;
    Change::Ban(Ban {
        prefix: prefix(text),
        scope: Scope::ALL,
        origin,
        since: now(),
        until,
        failures: 0,
        count: 0,
        reason: String::new(),
    })
}

fn in_an_hour() -> Until {
    Until::At(now().saturating_add(Duration::from_secs(3_600)))
}

/// Prefixes and counts as the kernel has them.
fn held(nft: &mut Nft) -> Vec<(String, u64)> {
    nft.entries(now()).unwrap().iter().map(|entry| (entry.prefix.to_string(), entry.packets)).collect()
}

/// A host and its peer on one wire.
fn wired() -> (Netns, Netns) {
    let (host, peer) = (Netns::new("host").unwrap(), Netns::new("peer").unwrap());
    host.link("eth0", &peer, "eth0").unwrap();
    host.ip(&format!("addr add {HOST}/24 dev eth0")).unwrap();
    peer.ip(&format!("addr add {PEER}/24 dev eth0")).unwrap();
    (host, peer)
}

fn open(host: &Netns, bans_max: usize) -> Nft {
    host.enter(|| Nft::open(bans_max)).unwrap()
}

fn skips(test: &str) -> bool {
    missing().inspect(|reason| skipped(test, reason)).is_some()
}

#[test]
fn what_another_program_altered_is_put_back_and_the_bans_are_kept() {
    if skips("what_another_program_altered_is_put_back_and_the_bans_are_kept") {
        return;
    }
    let (host, peer) = wired();
    let host_ip: IpAddr = HOST.parse().unwrap();
    let mut nft = open(&host, BANS_MAX);
    nft.apply(&[ban(PEER, in_an_hour()), ban("2001:db8:66::/64", Until::Forever)], now()).unwrap();
    assert!(!probe::ping(&peer, host_ip), "banned");
    for altered in [
        "add table inet blocker { flags dormant; }",
        "flush chain inet blocker ban4",
        "flush chain inet blocker dropped",
        "flush chain inet blocker prerouting",
        "insert rule inet blocker source4 accept",
        "flush table inet blocker",
        "add set inet blocker other { type ipv4_addr; }",
    ] {
        host.run("nft", &[altered]).unwrap();
        assert_eq!(nft.repair().unwrap(), Health::Repaired, "{altered}");
        assert_eq!(nft.repair().unwrap(), Health::Sound, "{altered}");
        let prefixes: Vec<String> = held(&mut nft).into_iter().map(|(prefix, _)| prefix).collect();
        assert_eq!(prefixes, [PEER, "2001:db8:66::/64"], "{altered}");
        assert!(!probe::ping(&peer, host_ip), "{altered}");
    }
    host.run("nft", &["add table inet other"]).unwrap();
    assert_eq!(nft.repair().unwrap(), Health::Sound, "a foreign table is not our business");
}

#[test]
fn a_ban_after_the_table_was_deleted_is_in_force_and_the_repair_is_reported() {
    if skips("a_ban_after_the_table_was_deleted_is_in_force_and_the_repair_is_reported") {
        return;
    }
    let (host, peer) = wired();
    let mut nft = open(&host, BANS_MAX);
    for changes in [vec![], vec![Change::Flush]] {
        nft.apply(&[ban("203.0.113.9", Until::Forever)], now()).unwrap();
        host.run("nft", &["flush ruleset"]).unwrap();
        assert_eq!(held(&mut nft), [], "what is listed is what the kernel has");
        nft.apply(&[changes, vec![ban(PEER, in_an_hour())]].concat(), now()).unwrap();
        assert_eq!(held(&mut nft), [(PEER.to_owned(), 0)]);
        assert!(!probe::ping(&peer, HOST.parse().unwrap()), "banned");
        assert_eq!(nft.repair().unwrap(), Health::Repaired);
    }
}

#[test]
fn another_size_keeps_bans_allowlist_and_counts() {
    if skips("another_size_keeps_bans_allowlist_and_counts") {
        return;
    }
    let (host, peer) = wired();
    let mut nft = open(&host, 100);
    let until = in_an_hour();
    let allow = Change::Allow { prefix: prefix("10.0.0.0/8") };
    nft.apply(&[ban(PEER, until), ban("20.0.0.0/8", Until::Forever), allow], now()).unwrap();
    assert!(!probe::ping(&peer, HOST.parse().unwrap()), "banned");
    let (before, counters) = (nft.entries(now()).unwrap(), nft.counters().unwrap());
    assert!(before[1].packets > 0 && counters.packets == before[1].packets, "{before:?} {counters:?}");
    Box::new(nft).close(Keep::InForce).unwrap();
    let mut nft = open(&host, BANS_MAX);
    let after = nft.entries(now()).unwrap();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((after.prefix, after.packets), (before.prefix, before.packets));
    }
    let Until::At(end) = after[1].until else { panic!("{after:?}") };
    let Until::At(asked) = until else { panic!("{until:?}") };
    assert!(end.max(asked).saturating_since(end.min(asked)) < Duration::from_secs(1), "{end:?} {asked:?}");
    assert_eq!(after[0].until, Until::Forever);
    assert_eq!((nft.counters().unwrap(), nft.allowed().unwrap()), (counters, vec![prefix("10.0.0.0/8")]));
    // 100 and half as many fitted before.
    let many: Vec<Change> = (1..=250).map(|n| ban(&format!("203.0.113.{n}"), Until::Forever)).collect();
    nft.apply(&many, now()).unwrap();
}

#[test]
fn ends_beyond_what_the_kernel_counts_are_as_late_as_it_can() {
    if skips("ends_beyond_what_the_kernel_counts_are_as_late_as_it_can") {
        return;
    }
    let (host, _peer) = wired();
    let mut nft = open(&host, BANS_MAX);
    nft.apply(&[ban(PEER, Until::At(Timestamp::from_micros(i64::MAX)))], now()).unwrap();
    let entries = nft.entries(now()).unwrap();
    let Until::At(end) = entries[0].until else { panic!("{entries:?}") };
    assert!(end.saturating_since(now()) > Duration::from_secs(500 * 365 * 86_400), "{end:?}");
}

#[test]
fn without_the_capability_the_error_names_it() {
    if skips("without_the_capability_the_error_names_it") {
        return;
    }
    let (host, _peer) = wired();
    let error = host.enter(|| {
        // Of this thread alone, which ends here.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        Nft::open(BANS_MAX).unwrap_err()
    });
    assert!(error.hint.contains("CAP_NET_ADMIN"), "{error}");
}
