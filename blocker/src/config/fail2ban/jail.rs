//! fail2ban's jails as ours.
//!
//! An enabled jail becomes one of ours, with fail2ban's defaults (5 failures in 10 minutes ban for 10 minutes) where the
//! files say nothing. `ignoreip` in `[DEFAULT]` joins the allowlist. The kernel drops a banned host on every port,
//! whatever the action, unless the operator asks for the action's ports. What has no counterpart is named in warnings of the jails that ask for it.
#![forbid(unsafe_code)]

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    action::{self, Ports, Translated},
    call,
    filter::{filter_spec, is_no},
    read,
    server::{self, Memory},
    shell::{self, Value},
    span,
    spec::{FilterUse, JailSpec, LogPath, Text},
    words::{self, truth},
};
use crate::{
    config::{
        diagnostic::{Findings, Severity},
        filters::{narrowed, refused_filter},
        jails::{self, Draft, JailState, Jails, Origin, Rules},
    },
    filter::{Filter, FilterSpec, Place},
    net::{Prefix, SCOPES_MAX, Scope},
    policy::{
        CommandLine, Escalation, Formula, IGNORE_TIMEOUT, IgnoreCommand, JournalMatches, MATCHES_MAX,
        SourceSpec,
    },
};

/// fail2ban's `bantime` where no file sets one.
const BANTIME: Duration = Duration::from_secs(600);
/// The most failures that a ban may take.
const MAXRETRY_MAX: u32 = 10_000;
/// The filter that reads fail2ban's own log for bans; ours are in the ledger.
const RECIDIVE: &str = "recidive";

/// What bans of imported jails are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BanPorts {
    /// All ports, whatever their actions name.
    All,
    /// What their actions name.
    Jail,
}

/// Reads all jails below `dir` into `jails`; addresses that no jail may ban go into `allow`. Returns what
/// there is to know of fail2ban's memory.
pub(crate) fn import(
    dir: &Path,
    ban_ports: BanPorts,
    findings: &mut Findings,
    jails: &mut Jails,
    allow: &mut Vec<Prefix>,
) -> Memory {
    let read = read::jails(dir, false, findings);
    let mut told = Told::default();
    let mut compiled = Vec::new();
    for spec in &read.jails {
        let importing = Importing { read: &read, ban_ports, told: &mut told, compiled: &mut compiled };
        let draft = importing.jail(spec, findings, jails, allow);
        if !jails.add(draft) {
            let message =
                format!("more than {} sources in all; the jail is not in force", jails::SOURCES_MAX);
            let key = format!("{}.logpath", spec.name);
            findings.push(read.layers.diagnostic(&spec.at, &key, message, "name fewer files"));
        }
    }
    server::memory(dir, findings)
}

/// What was said once and concerns every jail.
#[derive(Debug, Default)]
pub(super) struct Told {
    ports: bool,
    names: bool,
}

/// What the jails of one import share.
pub(super) struct Importing<'a> {
    pub(super) read: &'a read::Jails,
    pub(super) ban_ports: BanPorts,
    pub(super) told: &'a mut Told,
    /// Filters so far: jails that use one in the same way share it.
    pub(super) compiled: &'a mut Vec<(FilterSpec, Arc<Filter>)>,
}

impl Importing<'_> {
    /// The jail as ours, ready to run or not; what there is to say about it goes into `findings`.
    pub(super) fn jail(
        self,
        spec: &JailSpec,
        findings: &mut Findings,
        jails: &Jails,
        allow: &mut Vec<Prefix>,
    ) -> Draft {
        let Self { read, ban_ports, told, compiled } = self;
        Translating { read, spec, ban_ports, findings, told, compiled }.jail(jails, allow)
    }
}

struct Translating<'a> {
    read: &'a read::Jails,
    spec: &'a JailSpec,
    ban_ports: BanPorts,
    findings: &'a mut Findings,
    told: &'a mut Told,
    compiled: &'a mut Vec<(FilterSpec, Arc<Filter>)>,
}

/// Why a jail cannot run, to be shown at this place.
struct Refusal {
    at: Place,
    option: &'static str,
    why: String,
    hint: String,
}

