//! What a jail asks of the engine beyond counting: longer bans for old offenders, bans for bans, somebody to ask first,
//! something to run, or only to look on.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use blocker::{
    engine::{
        ASKED_MAX, Act, Ask, Change, Command, Engine, Event, Input, Kept, Occasion, Reading, Request,
        RequestId, SourceId,
    },
    filter::{Dialect, Fail2banOptions, Filter, FilterSpec, Pattern, Place},
    ledger::{Ban, Offence, OffenceChange, Origin},
    net::{Prefix, Scope},
    policy::{
        ActionSpec, CommandLine, Escalation, IgnoreCache, IgnoreCommand, Jail, Limits, Policy, SourceSpec,
    },
    time::{BanTime, Timestamp, Until},
};

const NOW: i64 = 1_795_000_000;
const ATTACKER: &str = "203.0.113.9";

static FILTER: LazyLock<Arc<Filter>> = LazyLock::new(|| filter("failed", false));
static SPOOFABLE: LazyLock<Arc<Filter>> = LazyLock::new(|| filter("denied", true));

fn filter(word: &str, observe: bool) -> Arc<Filter> {
    let pattern = Pattern { text: format!("^ ?{word} from <ADDR>$"), at: Place::default() };
    let failregex = vec![pattern];
    Arc::new(Filter::compile(FilterSpec { failregex, observe, ..FilterSpec::default() }).unwrap())
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOW + secs)
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Two failures ban for 100 s.
fn jail() -> Jail {
    Jail {
        name: "app".into(),
        sources: vec![SourceId(0)],
        filters: vec![Arc::clone(&FILTER)],
        maxretry: 2,
        bantime: BanTime::For(secs(100)),
        ..Jail::default()
    }
}

/// Two bans by others ban for 1,000 s.
fn recidive() -> Jail {
    let (sources, findtime, bantime) = (vec![SourceId(1)], secs(86_400), BanTime::For(secs(1_000)));
    Jail { name: "recidive".into(), sources, findtime, bantime, filters: Vec::new(), ..jail() }
}

fn policy(jails: Vec<Jail>) -> Policy {
    let sources = vec![SourceSpec::File("/log".into()), SourceSpec::Ledger];
    Policy { jails, sources, ..Policy::default() }
}

/// An engine and its time.
struct Life {
    engine: Engine,
    now: i64,
}

impl Life {
    fn new(jails: Vec<Jail>) -> Self {
        Self::kept(jails, Kept::default()).0
    }

    fn kept(jails: Vec<Jail>, kept: Kept) -> (Self, Vec<Command>) {
        let mut life = Self { engine: Engine::new(at(0), policy(jails), kept), now: 0 };
        let commands = life.drain();
        (life, commands)
    }

    fn drain(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.engine.next_command()).collect()
    }

    fn input(&mut self, input: Input<'_>) -> Vec<Command> {
        self.engine.handle(at(self.now), input);
        self.drain()
    }

    fn lines(&mut self, word: &str, address: &str, times: usize) -> Vec<Command> {
        let block = format!("{word} from {address}\n").repeat(times);
        self.input(Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live })
    }

    fn fail(&mut self, times: usize) -> Vec<Command> {
        self.lines("failed", ATTACKER, times)
    }

    fn later(&mut self, secs: i64) -> Vec<Command> {
        self.now += secs;
        self.input(Input::Tick)
    }

    fn counters(&self, jail: usize) -> blocker::engine::JailCounters {
        self.engine.snapshot().jails[jail].1
    }
}

/// Jail, length in seconds and number of each ban.
fn bans(commands: &[Command]) -> Vec<(String, u64, u32)> {
    let shown = |ban: &Ban| {
        let Until::At(end) = ban.until else { panic!("{ban:?}") };
        let Origin::Jail(jail) = &ban.origin else { panic!("{ban:?}") };
        (jail.to_string(), end.saturating_since(ban.since).as_secs(), ban.count)
    };
    let banned = commands.iter().filter_map(|command| match command {
        Command::Enforce(Change::Ban(ban)) => Some(shown(ban)),
        _ => None,
    });
    banned.collect()
}

