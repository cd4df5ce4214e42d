//! fail2ban's jails: the sections of `jail.conf`, `jail.local` and their directories.
//!
//! Every section but `[DEFAULT]` is a jail, enabled or not. An enabled one becomes a jail of ours, with fail2ban's
//! defaults (5 failures in 10 minutes ban for 10 minutes) where the files say nothing. `ignoreip` in `[DEFAULT]` joins
//! the allowlist. The kernel drops a banned host on every port, whatever the action; other actions, and whatever
//! else has no counterpart, are named in warnings of the jails that ask for them.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    filter,
    ini::{RawValue, ValueLine},
    interpolate::{self, Tags},
    layers::{self, Layers},
};
use crate::{
    config::{
        diagnostic::{Findings, Severity},
        filters::refused_filter,
        jails::{self, Draft, JailState, Jails, Origin, Rules},
    },
    filter::{Filter, Place},
    net::{Prefix, parse_address},
    time::{self, BanTime},
};

/// fail2ban's `bantime` where no file sets one.
const BANTIME: Duration = Duration::from_secs(600);

/// Actions that drop packets on this host; each is what our enforcers do. By the beginning of the name.
const DROPPING: [&str; 12] = [
    "iptables",
    "nftables",
    "ufw",
    "firewallcmd",
    "ipset",
    "shorewall",
    "route",
    "pf",
    "ipfw",
    "bsd-ipfw",
    "npf",
    "apf",
];

/// Options that ask for something blocker does not do, and what to say about it.
const UNSUPPORTED: [(&str, &str, &str); 6] = [
    (
        "ignorecommand",
        "no command is run to decide about an address; failures it would have ignored are counted",
        "put such addresses on `ignoreip` or blocker's allowlist",
    ),
    (
        "bantime.increment",
        "bans do not grow with each offence yet; every ban lasts `bantime`",
        "set a longer bantime for this jail",
    ),
    (
        "usedns",
        "names in a log are never resolved; only addresses are banned",
        "have the daemon log addresses",
    ),
    ("logencoding", "lines are read as UTF-8, other bytes as unknown characters", ""),
    ("ignoreself", "blocker never bans this host's own addresses, whatever is set here", ""),
    ("journalmatch", "the journal is not read", "name a log file: logpath = /var/log/..."),
];

/// Reads all jails below `dir` into `jails`; addresses that no jail may ban go into `allow`.
pub(crate) fn import(dir: &Path, findings: &mut Findings, jails: &mut Jails, allow: &mut Vec<Prefix>) {
    let layers = layers::read(&dir.join("jail"), findings);
    if layers.docs.is_empty() {
        let message = "there is neither a jail.conf nor a jail.local here; nothing is imported".to_owned();
        let hint = "name the directory that holds them, commonly /etc/fail2ban";
        findings.push(crate::config::Diagnostic::about_file(Severity::Warning, dir, message, hint));
        return;
    }
    let mut ports_told = false;
    for (name, at) in &layers.order {
        let mut reading =
            Reading { dir, layers: &layers, findings, name, key: name.clone(), ports_told: &mut ports_told };
        let draft = reading.jail(at, jails, allow);
        if !jails.add(draft) {
            let message =
                format!("more than {} sources in all; the jail is not in force", jails::SOURCES_MAX);
            reading.warn(at, "logpath", message, "name fewer files");
        }
    }
}

struct Reading<'a> {
    dir: &'a Path,
    layers: &'a Layers,
    findings: &'a mut Findings,
    /// The section.
    name: &'a str,
    key: String,
    /// Whether a warning has said that ports do not matter; one is enough.
    ports_told: &'a mut bool,
}

/// Why a jail cannot run, to be shown at this place.
struct Refusal {
    at: Place,
    option: &'static str,
    why: String,
    hint: &'static str,
}

