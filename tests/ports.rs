//! A jail that guards one service shuts its attackers out of that service and of no other: real logs, real sockets,
//! and the built agent.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::Value;
use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    lan::{HOST_V4, HOST_V6, Lan},
    missing, probe, skipped, wait_for,
};

const SSH: u16 = 22;
const WEB: u16 = 80;
const SOON: Duration = Duration::from_secs(5);
const ATTACKER: usize = 0;
const HONEST: usize = 1;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

fn hosts() -> [IpAddr; 2] {
    [HOST_V4, HOST_V6].map(|host| host.parse().unwrap())
}

fn reaches(lan: &Lan, client: usize, host: IpAddr, port: u16) -> bool {
    let to = SocketAddr::new(host, port);
    lan.clients[client].netns.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(400))).is_ok()
}

/// Which of the two services each client reaches, over both families alike.
fn expect(lan: &Lan, client: usize, ssh: bool, web: bool) {
    for host in hosts() {
        let seen = [SSH, WEB].map(|port| reaches(lan, client, host, port));
        assert_eq!(seen, [ssh, web], "client {client} to {host}");
        assert!(probe::ping(&lan.clients[client].netns, host), "client {client} pings {host}");
    }
}

/// Address and ports of each ban.
fn bans(agent: &Agent<'_>) -> Vec<(String, String)> {
    let rows = agent.json(binary(), &["bans"]).unwrap();
    let shown = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap_or("all").to_owned();
        assert_eq!(row["in_kernel"], true, "{row}");
        (text("prefix"), text("scope"))
    };
    rows.as_array().unwrap().iter().map(shown).collect()
}

fn with_each(test: &str, case: impl Fn(Backend)) {
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    case(Backend::Nftables);
    if blocker::enforce::xdp::is_built_in() {
        case(Backend::Xdp);
    } else {
        skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
}

#[test]
fn an_attacker_of_ssh_is_shut_out_of_ssh_and_reaches_the_web() {
    with_each("an_attacker_of_ssh_is_shut_out_of_ssh_and_reaches_the_web", |backend| {
        let mut lan = Lan::new().unwrap();
        lan.host.sysctl("net/ipv6/bindv6only", "0").unwrap();
        lan.add_client("attacker", 66).unwrap();
        lan.add_client("honest", 67).unwrap();
        let _services = [SSH, WEB].map(|port| lan.host.enter(|| TcpListener::bind(("::", port))).unwrap());
        let scratch = Scratch::new("ports").unwrap();
        let log = scratch.join("auth.log");
        fs::write(&log, "").unwrap();
        let fail = |address: IpAddr| {
            let line = format!("sshd[1]: Failed password for root from {address} port 40000 ssh2\n");
            let mut log = fs::File::options().append(true).open(&log).unwrap();
            log.write_all(line.repeat(3).as_bytes()).unwrap();
        };
        let mut agent = Agent::new(&scratch, &lan.host, backend);
        agent.jail("sshd", &log, "maxretry = 3\nban_ports = [\"ssh\"]");
        agent.start(binary()).unwrap();
        expect(&lan, ATTACKER, true, true);

        let client = &lan.clients[ATTACKER];
        fail(client.v4);
        fail(client.v6);
        let banned = || (bans(&agent).len() == 2).then_some(());
        assert!(wait_for(SOON, banned).is_some(), "{backend}: {:?}\n{}", bans(&agent), agent.log());
        let on = |ports: &str| {
            [client.v4.to_string(), "2001:db8:66::/64".to_owned()].map(|who| (who, ports.to_owned()))
        };
        assert_eq!(bans(&agent), on("22/tcp"));
        expect(&lan, ATTACKER, false, true);
        expect(&lan, HONEST, true, true);

        // A person shuts the web, too, and opens only that again; names of services are fine.
        for who in [client.v4.to_string(), client.v6.to_string()] {
            let prefix = if who.contains(':') { "2001:db8:66::/64".to_owned() } else { who };
            agent.json(binary(), &["ban", &prefix, "--ports", "http,https"]).unwrap();
        }
        expect(&lan, ATTACKER, false, false);
        assert_eq!(bans(&agent).len(), 4, "{backend}");
        // A restart finds all of it, on disk and in the kernel.
        agent.kill();
        agent.start(binary()).unwrap();
        assert_eq!(bans(&agent).len(), 4, "{backend}: {}", agent.log());
        expect(&lan, ATTACKER, false, false);
        for who in [client.v4.to_string(), client.v6.to_string()] {
            agent.json(binary(), &["unban", &who, "--ports", "80,443"]).unwrap();
        }
        expect(&lan, ATTACKER, false, true);
        assert_eq!(bans(&agent), on("22/tcp"));
        for who in [client.v4.to_string(), client.v6.to_string()] {
            agent.json(binary(), &["unban", &who]).unwrap();
        }
        assert_eq!(bans(&agent), []);
        expect(&lan, ATTACKER, true, true);
    });
}
