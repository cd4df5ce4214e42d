//! The main job on a real host: a log line on one side, packets that no longer arrive on the other.
//!
//! Every case runs the built binary in a network namespace with both enforcers. Cases that need a web site serve a
//! real Django project with gunicorn.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use xtask::lab::{
    Netns, Process, Scratch,
    agent::{Agent, Backend},
    lan::{HOST_V4, HOST_V6, Lan},
    missing, probe, site, skipped, wait_for,
};

const TCP: u16 = 2222;
const UDP: u16 = 5353;
const HTTP: u16 = 8000;
/// How long anything that should happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(5);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// Runs `case` with each enforcer that can be had here.
fn with_each_backend(name: &str, case: impl Fn(Backend)) {
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    case(Backend::Nftables);
    if blocker::enforce::xdp::is_built_in() {
        case(Backend::Xdp);
    } else {
        skipped(name, "XDP was not built in (cargo xtask test builds it)");
    }
}

/// A host with echo services on both families, an attacker and an honest client, and a log to write to.
struct Stage {
    scratch: Scratch,
    lan: Lan,
    _echoes: [probe::Echo; 2],
    log: PathBuf,
}

const ATTACKER: usize = 0;
const HONEST: usize = 1;

impl Stage {
    fn new() -> Self {
        let mut lan = Lan::new().unwrap();
        lan.host.sysctl("net/ipv6/bindv6only", "1").unwrap();
        lan.add_client("attacker", 66).unwrap();
        lan.add_client("honest", 7).unwrap();
        let echoes = [v4(), v6()].map(|host| probe::Echo::start(&lan.host, host, TCP, UDP).unwrap());
        let scratch = Scratch::new("e2e").unwrap();
        let log = scratch.join("auth.log");
        fs::write(&log, "").unwrap();
        Self { scratch, lan, _echoes: echoes, log }
    }

    fn agent(&self, backend: Backend, settings: &str) -> Agent<'_> {
        let mut agent = Agent::new(&self.scratch, &self.lan.host, backend);
        agent.jail("sshd", &self.log, settings);
        agent.start(binary()).unwrap();
        agent
    }

    fn client(&self, index: usize) -> &Netns {
        &self.lan.clients[index].netns
    }

    /// Lines as sshd writes them for failed passwords.
    fn fail(&self, address: IpAddr, times: usize) {
        fail_in(&self.log, address, times);
    }

    fn expect(&self, client: usize, host: IpAddr, alive: bool) {
        let netns = self.client(client);
        let seen = [
            ("tcp", probe::tcp(netns, host, TCP)),
            ("udp", probe::udp(netns, host, UDP)),
            ("ping", probe::ping(netns, host)),
        ];
        assert!(
            seen.iter().all(|(_, up)| *up == alive),
            "client {client} to {host}: {seen:?}, expected alive: {alive}"
        );
    }
}

fn v4() -> IpAddr {
    HOST_V4.parse().unwrap()
}

fn v6() -> IpAddr {
    HOST_V6.parse().unwrap()
}

fn fail_in(log: &Path, address: IpAddr, times: usize) {
    let mut file = fs::File::options().append(true).create(true).open(log).unwrap();
    for port in 0..times {
        let line =
            format!("Failed password for invalid user admin from {address} port {} ssh2", 40_000 + port);
        writeln!(file, "2026-11-24T10:00:00.000000+00:00 host sshd[4242]: {line}").unwrap();
    }
}

fn until_banned(agent: &Agent<'_>, prefix: &str) {
    let banned = wait_for(SOON, || agent.banned(binary()).ok()?.contains(&prefix.to_owned()).then_some(()));
    assert!(banned.is_some(), "{prefix} is not banned: {:?}\n{}", agent.banned(binary()), agent.log());
}