impl Translating<'_> {
    fn jail(&mut self, jails: &Jails, allow: &mut Vec<Prefix>) -> Draft {
        let spec = self.spec;
        let mut draft = Draft {
            name: spec.name.clone(),
            at: spec.at.clone(),
            origin: Origin::Fail2ban,
            state: JailState::Disabled,
            sources: Vec::new(),
            filter_names: Vec::new(),
            filters: Vec::new(),
            rules: Rules::with_bantime(BANTIME),
        };
        if !spec.enabled {
            self.wrong(|_| true);
            return draft;
        }
        let read = if !jails::is_jail_name(&spec.name) {
            let why = format!("{:?} cannot name a jail", spec.name);
            Err(refusal(&spec.at, "", why, "use letters, digits and `-`"))
        } else if let Some(taken) = jails.report(&spec.name) {
            let why = format!("{} already defines this jail", crate::config::place_text(&taken.at));
            Err(refusal(&spec.at, "", why, "blocker's own jail is in force; rename one of the two"))
        } else {
            self.rules(&mut draft.rules, allow);
            self.fill(&mut draft, jails)
        };
        draft.state = match read {
            Ok(()) => JailState::Enabled,
            Err(refusal) => {
                let message = format!("the jail is not in force: {}", refusal.why);
                self.warn(&refusal.at, refusal.option, message, &refusal.hint);
                JailState::Refused(refusal.why)
            }
        };
        draft
    }

    fn fill(&mut self, draft: &mut Draft, jails: &Jails) -> Result<(), Refusal> {
        // All are read before any refuses, so that one run tells all.
        let spec = self.spec;
        self.wrong(|option| option != "filter");
        let lets_in = self.actions(draft, jails);
        if spec.filter.as_ref().is_some_and(|filter| filter.name == RECIDIVE) {
            draft.filter_names.push(RECIDIVE.to_owned());
            draft.sources.push(SourceSpec::Ledger);
            return lets_in;
        }
        let sources = self.sources();
        let filter = self.filter(draft);
        draft.sources = sources?;
        draft.filters.push(filter?);
        lets_in
    }

    /// Says what could not be read of such options.
    fn wrong(&mut self, of: impl Fn(&str) -> bool) {
        let spec = self.spec;
        for wrong in spec.wrong.iter().filter(|wrong| of(&wrong.option)) {
            self.warn(&wrong.at, &wrong.option, wrong.what.clone(), &wrong.hint);
        }
    }

    fn warn(&mut self, at: &Place, option: &str, message: String, hint: &str) {
        let name = &self.spec.name;
        let key = if option.is_empty() { name.clone() } else { format!("{name}.{option}") };
        let diagnostic = self.read.layers.diagnostic(at, &key, message, hint);
        self.findings.push(diagnostic);
    }

    /// An option that is set to something.
    fn option(&self, option: &str) -> Option<&Text> {
        self.spec.options.get(option).filter(|value| !value.text.is_empty())
    }

    /// An option as `read` makes it; what it refuses is a warning, and fail2ban's default is used.
    fn parsed<T>(
        &mut self,
        option: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<(T, Place)> {
        let Text { text, at } = self.option(option)?.clone();
        match read(&text) {
            Ok(value) => Some((value, at)),
            Err(why) => {
                let message = format!("{text:?} is not used, fail2ban's default is: {why}");
                self.warn(&at, option, message, "");
                None
            }
        }
    }

    fn rules(&mut self, rules: &mut Rules, allow: &mut Vec<Prefix>) {
        rules.maxretry.replace(self.parsed("maxretry", |text| match text.parse::<u32>() {
            Ok(count @ 1..=MAXRETRY_MAX) => Ok(count),
            _ => Err(format!("a number from 1 to {MAXRETRY_MAX} is needed")),
        }));
        let matches = self
            .parsed("maxmatches", |text| text.parse::<u32>().map_err(|_| "a number is needed".to_owned()));
        if let Some((_, at)) = matches.as_ref().filter(|(matches, _)| *matches > MATCHES_MAX) {
            self.warn(at, "maxmatches", format!("{MATCHES_MAX} lines are the most that are kept"), "");
        }
        rules.maxmatches.replace(matches.map(|(matches, at)| (matches.min(MATCHES_MAX), at)));
        rules.findtime.replace(self.parsed("findtime", |text| match span::span(text)? {
            Duration::ZERO => Err("a window of no length".to_owned()),
            find_time => Ok(find_time),
        }));
        rules.bantime.replace(self.parsed("bantime", span::ban_time));
        rules.ignoreself.replace(self.parsed("ignoreself", truth));
        self.ignoreip(rules, allow);
        let escalation = self.escalation();
        rules.escalation.replace(escalation);
        let command = self.ignorecommand();
        rules.ignorecommand.replace(command);
    }

    fn ignoreip(&mut self, rules: &mut Rules, allow: &mut Vec<Prefix>) {
        let Some(Text { text, at }) = self.option("ignoreip").cloned() else { return };
        let mut prefixes = Vec::new();
        for word in text.split([' ', ',', '\n', '\t']).filter(|word| !word.is_empty()) {
            match words::ignored(word) {
                Some(prefix) => prefixes.push(prefix),
                None => {
                    let message = format!("{word:?} is not an address; names are not resolved");
                    self.warn(&at, "ignoreip", message, "write the addresses themselves");
                }
            }
        }
        if self.read.layers.own(&self.spec.name, "ignoreip").is_none() {
            allow.extend(&prefixes);
        }
        rules.ignoreip.replace(Some((prefixes, at)));
    }

    fn escalation(&mut self) -> Option<(Option<Arc<Escalation>>, Place)> {
        let (enabled, at) = self.parsed("bantime.increment", truth)?;
        if !enabled {
            return Some((None, at));
        }
        let mut escalation = Escalation::default();
        let positive =
            |factor: f64| if factor > 0.0 { Ok(factor) } else { Err("it must be above 0".to_owned()) };
        let factor = |text: &str| Formula::constant(text).map_err(|e| e.to_string()).and_then(positive);
        if let Some((factor, _)) = self.parsed("bantime.factor", factor) {
            escalation.factor = factor;
        }
        let formula = |text: &str| Formula::parse(text).map_err(|error| error.to_string());
        if let Some((formula, _)) = self.parsed("bantime.formula", formula) {
            escalation.formula = formula;
        }
        if let Some((multipliers, _)) = self.parsed("bantime.multipliers", words::multipliers) {
            escalation.multipliers = multipliers;
        }
        if let Some((most, _)) = self.parsed("bantime.maxtime", span::span) {
            escalation.maxtime = (!most.is_zero()).then_some(most);
        }
        if let Some((random, _)) = self.parsed("bantime.rndtime", span::span) {
            escalation.rndtime = random;
        }
        if let Some((overall, _)) = self.parsed("bantime.overalljails", truth) {
            escalation.overalljails = overall;
        }
        Some((Some(Arc::new(escalation)), at))
    }

    fn ignorecommand(&mut self) -> Option<(Option<Arc<IgnoreCommand>>, Place)> {
        let Text { text, at } = self.option("ignorecommand")?.clone();
        let value = |tag: &str| match tag {
            "ip" | "fid" | "ip-host" => Some(Value::Variable("BLOCKER_IP")),
            "family" => Some(Value::Variable("BLOCKER_FAMILY")),
            "ip-rev" => Some(Value::Unknown),
            tag if tag.starts_with("F-") => Some(Value::Unknown),
            _ => None,
        };
        let text = match shell::with_variables(&text, &value) {
            Ok(text) => text,
            Err(why) => {
                let message = format!("the command is not asked: {why}");
                self.warn(&at, "ignorecommand", message, "write one that needs the address alone, <ip>");
                return None;
            }
        };
        let cache = self.parsed("ignorecache", words::ignore_cache).and_then(|(cache, _)| cache);
        let command = IgnoreCommand { command: CommandLine::Shell(text), timeout: IGNORE_TIMEOUT, cache };
        Some((Some(Arc::new(command)), at))
    }

    fn sources(&mut self) -> Result<Vec<SourceSpec>, Refusal> {
        if self.spec.journal {
            return self.journal().map(|journal| vec![journal]);
        }
        let backend = &self.spec.backend;
        if !["auto", "polling", "pyinotify", "gamin"].contains(&backend.text.as_str()) {
            let message = format!("there is no backend {:?}; the log files are read", backend.text);
            self.warn(&backend.at, "backend", message, "write auto, polling or systemd");
        }
        let mut paths = Vec::new();
        for log in &self.spec.logpath {
            self.begins(log);
            let why = if log.path.is_absolute() {
                jails::unusable_log(&log.path)
            } else {
                Some("this is no absolute path")
            };
            match why {
                Some(why) => {
                    let message = format!("{:?} is not read: {why}", log.path.display().to_string());
                    self.warn(&log.at, "logpath", message, "name the files, one a line");
                }
                None => paths.push(log.path.clone()),
            }
        }
        if !paths.is_empty() {
            return Ok(paths.into_iter().map(SourceSpec::log).collect());
        }
        let hint = "name the file: logpath = /var/log/..., or have the journal read: backend = systemd";
        Err(match self.spec.logpath.first() {
            Some(log) => refusal(&log.at, "logpath", "it has no log file that can be read".to_owned(), hint),
            None => refusal(&self.spec.at, "logpath", "it names no log file".to_owned(), hint),
        })
    }

    /// Where fail2ban would begin to read the log.
    fn begins(&mut self, log: &LogPath) {
        let path = log.path.display().to_string();
        let (message, hint) = match log.from.as_str() {
            "head" => return,
            "tail" => (format!("{path:?} is read from findtime ago on the first time, not from its end"), ""),
            from => (
                format!("{from:?} is taken for where in {path:?} to begin: a path has no space in it"),
                "write `?` for the space",
            ),
        };
        self.warn(&log.at, "logpath", message, hint);
    }

    /// The entries of the journal that the jail reads, by its own `journalmatch` or its filter's.
    fn journal(&mut self) -> Result<SourceSpec, Refusal> {
        let backend = &self.spec.backend;
        let call = call::parse(&backend.text)
            .map_err(|why| refusal(&backend.at, "backend", why, "write backend = systemd"))?;
        let mut namespace = None;
        for (option, value) in call.options {
            if option == "namespace" && jails::is_namespace(&value) {
                namespace = Some(value);
            } else {
                let message = format!("{option}={value:?} is not used: the journals of this host are read");
                self.warn(&backend.at, "backend", message, "");
            }
        }
        let texts: &[Text] = self.spec.filter.as_ref().map_or(&[], |filter| &filter.journalmatch);
        let lines: Vec<&str> = texts.iter().map(|line| line.text.as_str()).collect();
        let at = texts.first().map_or(&backend.at, |line| &line.at);
        let matches = JournalMatches::parse(&lines).map_err(|why| {
            refusal(at, "journalmatch", why, "for example journalmatch = _SYSTEMD_UNIT=ssh.service")
        })?;
        if !backend.text.starts_with("systemd") {
            let message = format!("none of its logs is there, so the journal is read: {matches}");
            let hint =
                "write backend = polling if the logs will come; they are looked for again at each reload";
            let at = self.spec.logpath.first().map_or(&self.spec.at, |log| &log.at);
            self.warn(at, "logpath", message, hint);
        }
        Ok(SourceSpec::Journal { matches, namespace })
    }

    fn filter(&mut self, draft: &mut Draft) -> Result<Arc<Filter>, Refusal> {
        let Some(filter) = &self.spec.filter else {
            let wrong = self.spec.wrong.iter().find(|wrong| wrong.option == "filter");
            return Err(match wrong {
                Some(wrong) => refusal(&wrong.at, "filter", wrong.what.clone(), &wrong.hint),
                None => {
                    refusal(&self.spec.at, "filter", "it names no filter".to_owned(), "add filter = NAME")
                }
            });
        };
        draft.filter_names.push(filter.name.clone());
        let at = self.spec.options.get("filter").map_or(&self.spec.at, |value| &value.at).clone();
        self.usedns(filter);
        let spec = filter_spec(filter, &self.spec.options, self.findings);
        if let Some((_, known)) = self.compiled.iter().find(|(known, _)| *known == spec) {
            return Ok(Arc::clone(known));
        }
        if spec.failregex.is_empty() {
            let why = format!("the filter {:?} has no pattern that can be used", filter.name);
            return Err(refusal(&at, "filter", why, "give it at least one failregex with <HOST> in it"));
        }
        let name = filter.name.clone();
        let docs = || filter.layers.docs.iter().chain(&self.read.layers.docs);
        let doc_of = |at: &Place| docs().find(|doc| doc.path == at.path).map(AsRef::as_ref);
        match Filter::compile(spec.clone()) {
            Ok(compiled) => {
                let doc = spec.asks_for_network().and_then(|pattern| doc_of(&pattern.at));
                self.findings.extend(narrowed(&spec, "failregex", doc));
                let compiled = Arc::new(compiled);
                self.compiled.push((spec, Arc::clone(&compiled)));
                Ok(compiled)
            }
            Err(error) => {
                let refused = refused_filter(&error, "failregex", doc_of(&error.at), Severity::Warning);
                self.findings.push(refused);
                let why = format!("the filter {name:?} has a pattern that cannot be used");
                Err(refusal(&at, "filter", why, "see the warning about it"))
            }
        }
    }

    fn usedns(&mut self, filter: &FilterUse) {
        if let Some(usedns) = &filter.usedns
            && !is_no(&usedns.text)
            && !std::mem::replace(&mut self.told.names, true)
        {
            let message = "names in a log are never resolved; only addresses are banned".to_owned();
            self.warn(&usedns.at, "usedns", message, "have the daemon log addresses");
        }
    }

    /// What to run, and for which ports; refuses a jail that lets in instead of keeping out.
    fn actions(&mut self, draft: &mut Draft, jails: &Jails) -> Result<(), Refusal> {
        let (mut commands, mut ports, mut outcome) = (Vec::new(), None, Ok(()));
        for action in &self.spec.actions {
            match action::translate(action, &self.spec.name) {
                Translated::Dropping(about) => {
                    ports = Some(match ports {
                        None => about,
                        Some(before) => action::both(before, about),
                    });
                }
                Translated::Command(command, left) => {
                    if !left.is_empty() {
                        let message =
                            format!("the action {:?} runs without its {}", action.name, left.join(", "));
                        let hint = "actionstart, actionstop, actionban and actionunban are";
                        self.warn(&action.at, "action", message, hint);
                    }
                    commands.push(command);
                }
                Translated::Refused(why, hint) => self.warn(&action.at, "action", why, hint),
                Translated::LetsIn(target) => {
                    let why = format!(
                        "its action lets an address in (blocktype={target}); a ban here keeps it out"
                    );
                    let hint = "write an [action] of blocker's with a command that opens the port";
                    outcome = Err(refusal(&action.at, "action", why, hint));
                }
            }
        }
        if ports.is_none()
            && outcome.is_ok()
            && let Some(first) = self.spec.actions.first()
        {
            let message = "none of its actions drops packets, but a ban here always does".to_owned();
            let hint = "set `enabled = false` if the jail is only to tell of attacks";
            self.warn(&first.at, "action", message, hint);
        }
        self.ports(draft, ports.unwrap_or(Ports::Told(Scope::ALL)), jails);
        if let Some(action) = self.spec.actions.first() {
            draft.rules.actions.replace(Some((commands, action.at.clone())));
        }
        outcome
    }
}

