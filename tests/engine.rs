//! The engine as a whole: what lines and requests lead to, and what no sequence of them can.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use blocker::{
    engine::{
        Act, AskId, Change, Command, Engine, Event, Input, Kept, Occasion, Reading, Request, RequestId,
        Response, SourceId, diff,
    },
    filter::{Dialect, Filter, FilterSpec, Pattern, Place},
    ledger::{Ban, OffenceChange, Origin},
    net::{Prefix, SCOPES_MAX, Scope},
    policy::{
        ActionSpec, CommandLine, Escalation, IgnoreCache, IgnoreCommand, Jail, Limits, Policy, SourceSpec,
    },
    replay,
    time::{BanTime, Timestamp, Until},
};
use proptest::prelude::*;

const NOW: i64 = 1_795_000_000;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOW + secs)
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Compiled once: thousands of lives share it.
static FILTER: LazyLock<Arc<Filter>> = LazyLock::new(|| {
    let pattern = |text: &str| vec![Pattern { text: text.to_owned(), at: Place::default() }];
    let spec = FilterSpec {
        name: "test".to_owned(),
        dialect: Dialect::Native,
        failregex: pattern("^ ?failed login from <ADDR>$"),
        noaddress: pattern("^ ?failed login from -$"),
        ..FilterSpec::default()
    };
    Arc::new(Filter::compile(spec).unwrap())
});

fn policy(allow: &[&str], protected: &[&str]) -> Policy {
    let jail = Jail {
        name: "test".into(),
        sources: vec![SourceId(0)],
        filters: vec![Arc::clone(&FILTER)],
        maxretry: 3,
        findtime: Duration::from_secs(600),
        bantime: BanTime::For(Duration::from_secs(100)),
        ignoreip: vec![prefix("192.0.2.200")],
        ..Jail::default()
    };
    Policy {
        jails: vec![jail],
        sources: vec![SourceSpec::File("/log".into())],
        allow: allow.iter().map(|text| prefix(text)).collect(),
        protected: protected.iter().map(|text| prefix(text)).collect(),
        limits: Limits { bans_max: 8, tracked_max: 16, offenders_max: 16, ..Limits::default() },
        ..Policy::default()
    }
}

fn engine(allow: &[&str], protected: &[&str]) -> Engine {
    Engine::new(at(0), policy(allow, protected), Kept::default())
}

fn drain(engine: &mut Engine) -> Vec<Command> {
    std::iter::from_fn(|| engine.next_command()).collect()
}

fn fail(engine: &mut Engine, secs: i64, address: &str, times: usize) -> Vec<Command> {
    let block = format!("failed login from {address}\n").repeat(times);
    engine.handle(
        at(secs),
        Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live },
    );
    drain(engine)
}

fn ask(engine: &mut Engine, request: Request) -> (Response, Vec<Command>) {
    engine.handle(at(0), Input::Operator { id: RequestId(7), request });
    let mut commands = drain(engine);
    match commands.pop() {
        Some(Command::Reply(RequestId(7), response)) => (response, commands),
        other => panic!("the reply comes last: {other:?} after {commands:?}"),
    }
}

/// The prefixes banned by these commands, checked to be recorded before they are enforced.
fn banned(commands: &[Command]) -> Vec<String> {
    let position = |wanted: &Command| commands.iter().position(|command| command == wanted);
    let enforced = commands.iter().filter_map(|command| match command {
        Command::Enforce(change @ Change::Ban(ban)) => Some((change, ban.prefix)),
        _ => None,
    });
    enforced
        .map(|(change, prefix)| {
            let (record, enforce) = (Command::Record(change.clone()), Command::Enforce(change.clone()));
            assert!(position(&record).unwrap() < position(&enforce).unwrap());
            prefix.to_string()
        })
        .collect()
}

