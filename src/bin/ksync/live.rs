//! The terminal view of a watch: as for one sync up to the first round, then a line for each round,
//! and a status line.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ksync::exchange::chain;
use ksync::exchange::rounds::Round;
use ksync::monitor::{Awake, Event, Monitor, Notice, Preparation, Warning};
use ksync::sync::watch::{News, Said};
use ksync::sync::{Job, Report, SyncError};

use crate::brake::Words;
use crate::list::{self, Line, visible};
use crate::report;
use crate::request::Show;
use crate::screen::{DRAW_PERIOD, Screen};
use crate::status::StatusLine;
use crate::units::{bytes, counted, span};
use crate::view::View;
use crate::{out, screen};

/// The view of a watch for people.
pub(crate) struct LiveScreen {
    /// Shows the first round.
    first: Screen,
    direction: report::Direction,
    words: Words,
    show: Show,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// True after the first round.
    is_ready: bool,
    /// The last message about deletions that wait for consent.
    braked: Option<String>,
    /// The state of the session's keep-alive, if there is a session.
    awake: Option<Awake>,
    /// The text of the status line; only on a terminal, after the first round.
    doing: Option<String>,
    status: StatusLine,
}

impl LiveScreen {
    /// An empty screen for a job.
    pub(crate) fn new(job: &Job, show: Show) -> Self {
        Self {
            first: Screen::new(job, show),
            direction: screen::direction(job),
            words: Words::new(job, true),
            show,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints above the status line, which is that of the first round until it is over.
    fn print(&self, state: &mut State, line: &str, print: fn(&str)) {
        if state.is_ready {
            state.status.above(|| print(line));
        } else {
            self.first.above(|| print(line));
        }
    }

    fn ready(&self, state: &mut State, round: &Round) {
        self.first.finish();
        state.is_ready = true;
        if self.show.quiet {
            return;
        }
        let report = Report { summary: round.summary.clone(), elapsed: round.elapsed, ..Report::default() };
        out::result(&report::line(&report, self.direction));
        let awake = state.awake.as_ref().map(awake);
        if self.show.progress && screen::can_draw() {
            state.doing = Some("watching".to_owned());
            awake.iter().for_each(|awake| out::note(awake));
        } else {
            let awake = awake.map(|awake| format!("; {awake}")).unwrap_or_default();
            out::note(&format!("watching{awake}; Ctrl-C ends it"));
        }
    }
}

impl State {
    /// Sets the text of the status line.
    fn is_doing(&mut self, what: impl Into<String>) {
        if let Some(doing) = &mut self.doing {
            *doing = what.into();
        }
    }
}

/// The state of the session's keep-alive, for the line that begins a watch.
fn awake(awake: &Awake) -> &'static str {
    match awake {
        Awake::Held | Awake::Back => "the session is kept awake, and billed, until this ends",
        Awake::Lost(_) => "the session is not kept awake",
        Awake::Off => "the session is not kept awake (--no-keep-alive)",
    }
}

/// `3 files, 4.1 kB, 23 ms`; `None` if nothing changed.
fn line(round: &Round) -> Option<String> {
    if !round.has_changed() {
        return None;
    }
    let tally = &round.summary.tally;
    let others = (tally.created + tally.updated + tally.adjusted + tally.deleted).saturating_sub(tally.files);
    let mut parts = Vec::new();
    if tally.files > 0 {
        parts.push(counted(tally.files, "file", "files"));
    }
    if tally.deleted > 0 {
        parts.push(format!("{} deleted", tally.deleted));
    }
    if tally.files + tally.deleted == 0 {
        parts.push(counted(others, "entry", "entries"));
    }
    if tally.sent_bytes > 0 {
        parts.push(bytes(tally.sent_bytes));
    }
    parts.push(match round.elapsed {
        short if short < Duration::from_secs(1) => format!("{} ms", short.as_millis().max(1)),
        long => span(long),
    });
    Some(parts.join(", "))
}

impl Monitor for LiveScreen {
    fn observe(&self, event: Event) {
        let mut state = self.state();
        match event {
            Event::Polling { cause } => {
                let line = format!("ksync: polling for changes: {}", visible(&cause));
                self.print(&mut state, &line, out::note);
            }
            Event::Left { what, path } if !self.show.quiet => {
                self.print(&mut state, &list::left(what, &path), out::result)
            }
            Event::Braked(braked) => {
                let text = self.words.text(&braked);
                if state.braked.as_ref() != Some(&text) {
                    self.print(&mut state, &text, out::note);
                    state.braked = Some(text);
                }
            }
            event if !state.is_ready => {
                drop(state);
                self.first.observe(event);
            }
            Event::Change { action, what, differs, path, target } if self.show.lists => {
                let line = Line { action, what, differs, path: &path, target: &target };
                self.first
                    .change(line)
                    .into_iter()
                    .for_each(|line| self.print(&mut state, &line, out::result));
            }
            Event::Problem(problem) => self.print(&mut state, &self.first.problem(&problem), out::note),
            Event::Planned { files, .. } if files > 0 => {
                state.is_doing(format!("syncing {}", counted(files, "file", "files")));
            }
            _ => {}
        }
    }

