//! How long fail2ban's own code says that bans last, and how long ours does.

use std::{process::Command, time::Duration};

use blocker::{
    policy::{Escalation, Formula},
    time::BanTime,
};

use crate::incumbent::Incumbent;

/// Asks fail2ban: a list of options by case, then ban times by number of earlier bans.
const ORACLE: &str = r"
import json, sys
from fail2ban.server.jail import Jail
from fail2ban.server.observer import ObserverThread
class Extra:
    def __init__(self):
        self._banExtra, self.database, self.name = {}, True, 'x'
answers = []
for options, times, counts in json.load(sys.stdin):
    jail = Extra()
    for option, value in options.items():
        Jail.setBanTimeExtra(jail, option, value)
    evaluate = jail._banExtra['evformula']
    answers.append([[float(evaluate(ObserverThread.BanTimeIncr(time, count))) for count in counts] for time in times])
json.dump(answers, sys.stdout)
";

/// `increment` aside, what each case sets.
const CASES: [&[(&str, &str)]; 14] = [
    &[],
    &[("factor", "2")],
    &[("factor", "2.0 / 2.885385")],
    &[("maxtime", "1d")],
    &[("multipliers", "1 2 4 8 16 32 64")],
    &[("multipliers", "1 5 30 60 300 720 1440 2880"), ("factor", "1.5")],
    &[("multipliers", "7"), ("maxtime", "1h")],
    &[("formula", "ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)")],
    &[
        ("formula", "ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)"),
        ("factor", "2.0 / 2.885385"),
        ("maxtime", "5w"),
    ],
    &[("formula", "ban.Time // 7 % 100 + 3 ** min(ban.Count, 9)")],
    &[("formula", "ban.Time * (ban.Count + 1) if ban.Count < 3 else max(ban.Time, 86400) * 7")],
    &[("formula", "-ban.Time // 7 + int(ban.Time * 2.75) - abs(-3.5) + round(2.5)")],
    &[("formula", "ban.Time * pow(2, ban.Count % 5) + (ban.Time >> 3) * (not ban.Count > 4)")],
    &[("formula", "ban.Time / 3 or 17")],
];
const TIMES: [u64; 4] = [1, 60, 600, 86_400];
const COUNTS: std::ops::RangeInclusive<u32> = 1..=24;

#[test]
fn bans_grow_as_fail2bans_do() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(reason) => return xtask::lab::skipped("bans_grow_as_fail2bans_do", &reason),
    };
    let answers = ask(&incumbent);
    let mut compared = 0;
    for (case, answers) in CASES.iter().zip(&answers) {
        let ours = ours(case);
        for (time, answers) in TIMES.iter().zip(answers) {
            for (count, theirs) in COUNTS.zip(answers) {
                let BanTime::For(span) = ours.ban_time(BanTime::For(Duration::from_secs(*time)), count, 0)
                else {
                    panic!("{case:?}: a ban without end");
                };
                // Ours are at least a second long, and end on a microsecond.
                let difference = (span.as_secs_f64() - theirs.max(1.0)).abs();
                assert!(
                    difference <= 1e-6 * theirs.max(1.0),
                    "{case:?}, {time} s, {count} earlier bans: {span:?} here, {theirs} s there"
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, CASES.len() * TIMES.len() * COUNTS.count());
}

fn ours(case: &[(&str, &str)]) -> Escalation {
    let mut ours = Escalation::default();
    for (option, value) in case {
        match *option {
            "factor" => ours.factor = Formula::constant(value).unwrap(),
            "formula" => ours.formula = Formula::parse(value).unwrap(),
            "maxtime" => ours.maxtime = Some(blocker::time::parse_span(value).unwrap()),
            "multipliers" => ours.multipliers = value.split(' ').map(|n| n.parse().unwrap()).collect(),
            other => panic!("{other}"),
        }
    }
    ours
}

fn ask(incumbent: &Incumbent) -> Vec<Vec<Vec<f64>>> {
    let counts: Vec<u32> = COUNTS.collect();
    let jobs: Vec<_> = CASES
        .iter()
        .map(|case| {
            let mut options: serde_json::Map<_, _> =
                case.iter().map(|(option, value)| ((*option).to_owned(), (*value).into())).collect();
            options.insert("increment".to_owned(), "true".into());
            serde_json::json!([options, TIMES, counts])
        })
        .collect();
    let scratch = tempfile::tempdir().unwrap();
    let job = scratch.path().join("job.json");
    std::fs::write(&job, serde_json::to_vec(&jobs).unwrap()).unwrap();
    let output = Command::new("python3")
        .args(["-c", ORACLE])
        .env("PYTHONPATH", &incumbent.python_path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(std::fs::File::open(job).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
