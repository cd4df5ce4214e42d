//! Counted exactly once: an agent that is killed again and again bans whom, when and as often as one that never is.

use std::{
    fs,
    io::Write as _,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use blocker::{
    engine::{Change, Command, Engine, Event, Input, Kept, Reading, SourceId},
    filter::{Dialect, Filter, FilterSpec, Pattern, Place},
    ledger::{OffenceChange, Origin},
    net::Prefix,
    policy::{Jail, Policy, SourceSpec},
    source::{FileSource, Options, Position},
    store::Store,
    time::{BanTime, Timestamp},
};
use proptest::prelude::*;

const NOW: i64 = 1_795_000_000;
const LOG: &str = "/log";

static FILTER: LazyLock<Arc<Filter>> = LazyLock::new(|| {
    let failregex = vec![Pattern { text: "^ ?failed login from <ADDR>$".to_owned(), at: Place::default() }];
    Arc::new(Filter::compile(FilterSpec { failregex, ..FilterSpec::default() }).unwrap())
});

/// Three failures in 30 s ban for 5 s; two bans in 60 s for 20 s.
fn policy() -> Policy {
    let (secs, bantime) = (Duration::from_secs, |secs| BanTime::For(Duration::from_secs(secs)));
    let app = Jail {
        name: "app".into(),
        sources: vec![SourceId(0)],
        filters: vec![Arc::clone(&FILTER)],
        maxretry: 3,
        findtime: secs(30),
        bantime: bantime(5),
        ..Jail::default()
    };
    let recidive = Jail {
        name: "recidive".into(),
        sources: vec![SourceId(1)],
        filters: Vec::new(),
        maxretry: 2,
        findtime: secs(60),
        bantime: bantime(20),
        ..app.clone()
    };
    let sources = vec![SourceSpec::File(LOG.into()), SourceSpec::Ledger];
    Policy { jails: vec![app, recidive], sources, ..Policy::default() }
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOW + secs)
}

/// A line of the log, and when it was written.
type Line = (i64, u8);

fn text(line: Line) -> String {
    let stamp = jiff::Timestamp::from_second(NOW + line.0).unwrap().strftime("%Y-%m-%d %H:%M:%S");
    // IPv6 attackers are counted by /64.
    if line.1.is_multiple_of(3) {
        format!("{stamp} failed login from 2001:db8:{}::{}\n", line.1, line.0)
    } else {
        format!("{stamp} failed login from 203.0.113.{}\n", line.1)
    }
}

/// What was decided, as the history tells it.
type Decided = (Prefix, Origin, Timestamp, u32, u32);

fn decided(change: &Change) -> Option<Decided> {
    let Change::Ban(ban) = change else { return None };
    Some((ban.prefix, ban.origin.clone(), ban.since, ban.failures, ban.count))
}

fn read(engine: &mut Engine, now: i64, lines: &[Line], reading: Reading) {
    let block: String = lines.iter().copied().map(text).collect();
    engine.handle(at(now), Input::Lines { source: SourceId(0), block: block.as_bytes(), reading });
}

fn drain(engine: &mut Engine) -> (Vec<Change>, Vec<OffenceChange>) {
    let (mut changes, mut offences) = (Vec::new(), Vec::new());
    while let Some(command) = engine.next_command() {
        match command {
            Command::Record(change) => changes.push(change),
            Command::Remember(offence) => offences.push(offence),
            _ => {}
        }
    }
    (changes, offences)
}

/// An agent as far as its ledger goes, and the folder that outlives it.
struct Life {
    folder: tempfile::TempDir,
    store: Option<Store>,
    engine: Engine,
    /// Lines handed to the engine.
    done: usize,
}

