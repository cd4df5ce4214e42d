//! The messages of the control socket, versioned.

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::{
    engine::Request,
    net::{Prefix, Scope},
    time::{BanTime, Timestamp, parse_ban_time},
};

/// The protocol's version; a message of another one is refused.
pub const VERSION: u32 = 1;
/// The longest request line, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// How long a ban by hand lasts when nobody says.
pub const DEFAULT_BAN: BanTime = BanTime::For(std::time::Duration::from_secs(3_600));

/// What a client sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// [`VERSION`].
    pub v: u32,
    /// Comes back in the answer.
    pub id: u64,
    /// `status`, `bans`, `ban`, `unban`, `allow`, `disallow`, `reload` or `flush`.
    pub method: String,
    /// The method's parameters.
    #[serde(default)]
    pub params: Value,
}

/// What a client gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// The question's; 0 when it could not be read.
    pub id: u64,
    /// Whether the result is a part of a list, and the next line has more of it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// Set when it was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Set when it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<CallError>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    /// Which kind.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do next; may be empty.
    #[serde(default)]
    pub hint: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The message is not of this protocol.
    BadRequest,
    /// The asker may not ask this.
    Denied,
    /// Understood, and not done for a reason of policy.
    Refused,
    /// Tried, and the kernel or the disk did not take it.
    Failed,
}

impl CallError {
    /// Not of this protocol.
    pub fn bad(message: &str) -> Self {
        Self { code: Code::BadRequest, message: message.to_owned(), hint: String::new() }
    }

    /// Understood and not done.
    pub fn refused(message: &str) -> Self {
        Self { code: Code::Refused, message: message.to_owned(), hint: String::new() }
    }

    /// Tried and not done.
    pub fn failed(message: &str) -> Self {
        Self { code: Code::Failed, message: message.to_owned(), hint: "see `blocker status`".to_owned() }
    }
}

/// What the agent is asked, after the message was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// How are things?
    Status,
    /// What is banned?
    Bans {
        /// Only bans that share an address with this.
        prefix: Option<Prefix>,
        /// Only so many, the first ones.
        limit: Option<usize>,
    },
    /// Read the configuration again.
    Reload,
    /// Something for the engine.
    Engine(Request),
}

