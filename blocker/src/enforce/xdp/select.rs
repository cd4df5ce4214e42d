//! Which interfaces are guarded: those that strangers' frames enter by, each frame once, as low as it can be seen.
//!
//! | interface | `auto` |
//! |---|---|
//! | hardware, tunnels, point-to-point | guarded while it is up |
//! | bond, team | its slaves are: that is where native XDP of a bond runs anyway, and so a bond still takes a slave whose driver has no XDP |
//! | bridge, Open vSwitch, VRF | its ports are |
//! | VLAN, MACVLAN, IPVLAN | the interface below is, which sees the same frames before |
//! | a guest's end: veth, netkit or tap, on a bridge or without an address | not, unless nothing else leads out of that bridge |
//! | a veth or netkit with an address of its own | guarded: it is this host's way out when the host is itself a container |
//! | loopback, dummy | not: nothing comes in by them |
//!
//! Interfaces that are named are taken at that word, up or not; only a bond means its slaves. What is here is pure.
#![forbid(unsafe_code)]

use super::rtnl::Interface;
use crate::glob;

/// What the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Those that strangers come in by.
    Auto,
    /// By name, or by pattern as `eth*`. Those that are not there yet are waited for.
    Named(Vec<String>),
}

/// What is to be done about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Attach to it.
    Guard,
    /// Do not, for this reason, which continues a sentence.
    Leave(String),
    /// Nobody asked for it.
    Ignore,
}

/// What is before the packet, as far as the programs know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkLayer {
    Ethernet,
    /// Packets without anything before them.
    Bare,
}

/// `None` where the programs cannot read what comes in.
pub(super) fn link_layer(interface: &Interface) -> Option<LinkLayer> {
    // linux/if_arp.h: ETHER, LOOPBACK; PPP, RAWIP, TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE, NONE.
    match interface.link_layer {
        1 | 772 => Some(LinkLayer::Ethernet),
        512 | 519 | 768 | 769 | 776 | 778 | 823 | 0xfffe => Some(LinkLayer::Bare),
        _ => None,
    }
}

/// Link layers of interfaces that IP does not use (linux/if_arp.h): CAN, 802.11 as it is in the air, 802.15.4, and the
/// monitors of netlink and vsock.
const WITHOUT_IP: [u16; 8] = [280, 801, 802, 803, 804, 805, 824, 826];

/// One verdict for each interface, in their order.
pub(super) fn select(wanted: &Interfaces, exclude: &[String], all: &[Interface]) -> Vec<Verdict> {
    let one = |interface: &Interface| match wanted {
        Interfaces::Auto => automatic(interface, exclude, all),
        Interfaces::Named(names) => named(interface, names, exclude, all),
    };
    all.iter().map(one).collect()
}

/// Names, not patterns, that no interface has.
pub(super) fn missing<'a>(wanted: &'a Interfaces, all: &[Interface]) -> Vec<&'a str> {
    let Interfaces::Named(names) = wanted else { return Vec::new() };
    let is_missing = |name: &&String| {
        !glob::is_pattern(name.as_bytes()) && !all.iter().any(|interface| interface.name == **name)
    };
    names.iter().filter(is_missing).map(String::as_str).collect()
}

fn is_one_of(name: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| glob::matches(pattern.as_bytes(), name.as_bytes()))
}

fn is_bond(interface: &Interface) -> bool {
    matches!(interface.kind.as_str(), "bond" | "team")
}

fn is_bridge(interface: &Interface) -> bool {
    matches!(interface.kind.as_str(), "bridge" | "openvswitch")
}

/// What a container's or a virtual machine's end looks like from here.
fn is_guest_end(interface: &Interface) -> bool {
    matches!(interface.kind.as_str(), "veth" | "netkit" | "tun")
        && link_layer(interface) == Some(LinkLayer::Ethernet)
}

fn by_index(all: &[Interface], index: Option<u32>) -> Option<&Interface> {
    all.iter().find(|interface| Some(interface.index) == index)
}

fn parts<'a>(all: &'a [Interface], of: &Interface) -> impl Iterator<Item = &'a Interface> {
    let master = of.index;
    all.iter().filter(move |interface| interface.master == Some(master))
}

