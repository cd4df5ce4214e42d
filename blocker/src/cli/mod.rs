//! The subcommands: what a person types, and what they read.
//!
//! Every text that came from a log, a file or the agent is shown with control characters escaped, so that nothing an
//! attacker wrote reaches a terminal raw.
#![forbid(unsafe_code)]

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::{
    agent,
    config::{Backend, service_port},
    control::{
        client::{self, ClientError},
        protocol::Code,
    },
    net::{Prefix, Scope},
    time::parse_ban_time,
};

mod check;
mod doubts;
mod filter;
mod import;
mod show;

pub(crate) use show::clean;

/// Where the agent listens when the configuration does not say.
pub const DEFAULT_SOCKET: &str = "/run/blocker/blocker.sock";
/// The configuration read when none is named.
pub const DEFAULT_CONFIG: &str = "/etc/blocker/blocker.toml";

/// Lines of the agent's own log that wait for whoever reads it.
const LOG_LINES_WAITING_MAX: usize = 8_192;

/// Exit codes beyond 0, 1 and clap's 2, as sysexits.h names them.
mod exit {
    /// EX_NOINPUT: what was to be read cannot be.
    pub(super) const NO_INPUT: u8 = 66;
    /// EX_UNAVAILABLE: no agent.
    pub(super) const UNAVAILABLE: u8 = 69;
    /// EX_NOPERM: not allowed.
    pub(super) const NO_PERMISSION: u8 = 77;
    /// EX_CONFIG: the configuration is wrong.
    pub(super) const CONFIG: u8 = 78;
}

#[derive(Debug, Parser)]
#[command(name = "blocker", version, about = "Reads authentication logs and drops attackers in the kernel")]
struct Cli {
    /// The agent's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the agent in the foreground.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Attach to this interface instead of the configured ones; may be given several times.
        #[arg(long = "interface", value_name = "NAME")]
        interfaces: Vec<String>,
        /// Enforce with this instead of what the configuration says.
        #[arg(long, value_name = "auto|xdp|nftables", value_parser = backend)]
        backend: Option<Backend>,
        /// Read standard input for the jails with `stdin = true`, as in `tail -F app.log | blocker run --stdin`.
        ///
        /// A failure counts at the time its line names, and at its arrival where it names none. Whoever writes waits
        /// while the agent does not keep up. When the input ends, the agent goes on: bans stay and end on time, other
        /// sources are read, and `blocker status` says that the input has ended.
        #[arg(long)]
        stdin: bool,
    },
    /// Reads the configuration, compiles every filter, runs every sample, and says what each jail will do.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Proves filters and tries them out.
    #[command(subcommand)]
    Filter(filter::FilterVerb),
    /// Prints fail2ban's jails and filters as blocker's configuration, with a comment for each thing it cannot carry over.
    Import {
        /// The directory that holds jail.conf.
        #[arg(value_name = "DIR", default_value = "/etc/fail2ban")]
        dir: PathBuf,
        /// Write blocker.toml and filters/ into this directory instead.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Shows what enforces and why, the jails, the sources, and what is wrong.
    Status,
    /// Lists the bans, read back from the kernel; with --json an object a line, in an array.
    Bans {
        /// Only those inside this prefix, or around this address or prefix.
        prefix: Option<Prefix>,
        /// Only the first so many.
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
    },
    /// Bans an address or prefix; when it returns, the kernel drops it and the ledger has it on disk.
    Ban {
        /// As 203.0.113.9, 203.0.113.0/24 or 2001:db8::/64.
        prefix: Prefix,
        /// Only packets to these ports: 22, ssh, 80,443, 8000-8010, 53/udp; tcp where no protocol is said.
        #[arg(long, value_name = "PORTS", value_parser = ports)]
        ports: Option<Scope>,
        /// For how long: 10m, 1h30m, 2d, permanent.
        #[arg(long = "for", value_name = "SPAN", default_value = "1h", value_parser = ban_time)]
        span: String,
        /// Why, for the ledger.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Lifts a ban; an IPv6 address lifts the prefix that was banned for it.
    Unban {
        /// What is banned, or an address in it.
        prefix: Prefix,
        /// Only the ban on these ports, or the one on `all`, where there are several.
        #[arg(long, value_name = "PORTS", value_parser = ports)]
        ports: Option<Scope>,
    },
    /// Never drops this address or prefix, also inside a banned one.
    Allow {
        /// The address or prefix.
        prefix: Prefix,
    },
    /// Takes off the allowlist what `allow` put there.
    Disallow {
        /// The address or prefix.
        prefix: Prefix,
    },
    /// Makes the agent read its configuration again; an error in it changes nothing.
    Reload,
    /// Lifts every ban.
    Flush {
        /// Yes, every ban.
        #[arg(long)]
        yes: bool,
    },
}

fn backend(text: &str) -> Result<Backend, String> {
    match text {
        "auto" => Ok(Backend::Auto),
        "xdp" => Ok(Backend::Xdp),
        "nftables" => Ok(Backend::Nftables),
        _ => Err("it is one of auto, xdp, nftables".to_owned()),
    }
}

/// Names become numbers here: the agent knows none.
fn ports(text: &str) -> Result<Scope, String> {
    Scope::parse(text, &service_port)
}

/// Checked here, sent as text.
fn ban_time(text: &str) -> Result<String, String> {
    parse_ban_time(text).map(|_| text.to_owned())
}

/// Parses the command line, does what it says, and returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.verb {
        Verb::Run { config, interfaces, backend, stdin } => run(config, interfaces, backend, stdin),
        Verb::Check { config } => check::check(&config, cli.json),
        Verb::Import { dir, out } => import::import(&dir, out.as_deref()),
        Verb::Filter(verb) => filter::run(&verb, cli.json),
        Verb::Flush { yes: false } => {
            complain("this lifts every ban, also permanent ones; say `blocker flush --yes` if that is meant");
            ExitCode::FAILURE
        }
        verb => ask(&cli.socket, cli.json, &verb),
    }
}

