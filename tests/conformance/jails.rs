//! Every jail of fail2ban's jail.conf, force-enabled, as `fail2ban-client -d` dumps it and as we read it.
//!
//! The dump needs no server and is made when the test runs, twice: from the files as they are, and with settings over
//! them that use every option of a jail. The log files that the jails name are made in a scratch folder, since the
//! dump shows only files that are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use blocker::{
    config::{
        self, JailState,
        fail2ban::{ActionUse, FAIL2BAN_VERSION, JailSpec, read_jails},
    },
    filter::{FilterSpec, Pattern, Place},
    net::Scope,
    policy::{Jail, Policy},
};
use serde::Deserialize;

use crate::{incumbent::Incumbent, python::Literal};

/// Fewer jails than this mean that the dump was not read as it is meant.
const JAILS_MIN: usize = 80;

/// A jail's option, or a part of it, by name: as text, to be compared.
type Facts = BTreeMap<String, String>;

#[derive(Debug, Deserialize)]
struct Deviations {
    /// A jail whose dump differs on purpose.
    #[serde(default)]
    jail: Vec<Deviation>,
    /// A jail that is not in force though fail2ban would run it.
    #[serde(default)]
    refused: Vec<Refused>,
}

#[derive(Debug, Deserialize)]
struct Deviation {
    jail: String,
    option: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Refused {
    jail: String,
    /// What the refusal says.
    says: String,
    reason: String,
}

fn deviations() -> Deviations {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/deviations.toml");
    toml::from_str(&fs::read_to_string(path).expect("the list of deviations"))
        .expect("the list of deviations")
}

/// What uses every option of a jail, as somebody might write it; the values are ours.
const TUNED: &str = r#"
[DEFAULT]
enabled = true
bantime.increment = true
bantime.rndtime = 10m
bantime.maxtime = 5w
bantime.factor = 2
bantime.formula = ban.Time * (1 + ban.Count)
bantime.multipliers = 1 2 4
bantime.overalljails = yes
ignoreself = false
ignoreip = 127.0.0.1/8 ::1, 192.0.2.0/24
           198.51.100.7
ignorecommand = /usr/local/bin/known <ip>
ignorecache = key="<ip>", max-count=100, max-time=5m
logtimezone = UTC+0200
logencoding = utf-8
usedns = no
maxmatches = 3
findtime = 1h 30m
mta = mail
action = %(action_mwl)s
banaction = nftables[type=multiport]
banaction_allports = nftables[type=allports]

[sshd]
mode = aggressive
failregex = %(known/failregex)s
            ^ of our own from <HOST>$

ignoreregex = ^ by our own

datepattern = {^LN-BEG}%%Y-%%m-%%d
maxlines = 3
journalmatch = _SYSTEMD_UNIT=ssh.service + _COMM="ssh d"
findtime = %(known/findtime)s
logpath = %(known/logpath)s
          /srv/log/own*.log tail

[postfix]
filter = postfix[mode='aggressive'][logtype="short"]

[apache-auth]
backend = systemd
bantime = -1

[nginx-http-auth]
action = iptables-ipset-proto6[name=own, port="80,443", bantime=0]
         dummy[target='/run/our own']
         smtp.py[host="mail.example", dest=a@example]
         sendmail-whois-lines[name=%(__name__)s, logpath="%(logpath)s"][dest='b@example']
"#;

#[test]
fn every_jail_reads_as_fail2ban_reads_it() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(why) => return xtask::lab::skipped("every_jail_reads_as_fail2ban_reads_it", &why),
    };
    let kept = deviations();
    let mut unexpected = 0;
    let mut report = (0, 0, Vec::new());
    for (settings, local) in [("as they are", "[DEFAULT]\nenabled = true\n"), ("tuned", TUNED)] {
        let scratch = tempfile::tempdir().expect("a folder of our own");
        let logs = copy(&incumbent.config, scratch.path(), local);
        let (stdout, stderr) = incumbent.dump(&scratch.path().join("fail2ban"));
        let (theirs, version) = dumped(&stdout);
        assert!(theirs.len() >= JAILS_MIN, "only {} jails in the dump:\n{stderr}", theirs.len());
        let (specs, warnings) = read_jails(&scratch.path().join("fail2ban"));
        let names: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let theirs_names: BTreeSet<&str> = theirs.keys().map(String::as_str).collect();
        assert_eq!(names, theirs_names, "the jails there are, {settings}");
        assert!(warnings.is_empty(), "{settings}: {warnings:?}");
        let (mut agreeing, mut options) = (0, 0);
        for spec in &specs {
            assert!(spec.wrong.is_empty() && spec.enabled, "{settings}: [{}] {:?}", spec.name, spec.wrong);
            let (found, expected) = (facts(spec, &logs), &theirs[&spec.name]);
            let mut equal = true;
            for option in found.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
                options += 1;
                let told =
                    |facts: &Facts| facts.get(option).map(|text| text.replace(&version, FAIL2BAN_VERSION));
                if told(&found) == told(expected) {
                    continue;
                }
                equal = false;
                let on_purpose =
                    kept.jail.iter().find(|k| k.jail == spec.name && option.starts_with(&k.option));
                unexpected += usize::from(on_purpose.is_none());
                let reason =
                    on_purpose.map(|k| format!("\n    on purpose: {}", k.reason)).unwrap_or_default();
                let difference = format!(
                    "{}:{}: [{}] {option}, {settings}\n    fail2ban {:?}\n    blocker  {:?}{reason}",
                    spec.at.path.display(),
                    spec.at.line,
                    spec.name,
                    expected.get(option),
                    found.get(option),
                );
                println!("{difference}");
                report.2.push(difference);
            }
            agreeing += usize::from(equal);
        }
        println!("jails, {settings}: {} compared in {options} options, {agreeing} agreeing", specs.len());
        report.0 += specs.len();
        report.1 += agreeing;
    }
    xtask::conformance::record("jails", report.0, report.1, report.2);
    assert_eq!(unexpected, 0, "differences that nobody decided on");
}

