//! The unix socket that answers the CLI: one JSON object a line, each way.
//!
//! ```text
//! -> {"v":1,"id":7,"method":"ban","params":{"prefix":"203.0.113.9","bantime":"1h"}}
//! <- {"v":1,"id":7,"result":{"banned":{...}}}
//! <- {"v":1,"id":7,"error":{"code":"refused","message":"...","hint":"..."}}
//! ```
//!
//! A list may be long: its answer comes in parts, a line each, all but the last with `"more":true`. No part is long, and the
//! next one is made when the asker has taken the one before.
//!
//! It checks who asks and whether the question is well formed; what the answer is, the agent knows.
#![forbid(unsafe_code)]

pub mod client;
pub mod protocol;
pub mod server;
