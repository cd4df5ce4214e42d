//! Configurations in, findings out: the tables are `tests/corpus/config/*.toml` with what must be said about each in
//! the `.err` beside it. `BLESS=1` writes the `.err` files anew; read the difference before you commit it.
#![forbid(unsafe_code)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use blocker::{
    config::{self, Config, ConfigErrors, JailState, Origin},
    filter::{Clock, Filter, SourceMatcher, Verdict},
    policy::{Access, Form, JournalMatches, SocketAddress, SocketLimits, SocketSpec, SourceSpec},
    time::BanTime,
};
use proptest::prelude::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corpus(name: &str) -> PathBuf {
    root().join("tests/corpus/config").join(name)
}

fn loaded(path: &Path) -> Config {
    config::load(path).unwrap_or_else(|errors| panic!("{}:\n{errors}", path.display()))
}

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap();
    }
    fs::write(&path, text).unwrap();
    path
}

fn warnings(config: &Config) -> String {
    config.warnings.iter().map(|warning| format!("{warning}\n\n")).collect()
}

/// Every finding of an error list names its file and a line in it.
fn assert_placed(errors: &ConfigErrors, context: &str) {
    assert!(!errors.0.is_empty(), "{context}");
    for finding in &errors.0 {
        assert!(
            finding.place.line >= 1 && !finding.place.path.as_os_str().is_empty(),
            "{finding}\n{context}"
        );
        assert!(!finding.message.is_empty(), "{context}");
    }
}

#[test]
fn the_shipped_example_loads_without_a_warning() {
    let config = loaded(&root().join("config/blocker.toml"));
    assert_eq!(warnings(&config), "");
    let enabled: Vec<&str> = config.policy.jails.iter().map(|jail| &*jail.name).collect();
    assert_eq!(enabled, ["sshd"]);
    assert_eq!(config.jails.len(), 6, "disabled jails are reported too");
}

/// Uncommenting every default of the example changes nothing, so it shows the true defaults and every key.
#[test]
fn the_defaults_in_the_shipped_example_are_the_defaults() {
    let text = fs::read_to_string(root().join("config/blocker.toml")).unwrap();
    let uncommented: String = text
        .lines()
        .filter(|line| !line.contains("allowlist = [\"") && !line.contains("ignoreregex"))
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ') && key != "fail2ban") =>
            {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let spelt_out = loaded(&write(dir.path(), "blocker.toml", uncommented));
    let left_out = loaded(&root().join("config/blocker.toml"));
    assert_eq!(spelt_out.enforce, left_out.enforce);
    assert_eq!(spelt_out.socket, left_out.socket);
    assert_eq!(spelt_out.state_dir, left_out.state_dir);
    assert_eq!(spelt_out.policy.limits, left_out.policy.limits);
    let values = |config: &Config| -> Vec<Vec<(&str, String)>> {
        let settings = |jail: &config::JailReport| {
            jail.settings.iter().map(|setting| (setting.key, setting.value.clone())).collect()
        };
        config.jails.iter().map(settings).collect()
    };
    assert_eq!(values(&spelt_out), values(&left_out));
    assert!(
        spelt_out.jails[0].settings.iter().all(|setting| setting.at.is_some()),
        "each key is in the example"
    );
}

#[test]
fn sockets_are_read_with_who_may_write_and_jails_may_share_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = loaded(&write(
        dir.path(),
        "blocker.toml",
        r#"
[limits]
max_socket_connections = 10
max_socket_waiting = 65536
socket_idle = "1m"
[jail.app]
filters = ["django"]
socket = "/run/x"
stream_socket = "/run/y"
socket_users = ["root", 33, 33]
socket_groups = [4, "root"]
socket_mode = "0660"
socket_owner = "0:4"
[jail.first]
filters = ["sshd"]
syslog = ["udp://127.0.0.1", "tcp://[::1]:5514", "udp://::1", "unix:///run/log"]
[jail.second]
filters = ["dovecot"]
syslog = ["udp://127.0.0.1:514"]
syslog_allow = ["127.0.0.1", "10.0.0.0/8"]
[jail.third]
filters = ["postfix"]
syslog = ["udp://127.0.0.1:514"]
stdin = true
[jail.off]
enabled = false
filters = ["postfix"]
syslog = ["udp://127.0.0.1:514"]
syslog_allow = ["192.0.2.0/24"]
"#,
    ));
    assert_eq!(warnings(&config), "");
    let written = Access {
        users: vec![0, 33],
        groups: vec![4, 0],
        mode: 0o660,
        owner: Some(0),
        group: Some(4),
        ..Access::default()
    };
    let allow = ["127.0.0.1", "10.0.0.0/8"].map(|prefix| prefix.parse().unwrap()).to_vec();
    let remote = Access { allow, ..Access::default() };
    let spec = |address, form, access: Option<&Access>| {
        SourceSpec::Socket(SocketSpec { address, form, access: access.cloned() })
    };
    let expected = [
        spec(SocketAddress::Datagram("/run/x".into()), Form::Line, Some(&written)),
        spec(SocketAddress::Stream("/run/y".into()), Form::Line, Some(&written)),
        // The second jail says for both who may send.
        spec(SocketAddress::Udp("127.0.0.1:514".parse().unwrap()), Form::Syslog, Some(&remote)),
        spec(SocketAddress::Tcp("[::1]:5514".parse().unwrap()), Form::Syslog, None),
        spec(SocketAddress::Udp("[::1]:514".parse().unwrap()), Form::Syslog, None),
        spec(SocketAddress::Datagram("/run/log".into()), Form::Syslog, None),
        SourceSpec::Stdin,
    ];
    assert_eq!(config.policy.sources, expected);
    let read: Vec<Vec<u16>> =
        config.policy.jails.iter().map(|jail| jail.sources.iter().map(|id| id.0).collect()).collect();
    assert_eq!(read, [vec![0, 1], vec![2, 3, 4, 5], vec![2], vec![2, 6]]);
    let limits = SocketLimits { connections_max: 10, idle: Duration::from_secs(60), queue_bytes_max: 65_536 };
    assert_eq!(config.policy.limits.sockets, limits);
    let loopback = Access::default();
    for (address, admitted) in
        [("127.9.9.9", true), ("::1", true), ("::ffff:127.0.0.1", true), ("10.0.0.1", false), ("::2", false)]
    {
        assert_eq!(loopback.admits_address(address.parse().unwrap()), admitted, "{address}");
    }
    for (user, group, admitted) in
        [(0, 9, true), (33, 9, true), (77, 9, true), (34, 9, false), (34, 4, true), (4, 33, false)]
    {
        assert_eq!(written.admits(user, group, 77), admitted, "{user} {group}");
    }
}

