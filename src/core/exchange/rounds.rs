//! Rounds: exchanges that follow each other on one link, as the sender's tree is touched.
//!
//! The first round is full. The next ones are incremental, about the touched paths, and begin when
//! the tree has settled. Now and then a round is full again, since events are only hints. Between
//! two rounds the receiver holds neither a lock on the destination nor a manifest; it only
//! remembers the directory's identity.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::baseline::Baseline;
use crate::disk::root::Root;
use crate::engine::{Config, Engine, Receiver, RunError, Sender, Summary};
use crate::exchange::mailbox::Idle;
use crate::exchange::receiver_session::ReceiverSession;
use crate::exchange::receiving::{FileReceiver, Receiving};
use crate::exchange::run::Link;
use crate::exchange::sending::{FileSender, Sending, Watched};
use crate::exchange::unusable;
use crate::log::debug;
use crate::monitor::{Event, Monitor, ProblemKind};
use crate::tree::path::TreePath;
use crate::tree::subtrees::SubtreeSet;
use crate::watch::settle::Touched;
use crate::watch::{self, Watch};
use crate::wire::hello::WatchOptions;
use crate::wire::message::{AbortKind, Common};

/// Longest time between full rounds. Writes through a mapping, or by other machines to a shared
/// filesystem, cause no event.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Longest time between full rounds where the watch sees no events. A scan takes at most a
/// twentieth of the time.
const POLL: Duration = Duration::from_secs(2);
const POLL_SHARE: u32 = 20;

/// Duration from which an incremental round delays the next one, if that touches only the same
/// paths. The next round then waits as long as the last one took, but at most `REST_MAX`. So a file
/// that is written all the time does not keep both sides busy all the time. A checkout that goes on
/// touches other paths and does not wait.
const LONG_ROUND: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(1);

/// Longest time for which a watched file may be missing. Editors move a file away and write it
/// anew.
const MISSING_MAX: Duration = Duration::from_secs(1);
const MISSING_POLL: Duration = Duration::from_millis(20);

/// A round that is over.
#[derive(Debug, Clone)]
pub struct Round {
    /// Result of the round.
    pub summary: Summary,
    /// True for a full round.
    pub is_full: bool,
    /// Start of the round on this side.
    pub begun: Instant,
    /// Duration since `begun`.
    pub elapsed: Duration,
}

impl Round {
    /// True if the destination changed.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.summary.tally.has_changed()
    }
}

/// A watched source, for any number of links in a row.
pub struct WatchedSource {
    path: PathBuf,
    watched: Arc<Watched>,
    /// A single file's name there.
    single: Option<TreePath>,
    /// Tells the time.
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
}

