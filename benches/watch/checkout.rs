//! Checkout of another release: time from its start until the copy is complete, and rsync's time
//! for the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::change::{Change, Version};
use crate::lab::figures::median;
use crate::lab::machine::{Direction, HOST, Job, Machine};
use crate::lab::verify::difference;
use crate::saves::{self, Session};
use crate::table::{Fact, Row};
use crate::watchers::{Running, TIMEOUT, Watcher};

/// The peer of ksync: rsync, called once after the checkout.
pub(crate) static RSYNC: Watcher =
    Watcher::called("rsync", "rsync -a --delete, once the checkout is over", &["rsync"], |job, _| {
        rsync(job.machine, job.source, job.destination)
    });

/// Two releases of a tree. git's own files are outside of the tree.
struct Releases {
    git: PathBuf,
    tree: PathBuf,
    /// Paths that differ between the releases.
    changed: Vec<PathBuf>,
    about: String,
}

const RELEASES: [&str; 2] = ["new", "old"];

impl Releases {
    /// Makes the releases from `tree`, which stays the old one.
    fn make(machine: &Machine, tree: &Path) -> Releases {
        let git = machine.world.path("git");
        let releases = Releases { git, tree: tree.to_owned(), changed: Vec::new(), about: String::new() };
        releases.git(machine, &["init", "-q"]);
        let aside = machine.world.path("aside");
        let change = Change::release(tree, &aside);
        for (version, name) in [(None, "old"), (Some(Version::New), "new")] {
            version.into_iter().for_each(|version| change.apply(tree, version));
            releases.git(machine, &["add", "-A"]);
            releases.git(machine, &["commit", "-q", "-m", name]);
            releases.git(machine, &["tag", name]);
        }
        let _ = fs::remove_dir_all(aside);
        let names = releases.git(machine, &["diff", "--name-only", "--no-renames", "-z", "old", "new"]);
        let changed = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
        releases.check_out(machine, "old");
        Releases { changed, about: change.about, ..releases }
    }

    fn check_out(&self, machine: &Machine, name: &str) -> Duration {
        let start = Instant::now();
        self.git(machine, &["checkout", "-q", "--detach", name]);
        start.elapsed()
    }