/// Reading is one thing, running another: every jail of jail.conf is in force, but for those in the list.
#[test]
fn every_jail_runs_or_is_refused_on_purpose() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(why) => return xtask::lab::skipped("every_jail_runs_or_is_refused_on_purpose", &why),
    };
    let scratch = tempfile::tempdir().expect("a folder of our own");
    copy(&incumbent.config, scratch.path(), "[DEFAULT]\nenabled = true\n");
    let main = scratch.path().join("blocker.toml");
    fs::write(&main, "[import]\nfail2ban = 'fail2ban'\n").expect("a file of our own");
    let config = config::load(&main).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(config.jails.len() >= JAILS_MIN);
    let refused = deviations().refused;
    for jail in &config.jails {
        let expected = refused.iter().find(|refused| refused.jail == jail.name);
        match (&jail.state, expected) {
            (JailState::Enabled, None) => {}
            (JailState::Refused(why), Some(expected)) if why.contains(&expected.says) => {
                println!("[{}] {why}\n    on purpose: {}", jail.name, expected.reason);
            }
            (state, expected) => panic!("[{}] {state:?}, expected {expected:?}", jail.name),
        }
    }
}

/// What `blocker import` prints loads, and decides as the files themselves do; ports, which no ban knows yet, aside.
#[test]
fn the_printed_configuration_decides_as_the_files_do() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(why) => return xtask::lab::skipped("the_printed_configuration_decides_as_the_files_do", &why),
    };
    let agent = env!("CARGO_BIN_EXE_blocker");
    for (settings, local) in [("as they are", "[DEFAULT]\nenabled = true\n"), ("tuned", TUNED)] {
        let scratch = tempfile::tempdir().expect("a folder of our own");
        copy(&incumbent.config, scratch.path(), local);
        let live = scratch.path().join("live.toml");
        fs::write(&live, "[import]\nfail2ban = 'fail2ban'\n").expect("a file of our own");
        let live = config::load(&live).unwrap_or_else(|errors| panic!("{settings}: {errors}"));
        let out = scratch.path().join("out");
        let mut import = Command::new(agent);
        import.arg("import").arg(scratch.path().join("fail2ban"));
        if settings == "tuned" {
            import.arg("--out").arg(&out);
        }
        let printed = import.output().expect("run blocker");
        assert!(printed.status.success(), "{settings}: {printed:?}");
        let file = if settings == "tuned" {
            out.join("blocker.toml")
        } else {
            let file = scratch.path().join("inline.toml");
            fs::write(&file, &printed.stdout).expect("a file of our own");
            file
        };
        let check =
            Command::new(agent).arg("check").arg("--config").arg(&file).output().expect("run blocker");
        assert!(check.status.success(), "{settings}: {}", String::from_utf8_lossy(&check.stderr));
        let found = config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
        let (expected, found) = (decisions(&live.policy), decisions(&found.policy));
        assert!(expected.len() > JAILS_MIN, "{}", expected.len());
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(expected, found, "{settings}");
        }
        assert_eq!(expected.len(), found.len(), "{settings}");
        // What cannot be carried over stands where the reader looks for it.
        let text = fs::read_to_string(&file).expect("the file");
        for refused in live.jails.iter().filter(|jail| matches!(jail.state, JailState::Refused(_))) {
            assert!(text.contains(&format!("# [jail.{}] is not in force", refused.name)), "{}", refused.name);
        }
    }
}