impl Call {
    /// Whether it changes anything.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Status | Self::Bans { .. })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BanParams {
    prefix: String,
    #[serde(default)]
    ports: Option<String>,
    #[serde(default)]
    bantime: Option<String>,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixParams {
    prefix: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnbanParams {
    prefix: String,
    #[serde(default)]
    ports: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BansParams {
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

impl Question {
    /// Reads one line.
    ///
    /// # Errors
    /// With the answer the asker gets, and the question's id when it has one.
    pub fn read(line: &[u8]) -> Result<(u64, Call), (u64, CallError)> {
        let question: Self = serde_json::from_slice(line)
            .map_err(|error| (0, CallError::bad(&format!("not a request of this protocol: {error}"))))?;
        let id = question.id;
        if question.v != VERSION {
            let message = format!("protocol version {} is not spoken here, only {VERSION}", question.v);
            return Err((
                id,
                CallError {
                    hint: "use the `blocker` binary of the running agent".to_owned(),
                    ..CallError::bad(&message)
                },
            ));
        }
        question.call().map(|call| (id, call)).map_err(|error| (id, error))
    }

    fn call(self) -> Result<Call, CallError> {
        let method = self.method.as_str();
        let prefix = |text: &str| text.parse::<Prefix>().map_err(|error| CallError::bad(&error));
        let scope = |ports: Option<String>| {
            ports.map(|text| text.parse::<Scope>().map_err(|error| CallError::bad(&error))).transpose()
        };
        let one = |params| prefix(&params_of::<PrefixParams>(method, params)?.prefix);
        Ok(match method {
            "status" => params_of::<NoParams>(method, self.params).map(|_| Call::Status)?,
            "bans" => {
                let BansParams { prefix: only, limit } = params_of(method, self.params)?;
                Call::Bans { prefix: only.as_deref().map(prefix).transpose()?, limit }
            }
            "reload" => params_of::<NoParams>(method, self.params).map(|_| Call::Reload)?,
            "flush" => params_of::<NoParams>(method, self.params).map(|_| Call::Engine(Request::Flush))?,
            "unban" => {
                let params: UnbanParams = params_of(method, self.params)?;
                let (prefix, scope) = (prefix(&params.prefix)?, scope(params.ports)?);
                Call::Engine(Request::Unban { prefix, scope })
            }
            "allow" => Call::Engine(Request::Allow { prefix: one(self.params)? }),
            "disallow" => Call::Engine(Request::Disallow { prefix: one(self.params)? }),
            "ban" => {
                let params: BanParams = params_of(method, self.params)?;
                let bantime = params.bantime.as_deref().map(parse_ban_time).transpose();
                Call::Engine(Request::Ban {
                    prefix: prefix(&params.prefix)?,
                    scope: scope(params.ports)?.unwrap_or_default(),
                    bantime: bantime.map_err(|error| CallError::bad(&error))?.unwrap_or(DEFAULT_BAN),
                    reason: params.reason,
                })
            }
            other => return Err(CallError::bad(&format!("there is no method {other:?}"))),
        })
    }
}

fn params_of<T: serde::de::DeserializeOwned>(method: &str, params: Value) -> Result<T, CallError> {
    let params = if params.is_null() { Value::Object(serde_json::Map::new()) } else { params };
    serde_json::from_value(params)
        .map_err(|error| CallError::bad(&format!("parameters of {method:?}: {error}")))
}

/// The answer to `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// `ok` or `degraded`.
    pub health: String,
    /// What is wrong, a sentence each; empty when all is well.
    pub degraded: Vec<String>,
    /// What enforces, and why.
    pub backend: Backend,
    /// Whether this binary holds the XDP program.
    pub xdp_built_in: bool,
    /// The jails, in the configuration's order.
    pub jails: Vec<JailStatus>,
    /// The sources.
    pub sources: Vec<SourceStatus>,
    /// Bans now.
    pub bans: usize,
    /// Bans at once, at most.
    pub bans_max: usize,
    /// (jail, prefix) pairs whose failures are tracked.
    pub tracked: usize,
    /// Pairs tracked at once, at most.
    pub tracked_max: usize,
    /// Pairs that gave way to the bound on them.
    pub tracked_evicted: u64,
    /// First failures that were noted and not counted, since three quarters of the bound were taken.
    pub tracked_turned_away: u64,
    /// Bans that gave way to the bound on bans, or were not made because of it.
    pub bans_refused: u64,
    /// Bans not made because bans were on as many different lists of ports as they may be.
    #[serde(default)]
    pub scopes_refused: u64,
    /// (prefix, jail) pairs whose earlier bans are remembered.
    pub offenders: usize,
    /// Pairs remembered at once, at most.
    pub offenders_max: usize,
    /// Pairs that gave way to the bound on them.
    pub offenders_gave_way: u64,
    /// Bans that wait for an ignorecommand.
    pub asked: usize,
    /// Bytes of matched lines kept for actions.
    pub matches_bytes: usize,
    /// Addresses whose lines gave way to the bound on them.
    pub matches_gave_way: u64,
    /// Packets dropped in all.
    pub packets: u64,
    /// Bytes dropped in all.
    pub bytes: u64,
    /// Connections of banned sources that were closed.
    #[serde(default)]
    pub connections_closed: u64,
    /// Those of them that the kernel would not close.
    #[serde(default)]
    pub connections_left: u64,
    /// How often there were more connections than time or room to look at them.
    #[serde(default)]
    pub connections_cut_short: u64,
    /// Why connections of banned sources are left alone; empty where they are closed.
    #[serde(default)]
    pub connections_kept: String,
    /// Allowlisted and protected prefixes.
    pub allowed: Vec<Prefix>,
    /// Those of them that operators put there.
    pub allowed_by_operators: Vec<Prefix>,
    /// The agent's resident memory, in bytes.
    pub rss_bytes: u64,
    /// Lines of the agent's own log that its reader was too slow for.
    pub log_lines_dropped: u64,
    /// What the operator should know of the configuration.
    pub warnings: Vec<String>,
}

/// What enforces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `xdp` or `nftables`.
    pub name: String,
    /// What is attached where, and how.
    pub attachments: Vec<String>,
    /// Why this one.
    pub reason: String,
    /// Why parts of it are no better than they are, and what is left out.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A jail in `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailStatus {
    /// Its name.
    pub name: String,
    /// Lines blamed on an address and counted.
    pub failures: u64,
    /// Failures of allowlisted addresses.
    pub allowlisted: u64,
    /// Failure lines without a usable address.
    pub no_address: u64,
    /// Failures of addresses banned already.
    pub already_banned: u64,
    /// Bans it made.
    pub bans_made: u64,
    /// Bans of it in force.
    pub bans: usize,
    /// What its bans drop; left out where it is every port.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
    /// Whether it bans nobody.
    pub observe: bool,
    /// Bans it would have made if it did more than observe.
    pub would_ban: u64,
    /// Bans not made, since its ignorecommand spared the address.
    pub ignored: u64,
    /// Bans made without an answer of its ignorecommand.
    pub unanswered: u64,
    /// Bans not made, to spare an allowlisted or protected neighbour in the same prefix.
    pub spared: u64,
    /// Bans it would have made, given up since too many were imagined at once.
    pub imagined_lost: u64,
    /// Lines for its filters with a `field` that are no JSON, or have the field twice.
    #[serde(default)]
    pub not_json: u64,
    /// Lines for its filters with a `field` in which that is missing, or no text.
    #[serde(default)]
    pub no_field: u64,
    /// Lines that a pattern of its filters gave up on, for taking more steps than it may.
    pub gave_up: u64,
    /// Connections that its imported filters forgot before their time, since there were too many.
    pub connections_lost: u64,
    /// Lines that its imported filters with `maxlines` saw no more, since together they were too long.
    pub joined_lines_lost: u64,
    /// Searches in long lines that were left to a slower engine.
    pub slow_searches: u64,
    /// Its actions that have run or were to.
    pub actions: Vec<ActionStatus>,
}

/// A jail's action in `status`, since the agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionStatus {
    /// Its name.
    pub name: String,
    /// Runs that are under way or wait.
    pub waiting: u64,
    /// Runs that ended, in whatever way.
    pub run: u64,
    /// Runs that ended with another status than 0, or could not begin.
    pub failed: u64,
    /// Runs that were killed at their timeout.
    pub timed_out: u64,
    /// Runs dropped because too many waited.
    pub dropped: u64,
}

/// A source in `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its path.
    pub path: String,
    /// What it is doing, or why it cannot be read.
    pub state: String,
    /// Bytes read.
    pub bytes: u64,
    /// Named counters that are not zero.
    pub counters: Vec<(String, u64)>,
}