#[test]
fn the_third_failure_bans_and_later_ones_do_not_ban_again() {
    let mut engine = engine(&[], &[]);
    assert_eq!(banned(&fail(&mut engine, 0, "203.0.113.9", 2)), [""; 0]);
    assert_eq!(banned(&fail(&mut engine, 1, "203.0.113.9", 5)), ["203.0.113.9"]);
    assert_eq!(engine.snapshot().jails[0].1.already_banned, 4);
    assert_eq!(engine.next_timeout(), Some(at(101)));
    engine.handle(at(101), Input::Tick);
    let over = drain(&mut engine);
    assert!(
        over.contains(&Command::Enforce(Change::Unban { prefix: prefix("203.0.113.9"), scope: Scope::ALL })),
        "{over:?}"
    );
}

/// Failures are counted several at once; nobody may see that.
#[test]
fn a_block_comes_to_what_its_lines_do_one_by_one() {
    // More attackers than may be tracked, some of them nobody's or spared, in an order that repeats itself seldom.
    let lines: Vec<String> = (0_u32..2_000)
        .map(|n| match n * 7_919 % 31 {
            address if address < 24 => format!("failed login from 203.0.113.{address}\n"),
            24 => "failed login from -\n".to_owned(),
            25 => "failed login from 127.0.0.1\n".to_owned(),
            address => format!("failed login from 192.0.2.{}\n", 174 + address),
        })
        .collect();
    let feed = |blocks: Vec<String>| {
        let mut engine = engine(&["203.0.113.7"], &[]);
        for block in blocks {
            let lines = Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live };
            engine.handle(at(1), lines);
        }
        drain(&mut engine)
    };
    let (at_once, one_by_one) = (feed(vec![lines.concat()]), feed(lines));
    assert!(one_by_one.len() > 2_000 && !banned(&one_by_one).is_empty());
    assert_eq!(at_once, one_by_one);
}

#[test]
fn ipv6_attackers_are_counted_and_banned_by_their_64() {
    let mut engine = engine(&[], &[]);
    let addresses = ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:dead::3"];
    let commands: Vec<Command> =
        addresses.iter().flat_map(|address| fail(&mut engine, 0, address, 1)).collect();
    assert_eq!(banned(&commands), ["2001:db8::/64"]);
}

#[test]
fn a_protected_neighbour_narrows_the_ban_to_the_attacker() {
    let mut engine = engine(&["2001:db8::7"], &["2001:db8:1::1"]);
    assert_eq!(banned(&fail(&mut engine, 0, "2001:db8::66", 3)), ["2001:db8::66"]);
    assert_eq!(banned(&fail(&mut engine, 0, "2001:db8:1::66", 3)), ["2001:db8:1::66"]);
    assert_eq!(engine.snapshot().jails[0].1.spared, 2);
}

#[test]
fn nobody_is_blamed_for_what_is_allowlisted_ignored_unbannable_or_nameless() {
    let mut engine = engine(&["198.51.100.0/24"], &["203.0.113.1"]);
    for address in
        ["198.51.100.9", "203.0.113.1", "192.0.2.200", "127.0.0.1", "0.0.0.0", "224.0.0.1", "-", "::1"]
    {
        assert_eq!(banned(&fail(&mut engine, 0, address, 9)), [""; 0], "{address}");
    }
    let counters = engine.snapshot().jails[0].1;
    assert_eq!((counters.allowlisted, counters.no_address, counters.failures), (27, 45, 0));
}

#[test]
fn operators_are_refused_what_would_lock_them_out() {
    let mut engine = engine(&["198.51.100.0/24"], &["203.0.113.1"]);
    for (text, says) in [
        ("0.0.0.0/0", "wider than /8"),
        ("::/0", "wider than /16"),
        ("127.0.0.1", "loopback"),
        ("203.0.113.0/24", "203.0.113.1"),
        ("203.0.113.1", "203.0.113.1"),
        ("198.51.100.9", "198.51.100.0/24"),
    ] {
        let request = Request::Ban {
            prefix: prefix(text),
            scope: Scope::ALL,
            bantime: BanTime::Permanent,
            reason: String::new(),
        };
        let (response, commands) = ask(&mut engine, request);
        let Response::Refused { reason } = response else { panic!("{text}: {response:?}") };
        assert!(reason.contains(says), "{text}: {reason}");
        assert_eq!(commands, [], "{text}");
    }
}