impl WatchedSource {
    /// Begins to watch the tree at `path`. `clock` tells the time.
    ///
    /// # Errors
    /// The path cannot be read.
    pub fn new(
        path: &Path,
        watch_options: WatchOptions,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Result<Self, RunError> {
        let run_error = |cause: &(dyn std::error::Error + 'static)| RunError {
            kind: AbortKind::Selection,
            by_peer: false,
            text: unusable::source(path, cause),
        };
        let real = fs::canonicalize(path).map_err(|error| run_error(&error))?;
        let is_directory = real.is_dir();
        let directory = if is_directory { path } else { real.parent().unwrap_or(Path::new("/")) };
        let root = Root::open(directory).map_err(|error| run_error(&error))?;
        let name = real.file_name().map(OsStr::as_bytes).unwrap_or_default();
        let single = (!is_directory).then(|| TreePath::new(name)).transpose();
        let single = single.map_err(|error| run_error(&error))?;
        let quiet = Duration::from_millis(watch_options.quiet_ms.into());
        let watch = Watch::new(directory, watch::Options { quiet, poll: watch_options.poll });
        if single.is_some() {
            let directory = root.open_directory(None).map_err(|error| run_error(&error))?;
            watch.enter(std::os::fd::AsFd::as_fd(&directory), None);
        }
        Ok(Self {
            path: path.to_owned(),
            watched: Arc::new(Watched { watch, root, filter: Mutex::default() }),
            single,
            clock: Box::new(clock),
        })
    }

    /// Makes the next round a full one that begins at once.
    pub fn rescan(&self) {
        self.watched.watch.everything();
    }

    /// Offers the source over a link, and the touched parts again whenever something changes. Calls
    /// `done` after each round, and `baseline` before each full round.
    pub fn send(
        &self,
        link: &Link<FileSender>,
        config: &Config,
        baseline: impl Fn() -> Option<Baseline>,
        monitor: &dyn Monitor,
        done: &mut dyn FnMut(Round),
    ) -> RunError {
        let mailbox = Arc::clone(link.mailbox());
        self.watched.watch.wake(move || mailbox.wake());
        let monitor = DeferredRetry(monitor);
        let mut scope = None;
        let mut has_reported = false;
        loop {
            let begun = (self.clock)();
            let is_full = scope.is_none();
            let sending = Sending::new(self.path.clone(), config.options.clone())
                .in_round(Arc::clone(&self.watched), scope.clone());
            let sending = if is_full { sending.with_baseline(baseline()) } else { sending };
            let summary = match link.run(Sender::new(config), sending, &monitor) {
                Ok(summary) => summary,
                Err(error) => return error,
            };
            let elapsed = (self.clock)() - begun;
            self.look_again_at(&summary);
            debug!("round role=sender full={is_full} ms={}", elapsed.as_millis());
            done(Round { summary, is_full, begun, elapsed });
            if let Some(cause) =
                self.watched.watch.blindness().filter(|_| !std::mem::replace(&mut has_reported, true))
            {
                tell(link, config, &monitor, Event::Polling { cause });
            }
            let next = match self.next(link, elapsed) {
                Ok(next) => next,
                Err(error) => return error,
            };
            if let (Some(last), Some(next)) = (&scope, &next)
                && let Some(rest) = rest(last, next, elapsed, (self.clock)() - (begun + elapsed))
            {
                // Changes that settle meanwhile are seen a little later.
                debug!("wait ms={} why=same-paths-touched-again", rest.as_millis());
                std::thread::sleep(rest);
            }
            scope = next;
        }
    }

    /// Touches entries that changed while they were read, so that the next round reads them even if
    /// nobody touches them again.
    fn look_again_at(&self, summary: &Summary) {
        for problem in summary.problems.iter().filter(|problem| is_passing(problem.kind)) {
            if let Ok(path) = TreePath::new(problem.path.clone()) {
                self.watched.watch.touch(path);
            }
        }
    }

    /// Waits for the next round's scope: parts, or everything.
    fn next(&self, link: &Link<FileSender>, last: Duration) -> Result<Option<SubtreeSet>, RunError> {
        let timeout = match self.watched.watch.blindness() {
            Some(_) => POLL.max(last * POLL_SHARE),
            None => LOOK_AGAIN,
        };
        let deadline = (self.clock)() + timeout;
        link.rest(true);
        let next = self.wait(link, deadline);
        link.rest(false);
        next
    }

    fn wait(&self, link: &Link<FileSender>, deadline: Instant) -> Result<Option<SubtreeSet>, RunError> {
        loop {
            match link.mailbox().idle(deadline.saturating_duration_since((self.clock)())) {
                Idle::Closed(kind, text) => return Err(RunError { kind, by_peer: false, text }),
                // `take` hands out due parts first, and everything after them.
                Idle::Rescan | Idle::Late => self.watched.watch.everything(),
                Idle::Woken => {
                    match self.watched.watch.take().and_then(|touched| self.of_interest(touched)) {
                        Some(Touched::Everything) => {
                            self.await_single();
                            return Ok(None);
                        }
                        Some(Touched::Subtrees(scope)) => return Ok(Some(scope)),
                        None => {}
                    }
                }
            }
        }
    }

    /// Waits a moment for a watched file that is missing.
    fn await_single(&self) {
        let Some(single) = &self.single else { return };
        let deadline = (self.clock)() + MISSING_MAX;
        while matches!(self.watched.root.stat(single), Ok(None)) && (self.clock)() < deadline {
            std::thread::sleep(MISSING_POLL);
        }
    }

    /// The touched paths that belong to the source; `None` if none does.
    fn of_interest(&self, touched: Touched) -> Option<Touched> {
        let Touched::Subtrees(scope) = touched else { return Some(touched) };
        let mut subtrees = scope.subtrees().iter();
        match &self.single {
            Some(single) => subtrees.any(|(path, _)| path == single).then_some(Touched::Everything),
            // Changed rules may include or exclude anything.
            None => {
                // An excluded log may be written all the time. It is unknown whether a removed
                // entry was a directory, and some rules apply to directories only.
                let filter = self.watched.filter.lock().unwrap_or_else(PoisonError::into_inner);
                // Changed rules may include or exclude anything.
                if subtrees.any(|(path, _)| filter.is_rule_file(path.name())) {
                    return Some(Touched::Everything);
                }
                let is_out = |path: &TreePath| {
                    filter.excludes_within(path, false) && filter.excludes_within(path, true)
                };
                let subtrees: Vec<_> =
                    scope.subtrees().iter().filter(|(path, _)| !is_out(path)).cloned().collect();
                (!subtrees.is_empty()).then(|| Touched::Subtrees(SubtreeSet::new(subtrees)))
            }
        }
    }
}

/// The wait before a round about `next`, if the one about `last` took `elapsed` and ended `ago`.
fn rest(last: &SubtreeSet, next: &SubtreeSet, elapsed: Duration, ago: Duration) -> Option<Duration> {
    let is_due = elapsed > LONG_ROUND && is_again(last, next);
    is_due.then(|| elapsed.saturating_sub(ago).min(REST_MAX))
}

/// True if every part of a scope was in the earlier one too.
fn is_again(last: &SubtreeSet, next: &SubtreeSet) -> bool {
    let paths: HashSet<_> = last.subtrees().iter().map(|(path, _)| path).collect();
    next.subtrees().iter().all(|(path, _)| paths.contains(path))
}

/// Reports an event between two rounds, to the peer or to the local observer.
fn tell<E: Engine>(link: &Link<E>, config: &Config, monitor: &dyn Monitor, event: Event) {
    if config.relay { link.say(Common::Note(event).into()) } else { monitor.observe(event) }
}

/// True if a problem will probably be over soon: the entry is tried again, and nobody is told.
fn is_passing(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::Changed | ProblemKind::Vanished)
}

