//! Collects jails from whatever file format they were written in into one policy.
//!
//! Knows no syntax: the TOML reader and the fail2ban reader hand over values that were checked, each with the place
//! it came from, and what could not be used with the reason.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use crate::{
    engine::SourceId,
    filter::{Filter, Place},
    net::{Prefix, SCOPES_MAX, Scope},
    policy::{ActionSpec, Escalation, IgnoreCommand, Jail, SourceSpec},
    time::{BanTime, span_text},
};

/// Sources at most, over all jails; each costs an open file.
pub const SOURCES_MAX: usize = 4_096;

/// Bytes of a jail's name at most.
pub const JAIL_NAME_BYTES_MAX: usize = 64;

/// What becomes of one jail in the configuration, for `blocker check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailReport {
    /// Its name.
    pub name: String,
    /// Where its section begins.
    pub at: Place,
    /// In which language it was written.
    pub origin: Origin,
    /// Whether it runs.
    pub state: JailState,
    /// What it reads, as configured.
    pub sources: Vec<SourceSpec>,
    /// Its filters by name.
    pub filters: Vec<String>,
    /// Its settings, each with where the value was written.
    pub settings: Vec<Setting>,
}

/// In which language a jail was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `[jail.NAME]` in blocker's TOML.
    Toml,
    /// A section of fail2ban's jail files.
    Fail2ban,
}

/// Whether a jail runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JailState {
    /// It is part of the policy.
    Enabled,
    /// `enabled = false`.
    Disabled,
    /// It is enabled and cannot run; the reason is also among the warnings.
    Refused(String),
}

/// One value of a jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, as in `maxretry`.
    pub key: &'static str,
    /// The value, as people write it.
    pub value: String,
    /// Where it was written; `None` for the default of the jail's language.
    pub at: Option<Place>,
}

/// A value with where it was written; `None` for a default.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) at: Option<Place>,
}

impl<T> Placed<T> {
    pub(super) fn default(value: T) -> Self {
        Self { value, at: None }
    }

    pub(super) fn replace(&mut self, written: Option<(T, Place)>) {
        if let Some((value, at)) = written {
            *self = Self { value, at: Some(at) };
        }
    }
}

/// When to ban, as every jail has it.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) maxretry: Placed<u32>,
    pub(super) findtime: Placed<Duration>,
    pub(super) bantime: Placed<BanTime>,
    pub(super) ignoreip: Placed<Vec<Prefix>>,
    pub(super) ipv6_prefix: Placed<u8>,
    pub(super) escalation: Placed<Option<Arc<Escalation>>>,
    pub(super) ignorecommand: Placed<Option<Arc<IgnoreCommand>>>,
    pub(super) ignoreself: Placed<bool>,
    pub(super) observe: Placed<bool>,
    pub(super) actions: Placed<Vec<Arc<ActionSpec>>>,
    pub(super) maxmatches: Placed<u32>,
    pub(super) scope: Placed<Scope>,
    /// What fail2ban would drop.
    pub(super) ports: Scope,
}

impl Rules {
    /// Five failures in ten minutes, as fail2ban has it. `bantime` differs: an hour here, ten minutes there.
    pub(super) fn with_bantime(bantime: Duration) -> Self {
        Self {
            maxretry: Placed::default(5),
            findtime: Placed::default(Duration::from_secs(600)),
            bantime: Placed::default(BanTime::For(bantime)),
            ignoreip: Placed::default(Vec::new()),
            ipv6_prefix: Placed::default(64),
            escalation: Placed::default(None),
            ignorecommand: Placed::default(None),
            ignoreself: Placed::default(true),
            observe: Placed::default(false),
            actions: Placed::default(Vec::new()),
            maxmatches: Placed::default(5),
            scope: Placed::default(Scope::ALL),
            ports: Scope::ALL,
        }
    }

