//! A running `ksync --watch`, and its output so far.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::skip::needs;
use crate::world::{DEADLINE, Run, World, schema, wait_for};

/// The direction of a sync between the directories `src` and `dst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Local,
    Up,
    Down,
}

impl Direction {
    pub(crate) const ALL: [Direction; 3] = [Direction::Local, Direction::Up, Direction::Down];

    /// SOURCE and DEST. The VM is the sandbox in ksync's own process.
    pub(crate) fn endpoints(self, world: &World) -> [OsString; 2] {
        match self {
            Direction::Local => ["src".into(), "dst".into()],
            Direction::Up => ["src".into(), world.far("dst")],
            Direction::Down => [world.far("src"), "dst".into()],
        }
    }

    /// The directory on this machine, which names the watch for a flush.
    pub(crate) fn near(self) -> &'static str {
        if self == Direction::Down { "dst" } else { "src" }
    }
}

/// The lines of a stream, as they arrive.
struct Lines {
    said: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Arc<Lines> {
        let lines = Arc::new(Lines { said: Mutex::default(), more: Condvar::new() });
        let hearing = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                hearing.said.lock().unwrap().0.push(line.expect("UTF-8 only"));
                hearing.more.notify_all();
            }
            hearing.said.lock().unwrap().1 = true;
            hearing.more.notify_all();
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        self.said.lock().unwrap().0.clone()
    }

    /// The first result of `look`, for lines from `from` on; `None` if the stream ends before.
    #[track_caller]
    fn find<T>(&self, what: &str, from: usize, mut look: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let begun = Instant::now();
        let (mut said, mut seen) = (self.said.lock().unwrap(), from);
        loop {
            while let Some(line) = said.0.get(seen) {
                if let Some(found) = look(line) {
                    return Some(found);
                }
                seen += 1;
            }
            if said.1 {
                return None;
            }
            let left = DEADLINE.saturating_sub(begun.elapsed());
            assert!(!left.is_zero(), "waited in vain for {what}; said so far:\n{}", said.0.join("\n"));
            said = self.more.wait_timeout(said, left).unwrap().0;
        }
    }
}

/// A running `ksync --watch`, which ends with the test.
pub(crate) struct Watcher<'w> {
    world: &'w World,
    near: OsString,
    child: Child,
    out: Arc<Lines>,
    err: Arc<Lines>,
}

impl<'w> Watcher<'w> {
    /// Starts `ksync --watch --json` with these options.
    pub(crate) fn start(world: &'w World, direction: Direction, options: &[&str]) -> Watcher<'w> {
        let mut command = world.ksync(["--watch", "--json"]);
        command.args(options).args(direction.endpoints(world));
        Watcher::of(world, direction.near(), command)
    }

    /// As `start`, and waits until the destination is a copy.
    #[track_caller]
    pub(crate) fn ready(world: &'w World, direction: Direction, options: &[&str]) -> Watcher<'w> {
        let watcher = Watcher::start(world, direction, options);
        watcher.event("ready");
        watcher
    }

    /// Any command that watches; `near` is the directory on this machine.
    pub(crate) fn of(world: &'w World, near: impl Into<OsString>, mut command: Command) -> Watcher<'w> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start");
        let out = Lines::of(child.stdout.take().expect("stdout"));
        let err = Lines::of(child.stderr.take().expect("stderr"));
        Watcher { world, near: near.into(), child, out, err }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Number of lines on its stdout so far.
    pub(crate) fn mark(&self) -> usize {
        self.out.all().len()
    }

    /// The first result of `look`, for lines of stdout from a mark on.
    #[track_caller]
    pub(crate) fn line<T>(&self, what: &str, mark: usize, look: impl FnMut(&str) -> Option<T>) -> T {
        self.out
            .find(what, mark, look)
            .unwrap_or_else(|| panic!("it ended before {what}:\n{:#?}{:#?}", self.out.all(), self.err.all()))
    }

    /// The first result of `look`, for lines of stderr.
    #[track_caller]
    pub(crate) fn note<T>(&self, what: &str, look: impl FnMut(&str) -> Option<T>) -> T {
        self.err
            .find(what, 0, look)
            .unwrap_or_else(|| panic!("it ended before {what}:\n{:#?}", self.err.all()))
    }

    /// All lines of stderr so far.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.err.all()
    }

    /// The first event of this name from a mark on that `fits` accepts.
    #[track_caller]
    pub(crate) fn event_where(&self, name: &str, mark: usize, fits: impl Fn(&Value) -> bool) -> Value {
        self.line(name, mark, |line| {
            schema::check_events(line);
            let event: Value = serde_json::from_str(line).expect("JSON");
            (event["event"] == name && fits(&event)).then_some(event)
        })
    }

    /// The first event of this name.
    #[track_caller]
    pub(crate) fn event(&self, name: &str) -> Value {
        self.event_where(name, 0, |_| true)
    }

    /// The events of this name so far.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        let events =
            self.out.all().into_iter().map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
        events.filter(|event| event["event"] == name).collect()
    }

    /// Waits until everything that was saved has arrived.
    #[track_caller]
    pub(crate) fn flush(&self) {
        self.world.run([OsString::from("flush"), self.near.clone()]).ok();
    }

    /// Flushes, and asserts that `dst` equals `src` to the last bit.
    #[track_caller]
    pub(crate) fn is_there(&self) {
        self.flush();
        self.world.assert_same("src", "dst");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a signal");
    }

    /// Waits for its end, and returns its stderr.
    #[track_caller]
    pub(crate) fn ends(mut self, code: i32) -> String {
        let status = self.end();
        // Both streams have ended, or end at once.
        let all = |lines: &Lines| {
            lines.find::<()>("the end of its output", 0, |_| None);
            lines.all().join("\n")
        };
        let (out, err) = (all(&self.out), all(&self.err));
        assert_eq!(status.code(), Some(code), "stdout:\n{out}\nstderr:\n{err}");
        err
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        wait_for("the end of a watch", || self.child.try_wait().expect("wait"))
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let told =
                format!("stdout:\n{}\nstderr:\n{}\n", self.out.all().join("\n"), self.notes().join("\n"));
            let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
        }
        // The watch ends its agent, too.
        let _ = kill_process(self.pid(), Signal::CONT);
        let _ = kill_process(self.pid(), Signal::TERM);
        let begun = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Skips unless a program works, and returns if it does.
pub(crate) fn is_there(program: &str, try_it: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(try_it).env("PATH", crate::world::path()).stdin(Stdio::null());
    let works = command.output().is_ok_and(|output| output.status.success());
    needs(works, format!("{program} {try_it:?} does not work"))
}

/// Runs a program that must succeed.
#[track_caller]
pub(crate) fn run(world: &World, program: &str, args: &[&str]) {
    let mut command = world.command(program);
    command.args(args);
    Run::of(command).ok();
}
