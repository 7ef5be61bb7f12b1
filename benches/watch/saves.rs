//! Saves: from just before a file is written at the source until the new content is read at the
//! destination.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

use crate::data::Rng;
use crate::lab::machine::{Job, Machine};
use crate::lab::verify::difference;
use crate::table::Row;
use crate::watchers::{Running, TIMEOUT, Watcher};

/// Shortest pause between two saves in milliseconds; the longest is twice as long. The pause
/// varies, so that no program's timer is always hit at the same phase.
const PAUSE_MS: usize = 100;

/// Time for a watcher to settle after a save was seen, before its whole copy is verified.
const SETTLED: Duration = Duration::from_millis(250);

/// A watcher and its two trees.
pub(crate) struct Session<'a> {
    pub(crate) watcher: &'static Watcher,
    pub(crate) job: Job<'a>,
    pub(crate) running: Running,
}

impl<'a> Session<'a> {
    /// Starts a watcher, and waits until the destination is a copy and saves arrive.
    pub(crate) fn begin(watcher: &'static Watcher, job: Job<'a>) -> Result<Session<'a>, String> {
        let running = watcher.start(&job)?;
        let session = Session { watcher, job, running };
        if watcher.is_ksync() {
            session.running.wait_until_ready()?;
        }
        // Peers do not report when they are ready, and miss earlier saves. So write probes until
        // one arrives.
        let start = Instant::now();
        for count in 0.. {
            let text = format!("probe {count}");
            let there = session.job.destination.join("probe");
            let write = || fs::write(session.job.source.join("probe"), &text).expect("a probe");
            let seen = wait_for(&there, Duration::from_secs(2), write, &|| is_text(&there, text.as_bytes()));
            if seen.is_some() {
                break;
            }
            if start.elapsed() > TIMEOUT || crate::lab::is_interrupted() {
                return Err(format!("nothing arrives: {}", session.running.last_words()));
            }
        }
        thread::sleep(SETTLED);
        Ok(session)
    }
}

/// Ends all sessions once everything has arrived. Records a watcher whose copy differs from its
/// source.
pub(crate) fn end(machine: &Machine, sessions: Vec<Session>, rows: &mut [Row]) {
    thread::sleep(SETTLED);
    for session in &sessions {
        let row = rows.iter_mut().find(|row| row.watcher.name == session.watcher.name);
        if let (Some(row), Some(differs)) = (row, difference(session.job.source, session.job.destination)) {
            let words = session.running.last_words();
            row.error.get_or_insert(format!("does not verify: {differs}; {words}"));
        }
    }
    drop(sessions);
    assert!(machine.wait_until_quiet(), "a connection stays open");
}

/// A kind of save.
pub(crate) struct Save<'a> {
    /// Path of the saved file, below both roots.
    pub(crate) path: &'a Path,
    /// Writes a version of the file.
    pub(crate) write: &'a dyn Fn(&Path, usize),
    /// Reports if this version is at a path.
    pub(crate) is_there: &'a dyn Fn(&Path, usize) -> bool,
}

/// Measures `count` saves in turn for ksync, and `peer_count` for peers.
pub(crate) fn measure(
    machine: &Machine,
    sessions: &[Session],
    save: &Save,
    count: usize,
    peer_count: usize,
) -> Vec<Row> {
    let mut rng = Rng::new(20);
    let mut rows: Vec<Row> = sessions.iter().map(|session| Row::of(session.watcher)).collect();
    let mut seconds = vec![0; sessions.len()];
    for number in 0..count {
        for ((row, session), last_second) in rows.iter_mut().zip(sessions).zip(&mut seconds) {
            let has_turn = session.watcher.is_ksync() || takes_turn(number, count, peer_count);
            if !has_turn || row.error.is_some() || crate::lab::is_interrupted() {
                continue;
            }
            if !session.watcher.is_ksync() {
                *last_second = another_second(*last_second);
            }
            machine.link.reset();
            match once(session, save, number) {
                Ok(wall) => {
                    // Traffic after a save belongs to that save.
                    let pause = PAUSE_MS + rng.below(PAUSE_MS);
                    thread::sleep(Duration::from_millis(pause as u64));
                    let carried = machine.link.carried();
                    row.walls.push(wall);
                    row.bytes.push(carried.bytes());
                }
                Err(error) => row.error = Some(error),
            }
        }
    }
    rows
}

/// Waits for another second than `last`. rsync takes a file with the same length and second for
/// unchanged, and a peer that misses a save would have no number.
fn another_second(last: u64) -> u64 {
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
        if now != last || crate::lab::is_interrupted() {
            return now;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reports if `number` is among `turns` turns spread evenly over `count`.
fn takes_turn(number: usize, count: usize, turns: usize) -> bool {
    turns >= count || number * turns / count != (number + 1) * turns / count
}

fn once(session: &Session, save: &Save, number: usize) -> Result<Duration, String> {
    let here = session.job.source.join(save.path);
    let there = session.job.destination.join(save.path);
    wait_for(&there, TIMEOUT, || (save.write)(&here, number), &|| (save.is_there)(&there, number))
        .ok_or_else(|| format!("a save does not arrive: {}", session.running.last_words()))
}

/// Time from just before a write until the content is at `there`. The wait sleeps until something
/// happens in that directory, because a busy loop would occupy a processor that the programs need.
fn wait_for(
    there: &Path,
    timeout: Duration,
    write: impl FnOnce(),
    is_there: &dyn Fn() -> bool,
) -> Option<Duration> {
    let mut sight = Sight::of(there.parent().expect("a directory"));
    let start = Instant::now();
    write();
    while !is_there() {
        let left = timeout.checked_sub(start.elapsed())?;
        sight.wait(left);
    }
    Some(start.elapsed())
}

/// Waits for events in a directory.
struct Sight {
    directory: PathBuf,
    inotify: OwnedFd,
    is_watched: bool,
}

impl Sight {
    fn of(directory: &Path) -> Sight {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("inotify");
        let mut sight = Sight { directory: directory.to_owned(), inotify, is_watched: false };
        sight.watch();
        sight
    }

    /// Watches renames and closes, because content is checked when it is complete.
    fn watch(&mut self) {
        let flags = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        self.is_watched |= add_watch(&self.inotify, &self.directory, flags).is_ok();
    }

    /// Waits for an event or a timeout; for 1 ms if the directory does not exist yet.
    fn wait(&mut self, at_most: Duration) {
        if !self.is_watched {
            thread::sleep(Duration::from_millis(1));
            return self.watch();
        }
        let timeout = Timespec::try_from(at_most.min(Duration::from_millis(100))).expect("a time");
        let _ = poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout));
        while rustix::io::read(&self.inotify, &mut [0_u8; 4096]).is_ok() {}
    }
}

/// Reports if a file has this content.
pub(crate) fn is_text(path: &Path, text: &[u8]) -> bool {
    fs::read(path).is_ok_and(|content| content == text)
}
