//! No shipped filter lets the text of a line choose whom it blames; and what does is found, with a line that shows it.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use blocker::{
    config,
    filter::{
        Clock, Dialect, Filter, FilterSpec, Pattern, Place, Sample, SourceMatcher, Verdict,
        lint::{self, Safety, mutate::Mutator},
    },
};

fn shipped() -> Vec<FilterSpec> {
    let read = |(name, text): &(&str, &str)| {
        let path = format!("{name}.toml");
        config::read_filter(text, Path::new(&path)).unwrap_or_else(|errors| panic!("{errors}"))
    };
    config::BUILT_IN.iter().map(read).collect()
}

#[test]
fn every_shipped_filter_is_proven_safe() {
    let filters = shipped();
    assert!(filters.len() >= 4);
    let mut found = Vec::new();
    for spec in filters {
        let proofs = lint::lint(&spec, lint::PRODUCT_STATES_MAX);
        found.extend(proofs.into_iter().filter(|proof| proof.safety != Safety::Safe));
    }
    let named: Vec<_> = found.iter().map(|proof| (&proof.at, proof.safety, &proof.witness)).collect();
    assert!(found.is_empty(), "{named:#?}");
}

/// Mutants of each shipped filter; `cargo xtask fuzz mutants` tries many more.
const MUTANTS: u64 = 400;

fn mutator(spec: &FilterSpec) -> Mutator {
    let filter = Arc::new(Filter::compile(spec.clone()).unwrap_or_else(|error| panic!("{error}")));
    Mutator::new(spec, filter, &[])
}

#[test]
fn no_mutant_of_a_shipped_filters_sample_blames_whom_its_author_planted() {
    let mut fields = 0;
    for spec in shipped() {
        let mutation = mutator(&spec).run(1, MUTANTS);
        assert_eq!(mutation.forged, None, "{}", spec.name);
        fields += mutation.fields;
    }
    assert!(fields > 100, "{fields}");
}

#[test]
fn mutants_forge_what_can_be_forged() {
    let sample = |line: &str, host: Option<&str>| Sample {
        line: line.to_owned(),
        host: host.map(str::to_owned),
        at: Place::default(),
    };
    const LINE: &str = "Nov 24 02:47:40 web door[1]: knock of bob by 203.0.113.9 (front)";
    for (pattern, line, forged, claimed) in [
        ("knock of .*? by <ADDR>", LINE, true, true),
        // The last address wins, and the daemon writes it.
        ("knock of .* by <ADDR>", LINE, false, false),
        (r"door\[1\]: knock of .*? by <ADDR> .*$", LINE, true, true),
        (r"door\[1\]: knock of .* by <ADDR> \(front\)$", LINE, false, false),
        (r"door\[1\]: knock of \S+ by <ADDR>", LINE, false, true),
        (
            r#"^ "(?:[^"\\]|\\.)*" knocks by <ADDR> "#,
            r#"2026-11-24 02:47:40 "bob" knocks by 203.0.113.9 "#,
            false,
            false,
        ),
    ] {
        let mut spec = spec(Dialect::Native, &[pattern]);
        spec.samples = vec![
            sample(line, Some("203.0.113.9")),
            sample("Nov 24 02:47:40 web door[1]: greeting of bob by 203.0.113.9 (front)", None),
        ];
        let mutation = mutator(&spec).run(7, 4_000);
        let against = mutator(&spec).run_against_claims(7, 4_000);
        assert_eq!(mutation.forged.is_some(), forged, "{pattern} {mutation:?}");
        assert_eq!(against.forged.is_some(), claimed, "{pattern} {against:?}");
        assert_eq!(mutation, mutator(&spec).run(7, 4_000), "{pattern}");
        if let Some(forgery) = mutation.forged.or(against.forged) {
            let filter = Arc::new(Filter::compile(spec).unwrap());
            let mut found = None;
            SourceMatcher::new(vec![filter])
                .scan(forgery.line.as_bytes(), Clock::default(), |line| found = line.verdict(0));
            assert_eq!(found, Some(Verdict::Blame(forgery.planted)), "{forgery:?}");
        }
    }
}

fn spec(dialect: Dialect, patterns: &[&str]) -> FilterSpec {
    let pattern = |text: &&str| Pattern { text: (*text).to_owned(), at: Place::default() };
    let failregex = patterns.iter().map(pattern).collect();
    FilterSpec { name: "test".to_owned(), dialect, failregex, ..FilterSpec::default() }
}