#[test]
fn failures_in_a_log_cut_the_attacker_off_on_every_port_and_nobody_else() {
    with_each_backend("failures_in_a_log_cut_the_attacker_off_on_every_port_and_nobody_else", |backend| {
        let stage = Stage::new();
        let agent = stage.agent(backend, "maxretry = 3");
        for host in [v4(), v6()] {
            stage.expect(ATTACKER, host, true);
        }
        let attacker = &stage.lan.clients[ATTACKER];
        stage.fail(attacker.v4, 3);
        stage.fail(attacker.v6, 3);
        until_banned(&agent, "198.51.100.66");
        until_banned(&agent, "2001:db8:66::/64");
        for host in [v4(), v6()] {
            stage.expect(ATTACKER, host, false);
            stage.expect(HONEST, host, true);
        }
        let dropped = agent.dropped(binary()).unwrap();
        assert!(dropped.len() == 2 && dropped.iter().all(|packets| *packets > 0), "{dropped:?}");

        let unbanned = agent.cli(binary(), &["unban", "198.51.100.66"]).unwrap();
        assert!(unbanned.contains("198.51.100.66"), "{unbanned}");
        stage.expect(ATTACKER, v4(), true);
        stage.expect(ATTACKER, v6(), false);
        let flushed = agent.cli(binary(), &["flush", "--yes"]).unwrap();
        assert!(flushed.contains('1'), "{flushed}");
        stage.expect(ATTACKER, v6(), true);
    });
}

#[test]
fn two_failures_of_three_ban_nobody() {
    with_each_backend("two_failures_of_three_ban_nobody", |backend| {
        let stage = Stage::new();
        let agent = stage.agent(backend, "maxretry = 3");
        let attacker = &stage.lan.clients[ATTACKER];
        stage.fail(attacker.v4, 2);
        let counted = wait_for(SOON, || {
            let status = agent.json(binary(), &["status"]).ok()?;
            (status["jails"][0]["failures"].as_u64() == Some(2)).then_some(())
        });
        assert!(counted.is_some(), "{:?}", agent.json(binary(), &["status"]));
        assert_eq!(agent.banned(binary()).unwrap(), Vec::<String>::new());
        stage.expect(ATTACKER, v4(), true);
    });
}

#[test]
fn a_banned_prefix_drops_all_in_it_but_an_allowlisted_address() {
    with_each_backend("a_banned_prefix_drops_all_in_it_but_an_allowlisted_address", |backend| {
        let stage = Stage::new();
        let agent = stage.agent(backend, "");
        agent.cli(binary(), &["allow", "198.51.100.7"]).unwrap();
        // .66 and .7 both lie outside the host's half, which cannot be banned.
        let refused = agent.cli(binary(), &["ban", "198.51.100.0/24"]).unwrap_err().to_string();
        assert!(refused.contains("198.51.100.1"), "the host's own address is in it: {refused}");
        agent
            .cli(binary(), &["ban", "198.51.100.64/26", "--for", "1h", "--reason", "a whole block"])
            .unwrap();
        agent.cli(binary(), &["ban", "198.51.100.4/30"]).unwrap();
        agent.cli(binary(), &["ban", "2001:db8:66::/48"]).unwrap();
        stage.expect(ATTACKER, v4(), false);
        stage.expect(ATTACKER, v6(), false);
        stage.expect(HONEST, v4(), true);
        stage.expect(HONEST, v6(), true);
        // Off the allowlist, the same ban holds for it.
        agent.cli(binary(), &["disallow", "198.51.100.7"]).unwrap();
        stage.expect(HONEST, v4(), false);
        // And nothing on it can be banned by its own log lines.
        agent.cli(binary(), &["allow", "198.51.100.7"]).unwrap();
        stage.fail("198.51.100.7".parse().unwrap(), 10);
        thread::sleep(Duration::from_millis(200));
        stage.expect(HONEST, v4(), true);
    });
}

