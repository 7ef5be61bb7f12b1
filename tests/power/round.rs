//! One round: runs, a power cut, and the next run.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::disk::{Disk, Last};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Repaired,
    /// The next run failed.
    Failed,
    /// The next run reported success, although the copy is wrong.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Local,
    Upload,
    Download,
    Watch,
    WatchUpload,
}

/// The moment of the power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// This many milliseconds after a run began.
    During(u64),
    /// This many milliseconds after a run ended.
    After(u64),
}

#[derive(Debug)]
pub(crate) struct Round {
    seed: u64,
    operation: Operation,
    options: &'static str,
    moment: Moment,
    last: Last,
    /// True if the first copy is durable before the second run.
    settles: bool,
    /// True if there is a second run, with edits.
    edits: bool,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Pseudo-random numbers from a seed (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| _ = rng.below(2));
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length as usize);
        bytes
    }
}

const MIB: u64 = 1 << 20;

impl Round {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let operations = [
            Operation::Local,
            Operation::Upload,
            Operation::Download,
            Operation::Watch,
            Operation::WatchUpload,
        ];
        let options = ["", ",noauto_da_alloc", ",data=writeback"];
        let moment =
            if rng.below(3) == 0 { Moment::During(rng.below(250)) } else { Moment::After(rng.below(2500)) };
        Self {
            seed,
            operation: operations[rng.below(5) as usize],
            options: options[rng.below(3) as usize],
            moment,
            last: if rng.below(2) == 0 { Last::Journal } else { Last::Nothing },
            settles: rng.below(2) == 0,
            edits: rng.below(4) > 0,
        }
    }

    /// A round in which the next run would take old blocks for new ones.
    pub(crate) fn that_shows_old_blocks(seed: u64) -> Self {
        let moment = Moment::After(1000 + 200 * seed);
        let (operation, options, last) = (Operation::Local, ",noauto_da_alloc", Last::Nothing);
        Self { seed, operation, options, moment, last, settles: true, edits: true }
    }

    pub(crate) fn run(&self, takes_markers: bool) -> Outcome {
        // In memory, if possible: the image is read and written a lot.
        let shared = Path::new("/dev/shm");
        let folder =
            if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap();
        let mut disk = Disk::make(folder.path(), 256).unwrap();
        disk.mount(self.options).unwrap();
        let mut rng = Rng::new(self.seed ^ 0xabcd);
        let stage = Stage { folder: folder.path(), disk: &disk.place, operation: self.operation };
        let source = folder.path().join("src");
        fill(&source, &mut rng);

        if self.edits {
            assert!(stage.once(), "the first run of {self}");
            if self.settles {
                // Another mount empties the page cache.
                disk.unmount().unwrap();
                disk.mount(self.options).unwrap();
            }
        }
        let stage = Stage { folder: folder.path(), disk: &disk.place, operation: self.operation };
        let child = if self.edits && stage.is_watch() {
            let child = stage.begin();
            wait_until(|| differences(&source, &stage.target()).is_empty());
            edit(&source, &mut rng);
            child
        } else {
            if self.edits {
                edit(&source, &mut rng);
            }
            stage.begin()
        };
        let child = match self.moment {
            Moment::During(ms) => {
                thread::sleep(Duration::from_millis(ms));
                child
            }
            Moment::After(ms) => {
                let child = stage.finish(child, &source);
                thread::sleep(Duration::from_millis(ms));
                child
            }
        };
        disk.cut(self.last).unwrap();
        end(child);
        disk.unmount().unwrap();
        disk.mount("").unwrap();
        if takes_markers {
            disk.take_markers();
        }
        let stage = Stage { folder: folder.path(), disk: &disk.place, operation: self.operation };
        let is_done = stage.once();
        let differences = differences(&source, &stage.target());
        disk.unmount().unwrap();
        match (is_done, differences.is_empty()) {
            (true, true) => Outcome::Repaired,
            (false, _) => Outcome::Failed,
            (true, false) => {
                println!("  {differences:?}");
                Outcome::Wrong
            }
        }
    }
}

/// The directories and the direction of a round's runs.
pub(crate) struct Stage<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) disk: &'a Path,
    pub(crate) operation: Operation,
}