    /// Runs git and returns its output. Its settings avoid disk waits and slow packing, because
    /// only checkouts are measured.
    fn git(&self, machine: &Machine, arguments: &[&str]) -> String {
        let mut command = machine.world.command("git");
        command.arg("--git-dir").arg(&self.git).arg("--work-tree").arg(&self.tree).current_dir(&self.tree);
        for setting in [
            "core.fsync=none",
            "core.compression=1",
            "gc.auto=0",
            "user.name=bench",
            "user.email=bench@localhost",
        ] {
            command.args(["-c", setting]);
        }
        let output = command.args(arguments).output().expect("git");
        assert!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until every path that differs is at the destination as in the source.
    fn wait_for(&self, destination: &Path) -> Option<()> {
        let start = Instant::now();
        for path in &self.changed {
            // An error means that the file is missing.
            let here = fs::read(self.tree.join(path)).ok();
            while fs::read(destination.join(path)).ok() != here {
                if start.elapsed() > TIMEOUT {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Some(())
    }
}

/// Measures both programs `runs` times: ksync, which watches, and rsync, which is called once each
/// time.
pub(crate) fn measure(
    machine: &Machine,
    ksync: &'static Watcher,
    rsync: Option<&'static Watcher>,
    tree: &Path,
    destination: &Path,
    runs: usize,
) -> (Vec<Row>, Vec<Fact>, String) {
    let releases = Releases::make(machine, tree);
    let mut rows: Vec<Row> = [Some(ksync), rsync].into_iter().flatten().map(Row::of).collect();
    let (mut watched, mut alone, mut scans) = (Vec::new(), Vec::new(), 0);
    for _ in 0..runs {
        for row in rows.iter_mut().filter(|row| row.error.is_none()) {
            if crate::lab::is_interrupted() {
                break;
            }
            let result = if row.watcher.is_ksync() {
                by_ksync(machine, &releases, destination, row, &mut watched, &mut scans)
            } else {
                by_rsync(machine, &releases, destination, row, &mut alone)
            };
            row.error = result.err();
        }
    }
    let seconds = |times: &[Duration]| median(times.iter().map(Duration::as_secs_f64)).unwrap_or(f64::NAN);
    let mut facts = vec![
        Fact::new("the checkout, watched", seconds(&watched) * 1000.0, "ms"),
        Fact::new("the checkout alone", seconds(&alone) * 1000.0, "ms"),
        Fact::new("full scans after ready", scans as f64, "").asked(0.0),
    ];
    if let [ksync, rsync] = &rows[..]
        && let (Some(converged), Some(called)) = (ksync.percentile(50), rsync.percentile(50))
    {
        // No program can finish before the checkout. rsync starts after it.
        let after = median(
            ksync
                .walls
                .iter()
                .zip(&watched)
                .map(|(wall, checkout)| wall.saturating_sub(*checkout).as_secs_f64() * 1000.0),
        );
        let after = after.unwrap_or(f64::NAN);
        facts.push(Fact::new("ksync, after its end", after, "ms"));
        facts.push(Fact::new("the same, of rsync", after / called, "").asked(0.5));
        let both = seconds(&alone) * 1000.0 + called;
        facts.push(Fact::new("of checkout and rsync", converged / both, ""));
    }
    (rows, facts, releases.about)
}

fn by_ksync(
    machine: &Machine,
    releases: &Releases,
    destination: &Path,
    row: &mut Row,
    checkouts: &mut Vec<Duration>,
    scans: &mut u64,
) -> Result<(), String> {
    let job = Job { machine, direction: Direction::Up, source: &releases.tree, destination };
    let session = Session::begin(row.watcher, job)?;
    let before = scans_told(&session.running).unwrap_or(1);
    for name in RELEASES {
        machine.link.reset();
        let start = Instant::now();
        checkouts.push(releases.check_out(machine, name));
        releases.wait_for(destination).ok_or("a checkout does not arrive")?;
        row.note(start.elapsed(), machine);
        if let Some(differs) = difference(&releases.tree, destination) {
            return Err(format!("does not verify: {differs}"));
        }
    }
    // This last save makes ksync report its number of full scans.
    let told = |number: usize| format!("told {number}\n").into_bytes();
    let save = saves::Save {
        path: Path::new("probe"),
        write: &|path, number| fs::write(path, told(number)).expect("a probe"),
        is_there: &|path, number| saves::is_text(path, &told(number)),
    };
    let sessions = vec![session];
    let mut last = saves::measure(machine, &sessions, &save, 1, 1);
    if let Some(after) = scans_told(&sessions[0].running) {
        *scans += after - before;
    }
    saves::end(machine, sessions, &mut last);
    last.pop().and_then(|row| row.error).map_or(Ok(()), Err)
}

/// Number of full scans in ksync's last report.
fn scans_told(running: &Running) -> Option<u64> {
    running.told().iter().rev().find_map(|event: &Value| event["scans"].as_u64())
}

fn by_rsync(
    machine: &Machine,
    releases: &Releases,
    destination: &Path,
    row: &mut Row,
    checkouts: &mut Vec<Duration>,
) -> Result<(), String> {
    for name in RELEASES {
        checkouts.push(releases.check_out(machine, name));
        machine.link.reset();
        let start = Instant::now();
        let job = Job { machine, direction: Direction::Up, source: &releases.tree, destination };
        let status = row.watcher.command(&job).status().map_err(|error| error.to_string())?;
        row.note(start.elapsed(), machine);
        if !status.success() || !machine.wait_until_quiet() {
            return Err(format!("rsync: {status}"));
        }
        if let Some(differs) = difference(&releases.tree, destination) {
            return Err(format!("does not verify: {differs}"));
        }
    }
    Ok(())
}

fn rsync(machine: &Machine, source: &Path, destination: &Path) -> Command {
    let mut command = machine.world.command("rsync");
    command.args(["-a", "--delete", "--exclude=/.ksync", "-e", &machine.ssh()]);
    command.arg(format!("{}/", source.display())).arg(format!("{HOST}:{}/", destination.display()));
    command
}