#[test]
fn every_refusal_of_the_corpus_reads_as_recorded() {
    let mut seen = 0;
    let mut files: Vec<PathBuf> =
        fs::read_dir(corpus("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "toml")) {
        seen += 1;
        let Err(errors) = config::load(file) else { panic!("{} was taken", file.display()) };
        assert_placed(&errors, &file.display().to_string());
        let found =
            format!("{errors}\n").replace(&format!("{}/", corpus("").display()).replace("//", "/"), "");
        let expected = file.with_extension("err");
        if env::var_os("BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&expected).unwrap_or_default(), "{}", file.display());
    }
    assert!(seen >= 10, "the corpus is here: {seen}");
}

#[test]
fn a_source_that_two_jails_read_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(
        dir.path(),
        "blocker.toml",
        "[jail.b]\nfiles = ['/var/log/a.log', '/var/log/b.log']\nfilters = ['sshd']\n\
         [jail.a]\nfiles = ['/var/log/b.log', '/var/log/b.log']\nfilters = ['sshd', 'django']\nsocket = '/run/x'\n",
    );
    let config = loaded(&path);
    let file = |path: &str| SourceSpec::File(path.into());
    let socket =
        SocketSpec { address: SocketAddress::Datagram("/run/x".into()), form: Form::Line, access: None };
    let expected = [file("/var/log/a.log"), file("/var/log/b.log"), SourceSpec::Socket(socket)];
    assert_eq!(config.policy.sources, expected);
    let read: Vec<(&str, Vec<u16>)> = config
        .policy
        .jails
        .iter()
        .map(|jail| (&*jail.name, jail.sources.iter().map(|id| id.0).collect()))
        .collect();
    assert_eq!(read, [("b", vec![0, 1]), ("a", vec![1, 2])]);
}

#[test]
fn a_filter_directory_is_looked_in_before_the_built_in_filters() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mine/sshd.toml", "description = 'mine'\nfailregex = ['^x <ADDR>$']\n");
    let text = "filter_dirs = ['mine']\n[jail.a]\nfiles = ['/a']\nfilters = ['sshd']\n";
    loaded(&write(dir.path(), "blocker.toml", text));
    write(dir.path(), "mine/sshd.toml", "failregex = ['^x (<ADDR>$']\n");
    let errors = config::load(&dir.path().join("blocker.toml")).unwrap_err();
    assert!(errors.0[0].place.path.ends_with("mine/sshd.toml") && errors.0[0].place.line == 1, "{errors}");
}

#[test]
fn every_shipped_filter_reads_and_compiles() {
    for (name, text) in config::BUILT_IN {
        let spec =
            config::read_filter(text, Path::new(&format!("{name}.toml"))).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&spec.name, name);
        assert!(!spec.samples.is_empty() && !spec.description.is_empty(), "{name}");
        Filter::compile(spec).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// The recipe as the tutorials have it.
const RECIPE_FILTER: &str = "[INCLUDES]\nbefore = common.conf\n\n[Definition]\n\n_daemon = gunicorn_django\n\n\
                             failregex = Login Fail.*by <HOST>\n\nignoreregex =\n";
const RECIPE_JAIL: &str = "[django-auth]\nenabled = true\nlogpath = /var/log/django/auth.log\nfilter = django-auth\n\
                           action = iptables-allports\n";

fn recipe(jail: &str, filter: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "fail2ban/jail.local", jail);
    write(dir.path(), "fail2ban/filter.d/django-auth.conf", filter);
    let path = write(dir.path(), "blocker.toml", "[import]\nfail2ban = 'fail2ban'\n");
    (dir, path)
}

/// What the filter makes of a line that is the log's first.
fn verdict(filter: &Arc<Filter>, line: &str) -> Option<Verdict> {
    let mut found = None;
    let mut matcher = SourceMatcher::new(vec![Arc::clone(filter)]);
    matcher.scan(line.as_bytes(), Clock::default(), |line| found = line.verdict(0));
    found
}

