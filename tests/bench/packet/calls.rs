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
const EXIT: u8 = 0x95;
const GO: u8 = 0x05;
const GO_FAR: u8 = 0x06;
/// Takes the place of two.
const LOAD_LONG: u8 = 0x18;
/// What an honest packet is asked of first.
const PREFILTER: &str = "PREFILTER";

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
            let prefilter = ours.maps()?.into_iter().find(|map| map.name == PREFILTER).map(|map| map.id);
            let calls = honest_calls(&instructions, prefilter.context("the table has no prefilter")?);
            let name = "fewest calls from the first instruction by the prefilter to the end";
            report.target(name, calls.map_or(f64::INFINITY, |calls| calls as f64), Bound::AtMost(0.0, ""));
        }
    }
    Ok(())
}

/// The fewest calls on any way from the first instruction through a look into this map and on to the end: the way of an
/// honest packet. `None` when there is no such way.
fn honest_calls(instructions: &[u64], map: u32) -> Option<usize> {
    // BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD, as the kernel shows it: the map by its id.
    let asks = |at: usize| {
        let bytes = instructions[at].to_le_bytes();
        bytes[0] == LOAD_LONG && bytes[1] >> 4 == 1 && (instructions[at] >> 32) as u32 == map
    };
    // Ways are compared by their calls; a state is an instruction and whether the map was asked before it.
    let mut fewest = vec![[usize::MAX; 2]; instructions.len()];
    let mut open = std::collections::VecDeque::from([(0, 0, 0)]);
    let mut best = None;
    while let Some((at, asked, calls)) = open.pop_front() {
        if at >= instructions.len() || fewest[at][asked] <= calls {
            continue;
        }
        fewest[at][asked] = calls;
        let asked = if asks(at) { 1 } else { asked };
        let bytes = instructions[at].to_le_bytes();
        let near = at.wrapping_add_signed(isize::from(i16::from_le_bytes([bytes[2], bytes[3]])) + 1);
        let far = at.wrapping_add_signed((instructions[at] >> 32) as i32 as isize + 1);
        match (bytes[0], bytes[0] & 7) {
            (CALL, _) => open.push_back((at + 1, asked, calls + 1)),
            (EXIT, _) if asked == 1 => best = Some(best.map_or(calls, |best: usize| best.min(calls))),
            (EXIT, _) => {}
            (GO, _) => open.push_front((near, asked, calls)),
            (GO_FAR, _) => open.push_front((far, asked, calls)),
            (LOAD_LONG, _) => open.push_front((at + 2, asked, calls)),
            // BPF_JMP and BPF_JMP32: the others compare.
            (_, 5 | 6) => open.extend([(near, asked, calls), (at + 1, asked, calls)]),
            _ => open.push_front((at + 1, asked, calls)),
        }
    }
    best
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
