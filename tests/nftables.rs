//! What only the nftables enforcer can meet: other programs that change its table, another size, and a missing
//! capability. What every enforcer does is in `enforcers.rs`.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use blocker::{
    enforce::{
        Enforcer, Health, Keep,
        nft::{Nft, Options},
    },
    engine::{Change, Command, Engine, Event, Input, Kept, Reading, Request, RequestId, SourceId},
    filter::{Dialect, Filter, FilterSpec, Pattern, Place},
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    policy::{Jail, Limits, Policy, SourceSpec},
    time::{BanTime, Timestamp, Until},
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use xtask::lab::{Netns, Scratch, missing, probe, skipped, wait_for};

const HOST: &str = "198.51.100.1";
const PEER: &str = "198.51.100.2";
const BANS_MAX: usize = 1_000;
/// Bans of a table that is soon full, and how many of them by hand.
const FULL: usize = 100;
const MANUAL: usize = 20;

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

/// A table that others may change, as on kernels that cannot keep them from it.
fn open_shared(host: &Netns) -> Nft {
    let options = Options { owned: false, ..Options::of(BANS_MAX) };
    host.enter(|| Nft::open_with(options)).unwrap()
}

/// Whether the table is ours alone here; says so when it is not.
fn is_owned(nft: &Nft, test: &str) -> bool {
    let reason = nft.describe().reason;
    let owned = reason.contains("ours alone");
    if !owned {
        skipped(test, &reason);
    }
    owned
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
    let mut nft = open_shared(&host);
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
    // It might have changed elements too, which have no handles: the agent compares them, and not every time.
    assert_eq!(nft.repair().unwrap(), Health::Doubtful, "somebody changed something");
    assert_eq!(nft.repair().unwrap(), Health::Sound);
    for altered in [
        "flush set inet blocker ban4_32",
        "delete element inet blocker ban6_64 { 2001:db8:66:: }",
        "add element inet blocker ban4_32 { 203.0.113.1 }",
    ] {
        host.run("nft", &[altered]).unwrap();
        let seen =
            wait_for(Duration::from_secs(5), || (nft.repair().unwrap() == Health::Doubtful).then_some(()));
        assert!(seen.is_some(), "{altered}");
    }
    assert_eq!(held(&mut nft), [("203.0.113.1".to_owned(), 0)], "what is listed is what the kernel has");
}

