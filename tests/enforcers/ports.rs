//! Bans on some ports: what goes to them is dropped, and nothing else of the same source.

use std::net::IpAddr;

use blocker::net::{Protocol, SCOPES_MAX};

use super::*;
use frame::{frame, ipv4, ipv6};

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

fn ban_on(ports: &str, text: &str, millis: u64) -> Change {
    let Change::Ban(banned) = ban(text, millis) else { unreachable!("it makes a ban") };
    Change::Ban(Ban { scope: scope(ports), ..banned })
}

fn unban_on(ports: &str, text: &str) -> Change {
    Change::Unban { prefix: prefix(text), scope: scope(ports) }
}

/// What a frame is, its bytes, and where it goes, as far as that can be told.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    to: Option<(Protocol, u16)>,
}

/// The first bytes of a TCP, UDP, SCTP or DCCP header.
fn to(port: u16) -> Vec<u8> {
    [&[0x9c, 0x40][..], &port.to_be_bytes(), &[0; 4], &[0; 4], &[0x50, 2, 0, 0, 0, 0, 0, 0]].concat()
}

fn cases(source: IpAddr) -> Vec<Case> {
    let case = |name, bytes, protocol: Protocol, port| Case { name, bytes, to: Some((protocol, port)) };
    let none = |name, bytes| Case { name, bytes, to: None };
    use Protocol::{Dccp, Sctp, Tcp, Udp};
    match source {
        IpAddr::V4(source) => {
            let v4 = |protocol, port| frame(&[8, 0], &ipv4(source, 0x45, 0, protocol, &to(port)));
            let part = |field| frame(&[8, 0], &ipv4(source, 0x45, field, 6, &to(22)));
            vec![
                case("TCP to the port", v4(6, 22), Tcp, 22),
                case("TCP beside it", v4(6, 23), Tcp, 23),
                case("TCP before the range", v4(6, 7_999), Tcp, 7_999),
                case("TCP to the first of the range", v4(6, 8_000), Tcp, 8_000),
                case("TCP to the last of the range", v4(6, 8_010), Tcp, 8_010),
                case("TCP behind the range", v4(6, 8_011), Tcp, 8_011),
                case("UDP to a port of TCP", v4(17, 22), Udp, 22),
                case("UDP to its port", v4(17, 53), Udp, 53),
                case("TCP to a port of UDP", v4(6, 53), Tcp, 53),
                case("SCTP", v4(132, 9), Sctp, 9),
                case("DCCP", v4(33, 5_004), Dccp, 5_004),
                none("ICMP", v4(1, 22)),
                none("GRE", v4(47, 22)),
                case("a first fragment", part(0x2000), Tcp, 22),
                none("a later fragment", part(0x2003)),
                none("the last fragment", part(0x0003)),
                case(
                    "a priority tag",
                    [&v4(6, 22)[..12], &[0x81, 0, 0, 0], &v4(6, 22)[12..]].concat(),
                    Tcp,
                    22,
                ),
            ]
        }
        IpAddr::V6(source) => {
            let v6 = |next, payload: &[u8]| frame(&[0x86, 0xdd], &ipv6(source, next, 64, payload));
            let behind = |next, header: &[u8]| v6(next, &[header, &to(22)[..]].concat());
            let option = |next| [next, 0, 1, 4, 0, 0, 0, 0];
            let part = |field: u16| {
                let [high, low] = field.to_be_bytes();
                [6, 0, high, low, 0, 0, 0, 7]
            };
            vec![
                case("TCP to the port", v6(6, &to(22)), Tcp, 22),
                case("TCP beside it", v6(6, &to(23)), Tcp, 23),
                case("UDP to its port", v6(17, &to(53)), Udp, 53),
                none("an echo request", v6(58, &[128; 20])),
                case("behind hop-by-hop", behind(0, &option(6)), Tcp, 22),
                case("behind routing", behind(43, &[6, 0, 4, 0, 0, 0, 0, 0]), Tcp, 22),
                case("behind destination options", behind(60, &option(6)), Tcp, 22),
                case("behind two", behind(0, &[option(60), option(6)].concat()), Tcp, 22),
                case("an atomic fragment", behind(44, &part(0)), Tcp, 22),
                case("a first fragment", behind(44, &part(1)), Tcp, 22),
                none("a later fragment", behind(44, &part(9))),
                case("a fragment behind options", behind(0, &[option(44), part(1)].concat()), Tcp, 22),
            ]
        }
    }
}

