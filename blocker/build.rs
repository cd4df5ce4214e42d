//! Embeds the XDP program when `cargo xtask build` left one that was made from these sources; else none, and the
//! binary is built without it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let sources = workspace.join("blocker-ebpf");
    let object = workspace.join("target/bpf/blocker.o");
    let stamp = workspace.join("target/bpf/blocker.stamp");
    println!("cargo::rerun-if-changed={}", sources.display());
    // A path that does not exist yet makes cargo look again each time, which costs a few milliseconds.
    println!("cargo::rerun-if-changed={}", stamp.display());
    let current = fs::read_to_string(&stamp)
        .is_ok_and(|made_from| made_from == fingerprint(&sources).unwrap_or_default());
    let text = if current && object.is_file() {
        format!("Some(include_bytes!({:?}))", object.canonicalize()?)
    } else {
        "None".to_owned()
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    // The loader reads the object in place, as an ELF file.
    fs::write(out.join("xdp_object.rs"), text)
}

include!("../xtask/src/fingerprint.rs");
