//! One boot: the emulator with a kernel and an archive, until it turns itself off or its time is over.
//!
//! It has no network device, no disk and no display; two serial lines come out of it, the kernel's console into a
//! file and the guest's words to us.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Stdio,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    packages::{KernelFiles, Tools},
    report,
    transcript::Transcript,
};
use crate::lab::Process;

/// Memory of a guest; it holds the archive twice while it starts, and tables of a million bans.
const MEMORY_MIB: u32 = 2048;
/// A suite that hangs is killed inside, so that the others still run.
const SUITE_SECONDS: u32 = 900;
/// An emulated processor is so many times slower than the machine's own; tests that hold the agent to a time allow for it.
const SLOWNESS: u32 = 4;
/// Tests at once: twice as many as processors, for much of their time is waiting.
const TEST_THREADS: u32 = 4;
/// The end of one kernel's run, whatever happens inside.
const RUN_TIME_MAX: Duration = Duration::from_secs(40 * 60);
/// A guest that says so much is not believed to end.
const OUTPUT_LINES_MAX: usize = 200_000;

/// Boots and reads what the guest says to its end, also to be kept in `log`; the console goes to `console`.
///
/// # Errors
/// When the emulator cannot be started, or the guest did not get to its end in time; what it said until then is in
/// `transcript`.
pub(super) fn run(
    kernel: &KernelFiles,
    archive: &Path,
    tools: &Tools,
    suites: &[&str],
    transcript: &mut Transcript,
    (console, log): (&Path, &mut File),
) -> Result<()> {
    let mut command = tools.emulator();
    // Emulated, also where there is KVM: nested ones hang with kernels of distributions. The two processors run by turns:
    // each on a thread of its own, one can run into a breakpoint that the other has set while it rewrites the kernel's
    // code, after the kernel has forgotten about it. Each exchange of an XDP program rewrites some; of those under
    // traffic, one in some thousands ended in a panic (6.12) or in a loop (5.10).
    command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"]);
    command.args(["-m", &MEMORY_MIB.to_string()]);
    command.args(["-display", "none", "-nodefaults", "-nic", "none", "-no-reboot"]);
    command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    // Half of a test's time is waiting for grace periods of the kernel; and nobody attacks this one's processor.
    let quick = "rcupdate.rcu_expedited=1 mitigations=off";
    let end = RUN_TIME_MAX.as_secs();
    // What the kernel does not know goes to the first process, by its environment.
    let variables = [
        format!("SUITES={}", suites.join(",")),
        format!("THREADS={TEST_THREADS} SLOWNESS={SLOWNESS}"),
        format!("SUITE_SECONDS={SUITE_SECONDS} RUN_SECONDS={end}"),
    ];
    command
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 net.ifnames=0 loglevel=5 {quick} {}", variables.join(" ")));
    let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let lines = lines_of(&mut process)?;
    let end = Instant::now() + RUN_TIME_MAX;
    for _ in 0..OUTPUT_LINES_MAX {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                if let Some(suite) = transcript.read(&line) {
                    report::suite(&suite, &transcript.suites[&suite]);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                process.kill();
                bail!(
                    "the guest did not end within {} minutes; name fewer with --suite",
                    RUN_TIME_MAX.as_secs() / 60
                );
            }
        }
    }
    // Both ends of its output are closed, or it said too much.
    process.kill();
    if !transcript.is_complete() {
        bail!(
            "the guest ended early; its last words, here and on its console {}:\n{}",
            console.display(),
            transcript.tail()
        );
    }
    Ok(())
}

/// Lines of standard output and error, as they come; disconnected when both have ended.
fn lines_of(process: &mut Process) -> Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    let child = process.child();
    let stdout: Box<dyn std::io::Read + Send> = Box::new(child.stdout.take().context("its output is piped")?);
    let stderr: Box<dyn std::io::Read + Send> =
        Box::new(child.stderr.take().context("its errors are piped")?);
    for stream in [stdout, stderr] {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    Ok(receiver)
}
