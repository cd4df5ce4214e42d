//! When a jail's actions run, as commands for the agent.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::{Act, Command, Engine, Occasion};
use crate::{
    ledger::{Ban, Origin},
    policy::{ActionSpec, Jail, Policy},
};

impl Engine {
    /// Runs what the jail has for a ban of its own. Of restored bans only what asks for them.
    pub(super) fn act_ban(&mut self, ban: &Ban, matches: &[String], restored: bool) {
        let Some(jail) = self.jail_of(ban) else { return };
        let asked = |action: &&Arc<ActionSpec>| action.ban.is_some() && (!restored || action.restored);
        let act = |action: &Arc<ActionSpec>| {
            let matches = if action.matches { matches.to_vec() } else { Vec::new() };
            let occasion = Occasion::Ban { ban: ban.clone(), matches, restored };
            Command::Act(Act { jail: Arc::clone(&jail.name), action: Arc::clone(action), occasion })
        };
        let acts: Vec<Command> = jail.actions.iter().filter(asked).map(act).collect();
        self.commands.extend(acts);
    }

    /// Runs what the jail has for the end of a ban of its own.
    pub(super) fn act_unban(&mut self, ban: &Ban) {
        let Some(jail) = self.jail_of(ban) else { return };
        let act = |action: &Arc<ActionSpec>| {
            let occasion = Occasion::Unban { ban: ban.clone() };
            Command::Act(Act { jail: Arc::clone(&jail.name), action: Arc::clone(action), occasion })
        };
        let acts: Vec<Command> =
            jail.actions.iter().filter(|action| action.unban.is_some()).map(act).collect();
        self.commands.extend(acts);
    }

    fn jail_of(&self, ban: &Ban) -> Option<&Jail> {
        let Origin::Jail(name) = &ban.origin else { return None };
        self.policy.jails.iter().find(|jail| jail.name == *name)
    }

    /// Stops the actions that are in this policy no more, and starts those that were not in the one before.
    pub(super) fn act_changed(&mut self, before: &Policy) {
        let stopped = without(before, &self.policy, &Occasion::Stop, |action| action.stop.is_some());
        let started = without(&self.policy, before, &Occasion::Start, |action| action.start.is_some());
        self.commands.extend(stopped.into_iter().chain(started).map(Command::Act));
    }
}

/// The actions of one policy that the other one has not in the same jail.
fn without(policy: &Policy, other: &Policy, occasion: &Occasion, has: fn(&ActionSpec) -> bool) -> Vec<Act> {
    let mut acts = Vec::new();
    for jail in &policy.jails {
        let same = other.jails.iter().find(|same| same.name == jail.name);
        for action in jail.actions.iter().filter(|action| has(action)) {
            if !same.is_some_and(|same| same.actions.contains(action)) {
                acts.push(Act {
                    jail: Arc::clone(&jail.name),
                    action: Arc::clone(action),
                    occasion: occasion.clone(),
                });
            }
        }
    }
    acts
}
