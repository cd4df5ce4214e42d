//! `blocker` reads authentication logs, decides who is attacking, and drops the attacker in the kernel.
//!
//! # The journey of a line
//!
//! A [`source`] yields blocks of whole lines. The [`agent`] stamps the time on them and hands them to the [`engine`],
//! which asks the [`filter`]s whether a line is a failure and whose, counts it ([`detect`]), and when there are enough
//! opens a ban in the [`ledger`]. It says what is to be done as [`engine::Command`]s; the agent carries them out: the
//! [`store`] first, then the [`enforce`]r, then whoever asked is answered, and what a jail has run is queued for threads
//! beside the loop.
//!
//! # The journey of a packet
//!
//! Frame, source address, banned and not over? allowed? Then drop and count; anything else passes. The XDP program is
//! in `blocker-ebpf`; the nftables table means the same.
//!
//! # Who may use whom
//!
//! | layer | modules | may use |
//! |---|---|---|
//! | CORE | [`time`] [`net`] `glob` [`policy`] [`filter`] [`allowlist`] [`detect`] [`ledger`] [`engine`] [`replay`] | itself: no clock, no I/O, no thread, no log, no `unsafe` |
//! | EDGE | [`config`] [`source`] [`enforce`] [`store`] [`control`] | CORE and its own library, never another EDGE |
//! | SHELL | [`agent`] [`cli`] | everything |
//!
//! `cargo xtask check` holds this wall by reading the sources, and so does the test `the_house_stands`.
//!
//! # What holds
//!
//! 1. CORE takes `now` as an argument, and equal inputs give equal commands
//!    (`no_life_bans_the_allowlisted_and_equal_lives_are_equal`).
//! 2. CORE cannot fail at run time; only constructors return `Result` (`no_bytes_stop_the_engine`).
//! 3. Everything is bounded, each bound is named and counted when it bites: [`policy::Limits`],
//!    [`filter::LINE_BYTES_MAX`], [`control::protocol::REQUEST_BYTES_MAX`], [`store::HISTORY_MAX`] and their like
//!    (`the_bound_holds_and_the_silent_pair_gives_way`, `a_full_table_gives_up_the_automatic_ban_soonest_over`,
//!    `a_flood_of_sources_hides_no_slow_attacker_and_bans_no_stranger`,
//!    `a_thousand_connections_are_harmless_and_the_next_is_served`).
//! 4. Nothing allowlisted or protected is ever dropped: the engine refuses it, and the kernel passes it inside a wider
//!    ban (`no_life_bans_the_allowlisted_and_equal_lives_are_equal`,
//!    `prefixes_of_every_length_nest_and_the_allowlist_passes_inside`).
//! 5. What is reported is what the kernel holds, read back (`bans_are_listed_as_asked_and_drop_what_they_cover`).
//! 6. No command of an operator comes before the kernel or delays a ban, and what a log says reaches it as a value only
//!    (`a_hanging_failing_or_flooding_action_delays_no_ban`, `values_reach_a_command_by_its_environment_only`).
//! 7. No line is counted twice or lost when the agent is killed: what was counted is kept with how far was read
//!    (`who_is_killed_at_any_instant_bans_as_who_never_is`, `no_sequence_of_actions_loses_doubles_or_cuts_a_line`,
//!    `sigkill_at_any_instant_loses_no_failure_and_counts_none_twice`).
//! 8. What is dropped depends on the source alone, whatever the frame looks like, and ARP, neighbour discovery and DHCP
//!    pass (`the_xdp_program_says_what_the_parser_says`,
//!    `nftables_says_what_the_parser_says_of_all_that_the_stack_accepts`).
//! 9. Enforcement has no gap: not while the agent is away, and not while programs, tables or the agent are swapped
//!    (`no_packet_of_a_banned_source_passes_while_programs_and_tables_are_swapped`,
//!    `no_packet_of_a_banned_source_passes_while_the_agent_is_killed_and_started`).
//!
//! Not held yet: that no untrusted byte is parsed by a process with a capability. The agent is one process.

pub mod agent;
pub mod allowlist;
pub mod cli;
pub mod config;
pub mod control;
pub mod detect;
pub mod enforce;
pub mod engine;
pub mod filter;
mod glob;
pub mod ledger;
pub mod net;
pub mod policy;
pub mod replay;
pub mod source;
pub mod store;
pub mod time;