fn one(jail: &str, secs: u64, count: u32) -> Vec<(String, u64, u32)> {
    vec![(jail.to_owned(), secs, count)]
}

#[test]
fn each_further_ban_is_longer_and_takes_fewer_failures() {
    let escalation = Escalation { maxtime: Some(secs(350)), ..Escalation::default() };
    let escalation = Some(Arc::new(escalation));
    let mut life = Life::new(vec![Jail { escalation, maxretry: 5, ..jail() }]);
    // After n bans a failure counts as 1, 2, 3, 5; so many lines reach five.
    for (lines, length, count) in [(5, 100, 1), (3, 200, 2), (2, 350, 3), (1, 350, 4)] {
        assert_eq!(bans(&life.fail(lines - 1)), [], "ban {count}");
        assert_eq!(bans(&life.fail(1)), one("app", length, count));
        life.later(351);
    }
    // Without escalation bans are counted, and all the same.
    let mut life = Life::new(vec![jail()]);
    for count in 1..=3 {
        assert_eq!(bans(&life.fail(2)), one("app", 100, count));
        life.later(101);
    }
}

#[test]
fn whose_bans_count_is_the_jails_choice() {
    for (overalljails, length) in [(false, 100), (true, 200)] {
        let escalation = Some(Arc::new(Escalation { overalljails, ..Escalation::default() }));
        let other =
            Jail { name: "other".into(), filters: vec![filter("denied", false)], escalation, ..jail() };
        let mut life = Life::new(vec![jail(), other]);
        assert_eq!(bans(&life.fail(2)), one("app", 100, 1));
        life.later(101);
        assert_eq!(bans(&life.lines("denied", ATTACKER, 2)), one("other", length, 1), "{overalljails}");
    }
}

#[test]
fn earlier_bans_survive_a_restart_until_they_are_old_or_forgiven() {
    let jails = || vec![Jail { escalation: Some(Arc::new(Escalation::default())), ..jail() }];
    let mut life = Life::new(jails());
    let commands = life.fail(2);
    let set = Offence { prefix: prefix(ATTACKER), jail: "app".into(), bans: 1, until: Until::At(at(100)) };
    assert!(commands.contains(&Command::Remember(OffenceChange::Set(set.clone()))), "{commands:?}");
    let restart = |offences| Life::kept(jails(), Kept { offences, ..Kept::default() }).0;
    let mut life = restart(vec![set.clone()]);
    assert_eq!(bans(&life.fail(1)), one("app", 200, 2));
    // An operator's unban forgives.
    let request = Request::Unban { prefix: prefix(ATTACKER), scope: None };
    let commands = life.input(Input::Operator { id: RequestId(1), request });
    let forget = Command::Remember(OffenceChange::Forget { prefix: prefix(ATTACKER), jail: "app".into() });
    assert!(commands.contains(&forget), "{commands:?}");
    assert_eq!(bans(&life.fail(2)), one("app", 100, 1));
    // Thirty days after its end a ban counts no more.
    let mut life = restart(vec![set]);
    let commands = life.later(100 + 30 * 86_400);
    assert!(commands.contains(&forget), "{commands:?}");
    assert_eq!(bans(&life.fail(2)), one("app", 100, 1));
}

#[test]
fn the_random_part_comes_from_the_seed() {
    let length = |seed| {
        let escalation = Some(Arc::new(Escalation { rndtime: secs(1_000_000), ..Escalation::default() }));
        let policy = Policy { seed, ..policy(vec![Jail { escalation, ..jail() }]) };
        let mut life = Life { engine: Engine::new(at(0), policy, Kept::default()), now: 0 };
        life.fail(2);
        life.later(101);
        bans(&life.fail(2))[0].1
    };
    assert_eq!(length(1), length(1));
    assert_ne!(length(1), length(2));
    assert!((200..1_000_200).contains(&length(0)));
}