#[test]
fn an_address_unbans_the_prefix_it_was_banned_with() {
    let mut engine = engine(&[], &[]);
    fail(&mut engine, 0, "2001:db8::66", 3);
    let (response, _) = ask(&mut engine, Request::Unban { prefix: prefix("2001:db8::66"), scope: None });
    assert_eq!(response, Response::Unbanned { prefixes: vec![prefix("2001:db8::/64")] });
    let (response, _) = ask(&mut engine, Request::Unban { prefix: prefix("2001:db8::66"), scope: None });
    assert!(matches!(response, Response::Refused { .. }));
}

/// What the kernel is asked to hold and to let go, in order.
fn enforced(commands: &[Command]) -> Vec<String> {
    let shown = commands.iter().filter_map(|command| match command {
        Command::Enforce(Change::Ban(ban)) => Some(format!("+{} {}", ban.prefix, ban.scope)),
        Command::Enforce(Change::Unban { prefix, scope }) => Some(format!("-{prefix} {scope}")),
        _ => None,
    });
    shown.collect()
}

#[test]
fn jails_ban_on_their_own_ports_and_each_ban_ends_on_its_own() {
    let mut policy = policy(&[], &[]);
    let on = |name: &str, ports: &str, maxretry, secs| Jail {
        name: name.into(),
        scope: ports.parse().unwrap(),
        maxretry,
        bantime: BanTime::For(Duration::from_secs(secs)),
        ..policy.jails[0].clone()
    };
    policy.jails = vec![
        on("ssh", "22", 2, 100),
        on("web", "80,443", 3, 200),
        on("all", "all", 4, 50),
        on("web too", "443", 5, 50),
    ];
    let mut engine = Engine::new(at(0), policy, Kept::default());
    // Each jail counts on while only other ports are banned, and no further once all are.
    let commands = fail(&mut engine, 0, "203.0.113.9", 9);
    assert_eq!(
        enforced(&commands),
        ["+203.0.113.9 22/tcp", "+203.0.113.9 80/tcp,443/tcp", "+203.0.113.9 all"],
    );
    engine.handle(at(60), Input::Tick);
    assert_eq!(enforced(&drain(&mut engine)), ["-203.0.113.9 all"]);
    engine.handle(at(150), Input::Tick);
    assert_eq!(enforced(&drain(&mut engine)), ["-203.0.113.9 22/tcp"]);
    // The ban on 80 and 443 is one on 443 for the other jail, and none on 22.
    let commands = fail(&mut engine, 160, "203.0.113.9", 2);
    assert_eq!(enforced(&commands), ["+203.0.113.9 22/tcp"]);
    let offences: u32 = engine.offences().map(|offence| offence.bans).sum();
    assert_eq!(offences, 4, "history is by address and jail, whatever the ports");
}

#[test]
fn an_unban_lifts_every_scope_or_the_one_that_is_named() {
    let mut engine = engine(&[], &[]);
    let scope = |text: &str| text.parse::<Scope>().unwrap();
    let ban = |engine: &mut Engine, who: &str, ports: &str| {
        let (prefix, scope, reason) = (prefix(who), scope(ports), String::new());
        ask(engine, Request::Ban { prefix, scope, bantime: BanTime::Permanent, reason }).1
    };
    for ports in ["80,443", "22", "all"] {
        let commands = ban(&mut engine, "203.0.113.9", ports);
        assert_eq!(enforced(&commands), [format!("+203.0.113.9 {}", scope(ports))]);
    }
    ban(&mut engine, "203.0.113.0/28", "22");
    let first: Vec<String> = engine.desired().iter().map(|ban| ban.scope.to_string()).collect();
    assert_eq!(first[0], "all", "{first:?}");
    let unban = |engine: &mut Engine, who: &str, ports: Option<&str>| {
        let (response, commands) =
            ask(engine, Request::Unban { prefix: prefix(who), scope: ports.map(scope) });
        match response {
            Response::Refused { reason } => vec![reason],
            _ => enforced(&commands),
        }
    };
    let refused = unban(&mut engine, "203.0.113.9", Some("8080"));
    assert!(refused[0].contains("is not banned on 8080/tcp"), "{refused:?}");
    assert_eq!(unban(&mut engine, "203.0.113.9", Some("22")), ["-203.0.113.9 22/tcp"]);
    assert_eq!(unban(&mut engine, "203.0.113.9", None), ["-203.0.113.9 all", "-203.0.113.9 80/tcp,443/tcp"],);
    // It lies in the wider one now, on the ports of that.
    assert_eq!(unban(&mut engine, "203.0.113.9", Some("22")), ["-203.0.113.0/28 22/tcp"]);
    assert_eq!(engine.bans(), 0);
}

