//! Owed commands: a run changed something, and the command after it has not succeeded since.
//!
//! A debt is an empty private file. Its name is a hash of the pair and the command, so another
//! command for the same pair has a debt of its own. The file is written before the first change, so
//! a run that is killed before its command leaves it behind.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::content::hash::Hasher;
use crate::monitor::{Event, Monitor, Notice, Preparation, Warning};
use crate::private;
use crate::sync::job::{Job, SharedMonitor};
use crate::sync::pairing::{self, prune};
use crate::sync::target::state_dir;

/// Maximum number of stored debts: the newest ones stay.
const DEBTS_MAX: usize = 1_000;

/// The debt of a job's command.
pub(super) struct Owed {
    /// `None` if there is no command, or if nothing can be stored.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// True if the file exists.
    is_stored: bool,
    /// True if an earlier run left the debt.
    is_old: bool,
    /// Number of rounds that owe the command.
    rounds: u64,
    /// True if the current round transfers content, or lists changes.
    is_changing: bool,
    /// True if a round that did so was cut off, and none has ended since.
    was_cut: bool,
}

impl Owed {
    /// Looks up the debt of a job's command, which runs at this place. A dry run has none.
    pub(super) fn of(job: &Job, command: Option<(&str, &str)>) -> Arc<Self> {
        let command = command.filter(|_| !job.options.dry_run);
        let file = command.and_then(|command| Some(state_dir().ok()?.join("owed").join(name(job, command))));
        Arc::new(Self::stored_in(file))
    }

    fn stored_in(file: Option<PathBuf>) -> Self {
        let is_stored = file.as_deref().is_some_and(Path::exists);
        Self { file, state: Mutex::new(State { is_stored, is_old: is_stored, ..State::default() }) }
    }

    /// Reports if an earlier run left the debt.
    pub(super) fn is_old(&self) -> bool {
        self.state().is_old
    }

    /// Stores the debt of a round that changed something.
    pub(super) fn incur(&self) {
        let mut state = self.state();
        state.rounds += 1;
        self.store(&mut state);
    }

    /// Notes that the connection was lost. What the current round changed, the next one does not
    /// find any more.
    pub(super) fn cut(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.is_changing) {
            state.rounds += 1;
            state.was_cut = true;
            self.store(&mut state);
        }
    }

    /// Stores the debt of a complete round of a watch, if it has one. Reports if an earlier round
    /// of this watch was cut off.
    pub(super) fn round_ended(&self, has_changed: bool) -> bool {
        if has_changed {
            self.incur();
        } else {
            self.forgive();
        }
        let mut state = self.state();
        state.is_changing = false;
        std::mem::take(&mut state.was_cut)
    }

    /// Number of rounds so far that owe the command: an argument of [`Owed::settle`].
    pub(super) fn rounds(&self) -> u64 {
        self.state().rounds
    }

    /// Removes the debt after the command has succeeded, unless a round has ended since there were
    /// `rounds` of them.
    pub(super) fn settle(&self, rounds: u64) {
        let mut state = self.state();
        if state.rounds == rounds {
            state.is_old = false;
            state.rounds = 0;
            self.remove(&mut state);
        }
    }

    /// Removes a debt that was stored in advance, for a round that changed nothing.
    pub(super) fn forgive(&self) {
        let mut state = self.state();
        if !state.is_old && state.rounds == 0 {
            self.remove(&mut state);
        }
    }

    /// Forwards all events to `monitor`, and stores the debt as soon as the destination may change.
    pub(super) fn observing(self: &Arc<Self>, monitor: SharedMonitor) -> SharedMonitor {
        if self.file.is_none() {
            return monitor;
        }
        Arc::new(Storing { owed: Arc::clone(self), monitor })
    }

    fn store(&self, state: &mut State) {
        let Some(file) = self.file.as_deref().filter(|_| !state.is_stored) else { return };
        // If the debt cannot be stored, only this process knows it.
        state.is_stored = private::replace(file, b"").is_ok();
        if let Some(directory) = file.parent() {
            prune(directory, DEBTS_MAX);
        }
    }

    fn remove(&self, state: &mut State) {
        if let Some(file) = self.file.as_deref().filter(|_| state.is_stored) {
            state.is_stored = std::fs::remove_file(file).is_err();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a debt's file.
fn name(job: &Job, (place, command): (&str, &str)) -> String {
    let mut hasher = Hasher::new();
    for part in [pairing::name(job).as_str(), place, command] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digits = hasher.finish().to_string();
    digits.get(..32).unwrap_or(&digits).to_owned()
}

/// Forwards events to another observer, and stores the debt at the first one that may precede a
/// change.
struct Storing {
    owed: Arc<Owed>,
    monitor: SharedMonitor,
}

impl Monitor for Storing {
    fn observe(&self, event: Event) {
        let is_changing = matches!(event, Event::Planned { .. } | Event::Change { .. });
        if is_changing || matches!(event, Event::Resolved { .. }) {
            let mut state = self.owed.state();
            state.is_changing |= is_changing;
            self.owed.store(&mut state);
        }
        self.monitor.observe(event);
    }

    fn prepare(&self, preparation: Preparation) {
        self.monitor.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.monitor.warn(warning);
    }

    fn notice(&self, notice: Notice) {
        self.monitor.notice(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Quiet;

    #[test]
    fn a_debt_outlives_the_process_until_the_command_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("owed/x");
        let owed = || Arc::new(Owed::stored_in(Some(file.clone())));
        let first = owed();
        assert!(!first.is_old());
        first.incur();
        let again = owed();
        assert!(again.is_old());
        // A round that changes nothing leaves the debt.
        again.forgive();
        assert!(owed().is_old());
        again.settle(again.rounds());
        assert!(!owed().is_old() && !again.is_old());
    }

    #[test]
    fn a_debt_in_advance_stays_only_if_the_run_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("owed/x");
        let owed = Arc::new(Owed::stored_in(Some(file.clone())));
        let monitor = owed.observing(Arc::new(Quiet));
        monitor.observe(Event::Scanned { entries: 1, bytes: 1 });
        assert!(!file.exists());
        monitor.observe(Event::Resolved { path: b"/x".to_vec() });
        assert!(file.exists(), "killed here");
        owed.forgive();
        assert!(!file.exists());
    }

    #[test]
    fn a_round_that_was_cut_off_owes_the_command_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("owed/x");
        let owed = Arc::new(Owed::stored_in(Some(file.clone())));
        let monitor = owed.observing(Arc::new(Quiet));
        monitor.observe(Event::Resolved { path: b"/x".to_vec() });
        owed.cut();
        assert!(!owed.round_ended(false) && !file.exists(), "nothing was transferred");
        monitor.observe(Event::Planned { files: 1, bytes: 1 });
        owed.cut();
        assert!(owed.round_ended(false) && file.exists());
        assert!(!owed.round_ended(false) && file.exists());
        owed.settle(owed.rounds());
        assert!(!file.exists());
    }

    #[test]
    fn a_round_that_ends_during_the_command_still_owes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("owed/x");
        let owed = Owed::stored_in(Some(file.clone()));
        owed.incur();
        let rounds = owed.rounds();
        owed.incur();
        owed.settle(rounds);
        assert!(file.exists());
        owed.settle(owed.rounds());
        assert!(!file.exists());
    }
}
