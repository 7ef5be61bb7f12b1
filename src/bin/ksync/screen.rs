//! The terminal view of a run: the mapping, changes, problems, and progress.
//!
//! Events only change numbers or print a line, so they cost the exchange next to nothing.
//! [`Screen::tick`] draws the bar and the plain lines; the caller calls it every
//! [`Screen::period`].

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ksync::monitor::{Event, Monitor, Preparation, Warning};
use ksync::sync::endpoint::Endpoint;
use ksync::sync::watch::News;
use ksync::sync::{Job, Report};
use ksync::tree::path::escape;

use crate::brake::Words;
use crate::list::{Line, visible};
use crate::progress::{Progress, RateMeter};
use crate::report::{self, Direction};
use crate::request::Show;
use crate::units::counted;
use crate::view::View;
use crate::{list, live, out};

/// Maximum frequency of drawing the bar, in Hz.
const DRAWS_PER_SECOND: u8 = 10;

/// Delay before the bar appears: a bar that flashes by is useless.
const BAR_DELAY: Duration = Duration::from_millis(300);

/// Interval between two lines where there is no terminal.
const LINE_PERIOD: Duration = Duration::from_secs(10);

/// Number of problems that are shown one by one; the others are counted.
const PROBLEMS_SHOWN: u64 = 20;

/// Template until the amount of missing content is known.
const WAITING: &str = "{spinner} {wide_msg}";

/// Template while content moves. Plain characters and no colours, so `NO_COLOR` has nothing to turn
/// off.
const MOVING: &str = "[{bar:20}] {decimal_bytes} of {decimal_total_bytes}, {prefix}  {wide_msg}";

/// The form of progress output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bar,
    Lines,
    Nothing,
}

/// The view for people.
pub(crate) struct Screen {
    source: Endpoint,
    destination: Endpoint,
    direction: Direction,
    checksum: bool,
    words: Words,
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
    bar: Option<ProgressBar>,
    rate_meter: RateMeter,
}