#[test]
fn one_list_of_ports_too_many_is_refused_and_counted_and_never_widened() {
    let mut policy = policy(&[], &[]);
    policy.jails[0].scope = "7".parse().unwrap();
    policy.limits.bans_max = 99;
    let mut engine = Engine::new(at(0), policy, Kept::default());
    let ban = |engine: &mut Engine, ports: usize| {
        let (prefix, scope) = (prefix("203.0.113.9"), ports.to_string().parse().unwrap());
        ask(engine, Request::Ban { prefix, scope, bantime: BanTime::Permanent, reason: String::new() })
    };
    for port in 1..=SCOPES_MAX {
        assert!(matches!(ban(&mut engine, 100 + port).0, Response::Banned(_)));
    }
    let (response, commands) = ban(&mut engine, 99);
    assert!(
        matches!(&response, Response::Refused { reason } if reason.contains("15 different lists")),
        "{response:?}"
    );
    assert_eq!(enforced(&commands), [""; 0]);
    let commands = fail(&mut engine, 0, "198.51.100.66", 3);
    assert!(commands.iter().any(|command| matches!(command, Command::Note(Event::ScopesFull { .. }))));
    assert_eq!((enforced(&commands), engine.snapshot().scopes_full), (Vec::new(), 2));
}

#[test]
fn allowing_lifts_bans_inside_and_is_kept_across_a_restart() {
    let mut engine = engine(&[], &[]);
    fail(&mut engine, 0, "203.0.113.9", 3);
    let (response, commands) = ask(&mut engine, Request::Allow { prefix: prefix("203.0.113.0/24") });
    let lifted = vec![prefix("203.0.113.9")];
    assert_eq!(response, Response::Allowed { prefix: prefix("203.0.113.0/24"), lifted });
    assert!(commands.contains(&Command::Record(Change::Allow { prefix: prefix("203.0.113.0/24") })));
    let mut engine =
        Engine::new(at(0), policy(&[], &[]), Kept { allow: engine.operator_allow(), ..Kept::default() });
    assert_eq!(banned(&fail(&mut engine, 0, "203.0.113.9", 9)), [""; 0]);
}

#[test]
fn a_new_policy_keeps_windows_and_bans_and_lifts_what_it_allows() {
    let mut engine = engine(&[], &[]);
    fail(&mut engine, 0, "203.0.113.9", 3);
    fail(&mut engine, 0, "203.0.113.10", 2);
    engine.set_policy(at(1), policy(&["203.0.113.9"], &[]));
    let commands = drain(&mut engine);
    assert!(
        commands
            .contains(&Command::Enforce(Change::Unban { prefix: prefix("203.0.113.9"), scope: Scope::ALL })),
        "{commands:?}"
    );
    assert!(
        commands.contains(&Command::Enforce(Change::Allow { prefix: prefix("203.0.113.9") })),
        "{commands:?}"
    );
    assert_eq!(banned(&fail(&mut engine, 2, "203.0.113.10", 1)), ["203.0.113.10"]);
}