/// Forwards all events but the problems that will probably be over soon.
struct DeferredRetry<'a>(&'a dyn Monitor);

impl Monitor for DeferredRetry<'_> {
    fn observe(&self, event: Event) {
        if !matches!(&event, Event::Problem(problem) if is_passing(problem.kind)) {
            self.0.observe(event);
        }
    }
}

/// Receives round after round into `path`. Calls `done` after each round, and `baseline` before it.
pub fn receive(
    link: &Link<FileReceiver>,
    path: &Path,
    config: &Config,
    baseline: impl Fn() -> Option<Baseline>,
    monitor: &dyn Monitor,
    done: &mut dyn FnMut(Round),
) -> RunError {
    let (session, monitor) = (Arc::new(ReceiverSession::default()), DeferredRetry(monitor));
    loop {
        let receiving = Receiving::new(path.to_owned(), config.options.clone())
            .with_baseline(baseline())
            .in_session(Arc::clone(&session));
        match link.run(Receiver::new(config), receiving, &monitor) {
            Ok(summary) => {
                let begun = session.state().begun.take();
                let begun = begun.unwrap_or_else(Instant::now);
                let is_full = session.state().is_full;
                link.rest(true);
                done(Round { summary, is_full, begun, elapsed: begun.elapsed() });
            }
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::exchange::run::Incoming;

    fn scope(names: &[&str]) -> SubtreeSet {
        SubtreeSet::new(names.iter().map(|name| (TreePath::new(name.as_bytes()).unwrap(), false)))
    }

    /// The scope of the round that begins as soon as the clock allows it. The clock shows 0 once,
    /// and `seconds` from then on, however often an event wakes the source.
    fn next(folder: &Path, seconds: u64) -> Option<SubtreeSet> {
        let (begin, is_later) = (Instant::now(), AtomicBool::new(false));
        let clock = move || {
            let seconds = if is_later.swap(true, Ordering::Relaxed) { seconds } else { 0 };
            begin + Duration::from_secs(seconds)
        };
        let source = WatchedSource::new(folder, WatchOptions { quiet_ms: 100, poll: false }, clock).unwrap();
        drop(source.watched.watch.take());
        // The other end stays open, or the connection would count as closed.
        let (reader, _writer) = io::pipe().unwrap();
        let link = Link::new(Incoming::alone(reader), io::sink(), false, false);
        let mailbox = Arc::clone(link.mailbox());
        source.watched.watch.wake(move || mailbox.wake());
        source.next(&link, Duration::ZERO).unwrap()
    }

    #[test]
    fn full_round_begins_when_it_is_due() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(next(folder.path(), LOOK_AGAIN.as_secs()), None);
    }

    #[test]
    fn long_round_delays_the_next_one_about_the_same_paths() {
        let (log, other) = (scope(&["log"]), scope(&["other"]));
        let rest = |next, elapsed, ago| {
            let ms = Duration::from_millis;
            rest(&log, next, ms(elapsed), ms(ago)).map(|rest| rest.as_millis())
        };
        assert_eq!(rest(&log, 300, 0), Some(300));
        assert_eq!(rest(&log, 300, 100), Some(200));
        assert_eq!(rest(&log, 300, 400), Some(0));
        assert_eq!(rest(&log, 5000, 0), Some(1000));
        assert_eq!(rest(&log, 200, 0), None);
        assert_eq!(rest(&other, 5000, 0), None);
    }

    #[test]
    fn round_repeats_another_if_it_touches_no_other_path() {
        assert!(is_again(&scope(&["a", "log"]), &scope(&["log"])));
        assert!(!is_again(&scope(&["log"]), &scope(&["a", "log"])));
        assert!(!is_again(&scope(&["a"]), &scope(&["b"])));
    }
}