#[test]
fn a_ban_outlives_the_agent_and_ends_on_time() {
    with_each_backend("a_ban_outlives_the_agent_and_ends_on_time", |backend| {
        let stage = Stage::new();
        let mut agent = stage.agent(backend, "maxretry = 3\nbantime = 6");
        stage.fail(stage.lan.clients[ATTACKER].v4, 3);
        until_banned(&agent, "198.51.100.66");
        let begun = Instant::now();
        agent.kill();
        assert!(!probe::ping(stage.client(ATTACKER), v4()), "a killed agent let go of the ban");
        let over = wait_for(Duration::from_secs(10), || {
            probe::ping(stage.client(ATTACKER), v4()).then(|| begun.elapsed())
        });
        let over = over.expect("the ban never ended");
        assert!(over > Duration::from_secs(4), "the ban ended after {over:?}, long before its 6 s");
    });
}

#[test]
fn a_restart_adopts_the_bans_and_their_counts() {
    with_each_backend("a_restart_adopts_the_bans_and_their_counts", |backend| {
        let stage = Stage::new();
        let mut agent = stage.agent(backend, "maxretry = 3");
        stage.fail(stage.lan.clients[ATTACKER].v4, 3);
        until_banned(&agent, "198.51.100.66");
        assert!(!probe::ping(stage.client(ATTACKER), v4()));
        let before = agent.dropped(binary()).unwrap();
        for killed in [true, false] {
            if killed {
                agent.kill();
            } else {
                agent.stop();
            }
            assert!(!probe::ping(stage.client(ATTACKER), v4()), "a gap while the agent was away");
            agent.start(binary()).unwrap();
            assert_eq!(agent.banned(binary()).unwrap(), ["198.51.100.66"]);
            let after = agent.dropped(binary()).unwrap();
            assert!(after[0] > before[0], "{after:?} after {before:?}: the count started again");
        }
        assert!(!probe::ping(stage.client(ATTACKER), v4()));
        agent.cli(binary(), &["unban", "198.51.100.66"]).unwrap();
        assert!(probe::ping(stage.client(ATTACKER), v4()));
    });
}

#[test]
fn what_was_logged_while_the_agent_was_away_is_counted_once() {
    with_each_backend("what_was_logged_while_the_agent_was_away_is_counted_once", |backend| {
        let stage = Stage::new();
        let mut agent = stage.agent(backend, "maxretry = 4\nfindtime = \"400d\"");
        let attacker = stage.lan.clients[ATTACKER].v4;
        stage.fail(attacker, 2);
        let counted = wait_for(SOON, || {
            (agent.json(binary(), &["status"]).ok()?["jails"][0]["failures"].as_u64() == Some(2))
                .then_some(())
        });
        assert!(counted.is_some());
        agent.stop();
        stage.fail(attacker, 4);
        agent.start(binary()).unwrap();
        until_banned(&agent, "198.51.100.66");
        let bans = agent.json(binary(), &["bans"]).unwrap();
        assert_eq!(bans[0]["failures"], 4, "{bans}");
    });
}

#[test]
fn a_log_rotated_during_the_attack_hides_nothing() {
    with_each_backend("a_log_rotated_during_the_attack_hides_nothing", |backend| {
        let stage = Stage::new();
        let agent = stage.agent(backend, "maxretry = 10");
        let attacker = stage.lan.clients[ATTACKER].v4;
        for round in 0..5 {
            // Written, renamed at once, and a new file in its place: the tail of the old one is read first.
            stage.fail(attacker, 1);
            fs::rename(&stage.log, stage.scratch.join(&format!("auth.log.{round}"))).unwrap();
            stage.fail(attacker, 1);
        }
        until_banned(&agent, "198.51.100.66");
    });
}

