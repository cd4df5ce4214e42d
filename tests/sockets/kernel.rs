//! The built agent in a network of its own: what is sent to it bans in the kernel, or does not.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use serde_json::Value;
use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    lan::{HOST_V4, HOST_V6, Lan},
    missing, probe, skipped, wait_for,
};

use super::SOON;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// A host, an attacker who writes syslog to it, and an honest client.
struct Town {
    scratch: Scratch,
    lan: Lan,
}

impl Town {
    fn new() -> Self {
        let mut lan = Lan::new().unwrap();
        lan.host.sysctl("net/ipv6/bindv6only", "0").unwrap();
        lan.add_client("relay", 9).unwrap();
        lan.add_client("attacker", 66).unwrap();
        Self { scratch: Scratch::new("sockets").unwrap(), lan }
    }

    fn agent(&self, tables: &str) -> Agent<'_> {
        let backend = if blocker::enforce::xdp::is_built_in() { Backend::Xdp } else { Backend::Nftables };
        let mut agent = Agent::new(&self.scratch, &self.lan.host, backend);
        agent.tables(tables);
        agent
    }
}

fn failure(address: IpAddr, port: u16) -> String {
    format!("sshd[4242]: Failed password for invalid user admin from {address} port {port} ssh2")
}

fn until_banned(agent: &Agent<'_>, prefix: &str) {
    let banned = wait_for(SOON, || agent.banned(binary()).ok()?.contains(&prefix.to_owned()).then_some(()));
    assert!(
        banned.is_some(),
        "{prefix}: {:?} {:?}\n{}",
        agent.banned(binary()),
        agent.json(binary(), &["status"]),
        agent.log()
    );
}

fn source<'a>(status: &'a Value, path: &str) -> &'a Value {
    let sources = status["sources"].as_array().unwrap();
    sources.iter().find(|source| source["path"] == path).unwrap_or_else(|| panic!("{path}: {status:#}"))
}

#[test]
fn syslog_from_a_relay_bans_in_the_kernel_and_from_strangers_it_does_not() {
    let name = "syslog_from_a_relay_bans_in_the_kernel_and_from_strangers_it_does_not";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    let town = Town::new();
    let places = [
        format!("udp://{HOST_V4}:5514"),
        format!("tcp://{HOST_V4}:5514"),
        format!("udp://[{HOST_V6}]:5514"),
        format!("tcp://[{HOST_V6}]:5514"),
    ];
    let mut agent = town.agent(&format!(
        "[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 3\nsyslog = {places:?}\n\
         syslog_allow = [\"198.51.100.9\", \"2001:db8:9::/64\"]"
    ));
    agent.start(binary()).unwrap();
    let (relay, attacker) = (&town.lan.clients[0], &town.lan.clients[1]);
    let v4 = |port| SocketAddr::new(HOST_V4.parse().unwrap(), port);
    let v6 = |port| SocketAddr::new(HOST_V6.parse().unwrap(), port);
    // Whoever is not a relay reports nobody.
    attacker.netns.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for port in 0..5 {
            let line = format!("<38>Nov 24 02:47:40 web {}", failure(relay.v4, port));
            socket.send_to(line.as_bytes(), v4(5514)).unwrap();
            let _closed = TcpStream::connect(v4(5514)).unwrap().write_all(line.as_bytes());
        }
    });
    let refused = wait_for(SOON, || {
        let status = agent.json(binary(), &["status"]).ok()?;
        places[..2]
            .iter()
            .all(|place| source(&status, place)["counters"].to_string().contains("[\"refused\",5]"))
            .then_some(())
    });
    assert!(refused.is_some(), "{:?}", agent.json(binary(), &["status"]));
    assert_eq!(agent.banned(binary()).unwrap(), Vec::<String>::new());

    // Over UDP, as old senders and as new ones write it, and with a forged line inside a message.
    let host: IpAddr = HOST_V4.parse().unwrap();
    assert!(probe::ping(&attacker.netns, host));
    relay.netns.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let forged = "<38>Nov 24 02:47:40 web app: guest\nNov 24 02:47:40 web ".to_owned();
        for port in 0..5 {
            let line = format!("{forged}{}\n", failure("203.0.113.7".parse().unwrap(), port));
            socket.send_to(line.as_bytes(), v4(5514)).unwrap();
        }
        for (port, head) in ["<38>Nov 24 02:47:40 web ", "<38>", "<38>Nov 24 02:47:40 "].iter().enumerate() {
            let line = format!("{head}{}", failure(attacker.v4, u16::try_from(port).unwrap()));
            socket.send_to(line.as_bytes(), v4(5514)).unwrap();
        }
    });
    until_banned(&agent, "198.51.100.66");
    assert!(!probe::ping(&attacker.netns, host), "it is still there");
    assert!(probe::ping(&relay.netns, host));

    // Over TCP and IPv6, framed in both ways.
    relay.netns.enter(|| {
        let mut lines = TcpStream::connect(v6(5514)).unwrap();
        let mut frames = TcpStream::connect(v6(5514)).unwrap();
        let line = |port| {
            format!(
                "<38>1 2026-11-24T02:47:40.1Z web sshd 4242 - - {}",
                &failure(attacker.v6, port)["sshd[4242]: ".len()..]
            )
        };
        lines.write_all(format!("{}\n{}\n", line(1), line(2)).as_bytes()).unwrap();
        frames.write_all(format!("{} {}", line(3).len(), line(3)).as_bytes()).unwrap();
    });
    until_banned(&agent, "2001:db8:66::/64");
    let banned = agent.banned(binary()).unwrap();
    assert!(!banned.contains(&"203.0.113.7".to_owned()), "a line inside a message is none: {banned:?}");
}

