//! A contest: everybody in turn does the same on the same link, and what comes out is looked at.

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cases::{Before, Case, Sizes};
use crate::contestants::{Contestant, destination};
use crate::lab::change::{Change, Version};
use crate::lab::figures::median;
use crate::lab::link::{Carried, Conditions, RAW};
use crate::lab::machine::{Job, Machine, Way};
use crate::lab::memory::{Observer, Peaks};
use crate::lab::verify::difference;

/// A run that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1200);

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) wall: Duration,
    pub(crate) carried: Carried,
    pub(crate) peaks: Peaks,
}

/// All runs of one contestant in one case on one link.
pub(crate) struct Row {
    pub(crate) contestant: &'static Contestant,
    pub(crate) outcomes: Vec<Outcome>,
    /// Why there are no numbers.
    pub(crate) error: Option<String>,
}

/// One case on one link.
pub(crate) struct Heat {
    pub(crate) case: &'static Case,
    pub(crate) link: Conditions,
    pub(crate) way: Way,
    /// What was changed, in words.
    pub(crate) change: Option<String>,
    /// What nobody can beat on this link, where that is known.
    pub(crate) limit: Option<Duration>,
    pub(crate) rows: Vec<Row>,
}

/// Everybody's copies of one source.
pub(crate) struct Contest<'a> {
    machine: &'a Machine,
    way: Way,
    source: PathBuf,
    /// After how many bytes a link breaks where that is the case.
    cut_after: u64,
    /// Who has a copy of the source in its old version.
    settled: HashSet<&'static str>,
}

