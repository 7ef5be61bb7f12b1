//! The result of a job, and that of each of its exchanges.

use std::time::Duration;

use crate::engine::Summary;
use crate::monitor::{Problem, ProblemKind};

/// The result of a job.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The work done, of all repetitions together.
    pub summary: Summary,
    /// Time from the start of the job to its end.
    pub elapsed: Duration,
    /// Bytes of the exchange to the other side, as SSH carries them.
    pub wire_up_bytes: u64,
    /// Bytes of the exchange from the other side.
    pub wire_down_bytes: u64,
    /// Bytes of the agent that had to be installed first.
    pub agent_installed_bytes: u64,
    /// Round trips until the other side could answer; 0 without another machine.
    pub connect_round_trips: u32,
    /// Number of reconnections. Work before the last one is in the destination, but the summary
    /// counts only its transferred content.
    pub retries: u32,
    /// True if this was a dry run.
    pub dry_run: bool,
    /// True if the job compared both trees: the changes in the summary are differences.
    pub verified: bool,
    /// Exit status of the command that ran afterwards, if one did.
    pub command_status: Option<u32>,
}

impl Report {
    /// Number of differences that a verification found. A directory in the place of another entry
    /// is one, although no run would replace it.
    #[must_use]
    pub fn differences(&self) -> u64 {
        let tally = &self.summary.tally;
        let is_obstacle = |problem: &&Problem| problem.kind == ProblemKind::Obstacle;
        let obstacles = self.summary.problems.iter().filter(is_obstacle).count() as u64;
        tally.created + tally.updated + tally.adjusted + tally.deleted + obstacles
    }

    /// True if the destination has changed, as far as is known.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let tally = &self.summary.tally;
        tally.has_changed() || (self.retries > 0 && tally.sent_bytes > 0)
    }

    /// Adds the result of a repetition.
    pub(super) fn add(&mut self, round: Round) {
        add(&mut self.summary, round.summary);
        self.wire_up_bytes += round.wire_up_bytes;
        self.wire_down_bytes += round.wire_down_bytes;
        self.agent_installed_bytes += round.agent_installed_bytes;
        self.connect_round_trips = round.connect_round_trips;
    }

    /// Adds the result of the last attempt to that of the lost ones.
    pub(super) fn and(mut self, last: Self) -> Self {
        add(&mut self.summary, last.summary);
        Self {
            summary: self.summary,
            wire_up_bytes: self.wire_up_bytes + last.wire_up_bytes,
            wire_down_bytes: self.wire_down_bytes + last.wire_down_bytes,
            agent_installed_bytes: self.agent_installed_bytes + last.agent_installed_bytes,
            retries: self.retries,
            ..last
        }
    }
}

/// The result of one exchange, over any connection.
pub(super) struct Round {
    pub(super) summary: Summary,
    pub(super) wire_up_bytes: u64,
    pub(super) wire_down_bytes: u64,
    pub(super) agent_installed_bytes: u64,
    pub(super) connect_round_trips: u32,
}

/// Adds a later round: its work is added, but its problems replace the earlier ones.
fn add(summary: &mut Summary, later: Summary) {
    let (total, tally) = (&mut summary.tally, later.tally);
    total.entries = tally.entries;
    total.total_bytes = tally.total_bytes;
    total.created += tally.created;
    total.updated += tally.updated;
    total.adjusted += tally.adjusted;
    total.deleted += tally.deleted;
    total.files += tally.files;
    total.sent_bytes += tally.sent_bytes;
    total.matched_bytes += tally.matched_bytes;
    total.moved += tally.moved;
    total.copied += tally.copied;
    summary.traffic.raw_bytes += later.traffic.raw_bytes;
    summary.traffic.waits += later.traffic.waits;
    summary.braked = later.braked;
    summary.problems = later.problems;
    summary.problem_count = later.problem_count;
}