#[test]
fn a_restart_keeps_stored_bans_but_not_what_is_over_or_allowed_now() {
    let mut before = engine(&[], &[]);
    for address in ["203.0.113.1", "203.0.113.2"] {
        fail(&mut before, 0, address, 3);
    }
    fail(&mut before, 50, "203.0.113.3", 3);
    let stored = before.desired().iter().cloned().collect();
    let mut after =
        Engine::new(at(120), policy(&["203.0.113.2"], &[]), Kept { bans: stored, ..Kept::default() });
    assert_eq!(after.desired().iter().map(|ban| ban.prefix.to_string()).collect::<Vec<_>>(), ["203.0.113.3"]);
    let commands = drain(&mut after);
    for gone in ["203.0.113.1", "203.0.113.2"] {
        assert!(
            commands.contains(&Command::Record(Change::Unban { prefix: prefix(gone), scope: Scope::ALL })),
            "{gone}: {commands:?}"
        );
    }
}

#[test]
fn lines_read_late_count_at_the_time_they_carry() {
    let block = |secs: i64| {
        let line = |minute: i64| format!("{} failed login from 203.0.113.9\n", NOW + secs + minute * 60);
        line(0) + &line(1) + &line(2)
    };
    let feed = |block: String| {
        let commands = replay::replay(policy(&[], &[]), SourceId(0), block.as_bytes(), at(0));
        banned(&commands).len()
    };
    assert_eq!(feed(block(-300)), 1, "within findtime");
    assert_eq!(feed(block(-900)), 0, "before findtime");
}

#[test]
fn a_full_table_gives_up_the_automatic_ban_soonest_over() {
    let mut engine = engine(&[], &[]);
    for last in 1..=9 {
        fail(&mut engine, last, &format!("203.0.113.{last}"), 3);
    }
    assert_eq!(engine.bans(), 8);
    assert_eq!(engine.snapshot().gave_way, 1);
    assert!(!engine.desired().iter().any(|ban| ban.prefix == prefix("203.0.113.1")));
}

/// `bans` of one jail that end together, with room for `bans_max`.
fn with_many(bans: u32, bans_max: usize) -> Engine {
    let ban = |n: u32| Ban {
        prefix: Prefix::host(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into()),
        scope: Scope::ALL,
        origin: Origin::Jail("sshd".into()),
        since: at(0),
        until: Until::At(at(100)),
        failures: 3,
        count: 1,
        reason: String::new(),
    };
    let kept = Kept { bans: (0..bans).map(ban).collect(), ..Kept::default() };
    let mut policy = policy(&[], &[]);
    policy.limits.bans_max = bans_max;
    Engine::new(at(1), policy, kept)
}

#[test]
fn bans_that_end_together_are_closed_in_turns_and_count_as_none_meanwhile() {
    let mut engine = with_many(2_500, 3_000);
    drain(&mut engine);
    assert_eq!(engine.next_timeout(), Some(at(100)));
    for left in [1_500, 500, 0] {
        engine.handle(at(100), Input::Tick);
        let commands = drain(&mut engine);
        assert!(
            commands.iter().filter(|c| matches!(c, Command::Enforce(Change::Unban { .. }))).count() <= 1_000
        );
        assert_eq!(engine.bans(), left);
        // The next turn is due at once.
        assert!(left == 0 || engine.next_timeout() == Some(at(100)));
        if left == 500 {
            assert_eq!(banned(&fail(&mut engine, 101, "11.0.9.195", 3)), ["11.0.9.195"], "the last but one");
            engine.handle(
                at(102),
                Input::Operator {
                    id: RequestId(1),
                    request: Request::Unban { prefix: prefix("11.0.9.195"), scope: None },
                },
            );
        }
    }
}

#[test]
fn a_restart_with_a_lower_bound_forgets_for_good_what_gave_way() {
    let mut engine = with_many(12, 8);
    let commands = drain(&mut engine);
    let recorded = commands.iter().filter(|c| matches!(c, Command::Record(Change::Unban { .. }))).count();
    let told = commands.iter().filter(|c| matches!(c, Command::Note(Event::GaveWay { .. }))).count();
    assert_eq!((engine.bans(), engine.snapshot().gave_way, recorded, told), (8, 4, 4, 4));
}