#[test]
fn a_ban_after_the_table_was_deleted_is_in_force_and_the_repair_is_reported() {
    if skips("a_ban_after_the_table_was_deleted_is_in_force_and_the_repair_is_reported") {
        return;
    }
    let (host, peer) = wired();
    let mut nft = open_shared(&host);
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
fn a_table_of_ours_alone_survives_what_other_programs_do() {
    let test = "a_table_of_ours_alone_survives_what_other_programs_do";
    if skips(test) {
        return;
    }
    let (host, peer) = wired();
    let host_ip: IpAddr = HOST.parse().unwrap();
    let mut nft = open(&host, BANS_MAX);
    if !is_owned(&nft, test) {
        return;
    }
    nft.apply(&[ban(PEER, in_an_hour()), ban("20.0.0.0/8", Until::Forever)], now()).unwrap();
    // What `systemctl reload nftables` loads on Debian.
    let scratch = Scratch::new("nftables").unwrap();
    let reload = scratch.join("nftables.conf");
    std::fs::write(
        &reload,
        "flush ruleset\ntable inet filter { chain input { type filter hook input priority 0; }\n}\n",
    )
    .unwrap();
    for (command, is_refused) in [
        (vec!["flush", "ruleset"], false),
        (vec!["-f", reload.to_str().unwrap()], false),
        (vec!["delete", "table", "inet", "blocker"], true),
        (vec!["flush", "table", "inet", "blocker"], true),
        (vec!["flush", "set", "inet", "blocker", "ban4_32"], true),
        (vec!["delete", "element", "inet", "blocker", "ban4_8", "{ 20.0.0.0 }"], true),
        (vec!["insert", "rule", "inet", "blocker", "source4", "accept"], true),
    ] {
        let done = host.run("nft", &command);
        assert_eq!(done.is_err(), is_refused, "{command:?}: {done:?}");
        assert!(!probe::ping(&peer, host_ip), "{command:?}: still banned");
        assert_eq!(nft.repair().unwrap(), Health::Sound, "{command:?}");
        assert_eq!(held(&mut nft).len(), 2, "{command:?}");
    }
    assert!(host.run("nft", &["list", "ruleset"]).unwrap().contains("table inet blocker"));
    let error = host.enter(|| Nft::open(BANS_MAX).unwrap_err());
    assert!(error.to_string().contains("belongs to another process"), "{error}");

    // It outlives its owner, whose end nobody announces; the next one takes it up where it is.
    let before = nft.entries(now()).unwrap();
    drop(nft);
    assert!(!probe::ping(&peer, host_ip), "banned with nobody there");
    let mut nft = open(&host, BANS_MAX);
    let after = nft.entries(now()).unwrap();
    assert!(after[1].packets > before[1].packets, "{before:?} {after:?}");
    host.run("nft", &["flush", "ruleset"]).unwrap();
    assert!(!probe::ping(&peer, host_ip), "taken up");
    assert_eq!(nft.repair().unwrap(), Health::Sound);

    // Between two owners it is anybody's, to be removed without us.
    drop(nft);
    host.run("nft", &["delete", "table", "inet", "blocker"]).unwrap();
    assert!(probe::ping(&peer, host_ip), "gone");
    let nft = open(&host, BANS_MAX);
    Box::new(nft).close(Keep::Nothing).unwrap();
    assert!(!host.run("nft", &["list", "ruleset"]).unwrap().contains("blocker"), "removed by its owner");
}

#[test]
fn a_table_that_others_may_change_becomes_ours_alone_with_all_it_holds() {
    let test = "a_table_that_others_may_change_becomes_ours_alone_with_all_it_holds";
    if skips(test) {
        return;
    }
    let (host, peer) = wired();
    let mut nft = open_shared(&host);
    nft.apply(&[ban(PEER, in_an_hour()), ban("20.0.0.0/8", Until::Forever)], now()).unwrap();
    assert!(!probe::ping(&peer, HOST.parse().unwrap()), "banned");
    let before = held(&mut nft);
    drop(nft);
    for owned in [true, false, true] {
        let options = Options { owned, ..Options::of(BANS_MAX) };
        let mut nft = host.enter(|| Nft::open_with(options)).unwrap();
        assert_eq!(held(&mut nft), before, "owned: {owned}");
    }
}

#[test]
fn a_strangers_table_of_our_name_is_left_alone() {
    if skips("a_strangers_table_of_our_name_is_left_alone") {
        return;
    }
    let (host, _peer) = wired();
    for theirs in [
        "table inet blocker { chain input { type filter hook input priority 0; ip saddr 192.0.2.1 drop; }\n}",
        "table inet blocker { set mine { type ipv4_addr; }\n}",
    ] {
        host.run("nft", &[theirs]).unwrap();
        let before = host.run("nft", &["list", "ruleset"]).unwrap();
        let error = host.enter(|| Nft::open(BANS_MAX).unwrap_err());
        let said = error.to_string();
        assert!(said.contains("not blocker's") && said.contains("nft delete table inet blocker"), "{said}");
        host.enter(Nft::remove).unwrap();
        assert_eq!(host.run("nft", &["list", "ruleset"]).unwrap(), before, "untouched");
        host.run("nft", &["delete", "table", "inet", "blocker"]).unwrap();
    }
    host.run("nft", &["add", "table", "inet", "blocker"]).unwrap();
    drop(open(&host, BANS_MAX));
    host.enter(Nft::remove).unwrap();
    assert_eq!(host.run("nft", &["list", "ruleset"]).unwrap(), "");
    host.enter(Nft::remove).unwrap();
}

#[test]
fn what_nft_lists_it_can_load_again() {
    if skips("what_nft_lists_it_can_load_again") {
        return;
    }
    // Administrators save what `nft list ruleset` prints as the rules of the next boot.
    for bans_max in [BANS_MAX, 1_000_000] {
        let (host, other) = wired();
        let options = Options { owned: false, ..Options::of(bans_max) };
        let mut nft = host.enter(|| Nft::open_with(options)).unwrap();
        let bans = [
            "203.0.113.9",
            "20.0.0.0/8",
            "20.1.2.0/24",
            "2001:db8:66::/64",
            "2001:db8::/32",
            "2001:db8::/96",
        ];
        let mut changes: Vec<Change> = bans.iter().map(|text| ban(text, Until::Forever)).collect();
        changes.push(Change::Allow { prefix: prefix("20.1.2.3") });
        nft.apply(&changes, now()).unwrap();
        let listed = host.run("nft", &["list", "ruleset"]).unwrap();
        let scratch = Scratch::new("nftables").unwrap();
        let saved = scratch.join("saved");
        std::fs::write(&saved, &listed).unwrap();
        other.run("nft", &["-f", saved.to_str().unwrap()]).unwrap();
        assert_eq!(other.run("nft", &["list", "ruleset"]).unwrap(), listed);
    }
}

#[test]
fn a_ledger_that_is_full_and_the_kernel_agree_on_who_gave_way() {
    if skips("a_ledger_that_is_full_and_the_kernel_agree_on_who_gave_way") {
        return;
    }
    let (host, _peer) = wired();
    let mut nft = open(&host, FULL);
    let pattern = Pattern { text: "^failed login from <ADDR>$".to_owned(), at: Place::default() };
    let filter = FilterSpec {
        name: "test".to_owned(),
        dialect: Dialect::Native,
        failregex: vec![pattern],
        ..FilterSpec::default()
    };
    let jail = Jail {
        name: "test".into(),
        sources: vec![SourceId(0)],
        filters: vec![Arc::new(Filter::compile(filter).unwrap())],
        maxretry: 1,
        bantime: BanTime::For(Duration::from_secs(600)),
        ..Jail::default()
    };
    let policy = Policy {
        jails: vec![jail],
        sources: vec![SourceSpec::File("/log".into())],
        limits: Limits { bans_max: FULL, ..Limits::default() },
        ..Policy::default()
    };
    let mut engine = Engine::new(now(), policy, Kept::default());
    let mut gave_way = 0;
    let mut carry_out = |engine: &mut Engine| {
        let mut changes = Vec::new();
        while let Some(command) = engine.next_command() {
            match command {
                Command::Enforce(change) => changes.push(change),
                Command::Note(Event::GaveWay { .. }) => gave_way += 1,
                _ => {}
            }
        }
        nft.apply(&changes, now()).unwrap();
        held(&mut nft).into_iter().map(|(prefix, _)| prefix).collect::<Vec<_>>()
    };
    let by_hand: Vec<String> = (0..MANUAL).map(|n| format!("192.0.2.{n}")).collect();
    for text in &by_hand {
        let request = Request::Ban {
            prefix: prefix(text),
            scope: Scope::ALL,
            // Sooner over than any other.
            bantime: BanTime::For(Duration::from_secs(300)),
            reason: String::new(),
        };
        engine.handle(now(), Input::Operator { id: RequestId(0), request });
    }
    // Each ends later than the one before.
    let start = now();
    for n in 0..3 * FULL {
        let block = format!("failed login from 203.0.{}.{}\n", n / 250, 1 + n % 250);
        let at = start.saturating_add(Duration::from_millis(10 * n as u64));
        let lines = Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live };
        engine.handle(at, lines);
        if n % 10 == 9 {
            let first = (n + 1).saturating_sub(FULL - MANUAL);
            let last: Vec<String> =
                (first..=n).map(|n| format!("203.0.{}.{}", n / 250, 1 + n % 250)).collect();
            assert_eq!(carry_out(&mut engine), [&by_hand[..], &last].concat(), "after {n}");
        }
    }
    assert_eq!(gave_way, 2 * FULL + MANUAL);
}