#[test]
fn bans_by_other_jails_ban_for_long() {
    let mut life = Life::new(vec![jail(), recidive()]);
    assert_eq!(bans(&life.fail(2)), one("app", 100, 1));
    life.later(101);
    let commands = life.fail(2);
    // The jail's own ban first; the longer one takes its place at once.
    assert_eq!(bans(&commands), [one("app", 100, 2), one("recidive", 1_000, 1)].concat());
    assert_eq!(life.engine.bans(), 1);
    assert_eq!(life.later(999).iter().filter(|command| matches!(command, Command::Enforce(_))).count(), 0);
    assert_eq!((life.counters(1).failures, life.counters(1).bans), (2, 1));
    let commands = life.later(1);
    assert!(
        commands.contains(&Command::Enforce(Change::Unban { prefix: prefix(ATTACKER), scope: Scope::ALL }))
    );
}

#[test]
fn bans_for_bans_grow_like_others() {
    let escalation = Some(Arc::new(Escalation::default()));
    let mut life = Life::new(vec![jail(), Jail { escalation, ..recidive() }]);
    life.fail(2);
    life.later(101);
    assert_eq!(bans(&life.fail(2)), [one("app", 100, 2), one("recidive", 1_000, 1)].concat());
    life.later(1_001);
    // A further ban counts as two.
    assert_eq!(bans(&life.fail(2)), [one("app", 100, 3), one("recidive", 2_000, 2)].concat());
}

#[test]
fn a_jail_on_the_ledger_never_shortens_a_ban_nor_answers_itself_or_its_like() {
    let short = Jail { bantime: BanTime::For(secs(10)), maxretry: 1, ..recidive() };
    let like = Jail { name: "like".into(), ..short.clone() };
    let mut life = Life::new(vec![jail(), short, like]);
    assert_eq!(bans(&life.fail(2)), one("app", 100, 1));
    assert_eq!((life.counters(1).already_banned, life.counters(2).already_banned), (1, 1));
    let growing = Escalation { overalljails: true, factor: 100.0, ..Escalation::default() };
    let growing = |name: &str| Jail {
        name: name.into(),
        maxretry: 1,
        escalation: Some(Arc::new(growing.clone())),
        ..recidive()
    };
    let mut life = Life::new(vec![jail(), growing("a"), growing("b")]);
    let made = bans(&life.fail(2));
    assert!(made.len() == 3 && made[1].0 == "a" && made[2].0 == "b", "{made:?}");
    // Operators' bans are no offences, and are not taken over.
    let mut life = Life::new(vec![Jail { maxretry: 1, ..jail() }, Jail { maxretry: 1, ..recidive() }]);
    let ask = Request::Ban {
        prefix: prefix("198.51.100.0/24"),
        scope: Scope::ALL,
        bantime: BanTime::For(secs(5)),
        reason: String::new(),
    };
    life.input(Input::Operator { id: RequestId(0), request: ask });
    assert_eq!(life.counters(1).failures, 0);
}

#[test]
fn bans_of_an_earlier_life_count_in_jails_on_the_ledger() {
    let ban = |by: Origin, since: i64| Ban {
        prefix: prefix(ATTACKER),
        scope: Scope::ALL,
        origin: by,
        since: at(since),
        until: Until::At(at(since + 100)),
        failures: 2,
        count: 1,
        reason: String::new(),
    };
    let app = || Origin::Jail("app".into());
    for (recent, banned) in [
        (vec![ban(app(), -500)], true),
        (vec![ban(app(), -90_000)], false),
        (vec![ban(Origin::Jail("recidive".into()), -500)], false),
        (vec![ban(Origin::Operator, -500)], false),
    ] {
        let kept = Kept { recent: recent.clone(), ..Kept::default() };
        let (mut life, commands) = Life::kept(vec![jail(), recidive()], kept);
        assert_eq!(commands, [], "{recent:?}");
        assert_eq!(bans(&life.fail(2)).len(), if banned { 2 } else { 1 }, "{recent:?}");
    }
}