#[test]
fn logger_writes_what_the_filters_read() {
    let name = "logger_writes_what_the_filters_read";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    if Command::new("logger").arg("--version").output().is_err() {
        return skipped(name, "util-linux's logger is missing");
    }
    let town = Town::new();
    let socket = town.scratch.join("log");
    let unix = format!("unix://{}", socket.display());
    let mut agent = town.agent(&format!(
        "[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 1\n\
         syslog = [\"udp://127.0.0.1:5514\", \"tcp://127.0.0.1:5514\", {unix:?}]"
    ));
    agent.start(binary()).unwrap();
    let place = ["--server", "127.0.0.1", "--port", "5514"];
    let local = ["--socket", socket.to_str().unwrap()];
    let ways: [(&[&str], &[&str]); 8] = [
        (&place, &["--udp"]),
        (&place, &["--udp", "--rfc3164"]),
        (&place, &["--udp", "--rfc5424"]),
        (&place, &["--tcp", "--rfc3164"]),
        (&place, &["--tcp", "--rfc5424"]),
        (&place, &["--tcp", "--rfc5424", "--octet-count"]),
        (&local, &[]),
        (&local, &["--rfc5424"]),
    ];
    for (number, (place, way)) in ways.iter().enumerate() {
        let address = format!("203.0.113.{number}");
        let said = &failure(address.parse().unwrap(), 40_022)["sshd[4242]: ".len()..];
        let mut args = place.to_vec();
        args.extend_from_slice(way);
        args.extend(["--tag", "sshd", "--id=4242", "--", said]);
        town.lan.host.run("logger", &args).unwrap();
        until_banned(&agent, &address);
    }
}

#[test]
fn lines_on_standard_input_ban_and_its_end_does_not_end_the_agent() {
    let name = "lines_on_standard_input_ban_and_its_end_does_not_end_the_agent";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    let town = Town::new();
    let mut agent = town.agent("[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 2\nstdin = true");
    let mut stdin = agent.start_fed(binary()).unwrap();
    let attacker = &town.lan.clients[1];
    // An old line counts at its own time, long ago; one without a date counts now.
    for port in 0..4 {
        writeln!(stdin, "2020-11-24T10:00:00Z web {}", failure("203.0.113.9".parse().unwrap(), port))
            .unwrap();
    }
    for port in 0..2 {
        writeln!(stdin, "{}", failure(attacker.v4, port)).unwrap();
    }
    until_banned(&agent, "198.51.100.66");
    drop(stdin);
    let ended = wait_for(SOON, || {
        let status = agent.json(binary(), &["status"]).ok()?;
        source(&status, "standard input")["state"].as_str()?.starts_with("ended").then_some(())
    });
    assert!(ended.is_some(), "{:?}", agent.json(binary(), &["status"]));
    assert_eq!(agent.banned(binary()).unwrap(), ["198.51.100.66"]);
    assert!(!probe::ping(&attacker.netns, HOST_V4.parse().unwrap()));
    // Without the flag nothing is read, and status says so; with the flag and no jail for it, nothing starts.
    agent.stop();
    agent.start(binary()).unwrap();
    let status = agent.json(binary(), &["status"]).unwrap();
    assert!(source(&status, "standard input")["state"].as_str().unwrap().contains("--stdin"), "{status:#}");
    drop(agent);
    let mut deaf = town.agent("[jail.sshd]\nfilters = [\"sshd\"]\nfiles = [\"/nonexistent/auth.log\"]");
    let error = deaf.start_fed(binary()).unwrap_err().to_string();
    assert!(error.contains("no jail reads standard input"), "{error}");
}