/// Everything that a policy decides by, as text: the allowlist, then each jail.
fn decisions(policy: &Policy) -> Vec<String> {
    let jails = policy.jails.iter().map(|jail| {
        let sources: Vec<_> = jail.sources.iter().map(|id| &policy.sources[usize::from(id.0)]).collect();
        let pattern = |pattern: &Pattern| Pattern { at: Place::default(), ..pattern.clone() };
        let filters = jail.filters.iter().map(|filter| {
            let mut spec = filter.spec().clone();
            spec.name = String::new();
            spec.path = PathBuf::new();
            for patterns in [&mut spec.failregex, &mut spec.ignoreregex] {
                *patterns = patterns.iter().map(pattern).collect();
            }
            spec.prefregex = spec.prefregex.as_ref().map(pattern);
            let options = &mut spec.fail2ban;
            for option in [&mut options.datepattern, &mut options.logtimezone, &mut options.logencoding] {
                *option = option.as_ref().map(pattern);
            }
            spec
        });
        let filters: Vec<FilterSpec> = filters.collect();
        let jail = Jail { filters: Vec::new(), sources: Vec::new(), ports: Scope::ALL, ..jail.clone() };
        format!("{jail:#?}\n{sources:#?}\n{filters:#?}")
    });
    [format!("{:?}", policy.allow)].into_iter().chain(jails).collect()
}

/// Copies the configuration below `scratch` with `local` as its jail.local, and every log path in it to one below
/// `scratch`; makes those files, and returns them.
fn copy(from: &Path, scratch: &Path, local: &str) -> Vec<PathBuf> {
    let to = scratch.join("fail2ban");
    xtask::conformance::copy_tree(from, &to).expect("copy the configuration");
    fs::write(to.join("jail.local"), local).expect("a file of our own");
    let mut logs = BTreeSet::new();
    let files = fs::read_dir(&to).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in files.filter(|file| file.is_file()) {
        let text = fs::read_to_string(&file).expect("a file of the configuration");
        let mut moved = String::new();
        for line in text.lines() {
            moved.push_str(&below(line, scratch, &mut logs));
            moved.push('\n');
        }
        fs::write(&file, moved).expect("a file of our own");
    }
    for log in &logs {
        fs::create_dir_all(log.parent().expect("a folder")).expect("a folder of our own");
        fs::write(log, "").expect("a file of our own");
    }
    logs.into_iter().collect()
}

/// A line that names a log file, in an option of a log or on a line of its own, with the path below `scratch`.
fn below(line: &str, scratch: &Path, logs: &mut BTreeSet<PathBuf>) -> String {
    let (head, value) = match line.split_once('=') {
        Some((option, value)) if option.contains("log") || option.starts_with("syslog") => {
            (format!("{option}= "), value)
        }
        None if line.starts_with(' ') => ("    ".to_owned(), line),
        _ => return line.to_owned(),
    };
    let value = value.trim();
    if line.starts_with('#') || !value.starts_with('/') || option_of_a_command(line) {
        return line.to_owned();
    }
    let path = value.split_whitespace().next().unwrap_or_default();
    let real = path.replace("[0-9]", "7").replace('*', "some").replace('?', "x");
    logs.insert(scratch.join(real.trim_start_matches('/')));
    format!("{head}{}{value}", scratch.display())
}

fn option_of_a_command(line: &str) -> bool {
    ["ignorecommand", "logtarget", "syslogsocket"].iter().any(|option| line.starts_with(option))
}

/// What the dump says of each jail, and the version it calls itself.
fn dumped(dump: &str) -> (BTreeMap<String, Facts>, String) {
    let mut jails: BTreeMap<String, Facts> = BTreeMap::new();
    let mut version = String::from("no version in this dump");
    for line in dump.lines().filter(|line| line.starts_with('[')) {
        let line = Literal::parse(line).unwrap_or_else(|why| panic!("{why}: {line}"));
        let words = line.list();
        let word = |at: usize| words.get(at).map(Literal::text).unwrap_or_default();
        match (word(0).as_str(), words.len()) {
            ("add", 3) => {
                jails.entry(word(1)).or_default().insert("backend".to_owned(), word(2));
            }
            ("config-error", _) => panic!("{line:?}"),
            ("set" | "multi-set", 4..) => {
                let (name, option) = (word(1), word(2));
                let Some(facts) = jails.get_mut(&name) else { continue };
                if let Some(agent) =
                    words.iter().flat_map(Literal::flat).find_map(|text| agent_version(&text))
                {
                    version = agent;
                }
                dumped_option(facts, &option, &words[3..]);
            }
            _ => {}
        }
    }
    (jails, version)
}

fn agent_version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Fail2Ban/")?;
    Some(rest.split_whitespace().next()?.trim_matches(['"', '\'']).to_owned())
}