    fn settings(&self) -> Vec<Setting> {
        let ignored: Vec<String> = self.ignoreip.value.iter().map(ToString::to_string).collect();
        let actions: Vec<&str> = self.actions.value.iter().map(|action| &*action.name).collect();
        let escalation = self.escalation.value.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string);
        let ignorecommand =
            self.ignorecommand.value.as_ref().map_or_else(String::new, |asked| asked.command.to_string());
        let setting = |key, value, at: &Option<Place>| Setting { key, value, at: at.clone() };
        let there =
            (!self.ports.is_all()).then(|| setting("ports", self.ports.to_string(), &self.actions.at));
        let mut settings = vec![
            setting("maxretry", self.maxretry.value.to_string(), &self.maxretry.at),
            setting("findtime", span_text(self.findtime.value), &self.findtime.at),
            setting("bantime", self.bantime.value.to_string(), &self.bantime.at),
            setting("ban_ports", self.scope.value.to_string(), &self.scope.at),
            setting("ignoreip", ignored.join(" "), &self.ignoreip.at),
            setting("ipv6_prefix", self.ipv6_prefix.value.to_string(), &self.ipv6_prefix.at),
            setting("ignoreself", self.ignoreself.value.to_string(), &self.ignoreself.at),
            setting("observe", self.observe.value.to_string(), &self.observe.at),
            setting("maxmatches", self.maxmatches.value.to_string(), &self.maxmatches.at),
            setting("actions", actions.join(" "), &self.actions.at),
            setting("escalation", escalation, &self.escalation.at),
            setting("ignorecommand", ignorecommand, &self.ignorecommand.at),
        ];
        // As fail2ban has it: shown, and no more.
        settings.extend(there);
        settings
    }
}

/// A jail that was read, ready to run or not.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) at: Place,
    pub(super) origin: Origin,
    pub(super) state: JailState,
    pub(super) sources: Vec<SourceSpec>,
    pub(super) filter_names: Vec<String>,
    pub(super) filters: Vec<Arc<Filter>>,
    pub(super) rules: Rules,
}

/// All jails so far; sources that several jails read are there once.
#[derive(Debug, Default)]
pub(super) struct Jails {
    pub(super) jails: Vec<Jail>,
    pub(super) sources: Vec<SourceSpec>,
    pub(super) reports: Vec<JailReport>,
}

impl Jails {
    pub(super) fn report(&self, name: &str) -> Option<&JailReport> {
        self.reports.iter().find(|report| report.name == name)
    }

    /// Adds a jail; `false` when its sources would exceed [`SOURCES_MAX`], and then it is not added.
    #[must_use]
    pub(super) fn add(&mut self, draft: Draft) -> bool {
        if draft.state == JailState::Enabled {
            let mut sources = Vec::new();
            for spec in &draft.sources {
                let Some(id) = self.source(spec) else { return false };
                if !sources.contains(&id) {
                    sources.push(id);
                }
            }
            self.jails.push(Jail {
                name: draft.name.as_str().into(),
                sources,
                filters: draft.filters,
                maxretry: draft.rules.maxretry.value,
                findtime: draft.rules.findtime.value,
                bantime: draft.rules.bantime.value,
                ignoreip: draft.rules.ignoreip.value.clone(),
                ipv6_prefix: draft.rules.ipv6_prefix.value,
                escalation: draft.rules.escalation.value.clone(),
                ignore_command: draft.rules.ignorecommand.value.clone(),
                ignoreself: draft.rules.ignoreself.value,
                observe: draft.rules.observe.value,
                actions: draft.rules.actions.value.clone(),
                maxmatches: draft.rules.maxmatches.value,
                scope: draft.rules.scope.value.clone(),
                ports: draft.rules.ports.clone(),
            });
        }
        self.reports.push(JailReport {
            settings: draft.rules.settings(),
            name: draft.name,
            at: draft.at,
            origin: draft.origin,
            state: draft.state,
            sources: draft.sources,
            filters: draft.filter_names,
        });
        true
    }

    /// Whether bans of one more jail may have this scope, [`SCOPES_MAX`] different ones being the most.
    pub(super) fn has_room_for(&self, scope: &Scope) -> bool {
        let scopes: BTreeSet<&Scope> = self.jails.iter().map(|jail| &jail.scope).collect();
        scope.is_all()
            || scopes.contains(scope)
            || scopes.iter().filter(|scope| !scope.is_all()).count() < SCOPES_MAX
    }

    fn source(&mut self, spec: &SourceSpec) -> Option<SourceId> {
        let index = match self.sources.iter().position(|known| known == spec) {
            Some(index) => index,
            None if self.sources.len() < SOURCES_MAX => {
                self.sources.push(spec.clone());
                self.sources.len() - 1
            }
            None => return None,
        };
        u16::try_from(index).ok().map(SourceId)
    }
}

/// Whether this can name a jail: it is printed, stored and sent, so it is kept to plain characters.
pub(super) fn is_jail_name(name: &str) -> bool {
    (1..=JAIL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@'))
}

/// Whether this can name a journal namespace (systemd.exec(5), `LogNamespace=`): it becomes part of a path.
pub(super) fn is_namespace(name: &str) -> bool {
    (1..=JAIL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Why this path cannot be a log.
pub(super) fn unusable_log(path: &Path) -> Option<&'static str> {
    path.file_name().is_none().then_some("this names no file")
}