#[test]
fn without_descriptors_it_waits_and_goes_on_when_there_are_some() {
    let name = "without_descriptors_it_waits_and_goes_on_when_there_are_some";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    let town = Town::new();
    let (stream, datagram) = (town.scratch.join("stream"), town.scratch.join("lines"));
    let mut agent = town.agent(&format!(
        "[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 1\nstream_socket = {stream:?}\nsocket = {datagram:?}"
    ));
    agent.start(binary()).unwrap();
    let pid = agent.id().unwrap();
    let allow = |descriptors: usize| {
        let limit = format!("--nofile={descriptors}:1024");
        xtask::lab::run(Command::new("prlimit").args(["--pid", &pid.to_string(), &limit])).unwrap();
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    allow(open + 4);
    let mut crowd: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&stream).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(1_500));
    // Who is connected, and who needs no connection, is heard.
    writeln!(crowd[0], "{}", failure("203.0.113.1".parse().unwrap(), 1)).unwrap();
    let line = failure("203.0.113.2".parse().unwrap(), 1);
    UnixDatagram::unbound().unwrap().send_to(line.as_bytes(), &datagram).unwrap();
    // Who waited is heard as soon as there are descriptors.
    writeln!(crowd[39], "{}", failure("203.0.113.3".parse().unwrap(), 1)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    allow(1_024);
    for address in ["203.0.113.1", "203.0.113.2", "203.0.113.3"] {
        until_banned(&agent, address);
    }
    let status = agent.json(binary(), &["status"]).unwrap();
    let counters = &source(&status, &format!("{} (stream)", stream.display()))["counters"];
    let failed = counters.as_array().unwrap().iter().find(|counter| counter[0] == "failed");
    let failed = failed.and_then(|counter| counter[1].as_u64());
    // Once a second, and not as fast as it can.
    assert!(failed.is_some_and(|times| (1..10).contains(&times)), "{counters}");
}

#[test]
fn check_says_who_may_write_and_where_lines_could_be_forged() {
    let scratch = Scratch::new("check").unwrap();
    let config = scratch.join("blocker.toml");
    let text = r#"
[jail.app]
filters = ["django", "monit"]
socket = "/run/blocker/lines.sock"
stream_socket = "/run/blocker/stream.sock"
socket_users = ["root", 33]
socket_groups = [4]
[jail.sshd]
filters = ["sshd"]
stdin = true
syslog = ["udp://[::]", "tcp://0.0.0.0:5514", "unix:///run/blocker/log"]
syslog_allow = ["10.0.0.0/8", "2001:db8::/32"]
[jail.local]
filters = ["sshd"]
syslog = ["udp://127.0.0.1:5514"]
"#;
    fs::write(&config, text).unwrap();
    let output = Command::new(binary()).arg("check").arg("--config").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "reads    /run/blocker/lines.sock from root, user 33, group 4, /run/blocker/stream.sock (stream) from",
        "udp://[::]:514 from 10.0.0.0/8, 2001:db8::/32",
        "tcp://0.0.0.0:5514 from 10.0.0.0/8, 2001:db8::/32",
        "unix:///run/blocker/log from root",
        "udp://127.0.0.1:5514 from 127.0.0.0/8, ::1",
        "standard input",
        "warning: jail \"sshd\": whoever can reach it can send to udp://[::]:514 and",
        "warning: jail \"local\": any user of this host can send to udp://127.0.0.1:5514 and",
        "in /run/blocker/stream.sock (stream) whoever is logged may write a line break, and with it a whole line for the \
         filter \"built-in:monit\"",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}\n{output:?}");
    }
    assert!(
        !said.contains("in udp://") && !said.contains("in /run/blocker/lines.sock"),
        "a message is a line: {said}"
    );
}