impl<'a> Contest<'a> {
    /// A contest over what is at `source`, which is in its old version.
    pub(crate) fn new(machine: &'a Machine, way: Way, source: PathBuf, cut_after: u64) -> Contest<'a> {
        Contest { machine, way, source, cut_after, settled: HashSet::new() }
    }

    /// Runs a case on one link: `runs` rounds, in each of which somebody else begins.
    pub(crate) fn run(
        &mut self,
        case: &'static Case,
        link: Conditions,
        contestants: &[&'static Contestant],
        change: Option<&Change>,
        runs: usize,
    ) -> Vec<Row> {
        let row = |&contestant| Row { contestant, outcomes: Vec::new(), error: None };
        let mut rows: Vec<Row> = contestants.iter().map(row).collect();
        let count = rows.len();
        for turn in 0..runs * count {
            let row = &mut rows[(turn + turn / count) % count];
            if row.error.is_some() || crate::lab::is_interrupted() {
                continue;
            }
            match self.once(case, link, row.contestant, change) {
                Ok(outcome) => row.outcomes.push(outcome),
                Err(error) => row.error = Some(error),
            }
        }
        rows
    }

    /// One measured run, verified, after which everything is as it was before.
    fn once(
        &mut self,
        case: &Case,
        link: Conditions,
        contestant: &'static Contestant,
        change: Option<&Change>,
    ) -> Result<Outcome, String> {
        let copy = destination(self.machine, contestant, self.way);
        if matches!(case.before, Before::Nothing | Before::Cut) {
            self.forget(contestant);
            let is_ready = if case.before == Before::Cut { self.cut(contestant, &copy) } else { Ok(()) };
            let result = is_ready.and_then(|()| self.measured(link, contestant, &copy));
            self.forget(contestant);
            return result;
        }
        self.settle(contestant, &copy)?;
        let Some(change) = change else { return self.measured(link, contestant, &copy) };
        change.apply(&self.source, Version::New);
        let result = self.measured(link, contestant, &copy);
        change.apply(&self.source, Version::Old);
        if result.is_err() {
            self.forget(contestant);
        } else if contestant.remembers {
            self.sync(RAW, contestant, &copy).inspect_err(|_| self.forget(contestant))?;
        } else {
            change.apply(&copy, Version::Old);
        }
        result
    }

    /// Lets a contestant make its copy by itself, if it has none yet.
    fn settle(&mut self, contestant: &'static Contestant, copy: &Path) -> Result<(), String> {
        if self.settled.contains(contestant.name) {
            return Ok(());
        }
        self.forget(contestant);
        self.sync(RAW, contestant, copy).map_err(|error| format!("the first sync: {error}"))?;
        self.verify(copy)?;
        self.settled.insert(contestant.name);
        Ok(())
    }

    /// Lets a contestant begin on a link that breaks.
    fn cut(&self, contestant: &Contestant, copy: &Path) -> Result<(), String> {
        let link = Conditions { cut_after: Some(self.cut_after), ..RAW };
        match self.sync(link, contestant, copy) {
            Ok(_) => Err("the link did not break, or it went on by itself".to_owned()),
            Err(_) => Ok(()),
        }
    }

    /// Takes away a contestant's copy and what it remembers of it.
    fn forget(&mut self, contestant: &'static Contestant) {
        let _ = fs::remove_dir_all(destination(self.machine, contestant, self.way));
        self.settled.remove(contestant.name);
        if contestant.name == "unison" {
            // Else it takes a copy that is gone for one that was deleted on purpose.
            for home in ["home", "far"] {
                let _ = fs::remove_dir_all(self.machine.world.path(home).join(".unison"));
            }
        }
    }

    /// Takes everything away.
    pub(crate) fn end(mut self) {
        for contestant in crate::contestants::ALL {
            self.forget(contestant);
        }
    }

    fn measured(&self, link: Conditions, contestant: &Contestant, copy: &Path) -> Result<Outcome, String> {
        (contestant.prepare)(self.machine);
        // What an earlier run left to be written to the disk is no part of this one.
        rustix::fs::sync();
        let outcome = self.sync(link, contestant, copy)?;
        if contestant.is_anew() && !self.machine.has_agent() {
            return Err("the agent was already somewhere on this machine".to_owned());
        }
        self.verify(copy)?;
        Ok(outcome)
    }

    fn verify(&self, copy: &Path) -> Result<(), String> {
        difference(&self.source, copy)
            .map_or(Ok(()), |difference| Err(format!("does not verify: {difference}")))
    }

    /// Runs a contestant once.
    fn sync(&self, link: Conditions, contestant: &Contestant, copy: &Path) -> Result<Outcome, String> {
        let machine = self.machine;
        machine.link.set(RAW);
        let job = Job { machine, way: self.way, source: &self.source, destination: copy };
        let mut plan = contestant.plan(&job);
        if !machine.wait_until_quiet() {
            return Err("somebody is still connected".to_owned());
        }
        machine.link.set(link);
        machine.link.reset();
        let log = machine.world.path("run.log");
        let output = fs::File::create(&log).expect("a log");
        plan.command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log")).stderr(output);
        let start = Instant::now();
        // A group of its own, so that all of it can be ended.
        let mut child = plan.command.process_group(0).spawn().map_err(|error| error.to_string())?;
        let helper = plan.helper.as_ref().map(|service| service.id());
        let observer = Observer::start(child.id(), helper, machine.sshd(), PATIENCE);
        let status = child.wait().expect("wait");
        let wall = start.elapsed();
        let peaks = observer.stop();
        drop(plan.helper);
        let is_quiet = machine.wait_until_quiet();
        if !status.success() {
            return Err(format!("{status}: {}", last_lines(&log)));
        }
        if !is_quiet {
            return Err("its connection stays open".to_owned());
        }
        Ok(Outcome { wall, carried: machine.link.carried(), peaks })
    }
}

/// The end of what a run has said.
fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// The best that a link allows: nine round trips until the first answer (TCP, WebSocket, SSH), and the time
/// that the bytes take.
pub(crate) fn limit(sizes: &Sizes, case: &Case, link: Conditions, way: Way) -> Option<Duration> {
    let rate = match way {
        Way::Up => link.up_rate?,
        Way::Down => link.down_rate?,
    };
    let bytes = sizes.new_bytes(case)?;
    Some(link.round_trip * 9 + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64))
}

impl Row {
    /// The median of something.
    pub(crate) fn median<T: PartialOrd + Copy>(&self, what: impl Fn(&Outcome) -> T) -> Option<T> {
        let is_good = self.error.is_none();
        median(self.outcomes.iter().map(what)).filter(|_| is_good)
    }

    pub(crate) fn wall(&self) -> Option<f64> {
        self.median(|outcome| outcome.wall.as_secs_f64())
    }
}

impl Heat {
    /// The fastest of those that are not ksync.
    pub(crate) fn best_peer(&self) -> Option<&Row> {
        let peers = self.rows.iter().filter(|row| !row.contestant.is_ksync() && row.wall().is_some());
        peers.min_by(|one, other| one.wall().partial_cmp(&other.wall()).unwrap_or(std::cmp::Ordering::Equal))
    }

    /// ksync's own row.
    pub(crate) fn ksync(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.contestant.is_ksync())
    }
}