impl Screen {
    /// An empty screen for a job.
    pub(crate) fn new(job: &Job, show: Show) -> Self {
        let mode = match (show.progress, std::io::stderr().is_terminal()) {
            (false, _) => Mode::Nothing,
            (true, true) => Mode::Bar,
            (true, false) => Mode::Lines,
        };
        Self {
            source: job.source.clone(),
            destination: job.destination.clone(),
            direction: direction(job),
            checksum: job.options.checksum,
            words: Words::new(job, false),
            show,
            mode,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Prints a line on stderr, above the bar if there is one.
    fn note(&self, text: &str) {
        if !self.show.quiet {
            let state = self.state();
            let print = || out::note(text);
            match &state.bar {
                Some(bar) => bar.suspend(print),
                None => print(),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Source and destination, with the path that the destination resolved to. The user typed the
    /// endpoints; the resolved path comes from the receiver.
    fn mapping(&self, path: &[u8]) -> String {
        format!("{} → {}", self.source, self.destination.clone().with_path(path))
    }

    /// The line for a change, if it has one.
    pub(crate) fn change(&self, line: Line<'_>) -> Option<String> {
        if self.show.itemize { Some(line.itemized(self.direction, self.checksum)) } else { line.in_words() }
    }

    /// The lines for an event: one for stdout, one for stderr.
    fn told(&self, state: &mut State, event: &Event) -> (Option<String>, Option<String>) {
        match event {
            Event::Resolved { path } if !state.is_mapped => {
                state.is_mapped = true;
                (None, (!self.show.quiet).then(|| self.mapping(path)))
            }
            Event::Change { action, what, differs, path, target } if !self.show.quiet => {
                let line = Line { action: *action, what: *what, differs: *differs, path, target };
                (self.change(line), None)
            }
            Event::Excluded { entries } if !self.show.quiet => {
                (None, Some(format!("{} excluded by rules", counted(*entries, "entry", "entries"))))
            }
            Event::Braked(braked) => (None, Some(self.words.text(braked))),
            Event::StateExcluded { directories } if !self.show.quiet => {
                (None, Some(format!("ksync: {}", list::state_excluded(*directories))))
            }
            Event::Grew { path } if !self.show.quiet => (None, Some(list::grew(path))),
            Event::Problem(problem) => {
                state.problems += 1;
                (None, (state.problems <= PROBLEMS_SHOWN).then(|| list::problem(problem)))
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
            let print = || {
                told.0.iter().for_each(|line| out::result(line));
                told.1.iter().for_each(|line| out::note(line));
            };
            match &state.bar {
                Some(bar) => bar.suspend(print),
                None => print(),
            }
        }
        if matches!(event, Event::Planned { .. }) {
            state.rate_meter.begin(Instant::now());
        }
        state.progress.observe(event);
    }

    fn prepare(&self, preparation: Preparation) {
        self.note(prepared(preparation));
    }

    fn warn(&self, warning: Warning) {
        self.note(&warned(&warning));
    }
}

impl View for Screen {
    fn period(&self) -> Duration {
        match self.mode {
            Mode::Bar => Duration::from_secs(1) / u32::from(DRAWS_PER_SECOND),
            Mode::Lines | Mode::Nothing => LINE_PERIOD,
        }
    }

    fn tick(&self) {
        let mut state = self.state();
        match self.mode {
            Mode::Bar if self.started.elapsed() >= BAR_DELAY => state.draw(),
            Mode::Bar | Mode::Nothing => {}
            // A sample before anything is planned would start the measurement too early.
            Mode::Lines if !state.progress.is_planned => out::note(&state.progress.line(0.0)),
            Mode::Lines => {
                let rate = state.rate();
                out::note(&state.progress.line(rate));
            }
        }
    }

    /// Removes the bar and counts the problems that were not shown.
    fn finish(&self) {
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(line) = further_problems(state.problems) {
            out::note(&line);
        }
    }

    fn report(&self, report: &Report) {
        if !self.show.quiet {
            out::result(&report::line(report, self.direction));
            if self.show.stats {
                out::result(&report::stats(report, self.direction));
            }
        }
    }

    fn news(&self, news: News<'_>) {
        match news {
            News::Command(said) => {
                if let (Some(line), print) = live::command(&said) {
                    print(&line);
                }
            }
            News::Lost { error, wait } => {
                let mut state = self.state();
                let line = live::lost(error, wait);
                match &state.bar {
                    Some(bar) => bar.suspend(|| out::note(&line)),
                    None => out::note(&line),
                }
                // The next attempt plans the content that is still missing.
                (state.progress, state.rate_meter) = Default::default();
            }
            News::Round(_) => {}
        }
    }
}

impl State {
    fn rate(&mut self) -> f64 {
        self.rate_meter.look(Instant::now(), self.progress.moved_bytes)
    }

    fn draw(&mut self) {
        let rate = if self.progress.is_planned { self.rate() } else { 0.0 };
        let progress = &self.progress;
        let bar = self.bar.get_or_insert_with(|| {
            let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
            ProgressBar::with_draw_target(None, target).with_style(style(WAITING))
        });
        if !progress.is_planned {
            bar.set_message(progress.waiting());
            return bar.tick();
        }
        bar.set_prefix(progress.rate_text(rate));
        bar.set_message(escape(&progress.name).into_owned());
        bar.set_position(progress.moved_bytes);
        if bar.length().is_none() {
            bar.set_style(style(MOVING));
        }
        bar.set_length(progress.total_bytes());
        bar.tick();
    }
}

/// The line for a preparation step.
pub(crate) fn prepared(preparation: Preparation) -> &'static str {
    match preparation {
        Preparation::LookUp => "asking for the session",
        Preparation::SetUp => "setting its VM up: a second, or a minute where something has to be installed",
        Preparation::BringBridge => "bringing a bridge: its VM has no websocat and cannot download it",
    }
}

/// The text of a warning.
pub(crate) fn warned(warning: &Warning) -> String {
    format!("ksync: warning: {}\n  hint: {}", visible(&warning.what), visible(&warning.hint))
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

#[cfg(test)]
mod tests {
    use ksync::monitor::{Action, Differs, Problem, ProblemKind, What};
    use ksync::sync::ConnectOptions;
    use ksync::wire::hello::Options;

    use super::*;

    fn screen(quiet: bool) -> Screen {
        let connect_options = ConnectOptions::new(ksync::agent(), ksync::bridge());
        let job = Job {
            source: Endpoint::parse("./dir".as_ref()).unwrap(),
            destination: Endpoint::parse("sandbox:x".as_ref()).unwrap(),
            options: Options::default(),
            connect_options,
        };
        Screen::new(&job, Show { quiet, ..Show::default() })
    }

    fn told(screen: &Screen, event: &Event) -> (Option<String>, Option<String>) {
        screen.told(&mut screen.state(), event)
    }

    fn change() -> Event {
        let (action, what, differs) = (Action::Create, What::File, Differs::default());
        Event::Change { action, what, differs, path: b"a".to_vec(), target: Vec::new() }
    }

    fn problem() -> Event {
        let cause = "Permission denied".to_owned();
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
        let line = "ksync: cannot read: a: Permission denied".to_owned();
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

    #[test]
    fn both_templates_are_valid() {
        for template in [WAITING, MOVING] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
