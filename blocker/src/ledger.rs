//! All bans, in memory. The kernel is a cache of the ledger.
#![forbid(unsafe_code)]

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    net::Prefix,
    time::{Timestamp, Until},
};

/// One ban and why it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// What is dropped.
    pub prefix: Prefix,
    /// Who decided.
    pub origin: Origin,
    /// When it began.
    pub since: Timestamp,
    /// When it ends.
    pub until: Until,
    /// Failures that led to it; 0 for an operator's.
    pub failures: u32,
    /// An operator's reason, or empty.
    pub reason: String,
}

/// Who decided on a ban.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A jail, automatically.
    Jail(#[serde(with = "arc_str")] Arc<str>),
    /// A person, with `blocker ban`.
    Operator,
}

mod arc_str {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}