#[test]
fn the_classic_recipe_loads_verbatim() {
    let (dir, path) = recipe(RECIPE_JAIL, RECIPE_FILTER);
    let config = loaded(&path);
    let [jail] = config.policy.jails.as_slice() else { panic!("{}", warnings(&config)) };
    assert_eq!((&*jail.name, jail.maxretry, jail.findtime), ("django-auth", 5, Duration::from_secs(600)));
    assert_eq!(jail.bantime, BanTime::For(Duration::from_secs(600)));
    assert_eq!(jail.filters.len(), 1);
    assert_eq!(config.policy.sources, [SourceSpec::File("/var/log/django/auth.log".into())]);
    assert_eq!((config.jails[0].origin, &config.jails[0].state), (Origin::Fail2ban, &JailState::Enabled));
    let verdict = verdict(&jail.filters[0], "1764000000.414|WARNING|Login Fail 'bob' by 203.0.113.9");
    assert_eq!(verdict, Some(Verdict::Blame("203.0.113.9".parse().unwrap())));
    // common.conf is not there, which the operator is told, with the line that asks for it.
    assert_eq!(config.warnings.len(), 1, "{}", warnings(&config));
    assert!(warnings(&config).contains("django-auth.conf:2:10"), "{}", warnings(&config));
    write(dir.path(), "fail2ban/filter.d/common.conf", "[DEFAULT]\n_daemon = x\n");
    assert_eq!(warnings(&loaded(&path)), "");
}

/// Each row: the jail file, what must be in force, and what a warning must say.
#[test]
fn what_cannot_be_carried_over_is_a_warning_and_takes_its_own_jail_at_most() {
    let table: &[(&str, &str, &[&str], &str)] = &[
        (
            "action = sendmail-whois[name=x]",
            "",
            &["django-auth"],
            "jail.local:5:10: warning: key `django-auth.action`: there is no action file",
        ),
        ("action = ufw", "", &["django-auth"], ""),
        ("maxretry = many", "", &["django-auth"], "jail.local:6:12: warning: key `django-auth.maxretry`"),
        (
            "ignoreip = 127.0.0.1/8 ::1, host.example",
            "",
            &["django-auth"],
            "\"host.example\" is not an address",
        ),
        ("bantime.increment = true", "", &["django-auth"], ""),
        (
            "bantime.increment = true\nbantime.formula = open(1)",
            "",
            &["django-auth"],
            "nothing is called `open`",
        ),
        ("bantime.increment = true\nbantime.factor = -1", "", &["django-auth"], "it must be above 0"),
        ("findtime = 10x", "", &["django-auth"], "jail.local:6:12: warning: key `django-auth.findtime`"),
        ("bantime = 1mo 2d", "", &["django-auth"], ""),
        ("action = iptables[port=\"80,443\", protocol=tcp]", "", &["django-auth"], "a ban is on all ports"),
        ("action = iptables[blocktype=RETURN]", "", &[], "its action lets an address in (blocktype=RETURN)"),
        ("action = smtp.py", "", &["django-auth"], "is Python code"),
        ("action = a[x", "", &["django-auth"], "does not name an action"),
        ("ignorecommand = /bin/x <ip>", "", &["django-auth"], ""),
        ("ignorecommand = /bin/x <F-USER>", "", &["django-auth"], "the command is not asked"),
        ("maxretry = 1\nmaxretry = 2", "", &["django-auth"], "this option stands twice"),
        ("usedns = yes", "", &["django-auth"], "never resolved"),
        ("backend = systemd", "", &["django-auth"], ""),
        ("backend = systemd\njournalmatch = x", "", &[], "write FIELD=value"),
        ("backend = systemd[journalflags=1]", "", &["django-auth"], "the journals of this host are read"),
        ("backend = systemd[journalflags", "", &[], "a `]` is missing"),
        ("backend = auto\nlogpath =", "", &[], "backend = systemd"),
        ("logpath = /var/log/*/a.log", "", &["django-auth"], ""),
        ("filter = absent", "", &[], "there is no filter file"),
        ("filter = ../../etc/x", "", &[], "cannot be the name of a filter"),
        ("logpath = relative.log", "", &[], "this is no absolute path"),
        ("logpath = %(nowhere)s", "", &[], "names an option that is not there"),
        ("logpath = %(logpath)s", "", &[], "without end"),
        ("", "[Definition]\nfailregex = a (<HOST>\n", &[], "django-auth.conf:2"),
        ("", "[Definition]\nfailregex = <x>\nx = <y>\ny = <x>\n", &[], "without end"),
        ("", "[Definition]\nfailregex =\n", &[], "no pattern that can be used"),
        ("", "[Definition]\nfailregex = no address here\n", &[], "says nowhere who failed"),
        ("", "nonsense\n", &[], "no section [Definition]"),
        ("", "[Definition]\nfailregex = ^x <HOST>$\ndatepattern = %%Q\n", &[], "there is no directive %Q"),
        ("", "[Definition]\nfailregex = ^x <HOST>$\nmaxlines = 0\n", &["django-auth"], "no number of lines"),
        ("", "[Definition]\nfailregex = ^<F-NOFAIL>from</F-NOFAIL> <HOST>$\n", &["django-auth"], ""),
    ];
    let other = "[other]\nenabled = true\nlogpath = /o.log\nfilter = other\n";
    for (line, filter, running, said) in table {
        let filter = if filter.is_empty() { "[Definition]\nfailregex = ^x <HOST>$\n" } else { filter };
        // The line stands instead of the recipe's own for its option.
        let option = |line: &str| line.split([' ', '=']).next().unwrap_or_default().to_owned();
        let set: Vec<String> = line.lines().map(option).collect();
        let kept = RECIPE_JAIL.lines().filter(|line| !set.contains(&option(line)));
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        let (dir, path) = recipe(&format!("{kept}{line}\n{other}"), filter);
        write(dir.path(), "fail2ban/filter.d/other.conf", "[Definition]\nfailregex = ^y <HOST>$\n");
        let config = loaded(&path);
        let names: Vec<&str> = config.policy.jails.iter().map(|jail| &*jail.name).collect();
        let expected: Vec<&str> = running.iter().copied().chain(["other"]).collect();
        assert_eq!(names, expected, "{line} {filter}\n{}", warnings(&config));
        assert!(warnings(&config).contains(said), "{line} {filter}\n{}", warnings(&config));
        assert_eq!(said.is_empty(), config.warnings.is_empty(), "{line} {filter}\n{}", warnings(&config));
    }
}

