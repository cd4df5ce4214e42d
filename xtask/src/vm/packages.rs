//! Kernels and an emulator as Debian packages, unpacked below `target/tools/vm` and installed nowhere.
//!
//! apt does what it does on any Debian: it finds the versions, downloads and checks signatures, with the settings of
//! this machine. Kernels of other releases come through lists of our own, from the mirror this machine takes its
//! packages from, or where it names none that has them, from Debian's public ones.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::{
    lab::{run, shown},
    setup, workspace,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where a release is when the machine's own mirror does not have it: current ones, and former ones.
const PUBLIC_MIRRORS: [&str; 2] = ["http://deb.debian.org/debian/", "http://archive.debian.org/debian/"];
/// The emulator, what loads modules, and a shell that needs no library.
const TOOLS: [&str; 3] = ["qemu-system-x86", "kmod", "busybox-static"];
/// What of a kernel package is unpacked: the kernel, and the modules that packets meet.
const KERNEL_PARTS: [&str; 8] = [
    "*/boot/vmlinuz-*",
    "*/modules/*/modules.order",
    "*/modules/*/modules.builtin*",
    "*/modules/*/kernel/net/*",
    "*/modules/*/kernel/lib/*",
    "*/modules/*/kernel/crypto/*",
    "*/modules/*/kernel/arch/*",
    "*/modules/*/kernel/drivers/net/*",
];

/// Where everything here is kept.
fn cache() -> PathBuf {
    workspace().join("target/tools/vm")
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct KernelFiles {
    /// The package and its version, as in `linux-image-6.1.0-50-cloud-amd64 6.1.176-1`.
    pub(super) version: String,
    /// The kernel itself.
    pub(super) image: PathBuf,
    /// The folder of its modules, named by its release.
    pub(super) modules: PathBuf,
}

/// The unpacked programs.
#[derive(Debug)]
pub(super) struct Tools {
    root: PathBuf,
}

impl Tools {
    pub(super) fn busybox(&self) -> PathBuf {
        self.first_of(&["usr/bin/busybox", "bin/busybox"])
    }

    pub(super) fn kmod(&self) -> PathBuf {
        self.first_of(&["usr/bin/kmod", "bin/kmod"])
    }

    fn first_of(&self, places: &[&str]) -> PathBuf {
        let paths = places.iter().map(|place| self.root.join(place));
        paths.clone().find(|path| path.exists()).unwrap_or_else(|| self.root.join(places[0]))
    }

    /// The emulator, with the folders of its firmware.
    pub(super) fn emulator(&self) -> Command {
        let mut command = self.command(&self.root.join("usr/bin/qemu-system-x86_64"));
        // What this machine has was not downloaded again.
        for root in [&self.root, Path::new("/")] {
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(folder));
            }
        }
        command
    }

    /// A program that finds the unpacked libraries.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.library_path());
        command
    }

    fn library_path(&self) -> String {
        let folders =
            ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
        folders.map(|folder| self.root.join(folder).display().to_string()).join(":")
    }
}

/// Why no kernel can be booted on this machine, or `None` when they can.
pub fn missing() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!("the kernels are those for x86_64, and this is {}", std::env::consts::ARCH));
    }
    let programs = ["apt-get", "dpkg-deb", "tar"];
    let lacks: Vec<&str> = programs.into_iter().filter(|program| !setup::has(program)).collect();
    (!lacks.is_empty()).then(|| {
        format!(
            "kernels come as Debian packages, and this machine has no {} to get them with",
            lacks.join(", no ")
        )
    })
}

/// The emulator and the guest's tools, downloaded when they are not there.
///
/// # Errors
/// When they cannot be had.
pub(super) fn tools() -> Result<Tools> {
    let root = cache().join("programs");
    let tools = Tools { root: root.clone() };
    let stamp = root.join("complete");
    if stamp.exists() {
        return Ok(tools);
    }
    start_over(&root)?;
    let downloads = cache().join("downloads");
    start_over(&downloads.join("partial"))?;
    println!("downloading {}", TOOLS.join(", "));
    let mut install = Command::new("apt-get");
    // Only what this machine lacks; what it has is used from where it is.
    install.args(["install", "--yes", "-qq", "--download-only", "--no-install-recommends", "--reinstall"]);
    install.arg("-o").arg(format!("Dir::Cache::archives={}", downloads.display()));
    // Nothing is installed, so no lock is needed, nor the rights to take it.
    install.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]).args(TOOLS);
    if run(&mut install).is_err() {
        // The lists are old or were never fetched.
        setup::update_lists()?;
        run(&mut install)?;
    }
    for package in debs(&downloads)? {
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&root))?;
    }
    fs::remove_dir_all(&downloads)?;
    fs::write(stamp, "")?;
    Ok(tools)
}

/// A kernel, downloaded when it is not there.
///
/// # Errors
/// When no mirror has it.
pub(super) fn kernel(kernel: Kernel, tools: &Tools) -> Result<KernelFiles> {
    let root = cache().join(format!("linux-{kernel}"));
    let stamp = root.join("complete");
    if !stamp.exists() {
        start_over(&root)?;
        let version = fetch(kernel, &root)?;
        depmod(&root, tools)?;
        fs::write(&stamp, version)?;
    }
    Ok(KernelFiles {
        version: fs::read_to_string(stamp)?,
        image: only_child(&root.join("boot"))?,
        modules: only_child(&root.join("lib/modules"))?,
    })
}