#[test]
fn an_observing_jail_or_filter_counts_and_bans_nobody() {
    let mut life = Life::new(vec![Jail { observe: true, ..jail() }, recidive()]);
    let would = |commands: &[Command]| {
        commands.iter().filter(|command| matches!(command, Command::Note(Event::WouldBan(_)))).count()
    };
    // What it would have banned is as if it were banned, for as long.
    assert_eq!(would(&life.fail(7)), 1);
    let counters = life.counters(0);
    assert_eq!((counters.failures, counters.would_ban, counters.already_banned, counters.bans), (2, 1, 5, 0));
    life.later(100);
    assert_eq!(would(&life.fail(2)), 1);
    assert_eq!((life.engine.bans(), life.counters(1).failures, life.engine.offences().count()), (0, 0, 0));
    // Of two filters in a jail only the one that cannot be spoofed adds up to a ban.
    let filters = vec![Arc::clone(&FILTER), Arc::clone(&SPOOFABLE)];
    let mut life = Life::new(vec![Jail { filters, ..jail() }]);
    life.fail(1);
    assert_eq!(would(&life.lines("denied", ATTACKER, 2)), 1);
    assert_eq!(life.engine.bans(), 0);
    assert_eq!(bans(&life.fail(1)), one("app", 100, 1));
}

fn asking(cache: Option<IgnoreCache>) -> Jail {
    let command = CommandLine::Program(vec!["/bin/known".to_owned()]);
    Jail { ignore_command: Some(Arc::new(IgnoreCommand { command, timeout: secs(10), cache })), ..jail() }
}

fn asked(commands: &[Command]) -> Vec<&Ask> {
    let asks = commands.iter().filter_map(|command| match command {
        Command::Ask(ask) => Some(ask),
        _ => None,
    });
    asks.collect()
}

#[test]
fn a_ban_waits_for_the_ignorecommand_and_no_longer_than_its_timeout() {
    for (answer, banned, counters) in [(Some(true), 0, (1, 0)), (Some(false), 1, (0, 0)), (None, 1, (0, 1))] {
        let mut life = Life::new(vec![asking(None)]);
        let commands = life.fail(2);
        assert_eq!(bans(&commands), []);
        let ask = asked(&commands)[0].clone();
        assert_eq!((ask.address.to_string().as_str(), ask.failures, &*ask.jail), (ATTACKER, 2, "app"));
        assert_eq!(life.engine.next_timeout(), Some(at(10)));
        // Meanwhile nothing is asked twice.
        assert!(asked(&life.fail(5)).is_empty());
        assert_eq!(bans(&life.input(Input::Answer { id: ask.id, ignore: answer })).len(), banned);
        let count = life.counters(0);
        assert_eq!((count.ignored, count.unanswered), counters, "{answer:?}");
        assert!(bans(&life.input(Input::Answer { id: ask.id, ignore: Some(false) })).is_empty());
    }
    let mut life = Life::new(vec![asking(None)]);
    life.fail(2);
    assert_eq!(bans(&life.later(9)), []);
    assert_eq!(bans(&life.later(1)), one("app", 100, 1));
    assert_eq!(life.counters(0).unanswered, 1);
}

#[test]
fn an_answer_is_judged_by_the_policy_of_its_moment() {
    let mut life = Life::new(vec![asking(None)]);
    let id = asked(&life.fail(2))[0].id;
    let mut allowing = policy(vec![asking(None)]);
    allowing.allow = vec![prefix("203.0.113.0/24")];
    life.engine.set_policy(at(1), allowing);
    life.drain();
    assert_eq!(bans(&life.input(Input::Answer { id, ignore: Some(false) })), []);
    let mut life = Life::new(vec![asking(None)]);
    let id = asked(&life.fail(2))[0].id;
    life.engine.set_policy(at(1), policy(Vec::new()));
    life.drain();
    assert_eq!(bans(&life.input(Input::Answer { id, ignore: Some(false) })), []);
}

#[test]
fn answers_are_remembered_and_questions_bounded() {
    let mut life = Life::new(vec![asking(Some(IgnoreCache { count_max: 10, time_max: secs(60) }))]);
    let id = asked(&life.fail(2))[0].id;
    life.input(Input::Answer { id, ignore: Some(true) });
    assert!(asked(&life.fail(2)).is_empty());
    assert_eq!(life.counters(0).ignored, 2);
    life.later(60);
    assert_eq!(asked(&life.fail(2)).len(), 1);
    // More than can wait are banned without being asked about.
    let mut life = Life::new(vec![asking(None)]);
    let mut made = 0;
    for number in 0..ASKED_MAX + 7 {
        let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + u32::try_from(number).unwrap()).to_string();
        made += bans(&life.lines("failed", &address, 2)).len();
    }
    assert_eq!((made, life.engine.snapshot().asked), (7, ASKED_MAX));
}