impl Reading<'_> {
    fn jail(&mut self, at: &Place, jails: &Jails, allow: &mut Vec<Prefix>) -> Draft {
        let mut draft = Draft {
            name: self.name.to_owned(),
            at: at.clone(),
            origin: Origin::Fail2ban,
            state: JailState::Disabled,
            sources: Vec::new(),
            filter_names: Vec::new(),
            filters: Vec::new(),
            rules: Rules::with_bantime(BANTIME),
        };
        let enabled = self.one("enabled").is_some_and(|line| is_true(&line.text));
        if !enabled {
            return draft;
        }
        let read = if !jails::is_jail_name(self.name) {
            Err(self.refusal(
                at,
                "",
                format!("{:?} cannot name a jail", self.name),
                "use letters, digits and `-`",
            ))
        } else if let Some(taken) = jails.report(self.name) {
            let why = format!("{} already defines this jail", crate::config::place_text(&taken.at));
            Err(self.refusal(at, "", why, "blocker's own jail is in force; rename one of the two"))
        } else {
            self.rules(&mut draft.rules, allow);
            self.fill(at, &mut draft)
        };
        draft.state = match read {
            Ok(()) => JailState::Enabled,
            Err(refusal) => {
                let message = format!("the jail is not in force: {}", refusal.why);
                self.warn(&refusal.at, refusal.option, message, refusal.hint);
                JailState::Refused(refusal.why)
            }
        };
        draft
    }

    fn fill(&mut self, at: &Place, draft: &mut Draft) -> Result<(), Refusal> {
        // Both are read before either refuses, so that one run tells all.
        let sources = self.sources(at);
        let filter = self.filter(at, draft);
        self.actions();
        self.unsupported();
        draft.sources = jails::file_sources(sources?, None);
        draft.filters.push(filter?);
        Ok(())
    }

    fn refusal(&self, at: &Place, option: &'static str, why: String, hint: &'static str) -> Refusal {
        Refusal { at: at.clone(), option, why, hint }
    }

    fn warn(&mut self, at: &Place, option: &str, message: String, hint: &str) {
        let key = if option.is_empty() { self.key.clone() } else { format!("{}.{option}", self.key) };
        let diagnostic = self.layers.diagnostic(at, &key, message, hint);
        self.findings.push(diagnostic);
    }

    /// The lines of an option, expanded, empty ones left out; what does not expand is a warning.
    fn lines(&mut self, option: &str) -> RawValue {
        match interpolate::value(self.layers, self.name, option) {
            None => RawValue::new(),
            Some(Ok(mut lines)) => {
                lines.retain(|line| !line.text.is_empty());
                lines
            }
            Some(Err(why)) => {
                let at = self.layers.get(self.name, option).and_then(|lines| lines.first());
                if let Some(at) = at.map(|line| line.at.clone()) {
                    self.warn(&at, option, format!("this value is not used: {why}"), "");
                }
                RawValue::new()
            }
        }
    }

    fn one(&mut self, option: &str) -> Option<ValueLine> {
        self.lines(option).into_iter().next()
    }

    fn rules(&mut self, rules: &mut Rules, allow: &mut Vec<Prefix>) {
        if let Some(line) = self.one("maxretry") {
            match line.text.parse::<u32>() {
                Ok(count @ 1..=10_000) => rules.maxretry.replace(Some((count, line.at))),
                _ => self.not_used(&line, "maxretry", "a number from 1 to 10000 is needed"),
            }
        }
        if let Some(line) = self.one("findtime") {
            match time::parse_span(&line.text) {
                Ok(span) if !span.is_zero() => rules.findtime.replace(Some((span, line.at))),
                Ok(_) => self.not_used(&line, "findtime", "a window of no length"),
                Err(why) => self.not_used(&line, "findtime", &why),
            }
        }
        if let Some(line) = self.one("bantime") {
            match time::parse_ban_time(&line.text) {
                Ok(bantime) => rules.bantime.replace(Some((bantime, line.at))),
                Err(why) => self.not_used(&line, "bantime", &why),
            }
        }
        if let BanTime::For(span) = rules.bantime.value
            && span < Duration::from_secs(1)
        {
            rules.bantime.value = BanTime::For(BANTIME);
        }
        let own = self.layers.is_own(self.name, "ignoreip");
        let lines = self.lines("ignoreip");
        let mut prefixes = Vec::new();
        for line in &lines {
            for word in line.text.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
                match ignored(word) {
                    Some(prefix) => prefixes.push(prefix),
                    None => {
                        let message = format!("{word:?} is not an address; names are not resolved");
                        self.warn(&line.at, "ignoreip", message, "write the addresses themselves");
                    }
                }
            }
        }
        if !own {
            allow.extend(&prefixes);
        }
        rules.ignoreip.replace(lines.into_iter().next().map(|line| (prefixes, line.at)));
    }

    fn not_used(&mut self, line: &ValueLine, option: &str, why: &str) {
        self.warn(&line.at, option, format!("{:?} is not used, fail2ban's default is: {why}", line.text), "");
    }

    fn sources(&mut self, at: &Place) -> Result<Vec<PathBuf>, Refusal> {
        let mut paths: Vec<PathBuf> = Vec::new();
        let lines = self.lines("logpath");
        for line in &lines {
            let text = line.text.as_str();
            let text = text.strip_suffix(" tail").or(text.strip_suffix(" head")).unwrap_or(text).trim_end();
            let path = PathBuf::from(text);
            let why = if !path.is_absolute() {
                Some("this is no absolute path")
            } else if path.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'[')) {
                Some("of patterns only `*` and `?` are understood")
            } else {
                jails::unusable_log(&path)
            };
            match why {
                Some(why) => {
                    let message = format!("{text:?} is not read: {why}");
                    self.warn(&line.at, "logpath", message, "name the files, one a line");
                }
                None => paths.push(path),
            }
        }
        let journal = self.one("backend").filter(|line| line.text.starts_with("systemd"));
        if let Some(line) = &journal
            && !paths.is_empty()
        {
            let message = "the journal is not read; the files of `logpath` are".to_owned();
            self.warn(&line.at, "backend", message, "see that the daemon or rsyslog writes them");
        }
        if !paths.is_empty() {
            return Ok(paths);
        }
        let hint = "name a log file in jail.local: logpath = /var/log/...";
        Err(match (journal, lines.first()) {
            (Some(line), _) => {
                let why = "it reads the journal, which blocker does not".to_owned();
                self.refusal(&line.at, "backend", why, hint)
            }
            (None, Some(line)) => {
                self.refusal(&line.at, "logpath", "it has no log file that can be read".to_owned(), hint)
            }
            (None, None) => self.refusal(at, "logpath", "it names no log file".to_owned(), hint),
        })
    }

    fn filter(&mut self, at: &Place, draft: &mut Draft) -> Result<Arc<Filter>, Refusal> {
        let Some(line) = self.one("filter") else {
            let hint = "add filter = NAME, a file in filter.d";
            return Err(self.refusal(at, "filter", "it names no filter".to_owned(), hint));
        };
        let refuse =
            |why: String, hint: &'static str| Refusal { at: line.at.clone(), option: "filter", why, hint };
        let Some((name, given)) = call(&line.text) else {
            return Err(refuse(
                format!("{:?} does not name a filter", line.text),
                "write NAME or NAME[option=value]",
            ));
        };
        draft.filter_names.push(name.to_owned());
        let (spec, filter_layers) = filter::read(self.dir, name, &given, self.findings)
            .map_err(|why| refuse(why, "copy it from the fail2ban package, or name another filter"))?;
        if spec.failregex.is_empty() {
            return Err(refuse(format!("the filter {name:?} has no pattern that can be used"), ""));
        }
        Filter::compile(spec).map(Arc::new).map_err(|error| {
            let doc = filter_layers.docs.iter().find(|doc| doc.path == error.at.path);
            self.findings.push(refused_filter(&error, "failregex", doc, Severity::Warning));
            refuse(
                format!("the filter {name:?} has a pattern that cannot be used"),
                "see the warning about it",
            )
        })
    }

    fn actions(&mut self) {
        for line in self.lines("action") {
            let name = call(&line.text).map_or(line.text.as_str(), |(name, _)| name);
            // Lines in which an action's options go on are no names.
            let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if is_name && !DROPPING.iter().any(|known| name.starts_with(known)) {
                let message =
                    format!("the action {name:?} is not run; bans are made in the kernel, on all ports");
                self.warn(
                    &line.at,
                    "action",
                    message,
                    "keep fail2ban for it, or follow `blocker bans --json`",
                );
            }
        }
    }

    fn unsupported(&mut self) {
        for (option, message, hint) in UNSUPPORTED {
            let Some(line) = self.one(option) else { continue };
            let asks = match option {
                "bantime.increment" => is_true(&line.text),
                "usedns" => is_true(&line.text),
                "logencoding" => !["auto", "utf-8", "utf8", "ascii"]
                    .iter()
                    .any(|known| line.text.eq_ignore_ascii_case(known)),
                "ignoreself" => !is_true(&line.text),
                _ => true,
            };
            if asks {
                self.warn(&line.at, option, message.to_owned(), hint);
            }
        }
        if !*self.ports_told
            && let Some(line) =
                self.one("port").filter(|line| !matches!(line.text.as_str(), "0:65535" | "all"))
        {
            *self.ports_told = true;
            let message = "a ban is on all ports, here and in every other jail".to_owned();
            self.warn(&line.at, "port", message, "`allowlist` is for hosts that must never be cut off");
        }
        for option in ["failregex", "ignoreregex", "datepattern", "prefregex"] {
            if self.layers.is_own(self.name, option)
                && let Some(line) = self.one(option)
            {
                let message = "a pattern in a jail is not used".to_owned();
                self.warn(&line.at, option, message, "put it into a filter file in filter.d");
            }
        }
    }
}