#[test]
fn a_log_that_cannot_be_read_yet_is_waited_for() {
    with_each_backend("a_log_that_cannot_be_read_yet_is_waited_for", |backend| {
        let stage = Stage::new();
        let folder = stage.scratch.join("later");
        let (late, fifo) = (folder.join("auth.log"), stage.scratch.join("fifo"));
        xtask::lab::run(Command::new("mkfifo").arg(&fifo)).unwrap();
        let mut agent = Agent::new(&stage.scratch, &stage.lan.host, backend);
        let files = [&late, &fifo, &stage.scratch.path().to_owned()]
            .map(|path| format!("{:?}", path.display().to_string()));
        agent.tables(&format!(
            "[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 3\nfiles = [{}]",
            files.join(", ")
        ));
        agent.start(binary()).unwrap();
        let status = agent.json(binary(), &["status"]).unwrap();
        let states: Vec<&str> =
            status["sources"].as_array().unwrap().iter().filter_map(|s| s["state"].as_str()).collect();
        assert!(states.len() == 3 && states.iter().all(|state| !state.starts_with("reading")), "{states:?}");
        fs::create_dir(&folder).unwrap();
        fail_in(&late, stage.lan.clients[ATTACKER].v4, 3);
        until_banned(&agent, "198.51.100.66");
    });
}

#[test]
fn a_reader_of_the_agents_log_that_stops_reading_stops_nobody() {
    with_each_backend("a_reader_of_the_agents_log_that_stops_reading_stops_nobody", |backend| {
        let stage = Stage::new();
        let mut agent = Agent::new(&stage.scratch, &stage.lan.host, backend);
        agent.jail("sshd", &stage.log, "maxretry = 3");
        let mut unread = None;
        agent.start_with(binary(), |stderr| unread = Some(stderr)).unwrap();
        // More than a pipe and the queue before it hold, and then, in a later turn of the loop, the attacker.
        for network in 0..12 {
            for last in 0..250 {
                stage.fail(format!("203.0.{network}.{last}").parse().unwrap(), 3);
            }
        }
        thread::sleep(Duration::from_millis(500));
        stage.fail(stage.lan.clients[ATTACKER].v4, 3);
        until_banned(&agent, "198.51.100.66");
        let lost =
            || agent.json(binary(), &["status"]).ok()?["log_lines_dropped"].as_u64().filter(|lost| *lost > 0);
        wait_for(SOON, lost).expect("lines of the agent's own log given up are counted");
        drop(unread);
        stage.expect(HONEST, v4(), true);
    });
}

#[test]
fn lines_sent_to_the_agents_socket_ban_without_a_file() {
    with_each_backend("lines_sent_to_the_agents_socket_ban_without_a_file", |backend| {
        let stage = Stage::new();
        let socket = stage.scratch.join("lines.sock");
        let mut agent = Agent::new(&stage.scratch, &stage.lan.host, backend);
        agent.tables(&format!(
            "[jail.django]\nfilters = [\"django\"]\nmaxretry = 3\nsocket = \"{}\"",
            socket.display()
        ));
        agent.start(binary()).unwrap();
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        for user in ["a", "b", "c"] {
            let line = format!(
                "2026-11-24 02:47:40,414 WARNING django.auth login failed ip=198.51.100.66 user=\"{user}\"\n"
            );
            sender.send_to(line.as_bytes(), &socket).unwrap();
        }
        until_banned(&agent, "198.51.100.66");
        // A reload keeps the socket, and the agent takes it along when it ends.
        agent.cli(binary(), &["reload"]).unwrap();
        sender.send_to(b"not a failure\n", &socket).unwrap();
        agent.stop();
        assert!(!socket.exists(), "the socket outlived its agent");
    });
}

#[test]
fn a_bad_reload_changes_nothing_and_a_good_one_takes_effect() {
    with_each_backend("a_bad_reload_changes_nothing_and_a_good_one_takes_effect", |backend| {
        let stage = Stage::new();
        let agent = stage.agent(backend, "maxretry = 3");
        let attacker = stage.lan.clients[ATTACKER].v4;
        stage.fail(attacker, 2);
        let good = fs::read_to_string(agent.config()).unwrap();
        fs::write(agent.config(), good.replace("maxretry = 3", "maxretri = 9")).unwrap();
        let refused = agent.cli(binary(), &["reload"]).unwrap_err().to_string();
        assert!(refused.contains("maxretri") && refused.contains("maxretry"), "{refused}");
        fs::write(agent.config(), good.replace("maxretry = 3", "maxretry = 4")).unwrap();
        agent.cli(binary(), &["reload"]).unwrap();
        // The two failures from before the reload still count.
        stage.fail(attacker, 2);
        until_banned(&agent, "198.51.100.66");
        assert_eq!(agent.json(binary(), &["bans"]).unwrap()[0]["failures"], 4);
    });
}