fn action(name: &str) -> ActionSpec {
    let run = |what: &str| Some(CommandLine::Program(vec![format!("/bin/{what}")]));
    ActionSpec {
        start: run("start"),
        stop: run("stop"),
        ban: run("ban"),
        unban: run("unban"),
        ..ActionSpec::new(name)
    }
}

fn acts(commands: &[Command]) -> Vec<String> {
    let shown = |Act { jail, action, occasion }: &Act| {
        let what = match occasion {
            Occasion::Start => "start".to_owned(),
            Occasion::Stop => "stop".to_owned(),
            Occasion::Ban { ban, restored: false, .. } => format!("ban {}", ban.prefix),
            Occasion::Ban { ban, .. } => format!("restored {}", ban.prefix),
            Occasion::Unban { ban } => format!("unban {}", ban.prefix),
        };
        format!("{jail} {} {what}", action.name)
    };
    let acts = commands.iter().filter_map(|command| match command {
        Command::Act(act) => Some(shown(act)),
        _ => None,
    });
    acts.collect()
}

#[test]
fn actions_run_after_the_kernel_and_restored_bans_only_where_asked() {
    let (plain, again) = (action("plain"), ActionSpec { restored: true, ..action("again") });
    let jails = || vec![Jail { actions: vec![Arc::new(plain.clone()), Arc::new(again.clone())], ..jail() }];
    let (mut life, commands) = Life::kept(jails(), Kept::default());
    assert_eq!(acts(&commands), ["app plain start", "app again start"]);
    let commands = life.fail(2);
    assert_eq!(acts(&commands), ["app plain ban 203.0.113.9", "app again ban 203.0.113.9"]);
    let place = |wanted: fn(&Command) -> bool| commands.iter().position(wanted).unwrap();
    assert!(
        place(|command| matches!(command, Command::Enforce(_)))
            < place(|command| matches!(command, Command::Act(_)))
    );
    let kept = Kept { bans: life.engine.desired().iter().cloned().collect(), ..Kept::default() };
    assert_eq!(acts(&life.input(Input::Stop)), ["app plain stop", "app again stop"]);
    assert_eq!(acts(&life.later(100)), ["app plain unban 203.0.113.9", "app again unban 203.0.113.9"]);
    let (mut life, commands) = Life::kept(jails(), kept);
    assert_eq!(acts(&commands), ["app plain start", "app again start", "app again restored 203.0.113.9"]);
    // A reload stops what is gone or changed, and starts what is new.
    let changed = ActionSpec { timeout: secs(1), ..again.clone() };
    let jails = vec![Jail { actions: vec![Arc::new(changed), Arc::new(plain.clone())], ..jail() }];
    life.engine.set_policy(at(1), policy(jails));
    assert_eq!(acts(&life.drain()), ["app again stop", "app again start"]);
}

#[test]
fn a_longer_ban_by_another_jail_ends_the_first_ones_actions() {
    let with = |jail: Jail, name| Jail { actions: vec![Arc::new(action(name))], ..jail };
    let mut life = Life::new(vec![with(jail(), "a"), with(Jail { maxretry: 1, ..recidive() }, "b")]);
    assert_eq!(
        acts(&life.fail(2)),
        ["app a ban 203.0.113.9", "recidive b ban 203.0.113.9", "app a unban 203.0.113.9"]
    );
    let request = Request::Flush;
    let commands = life.input(Input::Operator { id: RequestId(3), request });
    assert_eq!(acts(&commands), ["recidive b unban 203.0.113.9"]);
}