#[test]
fn ordinary_shapes_are_judged_as_they_are() {
    use Dialect::{Fail2ban, Native};
    for (dialect, pattern, safety) in [
        (Native, r"^x\[\d+\]: Failed for (?:invalid user )?.* from <ADDR> port \d+(?: ssh2)?$", Safety::Safe),
        (Native, r"^x: Failed for .* from <ADDR> port \d+(?: ssh2)?", Safety::Unsafe),
        (Native, r"^x: Failed for .* from <ADDR>(?: port \d+.*)?$", Safety::Unsafe),
        (Native, r"Failed for \S+ from <ADDR>$", Safety::Safe),
        (Native, r"Failed for \S+ from <ADDR> ", Safety::Unsafe),
        (Native, r"^\S* ?Failed from <ADDR>$", Safety::Safe),
        (Native, r"^(?:\S+ )?<ADDR>(?: \S+)?$", Safety::Unsafe),
        (Native, r#"^<ADDR> - [^"]* "[^"]*" 401 "#, Safety::Safe),
        (Native, r#"^.* <ADDR> - [^"]* "[^"]*" 401 "#, Safety::Unsafe),
        (Native, r#"^user "[^"]*" from <ADDR>, .*$"#, Safety::Safe),
        (Native, r#"^user ".*" from <ADDR>, .*$"#, Safety::Unsafe),
        (Native, r"^by \w+:<ADDR>$", Safety::Safe),
        (Native, r"^by \[?(?:::ffff:)?<ADDR>\]?$", Safety::Safe),
        (Native, r"^by <ADDR>:? .*$", Safety::Safe),
        (Native, r"^(?i:BY) \p{Greek}* <ADDR>\b.*é$", Safety::Safe),
        (Native, r"^by (?:<ADDR>, )+x$", Safety::Unproven),
        (Fail2ban, r"^by \S+ <HOST>\s*$", Safety::Safe),
        (Fail2ban, r"rhost=<HOST>(?:\s+user=.*)?\s*$", Safety::Unsafe),
        (Fail2ban, r"^(?!x)by <HOST>$", Safety::Safe),
        (Fail2ban, r"^(?!x).*by <HOST>", Safety::Unproven),
        (Fail2ban, r"^(?P<q>['x]).*(?P=q) from <HOST>$", Safety::Safe),
    ] {
        let proof = &lint::lint(&spec(dialect, &[pattern]), lint::PRODUCT_STATES_MAX)[0];
        assert_eq!(proof.safety, safety, "{pattern}: {proof:#?}");
        assert_eq!(proof.witness.is_some(), safety == Safety::Unsafe, "{pattern}");
        assert_eq!(proof.reason.is_empty(), safety != Safety::Unproven, "{pattern}");
    }
}

#[test]
fn the_search_is_bounded_and_says_so() {
    let proof = &lint::lint(&spec(Dialect::Native, &["^.*a.*b.* from <ADDR>$"]), 50)[0];
    assert_eq!(proof.safety, Safety::Unproven);
    assert!(proof.reason.contains("50 states"), "{}", proof.reason);
}

#[test]
fn a_later_pattern_that_blames_another_is_found() {
    for (first, second, safety) in [
        ("^user .* by <ADDR>$", "^user .* from <ADDR> x", Safety::Unsafe),
        ("^user .* by <ADDR>$", "^user .* from <ADDR>$", Safety::Safe),
        ("^a .* by <ADDR>$", "^b <ADDR> .*$", Safety::Safe),
    ] {
        let spec = spec(Dialect::Native, &[first, second]);
        let proofs = lint::lint(&spec, lint::PRODUCT_STATES_MAX);
        let shadow = proofs.iter().find(|proof| proof.shadows.is_some()).unwrap();
        assert_eq!(shadow.safety, safety, "{shadow:#?}");
        if let Some(witness) = &shadow.witness {
            let filter = Arc::new(Filter::compile(spec).unwrap());
            let mut found = None;
            SourceMatcher::new(vec![filter])
                .scan(witness.line.as_bytes(), Clock::default(), |line| found = line.verdict(0));
            assert_eq!(found, Some(Verdict::Blame(witness.hosts[0].1)), "{witness:?}");
        }
    }
}

#[test]
fn a_prefregex_and_its_content_are_one_pattern() {
    for (prefregex, failregex, safety) in [
        (r"^x: (?P<content>.+)$", r"^bad .* by <ADDR>$", Safety::Safe),
        (r"^x: (?P<content>.+)$", r"^bad .* by <ADDR>", Safety::Unsafe),
        (r"^x: (?P<content>.+)$", r"bad by <ADDR>$", Safety::Safe),
        (r"^.*x: (?P<content>.+)$", r"^bad by <ADDR> .*$", Safety::Unsafe),
        (r"^<ADDR> (?P<content>.+)$", r"^bad by .*$", Safety::Safe),
        (r"^.*<ADDR> (?P<content>.+)$", r"^bad by .*$", Safety::Unsafe),
    ] {
        let mut spec = spec(Dialect::Native, &[failregex]);
        spec.prefregex = Some(Pattern { text: prefregex.to_owned(), at: Place::default() });
        let proof = &lint::lint(&spec, lint::PRODUCT_STATES_MAX)[0];
        assert_eq!(proof.safety, safety, "{prefregex} {failregex} {proof:#?}");
    }
}

/// Runs `blocker filter ARGS` with this on its standard input; its exit code and what it printed.
fn blocker(args: &[&str], input: &str) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_blocker"))
        .arg("filter")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that does not read its input may be gone before this is written; what it printed is judged either way.
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => panic!("{error}"),
        _ => {}
    }
    let output = child.wait_with_output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(printed).unwrap())
}

const LOG: &str = "Nov 24 02:47:40 web sshd[1234]: Failed password for root from 203.0.113.9 port 40022 ssh2\n\
    Nov 24 02:47:41 web sshd[1234]: Accepted password for root from 203.0.113.7 port 40022 ssh2\r\n\
    Nov 24 02:47:42 web sshd[1234]: Invalid user \u{1b}[31mx from 2001:db8::9 port 1";

#[test]
fn a_filter_is_tried_out_on_a_log() {
    const RAW: &str = "Failed .* from <HOST>";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a log");
    fs::write(&file, LOG).unwrap();
    let file = file.to_str().unwrap();
    for (args, code, says) in [
        (&["test", "sshd", "-"][..], 0, &["3 lines, 2 matched, 0 ignored, 1 missed", "1  203.0.113.9"][..]),
        (&["test", "sshd", file, "--matched"], 0, &["matched 2001:db8::9: Nov 24", "\\u{1b}[31mx"]),
        (&["test", "sshd", file, "--missed"], 0, &["missed: Nov 24 02:47:41", "3  aaa 99 99:99:99"]),
        (&["test", "sshd", "-", "--ignoreregex", "root", "--ignored"], 0, &["ignored: Nov 24", "1 ignored"]),
        (&["test", RAW, "Failed x from 203.0.113.9"], 0, &["1 lines, 1 matched", "1  203.0.113.9"]),
        (&["test", RAW, "Failed x from nowhere.example"], 0, &["1 failures name no address"]),
        (&["test", RAW, "nothing of the kind"], 1, &["0 matched, 0 ignored, 1 missed"]),
        (&["test", "sshd", "/no/such/log"], 66, &["/no/such/log: No such file", "give a log"]),
        (&["test", "ssh", "-"], 78, &["there is no filter \"ssh\"", "give the path"]),
        (&["test", "(<HOST>", "-"], 78, &["does not compile"]),
    ] {
        let (found, printed) = blocker(args, LOG);
        assert_eq!(found, code, "{args:?}: {printed}");
        for text in says {
            assert!(printed.contains(text), "{args:?} does not say {text:?}: {printed}");
        }
    }
    let (_, printed) = blocker(&["test", "sshd", "-", "--json", "--missed"], LOG);
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((report["lines"].as_u64(), report["matched"].as_u64()), (Some(3), Some(2)));
    assert_eq!(report["hosts"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["missed_lines"].as_array().map(Vec::len), Some(1));
    let hits = report["patterns"].as_array().unwrap().iter().filter_map(|pattern| pattern["hits"].as_u64());
    assert_eq!(hits.sum::<u64>(), 2);
}

#[test]
fn a_filter_of_fail2bans_is_tried_out_with_its_options() {
    let folder = tempfile::tempdir().unwrap();
    let filters = folder.path().join("filter.d");
    fs::create_dir(&filters).unwrap();
    let file = filters.join("door.conf");
    let text = "[Definition]\nfailregex = ^<word> by <HOST>$\n[Init]\nword = knock\n";
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for (args, code) in [
        (&["test", file, "knock by 203.0.113.9"][..], 0),
        (&["test", file, "knock by 203.0.113.9", "-o", "word=kick"], 1),
        (&["test", file, "kick by 203.0.113.9", "-o", "word=kick"], 0),
        (&["lint", file], 0),
        (&["lint", file, "-o", "word=.*"], 0),
    ] {
        let (found, printed) = blocker(args, "");
        assert_eq!(found, code, "{args:?}: {printed}");
    }
}

#[test]
fn lint_says_what_it_found_to_people_and_to_programs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("door.toml");
    fs::write(&file, "failregex = ['^knock of .*? by <ADDR>']\n").unwrap();
    let file = file.to_str().unwrap();
    let (code, printed) = blocker(&["lint", file], "");
    assert_eq!(code, 1);
    assert!(printed.contains("UNSAFE    "), "{printed}");
    assert!(printed.contains("can be read as 198.51.100.1 and as 203.0.113.9"), "{printed}");
    let (code, printed) = blocker(&["lint", file, "--json"], "");
    assert_eq!(code, 1);
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["safety"], "UNSAFE");
    assert_eq!(report["proofs"][0]["witness"]["readings"].as_array().map(Vec::len), Some(2));
    assert_eq!(blocker(&["lint", "sshd"], "").0, 0);
    let log = folder.path().join("log");
    fs::write(&log, "knock of bob by 203.0.113.9\n").unwrap();
    let (code, printed) = blocker(&["lint", file, "--states", "1", "--mutate", log.to_str().unwrap()], "");
    assert_eq!(code, 1);
    assert!(printed.contains("FORGED    ") && printed.contains("UNPROVEN  "), "{printed}");
    assert_eq!(blocker(&["lint", file, "--mutate", "/no/such/log"], "").0, 66);
}