    fn prepare(&self, preparation: Preparation) {
        let mut state = self.state();
        if state.is_ready {
            state.is_doing(screen::prepared(preparation));
        } else {
            drop(state);
            self.first.prepare(preparation);
        }
    }

    fn warn(&self, warning: Warning) {
        if !self.show.quiet {
            self.print(&mut self.state(), &screen::warned(&warning), out::note);
        }
    }

    fn notice(&self, notice: Notice) {
        let mut state = self.state();
        // A new connection has a keep-alive of its own.
        let is_back = notice == Notice::KeepAlive(Awake::Held) && matches!(state.awake, Some(Awake::Lost(_)));
        let notice = if is_back { Notice::KeepAlive(Awake::Back) } else { notice };
        if let Some(line) = screen::noticed(&notice).filter(|_| !self.show.quiet) {
            self.print(&mut state, &line, out::note);
        }
        match notice {
            Notice::KeepAlive(awake) => state.awake = Some(awake),
            // The first answer of the keep-alive may come after the first round.
            Notice::Session { .. } => {
                state.awake.get_or_insert(Awake::Held);
            }
            Notice::Wait { .. } | Notice::Connected { .. } | Notice::Agent { .. } => {}
        }
    }
}

impl View for LiveScreen {
    fn period(&self) -> Duration {
        if self.state().is_ready { DRAW_PERIOD } else { self.first.period() }
    }

    fn tick(&self) {
        let mut state = self.state();
        let State { is_ready, doing, status, .. } = &mut *state;
        match doing {
            Some(doing) => status.spin(doing),
            None if *is_ready => {}
            None => {
                drop(state);
                self.first.tick();
            }
        }
    }

    fn finish(&self) {
        let mut state = self.state();
        state.status.clear();
        if !state.is_ready {
            self.first.finish();
        }
    }

    fn report(&self, report: &Report) {
        self.first.report(report);
    }

    fn news(&self, news: News<'_>) {
        let mut state = self.state();
        if let News::Round(round) = &news
            && round.is_full
            && round.summary.braked.is_none()
        {
            state.braked = None;
        }
        match news {
            News::Round(round) if !state.is_ready => self.ready(&mut state, round),
            News::Round(round) => {
                if let Some(line) = line(round).filter(|_| !self.show.quiet) {
                    self.print(&mut state, &line, out::result);
                }
                state.is_doing("watching");
            }
            News::Lost { error, wait } => {
                self.print(&mut state, &lost(error, wait), out::note);
                state.is_doing("reconnecting");
            }
            News::Command(said) => {
                let is_output = matches!(said, Said::Line(_));
                let (line, print) = command(&said);
                if let Some(line) = line.filter(|_| !(self.show.quiet && is_output)) {
                    self.print(&mut state, &line, print);
                }
            }
        }
    }
}

/// The line for a connection that was lost and will be replaced.
pub(crate) fn lost(error: &SyncError, wait: Duration) -> String {
    format!("ksync: {}; trying again in {}", visible(&chain(error)), span(wait))
}

/// The line for a command's event, and the function that prints it.
pub(crate) fn command(said: &Said<'_>) -> (Option<String>, fn(&str)) {
    match said {
        Said::Begins { is_again: true, .. } => {
            (Some("ksync: running the command that has not succeeded yet".to_owned()), out::note)
        }
        Said::Begins { .. } => (None, out::result),
        Said::Line(line) => (Some(format!("| {}", ksync::tree::path::escape(line))), out::result),
        Said::Ended(0) => (None, out::result),
        Said::Ended(status) => (Some(format!("ksync: the command ended with exit code {status}")), out::note),
        Said::Failed(error) => {
            (Some(format!("ksync: the command could not be run: {}", visible(&chain(*error)))), out::note)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ksync::engine::Summary;
    use ksync::wire::message::Tally;

    use super::*;

    fn told(tally: Tally, ms: u64) -> Option<String> {
        let summary = Summary { tally, ..Summary::default() };
        let elapsed = Duration::from_millis(ms);
        line(&Round { summary, is_full: false, begun: Instant::now(), elapsed })
    }

    #[test]
    fn a_round_with_changes_is_one_line() {
        let tally = Tally { files: 3, created: 1, updated: 2, sent_bytes: 4100, ..Tally::default() };
        assert_eq!(told(tally, 23).as_deref(), Some("3 files, 4.1 kB, 23 ms"));
        let tally = Tally { deleted: 2, ..Tally::default() };
        assert_eq!(told(tally, 1500).as_deref(), Some("2 deleted, 1.5 s"));
        let tally = Tally { created: 1, ..Tally::default() };
        assert_eq!(told(tally, 5).as_deref(), Some("1 entry, 5 ms"));
        assert_eq!(told(Tally { entries: 9, ..Tally::default() }, 5), None);
    }
}