impl Translating<'_> {
    /// What bans are on: what the actions name, if that is wanted and can be had, else all ports.
    fn ports(&mut self, draft: &mut Draft, ports: Ports, jails: &Jails) {
        let Some(at) = self.spec.actions.first().map(|action| action.at.clone()) else { return };
        let scope = match (self.ban_ports, ports) {
            (BanPorts::All, Ports::Untold(_)) => return,
            (BanPorts::Jail, Ports::Untold(why)) => {
                let message = format!("bans of this jail are on all ports: {why}");
                return self.warn(&at, "port", message, "write ports as numbers");
            }
            (_, Ports::Told(scope)) => scope,
        };
        draft.rules.ports = scope.clone();
        if scope.is_all() {
            return;
        }
        if self.ban_ports == BanPorts::All {
            if !std::mem::replace(&mut self.told.ports, true) {
                let message = "a ban is on all ports, here and in every other jail".to_owned();
                let hint = "`ban_ports = \"jail\"` in [import] keeps to the ports of each jail; `allowlist` is for hosts that must never be cut off";
                self.warn(&at, "action", message, hint);
            }
        } else if jails.has_room_for(&scope) {
            draft.rules.scope.replace(Some((scope, at)));
        } else {
            let message = format!(
                "bans of this jail are on all ports: other jails have {SCOPES_MAX} different lists of ports already"
            );
            self.warn(&at, "port", message, "give several jails the same list");
        }
    }
}

fn refusal(at: &Place, option: &'static str, why: String, hint: &str) -> Refusal {
    Refusal { at: at.clone(), option, why, hint: hint.to_owned() }
}
