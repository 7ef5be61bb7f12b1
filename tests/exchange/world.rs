//! A source, a target, a connection that counts bytes and can be cut, and a checker that shares no
//! code with ksync.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use ksync::engine::{Config, Engine, Receiver, RunError, Sender, Summary};
use ksync::exchange::{FileReceiver, FileSender, Incoming, Perform, Receiving, Sending, run};
use ksync::monitor::{Event, ProblemKind, Recorder};
use ksync::wire::hello::{self, Consent, Options, Request, Role};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tempfile::TempDir;

/// The id of a user other than this one.
pub(crate) const NOBODY: u32 = 65534;

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) options: Options,
    /// The path of the source as the user types it.
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    /// Bytes from sender to receiver before the connection is cut.
    pub(crate) cut_after: Option<u64>,
    /// Runs both sides as a user whom modes restrict.
    pub(crate) as_nobody: bool,
    /// The sender is the agent.
    pub(crate) download: bool,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) client: Result<Summary, RunError>,
    pub(crate) agent: Result<Summary, RunError>,
    /// Bytes of both directions together.
    pub(crate) bytes: u64,
    /// Events that the client observed.
    pub(crate) events: Vec<Event>,
}

impl Ran {
    /// The client's summary of a complete run.
    pub(crate) fn summary(&self) -> &Summary {
        self.client.as_ref().unwrap()
    }

    pub(crate) fn problems(&self) -> Vec<(ProblemKind, String)> {
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let problems = self.summary().problems.iter();
        problems.map(|problem| (problem.kind, shown(&problem.path))).collect()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::within(TempDir::new().unwrap())
    }

    /// A world in memory, if the system has a place for that. On a disk, tens of thousands of files
    /// take half a minute, most of it outside of ksync.
    pub(crate) fn in_memory() -> Self {
        Self::within(TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap())
    }

    fn within(folder: TempDir) -> Self {
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        fs::create_dir(&source).unwrap();
        Self {
            folder,
            options: Options::default(),
            source,
            target,
            cut_after: None,
            as_nobody: false,
            download: false,
        }
    }

    pub(crate) fn deleting() -> Self {
        // No earlier run has recorded that the target is a copy, so deletions need consent.
        let consent = Consent { yes: true, ..Consent::default() };
        let options = Options { delete: true, consent, ..Options::default() };
        Self { options, ..Self::new() }
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        write(&self.source.join(name), content);
    }

    pub(crate) fn write_target(&self, name: &str, content: &[u8]) {
        write(&self.target.join(name), content);
    }

    pub(crate) fn read_target(&self, name: &str) -> Vec<u8> {
        fs::read(self.target.join(name)).unwrap()
    }

    /// A receiver that has prehashed for this long.
    pub(crate) fn prehashing(&self, time: Duration) -> Receiving {
        // The prehash skips files that changed a moment ago.
        let later = SystemTime::now() + Duration::from_secs(3);
        let receiving = Receiving::new(self.target.clone(), self.options.clone()).prehashing(None, later);
        thread::sleep(time);
        receiving
    }

    /// Bytes of staged files in the target.
    pub(crate) fn staged_bytes(&self) -> u64 {
        staged_bytes(&self.target)
    }

    pub(crate) fn run(&self) -> Ran {
        self.run_with(
            Sending::new(self.source.clone(), self.options.clone()),
            Receiving::new(self.target.clone(), self.options.clone()),
        )
    }

    /// Runs with these performers.
    pub(crate) fn run_with(
        &self,
        sending: impl Perform<FileSender>,
        receiving: impl Perform<FileReceiver>,
    ) -> Ran {
        let bytes = Arc::new(AtomicU64::new(0));
        let (there_reader, there_writer) = io::pipe().unwrap();
        let (back_reader, back_writer) = io::pipe().unwrap();
        let there = Counted { stream: there_writer, left: self.cut_after, bytes: Arc::clone(&bytes) };
        let back = Counted { stream: back_writer, left: None, bytes: Arc::clone(&bytes) };
        let config = |relay| Config { options: self.options.clone(), relay, ..Config::default() };
        let (sender, receiver) =
            (Sender::new(&config(self.download)), Receiver::new(&config(!self.download)));
        let recorder = Recorder::default();
        let (options, nobody, monitor) = (&self.options, self.as_nobody, &recorder);
        let (sent, received) = thread::scope(|scope| {
            let sending = scope.spawn(move || {
                become_nobody(nobody);
                one_side(back_reader, there, sender, sending, self.download, options, monitor)
            });
            let receiving = scope.spawn(move || {
                become_nobody(nobody);
                one_side(there_reader, back, receiver, receiving, !self.download, options, monitor)
            });
            (sending.join().unwrap(), receiving.join().unwrap())
        });
        let (client, agent) = if self.download { (received, sent) } else { (sent, received) };
        Ran { client, agent, bytes: bytes.load(Ordering::Relaxed), events: recorder.events() }
    }

