//! Mutants of every shipped filter's samples on all cores: `cargo xtask fuzz mutants`. It ends with an error at the
//! first planted address that is blamed, and says how many there were and how fast.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use blocker::{
    config,
    filter::{
        Filter,
        lint::mutate::{Mutation, Mutator},
    },
};

/// Mutants of one filter that a core tries before it takes the next share.
const SHARE: u64 = 20_000;

fn main() {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |at: usize, default: u64| match arguments.get(at).map(|text| text.parse::<u64>()) {
        None => default,
        Some(Ok(number)) => number,
        Some(Err(error)) => panic!("{}: {error}", arguments[at]),
    };
    let (count, seed) = (number(0, 10_000_000), number(1, 1));
    // A filter of lines in which nobody else writes anything has no mutants.
    let has_fields = |(name, text): &&(&str, &str)| mutate(name, text, seed, 0).fields > 0;
    let filters: Vec<_> = config::BUILT_IN.iter().filter(has_fields).collect();
    let each = count.div_ceil(filters.len() as u64);
    let shares_each = each.div_ceil(SHARE);
    let shares = filters.len() * shares_each as usize;
    let (next, tried) = (AtomicUsize::new(0), AtomicU64::new(0));
    let found: Mutex<Vec<(String, Mutation)>> = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let share = next.fetch_add(1, Ordering::Relaxed);
                    if share >= shares {
                        return;
                    }
                    let (name, text) = *filters[share % filters.len()];
                    let round = (share / filters.len()) as u64;
                    let mutation =
                        mutate(name, text, seed.wrapping_add(round), SHARE.min(each - round * SHARE));
                    tried.fetch_add(mutation.mutants, Ordering::Relaxed);
                    if mutation.forged.is_some() {
                        found.lock().unwrap().push((name.to_owned(), mutation));
                    }
                }
            });
        }
    });
    let (tried, seconds) = (tried.into_inner(), start.elapsed().as_secs_f64());
    println!(
        "{tried} mutants of {} filters in {seconds:.1} s: {:.0} a second (seed {seed})",
        filters.len(),
        tried as f64 / seconds
    );
    let found = found.into_inner().unwrap();
    for (name, mutation) in &found {
        println!("FORGED: {name}: {:?}", mutation.forged);
    }
    if !found.is_empty() {
        std::process::exit(1);
    }
}

fn mutate(name: &str, text: &str, seed: u64, count: u64) -> Mutation {
    let path = format!("{name}.toml");
    let spec = config::read_filter(text, Path::new(&path)).unwrap_or_else(|errors| panic!("{errors}"));
    let filter = Filter::compile(spec.clone()).unwrap_or_else(|error| panic!("{error}"));
    Mutator::new(&spec, Arc::new(filter), &[]).run(seed, count)
}
