//! A contest: all contestants in turn do the same job on the same link, and each result is
//! verified.

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
use crate::lab::link::{Carried, Conditions, Cut, RAW};
use crate::lab::machine::{Direction, Job, Machine};
use crate::lab::memory::{Observer, Peaks};
use crate::lab::verify::difference;

/// Timeout of a run.
const TIMEOUT: Duration = Duration::from_secs(1200);

/// Measurements of one run.
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
    /// Reason for missing numbers.
    pub(crate) error: Option<String>,
}

/// One case on one link.
pub(crate) struct Heat {
    pub(crate) case: &'static Case,
    pub(crate) link: Conditions,
    pub(crate) direction: Direction,
    /// Description of the change.
    pub(crate) change: Option<String>,
    /// Lower bound of the time on this link, if known.
    pub(crate) limit: Option<Duration>,
    pub(crate) rows: Vec<Row>,
}

/// All contestants' copies of one source.
pub(crate) struct Contest<'a> {
    machine: &'a Machine,
    direction: Direction,
    source: PathBuf,
    /// Bytes after which the link breaks in the case `Cut`.
    cut_after: u64,
    /// Contestants that have a copy of the source's old version.
    settled: HashSet<&'static str>,
}

impl<'a> Contest<'a> {
    /// Makes a contest over `source`, which is in its old version.
    pub(crate) fn new(
        machine: &'a Machine,
        direction: Direction,
        source: PathBuf,
        cut_after: u64,
    ) -> Contest<'a> {
        Contest { machine, direction, source, cut_after, settled: HashSet::new() }
    }

    /// Runs a case on one link: `runs` rounds, each with another contestant first.
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

    /// Makes one measured and verified run, and then restores the state before it.
    fn once(
        &mut self,
        case: &Case,
        link: Conditions,
        contestant: &'static Contestant,
        change: Option<&Change>,
    ) -> Result<Outcome, String> {
        let copy = destination(self.machine, contestant, self.direction);
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

    /// Lets a contestant make its own copy, if it has none yet.
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

    /// Lets a contestant start on a link that breaks.
    fn cut(&self, contestant: &Contestant, copy: &Path) -> Result<(), String> {
        let link = Conditions { cut: Some(Cut::After(self.cut_after)), ..RAW };
        match self.sync(link, contestant, copy) {
            Ok(_) => Err("the link did not break, or it went on by itself".to_owned()),
            Err(_) => Ok(()),
        }
    }

    /// Removes a contestant's copy and its records.
    fn forget(&mut self, contestant: &'static Contestant) {
        let _ = fs::remove_dir_all(destination(self.machine, contestant, self.direction));
        self.settled.remove(contestant.name);
        if contestant.name == "unison" {
            // With its records, unison would take the missing copy for a deliberate deletion.
            for home in ["home", "far"] {
                let _ = fs::remove_dir_all(self.machine.world.path(home).join(".unison"));
            }
        }
    }

    /// Removes all copies.
    pub(crate) fn end(mut self) {
        for contestant in crate::contestants::ALL {
            self.forget(contestant);
        }
    }

    fn measured(&self, link: Conditions, contestant: &Contestant, copy: &Path) -> Result<Outcome, String> {
        (contestant.prepare)(self.machine);
        // Flush the data of earlier runs to the disk, so that this run does not pay for them.
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
        let job = Job { machine, direction: self.direction, source: &self.source, destination: copy };
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
        // The process group lets the observer kill the whole pipeline.
        let mut child = plan.command.process_group(0).spawn().map_err(|error| error.to_string())?;
        let helper = plan.helper.as_ref().map(|service| service.id());
        let observer = Observer::start(child.id(), helper, machine.sshd(), TIMEOUT);
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

/// Last lines of a run's output.
fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// Lower bound of the time on a link: nine round trips until the first answer (TCP, WebSocket,
/// SSH), plus the time of the bytes.
pub(crate) fn limit(sizes: &Sizes, case: &Case, link: Conditions, direction: Direction) -> Option<Duration> {
    let rate = match direction {
        Direction::Up => link.up_rate?,
        Direction::Down => link.down_rate?,
    };
    let bytes = sizes.new_bytes(case)?;
    Some(link.round_trip * 9 + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64))
}

impl Row {
    /// Median of a value over the runs.
    pub(crate) fn median<T: PartialOrd + Copy>(&self, what: impl Fn(&Outcome) -> T) -> Option<T> {
        let is_good = self.error.is_none();
        median(self.outcomes.iter().map(what)).filter(|_| is_good)
    }

    pub(crate) fn wall(&self) -> Option<f64> {
        self.median(|outcome| outcome.wall.as_secs_f64())
    }
}

impl Heat {
    /// Row of the fastest peer.
    pub(crate) fn best_peer(&self) -> Option<&Row> {
        let peers = self.rows.iter().filter(|row| !row.contestant.is_ksync() && row.wall().is_some());
        peers.min_by(|one, other| one.wall().partial_cmp(&other.wall()).unwrap_or(std::cmp::Ordering::Equal))
    }

    /// Row of ksync.
    pub(crate) fn ksync(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.contestant.is_ksync())
    }
}
