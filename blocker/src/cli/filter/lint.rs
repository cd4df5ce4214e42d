//! `blocker filter lint`: the proof of a filter, as people and programs read it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    cli::{say, show},
    config::place_text,
    filter::{
        FilterSpec,
        lint::{self, Proof, Safety},
    },
};

/// Proves `spec` and prints what came of it; fails when it is unsafe.
pub(super) fn lint_filter(spec: &FilterSpec, states: usize, as_json: bool) -> ExitCode {
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
