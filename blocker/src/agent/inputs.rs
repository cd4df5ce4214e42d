//! From the sources to the engine: what has arrived, with the time stamped on it.
#![deny(unsafe_code)]

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Instant,
};

use tokio::io::{Interest, unix::AsyncFd};
use tracing::{error, info};

use super::{Agent, Error, journal_specs, now, unlogged};
use crate::{
    config::Config,
    engine::{Input, Reading, SourceId},
    policy::{SocketSpec, SourceSpec},
    source::StdinSource,
};

impl Agent {
    pub(super) fn poll_files(&mut self) -> Option<Instant> {
        let (engine, read) = (&mut self.engine, &mut self.keeping.read);
        let mut feed = |source, reading, block: &[u8]| {
            *read = true;
            engine.handle(now(), Input::Lines { source, block, reading });
        };
        let instant = Instant::now();
        self.files.poll(instant, &mut feed).map(|after| instant + after)
    }

    pub(super) fn poll_journal(&mut self) {
        let (engine, read) = (&mut self.engine, &mut self.keeping.read);
        self.journal.poll(&mut |source, reading, block: &[u8]| {
            *read = true;
            engine.handle(now(), Input::Lines { source, block, reading });
        });
    }

    pub(super) fn poll_sockets(&mut self) {
        let engine = &mut self.engine;
        self.sockets.poll(&mut |source, block: &[u8]| {
            engine.handle(now(), Input::Lines { source, block, reading: Reading::Live });
        });
    }

    pub(super) fn poll_stdin(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let mut sources = self.config.policy.sources.iter();
        let source = sources.position(|spec| *spec == SourceSpec::Stdin).map(u16::try_from);
        let engine = &mut self.engine;
        stdin.poll(&mut |block: &[u8]| {
            // Nobody may read it any more since a reload. What comes may be an old log, so dates count.
            let Some(Ok(source)) = source else { return };
            let (source, reading) = (SourceId(source), Reading::CatchingUp);
            engine.handle(now(), Input::Lines { source, block, reading });
        });
    }

    pub(super) fn arrange_journal(&mut self) {
        if let Err(error) = self.journal.set_sources(&journal_specs(&self.config, now())) {
            let warning = format!("the journal is not read until the next reload: {error}");
            error!("{warning}");
            self.warnings.push(warning);
        }
    }

    /// Jails that read the journal since none of their logs was there read them where one is by now. The configuration
    /// is not read again for that: nobody has said that what is in it now is finished.
    pub(super) fn read_appeared_logs(&mut self) {
        for appeared in unlogged::read_logs_again(&mut self.config.policy, &mut self.instead) {
            info!("a log is there by now, and read in place of the journal. It had said: {}", appeared.note);
            self.warnings.retain(|warning| *warning != appeared.note);
            self.engine.set_policy(now(), self.config.policy.clone());
            self.arrange_journal();
        }
    }
}

pub(super) fn socket_specs(config: &Config) -> Vec<(SourceId, SocketSpec)> {
    let specs = config.policy.sources.iter().enumerate();
    specs
        .filter_map(|(index, spec)| match spec {
            SourceSpec::Socket(spec) => Some((SourceId(u16::try_from(index).ok()?), spec.clone())),
            _ => None,
        })
        .collect()
}

/// Standard input, where a jail is to read it.
pub(super) fn stdin(config: &Config) -> Result<StdinSource, Error> {
    if !config.policy.sources.contains(&SourceSpec::Stdin) {
        let what = "--stdin: no jail reads standard input; write `stdin = true` into the one that is to";
        return Err(Error::Start(what.to_owned()));
    }
    StdinSource::new(io::stdin()).map_err(|error| Error::Start(format!("read standard input: {error}")))
}

/// A copy of a descriptor whose readiness the loop can wait for; whoever owns the other one reads.
pub(super) fn watched(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let copy = fd.try_clone_to_owned()?;
    // SAFETY: the descriptor is owned by what is registered, and nothing closes or replaces it before that is dropped.
    #[expect(unsafe_code, reason = "the library's safe constructor is deprecated")]
    let registered = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) };
    Ok(registered?)
}

/// Ends when there is something to read; never, when there is nothing to read from.
pub(super) async fn readable(fd: Option<&AsyncFd<OwnedFd>>) {
    match fd {
        Some(fd) => {
            if let Ok(mut guard) = fd.readable().await {
                guard.clear_ready();
            }
        }
        None => std::future::pending().await,
    }
}