#[test]
fn check_warns_of_filters_that_lines_can_steer_and_of_lines_that_can_be_forged() {
    const STEERED: &str = "is UNSAFE: the text of a line";
    const FORGED: &str = "may write a line break";
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("filters")).unwrap();
    const ROOTS: &str = "only root's are";
    for (log, pattern, newline_safe, says, silent) in [
        ("door.log", "^knock of .*? by <ADDR>", "'file'", &[STEERED][..], &[FORGED][..]),
        ("door.log", "^knock of .* by <ADDR>$", "'file'", &[], &[STEERED, FORGED]),
        ("door.log", "^knock of .* by <ADDR>$", "'journal'", &[FORGED, "syslog daemon"], &[STEERED]),
        ("auth.log", "^knock of .* by <ADDR>$", "'journal'", &[], &[STEERED, FORGED]),
        ("auth.log", "^knock of .* by <ADDR>$", "", &[FORGED, "observe"], &[STEERED]),
        ("_UID=5 _COMM=a", "^knock of .* by <ADDR>$", "'journal'", &[], &[STEERED, FORGED, ROOTS]),
        ("_UID=5", "^knock of .* by <ADDR>$", "'file'", &["in the journal", FORGED, "observe"], &[ROOTS]),
        ("_UID=5 + _COMM=a", "^knock of .* by <ADDR>$", "'journal'", &[ROOTS], &[FORGED]),
    ] {
        let filter = format!("failregex = ['{pattern}']\nnewline_safe = [{newline_safe}]\n");
        fs::write(path("filters/door.toml"), filter).unwrap();
        fs::write(path(log), "").unwrap();
        let reads = match log.contains('=') {
            true => format!("journal = ['{log}']"),
            false => format!("files = ['{}']", path(log).display()),
        };
        let config = format!("filter_dirs = ['filters']\n[jail.door]\n{reads}\nfilters = ['door']\n");
        fs::write(path("blocker.toml"), config).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_blocker"))
            .args(["check", "--config", path("blocker.toml").to_str().unwrap()])
            .output()
            .unwrap();
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{printed}");
        assert!(says.iter().all(|text| printed.contains(text)), "{pattern} {newline_safe}: {printed}");
        assert!(!silent.iter().any(|text| printed.contains(text)), "{pattern} {newline_safe}: {printed}");
    }
}
