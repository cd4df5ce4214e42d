//! Embeds the shipped filters, and the XDP program when `cargo xtask build` left one that was made from these sources;
//! else none, and the binary is built without it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let sources = workspace.join("blocker-ebpf");
    let how = workspace.join("xtask/src/build.rs");
    let stamp = workspace.join("target/bpf/blocker.stamp");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-changed={}", how.display());
    // A path that does not exist yet makes cargo look again each time, which costs a few milliseconds.
    println!("cargo::rerun-if-changed={}", stamp.display());
    let current = fs::read_to_string(&stamp)
        .is_ok_and(|made_from| made_from == fingerprint(&sources, &how).unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for (object, include) in [("blocker.o", "xdp_object.rs"), ("table.o", "xdp_table_object.rs")] {
        let object = workspace.join("target/bpf").join(object);
        let text = if current && object.is_file() {
            format!("Some(include_bytes!({:?}))", object.canonicalize()?)
        } else {
            "None".to_owned()
        };
        // The loader reads the object in place, as an ELF file.
        fs::write(out.join(include), text)?;
    }
    fs::write(out.join("built_in_filters.rs"), filters(&workspace.join("config/filters"))?)
}

/// Every `NAME.toml` in `dir` as a slice of names and texts, in order of the names.
fn filters(dir: &Path) -> io::Result<String> {
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort_unstable_by(|a, b| a.file_stem().cmp(&b.file_stem()));
    let mut text = "&[\n".to_owned();
    for path in paths {
        let name = path.file_stem().unwrap_or_default();
        text += &format!("    ({name:?}, include_str!({:?})),\n", path.canonicalize()?);
    }
    Ok(text + "]\n")
}

include!("../xtask/src/fingerprint.rs");