/// What an imported jail reads, by its backend, its log, and the matches of its filter and its own.
#[test]
fn imported_jails_read_the_journal_where_fail2ban_would_or_their_logs_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let there = write(dir.path(), "there.log", "").display().to_string();
    let absent = dir.path().join("absent.log").display().to_string();
    let pattern = dir.path().join("*.absent").display().to_string();
    let matches = "journalmatch = _SYSTEMD_UNIT=a.service + _COMM=a\n";
    let file = |path: &str| SourceSpec::File(path.into());
    let journal = |texts: &[&str], namespace: Option<&str>| SourceSpec::Journal {
        matches: JournalMatches::parse(texts).unwrap(),
        namespace: namespace.map(str::to_owned),
    };
    let of_filter = || journal(&["_SYSTEMD_UNIT=a.service + _COMM=a"], None);
    for (backend, log, own, filter, read, said) in [
        ("systemd", &there, "", matches, of_filter(), ""),
        ("systemd", &there, "journalmatch = _UID=5\n", matches, journal(&["_UID=5"], None), ""),
        (
            "systemd[namespace=web]",
            &there,
            "",
            matches,
            journal(&["_SYSTEMD_UNIT=a.service", "_COMM=a"], Some("web")),
            "",
        ),
        ("systemd", &there, "", "", journal(&[], None), ""),
        ("auto", &there, "", matches, file(&there), ""),
        ("auto", &absent, "", matches, of_filter(), "none of its logs is there, so the journal is read"),
        (
            "auto",
            &absent,
            "journalmatch = _UID=5\n",
            "",
            journal(&["_UID=5"], None),
            "so the journal is read",
        ),
        ("auto", &absent, "", "", file(&absent), ""),
        ("auto", &absent, "", "journalmatch =\n", file(&absent), ""),
        ("auto", &pattern, "", matches, file(&pattern), ""),
        ("polling", &absent, "", matches, file(&absent), ""),
    ] {
        let jail = format!(
            "[a]\nenabled = true\nbackend = {backend}\nlogpath = {log}\nfilter = django-auth\naction = iptables-allports\n{own}"
        );
        let (imported, path) = recipe(&jail, &format!("[Definition]\nfailregex = ^x <HOST>$\n{filter}"));
        let config = loaded(&path);
        assert_eq!(
            config.policy.sources,
            std::slice::from_ref(&read),
            "{jail}{filter}\n{}",
            warnings(&config)
        );
        assert!(warnings(&config).contains(said), "{jail}{filter}\n{}", warnings(&config));
        assert_eq!(said.is_empty(), config.warnings.is_empty(), "{jail}{filter}\n{}", warnings(&config));
        let is_journal = config.policy.jails[0].filters[0].spec().fail2ban.journal;
        assert_eq!(is_journal, matches!(read, SourceSpec::Journal { .. }), "{jail}{filter}");
        // What is written out as our own reads the same.
        let exported = config::fail2ban::export(
            &imported.path().join("fail2ban"),
            config::fail2ban::FilterPlace::Inline,
        );
        let own = loaded(&write(imported.path(), "own.toml", &exported.main));
        assert_eq!(own.policy.sources, [read], "{}", exported.main);
    }
}

/// fail2ban's interpolation and tags: options of a filter, the pattern that they make, and a line it must blame.
#[test]
fn values_inside_values_expand_as_fail2ban_expands_them() {
    for (filter, options, line) in [
        ("a = x\nfailregex = ^%(a)s <HOST>$\n", "", "x 203.0.113.9"),
        ("a = x\nfailregex = ^<a> <HOST>$\n", "[a=y]", "y 203.0.113.9"),
        ("m = n\nre-n = ^n <HOST>$\nre-o = ^o\n  ^p <HOST>$\nfailregex = <re-<m>>\n", "", "n 203.0.113.9"),
        (
            "m = n\nre-n = ^n <HOST>$\nre-o = ^o <HOST>$\n ^p <HOST>$\nfailregex = <re-<m>>\n",
            "[m=o]",
            "p 203.0.113.9",
        ),
        ("failregex = ^100%% <HOST>$\n", "", "100% 203.0.113.9"),
        ("p = %(known/p)s!\nfailregex = ^%(p)s <HOST>$\n[DEFAULT]\np = hm\n", "", "hm! 203.0.113.9"),
        ("failregex = ^<lt_<k>/p> <HOST>$\nk = a\n[lt_a]\np = deep\n", "", "deep 203.0.113.9"),
        ("failregex = ^<x> <HOST>$\nx = 1\n[Init]\nx = 2\n", "", "2 203.0.113.9"),
    ] {
        let jail = RECIPE_JAIL.replace("filter = django-auth", &format!("filter = django-auth{options}"));
        let (_dir, path) = recipe(&jail, &format!("[Definition]\n{filter}"));
        let config = loaded(&path);
        let found = config.policy.jails.first().and_then(|jail| verdict(&jail.filters[0], line));
        let blamed = Some(Verdict::Blame("203.0.113.9".parse().unwrap()));
        assert_eq!(found, blamed, "{filter} {options}\n{}", warnings(&config));
    }
}

