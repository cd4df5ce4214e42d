//! The `blocker` binary.
fn main() {}