#[test]
fn lifting_all_bans_is_one_event_however_many_they_are() {
    let mut engine = with_many(2_000, 3_000);
    drain(&mut engine);
    let (response, commands) = ask(&mut engine, Request::Flush);
    assert_eq!(response, Response::Flushed { bans: 2_000 });
    assert!(commands.contains(&Command::Note(Event::Flushed { bans: 2_000 })));
    assert!(commands.len() < 10, "{commands:?}");
    assert_eq!((engine.bans(), engine.snapshot().bans.len()), (0, 0));
}

#[test]
fn the_difference_between_ledger_and_kernel_ignores_a_second() {
    let mut engine = engine(&[], &[]);
    for last in 1..=3 {
        fail(&mut engine, 0, &format!("203.0.113.{last}"), 3);
    }
    let held = [
        (Scope::ALL, prefix("203.0.113.1"), Until::At(at(100).saturating_add(Duration::from_millis(900)))),
        (Scope::ALL, prefix("203.0.113.2"), Until::At(at(105))),
        (Scope::ALL, prefix("203.0.113.77"), Until::Forever),
        // Right but for what it is on.
        ("22".parse().unwrap(), prefix("203.0.113.3"), Until::At(at(100))),
    ];
    let changes = diff(engine.desired(), held.into());
    let shown: Vec<String> = changes
        .iter()
        .map(|change| match change {
            Change::Ban(ban) => format!("+{}", ban.prefix),
            Change::Unban { prefix, scope } => format!("-{prefix} {scope}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(shown, ["-203.0.113.77 all", "-203.0.113.3 22/tcp", "+203.0.113.2", "+203.0.113.3"]);
}

/// One step of a random life.
#[derive(Clone, Debug)]
enum Step {
    Fail(u8, usize),
    FailV6(u8),
    Ban(u8, u8, u8),
    Unban(u8, u8, Option<u8>),
    Allow(u8, u8),
    Disallow(u8, u8),
    Flush,
    Later(u8),
    Reload(Vec<(u8, u8)>, Vec<u8>),
    Answer(u64, Option<bool>),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..16, 1_usize..5).prop_map(|(last, times)| Step::Fail(last, times)),
        2 => (0_u8..8).prop_map(Step::FailV6),
        2 => (0_u8..16, 24_u8..=32, 0_u8..3)
            .prop_map(|(last, length, scope)| Step::Ban(last, length, scope)),
        1 => (0_u8..16, 28_u8..=32, prop::option::weighted(0.3, 0_u8..3))
            .prop_map(|(last, length, scope)| Step::Unban(last, length, scope)),
        1 => (0_u8..16, 28_u8..=32).prop_map(|(last, length)| Step::Allow(last, length)),
        1 => (0_u8..16, 28_u8..=32).prop_map(|(last, length)| Step::Disallow(last, length)),
        1 => Just(Step::Flush),
        2 => (0_u8..90).prop_map(Step::Later),
        1 => (prop::collection::vec((0_u8..16, 28_u8..=32), 0..3), prop::collection::vec(0_u8..16, 0..2))
            .prop_map(|(allow, protected)| Step::Reload(allow, protected)),
        1 => Just(Step::Restart),
        3 => (0_u64..20, any::<Option<bool>>()).prop_map(|(id, ignore)| Step::Answer(id, ignore)),
    ]
}

/// A policy with all that a jail can ask for.
fn asking(allow: Vec<Prefix>, protected: Vec<Prefix>) -> Policy {
    let mut action = ActionSpec::new("tell");
    (action.ban, action.unban) =
        (Some(CommandLine::Shell("ban".into())), Some(CommandLine::Shell("unban".into())));
    (action.matches, action.restored) = (true, true);
    let action = Arc::new(action);
    let escalation = |overalljails| {
        let (rndtime, maxtime) = (Duration::from_secs(7), Some(Duration::from_secs(500)));
        Some(Arc::new(Escalation { rndtime, maxtime, overalljails, ..Escalation::default() }))
    };
    let base = policy(&[], &[]);
    let jail = |name: &str, maxretry| Jail {
        name: name.into(),
        maxretry,
        actions: vec![Arc::clone(&action)],
        maxmatches: 2,
        ..base.jails[0].clone()
    };
    let command = CommandLine::Program(vec!["/bin/known".into()]);
    let cache = Some(IgnoreCache { count_max: 3, time_max: Duration::from_secs(60) });
    let asks = IgnoreCommand { command, timeout: Duration::from_secs(5), cache };
    let jails = vec![
        Jail { escalation: escalation(false), ..jail("grows", 3) },
        Jail { ignore_command: Some(Arc::new(asks)), escalation: escalation(true), ..jail("asks", 2) },
        Jail { ignoreself: false, scope: scope_of(1), ..jail("self", 4) },
        Jail { observe: true, ..jail("watches", 1) },
        Jail {
            sources: vec![SourceId(1)],
            filters: Vec::new(),
            bantime: BanTime::For(Duration::from_secs(300)),
            ..jail("recidive", 2)
        },
    ];
    let sources = vec![SourceSpec::File("/log".into()), SourceSpec::Ledger];
    Policy { jails, sources, allow, protected, remember: Duration::from_secs(200), ..base }
}

fn scope_of(number: u8) -> Scope {
    ["all", "22", "80,443"][usize::from(number)].parse().unwrap()
}

fn v4(last: u8, length: u8) -> Prefix {
    Prefix::new([203, 0, 113, last].into(), length).unwrap()
}

/// Runs the steps and checks every command on the way; returns all commands.
fn live(steps: &[Step]) -> Vec<Command> {
    let mut engine = Engine::new(at(0), asking(Vec::new(), Vec::new()), Kept::default());
    let mut all = Vec::new();
    let mut offences: BTreeMap<(Prefix, Arc<str>), u32> = BTreeMap::new();
    let (mut allow, mut protected): (Vec<Prefix>, Vec<Prefix>) = (Vec::new(), Vec::new());
    let mut operators: Vec<Prefix> = Vec::new();
    let mut kernel: BTreeMap<(Prefix, Scope), Until> = BTreeMap::new();
    let mut now = at(0);
    for step in steps {
        let ask =
            |engine: &mut Engine, request| engine.handle(now, Input::Operator { id: RequestId(0), request });
        let bantime = BanTime::For(Duration::from_secs(60));
        match step {
            Step::Fail(last, times) => {
                let block = format!("failed login from 203.0.113.{last}\n").repeat(*times);
                let block = block.as_bytes();
                engine.handle(now, Input::Lines { source: SourceId(0), block, reading: Reading::Live });
            }
            Step::FailV6(last) => {
                let block = format!("failed login from 2001:db8::{last}\n").repeat(3);
                let block = block.as_bytes();
                engine.handle(now, Input::Lines { source: SourceId(0), block, reading: Reading::Live });
            }
            Step::Ban(last, length, scope) => {
                let (prefix, scope, reason) = (v4(*last, *length), scope_of(*scope), String::new());
                ask(&mut engine, Request::Ban { prefix, scope, bantime, reason });
            }
            Step::Unban(last, length, scope) => {
                let scope = scope.map(scope_of);
                ask(&mut engine, Request::Unban { prefix: v4(*last, *length), scope });
            }
            Step::Allow(last, length) => {
                operators.push(v4(*last, *length));
                ask(&mut engine, Request::Allow { prefix: v4(*last, *length) });
            }
            Step::Disallow(last, length) => {
                operators.retain(|prefix| *prefix != v4(*last, *length));
                ask(&mut engine, Request::Disallow { prefix: v4(*last, *length) });
            }
            Step::Flush => ask(&mut engine, Request::Flush),
            Step::Later(secs) => {
                now = now.saturating_add(Duration::from_secs((*secs).into()));
                engine.handle(now, Input::Tick);
            }
            Step::Reload(new_allow, new_protected) => {
                allow = new_allow.iter().map(|(last, length)| v4(*last, *length)).collect();
                protected = new_protected.iter().map(|last| v4(*last, 32)).collect();
                engine.set_policy(now, asking(allow.clone(), protected.clone()));
            }
            Step::Restart => {
                let counted = engine.counted();
                let pages = counted.all_pages().filter_map(|page| counted.page(page)).collect();
                let kept = Kept {
                    bans: engine.desired().iter().cloned().collect(),
                    allow: engine.operator_allow(),
                    offences: engine.offences().collect(),
                    recent: engine.desired().iter().cloned().collect(),
                    served: Vec::new(),
                    counted: Some((engine.counted().head(), pages)),
                };
                engine = Engine::new(now, asking(allow.clone(), protected.clone()), kept);
            }
            Step::Answer(id, ignore) => {
                engine.handle(now, Input::Answer { id: AskId(*id), ignore: *ignore });
            }
        }
        let commands = drain(&mut engine);
        for command in &commands {
            match command {
                Command::Enforce(Change::Ban(ban)) => {
                    kernel.insert((ban.prefix, ban.scope.clone()), ban.until);
                }
                Command::Enforce(Change::Unban { prefix, scope }) => {
                    kernel.remove(&(*prefix, scope.clone()));
                }
                Command::Enforce(Change::Flush) => kernel.clear(),
                Command::Remember(OffenceChange::Set(offence)) => {
                    offences.insert((offence.prefix, Arc::clone(&offence.jail)), offence.bans);
                }
                Command::Remember(OffenceChange::Forget { prefix, jail }) => {
                    assert!(
                        offences.remove(&(*prefix, Arc::clone(jail))).is_some(),
                        "{prefix} was not there"
                    );
                }
                Command::Remember(OffenceChange::ForgetAll) => offences.clear(),
                Command::Act(Act { occasion: Occasion::Ban { ban, .. }, .. }) => {
                    assert!(
                        kernel.contains_key(&(ban.prefix, ban.scope.clone())),
                        "an action came before the kernel"
                    );
                }
                Command::Note(Event::WouldBan(ban)) => {
                    assert_eq!(ban.origin, Origin::Jail("watches".into()), "{ban:?}");
                }
                _ => {}
            }
            if let Command::Record(Change::Ban(ban)) = command {
                assert_ne!(ban.origin, Origin::Jail("watches".into()), "an observing jail banned");
            }
        }
        let held = engine.offences().map(|known| ((known.prefix, known.jail), known.bans));
        assert_eq!(offences, held.collect(), "store and engine remember different offences after {step:?}");
        assert!(offences.len() <= 16);
        // C2: after every step, nothing the kernel holds lies in the allowlist or covers a protected address.
        for (banned, _) in kernel.keys() {
            for allowed in allow.iter().chain(&operators) {
                assert!(
                    !allowed.covers(*banned),
                    "{banned} is banned inside the allowlisted {allowed} after {step:?}"
                );
            }
            for own in &protected {
                assert!(!banned.overlaps(*own), "{banned} is banned over the protected {own} after {step:?}");
            }
        }
        let ledger: BTreeMap<(Prefix, Scope), Until> =
            engine.desired().iter().map(|ban| ((ban.prefix, ban.scope.clone()), ban.until)).collect();
        assert_eq!(kernel, ledger, "kernel and ledger part after {step:?}");
        assert!(engine.bans() <= 8 && engine.snapshot().tracked <= 16);
        all.extend(commands);
    }
    let recorded = replay::ledger_after(&all, usize::MAX);
    assert_eq!(
        recorded.iter().collect::<Vec<_>>(),
        engine.desired().iter().collect::<Vec<_>>(),
        "the store would forget or invent"
    );
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_life_bans_the_allowlisted_and_equal_lives_are_equal(steps in prop::collection::vec(step(), 1..40)) {
        prop_assert_eq!(live(&steps), live(&steps));
    }

    #[test]
    fn no_bytes_stop_the_engine(block in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let mut engine = engine(&[], &[]);
        engine.handle(at(0), Input::Lines { source: SourceId(0), block: &block, reading: Reading::Live });
        let notes = drain(&mut engine);
        let only_notes = notes.iter().all(|command| matches!(command, Command::Note(Event::Failure { .. })));
        prop_assert!(only_notes, "random bytes led to {:?}", notes);
    }
}