#[test]
fn the_last_matched_lines_go_to_actions_that_want_them() {
    let (wants, not) = (ActionSpec { matches: true, ..action("wants") }, action("not"));
    let actions = vec![Arc::new(wants), Arc::new(not)];
    let mut life = Life::new(vec![Jail { actions, maxretry: 4, maxmatches: 2, ..jail() }]);
    life.lines("2026-11-24 10:00:00 failed", ATTACKER, 2);
    let commands = life.lines("2026-11-24 10:00:01 failed", ATTACKER, 2);
    let lines: Vec<&[String]> = commands
        .iter()
        .filter_map(|command| match command {
            Command::Act(Act { occasion: Occasion::Ban { matches, .. }, .. }) => Some(&matches[..]),
            _ => None,
        })
        .collect();
    let line = format!("2026-11-24 10:00:01 failed from {ATTACKER}");
    assert_eq!(lines, [&[line.clone(), line][..], &[]]);
    assert_eq!(life.engine.snapshot().matches_bytes, 0, "taken out with the ban");
    // Where no action wants them none are kept.
    let mut life = Life::new(vec![Jail { actions: vec![Arc::new(action("not"))], maxmatches: 2, ..jail() }]);
    life.fail(1);
    assert_eq!(life.engine.snapshot().matches_bytes, 0);
}

#[test]
fn lines_that_a_pattern_gives_up_on_are_counted_across_reloads() {
    let pattern = Pattern { text: r"^(?:(a+)\1?)+c from <HOST>$".to_owned(), at: Place::default() };
    let spec = FilterSpec { failregex: vec![pattern], dialect: Dialect::Fail2ban, ..FilterSpec::default() };
    let slow = Jail { filters: vec![Arc::new(Filter::compile(spec).unwrap())], ..jail() };
    let mut life = Life::new(vec![slow.clone()]);
    let line = format!("{}xc from {ATTACKER}\n", "a".repeat(60));
    let read = Input::Lines { source: SourceId(0), block: line.as_bytes(), reading: Reading::Live };
    life.input(read.clone());
    assert_eq!(life.counters(0).losses.gave_up, 1);
    life.engine.set_policy(at(1), policy(vec![slow]));
    life.input(read);
    assert_eq!((life.counters(0).losses.gave_up, life.counters(0).failures), (2, 0));
}

/// Followed by address and number; a failure is one line each.
fn followed(maxlines: usize) -> Jail {
    let pattern = |text: &str| Pattern { text: text.to_owned(), at: Place::default() };
    let failregex =
        ["^<F-MLFID>\\d+</F-MLFID> <F-NOFAIL>from</F-NOFAIL> <ADDR>$", "^<F-MLFID>\\d+</F-MLFID> failed$"];
    let failregex = failregex.map(pattern).to_vec();
    let fail2ban = Fail2banOptions { maxlines, ..Fail2banOptions::default() };
    let spec = FilterSpec { failregex, dialect: Dialect::Fail2ban, fail2ban, ..FilterSpec::default() };
    Jail { filters: vec![Arc::new(Filter::compile(spec).unwrap())], ..jail() }
}

#[test]
fn connections_and_joined_lines_are_bounded_as_the_policy_says_and_counted_across_reloads() {
    let limited = |jail: Jail, limits: Limits| Policy { limits, ..policy(vec![jail]) };
    let say = |life: &mut Life, text: &str| {
        life.input(Input::Lines { source: SourceId(0), block: text.as_bytes(), reading: Reading::Live });
        let counters = life.counters(0);
        (counters.losses.connections, counters.losses.lines, counters.failures)
    };
    let of = |connections_max| Limits { connections_max, ..Limits::default() };
    let mut life = Life { engine: Engine::new(at(0), limited(followed(1), of(3)), Kept::default()), now: 0 };
    let four: String = (0..4).map(|id| format!("{id} from 192.0.2.{id}\n")).collect();
    assert_eq!(say(&mut life, &four), (1, 0, 0));
    assert_eq!(say(&mut life, "0 failed\n"), (2, 0, 0), "it gave way, and another to its name");
    assert_eq!(say(&mut life, "3 failed\n"), (2, 0, 1));
    life.engine.set_policy(at(1), limited(followed(1), of(200)));
    let many: String = (10..210).map(|id| format!("{id} from 192.0.2.9\n")).collect();
    assert_eq!(say(&mut life, &many).0, 5);
    let of = |joined_bytes_max| Limits { joined_bytes_max, ..Limits::default() };
    let long = format!("{}\n", "x".repeat(999)).repeat(5);
    for (most, lost) in [(3_000, 2), (5_000, 0)] {
        let policy = limited(followed(4), of(most));
        let mut life = Life { engine: Engine::new(at(0), policy, Kept::default()), now: 0 };
        assert_eq!(say(&mut life, &long).1, lost, "four are wanted, {most} bytes are the most");
    }
}

