//! The kernel contract.
#![cfg_attr(target_arch = "bpf", no_std)]