fn run(config: PathBuf, interfaces: Vec<String>, backend: Option<Backend>, stdin: bool) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BLOCKER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A thread of its own writes, and drops what nobody reads: a stalled reader stops no decision.
    let (writer, _flushed_on_drop) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES_WAITING_MAX)
        .lossy(true)
        .finish(io::stderr());
    let log_unwritten = writer.error_counter();
    let options = agent::Options { config, backend, interfaces, stdin, log_unwritten };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    log.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init();
    match agent::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(agent::Error::Config(errors)) => {
            complain(&errors.to_string());
            ExitCode::from(exit::CONFIG)
        }
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Asks the agent and shows its answer.
fn ask(socket: &std::path::Path, as_json: bool, verb: &Verb) -> ExitCode {
    let (method, params) = match verb {
        Verb::Status => ("status", json!({})),
        Verb::Bans { prefix, limit } => {
            return bans(socket, as_json, &json!({ "prefix": prefix, "limit": limit }));
        }
        Verb::Ban { prefix, ports, span, reason } => {
            let params = json!({ "prefix": prefix, "bantime": span, "reason": reason });
            ("ban", with_ports(params, ports.as_ref()))
        }
        Verb::Unban { prefix, ports } => ("unban", with_ports(json!({ "prefix": prefix }), ports.as_ref())),
        Verb::Allow { prefix } => ("allow", json!({ "prefix": prefix })),
        Verb::Disallow { prefix } => ("disallow", json!({ "prefix": prefix })),
        Verb::Reload => ("reload", json!({})),
        Verb::Flush { .. } => ("flush", json!({})),
        Verb::Run { .. } | Verb::Check { .. } | Verb::Import { .. } | Verb::Filter(_) => {
            return ExitCode::FAILURE;
        }
    };
    match client::call(socket, method, params) {
        Ok(result) => {
            if as_json {
                say(&format!("{result:#}\n"));
            } else {
                say(&show::answer(method, &result));
            }
            ExitCode::SUCCESS
        }
        Err(error) => refused(&error, as_json),
    }
}

/// Left out where nobody asks for it: an older agent does not know it.
fn with_ports(mut params: Value, ports: Option<&Scope>) -> Value {
    if let Some(ports) = ports {
        params["ports"] = json!(ports);
    }
    params
}

/// Shows the list as it comes, however long it is.
fn bans(socket: &std::path::Path, as_json: bool, params: &Value) -> ExitCode {
    let mut shown = show::Bans::new(as_json);
    // JSON holds nothing that a terminal obeys.
    let out: Box<dyn Write> =
        if as_json { Box::new(io::stdout().lock()) } else { Box::new(anstream::stdout().lock()) };
    let mut out = BufWriter::with_capacity(1 << 16, out);
    let mut closed = false;
    let outcome = client::list(socket, "bans", params.clone(), |rows| {
        shown.rows(rows, &mut out).inspect_err(|_| closed = true)
    });
    // A reader that went away is no error. What is cut short is not made to look whole.
    match outcome {
        _ if closed => ExitCode::SUCCESS,
        Ok(()) => {
            let _closed = shown.end(&mut out).and_then(|()| out.flush());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _closed = out.flush();
            refused(&error, as_json && !shown.any())
        }
    }
}

fn refused(error: &ClientError, as_json: bool) -> ExitCode {
    let code = match error {
        ClientError::NoAgent(_) => ExitCode::from(exit::UNAVAILABLE),
        ClientError::NotAllowed(_) => ExitCode::from(exit::NO_PERMISSION),
        ClientError::Refused(refusal) if refusal.code == Code::Denied => ExitCode::from(exit::NO_PERMISSION),
        ClientError::Broken(..) | ClientError::Refused(_) => ExitCode::FAILURE,
    };
    if as_json {
        let error = match error {
            ClientError::Refused(refusal) => json!({ "error": refusal }),
            other => json!({ "error": Value::String(other.to_string()) }),
        };
        say(&format!("{error:#}\n"));
    }
    complain(&error.to_string());
    code
}

/// To stdout, with colours only where they are shown; a reader that went away is no error.
fn say(text: &str) {
    let _closed = anstream::stdout().write_all(text.as_bytes());
}

fn complain(text: &str) {
    anstream::eprintln!("blocker: {}", show::clean_lines(text));
}
