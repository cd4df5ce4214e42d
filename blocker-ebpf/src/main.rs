//! The XDP program; on the host an empty `main`, so that the workspace builds on plain stable.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}