#[test]
fn layers_override_in_fail2bans_order_and_defaults_reach_every_jail() {
    let (dir, path) = recipe(RECIPE_JAIL, "[Definition]\nfailregex = ^x <HOST>$\n");
    let at = |name: &str, text: &str| write(dir.path(), &format!("fail2ban/{name}"), text);
    at("jail.conf", "[DEFAULT]\nmaxretry = 1\nfindtime = 1h\nbantime = -1\nignoreip = 192.0.2.1\n");
    at("jail.d/10.conf", "[DEFAULT]\nmaxretry = 2\nfindtime = 2h\n");
    at(
        "jail.d/20.local",
        "[DEFAULT]\nfindtime = 4h\n[django-auth]\nlogpath = %(known/logpath)s\n  /extra/*.log tail\n",
    );
    let config = loaded(&path);
    let jail = &config.policy.jails[0];
    assert_eq!(
        (jail.maxretry, jail.findtime, jail.bantime),
        (2, Duration::from_secs(14_400), BanTime::Permanent)
    );
    let paths = ["/var/log/django/auth.log", "/extra/*.log"].map(|path| SourceSpec::File(path.into()));
    assert_eq!(config.policy.sources, paths);
    assert_eq!(config.policy.allow, ["192.0.2.1".parse().unwrap()]);
}

