//! Containers' logs through the file source: the lines that a container wrote, across partial records, rotation and
//! restart.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use blocker::{
    config,
    enforce::xdp,
    engine::{Reading, SourceId},
    policy::{ContainerFormat, SourceSpec},
    source::{
        FileSource, Options, Position,
        file::{FirstStart, LogFile},
    },
    time::Timestamp,
};
use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    lan::{HOST_V4, Lan},
    missing, probe, skipped, wait_for,
};

struct Reader {
    source: FileSource,
    lines: Vec<String>,
}

impl Reader {
    fn new(path: &Path, format: ContainerFormat, positions: Vec<Position>) -> Self {
        let file = LogFile { path: path.to_owned(), format: Some(format) };
        let source =
            FileSource::new(&[(SourceId(1), file)], positions, Options::default(), None).expect("inotify");
        Self { source, lines: Vec::new() }
    }

    fn take(&mut self) -> Vec<String> {
        let lines = &mut self.lines;
        let mut sink = |_, reading, block: &[u8]| {
            assert!(!block.is_empty());
            // What was read in another life is shown again, and is nothing new.
            if reading == Reading::Context {
                return;
            }
            lines.extend(String::from_utf8_lossy(block).lines().map(str::to_owned));
        };
        let mut more = true;
        while more {
            more = self.source.poll(Instant::now(), &mut sink) == Some(Duration::ZERO);
        }
        std::mem::take(&mut self.lines)
    }

    fn counter(&self, name: &str) -> u64 {
        let status = self.source.status();
        let counters = status.iter().flat_map(|file| file.counters.clone());
        counters.filter(|(known, _)| *known == name).map(|(_, count)| count).sum()
    }
}

fn docker(stream: &str, text: &str) -> String {
    let log = serde_json::to_string(text).expect("a text is JSON");
    format!("{{\"log\":{log},\"stream\":\"{stream}\",\"time\":\"2026-11-24T02:47:40.123456789Z\"}}\n")
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("the log can be opened");
    file.write_all(text.as_bytes()).expect("the log can be written");
}

#[test]
fn lines_are_whole_across_partial_records_rotation_and_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x-json.log");
    append(&path, &docker("stdout", "before\n"));
    let mut reader = Reader::new(&path, ContainerFormat::Docker, Vec::new());
    assert!(reader.take().is_empty());
    append(&path, &(docker("stdout", "no from ") + &docker("stderr", "other\n")));
    assert_eq!(reader.take(), ["other"]);
    append(&path, &docker("stdout", "203.0.113.9\n"));
    assert_eq!(reader.take(), ["no from 203.0.113.9"]);
    // A record in two writes.
    let record = docker("stdout", "a \"b\"\n");
    append(&path, &record[..20]);
    assert!(reader.take().is_empty());
    append(&path, &record[20..]);
    assert_eq!(reader.take(), ["a \"b\""]);
    // The rest is in the next file.
    append(&path, &docker("stdout", "one "));
    assert!(reader.take().is_empty());
    fs::rename(&path, dir.path().join("x-json.log.1")).expect("the log is renamed");
    append(&path, &docker("stdout", "line\n"));
    assert_eq!(reader.take(), ["one line"]);
    // And in the next life.
    append(&path, &docker("stderr", "two "));
    assert!(reader.take().is_empty());
    let mut reader = Reader::new(&path, ContainerFormat::Docker, reader.source.positions());
    append(&path, &(docker("stderr", "lives\n") + &docker("stdout", "x\n")));
    assert_eq!(reader.take(), ["two lives", "x"]);
    append(&path, "no record\n");
    assert!(reader.take().is_empty());
    assert_eq!(reader.counter("malformed"), 1);
}

#[test]
fn the_rest_of_a_line_is_never_a_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("0.log");
    let cri = |stream: &str, tag: &str, text: &str| format!("2026-11-24T02:47:40.1Z {stream} {tag} {text}\n");
    let mut reader = Reader::new(&path, ContainerFormat::Cri, Vec::new());
    assert!(reader.take().is_empty());
    // More than a line may have, in many records and in one.
    let many = cri("stdout", "P", &"x".repeat(16_000)).repeat(9) + &cri("stdout", "F", "no from 203.0.113.9");
    append(&path, &(many + &cri("stdout", "F", "good")));
    assert_eq!(reader.take(), ["good"]);
    assert_eq!(reader.counter("records_not_joined"), 1);
    let one = cri("stdout", "P", &"x".repeat(200_000));
    append(&path, &(one + &cri("stdout", "F", "no from 203.0.113.9") + &cri("stdout", "F", "good")));
    assert_eq!(reader.take(), ["good"]);
    assert_eq!(reader.counter("skipped"), 1);
    // Of a line that goes on where reading starts, the beginning is looked up.
    let path = dir.path().join("1.log");
    append(&path, &(cri("stdout", "F", "a") + &cri("stdout", "P", "no from ")));
    let mut reader = Reader::new(&path, ContainerFormat::Cri, Vec::new());
    assert!(reader.take().is_empty());
    append(&path, &cri("stdout", "F", "203.0.113.9"));
    assert_eq!(reader.take(), ["no from 203.0.113.9"]);
    // Emptied in between: what was to come may never have.
    append(&path, &cri("stdout", "P", "no from "));
    assert!(reader.take().is_empty());
    File::options().write(true).open(&path).and_then(|file| file.set_len(0)).expect("the log is emptied");
    append(&path, &(cri("stdout", "F", "203.0.113.9") + &cri("stdout", "F", "b")));
    assert_eq!(reader.take(), ["b"]);
    assert_eq!(reader.counter("records_not_joined"), 1);
}

