//! What a jail has done: fail2ban's actions, as ours.
//!
//! An action that drops packets on this host is what our enforcers do, on every port unless the operator wants the
//! action's own. Any other one is a command that is run beside the ban, with values as environment variables. A Python action
//! is code for fail2ban's own process and is not run.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::{
    ini::{text_of, value_at},
    shell::{self, Value},
    span,
    spec::ActionUse,
    tags,
    words::is_true,
};
use crate::{
    config::{jails, services::service_port},
    filter::Place,
    net::{PortRange, Protocol, Scope},
    policy::{ACTION_TIMEOUT, ActionSpec, CommandLine, TIMEOUT_MAX},
};

/// Actions that drop packets on this host: the name, or what stands before a `-`.
const DROPPING: [&str; 17] = [
    "apf",
    "bsd-ipfw",
    "firewallcmd",
    "hostsdeny",
    "ipfilter",
    "ipfw",
    "ipset",
    "iptables",
    "nftables",
    "npf",
    "osx-afctl",
    "osx-ipfw",
    "pf",
    "route",
    "shorewall",
    "symbiosis-blacklist",
    "ufw",
];

/// Whether the action of this name drops packets on this host.
pub(super) fn drops_packets(name: &str) -> bool {
    is_of(&DROPPING, name)
}

