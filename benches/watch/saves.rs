//! Saves: from just before a file is written here until the new content is read there.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

use crate::data::Dice;
use crate::lab::machine::{Job, Machine};
use crate::lab::verify::difference;
use crate::table::Row;
use crate::watchers::{PATIENCE, Running, Watcher};

/// Between two saves, in milliseconds: at least so many, and up to twice as many, so that no clock of anybody is met
/// always at the same time.
const PAUSE_MS: usize = 100;

/// How long a watcher has, once a save was seen, until it is looked whether all of it is right.
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
        // Others do not say when they are ready, and miss what is saved before.
        let start = Instant::now();
        for count in 0.. {
            let text = format!("probe {count}");
            let there = session.job.destination.join("probe");
            let write = || fs::write(session.job.source.join("probe"), &text).expect("a probe");
            let seen = wait_for(&there, Duration::from_secs(2), write, &|| is_text(&there, text.as_bytes()));
            if seen.is_some() {
                break;
            }
            if start.elapsed() > PATIENCE || crate::lab::is_interrupted() {
                return Err(format!("nothing arrives: {}", session.running.last_words()));
            }
        }
        thread::sleep(SETTLED);
        Ok(session)
    }
}

/// Ends all of them once everything has arrived. Notes who has made another tree than its source.
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

/// One way to save.
pub(crate) struct Save<'a> {
    /// What is saved, below both roots.
    pub(crate) path: &'a Path,
    /// Writes a version of it.
    pub(crate) write: &'a dyn Fn(&Path, usize),
    /// Whether this version is there.
    pub(crate) is_there: &'a dyn Fn(&Path, usize) -> bool,
}

/// Lets everybody see `count` saves in turn, peers only `peer_count` of them.
pub(crate) fn measure(
    machine: &Machine,
    sessions: &[Session],
    save: &Save,
    count: usize,
    peer_count: usize,
) -> Vec<Row> {
    let mut dice = Dice::new(20);
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
                    // What follows a save on the wire belongs to it.
                    let pause = PAUSE_MS + dice.below(PAUSE_MS);
                    thread::sleep(Duration::from_millis(pause as u64));
                    let carried = machine.link.carried();
                    row.walls.push(wall);
                    row.bytes.push(carried.up_bytes + carried.down_bytes);
                }
                Err(error) => row.error = Some(error),
            }
        }
    }
    rows
}

/// Waits until it is another second than that one. rsync takes a file of the same length and the same second for the
/// same, and a peer that never sees a save has no number.
fn another_second(last: u64) -> u64 {
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
        if now != last || crate::lab::is_interrupted() {
            return now;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether so many turns, spread evenly, include this one.
fn takes_turn(number: usize, count: usize, turns: usize) -> bool {
    turns >= count || number * turns / count != (number + 1) * turns / count
}

fn once(session: &Session, save: &Save, number: usize) -> Result<Duration, String> {
    let here = session.job.source.join(save.path);
    let there = session.job.destination.join(save.path);
    wait_for(&there, PATIENCE, || (save.write)(&here, number), &|| (save.is_there)(&there, number))
        .ok_or_else(|| format!("a save does not arrive: {}", session.running.last_words()))
}

/// From just before something is written until it is there. Sleeps until something happens in the directory of what
/// is waited for: a loop that only looks would keep one of the processors that the others need.
fn wait_for(
    there: &Path,
    patience: Duration,
    write: impl FnOnce(),
    is_there: &dyn Fn() -> bool,
) -> Option<Duration> {
    let mut sight = Sight::of(there.parent().expect("a directory"));
    let start = Instant::now();
    write();
    while !is_there() {
        let left = patience.checked_sub(start.elapsed())?;
        sight.wait(left);
    }
    Some(start.elapsed())
}

/// Waits for what happens in a directory.
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

    /// Renames and closes: content is looked at when it is whole.
    fn watch(&mut self) {
        let flags = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        self.is_watched |= add_watch(&self.inotify, &self.directory, flags).is_ok();
    }

    /// Waits until something happened, or a while: where there is no directory yet, a moment.
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

/// Whether a file has this content.
pub(crate) fn is_text(path: &Path, text: &[u8]) -> bool {
    fs::read(path).is_ok_and(|content| content == text)
}
