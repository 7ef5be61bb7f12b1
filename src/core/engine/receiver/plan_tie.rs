//! The tie to a plan: a run that carries out a plan stops if a side has changed since.

use super::Receiver;
use crate::content::hash::{Hash, Hasher};
use crate::engine::transfer::Target;
use crate::monitor::Event;
use crate::tree::entry::Time;
use crate::tree::manifest::Manifest;
use crate::tree::plan_state::PlanState;
use crate::tree::record;
use crate::wire::hello::PlanTie;
use crate::wire::message::{AbortKind, Subject};

impl<T: Target> Receiver<T> {
    /// Reports the state of both sides, or compares it with that of the plan. `false` if the run
    /// has ended, since a side has changed.
    pub(super) fn holds_plan(&mut self) -> bool {
        let Some(tie) = self.config.options.plan else { return true };
        let Some(state) = self.state() else { return true };
        let planned = match tie {
            PlanTie::Make => {
                self.outbox.report(Event::Bound(state));
                return true;
            }
            PlanTie::Match(planned) => planned,
        };
        let text = match (state.source == planned.source, state.destination == planned.destination) {
            (true, true) => return true,
            (false, true) => "the source has changed since the plan was made",
            (true, false) => "the destination has changed since the plan was made",
            (false, false) => "the source and the destination have changed since the plan was made",
        };
        self.outbox.fail(AbortKind::Plan, text.to_owned());
        false
    }

    fn state(&self) -> Option<PlanState> {
        let (opened, complete) = (self.opened.as_ref()?, self.offer.complete?);
        let source = match self.offer.subject {
            Some(Subject::Directory { mode, seconds, nanos, .. }) => Some((mode, Time::new(seconds, nanos)?)),
            _ => None,
        };
        // A destination that this run has made was missing for the plan.
        let destination = opened.destination.metadata.filter(|_| !opened.destination.is_new);
        Some(PlanState {
            source: digest(&self.offered, source, complete),
            destination: digest(&opened.manifest, destination, opened.complete),
        })
    }
}

fn digest(tree: &Manifest, root: Option<(u16, Time)>, is_complete: bool) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(record::digest(tree, &[]).as_bytes());
    hasher.update(&[u8::from(is_complete), u8::from(root.is_some())]);
    if let Some((mode, time)) = root {
        hasher.update(&mode.to_le_bytes());
        hasher.update(&time.seconds().to_le_bytes());
        hasher.update(&time.nanos().to_le_bytes());
    }
    hasher.finish()
}
