//! A contest: all contestants in turn do the same job on the same link, and each result is
//! verified.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cases::{Before, Case, Sizes};
use crate::contestants::{Contestant, Plan, destination};
use crate::lab::change::{Change, Version};
use crate::lab::figures::median;
use crate::lab::link::{Carried, Conditions, Cut, unlimited};
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
    /// Contestants that have a copy of the source's old version, each with the way that its last
    /// sync took: real TCP or not. ksync remembers copies by the server's address.
    settled: HashMap<&'static str, bool>,
    /// Most repeats of a case.
    repeats_max: usize,
}

impl<'a> Contest<'a> {
    /// Makes a contest over `source`, which is in its old version.
    pub(crate) fn new(
        machine: &'a Machine,
        direction: Direction,
        source: PathBuf,
        cut_after: u64,
        repeats_max: usize,
    ) -> Contest<'a> {
        Contest { machine, direction, source, cut_after, settled: HashMap::new(), repeats_max }
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
            let is_ready =
                if case.before == Before::Cut { self.cut(link, contestant, &copy) } else { Ok(()) };
            let result = is_ready.and_then(|()| self.measured(link, contestant, &copy, Series::ONE));
            self.forget(contestant);
            return result;
        }
        self.settle(link, contestant, &copy)?;
        let count = case.repeats.min(self.repeats_max);
        // A series before each command includes the first connection.
        let is_warm = case.repeats == 1;
        let Some(change) = change else {
            return self.measured(link, contestant, &copy, Series { count, is_warm, change: None });
        };
        let series = if case.before == Before::Edit {
            Series { count, is_warm, change: Some(change) }
        } else {
            change.apply(&self.source, Version::New);
            Series { count, is_warm, change: None }
        };
        let result = self.measured(link, contestant, &copy, series);
        change.apply(&self.source, Version::Old);
        if result.is_err() {
            self.forget(contestant);
        } else if contestant.remembers {
            let again = self.sync(unlimited(link), contestant, &copy, Series::ONE);
            again.inspect_err(|_| self.forget(contestant))?;
        } else {
            change.apply(&copy, Version::Old);
        }
        result
    }

    /// Lets a contestant make its own copy, if it has none yet.
    fn settle(
        &mut self,
        link: Conditions,
        contestant: &'static Contestant,
        copy: &Path,
    ) -> Result<(), String> {
        let settled = self.settled.get(contestant.name).copied();
        if settled == Some(link.is_real_tcp) || !contestant.copies {
            return Ok(());
        }
        if settled.is_none() {
            self.forget(contestant);
        }
        let first = self.sync(unlimited(link), contestant, copy, Series::ONE);
        first.map_err(|error| format!("the first sync: {error}"))?;
        self.verify(copy)?;
        self.settled.insert(contestant.name, link.is_real_tcp);
        Ok(())
    }

    /// Lets a contestant start on a link that breaks.
    fn cut(&self, link: Conditions, contestant: &Contestant, copy: &Path) -> Result<(), String> {
        let link = Conditions { cut: Some(Cut::After(self.cut_after)), ..unlimited(link) };
        match self.sync(link, contestant, copy, Series::ONE) {
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

    fn measured(
        &self,
        link: Conditions,
        contestant: &Contestant,
        copy: &Path,
        series: Series,
    ) -> Result<Outcome, String> {
        (contestant.prepare)(self.machine);
        // Flush the data of earlier runs to the disk, so that this run does not pay for them.
        rustix::fs::sync();
        let outcome = self.sync(link, contestant, copy, series)?;
        if contestant.is_anew() && !self.machine.has_agent() {
            return Err("the agent was already somewhere on this machine".to_owned());
        }
        if contestant.copies {
            self.verify(copy)?;
        }
        Ok(outcome)
    }

    fn verify(&self, copy: &Path) -> Result<(), String> {
        difference(&self.source, copy)
            .map_or(Ok(()), |difference| Err(format!("does not verify: {difference}")))
    }

    /// Runs a contestant, once or several times in a row.
    fn sync(
        &self,
        link: Conditions,
        contestant: &Contestant,
        copy: &Path,
        series: Series,
    ) -> Result<Outcome, String> {
        let machine = self.machine;
        machine.lead(link);
        let job = Job { machine, direction: self.direction, source: &self.source, destination: copy };
        // Its helpers connect before the link has its limits.
        let mut first = Some(contestant.plan(&job));
        if !machine.wait_until_quiet() {
            return Err("somebody is still connected".to_owned());
        }
        machine.limit(link);
        let mut run = || self.run_once(first.take().unwrap_or_else(|| contestant.plan(&job)));
        let result = series.run(contestant, machine, &self.source, &mut run);
        if let Some(kept) = contestant.kept {
            (kept.end)(machine);
        }
        let is_quiet = machine.wait_until_quiet();
        let outcome = result?;
        if !is_quiet {
            return Err("its connection stays open".to_owned());
        }
        // The last bytes of a connection that is kept belong to its end.
        let carried = if contestant.kept.is_some() { outcome.carried } else { machine.carried() };
        Ok(Outcome { carried, ..outcome })
    }

    /// Runs a plan to its end.
    fn run_once(&self, mut plan: Plan) -> Result<Outcome, String> {
        let machine = self.machine;
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
        if !status.success() {
            return Err(format!("{status}: {}", last_lines(&log)));
        }
        Ok(Outcome { wall, carried: machine.carried(), peaks })
    }
}

/// The measured runs of a contestant.
#[derive(Clone, Copy)]
struct Series<'a> {
    count: usize,
    /// A program that keeps its connection finds one.
    is_warm: bool,
    /// Change between the versions of the source, before each run.
    change: Option<&'a Change>,
}