/// A row of `bans`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanRow {
    /// Who is dropped.
    pub prefix: Prefix,
    /// What of theirs; left out where it is every port.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
    /// Who decided: a jail's name, or `operator`; `-` when the ledger does not know the kernel's entry.
    pub jail: String,
    /// Since when; microseconds since the epoch.
    pub since: Option<Timestamp>,
    /// Until when; `null` for no end.
    pub until: Option<Timestamp>,
    /// Failures that led to it.
    pub failures: u32,
    /// Which ban of this prefix by its jail it is; 0 for an operator's.
    pub count: u32,
    /// How long it was made for; `null` for no end.
    pub bantime_secs: Option<u64>,
    /// Whether earlier bans made it longer.
    pub escalated: bool,
    /// Packets dropped, as the kernel counts them.
    pub packets: u64,
    /// The operator's reason.
    pub reason: String,
    /// Whether the kernel holds it, read back now.
    pub in_kernel: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_strictly() {
        let read = |line: &str| Question::read(line.as_bytes());
        let call = read(r#"{"v":1,"id":7,"method":"ban","params":{"prefix":"203.0.113.9","bantime":"-1"}}"#);
        let request = Request::Ban {
            prefix: "203.0.113.9".parse().unwrap(),
            scope: Scope::ALL,
            bantime: BanTime::Permanent,
            reason: String::new(),
        };
        assert_eq!(call, Ok((7, Call::Engine(request))));
        let call =
            read(r#"{"v":1,"id":7,"method":"unban","params":{"prefix":"203.0.113.9","ports":"22,53/udp"}}"#);
        let scope = Some("22/tcp,53/udp".parse().unwrap());
        let request = Request::Unban { prefix: "203.0.113.9".parse().unwrap(), scope };
        assert_eq!(call, Ok((7, Call::Engine(request))));
        assert_eq!(read(r#"{"v":1,"id":8,"method":"status"}"#), Ok((8, Call::Status)));
        let all = Call::Bans { prefix: None, limit: None };
        assert_eq!(read(r#"{"v":1,"id":8,"method":"bans"}"#), Ok((8, all)));
        let some = Call::Bans { prefix: "10.0.0.0/8".parse().ok(), limit: Some(9) };
        let asked = r#"{"v":1,"id":8,"method":"bans","params":{"prefix":"10.0.0.0/8","limit":9}}"#;
        assert_eq!(read(asked), Ok((8, some)));
        for (line, id, says) in [
            ("", 0, "not a request"),
            ("[]", 0, "not a request"),
            (r#"{"v":2,"id":3,"method":"status"}"#, 3, "version 2"),
            (r#"{"v":1,"id":3,"method":"stats"}"#, 3, "no method \"stats\""),
            (r#"{"v":1,"id":3,"method":"status","params":{"x":1}}"#, 3, "unknown field `x`"),
            (r#"{"v":1,"id":3,"method":"unban"}"#, 3, "missing field `prefix`"),
            (r#"{"v":1,"id":3,"method":"unban","params":{"prefix":"1.2.3"}}"#, 3, "not an IP address"),
            (r#"{"v":1,"id":3,"method":"ban","params":{"prefix":"1.2.3.4","bantime":"soon"}}"#, 3, "soon"),
            (r#"{"v":1,"id":3,"method":"ban","params":{"prefix":"1.2.3.4","ports":"ssh"}}"#, 3, "service"),
            (r#"{"v":1,"id":3,"method":"status","more":1}"#, 0, "unknown field `more`"),
        ] {
            let (read_id, error) = read(line).unwrap_err();
            assert_eq!((read_id, error.code), (id, Code::BadRequest), "{line}");
            assert!(error.message.contains(says), "{line}: {}", error.message);
        }
    }
}
