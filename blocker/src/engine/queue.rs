//! What the engine wants done, in order.
//!
//! Nearly all of a busy block's commands are notes of failures, while a command has room for a whole ban: as they are,
//! thousands of them would push the windows out of the processor's cache. So failures are kept as they are, and
//! everything else behind a pointer.
#![forbid(unsafe_code)]

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use super::{Command, Event};

/// Commands, first in, first out.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<Queued>);

#[derive(Debug)]
enum Queued {
    Failure { jail: Arc<str>, address: IpAddr, count: u32, maxretry: u32 },
    Other(Box<Command>),
}

impl Queue {
    pub(super) fn push_back(&mut self, command: Command) {
        self.0.push_back(match command {
            Command::Note(Event::Failure { jail, address, count, maxretry }) => {
                Queued::Failure { jail, address, count, maxretry }
            }
            other => Queued::Other(Box::new(other)),
        });
    }

    /// As [`Self::push_back`] of its note, without making one.
    pub(super) fn push_failure(&mut self, jail: Arc<str>, address: IpAddr, count: u32, maxretry: u32) {
        self.0.push_back(Queued::Failure { jail, address, count, maxretry });
    }

    pub(super) fn pop_front(&mut self) -> Option<Command> {
        Some(match self.0.pop_front()? {
            Queued::Failure { jail, address, count, maxretry } => {
                Command::Note(Event::Failure { jail, address, count, maxretry })
            }
            Queued::Other(command) => *command,
        })
    }
}

impl Extend<Command> for Queue {
    fn extend<T: IntoIterator<Item = Command>>(&mut self, commands: T) {
        commands.into_iter().for_each(|command| self.push_back(command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Change, RequestId, Response};

    #[test]
    fn commands_come_out_in_order_and_a_failure_is_small() {
        let failure = Command::Note(Event::Failure {
            jail: "sshd".into(),
            address: [203, 0, 113, 9].into(),
            count: 2,
            maxretry: 5,
        });
        let commands = [
            failure.clone(),
            Command::Record(Change::Flush),
            failure,
            Command::Reply(RequestId(7), Response::Flushed { bans: 3 }),
        ];
        let mut queue = Queue::default();
        queue.extend(commands.clone());
        let out: Vec<Command> = std::iter::from_fn(|| queue.pop_front()).collect();
        assert_eq!(out, commands);
        assert!(
            size_of::<Queued>() <= 48 && size_of::<Command>() > 3 * size_of::<Queued>(),
            "{} {}",
            size_of::<Queued>(),
            size_of::<Command>()
        );
    }
}