impl Series<'_> {
    const ONE: Series<'static> = Series { count: 1, is_warm: false, change: None };

    /// Runs all, and returns the sum of their times and the peaks.
    fn run(
        self,
        contestant: &Contestant,
        machine: &Machine,
        source: &Path,
        run: &mut dyn FnMut() -> Result<Outcome, String>,
    ) -> Result<Outcome, String> {
        if self.is_warm
            && let Some(kept) = contestant.kept
        {
            run()?;
            (kept.settle)(machine);
        }
        machine.reset();
        let mut sum = Outcome { wall: Duration::ZERO, carried: Carried::default(), peaks: Peaks::default() };
        for turn in 0..self.count {
            if let Some(change) = self.change {
                change.apply(source, if turn % 2 == 0 { Version::New } else { Version::Old });
            }
            let outcome = run()?;
            let peaks = Peaks {
                client: sum.peaks.client.max(outcome.peaks.client),
                far: sum.peaks.far.max(outcome.peaks.far),
            };
            sum = Outcome { wall: sum.wall + outcome.wall, carried: outcome.carried, peaks };
        }
        Ok(sum)
    }
}

/// Last lines of a run's output.
fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// Lower bound of the time on a link without a kept connection: four round trips until the first
/// answer (TCP, WebSocket, key exchange, command), plus the time of the bytes.
pub(crate) fn limit(sizes: &Sizes, case: &Case, link: Conditions, direction: Direction) -> Option<Duration> {
    let rate = match direction {
        Direction::Up => link.up_rate?,
        Direction::Down => link.down_rate?,
    };
    let bytes = sizes.new_bytes(case)?;
    Some(link.round_trip * 4 + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64))
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

    /// Row of ksync, with a kept connection if there is one.
    pub(crate) fn ksync(&self) -> Option<&Row> {
        let mut own = self.rows.iter().filter(|row| row.contestant.is_ksync() && !row.contestant.is_anew());
        own.clone().find(|row| row.contestant.kept.is_some()).or_else(|| own.next())
    }
}
