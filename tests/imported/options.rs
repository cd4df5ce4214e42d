//! Every option of a jail: in force, or said not to be.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use blocker::{
    config::{
        self, Config, JailState,
        fail2ban::{self, FilterPlace},
    },
    filter::{FilterSpec, Pattern},
    policy::Jail,
};
use xtask::lab::skipped;

use crate::{Recipe, warnings};

/// What an option of a jail comes to.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// It is in force: this is in the policy, and is not without it.
    To(&'static str),
    /// It is in force, and there is something to say about it.
    Saying(&'static str, &'static str),
    /// It does nothing, and that is said with file and line.
    ToNothing(&'static str),
    /// It does what is done without it.
    ToTheSame,
    /// The jail does not run, for this reason.
    ToRefusal(&'static str),
}

use Comes::{Saying, To, ToNothing, ToRefusal, ToTheSame};

/// Every option that a jail may have, with a value and what comes of it.
const OPTIONS: &[(&str, &str, Comes)] = &[
    ("enabled", "false", ToRefusal("")),
    ("enabled", "ture", ToRefusal("\"ture\" is neither, so the jail is not enabled")),
    ("enabled", "%(nothing)s", ToRefusal("`%(nothing)s` names an option that is not there")),
    ("enabled", "YES", ToTheSame),
    ("maxretry", "7", To("maxretry: 7")),
    ("maxretry", "0", ToNothing("a number from 1 to 10000 is needed")),
    ("findtime", "1h30m", To("findtime: 5400s")),
    ("findtime", "soon", ToNothing("unknown unit \"soon\"")),
    ("bantime", "1w", To("bantime: For(604800s)")),
    ("bantime", "-1", To("bantime: Permanent")),
    ("bantime", "0", ToNothing("a ban of less than a second")),
    ("maxmatches", "3", To("maxmatches: 3")),
    ("maxmatches", "1000", Saying("maxmatches: 100", "100 lines are the most that are kept")),
    (
        "ignoreip",
        "192.0.2.1 198.51.100.0/24",
        To(
            "ignoreip: [Prefix { address: 192.0.2.1, length: 32 }, Prefix { address: 198.51.100.0, length: 24 }]",
        ),
    ),
    ("ignoreip", "host.example", ToNothing("\"host.example\" is not an address; names are not resolved")),
    ("ignoreself", "no", To("ignoreself: false")),
    ("ignoreself", "perhaps", ToNothing("\"perhaps\" is not used")),
    ("ignorecommand", "/bin/known <ip>", To("Shell(\"/bin/known \\\"${BLOCKER_IP}\\\"\")")),
    ("ignorecommand", "/bin/known <ip-rev>", ToNothing("the command is not asked")),
    (
        "ignorecommand",
        "/bin/known <ip>\nignorecache = key='<ip>', max-count=9, max-time=2m",
        To("count_max: 9, time_max: 120s"),
    ),
    ("ignorecache", "key='<ip>'", ToTheSame),
    (
        "ignorecommand",
        "/bin/known <ip>\nignorecache = key='<F-USER>'",
        Saying("cache: None", "answers are remembered by address only"),
    ),
    (
        "ignorecommand",
        "/bin/known <ip>\nignorecache = key='<ip>', size=3",
        Saying("cache: None", "there is no size"),
    ),
    ("bantime.increment", "true", To("escalation: Some")),
    ("bantime.increment", "maybe", ToNothing("\"maybe\" is not used")),
    ("bantime.increment", "true\nbantime.factor = 3", To("factor: 3.0")),
    ("bantime.increment", "true\nbantime.formula = ban.Time * 9", To("ban.Time * 9")),
    (
        "bantime.increment",
        "true\nbantime.formula = __import__('os')",
        Saying("escalation: Some", "a formula is arithmetic"),
    ),
    ("bantime.increment", "true\nbantime.multipliers = 1 5 30", To("multipliers: [1, 5, 30]")),
    ("bantime.increment", "true\nbantime.maxtime = 5w", To("maxtime: Some(3024000s)")),
    ("bantime.increment", "true\nbantime.rndtime = 10m", To("rndtime: 600s")),
    ("bantime.increment", "true\nbantime.overalljails = yes", To("overalljails: true")),
    ("bantime.factor", "3", ToTheSame),
    ("bantime.formula", "ban.Time", ToTheSame),
    ("bantime.multipliers", "1 2", ToTheSame),
    ("bantime.maxtime", "1w", ToTheSame),
    ("bantime.rndtime", "1m", ToTheSame),
    ("bantime.overalljails", "true", ToTheSame),
    ("logpath", "DIR/*/other?.log", To("File(\"DIR/*/other?.log\")")),
    ("logpath", "DIR/app.log tail", ToNothing("is read from findtime ago on the first time")),
    ("logpath", "DIR/app.log head\n  DIR/second.log", To("File(\"DIR/second.log\")")),
    ("logpath", "DIR/my app.log", Saying("File(\"DIR/my\")", "a path has no space in it")),
    ("logpath", "app.log", ToRefusal("it has no log file that can be read")),
    ("backend", "systemd", To("{\"_SYSTEMD_UNIT\": {\"app.service\"}}")),
    ("backend", "systemd\njournalmatch = _UID=7", To("{\"_UID\": {\"7\"}}")),
    ("backend", "systemd[namespace=web]", To("namespace: Some(\"web\")")),
    (
        "backend",
        "systemd[journalflags=1]",
        Saying("{\"_SYSTEMD_UNIT\": {\"app.service\"}}", "journalflags=\"1\" is not used"),
    ),
    ("backend", "auto", ToTheSame),
    ("backend", "pyinotify", ToTheSame),
    ("backend", "gamin", ToTheSame),
    ("backend", "inotify", ToNothing("there is no backend \"inotify\"; the log files are read")),
    ("journalmatch", "_UID=7", ToTheSame),
    ("skip_if_nologs", "true", ToTheSame),
    ("port", "http,https", To("ports: 80/tcp,443/tcp")),
    ("port", "2200:2210", To("ports: 2200-2210/tcp")),
    ("protocol", "udp", To("ports: 22/udp")),
    ("banaction", "iptables-allports", To("ports: all")),
    ("banaction_allports", "iptables-allports", ToTheSame),
    ("banaction", "ufw[application='OpenSSH']", To("ports: all")),
    ("chain", "forward", ToTheSame),
    ("blocktype", "reject", ToTheSame),
    ("blocktype", "RETURN", ToRefusal("its action lets an address in (blocktype=RETURN)")),
    ("returntype", "DROP", ToTheSame),
    (
        "action",
        "mail[to=x, from=y, by=z, agent=w]",
        Saying(
            "ban: Some(Shell(\"printf %s 'to x from y by z as w'\"))",
            "none of its actions drops packets",
        ),
    ),
    (
        "action",
        "nftables[type=allports]\n  blocklist.py[x=1]",
        Saying("actions: []", "is Python code for fail2ban's own process and is not run"),
    ),
    ("action", "nftables[type=allports]\n  nowhere", Saying("actions: []", "there is no action file")),
    ("mta", "mailx", To("by mailx as")),
    ("destemail", "me@example", To("to me@example from")),
    ("sender", "you@example", To("from you@example by")),
    ("fail2ban_agent", "Other/2", To("as Other/2")),
    ("mode", "aggressive", To("failregex [\"^odd <HOST>$\"]")),
    ("filter", "app[mode=aggressive]", To("failregex [\"^odd <HOST>$\"]")),
    ("filter", "app[mode=normal, mood=x]", ToNothing("the filter \"app\" has no option \"mood\"")),
    ("filter", "nowhere", ToRefusal("there is no filter file")),
    ("filter", "app[mode=", ToRefusal("does not name a filter")),
    ("failregex", "^worse <HOST>$", To("failregex [\"^worse <HOST>$\"]")),
    ("failregex", "%(known/failregex)s\n  ^worse <HOST>$", To("[\"^bad <HOST>$\", \"^worse <HOST>$\"]")),
    ("failregex", "^(worse <HOST>$", ToRefusal("the pattern does not compile")),
    ("ignoreregex", "^bad 192", To("ignoreregex [\"^bad 192\"]")),
    ("prefregex", "^x <F-CONTENT>.+</F-CONTENT>$", To("prefregex Some(\"^x <F-CONTENT>.+</F-CONTENT>$\")")),
    ("datepattern", "%%Y-%%m-%%d", To("datepattern Some(\"%Y-%m-%d\")")),
    ("datepattern", "%%Q(", ToRefusal("the date pattern \"%Q(\" does not work")),
    ("maxlines", "5", To("maxlines 5")),
    ("maxlines", "500", Saying("maxlines 128", "128 lines at once are the most")),
    ("maxlines", "some", ToNothing("it is no number of lines")),
    ("usedns", "no", ToTheSame),
    ("usedns", "yes", Saying("addresses_only false", "names in a log are never resolved")),
    ("usedns", "warn", Saying("addresses_only false", "names in a log are never resolved")),
    ("usedns", "raw", Saying("addresses_only false", "names in a log are never resolved")),
    ("logencoding", "latin1", To("logencoding Some(\"latin1\")")),
    ("logencoding", "utf-8", To("logencoding Some(\"utf-8\")")),
    ("logencoding", "auto", ToTheSame),
    ("logencoding", "utf-16", ToRefusal("\"utf-16\" is no encoding that a log can be read in")),
    ("logtimezone", "UTC+0200", To("logtimezone Some(\"UTC+0200\")")),
    ("logtimezone", "Mars", ToRefusal("\"Mars\" is no time zone")),
    // What nobody asks for.
    ("maxrety", "1", ToNothing("did you mean `maxretry`?")),
    ("bantime.incremnt", "true", ToNothing("did you mean `bantime.increment`?")),
    ("ignoreips", "192.0.2.1", ToTheSame),
    ("ingoreip", "192.0.2.1", ToNothing("did you mean `ignoreip`?")),
    ("my_own", "1", ToTheSame),
];

/// What the policy has of its one jail, as text; nothing when it does not run.
fn described(config: &Config, dir: &Path) -> String {
    let Some(jail) = config.policy.jails.first() else { return String::new() };
    let sources: Vec<_> = jail.sources.iter().map(|id| &config.policy.sources[usize::from(id.0)]).collect();
    let text = |pattern: &Option<Pattern>| pattern.as_ref().map(|pattern| pattern.text.clone());
    let texts =
        |patterns: &[Pattern]| patterns.iter().map(|pattern| pattern.text.clone()).collect::<Vec<_>>();
    let filters = jail.filters.iter().map(|filter| {
        let FilterSpec { failregex, ignoreregex, prefregex, fail2ban, .. } = filter.spec();
        format!(
            "failregex {:?}\nignoreregex {:?}\nprefregex {:?}\ndatepattern {:?}\nlogencoding {:?}\nlogtimezone {:?}\n\
             maxlines {}\naddresses_only {}\n",
            texts(failregex),
            texts(ignoreregex),
            text(prefregex),
            text(&fail2ban.datepattern),
            text(&fail2ban.logencoding),
            text(&fail2ban.logtimezone),
            fail2ban.maxlines,
            fail2ban.addresses_only,
        )
    });
    let filters: String = filters.collect();
    let jail = Jail { filters: Vec::new(), sources: Vec::new(), ..jail.clone() };
    format!("{jail:?}\n{sources:?}\n{filters}").replace(&dir.display().to_string(), "DIR")
}

#[test]
fn every_option_of_a_jail_does_what_it_says_or_it_is_said_where_it_does_not() {
    let plain = Recipe::new("");
    let base = plain.load();
    // What there is to say without any: that ports are shown only.
    let [ports] = &warnings(&base)[..] else { panic!("{:?}", warnings(&base)) };
    assert!(ports.contains("a ban is on all ports"), "{ports}");
    let base = described(&base, plain.dir.path());
    let mut wrong = Vec::new();
    for (option, value, comes) in OPTIONS {
        let recipe = Recipe::new(&format!("[a]\n{option} = {value}\n"));
        let config = recipe.load();
        let found = described(&config, recipe.dir.path());
        let said: Vec<String> =
            warnings(&config).into_iter().filter(|said| !said.contains("a ban is on all ports")).collect();
        let context = format!("{option} = {value}: {comes:?}\n{said:#?}\n{found}");
        let local = recipe.path("fail2ban/jail.local").display().to_string();
        let placed = |says: &str| {
            said.iter().any(|said| said.contains(says) && said.starts_with(&format!("{local}:")))
        };
        // What the jail's filter or action makes of the option may be said where those are named.
        let somewhere = |says: &str| said.iter().any(|said| said.contains(says) && said.contains(".conf:"));
        let holds = match comes {
            To(effect) => found.contains(effect) && !base.contains(effect) && said.is_empty(),
            Saying(effect, says) => found.contains(effect) && placed(says),
            ToNothing(says) => found == base && placed(says),
            ToTheSame => found == base && said.is_empty(),
            ToRefusal(why) => match &config.jails[0].state {
                JailState::Refused(_) => found.is_empty() && (placed(why) || somewhere(why)),
                JailState::Disabled => found.is_empty() && (said.is_empty() && why.is_empty() || placed(why)),
                JailState::Enabled => false,
            },
        };
        if !holds {
            wrong.push(context);
            continue;
        }
        // Printed as our own it is the same, but for ports, and what there was to say is a comment.
        let printed = fail2ban::export(&recipe.path("fail2ban"), FilterPlace::Inline).main;
        recipe.write("own.toml", &printed);
        let own =
            config::load(&recipe.path("own.toml")).unwrap_or_else(|errors| panic!("{context}\n{errors}"));
        let without_ports = |text: &str| {
            let (before, ports) = text.split_once(", ports: ").unwrap_or_default();
            before.to_owned() + ports.split_once("}\n").unwrap_or_default().1
        };
        let printed_as = described(&own, recipe.dir.path());
        let notes: Vec<&str> = printed.lines().filter(|line| line.starts_with('#')).collect();
        let says = match comes {
            Saying(_, says) | ToNothing(says) | ToRefusal(says) => *says,
            To(_) | ToTheSame => "",
        };
        if without_ports(&found) != without_ports(&printed_as)
            || !notes.iter().any(|note| note.contains(says))
        {
            wrong.push(format!("{context}\nas our own:\n{printed_as}\nwhich is:\n{printed}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}\nwithout:\n{base}",
        wrong.len(),
        OPTIONS.len(),
        wrong.join("\n")
    );
}

/// The table has what the incumbent knows, by its own code and its own jail.conf.
#[test]
fn the_table_of_options_is_whole() {
    let listing = Command::new("dpkg").args(["-L", "fail2ban"]).output();
    let listing =
        listing.map(|listing| String::from_utf8_lossy(&listing.stdout).into_owned()).unwrap_or_default();
    let of = |end: &str| listing.lines().find(|line| line.ends_with(end)).map(PathBuf::from);
    let (Some(jails), Some(filters), Some(conf)) =
        (of("/client/jailreader.py"), of("/client/filterreader.py"), of("/etc/fail2ban/jail.conf"))
    else {
        return skipped("the_table_of_options_is_whole", "fail2ban is not installed");
    };
    let known: BTreeSet<&str> = OPTIONS
        .iter()
        .flat_map(|(option, value, _)| {
            let more = value.lines().filter_map(|line| Some(line.split_once(" = ")?.0));
            std::iter::once(*option).chain(more)
        })
        .collect();
    let mut wanted = BTreeSet::new();
    for code in [jails, filters] {
        let text = fs::read_to_string(code).unwrap();
        let options =
            text.lines().filter_map(|line| line.trim_start().strip_prefix('"')?.split_once("\": [\""));
        wanted.extend(options.map(|(option, _)| option.to_owned()));
    }
    assert!(wanted.len() > 20, "{wanted:?}");
    let text = fs::read_to_string(conf).unwrap();
    let options = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let options = options.filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()));
    // What the values of one jail or one action name among themselves.
    let own = |option: &String| {
        option.starts_with("action_")
            || ["before", "tcpport", "udpport", "knocking_url"].contains(&option.as_str())
    };
    wanted.extend(options.filter(|option| !own(option)));
    let missing: Vec<&String> = wanted.iter().filter(|option| !known.contains(option.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