fn is_of(families: &[&str], name: &str) -> bool {
    let of_family = |family: &&str| {
        name.strip_prefix(*family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    families.iter().any(of_family)
}

/// Those of them that know no ports, whatever a jail hands them.
const ON_ALL_PORTS: [&str; 9] =
    ["apf", "hostsdeny", "ipfilter", "npf", "osx-afctl", "route", "shorewall", "symbiosis-blacklist", "ufw"];

/// What a dropping action is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// This.
    Told(Scope),
    /// It names something else than ports: what.
    Untold(String),
}

/// What an action turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Translated {
    /// Our enforcers do it.
    Dropping(Ports),
    /// It opens what others close: the one thing a ban here never does.
    LetsIn(String),
    /// A command of its own, and which of its parts are not run.
    Command(Arc<ActionSpec>, Vec<&'static str>),
    /// Nothing that can be run: why, and what to do.
    Refused(String, &'static str),
}

/// The action of the jail `jail`.
pub(super) fn translate(action: &ActionUse, jail: &str) -> Translated {
    if action.file.ends_with(".py") {
        let why =
            format!("the action {:?} is Python code for fail2ban's own process and is not run", action.file);
        return Translated::Refused(
            why,
            "write a command that does the same, or keep fail2ban beside for it",
        );
    }
    if drops_packets(&action.file) {
        let blocks = action.options.get("blocktype").map(String::as_str).unwrap_or_default();
        return match blocks.split_whitespace().next() {
            Some(target @ ("RETURN" | "ACCEPT" | "accept" | "return" | "allow")) => {
                Translated::LetsIn(target.to_owned())
            }
            _ => Translated::Dropping(ports(action)),
        };
    }
    match command(action, jail) {
        Ok((spec, _)) if spec.ban.is_none() && spec.unban.is_none() && spec.start.is_none() => {
            let why = format!("the action {:?} has neither actionban nor actionunban", action.file);
            Translated::Refused(why, "name another action")
        }
        Ok((spec, left)) => Translated::Command(Arc::new(spec), left),
        Err(why) => {
            let why = format!("the action {:?} is not run: {why}", action.file);
            Translated::Refused(why, "write a command that does the same with the variables it is given")
        }
    }
}

fn command(action: &ActionUse, jail: &str) -> Result<(ActionSpec, Vec<&'static str>), String> {
    let mut spec = ActionSpec::new(&unique_name(&action.name, jail));
    spec.start = at_start(action, "actionstart")?;
    spec.stop = at_start(action, "actionstop")?;
    spec.ban = for_a_ban(action, "actionban")?;
    spec.unban = for_a_ban(action, "actionunban")?;
    spec.restored = !action.options.get("norestored").is_some_and(|value| is_true(value));
    spec.matches = [&spec.ban, &spec.unban]
        .iter()
        .any(|run| matches!(run, Some(CommandLine::Shell(text)) if text.contains("BLOCKER_MATCHES")));
    spec.timeout = match action.options.get("timeout") {
        Some(text) => span::span(text).map_err(|why| format!("its timeout: {why}"))?.min(TIMEOUT_MAX),
        None => ACTION_TIMEOUT,
    };
    let left = ["actioncheck", "actionrepair", "actionflush", "actionreload", "actionprolong", "actionreban"];
    let left =
        left.into_iter().filter(|option| action.options.get(*option).is_some_and(|text| !text.is_empty()));
    Ok((spec, left.collect()))
}

/// A name that no other jail's action has and that blocker's own files may use.
fn unique_name(action: &str, jail: &str) -> String {
    let whole = format!("{action}@{jail}");
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' };
    let name: String = whole.chars().map(plain).collect();
    if name == whole && jails::is_jail_name(&name) {
        return name;
    }
    // FNV-1a over the whole name tells apart what the shortened ones would not.
    let hash =
        whole.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let kept: String = name.chars().take(jails::JAIL_NAME_BYTES_MAX - 9).collect();
    format!("{kept}.{hash:08x}")
}

const FAMILIES: [&str; 2] = ["inet4", "inet6"];

/// A command that no ban calls for: for either family, if there are two.
fn at_start(action: &ActionUse, option: &str) -> Result<Option<CommandLine>, String> {
    let mut texts: Vec<String> = Vec::new();
    for family in FAMILIES {
        let text = expanded(action, option, family)?;
        let text = shell::with_variables(&text, &|tag| match (tag, family) {
            ("family", "inet4") => Some(Value::Text("inet4")),
            ("family", _) => Some(Value::Text("inet6")),
            _ => filled_in(tag),
        })?;
        if !text.trim().is_empty() && !texts.contains(&text) {
            texts.push(text);
        }
    }
    Ok((!texts.is_empty()).then(|| CommandLine::Shell(texts.join("\n"))))
}

fn for_a_ban(action: &ActionUse, option: &str) -> Result<Option<CommandLine>, String> {
    let text = |family| shell::with_variables(&expanded(action, option, family)?, &filled_in);
    let [four, six] = [text(FAMILIES[0])?, text(FAMILIES[1])?];
    if four.trim().is_empty() && six.trim().is_empty() {
        return Ok(None);
    }
    let nothing_is_a_command = |text: String| if text.trim().is_empty() { ":".to_owned() } else { text };
    Ok(Some(CommandLine::Shell(if four == six {
        four
    } else {
        let (four, six) = (nothing_is_a_command(four), nothing_is_a_command(six));
        format!("if [ \"${{BLOCKER_FAMILY}}\" = inet6 ]; then\n{six}\nelse\n{four}\nfi")
    })))
}

/// An option with every tag replaced that the action's own options give, for a family of addresses.
fn expanded(action: &ActionUse, option: &str, family: &str) -> Result<String, String> {
    let Some(text) = action.options.get(option) else { return Ok(String::new()) };
    let at = Place::default();
    let lookup = |tag: &str| {
        // What a ban fills in, it fills in, whatever an option of the name says.
        if matches!(tag, "matches" | "ipmatches" | "ipjailmatches" | "bantime") {
            return None;
        }
        let in_case = action.options.get(&format!("{tag}?family={family}"));
        let value = in_case.or_else(|| action.options.get(tag))?;
        Some(Ok(value_at(value, &at)))
    };
    tags::replace(option, &value_at(text, &at), &lookup).map(|value| text_of(&value))
}

/// What is known of a ban, by fail2ban's tags.
fn filled_in(tag: &str) -> Option<Value> {
    Some(match tag {
        "ip" | "fid" => Value::Variable("BLOCKER_IP"),
        "family" => Value::Variable("BLOCKER_FAMILY"),
        "failures" | "ipfailures" | "ipjailfailures" => Value::Variable("BLOCKER_FAILURES"),
        "matches" | "ipmatches" | "ipjailmatches" => Value::Variable("BLOCKER_MATCHES"),
        "time" => Value::Variable("BLOCKER_TIME"),
        "bantime" => Value::Variable("BLOCKER_BANTIME"),
        "bancount" => Value::Variable("BLOCKER_BANCOUNT"),
        "restored" => Value::Variable("BLOCKER_RESTORED"),
        // The name of an address is for who reads the mail to look up.
        "ip-host" => Value::Variable("BLOCKER_IP"),
        "fq-hostname" => Value::Output("hostname -f"),
        "sh-hostname" => Value::Output("hostname -s"),
        "br" => Value::Text("\n"),
        "sp" => Value::Text(" "),
        "ip-rev" | "raw-ticket" | "jail.banned" | "jail.banned_total" | "jail.found" | "jail.found_total" => {
            Value::Unknown
        }
        tag if tag.starts_with("F-") => Value::Unknown,
        _ => return None,
    })
}

/// The ports an action is about.
fn ports(action: &ActionUse) -> Ports {
    let option = |name: &str| action.options.get(name).map_or("", String::as_str);
    let words =
        |name| option(name).split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    if action.file.contains("allports") || option("type") == "allports" || is_of(&ON_ALL_PORTS, &action.file)
    {
        return Ports::Told(Scope::ALL);
    }
    let mut ranges = Vec::new();
    for name in words("protocol") {
        let protocol: Protocol = match name.parse() {
            Ok(protocol) => protocol,
            Err(_) if name == "all" => return Ports::Told(Scope::ALL),
            Err(why) => return Ports::Untold(why),
        };
        for word in words("port") {
            match PortRange::parse(word, &service_port) {
                Ok(range) => ranges.push(PortRange { protocol, ..range }),
                Err(why) => return Ports::Untold(why),
            }
        }
    }
    // fail2ban's default, by which people mean all.
    if ranges.iter().any(|range| range.first <= 1 && range.last == u16::MAX) || ranges.is_empty() {
        return Ports::Told(Scope::ALL);
    }
    Scope::ports(ranges).map_or_else(Ports::Untold, Ports::Told)
}

/// What two actions of a jail are about together.
pub(super) fn both(first: Ports, second: Ports) -> Ports {
    match (first, second) {
        (Ports::Told(first), Ports::Told(second)) if first.is_all() || second.is_all() => {
            Ports::Told(Scope::ALL)
        }
        (Ports::Told(first), Ports::Told(second)) => {
            let ranges = first.ranges().iter().chain(second.ranges()).copied();
            Scope::ports(ranges).map_or_else(Ports::Untold, Ports::Told)
        }
        (Ports::Untold(why), _) | (_, Ports::Untold(why)) => Ports::Untold(why),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn action(file: &str, options: &[(&str, &str)]) -> ActionUse {
        let options: BTreeMap<String, String> =
            options.iter().map(|(option, value)| ((*option).to_owned(), (*value).to_owned())).collect();
        ActionUse { name: file.to_owned(), file: file.to_owned(), options, at: Place::default() }
    }

    #[test]
    fn what_drops_packets_is_ours_and_its_ports_are_told() {
        for (file, options, expected) in [
            (
                "iptables-multiport",
                &[("port", "ssh,8000:8010"), ("protocol", "tcp")][..],
                Ok("22/tcp,8000-8010/tcp"),
            ),
            ("iptables-allports", &[("port", "ssh"), ("protocol", "tcp")], Ok("all")),
            ("nftables", &[("type", "allports"), ("port", "ssh"), ("protocol", "tcp")], Ok("all")),
            ("nftables-multiport", &[("port", "53"), ("protocol", "tcp,udp")], Ok("53/tcp,53/udp")),
            ("iptables", &[("port", "0:65535"), ("protocol", "tcp")], Ok("all")),
            ("iptables", &[("port", "22"), ("protocol", "all")], Ok("all")),
            (
                "iptables",
                &[("port", "some-service"), ("protocol", "tcp")],
                Err("\"some\" in \"some-service\""),
            ),
            ("iptables", &[("port", "22"), ("protocol", "icmp")], Err("\"icmp\" is no protocol")),
            ("ufw", &[("port", "ssh"), ("protocol", "tcp")], Ok("all")),
            ("route", &[("port", "ssh"), ("protocol", "tcp")], Ok("all")),
            ("shorewall-ipset-proto6", &[], Ok("all")),
        ] {
            let Translated::Dropping(ports) = translate(&action(file, options), "j") else {
                panic!("{file}")
            };
            match (&ports, expected) {
                (Ports::Told(scope), Ok(expected)) => {
                    assert_eq!(scope.to_string(), expected, "{file} {options:?}");
                }
                (Ports::Untold(why), Err(says)) => assert!(why.contains(says), "{file} {options:?}: {why}"),
                _ => panic!("{file} {options:?}: {ports:?}"),
            }
        }
        let opening = action("iptables-multiport", &[("blocktype", "RETURN")]);
        assert_eq!(translate(&opening, "j"), Translated::LetsIn("RETURN".to_owned()));
    }

    #[test]
    fn another_action_is_a_command_with_variables() {
        let options = [
            ("name", "j"),
            ("actionban", "<tool> '<ip>' <bantime> \"<matches>\" <name>"),
            ("actionunban", "<tool> -d <ip>"),
            ("actionstart", "<tool> init <family>"),
            ("bantime", "5"),
            ("tool", "t4"),
            ("tool?family=inet6", "t6"),
            ("actioncheck", "t check"),
            ("norestored", "True"),
            ("timeout", "2m"),
        ];
        let Translated::Command(spec, left) = translate(&action("mail", &options), "j") else { panic!() };
        let run = |text: &str| Some(CommandLine::Shell(text.to_owned()));
        assert_eq!(&*spec.name, "mail@j");
        assert_eq!(
            spec.ban,
            run("if [ \"${BLOCKER_FAMILY}\" = inet6 ]; then\n\
                 t6 ''\"${BLOCKER_IP}\"'' \"${BLOCKER_BANTIME}\" \"${BLOCKER_MATCHES}\" j\nelse\n\
                 t4 ''\"${BLOCKER_IP}\"'' \"${BLOCKER_BANTIME}\" \"${BLOCKER_MATCHES}\" j\nfi")
        );
        assert_eq!(spec.start, run("t4 init inet4\nt6 init inet6"));
        assert!(spec.matches && !spec.restored && spec.timeout.as_secs() == 120);
        assert_eq!(left, ["actioncheck"]);
    }

    #[test]
    fn an_action_has_a_name_of_its_own_whatever_the_jail_calls_it() {
        assert_eq!(unique_name("mail", "sshd"), "mail@sshd");
        let long = "x".repeat(70);
        let names = ["a b", "a_b", "a;b", "", &long].map(|name| unique_name(name, "j"));
        for (index, name) in names.iter().enumerate() {
            assert!(jails::is_jail_name(name) && !names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_a_reason() {
        for (file, options, says) in [
            ("smtp.py", &[][..], "Python code"),
            ("x", &[("actionban", "y <ip-rev>")], "does not know <ip-rev>"),
            ("x", &[("actionban", "y <F-USER>")], "does not know <F-USER>"),
            ("x", &[("actionban", "y ${z:-<ip>}")], "could become code"),
            ("x", &[("actionban", "<a>"), ("a", "<b>"), ("b", "<a>")], "without end"),
            ("x", &[], "neither actionban nor actionunban"),
        ] {
            let Translated::Refused(why, hint) = translate(&action(file, options), "j") else {
                panic!("{file}")
            };
            assert!(why.contains(says) && !hint.is_empty(), "{why}");
        }
    }
}