impl Stage<'_> {
    fn is_watch(&self) -> bool {
        matches!(self.operation, Operation::Watch | Operation::WatchUpload)
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.disk.join("dst")
    }

    pub(crate) fn command(&self, watches: bool) -> Command {
        let (source, target) = (self.folder.join("src"), self.target());
        let far = |path: &Path| format!("sandbox:{}", path.display()).into();
        let (from, to) = match self.operation {
            Operation::Local | Operation::Watch => (source.into_os_string(), target.into_os_string()),
            Operation::Upload | Operation::WatchUpload => (source.into_os_string(), far(&target)),
            Operation::Download => (far(&source), target.into_os_string()),
        };
        let home = self.folder.join("home");
        fs::create_dir_all(&home).unwrap();
        let ksync = std::env::var_os("KSYNC").unwrap_or_else(|| env!("CARGO_BIN_EXE_ksync").into());
        let mut command = Command::new(ksync);
        command.args(["-q", "--no-progress"]).args(watches.then_some("--watch")).arg(from).arg(to);
        command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // The cut filesystem is one of this machine.
        command.env("KSYNC_SANDBOX_HOST_FILES", "1");
        command.current_dir(self.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// One complete run; true if it reports success.
    fn once(&self) -> bool {
        self.command(false).status().unwrap().success()
    }

    fn begin(&self) -> Child {
        self.command(self.is_watch()).spawn().unwrap()
    }

    /// Waits until the copy equals the source.
    fn finish(&self, mut child: Child, source: &Path) -> Child {
        if self.is_watch() {
            wait_until(|| differences(source, &self.target()).is_empty());
        } else {
            assert!(child.wait().unwrap().success(), "a run with power");
        }
        child
    }
}

/// The exit status of a run, if it ended in time.
pub(crate) fn status(child: &mut Child, timeout: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < timeout {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

pub(crate) fn end(mut child: Child) {
    // The run may wait for a lost disk, or watch.
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    );
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(5) {
            let _ = child.kill();
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "it never comes");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A tree of all kinds of files that power cuts are known to damage.
pub(crate) fn fill(source: &Path, rng: &mut Rng) {
    fs::create_dir_all(source.join("small/deep")).unwrap();
    let mut write = |name: &str, length: u64, zeros: u64| {
        let bytes = [rng.bytes(length), vec![0; zeros as usize]].concat();
        fs::write(source.join(name), bytes).unwrap();
    };
    write("whole blocks", 8 * MIB, 0);
    write("twice", 16 * MIB, 0);
    write("nearly", 8 * MIB - 1, 0);
    write("zeros", 2 * MIB, 2 * MIB);
    write("log", 3 * MIB + 17, 0);
    write("nothing but zeros", 0, MIB + 5);
    write("replaced", 700_000, 0);
    write("empty", 0, 0);
    for n in 0..60 {
        write(&format!("small/{n}"), 1 + n * 97 % 5000, 0);
        write(&format!("small/deep/{n}"), 40_000, if n % 7 == 0 { 50_000 } else { 0 });
    }
}

/// Edits in place, appends, replaces, inserts and removes.
pub(crate) fn edit(source: &Path, rng: &mut Rng) {
    // Makes the modification times differ.
    thread::sleep(Duration::from_millis(20));
    for name in ["whole blocks", "twice", "nearly"] {
        let file = fs::OpenOptions::new().write(true).open(source.join(name)).unwrap();
        let length = file.metadata().unwrap().len();
        for _ in 0..1 + rng.below(5) {
            let bytes = rng.bytes(50);
            file.write_all_at(&bytes, rng.below(length - 50)).unwrap();
        }
    }
    let append = |name: &str, bytes: Vec<u8>| {
        let old = fs::read(source.join(name)).unwrap();
        fs::write(source.join(name), [old, bytes].concat()).unwrap();
    };
    append("log", rng.bytes(100_000));
    append("zeros", vec![0; 300_000]);
    let replaced = rng.bytes(700_000);
    fs::write(source.join("new"), &replaced).unwrap();
    fs::rename(source.join("new"), source.join("replaced")).unwrap();
    for _ in 0..20 {
        let name = format!("small/deep/{}", rng.below(60));
        let bytes = rng.bytes(40_000);
        fs::write(source.join(name), bytes).unwrap();
    }
    for n in 0..10 {
        fs::write(source.join(format!("small/new {n}")), rng.bytes(3000 + n)).unwrap();
    }
}

pub(crate) type Seen = BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>;

/// Everything in a tree: modes, times and contents.
pub(crate) fn seen(root: &Path) -> Seen {
    let walk = walkdir::WalkDir::new(root).min_depth(1).into_iter();
    let entries = walk.filter_entry(|entry| entry.file_name() != ".ksync").flatten();
    let one = |entry: walkdir::DirEntry| {
        let meta = entry.path().symlink_metadata().ok()?;
        let content = if meta.is_file() {
            fs::read(entry.path()).ok()?
        } else if meta.is_symlink() {
            fs::read_link(entry.path()).ok()?.into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let path = entry.path().strip_prefix(root).ok()?.to_owned();
        Some((path, (meta.mode(), meta.mtime(), meta.mtime_nsec(), content)))
    };
    entries.filter_map(one).collect()
}

/// The entries of the source that differ in the copy.
fn differences(source: &Path, copy: &Path) -> Vec<PathBuf> {
    let (source, copy) = (seen(source), seen(copy));
    source.iter().filter(|(path, one)| copy.get(*path) != Some(one)).map(|(path, _)| path.clone()).collect()
}
