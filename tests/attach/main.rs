//! How the program gets on an interface, stays on it, and follows what becomes of it.
//!
//! Every case sends real frames and counts them exactly. What a kernel has no device for is said and skipped; each of
//! these devices is there in a distribution's kernel.

#[path = "../common/bpf.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod bpf;
#[path = "../common/foreign.rs"]
mod foreign;
#[path = "../common/frame.rs"]
mod frame;
#[path = "../common/link.rs"]
mod link;

mod agent;
mod interfaces;
mod others;
mod stage;
mod ways;
