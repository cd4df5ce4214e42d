//! A whole log through the engine, as if it had just been written: what would have been decided, with no kernel.
#![forbid(unsafe_code)]

use crate::{
    engine::{Command, Engine, Input, Kept, Reading, SourceId},
    ledger::Ledger,
    policy::Policy,
    time::Timestamp,
};

/// Feeds `log` to a new engine as one source's lines and returns every command, in order.
///
/// Failures count at the time the log gives them, up to `now`.
pub fn replay(policy: Policy, source: SourceId, log: &[u8], now: Timestamp) -> Vec<Command> {
    let mut engine = Engine::new(now, policy, Kept::default());
    engine.handle(now, Input::Lines { source, block: log, reading: Reading::CatchingUp });
    std::iter::from_fn(|| engine.next_command()).collect()
}

/// The ledger that a kernel and a store would hold after these commands; the oracle of the engine's tests.
pub fn ledger_after(commands: &[Command], bans_max: usize) -> Ledger {
    use crate::engine::Change;
    let mut ledger = Ledger::new(bans_max);
    for command in commands {
        match command {
            Command::Record(Change::Ban(ban)) => {
                ledger.open(ban.clone());
            }
            Command::Record(Change::Unban { prefix, scope }) => {
                ledger.close(*prefix, scope);
            }
            Command::Record(Change::Flush) => ledger = Ledger::new(bans_max),
            _ => {}
        }
    }
    ledger
}