/// Unpacks the newest cloud kernel of the release below `root`, and returns its package and version.
fn fetch(kernel: Kernel, root: &Path) -> Result<String> {
    let mut refusals = Vec::new();
    for mirror in mirrors() {
        let lists = Lists::new(&root.join("apt"), &mirror, kernel.release())?;
        match run(lists.command("apt-get").args(["update", "-qq"])).and_then(|_| lists.fetch(root)) {
            Ok(version) => {
                fs::remove_dir_all(root.join("apt"))?;
                return Ok(version);
            }
            Err(error) => refusals.push(format!("{mirror}: {error:#}")),
        }
    }
    bail!(
        "no mirror has a kernel of Debian's {}; try again once `apt-get update` reaches one:\n{}",
        kernel.release(),
        refusals.join("\n")
    );
}

/// This machine's mirror of Debian, then the public ones.
fn mirrors() -> Vec<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let text = run(&mut targets).unwrap_or_default();
    let mut mirrors: Vec<String> = Vec::new();
    let own = text.lines().filter_map(|line| {
        let (label, mirror) = line.split_once(' ')?;
        // A label is known once the lists were fetched; Debian's archive is called so on every mirror.
        (label == "Debian" || mirror.trim_end_matches('/').ends_with("/debian")).then_some(mirror)
    });
    for mirror in own.chain(PUBLIC_MIRRORS) {
        if !mirrors.iter().any(|known| known == mirror) {
            mirrors.push(mirror.to_owned());
        }
    }
    mirrors
}

/// Package lists of one release, apart from the machine's.
struct Lists {
    config: PathBuf,
}

impl Lists {
    fn new(folder: &Path, mirror: &str, release: &str) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            setup::install(&["debian-archive-keyring"])?;
        }
        start_over(folder)?;
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(below))?;
        }
        fs::write(folder.join("status"), "")?;
        let sources = format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {release} main\n");
        fs::write(folder.join("sources.list"), sources)?;
        let at = folder.display();
        // A former release's lists are past the date they were good until; the signature holds.
        let config = format!(
            "Dir::Etc::SourceList \"{at}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
             Dir::State::Lists \"{at}/lists\";\nDir::State::Status \"{at}/status\";\nDir::Cache \"{at}/cache\";\n\
             APT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
             Acquire::Check-Valid-Until \"false\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
        );
        let path = folder.join("apt.conf");
        fs::write(&path, config)?;
        Ok(Self { config: path })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config);
        command
    }

    fn fetch(&self, root: &Path) -> Result<String> {
        let mut show = self.command("apt-cache");
        let text = run(show.args(["show", "--no-all-versions", "linux-image-cloud-amd64"]))?;
        let package = dependency(&text).with_context(|| format!("no kernel is named in:\n{text}"))?;
        println!("downloading {package}");
        let folder = root.join("apt");
        run(self.command("apt-get").args(["download", "-qq", package]).current_dir(&folder))?;
        let deb = debs(&folder)?.pop().context("apt-get downloaded nothing")?;
        let version = run(Command::new("dpkg-deb").args(["-f"]).arg(&deb).arg("Version"))?;
        unpack(&deb, root)?;
        Ok(format!("{package} {}", version.trim()))
    }
}

/// The kernel that the metapackage stands for at present.
fn dependency(paragraph: &str) -> Option<&str> {
    let depends = paragraph.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends
        .split(", ")
        .find_map(|one| one.split_whitespace().next().filter(|name| name.starts_with("linux-image-")))
}

fn unpack(deb: &Path, root: &Path) -> Result<()> {
    let mut reader = Command::new("dpkg-deb");
    let mut reader = reader.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn()?;
    let content = reader.stdout.take().context("its output is piped")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "--wildcards", "-C"]).arg(root).args(KERNEL_PARTS);
    let unpacked = tar.stdin(content).output().with_context(|| format!("start {}", shown(&tar)))?;
    let read = reader.wait()?;
    if !read.success() || !unpacked.status.success() {
        bail!("unpack {}: {}", deb.display(), String::from_utf8_lossy(&unpacked.stderr).trim());
    }
    // Newer releases keep modules below `/usr`; now both ways lead to them.
    let usr = root.join("usr");
    if usr.is_dir() {
        fs::rename(usr.join("lib"), root.join("lib"))?;
        fs::remove_dir_all(&usr)?;
    }
    symlink(".", usr).context("link usr")
}

/// Writes which module needs which, as the package does when it is installed.
fn depmod(root: &Path, tools: &Tools) -> Result<()> {
    let release = only_child(&root.join("lib/modules"))?;
    let mut depmod = tools.command(&tools.kmod());
    depmod.arg0("depmod").arg("-b").arg(root).arg(release.file_name().unwrap_or_default());
    run(&mut depmod).map(drop)
}

fn start_over(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(entries
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

fn only_child(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let first = entries.next().with_context(|| format!("{} is empty", folder.display()))??;
    Ok(first.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_the_one_that_the_metapackage_depends_on() {
        let paragraph =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";
        assert_eq!(dependency(paragraph), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(
            dependency("Package: linux-image-cloud-amd64\nDepends: base (>= 1), linux-image-7-x\n"),
            Some("linux-image-7-x")
        );
        assert_eq!(dependency("Package: other\nDepends: base\n"), None);
    }
}
