//! The `blocker` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    blocker::cli::main()
}