#[test]
fn what_import_prints_says_at_the_place_what_it_could_not_carry_over() {
    let settings = "maxretry = many\nignoreip = 192.0.2.1 host.example\n\
                    action = iptables[port=ssh, protocol=tcp]\n  mail\n  smtp.py\n";
    let jail = RECIPE_JAIL.replace("action = iptables-allports\n", settings);
    let (dir, _) = recipe(&jail, "[Definition]\nfailregex = ^x '<HOST>'$\n");
    write(
        dir.path(),
        "fail2ban/action.d/mail.conf",
        "[Definition]\nactionban = mail '<ip>'\nactioncheck = true\n",
    );
    let run = |arguments: &[&str]| {
        let command = std::process::Command::new(env!("CARGO_BIN_EXE_blocker"))
            .arg("import")
            .arg(dir.path().join("fail2ban"))
            .args(arguments)
            .output();
        command.unwrap()
    };
    let printed = String::from_utf8(run(&[]).stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    let before = |line: &str| {
        let at = lines
            .iter()
            .position(|known| known.starts_with(line))
            .unwrap_or_else(|| panic!("{line}: {printed}"));
        lines[at - 1]
    };
    for (line, says) in [
        ("maxretry = 5", "jail.local:5:12: \"many\" is not used"),
        ("ignoreip = ['192.0.2.1']", "\"host.example\" is not an address"),
        ("ban = ", "[action.\"mail@django-auth\"]"),
    ] {
        assert!(before(line).contains(says), "{line}: {printed}");
    }
    assert!(printed.contains("smtp.py\" is Python code"), "{printed}");
    assert!(
        printed.contains("jail.local:7:10: the action \"mail\" runs without its actioncheck"),
        "{printed}"
    );
    for line in ["# iptables: bans are blocker's own, on all ports.", "# ban_ports = ['22/tcp']"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    loaded(&write(dir.path(), "printed.toml", &printed));
    // Into files; and never over what somebody has there.
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    assert!(run(&["--out", out]).status.success());
    loaded(&dir.path().join("out/blocker.toml"));
    let again = run(&["--out", out]);
    assert!(
        !again.status.success()
            && String::from_utf8_lossy(&again.stderr).contains("name a directory that has none")
    );
}

#[test]
fn the_ports_that_a_jail_asks_for_are_kept_and_shown() {
    let action = "action = iptables[port=\"ssh,8000:8010\", protocol=tcp]\n  iptables[name=u, port=53, protocol=udp]\n";
    let jail = RECIPE_JAIL.replace("action = iptables-allports\n", action);
    let (_dir, path) = recipe(&jail, "[Definition]\nfailregex = ^x <HOST>$\n");
    let config = loaded(&path);
    let [jail] = &config.policy.jails[..] else { panic!("{:?}", config.policy.jails) };
    assert_eq!((jail.ports.to_string().as_str(), jail.scope.is_all()), ("22/tcp,8000-8010/tcp,53/udp", true));
    let setting = config.jails[0].settings.iter().find(|setting| setting.key == "ports");
    assert_eq!(setting.map(|setting| &*setting.value), Some("22/tcp,8000-8010/tcp,53/udp"));
}

#[test]
fn an_imported_jail_bans_on_its_own_ports_where_that_is_asked_for() {
    let action = "action = iptables-multiport[port=\"ssh,8000:8010\", protocol=tcp]\n";
    for (action, expected, says) in [
        (action, "22/tcp,8000-8010/tcp", ""),
        ("action = iptables-allports[port=ssh]\n", "all", ""),
        ("action = iptables[port=gopherspace, protocol=tcp]\n", "all", "no service \"gopherspace\""),
    ] {
        let jail = RECIPE_JAIL.replace("action = iptables-allports\n", action);
        let (dir, _) = recipe(&jail, "[Definition]\nfailregex = ^x <HOST>$\n");
        let text = "[import]\nfail2ban = 'fail2ban'\nban_ports = 'jail'\n";
        let config = loaded(&write(dir.path(), "blocker.toml", text));
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(config.policy.jails[0].scope.to_string(), expected, "{action}");
        match says {
            "" => assert_eq!(warnings, [""; 0], "{action}"),
            says => assert!(
                warnings.len() == 1 && warnings[0].contains(says) && warnings[0].contains("on all ports"),
                "{action}: {warnings:?}"
            ),
        }
    }
}

#[test]
fn a_jail_bans_on_the_ports_it_names_and_all_others_on_all() {
    let dir = tempfile::tempdir().unwrap();
    let jails = "[jail.a]\nstdin = true\nfilters = ['sshd']\n\
                 [jail.b]\nstdin = true\nfilters = ['sshd']\nban_ports = ['ssh', '8000:8010', 'domain/udp', '23']\n\
                 [jail.c]\nstdin = true\nfilters = ['sshd']\nban_ports = 'all'\n";
    for (defaults, expected) in [
        ("", ["all", "22-23/tcp,8000-8010/tcp,53/udp", "all"]),
        ("[defaults]\nban_ports = ['https']\n", ["443/tcp", "22-23/tcp,8000-8010/tcp,53/udp", "all"]),
    ] {
        let config = loaded(&write(dir.path(), "a.toml", format!("{defaults}{jails}")));
        let scopes: Vec<String> = config.policy.jails.iter().map(|jail| jail.scope.to_string()).collect();
        assert_eq!(scopes, expected);
        let setting = config.jails[1].settings.iter().find(|setting| setting.key == "ban_ports").unwrap();
        assert_eq!(setting.value, expected[1]);
        assert!(setting.at.is_some());
    }
    let many: String = (1..=16)
        .map(|n| format!("[jail.j{n}]\nstdin = true\nfilters = ['sshd']\nban_ports = ['{n}']\n"))
        .collect();
    let one = |ports: &str| format!("[jail.a]\nstdin = true\nfilters = ['sshd']\nban_ports = {ports}\n");
    for (text, place, says) in [
        (one("['sssh']"), "a.toml:4:14: error: key `jail.a.ban_ports`", "there is no service \"sssh\""),
        (one("['22', '70000']"), "a.toml:4:20: error: key `jail.a.ban_ports`", "0 to 65535"),
        (one("['22/icmp']"), "a.toml:4:14: error: key `jail.a.ban_ports`", "no protocol with ports"),
        (one("'ssh'"), "a.toml:4:13: error: key `jail.a.ban_ports`", "\"ssh\" is not \"all\""),
        (one("[]"), "a.toml:4:13: error: key `jail.a.ban_ports`", "no port is named"),
        (one("[22]"), "a.toml:4:14: error: key `jail.a.ban_ports`", "TOML integer"),
        (many, "a.toml:64:13: error: key `jail.j16.ban_ports`", "15 different lists of ports"),
        (
            "[import]\nban_ports = 'yes'\n".to_owned(),
            "a.toml:2:13: error: key `import.ban_ports`",
            "\"jail\"",
        ),
    ] {
        let errors = config::load(&write(dir.path(), "a.toml", &text)).unwrap_err().to_string();
        assert!(errors.contains(place) && errors.contains(says), "{text}\n{errors}");
    }
}

#[test]
fn check_names_the_jails_whose_logs_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let jail = |name: &str, files: &[&str]| {
        let files: Vec<String> = files.iter().map(|file| at(file)).collect();
        format!("[jail.{name}]\nfilters = ['sshd']\nfiles = {files:?}\n")
    };
    write(dir.path(), "logs/one/a.log", "");
    let text = [
        jail("there", &["logs/one/a.log"]),
        jail("one-there", &["absent.log", "logs/*/a.log"]),
        jail("absent", &["absent.log", "logs/*/b.log"]),
    ];
    let path = write(dir.path(), "blocker.toml", text.concat());
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_blocker"));
    let said =
        String::from_utf8(check.arg("check").arg("--config").arg(&path).output().unwrap().stdout).unwrap();
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: [")).collect();
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("warning: [absent] none of its logs is there"),
        "{said}"
    );
    assert!(warnings[0].contains("journal") && warnings[0].contains("rsyslog"), "{said}");
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_blocker"));
    let report = check.args(["--json", "check", "--config"]).arg(&path).output().unwrap().stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["warnings"], serde_json::json!([warnings[0]]), "programs are told the same");
}

#[test]
fn blockers_own_jail_stands_before_an_imported_one_of_the_same_name() {
    let (dir, path) = recipe(RECIPE_JAIL, RECIPE_FILTER);
    let own =
        "[import]\nfail2ban = 'fail2ban'\n[jail.django-auth]\nfiles = ['/own.log']\nfilters = ['django']\n";
    write(dir.path(), "blocker.toml", own);
    let config = loaded(&path);
    assert_eq!(config.policy.jails.len(), 1);
    assert_eq!(config.policy.sources, [SourceSpec::File("/own.log".into())]);
    assert!(warnings(&config).contains("already defines this jail"), "{}", warnings(&config));
}