#[test]
fn many_bans_are_spread_over_sets_that_a_later_agent_finds() {
    if skips("many_bans_are_spread_over_sets_that_a_later_agent_finds") {
        return;
    }
    let (host, peer) = wired();
    let host_ip: IpAddr = HOST.parse().unwrap();
    let mut nft = open(&host, 1_000_000);
    let mut bans: Vec<String> =
        (0..20_000).map(|n| format!("20.{}.{}.{}", n % 7, n / 250, n % 250)).collect();
    bans.extend((0..20_000).map(|n| format!("2001:db8:{n:x}::/64")));
    bans.push(PEER.to_owned());
    let changes: Vec<Change> = bans.iter().map(|text| ban(text, in_an_hour())).collect();
    nft.apply(&changes, now()).unwrap();
    let sorted = |nft: &mut Nft| {
        let prefixes: Vec<Prefix> = nft.entries(now()).unwrap().iter().map(|entry| entry.prefix).collect();
        assert!(prefixes.is_sorted());
        prefixes
    };
    let mut expected: Vec<Prefix> = bans.iter().map(|text| prefix(text)).collect();
    expected.sort_unstable();
    assert_eq!(sorted(&mut nft), expected);
    assert!(!probe::ping(&peer, host_ip), "banned");
    let listed = host.run("nft", &["list", "sets"]).unwrap();
    assert_eq!(listed.matches("set ban4_32_s").count(), 64, "evenly spread");
    // Another size with as many sets, another with fewer, one set, and back.
    for bans_max in [1_000_000, 1_000_100, 300_000, 60_000, 1_000_000] {
        drop(nft);
        nft = open(&host, bans_max);
        assert_eq!(sorted(&mut nft), expected, "{bans_max}");
        assert!(!probe::ping(&peer, host_ip), "{bans_max}: banned");
        assert_eq!(nft.repair().unwrap(), Health::Sound, "{bans_max}");
    }
    nft.apply(&[Change::Flush], now()).unwrap();
    assert_eq!(sorted(&mut nft), []);
    assert!(probe::ping(&peer, host_ip), "flushed");
    nft.apply(&changes, now()).unwrap();
    // Again with another end: each is renewed.
    let later = Until::At(now().saturating_add(Duration::from_secs(7_200)));
    nft.apply(&bans.iter().map(|text| ban(text, later)).collect::<Vec<_>>(), now()).unwrap();
    let soonest = nft.entries(now()).unwrap().iter().map(|entry| entry.until).min();
    assert!(soonest > Some(Until::At(now().saturating_add(Duration::from_secs(7_000)))), "{soonest:?}");
    let unbans: Vec<Change> = bans
        .iter()
        .map(|text| Change::Unban { prefix: prefix(text), scope: Scope::ALL })
        .chain([ban(PEER, Until::Forever)])
        .collect();
    nft.apply(&unbans, now()).unwrap();
    assert_eq!(sorted(&mut nft), [prefix(PEER)]);
}

