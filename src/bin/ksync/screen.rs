//! The terminal view of a run: the mapping, changes, problems, and progress.
//!
//! Events only change numbers or print a line, so they cost the exchange next to nothing.
//! [`Screen::tick`] draws the status line or prints a plain one; the caller calls it every
//! [`Screen::period`].

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ksync::exchange::plain;
use ksync::monitor::{Action, Awake, Event, Monitor, Notice, Preparation, Problem, Warning};
use ksync::sync::endpoint::Endpoint;
use ksync::sync::watch::{News, Said};
use ksync::sync::{Job, Report};
use ksync::wire::hello::Undo;

use crate::brake::Words;
use crate::format::Facts;
use crate::list::{Line, visible};
use crate::progress::{Progress, SpeedMeter};
use crate::report::{self, Direction};
use crate::request::Show;
use crate::status::StatusLine;
use crate::units::counted;
use crate::view::View;
use crate::{endpoints, list, live, out};

/// Interval between two drawings of the status line.
pub(crate) const DRAW_PERIOD: Duration = Duration::from_millis(100);

/// Delay before the status line appears: one that flashes by is useless.
const BAR_DELAY: Duration = Duration::from_millis(300);

/// Interval between two lines where there is no terminal.
const LINE_PERIOD: Duration = Duration::from_secs(10);

/// Number of problems that are shown one by one; the others are counted.
const PROBLEMS_SHOWN: u64 = 20;

/// The form of progress output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bar,
    Lines,
    Nothing,
}

/// The view for people.
pub(crate) struct Screen {
    sources: Vec<Endpoint>,
    destination: Endpoint,
    direction: Direction,
    checksum: bool,
    words: Words,
    verifies: bool,
    undo: Undo,
    show: Show,
    mode: Mode,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_mapped: bool,
    problems: u64,
    progress: Progress,
    status: StatusLine,
    meter: SpeedMeter,
}