fn dumped_option(facts: &mut Facts, option: &str, values: &[Literal]) {
    let texts: Vec<String> = values.iter().map(Literal::text).collect();
    let mut add = |key: String, text: &str| {
        let known = facts.entry(key).or_default();
        known.push_str(text);
        known.push('\n');
    };
    match option {
        "addfailregex" | "addignoreregex" => {
            values.iter().flat_map(Literal::flat).for_each(|text| add(option.to_owned(), &text));
        }
        "addlogpath" => {
            facts.insert(format!("logpath {}", texts[0]), texts[1].clone());
        }
        "addjournalmatch" => add(option.to_owned(), &texts.join("|")),
        "addignoreip" => drop(facts.insert(option.to_owned(), texts.join(" "))),
        "addaction" => {
            let mut known: Vec<String> =
                facts.get("actions").map(|s| s.lines().map(str::to_owned).collect()).unwrap_or_default();
            known.push(texts[0].clone());
            facts.insert("actions".to_owned(), known.join("\n"));
            if let [name, _, json] = texts.as_slice() {
                let given: BTreeMap<String, String> = serde_json::from_str(json).expect("JSON");
                for (option, value) in given {
                    facts.insert(format!("action {name} {option}"), value);
                }
            }
        }
        "action" => {
            let name = &texts[0];
            let pairs: Vec<Vec<String>> = match &values[1..] {
                [Literal::List(pairs)] => pairs.iter().map(Literal::flat).collect(),
                one => vec![one.iter().map(Literal::text).collect()],
            };
            for pair in pairs {
                facts.insert(format!("action {name} {}", pair[0]), pair[1].clone());
            }
        }
        _ => drop(facts.insert(option.to_owned(), texts.join(" "))),
    }
}

/// The same of a jail as we read it.
fn facts(spec: &JailSpec, logs: &[PathBuf]) -> Facts {
    let mut facts = Facts::from([("backend".to_owned(), spec.backend.text.clone())]);
    let mut put = |option: &str, value: String| drop(facts.insert(option.to_owned(), value));
    // What a jail is not told as one of these options is not set.
    let elsewhere = ["enabled", "backend", "filter", "action", "logpath", "ignoreip", "skip_if_nologs"];
    for (option, value) in spec.options.iter().filter(|(option, _)| !elsewhere.contains(option)) {
        let truth = ["ignoreself", "bantime.increment", "bantime.overalljails"].contains(option);
        put(option, if truth { truth_of(&value.text) } else { value.text.clone() });
    }
    if let Some(value) = spec.options.get("ignoreip") {
        let words: Vec<&str> = value.text.split([' ', ',', '\n']).filter(|word| !word.is_empty()).collect();
        put("addignoreip", words.join(" "));
    }
    let filter = spec.filter.as_ref().unwrap_or_else(|| panic!("[{}] has no filter", spec.name));
    for (option, patterns) in [("addfailregex", &filter.failregex), ("addignoreregex", &filter.ignoreregex)] {
        if !patterns.is_empty() {
            put(option, patterns.iter().map(|pattern| format!("{}\n", pattern.text)).collect());
        }
    }
    for (option, pattern) in [("prefregex", &filter.prefregex), ("datepattern", &filter.datepattern)] {
        if let Some(pattern) = pattern {
            put(option, pattern.text.clone());
        }
    }
    for (option, text) in [("maxlines", &filter.maxlines), ("usedns", &filter.usedns)] {
        if let Some(text) = text {
            put(option, text.text.clone());
        }
    }
    if !filter.journalmatch.is_empty() {
        let lines = filter.journalmatch.iter().map(|line| format!("{}\n", shell_words(&line.text).join("|")));
        put("addjournalmatch", lines.collect());
    }
    if !spec.backend.text.starts_with("systemd") {
        for log in &spec.logpath {
            let pattern = regex::escape(&log.path.display().to_string());
            let pattern =
                pattern.replace(r"\*", "[^/]*").replace(r"\?", "[^/]").replace(r"\[0\-9\]", "[0-9]");
            let pattern = regex::Regex::new(&format!("^{pattern}$")).expect("a pattern");
            for file in logs.iter().filter(|file| pattern.is_match(&file.display().to_string())) {
                put(&format!("logpath {}", file.display()), log.from.clone());
            }
        }
    }
    if !spec.actions.is_empty() {
        let names: Vec<&str> = spec.actions.iter().map(|action| action.name.as_str()).collect();
        put("actions", names.join("\n"));
    }
    for ActionUse { name, options, .. } in &spec.actions {
        for (option, value) in options {
            put(&format!("action {name} {option}"), value.clone());
        }
    }
    facts
}

fn truth_of(text: &str) -> String {
    let yes = ["true", "yes", "on", "1"].contains(&text.to_lowercase().as_str());
    if yes { "True".to_owned() } else { "False".to_owned() }
}

/// Words as a shell splits them, with quotes taken off.
fn shell_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, ' ') => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}