#[test]
fn enforcement_removed_by_another_program_is_back_in_two_seconds() {
    with_each_backend("enforcement_removed_by_another_program_is_back_in_two_seconds", |backend| {
        let stage = Stage::new();
        let agent = stage.agent(backend, "maxretry = 3");
        stage.fail(stage.lan.clients[ATTACKER].v4, 3);
        until_banned(&agent, "198.51.100.66");
        match backend {
            Backend::Nftables => {
                stage.lan.host.run("nft", &["flush", "ruleset"]).unwrap();
            }
            Backend::Xdp => xtask::lab::agent::remove_pins(agent.pins()),
        }
        let back = wait_for(Duration::from_secs(4), || {
            let held = agent.banned(binary()).ok()?.contains(&"198.51.100.66".to_owned());
            (held && !probe::ping(stage.client(ATTACKER), v4())).then_some(())
        });
        assert!(back.is_some(), "{}", agent.log());
    });
}

#[test]
fn a_foreign_xdp_program_is_left_alone_and_auto_falls_back_to_nftables() {
    let name = "a_foreign_xdp_program_is_left_alone_and_auto_falls_back_to_nftables";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    if !blocker::enforce::xdp::is_built_in() {
        return skipped(name, "XDP was not built in (cargo xtask test builds it)");
    }
    let stage = Stage::new();
    // Another installation's program stands for the foreign one: it is not pinned where ours are.
    let other_scratch = Scratch::new("other").unwrap();
    let mut other = Agent::new(&other_scratch, &stage.lan.host, Backend::Xdp);
    other.jail("sshd", &other_scratch.join("none.log"), "");
    other.start(binary()).unwrap();
    let before = stage.lan.host.ip("-d link show eth0").unwrap();

    let mut agent = Agent::new(&stage.scratch, &stage.lan.host, Backend::Xdp);
    agent.jail("sshd", &stage.log, "maxretry = 3");
    // A classifier would stand beside it.
    agent.enforce("modes = [\"native\", \"generic\"]");
    let refused = agent.start(binary()).unwrap_err().to_string();
    assert!(refused.contains("eth0"), "{refused}");
    agent.write_config().unwrap();
    let auto = fs::read_to_string(agent.config()).unwrap().replace("backend = \"xdp\"", "backend = \"auto\"");
    fs::write(agent.config(), auto).unwrap();
    let mut command = stage.lan.host.command(binary());
    let log = fs::File::create(stage.scratch.join("auto.log")).unwrap();
    command.args(["run", "--config"]).arg(agent.config()).stdout(Stdio::null()).stderr(log);
    let _running = Process::spawn(&mut command).unwrap();
    let status =
        wait_for(SOON, || agent.json(binary(), &["status"]).ok()).expect("the agent starts with nftables");
    assert_eq!(status["backend"]["name"], "nftables", "{status}");
    assert!(status["backend"]["reason"].as_str().unwrap().contains("eth0"), "{status}");
    let after = stage.lan.host.ip("-d link show eth0").unwrap();
    let program = |text: &str| text.split("prog/xdp").nth(1).map(|rest| rest[..20].to_owned());
    assert_eq!(program(&before), program(&after), "the foreign program was replaced");
    assert!(program(&before).is_some(), "{before}");
}

