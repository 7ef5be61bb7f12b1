//! The granularity of a filesystem's modification times, found out on a file that nobody sees.

use std::fs::File;

use rustix::fs::futimens;

use crate::disk::lock::keeping_time;
use crate::disk::stat::{identity_of, times};
use crate::disk::state::{PART, StateDir};
use crate::disk::writable::WritableRoot;
use crate::tree::time_rule::{TimeRule, probe_time};

/// The file in the state directory that serves as probe. The clean-up of staged files removes it
/// if this process is killed.
const PROBE: &str = "probe-time";

impl WritableRoot {
    /// The rule for times on the filesystem of the root; `None` if it cannot be found out.
    /// `may_write` permits a file in the state directory, if there are no anonymous ones.
    #[must_use]
    pub fn time_rule(&self, may_write: bool) -> Option<TimeRule> {
        if let Some(file) = self.anonymous_file() {
            return stored(&file);
        }
        let create = || StateDir::create(self.descriptor());
        let state = may_write.then(|| keeping_time(self.descriptor(), create).ok())??;
        let name = [PROBE, PART].concat();
        let (file, _) = state.open_part(&name).ok()?;
        let rule = stored(&File::from(file));
        state.remove(name.as_bytes()).ok()?;
        rule
    }
}

fn stored(file: &File) -> Option<TimeRule> {
    let set = probe_time()?;
    futimens(file, &times(set)).ok()?;
    TimeRule::of_stored((set, identity_of(file).ok()?.mtime))
}

#[cfg(test)]
mod tests {
    use crate::disk::testing::Fixture;
    use crate::tree::time_rule::TimeRule;

    #[test]
    fn probe_leaves_nothing_and_finds_fine_times() {
        let fixture = Fixture::new();
        fixture.root.lock().unwrap();
        for has_anonymous in [true, false] {
            fixture.root.has_anonymous.store(has_anonymous, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(fixture.root.time_rule(true), Some(TimeRule::Exact));
        }
        assert_eq!(std::fs::read_dir(fixture.at(".ksync")).unwrap().count(), 1);
        fixture.root.has_anonymous.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(fixture.root.time_rule(false), None);
    }
}