/// The first half of a failure, a reload, the second half.
#[test]
fn what_an_unchanged_filter_remembers_of_its_log_outlives_a_reload() {
    let changed = |maxlines: usize| {
        let spec = followed(maxlines).filters[0].spec().clone();
        let Some((last, rest)) = spec.failregex.split_last() else { panic!() };
        let last = Pattern { text: format!("{} $", last.text), at: last.at.clone() };
        let failregex = rest.iter().cloned().chain([last]).collect();
        Filter::compile(FilterSpec { failregex, ..spec }).unwrap()
    };
    // As read anew from a file in which it stands further down.
    let moved = |maxlines: usize| {
        let mut spec = followed(maxlines).filters[0].spec().clone();
        (spec.path, spec.name) = ("/elsewhere".into(), "another".to_owned());
        spec.failregex.iter_mut().for_each(|pattern| pattern.at.line += 7);
        Filter::compile(spec).unwrap()
    };
    let spanning = |skipped: &str| {
        let text = format!("^begin <ADDR>$<SKIPLINES>{skipped}^end$");
        let failregex = vec![Pattern { text, at: Place::default() }];
        let fail2ban = Fail2banOptions { maxlines: 3, ..Fail2banOptions::default() };
        Filter::compile(FilterSpec {
            failregex,
            dialect: Dialect::Fail2ban,
            fail2ban,
            ..FilterSpec::default()
        })
        .unwrap()
    };
    let halves = [("7 from 192.0.2.1\n", "7 failed\n"), ("begin 192.0.2.1\n", "end\n")];
    for (before, after, (first, second), failures) in [
        (moved(1), moved(1), halves[0], 1),
        (moved(1), changed(1), halves[0], 0),
        (moved(1), moved(2), halves[0], 0),
        (spanning(""), spanning(""), halves[1], 1),
        (spanning(""), spanning("(?:)"), halves[1], 0),
    ] {
        let reading = |filter: Filter, sources: &[&str], source| {
            let sources = sources.iter().map(|path| SourceSpec::File(path.into())).collect();
            let jails =
                vec![Jail { filters: vec![Arc::new(filter)], sources: vec![SourceId(source)], ..jail() }];
            Policy { jails, sources, ..Policy::default() }
        };
        let now = reading(before, &["/log"], 0);
        let mut life = Life { engine: Engine::new(at(0), now, Kept::default()), now: 0 };
        life.input(Input::Lines { source: SourceId(0), block: first.as_bytes(), reading: Reading::Live });
        // The source may have another number afterwards.
        life.engine.set_policy(at(1), reading(after, &["/other", "/log"], 1));
        life.input(Input::Lines { source: SourceId(1), block: second.as_bytes(), reading: Reading::Live });
        assert_eq!(life.counters(0).failures, failures, "{first:?} {second:?}");
        // What was read of one log is nothing to another.
        life.input(Input::Lines { source: SourceId(0), block: second.as_bytes(), reading: Reading::Live });
        assert_eq!(life.counters(0).failures, failures);
    }
}

#[test]
fn own_addresses_are_never_banned_whatever_ignoreself_says() {
    for (ignoreself, failures, spared) in [(true, 0, 0), (false, 4, 2)] {
        let mut own = policy(vec![Jail { ignoreself, ..jail() }]);
        own.protected = vec![prefix(ATTACKER)];
        let mut life = Life { engine: Engine::new(at(0), own, Kept::default()), now: 0 };
        assert_eq!(bans(&life.fail(4)), []);
        let counters = life.counters(0);
        assert_eq!(
            (counters.failures, counters.spared, counters.bans),
            (failures, spared, 0),
            "{ignoreself}"
        );
    }
}
