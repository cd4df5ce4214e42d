//! `cargo xtask demo`: the main job, on real input, told as it happens.
//!
//! A host that serves a real Django site, two attackers and an honest client, each a network namespace. Every claim
//! the demo makes is probed and printed; one that does not hold makes it fail. Everything is gone at the end, also
//! after Ctrl-C.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    lab::{
        Netns, Process, Scratch,
        agent::{Agent, Backend},
        lan::{HOST_V4, HOST_V6, Lan},
        probe, site, wait_for,
    },
    setup, workspace,
};

const HTTP: u16 = 8000;
const TCP: u16 = 2222;
const UDP: u16 = 5353;
/// Long enough to show the ban outliving the agent, short enough to wait for its end.
const BAN_SECONDS: u64 = 20;
const MAXRETRY: u32 = 3;

/// Shows the main job with the given backend.
///
/// # Errors
/// When something could not be set up, or a claim did not hold.
pub fn run(backend: Backend) -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries, setup::Need::Bpf, setup::Need::Lab])?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("watch for Ctrl-C")?;
    if backend == Backend::Xdp {
        build::object()?;
    }
    let binary = build::agent(build::Profile::Release)?;
    let venv = site::python_env(&workspace().join("target"))?;
    Demo { backend, interrupted, claims: Vec::new() }.play(&binary, &venv)
}

struct Demo {
    backend: Backend,
    interrupted: Arc<AtomicBool>,
    claims: Vec<(String, bool)>,
}

impl Demo {
    fn play(mut self, binary: &Path, venv: &Path) -> Result<()> {
        self.scene("The network");
        let scratch = Scratch::new("demo")?;
        let mut lan = Lan::new()?;
        // One address and no other port is bound for both families, so that each is seen under its own name.
        lan.host.sysctl("net/ipv6/bindv6only", "1")?;
        for (label, number) in [("attacker4", 66), ("attacker6", 67), ("honest", 7)] {
            lan.add_client(label, number)?;
        }
        let (v4, v6): (IpAddr, IpAddr) = (HOST_V4.parse()?, HOST_V6.parse()?);
        let parties = [
            Party { name: "attacker (IPv4)", netns: &lan.clients[0].netns, own: lan.clients[0].v4, host: v4 },
            Party { name: "attacker (IPv6)", netns: &lan.clients[1].netns, own: lan.clients[1].v6, host: v6 },
            Party { name: "honest (IPv4)", netns: &lan.clients[2].netns, own: lan.clients[2].v4, host: v4 },
            Party { name: "honest (IPv6)", netns: &lan.clients[2].netns, own: lan.clients[2].v6, host: v6 },
        ];
        say(&format!("host         {HOST_V4}  {HOST_V6}"));
        for party in &parties {
            say(&format!("{:<16} {}", party.name, party.own));
        }

        self.scene("A Django site, its failed logins logged by one line in INSTALLED_APPS");
        let log = scratch.join("auth.log");
        let site_data = site::prepare(venv, scratch.path())?;
        let _web: Vec<Process> = [format!("0.0.0.0:{HTTP}"), format!("[::]:{HTTP}")]
            .iter()
            .map(|bind| {
                let mut command = site_data.serve_command("settings", bind, &log, 1);
                lan.host.adopt(&mut command);
                let output = fs::File::create(scratch.join("gunicorn.log"))?;
                Process::spawn(command.stdout(output.try_clone()?).stderr(output))
            })
            .collect::<Result<_>>()?;
        let _echoes =
            [probe::Echo::start(&lan.host, v4, TCP, UDP)?, probe::Echo::start(&lan.host, v6, TCP, UDP)?];
        self.wait("the site answers", Duration::from_secs(20), || {
            (probe::http(parties[2].netns, v4, HTTP) && probe::http(parties[2].netns, v6, HTTP)).then_some(())
        })?;

        self.scene(&format!("The agent, with {}", self.backend));
        let mut agent = Agent::new(&scratch, &lan.host, self.backend);
        agent.jail(
            "django",
            &log,
            &format!("maxretry = {MAXRETRY}\nfindtime = \"10m\"\nbantime = {BAN_SECONDS}"),
        );
        let (told, heard) = mpsc::channel();
        agent.start_with(binary, |stderr| {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    println!("    agent | {line}");
                    let _over = told.send(line);
                }
            });
        })?;

        self.scene("Everyone is served");
        for party in &parties {
            self.expect(party, true)?;
        }

        self.scene("The attackers guess passwords");
        for attacker in &parties[..2] {
            self.attack(attacker, &log, &heard)?;
        }

        self.scene("What the attackers and the honest client can reach now");
        for (index, party) in parties.iter().enumerate() {
            self.expect(party, index >= 2)?;
        }
        println!("\n$ blocker bans");
        print!("{}", agent.cli(binary, &["bans"])?);
        let dropped = agent.dropped(binary)?;
        self.claim(
            &format!("both attackers are listed with drops read back from the kernel: {dropped:?}"),
            dropped.len() == 2 && dropped.iter().all(|packets| *packets > 0),
        );

        self.scene("The agent is killed with SIGKILL; the kernel keeps dropping");
        agent.kill();
        for party in &parties {
            self.expect(party, !party.name.starts_with("attacker"))?;
        }

        self.scene("The bans end by themselves, with no agent there");
        let waited = Instant::now();
        for attacker in &parties[..2] {
            let back =
                self.wait("the attacker is served again", Duration::from_secs(BAN_SECONDS + 5), || {
                    probe::ping(attacker.netns, attacker.host).then_some(())
                });
            self.claim(&format!("{} is reachable again after the ban's end", attacker.name), back.is_ok());
        }
        say(&format!("waited {:.1} s for the end of the bans", waited.elapsed().as_secs_f64()));

        drop(agent);
        self.finish()
    }

    /// Guesses until the ban, with a stream of datagrams beside it that shows when the first packet is dropped.
    fn attack(&mut self, attacker: &Party<'_>, log: &Path, heard: &mpsc::Receiver<String>) -> Result<()> {
        let stream = DatagramStream::start(attacker)?;
        for guess in 1..=MAXRETRY {
            self.check_interrupt()?;
            let status =
                probe::login(attacker.netns, attacker.host, HTTP, "admin", &format!("guess{guess}"), &[]);
            say(&format!(
                "{} guess {guess}: HTTP {}",
                attacker.name,
                status.map_or_else(|error| error.to_string(), |status| status.to_string())
            ));
        }
        let written = fs::metadata(log)?.modified()?;
        let ban = self.wait("the ban", Duration::from_secs(5), || {
            heard.try_iter().find(|line| line.contains("Ban ")).map(|_| ())
        });
        self.claim(&format!("{} is banned after {MAXRETRY} failures", attacker.name), ban.is_ok());
        thread::sleep(Duration::from_millis(50));
        let first_dropped = stream.first_dropped();
        match first_dropped.map(|at| at.duration_since(written)) {
            Some(Ok(after)) => {
                say(&format!("first packet dropped {:.2} ms after the log line", after.as_secs_f64() * 1e3));
            }
            Some(Err(_)) => say("first packet dropped within the log file's clock tick"),
            None => {}
        }
        self.claim(&format!("packets of {} are dropped", attacker.name), first_dropped.is_some());
        Ok(())
    }

    /// Probes the four ways to reach the host, and claims that all are alive, or all dead.
    fn expect(&mut self, party: &Party<'_>, alive: bool) -> Result<()> {
        self.check_interrupt()?;
        let (netns, host) = (party.netns, party.host);
        let seen = [
            ("http", probe::http(netns, host, HTTP)),
            ("tcp", probe::tcp(netns, host, TCP)),
            ("udp", probe::udp(netns, host, UDP)),
            ("ping", probe::ping(netns, host)),
        ];
        let words: Vec<String> =
            seen.iter().map(|(way, up)| format!("{way} {}", if *up { "alive" } else { "dead" })).collect();
        self.claim(
            &format!("{:<16} {}", party.name, words.join(", ")),
            seen.iter().all(|(_, up)| *up == alive),
        );
        Ok(())
    }

    fn wait<T>(&self, what: &str, patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
        let found = wait_for(patience, || {
            if self.interrupted.load(Ordering::Relaxed) { Some(None) } else { probe().map(Some) }
        });
        match found {
            Some(Some(found)) => Ok(found),
            Some(None) => bail!("interrupted"),
            None => bail!("waited {} s in vain until {what}", patience.as_secs()),
        }
    }

    fn check_interrupt(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) }
    }

    fn scene(&self, title: &str) {
        println!("\n== {title}");
    }

    fn claim(&mut self, what: &str, holds: bool) {
        println!("  [{}] {what}", if holds { "ok" } else { "NOT SO" });
        self.claims.push((what.to_owned(), holds));
    }

    fn finish(self) -> Result<()> {
        let broken: Vec<&str> =
            self.claims.iter().filter(|(_, holds)| !holds).map(|(what, _)| what.as_str()).collect();
        println!("\n{} claims shown, {} did not hold; cleaning up", self.claims.len(), broken.len());
        if !broken.is_empty() {
            bail!("these did not hold:\n  {}", broken.join("\n  "));
        }
        Ok(())
    }
}