#[test]
fn another_backend_takes_the_bans_over_and_leaves_nothing_behind() {
    let name = "another_backend_takes_the_bans_over_and_leaves_nothing_behind";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    if !blocker::enforce::xdp::is_built_in() {
        return skipped(name, "XDP was not built in (cargo xtask test builds it)");
    }
    let stage = Stage::new();
    let mut agent = stage.agent(Backend::Xdp, "maxretry = 3");
    stage.fail(stage.lan.clients[ATTACKER].v4, 3);
    until_banned(&agent, "198.51.100.66");
    for next in [Backend::Nftables, Backend::Xdp] {
        agent.stop();
        agent.switch(next);
        agent.start(binary()).unwrap();
        assert_eq!(agent.banned(binary()).unwrap(), ["198.51.100.66"]);
        assert!(!probe::ping(stage.client(ATTACKER), v4()), "{next} does not hold the ban");
        let attached = || stage.lan.host.ip("-d link show eth0").unwrap().contains("prog/xdp");
        let table = || stage.lan.host.run("nft", &["list", "tables"]).unwrap().contains("inet blocker");
        let expected = (next == Backend::Xdp, next == Backend::Nftables);
        // The other one goes just after this one answers.
        let alone = wait_for(SOON, || ((attached(), table()) == expected).then_some(()));
        assert!(alone.is_some(), "after {next}: XDP attached {}, table {}", attached(), table());
    }
    agent.cli(binary(), &["unban", "198.51.100.66"]).unwrap();
    assert!(probe::ping(stage.client(ATTACKER), v4()));
}

#[test]
fn what_cannot_start_says_why_and_what_to_do() {
    let name = "what_cannot_start_says_why_and_what_to_do";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    let stage = Stage::new();
    let mut agent = Agent::new(&stage.scratch, &stage.lan.host, Backend::Nftables);
    agent.jail("sshd", &stage.log, "");
    agent.write_config().unwrap();
    let config = agent.config().display().to_string();
    let run = |args: &[&str], without_capabilities: bool| {
        let mut command = stage.lan.host.command(binary());
        if without_capabilities {
            command = stage.lan.host.command("setpriv");
            command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(binary());
        }
        let output = command.args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (backend, capability) in [("nftables", "CAP_NET_ADMIN"), ("xdp", "CAP_BPF")] {
        if backend == "xdp" && !blocker::enforce::xdp::is_built_in() {
            continue;
        }
        let (code, said) = run(&["run", "--config", &config, "--backend", backend], true);
        assert_ne!(code, Some(0));
        assert!(said.contains(capability), "{backend}: {said}");
    }
    fs::write(stage.scratch.join("bad.toml"), "[jail.sshd]\nfiles = [\"/x\"]\nfilter = [\"sshd\"]\n")
        .unwrap();
    let (code, said) =
        run(&["check", "--config", &stage.scratch.join("bad.toml").display().to_string()], false);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("bad.toml:3:10") && said.contains("`filters = [...]`"), "{said}");
    let (code, said) = run(&["bans"], false);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("blocker run"), "{said}");
}

/// A Django site in front of the agent.
struct Web {
    _servers: Vec<Process>,
}

impl Web {
    fn start(stage: &Stage, settings: &str, log: &Path) -> Result<Self, String> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        let venv = site::python_env(&target).map_err(|error| format!("no Django here: {error:#}"))?;
        let data = site::prepare(&venv, stage.scratch.path()).map_err(|error| format!("{error:#}"))?;
        let serve = |bind: String| {
            let mut command = data.serve_command(settings, &bind, log, 1);
            stage.lan.host.adopt(&mut command);
            let output = fs::File::options()
                .create(true)
                .append(true)
                .open(stage.scratch.join("gunicorn.log"))
                .unwrap();
            Process::spawn(command.stdout(output.try_clone().unwrap()).stderr(output)).unwrap()
        };
        let servers = vec![serve(format!("0.0.0.0:{HTTP}")), serve(format!("[::]:{HTTP}"))];
        let up = wait_for(Duration::from_secs(30), || {
            let served = |host| probe::http(stage.client(HONEST), host, HTTP);
            (served(v4()) && served(v6())).then_some(())
        });
        let said = fs::read_to_string(stage.scratch.join("gunicorn.log")).unwrap_or_default();
        up.map(|()| Self { _servers: servers }).ok_or(format!("gunicorn does not answer: {said}"))
    }
}