impl Screen {
    /// An empty screen for a job.
    pub(crate) fn new(job: &Job, show: Show) -> Self {
        let (lists, itemize) = (show.lists || job.verifies && !show.quiet, show.itemize || job.verifies);
        let show = Show { lists, itemize, ..show };
        let mode = match (show.progress, can_draw()) {
            (false, _) => Mode::Nothing,
            (true, true) => Mode::Bar,
            (true, false) => Mode::Lines,
        };
        Self {
            sources: job.sources().cloned().collect(),
            destination: job.destination.clone(),
            direction: direction(job),
            checksum: job.options.checksum,
            words: Words::new(job, false),
            verifies: job.verifies,
            undo: job.options.undo,
            show,
            mode,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Prints something above the status line.
    pub(crate) fn above(&self, print: impl FnOnce()) {
        self.state().status.above(print);
    }

    /// Prints a line on stderr.
    fn note(&self, text: &str) {
        if !self.show.quiet {
            self.above(|| out::note(text));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Source and destination, with the path that the destination resolved to. The user typed the
    /// endpoints; the resolved path comes from the receiver.
    fn mapping(&self, path: &[u8]) -> String {
        if self.undo.is_own() {
            return format!("undo in {}", self.destination.clone().with_path(path));
        }
        let (sources, sign) = (endpoints::named(&self.sources), if self.verifies { "=?" } else { "→" });
        format!("{sources} {sign} {}", self.destination.clone().with_path(path))
    }

    /// The line for a problem.
    pub(crate) fn problem(&self, problem: &Problem) -> String {
        list::problem(problem, &self.sources, &self.destination)
    }

    /// The line for a change, if it has one.
    pub(crate) fn change(&self, line: Line<'_>) -> Option<String> {
        if let Some(format) = self.show.out_format {
            let facts = Facts {
                sources: &self.sources,
                destination: &self.destination,
                direction: self.direction,
                checksum: self.checksum,
            };
            return format.line(line, facts);
        }
        if self.verifies && line.action == Action::Delete {
            return Some(format!("*extra      {}", list::shown(line.what, line.path)));
        }
        if self.show.itemize { Some(line.itemized(self.direction, self.checksum)) } else { line.in_words() }
    }

    /// The lines for an event: one for stdout, one for stderr.
    fn told(&self, state: &mut State, event: &Event) -> (Option<String>, Option<String>) {
        match event {
            Event::Resolved { path } if !state.is_mapped => {
                state.is_mapped = true;
                (None, (!self.show.quiet).then(|| self.mapping(path)))
            }
            Event::Change { action, what, differs, path, target } if self.show.lists => {
                let line = Line { action: *action, what: *what, differs: *differs, path, target };
                (self.change(line), None)
            }
            Event::SourceRemoved { path } if self.show.lists && !self.show.itemize => {
                (Some(list::source_removed(path)), None)
            }
            Event::Excluded { entries } if !self.show.quiet => {
                (None, Some(format!("{} excluded by rules", counted(*entries, "entry", "entries"))))
            }
            Event::Stored { run, files, bytes } if self.undo == Undo::List => {
                (Some(list::stored(*run, *files, *bytes)), None)
            }
            Event::Braked(braked) => (None, Some(self.words.text(braked))),
            Event::StateExcluded { directories } if !self.show.quiet => {
                (None, Some(format!("ksync: {}", list::state_excluded(*directories))))
            }
            Event::LinksExcluded { links, first } if !self.show.quiet => {
                (None, Some(format!("ksync: {}", list::links_excluded(*links, first))))
            }
            Event::DevicesPassedOver { devices, first } if !self.show.quiet => {
                (None, Some(format!("ksync: {}", list::devices_passed_over(*devices, first))))
            }
            Event::BasisMissing { path } if !self.show.quiet => {
                (None, Some(format!("ksync: {}", list::basis_missing(path))))
            }
            Event::NonRegularSkipped { entries, first } if !self.show.quiet => {
                (None, Some(format!("ksync: {}", list::non_regular_skipped(*entries, first))))
            }
            Event::Grew { path } if !self.show.quiet => (None, Some(list::grew(path))),
            Event::Problem(problem) => {
                state.problems += 1;
                (None, (state.problems <= PROBLEMS_SHOWN).then(|| self.problem(problem)))
            }
            _ => (None, None),
        }
    }
}

impl Monitor for Screen {
    fn observe(&self, event: Event) {
        let mut state = self.state();
        let told = self.told(&mut state, &event);
        if told != (None, None) {
            state.status.above(|| {
                told.0.iter().for_each(|line| out::result(line));
                told.1.iter().for_each(|line| out::note(line));
            });
        }
        if let Event::Written(written) = &event {
            state.meter.observe(Instant::now(), written.bytes);
        }
        let was_complete = state.progress.is_complete();
        state.progress.observe(event);
        // The end may be too short for a tick.
        if state.status.is_shown() && !was_complete && state.progress.is_complete() {
            state.draw(self.direction);
        }
    }

    fn prepare(&self, preparation: Preparation) {
        self.note(prepared(preparation));
    }

    fn warn(&self, warning: Warning) {
        self.note(&warned(&warning));
    }

    fn notice(&self, notice: Notice) {
        if let Some(line) = noticed(&notice) {
            self.note(&line);
        }
    }
}

impl View for Screen {
    fn period(&self) -> Duration {
        match self.mode {
            Mode::Bar => DRAW_PERIOD,
            Mode::Lines | Mode::Nothing => LINE_PERIOD,
        }
    }

    fn tick(&self) {
        let mut state = self.state();
        match self.mode {
            Mode::Bar if self.started.elapsed() >= BAR_DELAY => state.draw(self.direction),
            Mode::Bar | Mode::Nothing => {}
            Mode::Lines => {
                let speed = state.meter.speed(Instant::now());
                out::note(&state.progress.line(speed, self.direction));
            }
        }
    }

    /// Removes the status line and counts the problems that were not shown.
    fn finish(&self) {
        let mut state = self.state();
        state.status.clear();
        if let Some(line) = further_problems(state.problems) {
            out::note(&line);
        }
    }

    fn report(&self, report: &Report) {
        if self.undo == Undo::List {
            return;
        }
        if !self.show.quiet {
            if matches!(self.undo, Undo::Keep(_)) && report.has_changed() && !report.dry_run {
                out::note("ksync undo takes this run back");
            }
            out::result(&report::line(report, self.direction));
            if self.show.stats {
                out::result(&report::stats(report, self.direction));
            }
        }
        let destination = self.destination.to_string();
        let differing = report::differing(report, &endpoints::named(&self.sources), &destination);
        differing.iter().for_each(|error| out::note(&error.to_string()));
    }

    fn news(&self, news: News<'_>) {
        match news {
            News::Command(said) => {
                if let (Some(line), print) = live::command(&said) {
                    self.above(|| print(&line));
                }
                if matches!(said, Said::Ended(1..) | Said::Failed(_)) {
                    out::note("  hint: The next run runs it again, even if nothing has changed.");
                }
            }
            News::Lost { error, wait } => {
                let mut state = self.state();
                state.status.above(|| out::note(&live::lost(error, wait)));
                // The next attempt plans the content that is still missing.
                (state.progress, state.meter) = Default::default();
            }
            News::Round(_) => {}
        }
    }
}

impl State {
    fn draw(&mut self, direction: Direction) {
        let Self { progress, status, meter, .. } = self;
        if progress.is_planned() {
            let speed = meter.speed(Instant::now());
            status.draw(|columns| progress.status(speed, direction, columns));
        } else {
            status.spin(&progress.waiting());
        }
    }
}

/// True if stderr is a terminal on which a line can be drawn again.
pub(crate) fn can_draw() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The line for a preparation step.
pub(crate) fn prepared(preparation: Preparation) -> &'static str {
    match preparation {
        Preparation::LookUp => "asking for the session",
        Preparation::SetUp => "setting its VM up: a second, or a minute where something has to be installed",
        Preparation::BringBridge => "bringing a bridge: its VM has no websocat and cannot download it",
    }
}

/// The line for a notice, if it has one.
pub(crate) fn noticed(notice: &Notice) -> Option<String> {
    match notice {
        Notice::KeepAlive(Awake::Lost(warning)) => Some(warned(warning)),
        Notice::KeepAlive(Awake::Back) => Some("ksync: the session is kept awake again".to_owned()),
        Notice::Wait { what, .. } => Some(format!("ksync: {}", visible(&plain(what)))),
        Notice::KeepAlive(Awake::Held | Awake::Off)
        | Notice::Session { .. }
        | Notice::Connected { .. }
        | Notice::Agent { .. } => None,
    }
}

/// The text of a warning.
pub(crate) fn warned(warning: &Warning) -> String {
    format!("ksync: warning: {}\n  hint: {}", visible(&plain(&warning.what)), visible(&warning.hint))
}

/// The direction of a job's content.
pub(crate) fn direction(job: &Job) -> Direction {
    match (job.source.is_remote(), job.destination.is_remote()) {
        (_, true) => Direction::Up,
        (true, false) => Direction::Down,
        (false, false) => Direction::Local,
    }
}

/// The line for problems that were not shown.
fn further_problems(problems: u64) -> Option<String> {
    let more = problems.checked_sub(PROBLEMS_SHOWN).filter(|&more| more > 0)?;
    Some(format!("ksync: and {}", counted(more, "more problem", "more problems")))
}

#[cfg(test)]
mod tests {
    use ksync::monitor::{Differs, ProblemKind, What};
    use ksync::sync::ConnectOptions;
    use ksync::wire::hello::Options;

    use super::*;

    fn screen(quiet: bool) -> Screen {
        let connect_options = ConnectOptions::new(ksync::agent(), ksync::bridge());
        let job = Job {
            source: Endpoint::parse("./dir".as_ref()).unwrap(),
            further: Vec::new(),
            destination: Endpoint::parse("sandbox:x".as_ref()).unwrap(),
            options: Options::default(),
            connect_options,
            verifies: false,
        };
        Screen::new(&job, Show { quiet, lists: !quiet, ..Show::default() })
    }

    fn told(screen: &Screen, event: &Event) -> (Option<String>, Option<String>) {
        screen.told(&mut screen.state(), event)
    }

    fn change() -> Event {
        let (action, what, differs) = (Action::Create, What::File, Differs::default());
        Event::Change { action, what, differs, path: b"a".to_vec(), target: Vec::new() }
    }

    fn problem() -> Event {
        let cause = "cannot open a: Permission denied (os error 13)".to_owned();
        Event::Problem(Problem { kind: ProblemKind::Unreadable, path: b"a".to_vec(), cause })
    }

    #[test]
    fn the_mapping_shows_the_resolved_destination_once() {
        let screen = screen(false);
        let event = Event::Resolved { path: b"/home/kernel/x\x07".to_vec() };
        let line = "./dir → sandbox:/home/kernel/x\\u{7}".to_owned();
        assert_eq!(told(&screen, &event), (None, Some(line)));
        assert_eq!(told(&screen, &event), (None, None));
    }

    #[test]
    fn changes_go_to_stdout_and_problems_to_stderr() {
        let screen = screen(false);
        let change = change();
        assert_eq!(told(&screen, &change), (Some("create  a".to_owned()), None));
        let line = "ksync: cannot read ./dir/a: permission denied".to_owned();
        assert_eq!(told(&screen, &problem()), (None, Some(line)));
    }

    #[test]
    fn quiet_shows_only_problems() {
        let screen = screen(true);
        let change = change();
        assert_eq!(told(&screen, &change), (None, None));
        assert_eq!(told(&screen, &Event::Resolved { path: b"/x".to_vec() }), (None, None));
        assert!(told(&screen, &problem()).1.is_some());
    }

    #[test]
    fn the_first_twenty_problems_are_shown_and_the_others_counted() {
        let screen = screen(false);
        let shown = (0..25).filter(|_| told(&screen, &problem()).1.is_some()).count();
        assert_eq!(shown, 20);
        assert_eq!(further_problems(20), None);
        assert_eq!(further_problems(21).as_deref(), Some("ksync: and 1 more problem"));
        assert_eq!(further_problems(25).as_deref(), Some("ksync: and 5 more problems"));
    }
}
