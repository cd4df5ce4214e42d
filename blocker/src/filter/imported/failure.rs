//! What an imported filter found in a line: who, and everything the pattern's groups captured.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::time::Timestamp;

/// Names that one connection's failures may collect; only whether there are several decides anything.
const USERS_MAX: usize = 16;
/// Bytes of one captured text that are kept.
const TEXT_BYTES_MAX: usize = 4096;

/// Groups that identify who failed, in the order in which one is preferred over another.
pub(super) const IDENTITIES: [&str; 3] = ["ip4", "ip6", "dns"];

/// What a group captured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Text.
    Text(String),
    /// The parts of a `<F-TUPLE_*>`, those that captured nothing as `None`.
    Tuple(Vec<Option<String>>),
}

impl Value {
    /// Whether it counts as said: fail2ban takes an empty text for no text.
    pub(super) fn is_set(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Tuple(_) => true,
        }
    }

    pub(super) fn bounded(text: &str) -> Self {
        Self::Text(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned())
    }
}

/// A match of an imported filter, alone or merged with the earlier ones of the same connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The place of the pattern among the filter's `failregex`.
    pub pattern: usize,
    /// When: the line's own date, or the last one before it if that is less than a minute ago.
    pub date: Option<Timestamp>,
    /// Whom fail2ban would blame: an address, or whatever else identifies.
    pub id: Option<Value>,
    /// Whom it is blamed on here; `None` when the id is no whole address.
    pub address: Option<IpAddr>,
    /// All groups that captured something, by fail2ban's name for them.
    pub groups: BTreeMap<Arc<str>, Value>,
    /// Users that failed in the same connection.
    pub users: BTreeSet<Value>,
    /// Lines that belong to the failure.
    pub attempts: u32,
}

/// What is known of a failure or of a connection that may become one.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) groups: BTreeMap<Arc<str>, Value>,
    /// The identities among the groups that are whole addresses.
    pub(super) addresses: BTreeMap<Arc<str>, IpAddr>,
    pub(super) users: BTreeSet<Value>,
    /// A failure was seen before it was known whose.
    pub(super) pending: bool,
    /// Lines that count as attempts, and lines that will if a failure follows.
    pub(super) matches: u32,
    pub(super) nofail_matches: u32,
}

impl Facts {
    /// Whether the group captured any text.
    pub(super) fn says(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(Value::is_set)
    }

    pub(super) fn text(&self, group: &str) -> Option<&str> {
        match self.groups.get(group)? {
            Value::Text(text) => Some(text),
            Value::Tuple(_) => None,
        }
    }

    /// Takes a group out and says whether it captured any text.
    pub(super) fn take(&mut self, group: &str) -> bool {
        self.groups.remove(group).is_some_and(|value| value.is_set())
    }

    /// Notes the user that the groups of `fresh` name.
    pub(super) fn note_user(&mut self, user: Option<&Value>) {
        if let Some(user) = user.filter(|user| user.is_set())
            && self.users.len() < USERS_MAX
        {
            self.users.insert(user.clone());
        }
    }

    /// Lays what `fresh` captured over this.
    pub(super) fn update(&mut self, fresh: Self) {
        for name in fresh.groups.keys() {
            self.addresses.remove(name);
        }
        self.groups.extend(fresh.groups);
        self.addresses.extend(fresh.addresses);
    }

    /// Whom fail2ban would blame.
    pub(super) fn id(&self) -> Option<Value> {
        let of = |group: &str| self.groups.get(group);
        let found = of("fid").or_else(|| IDENTITIES.iter().find_map(|group| of(group)))?;
        // A network, where the pattern captured how wide it is.
        match (found, self.text("cidr")) {
            (Value::Text(address), Some(length)) if of("fid").is_none() && !length.is_empty() => {
                Some(Value::Text(format!("{address}/{length}")))
            }
            _ => Some(found.clone()),
        }
    }

    /// Whom it is blamed on here.
    pub(super) fn address(&self) -> Option<IpAddr> {
        IDENTITIES.iter().chain(&["fid"]).find_map(|group| self.addresses.get(*group).copied())
    }

    pub(super) fn into_failure(self, pattern: usize, date: Option<Timestamp>) -> Failure {
        Failure {
            pattern,
            date,
            id: self.id(),
            address: self.address(),
            groups: self.groups,
            users: self.users,
            attempts: self.matches,
        }
    }
}