    /// Runs, and checks: nothing differs, nothing is left over, and another run has nothing to do.
    pub(crate) fn run_and_check(&self) -> Ran {
        let ran = self.run();
        assert!(ran.agent.is_ok(), "{ran:?}");
        assert_eq!(ran.problems(), []);
        self.assert_same();
        let again = self.run();
        let tally = again.summary().tally;
        let changed = (tally.created, tally.updated, tally.adjusted, tally.deleted, tally.files);
        assert_eq!(changed, (0, 0, 0, 0, 0), "a second run finds something to do");
        self.assert_same();
        ran
    }

    pub(crate) fn assert_same(&self) {
        assert_eq!(differences(&self.source, &self.target), Vec::<String>::new());
    }
}

/// Does the work of `ksync` or `ksync-agent` at their end of the connection.
fn one_side<E: Engine>(
    mut reader: impl Read + Send + 'static,
    mut writer: impl Write + Send + 'static,
    engine: E,
    performer: impl Perform<E>,
    is_agent: bool,
    options: &Options,
    monitor: &Recorder,
) -> Result<Summary, RunError> {
    let closed =
        |text: String| RunError { kind: ksync::wire::message::AbortKind::Connection, by_peer: true, text };
    let request = Request {
        role: Role::Receiver,
        path: Vec::new(),
        further: Vec::new(),
        options: options.clone(),
        baseline_key: None,
        watch: None,
        timeout_ms: 0,
    };
    hello::write(&mut writer, (!is_agent).then_some(request)).map_err(|error| closed(error.to_string()))?;
    if is_agent {
        hello::read(&mut reader).map_err(|error| closed(error.to_string()))?;
    }
    let incoming = Incoming::alone(reader);
    run(incoming, writer, engine, performer, !is_agent, options.compress, monitor)
}

/// Makes this thread, and the threads that it starts, run as the user nobody.
fn become_nobody(nobody: bool) {
    if nobody {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(NOBODY)).unwrap();
    }
}

/// Counts bytes, and breaks after a number of bytes.
struct Counted<W> {
    stream: W,
    left: Option<u64>,
    bytes: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.left.map_or(bytes.len(), |left| bytes.len().min(left as usize));
        if length == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = self.stream.write(&bytes[..length])?;
        self.left = self.left.map(|left| left - written as u64);
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Bytes of staged files in a target.
pub(crate) fn staged_bytes(target: &Path) -> u64 {
    let Ok(staged) = fs::read_dir(target.join(".ksync")) else { return 0 };
    staged.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// Writes a file, with a time that no other file has: by the kernel's coarse clock, two files that
/// are written within 10 ms can have the same one, and then look unchanged if their sizes agree.
pub(crate) fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
}

/// Bytes that do not repeat and cannot be compressed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Sets the time of a path itself, not of a link's target.
pub(crate) fn set_time(path: &Path, seconds: i64, nanos: u32) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Everything in a directory, and the directory itself: kinds, contents, modes and times.
pub(crate) fn facts(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut facts = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        let what = if metadata.is_dir() {
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("link to {:?}", fs::read_link(entry.path()).unwrap())
        } else {
            let content = fs::read(entry.path()).unwrap();
            format!("file of {} bytes {}", content.len(), blake3::hash(&content))
        };
        let fact = format!("{what} {:o} {}.{:09}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
        facts.insert(entry.path().strip_prefix(root).unwrap().to_owned(), fact);
    }
    facts
}

pub(crate) fn differences(source: &Path, target: &Path) -> Vec<String> {
    let (source, target) = (facts(source), facts(target));
    let paths: std::collections::BTreeSet<_> = source.keys().chain(target.keys()).collect();
    paths
        .into_iter()
        .filter(|path| source.get(*path) != target.get(*path))
        .map(|path| {
            let name = path.as_os_str().as_bytes().escape_ascii();
            format!("{name}: {:?} != {:?}", source.get(path), target.get(path))
        })
        .collect()
}