/// The kernel resizes its hash behind many new bans, and a listing that meanwhile runs leaves out some.
#[test]
fn a_listing_right_behind_many_bans_lacks_none() {
    if skips("a_listing_right_behind_many_bans_lacks_none") {
        return;
    }
    let (host, _peer) = wired();
    let mut nft = open(&host, 65_536);
    let changes: Vec<Change> = (0..50_000_u32)
        .map(|n| ban(&format!("20.{}.{}.{}", n % 199, n / 199 % 256, n / 199 / 256), in_an_hour()))
        .collect();
    for round in 0..5 {
        nft.apply(&[&[Change::Flush], &changes[..]].concat(), now()).unwrap();
        assert_eq!(nft.entries(now()).unwrap().len(), changes.len(), "round {round}");
    }
}

#[test]
fn counters_are_a_choice_and_the_total_is_not() {
    if skips("counters_are_a_choice_and_the_total_is_not") {
        return;
    }
    let (host, peer) = wired();
    for (counters, counted) in [(true, 1), (false, 0), (true, 0)] {
        let mut nft = host.enter(|| Nft::open_with(Options { counters, ..Options::of(BANS_MAX) })).unwrap();
        nft.apply(&[ban(PEER, in_an_hour())], now()).unwrap();
        assert_eq!(
            host.run("nft", &["list", "set", "inet", "blocker", "ban4_32"]).unwrap().contains("counter"),
            counters
        );
        if counted > 0 {
            assert!(!probe::ping(&peer, HOST.parse().unwrap()), "banned");
        }
        assert_eq!(held(&mut nft), [(PEER.to_owned(), counted)], "counters: {counters}");
        assert!(nft.counters().unwrap().packets >= 1, "the total stays");
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

/// A bridge's ports and VLANs are not where nftables looks: what the host itself takes from them is.
#[test]
fn what_comes_by_vlan_or_bridge_is_dropped_where_the_host_takes_it() {
    if skips("what_comes_by_vlan_or_bridge_is_dropped_where_the_host_takes_it") {
        return;
    }
    for kind in ["vlan", "qinq", "bridge"] {
        let (host, peer) = (Netns::new("host").unwrap(), Netns::new("peer").unwrap());
        host.link("eth0", &peer, "eth0").unwrap();
        let interface = match kind {
            "bridge" => {
                for command in ["link add br0 type bridge", "link set eth0 master br0", "link set br0 up"] {
                    host.ip(command).unwrap();
                }
                ["br0", "eth0"]
            }
            _ => {
                if host.ip("link add link eth0 name trial type vlan id 9").is_err() {
                    eprintln!("not tried: {kind}: this kernel has no VLAN interfaces (8021q)");
                    continue;
                }
                let inner = if kind == "qinq" { "eth0.7" } else { "eth0" };
                for netns in [&host, &peer] {
                    if kind == "qinq" {
                        netns.ip("link add link eth0 name eth0.7 type vlan proto 802.1ad id 7").unwrap();
                        netns.ip("link set eth0.7 up").unwrap();
                    }
                    netns.ip(&format!("link add link {inner} name tagged type vlan id 5")).unwrap();
                    netns.ip("link set tagged up").unwrap();
                }
                ["tagged", "tagged"]
            }
        };
        for (netns, address, interface) in [(&host, HOST, interface[0]), (&peer, PEER, interface[1])] {
            netns.ip(&format!("addr add {address}/24 dev {interface}")).unwrap();
        }
        let host_ip: IpAddr = HOST.parse().unwrap();
        let mut nft = open(&host, BANS_MAX);
        let reached = wait_for(Duration::from_secs(5), || probe::ping(&peer, host_ip).then_some(()));
        assert!(reached.is_some(), "{kind}: nobody is banned");
        nft.apply(&[ban(PEER, in_an_hour())], now()).unwrap();
        assert!(!probe::ping(&peer, host_ip), "{kind}: banned");
        assert!(held(&mut nft)[0].1 > 0, "{kind}");
        nft.apply(&[ban("198.51.100.0/24", in_an_hour()), Change::Allow { prefix: prefix(PEER) }], now())
            .unwrap();
        assert!(probe::ping(&peer, host_ip), "{kind}: allowed inside a ban");
    }
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