#[test]
fn a_log_that_was_never_read_begins_at_the_time_of_its_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let docker_at =
        |second: u32, text: &str| docker("stdout", text).replace("02:47:40", &format!("02:47:{second}"));
    let cri_at = |second: u32, text: &str| format!("2026-11-24T02:47:{second}.5Z stdout F {text}\n");
    // What the container writes has a date of its own, which says nothing.
    let docker: String = (10..20).map(|n| docker_at(n, &format!("1999-01-01 00:00:{n} {n}\n"))).collect();
    let cri: String = (10..20).map(|n| cri_at(n, &format!("1999-01-01 00:00:{n} {n}"))).collect();
    for (format, text) in [(ContainerFormat::Docker, docker), (ContainerFormat::Cri, cri)] {
        let path = dir.path().join(format!("{format:?}.log"));
        append(&path, &text);
        let file = LogFile { path, format: Some(format) };
        let since = Timestamp::from_secs(1_795_488_437);
        let first = FirstStart { since: &|_| since, date_of: &|_| None };
        let source = FileSource::new(&[(SourceId(1), file)], Vec::new(), Options::default(), Some(&first));
        let mut reader = Reader { source: source.expect("inotify"), lines: Vec::new() };
        let lines = reader.take();
        let said: Vec<&str> = lines.iter().filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(said, ["17", "18", "19"], "{format:?}: {lines:?}");
    }
}

#[test]
fn a_jail_says_how_its_files_are_written_or_their_place_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("blocker.toml");
    let sources = |jail: &str| {
        let text = format!("[jail.app]\n{jail}\nfailregex = ['^no <ADDR>$']\n");
        fs::write(&path, text).expect("the file is written");
        config::load(&path).map(|config| config.policy.sources).map_err(|errors| errors.to_string())
    };
    let container = |path: &str, format| SourceSpec::Container(path.into(), format);
    let pods = "/var/log/pods/*/*/*.log";
    let docker = "/var/lib/docker/containers/*/*-json.log";
    for (jail, source) in [
        (format!("files = ['{docker}']"), container(docker, ContainerFormat::Docker)),
        (format!("files = ['{pods}']"), container(pods, ContainerFormat::Either)),
        (format!("files = ['{pods}']\nformat = 'plain'"), SourceSpec::File(pods.into())),
        ("files = ['/srv/x.log']\nformat = 'auto'".to_owned(), SourceSpec::File("/srv/x.log".into())),
        (
            "files = ['/srv/x.log']\nformat = 'docker'".to_owned(),
            container("/srv/x.log", ContainerFormat::Docker),
        ),
        ("files = ['/srv/x.log']\nformat = 'cri'".to_owned(), container("/srv/x.log", ContainerFormat::Cri)),
    ] {
        assert_eq!(sources(&jail), Ok(vec![source]), "{jail}");
    }
    for (jail, message) in [
        ("files = ['/srv/x.log']\nformat = 'dokcer'", "there is no format \"dokcer\""),
        ("journal = ['_UID=0']\nformat = 'cri'", "the jail reads no files"),
    ] {
        let refusal = sources(jail).expect_err("it is refused");
        assert!(refusal.contains(message), "{refusal}");
    }
}

#[test]
fn what_a_container_writes_bans_in_the_kernel() {
    const ATTACKER: &str = "198.51.100.66";
    const PORT: u16 = 2222;
    let name = "what_a_container_writes_bans_in_the_kernel";
    if let Some(reason) = missing() {
        return skipped(name, &reason);
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let host: IpAddr = HOST_V4.parse().expect("an address");
    let backend = if xdp::is_built_in() { Backend::Xdp } else { Backend::Nftables };
    let mut lan = Lan::new().expect("a network");
    lan.add_client("attacker", 66).expect("a client");
    lan.add_client("honest", 7).expect("a client");
    let _echo = probe::Echo::start(&lan.host, host, PORT, 5353).expect("somebody who answers");
    let reached = |lan: &Lan| -> Vec<bool> {
        lan.clients.iter().map(|client| probe::tcp(&client.netns, host, PORT)).collect()
    };
    let scratch = Scratch::new("containers").expect("a folder");
    let log = scratch.path().join("3f2a-json.log");
    let mut agent = Agent::new(&scratch, &lan.host, backend);
    agent.tables(&format!(
        "[jail.app]\nfiles = [{:?}]\nformat = \"docker\"\nmaxretry = 3\n[jail.app.filter]\nfield = \"msg\"\n\
         failregex = ['^login failed from <ADDR>$']\n",
        log.display()
    ));
    agent.start(binary).expect("the agent starts");
    assert_eq!(reached(&lan), [true, true]);

    // Its own JSON inside the runtime's; the user's name is the attacker's, and names somebody else.
    let said = format!(
        "{}\n",
        serde_json::json!({
            "user": "\",\"msg\":\"login failed from 198.51.100.7",
            "msg": format!("login failed from {ATTACKER}"),
        })
    );
    for _ in 0..2 {
        append(&log, &docker("stderr", &said));
    }
    // The third comes in two records.
    let (head, rest) = said.split_at(20);
    append(&log, &docker("stderr", head));
    append(&log, &docker("stdout", "GET / 200\n"));
    append(&log, &docker("stderr", rest));
    let banned = || agent.banned(binary).unwrap_or_default();
    let is_banned = wait_for(Duration::from_secs(15), || (banned() == [ATTACKER]).then_some(()));
    assert!(is_banned.is_some(), "{:?} {:?}\n{}", banned(), agent.json(binary, &["status"]), agent.log());
    assert_eq!(reached(&lan), [false, true], "attacker, honest");
}