/// The names of the parts of a bond or bridge, as they are read.
fn parts_text(all: &[Interface], of: &Interface) -> String {
    /// More are not of use to anybody.
    const NAMED_MAX: usize = 8;
    let names: Vec<&str> = parts(all, of).map(|part| part.name.as_str()).collect();
    match names.len() {
        0 => "it has none yet".to_owned(),
        count if count > NAMED_MAX => format!("{count} of them"),
        _ => names.join(", "),
    }
}

fn named(interface: &Interface, names: &[String], exclude: &[String], all: &[Interface]) -> Verdict {
    let is_named =
        |interface: &Interface| is_one_of(&interface.name, names) && !is_one_of(&interface.name, exclude);
    if is_bond(interface) && is_named(interface) {
        return Verdict::Leave(format!("the bond is guarded at its slaves: {}", parts_text(all, interface)));
    }
    let is_slave = by_index(all, interface.master).is_some_and(|bond| is_bond(bond) && is_named(bond));
    if !is_named(interface) && !is_slave {
        return Verdict::Ignore;
    }
    Verdict::Guard
}

fn automatic(interface: &Interface, exclude: &[String], all: &[Interface]) -> Verdict {
    let leave = |why: &str| Verdict::Leave(why.to_owned());
    if interface.loopback {
        return Verdict::Ignore;
    }
    if is_one_of(&interface.name, exclude) {
        return leave("`exclude` names it");
    }
    if !interface.up {
        return leave("it is down");
    }
    if WITHOUT_IP.contains(&interface.link_layer) {
        return leave("no IP comes in by it");
    }
    if is_bond(interface) {
        return Verdict::Leave(format!("the bond is guarded at its slaves: {}", parts_text(all, interface)));
    }
    match interface.kind.as_str() {
        "bridge" | "openvswitch" | "vrf" => {
            return Verdict::Leave(format!(
                "what comes in by it came by its ports: {}",
                parts_text(all, interface)
            ));
        }
        "dummy" | "ifb" => return leave("nothing comes in by it"),
        "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" => {
            if let Some(lower) = by_index(all, interface.lower) {
                return Verdict::Leave(format!("what comes in by it came by {}", lower.name));
            }
        }
        _ => {}
    }
    if is_guest_end(interface) {
        match by_index(all, interface.master) {
            Some(bridge) if is_bridge(bridge) => {
                let only_guests = parts(all, bridge).all(is_guest_end);
                if !(only_guests && leads_out(all, bridge)) {
                    return Verdict::Leave(format!("it is the end of a guest on {}", bridge.name));
                }
            }
            // A part of a bond or of a VRF.
            Some(_) => {}
            None if interface.kind == "tun" || interface.has_address || interface.has_default => {}
            None => return leave("it is the end of a guest: it has no address here"),
        }
    }
    Verdict::Guard
}