fn is_true(text: &str) -> bool {
    ["true", "yes", "on", "1"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// An address, a prefix or an address with a netmask; host bits are dropped, as in the customary `127.0.0.1/8`.
fn ignored(word: &str) -> Option<Prefix> {
    let Some((address, length)) = word.split_once('/') else { return parse_address(word).map(Prefix::host) };
    let address: IpAddr = address.parse().ok()?;
    let length = match length.parse::<u8>() {
        Ok(length) => length,
        Err(_) => {
            let mask = length.parse::<Ipv4Addr>().ok()?.to_bits();
            let length = mask.leading_ones();
            (mask.checked_shl(length).unwrap_or(0) == 0 && address.is_ipv4())
                .then_some(length)?
                .try_into()
                .ok()?
        }
    };
    Prefix::new(address, length)
}

/// `NAME` or `NAME[a=1, b="x, y"]`: the name and the options given to it.
fn call(text: &str) -> Option<(&str, Tags)> {
    let text = text.trim();
    let Some((name, rest)) = text.split_once('[') else {
        return (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| (text, Tags::new()));
    };
    let mut rest = rest.trim_end().strip_suffix(']')?;
    let mut options = Tags::new();
    while !rest.trim().is_empty() {
        let (option, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, after) = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let (value, after) = after[1..].split_once(quote)?;
                (value, after.trim_start())
            }
            _ => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim(), &after[end..])
            }
        };
        options.insert(option.trim().to_lowercase(), value.to_owned());
        rest = after.strip_prefix(',').or_else(|| after.is_empty().then_some(""))?;
    }
    Some((name.trim(), options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_named_with_its_options() {
        for (text, expected) in [
            ("sshd", Some("sshd")),
            ("sshd[]", Some("sshd")),
            ("sshd[mode=aggressive]", Some("sshd mode=aggressive")),
            ("a[x=1, y=\"b, c]\", z='d']", Some("a x=1 y=b, c] z=d")),
            ("", None),
            ("a b", None),
            ("a[x", None),
            ("a[x]", None),
            ("a[x=\"1]", None),
        ] {
            let found = call(text).map(|(name, options)| {
                let options = options.iter().map(|(option, value)| format!(" {option}={value}"));
                name.to_owned() + &options.collect::<String>()
            });
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_ignored_address_may_have_host_bits_or_a_netmask() {
        for (word, prefix) in [
            ("127.0.0.1/8", Some("127.0.0.0/8")),
            ("10.1.2.3/255.255.0.0", Some("10.1.0.0/16")),
            ("10.1.2.3/255.0.255.0", None),
            ("::1", Some("::1")),
            ("example.com", None),
            ("1.2.3.4/33", None),
        ] {
            assert_eq!(ignored(word).map(|p| p.to_string()).as_deref(), prefix, "{word}");
        }
    }
}