/// Deterministic, so that a failure comes again: xorshift64 (Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

fn mutate(text: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        match dice.below(7) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, dice.below(256) as u8),
            2 => bytes.insert(at, b"=[]\"'#\n.,-{}<%("[dice.below(15)]),
            3 => {
                let end = (at + dice.below(40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = dice.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            4 => drop(bytes.drain(at..(at + dice.below(30)).min(text.len()).min(bytes.len()).max(at))),
            5 => {
                let lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
                let (a, b) = (dice.below(lines.len()), dice.below(lines.len()));
                let mut lines = lines.clone();
                lines.swap(a, b);
                bytes = lines.join(&b'\n');
            }
            _ => {
                let values = [
                    "-1",
                    "0",
                    "99999999999999999999",
                    "\"\"",
                    "\"x\"",
                    "[1]",
                    "true",
                    "1.5",
                    "\"\\u0000\"",
                    "{}",
                ];
                if let Some(equals) = bytes[at..].iter().position(|b| *b == b'=') {
                    let start = at + equals + 1;
                    let end =
                        bytes[start..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| start + n);
                    drop(bytes.splice(start..end, values[dice.below(values.len())].bytes()));
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

#[test]
fn no_mutation_of_the_example_panics_and_each_refusal_names_file_and_line() {
    let example = fs::read_to_string(root().join("config/blocker.toml")).unwrap();
    // What is commented out is worth mutating too; comments are not.
    let dense: String = example
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
        .filter(|line| !line.starts_with('#') && !line.starts_with("...") && !line.starts_with("fail2ban"))
        .filter(|line| !line.contains("allowlist = []") && !line.contains("One table"))
        .map(|line| format!("{line}\n"))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "blocker.toml", &dense);
    loaded(&path);
    let (mut dice, mut refused) = (Dice(0x9e37_79b9_7f4a_7c15), 0);
    for round in 0..2_000 {
        let mutant = mutate(dense.as_bytes(), &mut dice);
        fs::write(&path, &mutant).unwrap();
        if let Err(errors) = config::load(&path) {
            refused += 1;
            assert_placed(&errors, &format!("round {round}:\n{}", String::from_utf8_lossy(&mutant)));
            assert!(errors.to_string().starts_with(&format!("{}:", path.display())), "{errors}");
        }
    }
    assert!((500..2_000).contains(&refused), "{refused} of 2000 refused");
}

/// A jail that uses much of the language.
const RICH_JAIL: &str = "[INCLUDES]\nbefore = more.conf\n[DEFAULT]\nport = 80\nbantime.increment = true\n\
    bantime.formula = ban.Time * 2\nbantime.multipliers = 1 2\nignoreip = 127.0.0.1/8 ::1\n\
    ignorecommand = /bin/known <ip>\nignorecache = key=\"<ip>\", max-time=5m\n\
    [django-auth]\nenabled = true\nfilter = django-auth[mode=x, y=\"a, b\"][z='c']\nfailregex = %(known/failregex)s\n  \
    ^y <HOST>$\nlogpath = /var/log/*/a.log tail\nbantime = 1d12h30m\n\
    action = iptables[port=\"%(port)s\", protocol=tcp]\n  mail[name=%(__name__)s, dest=\"a b\"]\n";
const RICH_ACTION: &str = "[Definition]\nactionban = <tool> '<ip>' \"<matches>\" $(x `y <bantime>`) <<E\n <ip>\n E\n\
    actionstart = %(x)s <y/z>\nx = <x?>\n[Init]\ntool = a\n[Init?family=inet6]\ntool = b\n[y]\nz = 1\n";

#[test]
fn no_mutation_of_an_imported_tree_is_an_error() {
    let (dir, path) = recipe(RECIPE_JAIL, RECIPE_FILTER);
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for round in 0..300 {
        let jail = if round % 2 == 0 { RECIPE_JAIL } else { RICH_JAIL };
        write(dir.path(), "fail2ban/jail.local", mutate(jail.as_bytes(), &mut dice));
        write(dir.path(), "fail2ban/action.d/mail.conf", mutate(RICH_ACTION.as_bytes(), &mut dice));
        write(dir.path(), "fail2ban/filter.d/django-auth.conf", mutate(RECIPE_FILTER.as_bytes(), &mut dice));
        for warning in loaded(&path).warnings {
            assert!(warning.place.line >= 1, "{warning}");
        }
    }
}

/// Each row: the jail file, a filter, and what a warning must say; each ends soon, and harms no other jail.
#[test]
fn what_would_never_end_or_fill_the_memory_is_a_warning() {
    let filter = |body: &str| format!("[Definition]\nfailregex = ^x <HOST>$\n{body}");
    let good = filter("");
    let doubling = |form: fn(usize) -> String| (0..40).map(form).collect::<String>();
    let table: Vec<(&str, String, String, &str)> = vec![
        ("an option of itself", "maxretry = %(maxretry)s\n".to_owned(), good.clone(), "without end"),
        (
            "options of one another",
            "maxretry = %(a)s\na = %(b)s\nb = %(a)s\n".to_owned(),
            good.clone(),
            "without end",
        ),
        (
            "a known one of itself",
            "maxretry = %(known/maxretry)s\nknown/maxretry = %(known/maxretry)s\n".to_owned(),
            good.clone(),
            "without end",
        ),
        (
            "options that double",
            "maxretry = %(a0)s\n".to_owned() + &doubling(|n| format!("a{n} = x%(a{0})s%(a{0})s\n", n + 1)),
            good.clone(),
            "without end",
        ),
        (
            "options that grow",
            format!("maxretry = %(a)s\na = {}\nb = {}\n", "%(b)s".repeat(500), "y".repeat(5_000)),
            good.clone(),
            "grows past",
        ),
        (
            "tags of one another",
            String::new(),
            "[Definition]\nfailregex = <a>\na = <b>\nb = <a>\n".to_owned(),
            "without end",
        ),
        (
            "tags that double",
            String::new(),
            "[Definition]\nfailregex = x<a0>\n".to_owned()
                + &doubling(|n| format!("a{n} = x<a{0}><a{0}>\n", n + 1)),
            "without end",
        ),
        (
            "tags that double, asked for by the jail",
            "failregex = %(known/failregex)s\n".to_owned(),
            "[Definition]\nfailregex = x<a0>\n".to_owned()
                + &doubling(|n| format!("a{n} = x<a{0}><a{0}>\n", n + 1)),
            "names an option that is not there",
        ),
        (
            "lines of tags that double",
            String::new(),
            "[Definition]\nfailregex = <a0>\n".to_owned()
                + &doubling(|n| format!("a{n} = <a{0}>\n  <a{0}>\n", n + 1)),
            "without end",
        ),
        (
            "a value of ten million bytes",
            format!("maxretry = {}\n", "9".repeat(10 << 20)),
            good.clone(),
            "larger than 1048576 bytes",
        ),
        (
            "a filter of ten million bytes",
            String::new(),
            filter(&format!("x = {}\n", "9".repeat(10 << 20))),
            "larger than 1048576 bytes",
        ),
        (
            "a pattern of half a million bytes",
            String::new(),
            filter(&format!(" ^{} <HOST>$\n", "(a|b)".repeat(100_000))),
            "cannot be used",
        ),
        (
            "a file that includes itself",
            String::new(),
            format!("[INCLUDES]\nbefore = django-auth.conf\n{good}"),
            "includes itself",
        ),
        (
            "includes of a device, a folder and what is not there",
            String::new(),
            format!("[INCLUDES]\nbefore = /dev/zero\n  ..\nafter = ../../absent.conf\n{good}"),
            "there is no file",
        ),
        (
            "a call with a thousand options",
            format!("filter = django-auth[{}]\n", (0..1_000).map(|n| format!("a{n}=1,")).collect::<String>()),
            good.clone(),
            "more than 256 options",
        ),
        (
            "a thousand actions",
            format!("action = {}\n", "ufw\n ".repeat(1_000)),
            good.clone(),
            "more than 32 actions",
        ),
        (
            "ten thousand jails",
            (0..10_000).map(|n| format!("[j{n}]\n")).collect(),
            good.clone(),
            "more than 1024 jails",
        ),
    ];
    for (name, jail, filter, says) in table {
        let option = |line: &str| line.split([' ', '=']).next().unwrap_or_default().to_owned();
        let own: Vec<String> = jail.lines().map(option).collect();
        let kept = RECIPE_JAIL.lines().filter(|line| !own.contains(&option(line)));
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        let (dir, path) = recipe("", &filter);
        write(dir.path(), "fail2ban/filter.d/other.conf", &good);
        // What is wrong in one file is wrong in it alone.
        write(
            dir.path(),
            "fail2ban/jail.d/0.conf",
            "[other]\nenabled = true\nlogpath = /o.log\nfilter = other\n",
        );
        write(dir.path(), "fail2ban/jail.local", format!("{kept}{jail}"));
        let began = std::time::Instant::now();
        let config = loaded(&path);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{name}: {took:?}");
        let said: String = config.warnings.iter().map(|warning| warning.message.clone() + "\n").collect();
        assert!(said.contains(says), "{name}: {}", said.chars().take(2_000).collect::<String>());
        let other = config.jails.iter().find(|jail| jail.name == "other");
        assert_eq!(other.map(|jail| &jail.state), Some(&JailState::Enabled), "{name}");
    }
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("absent.toml"), PathBuf::from("/dev/zero")] {
        let errors = config::load(&path).unwrap_err();
        assert_placed(&errors, &path.display().to_string());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_in_fail2bans_files_make_the_import_fail(
        jail in prop::collection::vec(any::<u8>(), 0..200),
        filter in "(\\[(INCLUDES|Definition|Init|Init[?]x=y)\\]\n|(before|failregex|x) = [%()<>a-z/s ]{0,12}\n){0,8}",
        action in "(\\[(Definition|Init)\\]\n|(actionban|x|x[?]family=inet6) = [%()<>a-z/s'\"$`\\\\{} ]{0,16}\n){0,8}",
        call in "[a-c=\"',\\[\\] %()s]{0,30}",
    ) {
        let settings = format!("{}  mail{call}\n", RECIPE_JAIL);
        let (dir, path) = recipe(&settings, &filter);
        write(dir.path(), "fail2ban/action.d/mail.conf", action);
        write(dir.path(), "fail2ban/jail.conf", jail);
        loaded(&path);
    }
}