/// Whether a default route leaves by this bridge, or by something that stands on it.
fn leads_out(all: &[Interface], bridge: &Interface) -> bool {
    let on_it = |interface: &Interface| interface.lower == Some(bridge.index) && interface.has_default;
    bridge.has_default || all.iter().any(on_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `eth0`, `veth1:veth`, `eth1=4` (master), `vlan5:vlan@1` (lower), then what else holds of it.
    fn interface(index: u32, text: &str) -> Interface {
        let mut words = text.split(' ');
        let mut found = Interface { index, up: true, link_layer: 1, mtu: 1_500, ..Interface::default() };
        let mut head = words.next().unwrap().to_owned();
        for (mark, field) in [('@', &mut found.lower), ('=', &mut found.master)] {
            if let Some((before, after)) = head.clone().split_once(mark) {
                *field = Some(after.parse().unwrap());
                head = before.to_owned();
            }
        }
        if let Some((name, kind)) = head.clone().split_once(':') {
            found.kind = kind.to_owned();
            head = name.to_owned();
        }
        found.name = head;
        for word in words {
            match word {
                "down" => found.up = false,
                "lo" => found.loopback = true,
                "address" => found.has_address = true,
                "default" => found.has_default = true,
                "bare" => found.link_layer = 0xfffe,
                "can" => found.link_layer = 280,
                other => panic!("{other}"),
            }
        }
        found
    }

    fn guarded(wanted: &Interfaces, exclude: &[&str], host: &[&str]) -> Vec<String> {
        let all: Vec<Interface> = host.iter().zip(1..).map(|(text, index)| interface(index, text)).collect();
        let exclude: Vec<String> = exclude.iter().map(|&pattern| pattern.to_owned()).collect();
        let verdicts = select(wanted, &exclude, &all);
        let guarded = all.iter().zip(verdicts).filter(|(_, verdict)| *verdict == Verdict::Guard);
        guarded.map(|(interface, _)| interface.name.clone()).collect()
    }

    #[test]
    fn automatic_takes_where_strangers_come_in() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "a plain server",
                &["lo lo", "eth0 address default", "eth1 address", "eth2 down"],
                &["eth0", "eth1"],
            ),
            ("no route at all", &["lo lo", "eth0"], &["eth0"]),
            ("a container", &["lo lo", "eth0:veth address default"], &["eth0"]),
            (
                "a host of containers",
                &[
                    "eth0 default",
                    "docker0:bridge address",
                    "veth1:veth=2",
                    "veth2:veth=2",
                    "cali1:veth",
                    "lxc1:netkit",
                ],
                &["eth0"],
            ),
            (
                "virtual machines beside hardware on a bridge",
                &["eth0=3", "tap0:tun=3", "br0:bridge address default"],
                &["eth0"],
            ),
            (
                "nothing but guests on the bridge that leads out",
                &["one:veth=3", "two:veth=3", "br0:bridge address default"],
                &["one", "two"],
            ),
            (
                "the default route leaves by a VLAN on the bridge",
                &["one:veth=2", "br0:bridge", "br0.5:vlan@2 default"],
                &["one"],
            ),
            (
                "a bond",
                &["eth0=3", "eth1=3", "bond0:bond default", "bond0.7:vlan@3 address"],
                &["eth0", "eth1"],
            ),
            ("a bond of veths", &["one:veth=3", "two:veth=3", "bond0:bond default"], &["one", "two"]),
            ("a VLAN", &["eth0", "eth0.5:vlan@1 address default"], &["eth0"]),
            (
                "a VLAN or MACVLAN moved into a container",
                &["eth0:vlan address", "net1:macvlan"],
                &["eth0", "net1"],
            ),
            (
                "tunnels",
                &[
                    "eth0",
                    "wg0:wireguard address bare",
                    "ppp0:ppp bare",
                    "tun0:tun bare",
                    "vx0:vxlan",
                    "tap0:tun",
                ],
                &["eth0", "wg0", "ppp0", "tun0", "vx0", "tap0"],
            ),
            ("what is no network", &["can0:vcan can", "can1 can", "dummy0:dummy address"], &[]),
            ("a VRF", &["eth0=2", "vrf0:vrf"], &["eth0"]),
        ];
        for (name, host, expected) in cases {
            assert_eq!(guarded(&Interfaces::Auto, &[], host), *expected, "{name}");
        }
        let host = ["eth0 default", "mgmt0", "mgmt1"];
        assert_eq!(guarded(&Interfaces::Auto, &["mgmt*"], &host), ["eth0"]);
    }

    #[test]
    fn named_interfaces_are_taken_at_that_word() {
        let host = ["eth0 down", "eth1=4", "eth2=4", "bond0:bond", "docker0:bridge", "eth0.5:vlan@1", "wan0"];
        let cases: &[(&[&str], &[&str], &[&str])] = &[
            (&["eth0"], &[], &["eth0"]),
            (&["eth*"], &[], &["eth0", "eth1", "eth2", "eth0.5"]),
            (&["eth*"], &["eth0.*", "eth2"], &["eth0", "eth1"]),
            (&["bond0"], &[], &["eth1", "eth2"]),
            (&["docker0", "wan?"], &[], &["docker0", "wan0"]),
            (&["eth0.5"], &[], &["eth0.5"]),
            (&["nosuch0"], &[], &[]),
        ];
        for (names, exclude, expected) in cases {
            let wanted = Interfaces::Named(names.iter().map(|&name| name.to_owned()).collect());
            assert_eq!(guarded(&wanted, exclude, &host), *expected, "{names:?} but {exclude:?}");
        }
        let all: Vec<Interface> = host.iter().zip(1..).map(|(text, index)| interface(index, text)).collect();
        let wanted = Interfaces::Named(["eth0", "nosuch0", "ppp*"].map(str::to_owned).to_vec());
        assert_eq!(missing(&wanted, &all), ["nosuch0"]);
    }
}