/// Beside XDP it is nftables that looks at ports, whatever the layout of the XDP program's maps.
fn with_each_kind(test: &str, case: impl Fn(&mut Stage)) {
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    case(&mut Stage::new(Backend::Nftables));
    case(&mut Stage::of(Backend::Nftables, 1_000_000));
    if xdp::is_built_in() {
        case(&mut Stage::new(Backend::XdpHash));
    } else {
        skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
}

#[test]
fn a_ban_on_ports_drops_what_goes_to_them_and_nothing_else() {
    with_each_kind("a_ban_on_ports_drops_what_goes_to_them_and_nothing_else", |stage| {
        let sources = ["203.0.113.9", "2001:db8:66::9"];
        let all: Vec<(&str, Case)> = sources
            .iter()
            .flat_map(|source| cases(source.parse().unwrap()).into_iter().map(|case| (*source, case)))
            .collect();
        let ports = "22,8000-8010,53/udp,9/sctp,5004/dccp";
        let mut dropped = 0;
        for bans in [vec![], sources.iter().map(|source| ban_on(ports, source, 60_000)).collect()] {
            stage.apply(&bans);
            for (source, Case { name, bytes, to }) in &all {
                let expected = stage.oracle.drops_to(prefix(source), *to, now());
                assert_eq!(stage.drops(bytes), expected, "{:?}: {name} from {source}", stage.backend);
                dropped += u64::from(expected);
            }
        }
        // Each is counted once, and for its ban.
        let counted: u64 = stage.packets().values().sum();
        assert_eq!((counted, stage.dropped()), (dropped, dropped), "{:?}", stage.backend);
        assert!(dropped > 10);
    });
}

#[test]
fn bans_on_other_ports_and_wider_ones_stand_beside_each_other() {
    with_each_kind("bans_on_other_ports_and_wider_ones_stand_beside_each_other", |stage| {
        let check = |stage: &mut Stage| {
            for source in ["203.0.113.9", "203.0.113.10", "198.51.100.9", "2001:db8:66::9", "2001:db8:67::9"]
            {
                for port in [22, 80, 443] {
                    let address: IpAddr = source.parse().unwrap();
                    let bytes = match address {
                        IpAddr::V4(v4) => frame(&[8, 0], &ipv4(v4, 0x45, 0, 6, &to(port))),
                        IpAddr::V6(v6) => frame(&[0x86, 0xdd], &ipv6(v6, 6, 64, &to(port))),
                    };
                    let expected = stage.oracle.drops_to(prefix(source), Some((Protocol::Tcp, port)), now());
                    assert_eq!(stage.drops(&bytes), expected, "{:?}: {source} to {port}", stage.backend);
                }
            }
        };
        stage.apply(&[
            ban_on("22", "203.0.113.9", 60_000),
            ban_on("80,443", "203.0.113.9", 0),
            ban_on("443", "203.0.113.0/24", 60_000),
            ban_on("22", "2001:db8:66::/64", 0),
            ban_on("80", "2001:db8::/32", 60_000),
        ]);
        check(stage);
        // Again, longer; on all ports beside; one of several lifted.
        stage.apply(&[
            ban_on("22", "203.0.113.9", 120_000),
            ban("203.0.113.10", 60_000),
            unban_on("80,443", "203.0.113.9"),
            unban_on("22", "198.51.100.9"),
            unban_on("443", "203.0.113.9"),
        ]);
        check(stage);
        // Whoever takes over finds what is there.
        stage.enforcer.take().unwrap().close(Keep::InForce).unwrap();
        stage.open();
        stage.check();
        check(stage);
        // It must not end while it is checked.
        let short = u64::try_from(kernel::patience(Duration::from_millis(700)).as_millis()).unwrap();
        stage.apply(&[allow("203.0.113.9"), unban("203.0.113.10"), ban_on("80", "203.0.113.10", short)]);
        check(stage);
        thread::sleep(Duration::from_millis(short + 200));
        stage.check();
        check(stage);
        stage.apply(&[Change::Flush, ban_on("80", "198.51.100.9", 60_000)]);
        check(stage);
        assert_eq!(stage.enforcer().entries(now()).unwrap().len(), 1);
    });
}

#[test]
fn one_scope_too_many_is_refused_and_one_that_is_free_again_is_not() {
    with_each_kind("one_scope_too_many_is_refused_and_one_that_is_free_again_is_not", |stage| {
        let on = |port: usize| ban_on(&port.to_string(), "203.0.113.9", 60_000);
        let bans: Vec<Change> = (1..=SCOPES_MAX).map(|port| on(1_000 + port)).collect();
        stage.apply(&bans);
        let error = stage.write(&[ban("203.0.113.8", 0), on(99)]).unwrap_err();
        assert!(error.to_string().contains("different lists of ports"), "{:?}: {error}", stage.backend);
        assert_eq!(error.prefix, Some(prefix("203.0.113.9")));
        stage.oracle.apply(&[ban("203.0.113.8", 0)], now()).unwrap();
        stage.check();
        stage.apply(&[unban_on("1007", "203.0.113.9"), on(99)]);
        let frame_to = |port| frame(&[8, 0], &ipv4([203, 0, 113, 9].into(), 0x45, 0, 6, &to(port)));
        for (port, dropped) in [(99, true), (1_001, true), (1_007, false), (1_015, true), (1_016, false)] {
            assert_eq!(stage.drops(&frame_to(port)), dropped, "{:?}: {port}", stage.backend);
        }
    });
}

#[test]
fn nft_itself_lists_the_ports_and_nothing_of_them_is_left_behind() {
    let test = "nft_itself_lists_the_ports_and_nothing_of_them_is_left_behind";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    let mut stage = Stage::new(Backend::Nftables);
    let listed = |stage: &Stage| {
        let listed = stage.host.run("nft", &["list", "ruleset"]).unwrap();
        listed.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let none = listed(&stage);
    assert!(!none.contains("ports4") && !none.contains("dport 22"), "{none}");
    let bans = ["203.0.113.9", "2001:db8:66::/64"].map(|text| ban_on("22,8000-8010,53/udp", text, 0));
    stage.apply(&bans);
    let some = listed(&stage);
    for says in [
        "goto ports4",
        "chain ports4 { ip frag-off & 8191 != 0 accept tcp dport 22 jump ports4_1",
        "frag frag-off != 0 accept tcp dport 22 jump ports6_1 tcp dport 8000-8010 jump ports6_1",
        "udp dport 53 jump ports6_1",
        "chain ports4_1 { ip saddr @ports4_1_32 goto dropped }",
    ] {
        assert!(some.contains(says), "{says:?} is not in\n{some}");
    }
    stage.apply(&[unban_on("22,8000-8010,53/udp", "203.0.113.9"), Change::Flush]);
    assert_eq!(listed(&stage), none);
}
