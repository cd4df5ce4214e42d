//! `blocker filter lint`: the proof of a filter, as people and programs read it.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use serde_json::{Value, json};

use super::{complain, exit, place_before, refused, say, show};
use crate::{
    config::place_text,
    filter::{
        Filter, FilterSpec,
        lint::{
            self, Note, Proof, Safety,
            mutate::{Forgery, Mutation, Mutator},
        },
    },
};

/// Lines of a log that are mutated at most.
const LINES_MAX: usize = 10_000;

/// Mutation, as it was asked for.
pub(super) struct Mutate<'a> {
    /// A log whose lines are mutated beside the samples.
    pub(super) file: Option<&'a Path>,
    pub(super) count: u64,
    pub(super) seed: u64,
}

/// Proves `spec` and prints what came of it; fails when it is unsafe.
pub(super) fn run(spec: &FilterSpec, states: usize, mutate: Option<&Mutate<'_>>, as_json: bool) -> ExitCode {
    let filter = match Filter::compile(spec.clone()) {
        Ok(filter) => Arc::new(filter),
        Err(error) => return refused(&error.to_string(), exit::CONFIG, as_json),
    };
    let mut mutation = None;
    if let Some(mutate) = mutate {
        match mutate.file.map(lines_of).transpose() {
            Ok(lines) => {
                let mut mutator = Mutator::new(spec, filter, &lines.unwrap_or_default());
                for (at, text) in mutator.address_places() {
                    complain(&format!(
                        "{}: {text:?} is taken to stand where the daemon writes the address; if it is its user's text, \
                         the filter is unsafe",
                        place_text(at)
                    ));
                }
                let claims = mutator.run_against_claims(mutate.seed, mutate.count / 4);
                mutation = Some((mutator.run(mutate.seed, mutate.count), claims.forged));
            }
            Err(why) => return refused(&why, exit::NO_INPUT, as_json),
        }
    }
    let proofs = lint::lint(spec, states);
    let worst = proofs.iter().map(|proof| proof.safety).max().unwrap_or(Safety::Safe);
    let notes = lint::notes(spec);
    if as_json {
        let proofs: Vec<Value> = proofs.iter().map(proof_json).collect();
        let mut out = json!({ "filter": spec.name, "safety": worst.name(), "proofs": proofs });
        out["notes"] = notes.iter().map(note_json).collect();
        if let Some((mutation, claimed)) = &mutation {
            out["mutation"] = mutation_json(mutation, claimed.as_ref());
        }
        say(&format!("{out:#}\n"));
    } else {
        for proof in &proofs {
            // Two patterns that have nothing in common are no news.
            if proof.shadows.is_none() || proof.safety != Safety::Safe {
                say(&proof_text(proof));
            }
        }
        for note in &notes {
            say(&format!("note      {}{}\n", place_before(&note.at), show::clean(&note.what)));
        }
        if let Some((mutation, claimed)) = &mutation {
            say(&mutation_text(mutation, claimed.as_ref()));
        }
        say(&format!("{}: {}\n", show::clean(&spec.name), worst.name()));
    }
    let is_forged = mutation.is_some_and(|(mutation, _)| mutation.forged.is_some());
    if worst == Safety::Unsafe || is_forged { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The first lines of a log.
fn lines_of(path: &Path) -> Result<Vec<String>, String> {
    let error =
        |error: io::Error| format!("{}: {error}; give a file of log lines that can be read", path.display());
    let mut lines = Vec::new();
    for line in BufReader::new(File::open(path).map_err(error)?).split(b'\n').take(LINES_MAX) {
        lines.push(String::from_utf8_lossy(&line.map_err(error)?).trim_end_matches('\r').to_owned());
    }
    Ok(lines)
}

fn note_json(note: &Note) -> Value {
    json!({ "file": note.at.path.display().to_string(), "line": note.at.line, "what": note.what })
}

fn mutation_text(mutation: &Mutation, claimed: Option<&Forgery>) -> String {
    let Mutation { mutants, fields, lost, forged } = mutation;
    let mut text = format!("{mutants} mutants of {fields} places, {lost} of them no failures any more\n");
    if let Some(forgery) = forged {
        text += &format!("FORGED    {}: {}\n", place_text(&forgery.at), show::clean(&forgery.line));
        text += &format!("          blames {}, which was planted\n", forgery.planted);
    }
    if let Some(forgery) = claimed {
        text += &format!("note      {}: {}\n", place_text(&forgery.at), show::clean(&forgery.line));
        text += &format!(
            "          would blame {}, which was planted; the pattern claims that the daemon writes no such line\n",
            forgery.planted
        );
    }
    text
}

fn mutation_json(mutation: &Mutation, claimed: Option<&Forgery>) -> Value {
    let forgery = |forgery: &Forgery| {
        let file = forgery.at.path.display().to_string();
        json!({ "file": file, "line": forgery.at.line, "text": forgery.line, "planted": forgery.planted })
    };
    json!({
        "mutants": mutation.mutants,
        "fields": mutation.fields,
        "lost": mutation.lost,
        "forged": mutation.forged.as_ref().map(forgery),
        "claimed": claimed.map(forgery),
    })
}

fn proof_text(proof: &Proof) -> String {
    let mut text =
        format!("{:9} {}{}\n", proof.safety.name(), place_before(&proof.at), show::clean(&proof.pattern));
    if let Some((at, pattern)) = &proof.shadows {
        text += &format!("   SHADOWS {}{}\n", place_before(at), show::clean(pattern));
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
