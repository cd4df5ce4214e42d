//! What a guest finds when it starts: the test binaries, the agent, the host's tools with every library they need, the
//! kernel's modules, and a script that runs it all. One archive, all of it in memory; the guest has no disk.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    LEFT_OUT, TRIALS,
    cpio::Archive,
    packages::{KernelFiles, Tools},
};
use crate::lab::run;

const INIT: &str = include_str!("init.sh");
/// Programs of this machine that the tests call; one that is not here is not there.
const PROGRAMS: [&str; 6] = ["ip", "nft", "ping", "tc", "xdp-filter", "xdp-loader"];
/// What xdp-tools loads.
const XDP_OBJECTS: &str = "/usr/lib/x86_64-linux-gnu/bpf";

/// What is tested: the test binaries by name, and the agent.
#[derive(Debug)]
pub(super) struct Tested {
    pub(super) suites: BTreeMap<String, PathBuf>,
    /// Of these suites, only these tests.
    pub(super) only: BTreeMap<String, Vec<String>>,
    pub(super) agent: PathBuf,
}

/// Writes the archive for one kernel.
///
/// # Errors
/// When something that belongs in it cannot be read.
pub(super) fn write(to: &Path, tested: &Tested, kernel: &KernelFiles, tools: &Tools) -> Result<()> {
    let file = File::create(to).with_context(|| format!("write {}", to.display()))?;
    let mut guest = Guest { archive: Archive::new(BufWriter::new(file)), libraries: BTreeMap::new() };
    guest.skeleton(tools)?;
    for program in PROGRAMS {
        if let Some(path) = on_path(program) {
            guest.program(&path, &Path::new("/bin").join(program), Command::new("ldd"))?;
        }
    }
    if Path::new(XDP_OBJECTS).is_dir() {
        guest.tree(Path::new(XDP_OBJECTS), Path::new(XDP_OBJECTS.trim_start_matches("/usr")))?;
    }
    guest.program(&tools.kmod(), Path::new("/sbin/modprobe"), tools.command(Path::new("ldd")))?;
    guest.stripped(&tested.agent, Path::new("/bin/blocker"))?;
    // Where the test binaries were compiled to look for it.
    guest.archive.file(Path::new("/agent-path"), 0o644, tested.agent.as_os_str().as_bytes())?;
    for (name, binary) in &tested.suites {
        guest.stripped(binary, &Path::new("/suites").join(name))?;
        if let Some(tests) = tested.only.get(name) {
            let words = format!("--exact {}", tests.join(" "));
            guest.archive.file(&Path::new("/only").join(name), 0o644, words.as_bytes())?;
        }
    }
    let left_out = LEFT_OUT.map(|test| format!("--skip {test}")).join(" ");
    guest.archive.file(Path::new("/left-out"), 0o644, left_out.as_bytes())?;
    for (number, trial) in TRIALS.iter().enumerate() {
        let folder = PathBuf::from(format!("/trials/{number}"));
        guest.archive.file(&folder.join("name"), 0o644, trial.name.as_bytes())?;
        guest.archive.file(&folder.join("links"), 0o644, trial.links.as_bytes())?;
        guest.archive.file(&folder.join("blocker.toml"), 0o644, trial.config().as_bytes())?;
    }
    let release = kernel.modules.file_name().context("modules are in a folder named by their kernel")?;
    guest.tree(&kernel.modules, &Path::new("/lib/modules").join(release))?;
    guest.finish()
}

/// Where a program is, system folders included.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file())
}

struct Guest<W> {
    archive: Archive<W>,
    /// Where each library is here, by its place there.
    libraries: BTreeMap<PathBuf, PathBuf>,
}

impl<W: Write> Guest<W> {
    fn skeleton(&mut self, tools: &Tools) -> Result<()> {
        let archive = &mut self.archive;
        archive.file(Path::new("/init"), 0o755, INIT.as_bytes())?;
        archive.copy(&tools.busybox(), Path::new("/busybox/busybox"))?;
        // The kernel opens it for /init before anything is mounted.
        archive.device(Path::new("/dev/console"), (5, 1))?;
        for folder in ["/proc", "/sys", "/run", "/tmp", "/var/lib", "/etc", "/sbin", "/root"] {
            archive.folder(Path::new(folder))?;
        }
        archive.link(Path::new("/usr"), ".")?;
        archive.link(Path::new("/bin/sh"), "/busybox/busybox")?;
        archive.file(Path::new("/etc/passwd"), 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        Ok(archive.file(Path::new("/etc/group"), 0o644, b"root:x:0:\n")?)
    }

    fn program(&mut self, from: &Path, to: &Path, ldd: Command) -> Result<()> {
        self.archive.copy(from, to).with_context(|| format!("read {}", from.display()))?;
        self.needs(from, ldd)
    }

    /// A program of ours, without what only a debugger reads: a guest holds it in memory twice while it starts.
    fn stripped(&mut self, from: &Path, to: &Path) -> Result<()> {
        let small = from.with_extension("guest");
        run(Command::new("strip").arg("-o").arg(&small).arg(from))?;
        let copied = self.program(&small, to, Command::new("ldd"));
        std::fs::remove_file(&small)?;
        copied
    }

    /// Notes the libraries of a program: `libc.so.6 => /lib/..` and the loader's own line (ldd(1)).
    fn needs(&mut self, program: &Path, mut ldd: Command) -> Result<()> {
        let text = run(ldd.arg(program))?;
        for (path, is_loader) in libraries(&text) {
            let place = match path.file_name() {
                Some(name) if !is_loader => Path::new("/lib").join(name),
                _ => path.strip_prefix("/usr").map_or(path.clone(), |below| Path::new("/").join(below)),
            };
            self.libraries.insert(place, path);
        }
        Ok(())
    }

    fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        let entries = std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
        for entry in entries {
            let entry = entry?;
            let place = to.join(entry.file_name());
            if entry.path().is_dir() {
                self.tree(&entry.path(), &place)?;
            } else {
                self.archive.copy(&entry.path(), &place)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        for (place, path) in &self.libraries {
            self.archive.copy(path, place).with_context(|| format!("read {}", path.display()))?;
        }
        self.archive.finish().context("write the archive").map(drop)
    }
}

/// The files named in what `ldd` printed, and whether each is the loader, whose place is part of every program.
fn libraries(text: &str) -> Vec<(PathBuf, bool)> {
    let file = |line: &str| {
        let (named, is_loader) = match line.trim().split_once(" => ") {
            Some((_, found)) => (found, false),
            None => (line.trim(), true),
        };
        let path = named.split(" (").next()?;
        path.starts_with('/').then(|| (PathBuf::from(path), is_loader))
    };
    text.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_found_and_the_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibmnl.so.0 => /lib/x/libmnl.so.0 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibno.so => not found\n";
        let expected = [("/lib/x/libmnl.so.0", false), ("/lib64/ld-linux-x86-64.so.2", true)];
        assert_eq!(libraries(text), expected.map(|(path, is_loader)| (PathBuf::from(path), is_loader)));
        assert_eq!(libraries("\tstatically linked\n"), []);
    }
}