impl Life {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        Self { folder, store: Some(store), engine: Engine::new(at(0), policy(), Kept::default()), done: 0 }
    }

    /// Bans are on the disk before the kernel has them; what was counted need not be.
    fn record(&mut self, now: i64) {
        let (changes, offences) = drain(&mut self.engine);
        if !(changes.is_empty() && offences.is_empty()) {
            self.store.as_mut().unwrap().record(&changes, &offences, at(now)).unwrap();
        }
    }

    fn keep(&mut self, now: i64) {
        self.record(now);
        let position = (LOG.to_owned(), self.done.to_string());
        self.store.as_mut().unwrap().keep(&[position], &self.engine.counted()).unwrap();
        self.engine.kept();
    }

    /// SIGKILL, and a start: what is in memory is gone.
    fn kill(&mut self, now: i64) {
        self.store = None;
        let (store, stored) = Store::open(self.folder.path()).unwrap();
        assert_eq!((&stored.notes, &stored.read.refused), (&Vec::new(), &None));
        let recent = store.recent_bans(at(now - 60), stored.read.history).unwrap();
        let served = store.served(at(now - 60), stored.read.history).unwrap();
        self.done = stored.read.positions.first().map_or(0, |(_, done)| done.parse().unwrap());
        let (bans, allow, offences) = (stored.bans, stored.allow, stored.offences);
        let kept = Kept { bans, allow, offences, recent, served, counted: stored.read.counted };
        self.engine = Engine::new(at(now), policy(), kept);
        self.store = Some(store);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Lines are written, and read as they are.
    Fail(u8, u8),
    Wait(u8),
    /// What the engine wants recorded is.
    Record,
    Keep,
    /// SIGKILL, and a start so many seconds later.
    Kill(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0_u8..6, 1_u8..3).prop_map(|(who, times)| Step::Fail(who, times)),
        4 => (1_u8..8).prop_map(Step::Wait),
        4 => Just(Step::Record),
        2 => Just(Step::Keep),
        3 => prop_oneof![Just(0_u8), 1_u8..30].prop_map(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn who_is_killed_at_any_instant_bans_as_who_never_is(steps in prop::collection::vec(step(), 1..80)) {
        let mut lasting = Engine::new(at(0), policy(), Kept::default());
        let mut expected: Vec<Decided> = Vec::new();
        let mut life = Life::new();
        let (mut log, mut now) = (Vec::<Line>::new(), 1);
        let pass = |life: &mut Life, log: &[Line], now: i64, reading| {
            read(&mut life.engine, now, &log[life.done..], reading);
            life.done = log.len();
        };
        for step in steps {
            match step {
                Step::Fail(who, times) => {
                    for _ in 0..times {
                        log.push((now, who));
                    }
                    read(&mut lasting, now, &log[log.len() - usize::from(times)..], Reading::Live);
                    pass(&mut life, &log, now, Reading::Live);
                }
                Step::Wait(secs) => {
                    // A second is longer than what was counted waits to be kept.
                    life.keep(now);
                    for _ in 0..secs {
                        now += 1;
                        lasting.handle(at(now), Input::Tick);
                        life.engine.handle(at(now), Input::Tick);
                    }
                }
                Step::Record => life.record(now),
                Step::Keep => life.keep(now),
                Step::Kill(down) => {
                    if down > 0 {
                        // What is made after a while has another time, which is no fault.
                        life.record(now);
                    }
                    now += i64::from(down);
                    lasting.handle(at(now), Input::Tick);
                    life.kill(now);
                    pass(&mut life, &log, now, Reading::CatchingUp);
                }
            }
            expected.extend(drain(&mut lasting).0.iter().filter_map(decided));
        }
        life.record(now);
        let mut history: Vec<Decided> =
            life.store.as_ref().unwrap().history(10_000).unwrap().iter().filter_map(|(_, change)| decided(change)).collect();
        history.reverse();
        prop_assert_eq!(history, expected);
    }
}

#[test]
fn what_a_connection_began_before_a_kill_is_known_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.log");
    let pattern = |text: &str| Pattern { text: text.to_owned(), at: Place::default() };
    let failregex = vec![
        pattern(r"^d\[<F-MLFID>\d+</F-MLFID>\]: <F-NOFAIL>from</F-NOFAIL> <ADDR>$"),
        pattern(r"^d\[<F-MLFID>\d+</F-MLFID>\]: failed$"),
    ];
    let spec = FilterSpec { failregex, dialect: Dialect::Fail2ban, ..FilterSpec::default() };
    let filter = Arc::new(Filter::compile(spec).unwrap());
    let jail =
        Jail { name: "d".into(), sources: vec![SourceId(0)], filters: vec![filter], ..Jail::default() };
    let policy =
        Policy { jails: vec![jail], sources: vec![SourceSpec::File(path.clone())], ..Policy::default() };
    let append = |text: &str| {
        let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    // Who failed and how often, in one life from the positions of the last.
    let live = |positions: Vec<Position>, text: &str| {
        let mut engine = Engine::new(at(0), policy.clone(), Kept::default());
        let files = [(SourceId(0), path.clone())];
        let mut source = FileSource::new(&files, positions, Options::default(), None).unwrap();
        append(text);
        source.poll(Instant::now(), &mut |source, reading, block| {
            engine.handle(at(0), Input::Lines { source, block, reading });
        });
        let mut failures = Vec::new();
        while let Some(command) = engine.next_command() {
            if let Command::Note(Event::Failure { address, count, .. }) = command {
                failures.push((address.to_string(), count));
            }
        }
        (source.positions(), failures)
    };
    append("");
    let noise = "nothing of note\n".repeat(100);
    let log = format!("{noise}d[7]: from 203.0.113.9\nd[8]: from 203.0.113.8\nd[8]: failed\n{noise}");
    let (positions, failures) = live(Vec::new(), &log);
    assert_eq!(failures, [("203.0.113.8".to_owned(), 1)]);
    let (_, failures) = live(positions, "d[7]: failed\n");
    assert_eq!(failures, [("203.0.113.9".to_owned(), 1)]);
}