/// Somebody with an address, and the address of the host as they reach it.
struct Party<'a> {
    name: &'static str,
    netns: &'a Netns,
    own: IpAddr,
    host: IpAddr,
}

/// Datagrams every 100 us to the host's echo port, each answered while the sender is not banned.
struct DatagramStream {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Option<SystemTime>>>,
}

impl DatagramStream {
    const EVERY: Duration = Duration::from_micros(100);
    /// So many in a row without an answer are drops, not a late echo.
    const SILENCE: Duration = Duration::from_millis(40);

    fn start(attacker: &Party<'_>) -> Result<Self> {
        let any: IpAddr = if attacker.host.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = attacker.netns.enter(|| std::net::UdpSocket::bind((any, 0)))?;
        socket.connect((attacker.host, UDP))?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut sent: Vec<SystemTime> = Vec::new();
            let mut answered = None;
            let mut buffer = [0; 8];
            while !stopped.load(Ordering::Relaxed) && sent.len() < 1_000_000 {
                sent.push(SystemTime::now());
                let number = (sent.len() - 1) as u64;
                let _refused = socket.send(&number.to_be_bytes());
                while socket.recv(&mut buffer).is_ok() {
                    answered = Some(u64::from_be_bytes(buffer) as usize);
                }
                thread::sleep(Self::EVERY);
            }
            let first_lost = sent.get(answered? + 1)?;
            let silent = sent.last()?.duration_since(*first_lost).ok()?;
            (silent >= Self::SILENCE).then_some(*first_lost)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// When the first packet that was never answered left.
    fn first_dropped(mut self) -> Option<SystemTime> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()?
    }
}

impl Drop for DatagramStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn say(text: &str) {
    println!("  {text}");
}
