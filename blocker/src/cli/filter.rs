//! `blocker filter`: what a filter makes of a log, and whether a log can choose whom it blames.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{complain, exit, say, show};
use crate::{
    config::{self, place_text},
    filter::{
        FilterSpec,
        lint::{self, Proof, Safety},
    },
};

/// What `blocker filter` can do.
#[derive(Debug, Subcommand)]
pub(super) enum FilterVerb {
    /// Proves that no line can be read in two ways, so that no log text chooses the banned address; exit 1 if one can.
    Lint {
        /// The name of a shipped filter or of one in a filter directory, or the path of a .toml file.
        filter: String,
        /// States that one proof may look at before it counts as unproven.
        #[arg(long, value_name = "N", default_value_t = lint::PRODUCT_STATES_MAX)]
        states: usize,
    },
}

/// Does what was asked.
pub(super) fn run(verb: &FilterVerb, as_json: bool) -> ExitCode {
    match verb {
        FilterVerb::Lint { filter, states } => {
            with_filter(filter, |spec| lint_filter(spec, *states, as_json))
        }
    }
}

fn with_filter(filter: &str, then: impl FnOnce(&FilterSpec) -> ExitCode) -> ExitCode {
    match find(filter) {
        Ok(spec) => then(&spec),
        Err(why) => {
            complain(&why);
            ExitCode::from(exit::CONFIG)
        }
    }
}

/// The filter of this name, or in this file.
fn find(filter: &str) -> Result<FilterSpec, String> {
    let (text, path) = match config::BUILT_IN.iter().find(|(name, _)| *name == filter) {
        Some((name, text)) => ((*text).to_owned(), PathBuf::from(format!("built-in:{name}.toml"))),
        None if filter.contains(['/', '.']) => {
            let path = Path::new(filter);
            let text = std::fs::read_to_string(path).map_err(|error| {
                format!("{filter}: {error}; give the path of a filter file that can be read")
            })?;
            (text, path.to_owned())
        }
        None => {
            return Err(format!(
                "there is no shipped filter {filter:?}; give the name of one, or the path of a file"
            ));
        }
    };
    config::read_filter(&text, &path).map_err(|errors| errors.to_string())
}

fn lint_filter(spec: &FilterSpec, states: usize, as_json: bool) -> ExitCode {
    let proofs = lint::lint(spec, states);
    let worst = proofs.iter().map(|proof| proof.safety).max().unwrap_or(Safety::Safe);
    if as_json {
        let proofs: Vec<Value> = proofs.iter().map(proof_json).collect();
        say(&format!("{:#}\n", json!({ "filter": spec.name, "safety": worst.name(), "proofs": proofs })));
    } else {
        for proof in &proofs {
            // Two patterns that have nothing in common are no news.
            if proof.shadows.is_none() || proof.safety != Safety::Safe {
                say(&proof_text(proof));
            }
        }
        say(&format!("{}: {}\n", show::clean(&spec.name), worst.name()));
    }
    if worst == Safety::Unsafe { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn proof_text(proof: &Proof) -> String {
    let mut text =
        format!("{:9} {}: {}\n", proof.safety.name(), place_text(&proof.at), show::clean(&proof.pattern));
    if let Some((at, pattern)) = &proof.shadows {
        text += &format!("   SHADOWS {}: {}\n", place_text(at), show::clean(pattern));
    }
    if !proof.reason.is_empty() {
        text += &format!("          because {}\n", proof.reason);
    }
    if let Some(witness) = &proof.witness {
        let [(_, first), (_, second)] = &witness.hosts;
        text += &format!("          {:?}\n", show::clean(&witness.line));
        text += &match proof.shadows {
            None => format!("          can be read as {first} and as {second}\n"),
            Some(_) => format!("          is {first} to the first pattern and {second} to the other\n"),
        };
    }
    text
}

fn proof_json(proof: &Proof) -> Value {
    let place = |at: &crate::filter::Place, pattern: &str| json!({ "file": at.path.display().to_string(), "line": at.line, "pattern": pattern });
    let mut out = place(&proof.at, &proof.pattern);
    out["safety"] = json!(proof.safety.name());
    out["states"] = json!(proof.states);
    if let Some((at, pattern)) = &proof.shadows {
        out["shadows"] = place(at, pattern);
    }
    if !proof.reason.is_empty() {
        out["reason"] = json!(proof.reason);
    }
    if let Some(witness) = &proof.witness {
        let hosts: Vec<Value> = witness
            .hosts
            .iter()
            .map(|(span, host)| json!({ "host": host.to_string(), "start": span.start, "end": span.end }))
            .collect();
        out["witness"] = json!({ "line": witness.line, "readings": hosts });
    }
    out
}
