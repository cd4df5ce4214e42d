//! Which helpers the program calls, read from what the verifier made of it: what it inlined is no call any more.

use std::{collections::BTreeMap, fs, os::fd::AsRawFd as _};

use anyhow::{Context, Result};

use crate::{
    ours::{KINDS, Ours},
    report::{Bound, Report},
    syscalls,
};

/// BPF_JMP | BPF_CALL (kernel doc, BPF instruction set).
const CALL: u8 = 0x85;

pub(crate) fn check(report: &mut Report) -> Result<()> {
    println!("\n-- helpers that the translated program calls");
    for kind in &KINDS {
        let mut ours = Ours::open(kind, 1_000)?;
        let instructions = syscalls::translated(ours.program()?.fd.as_raw_fd())?;
        let names = Names::read()?;
        let mut calls: BTreeMap<String, usize> = BTreeMap::new();
        for call in instructions.iter().filter_map(|instruction| called(*instruction)) {
            *calls.entry(names.of(&call)).or_default() += 1;
        }
        let listed: Vec<String> = calls.iter().map(|(name, times)| format!("{name} {times}")).collect();
        println!(
            "ours, {}: {} instructions; {}",
            kind.name,
            instructions.len(),
            if listed.is_empty() { "no call".to_owned() } else { listed.join(", ") }
        );
        if kind.judged {
            let count: usize = calls.values().sum();
            report.target("helper calls in the program, on every path", count as f64, Bound::AtMost(0.0, ""));
        }
    }
    Ok(())
}

/// What an instruction calls.
enum Called {
    /// So far from the address that all helpers are told by.
    Kernel(i32),
    /// A function of the program itself.
    Own,
    Kfunc,
}

fn called(instruction: u64) -> Option<Called> {
    let bytes = instruction.to_le_bytes();
    if bytes[0] != CALL {
        return None;
    }
    let immediate = (instruction >> 32) as u32;
    Some(match bytes[1] >> 4 {
        0 => Called::Kernel(immediate.cast_signed()),
        1 => Called::Own,
        _ => Called::Kfunc,
    })
}

/// The kernel's own names for its functions.
struct Names {
    base: u64,
    functions: BTreeMap<u64, String>,
}

impl Names {
    fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/kallsyms").context("read the kernel's symbols")?;
        let mut functions = BTreeMap::new();
        let mut base = 0;
        for line in text.lines() {
            let mut parts = line.split_ascii_whitespace();
            if let (Some(address), Some("T" | "t"), Some(name)) = (parts.next(), parts.next(), parts.next())
                && let Ok(address) = u64::from_str_radix(address, 16)
            {
                if name == "__bpf_call_base" {
                    base = address;
                }
                functions.insert(address, name.to_owned());
            }
        }
        Ok(Self { base, functions })
    }

    fn of(&self, called: &Called) -> String {
        match called {
            Called::Own => "a function of its own".to_owned(),
            Called::Kfunc => "a kernel function".to_owned(),
            Called::Kernel(offset) => {
                let name = self.functions.get(&self.base.wrapping_add_signed((*offset).into()));
                name.cloned().unwrap_or_else(|| format!("helper at {offset:+}"))
            }
        }
    }
}