/// Starts the site, or fails loudly: Django is installed by `cargo xtask test`.
fn web(name: &str, stage: &Stage, settings: &str, log: &Path) -> Option<Web> {
    match Web::start(stage, settings, log) {
        Ok(web) => Some(web),
        Err(reason) => {
            skipped(name, &reason);
            None
        }
    }
}

#[test]
fn guessing_at_a_django_login_gets_the_guesser_banned() {
    let name = "guessing_at_a_django_login_gets_the_guesser_banned";
    with_each_backend(name, |backend| {
        let stage = Stage::new();
        let log = stage.scratch.join("django.log");
        let Some(_web) = web(name, &stage, "settings", &log) else { return };
        let mut agent = Agent::new(&stage.scratch, &stage.lan.host, backend);
        agent.jail("django", &log, "maxretry = 3");
        agent.start(binary()).unwrap();
        for (host, banned) in [(v4(), "198.51.100.66"), (v6(), "2001:db8:66::/64")] {
            for guess in 0..3 {
                // The header names the honest client; nobody listed this peer as a proxy, so nobody believes it.
                let forged = [
                    "X-Forwarded-For: 198.51.100.7",
                    "Forwarded: for=198.51.100.7",
                    "X-Real-IP: 198.51.100.7",
                ];
                let user = format!(
                    "x\" ip=198.51.100.7 user=\"\r\ndjango.auth login failed ip=198.51.100.7 {guess}"
                );
                let status = probe::login(stage.client(ATTACKER), host, HTTP, &user, "guess", &forged);
                assert!(matches!(status, Ok(200)) || guess == 2, "guess {guess}: {status:?}");
            }
            until_banned(&agent, banned);
            assert!(!probe::http(stage.client(ATTACKER), host, HTTP));
            stage.expect(ATTACKER, host, false);
            stage.expect(HONEST, host, true);
            assert!(probe::http(stage.client(HONEST), host, HTTP));
        }
        assert_eq!(agent.banned(binary()).unwrap().len(), 2, "only the attacker is banned");
    });
}

#[test]
fn the_classic_recipe_bans_through_log_rollovers() {
    let name = "the_classic_recipe_bans_through_log_rollovers";
    with_each_backend(name, |backend| {
        let stage = Stage::new();
        let log = stage.scratch.join("classic.log");
        // The decorator's RotatingFileHandler is given so few bytes that it rolls over between two guesses.
        let Some(_web) = web(name, &stage, "classic", &log) else { return };
        let recipe = stage.scratch.join("fail2ban");
        let classic = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/classic");
        fs::create_dir_all(recipe.join("filter.d")).unwrap();
        fs::copy(classic.join("filter.d/django-auth.conf"), recipe.join("filter.d/django-auth.conf"))
            .unwrap();
        let jail = fs::read_to_string(classic.join("jail.local")).unwrap();
        fs::write(recipe.join("jail.local"), jail.replace("@LOG@", &log.display().to_string())).unwrap();
        let mut agent = Agent::new(&stage.scratch, &stage.lan.host, backend);
        agent.tables(&format!("[import]\nfail2ban = \"{}\"", recipe.display()));
        agent.start(binary()).unwrap();
        for (host, banned) in [(v4(), "198.51.100.66"), (v6(), "2001:db8:66::/64")] {
            for guess in 0..5 {
                let _last_may_be_cut_off =
                    probe::login(stage.client(ATTACKER), host, HTTP, "admin", &format!("{guess}"), &[]);
            }
            until_banned(&agent, banned);
            stage.expect(ATTACKER, host, false);
            stage.expect(HONEST, host, true);
        }
        let rolled = fs::read_dir(stage.scratch.path())
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("classic.log."));
        assert!(rolled, "the log never rolled over, so the case shows nothing");
    });
}
