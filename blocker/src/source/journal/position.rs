//! How far a journal was read, in a form that outlives the process.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Up to where one journal was handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalPosition {
    /// The version of this form; 1.
    pub v: u8,
    /// The journal namespace; `None` for the host's own journal.
    pub namespace: Option<String>,
    /// The last entry handed out, as journald names it.
    pub cursor: Option<String>,
    /// Where there is no such entry any more: the first one of this time or later, in microseconds since the epoch.
    pub realtime: u64,
}

impl JournalPosition {
    /// Tells apart the positions of one agent. No file's key begins like it: those are absolute paths.
    pub fn key(&self) -> String {
        format!("journal#{}", self.namespace.as_deref().unwrap_or_default())
    }
}
