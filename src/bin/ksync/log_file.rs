//! `--log-file`: each change, problem and result with its time, as in rsync's log.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ksync::disk::typed_path;
use ksync::exchange::chain;
use ksync::monitor::{Event, Monitor, Notice, Preparation, Warning};
use ksync::sync::{Endpoint, Job, Report};
use ksync::tree::path::escape;

use crate::format::{Facts, Format, now};
use crate::list::{self, Line};
use crate::report::{self, CliError, Direction};
use crate::units::count;
use crate::view::View;
use crate::{out, screen};

/// The open file.
#[derive(Debug)]
pub(crate) struct LogFile {
    name: String,
    file: Mutex<File>,
    format: Format,
    /// True once a write has failed and the user knows it.
    has_failed: AtomicBool,
}

impl LogFile {
    /// Opens the file; lines are added at its end.
    pub(crate) fn open(path: &OsStr, format: Format) -> Result<Self, CliError> {
        let name = escape(path.as_bytes()).into_owned();
        match typed_path::append_to(Path::new(path)) {
            Ok(file) => Ok(Self { name, file: Mutex::new(file), format, has_failed: AtomicBool::new(false) }),
            Err(error) => {
                let told = format!("cannot write the log {name}: {}", chain(&error));
                let hint = "Name a file that you may write with --log-file, or leave it out.";
                Err(CliError::new(report::FILE, told).with_hint(Some(hint)))
            }
        }
    }

    /// Adds a line. A log that cannot be written does not end the run.
    pub(crate) fn line(&self, text: &str) {
        let line = format!("{} [{}] {text}\n", now(), std::process::id());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes())
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            out::note(&format!("ksync: cannot write the log {}: {}", self.name, chain(&error)));
        }
    }

    /// Adds the result of a job.
    pub(crate) fn report(&self, report: &Report) {
        let tally = &report.summary.tally;
        let (sent, received) = match (report.wire_up_bytes, report.wire_down_bytes) {
            (0, 0) => (tally.sent_bytes, 0),
            wire => wire,
        };
        let [sent, received, total] = [sent, received, tally.total_bytes].map(count);
        self.line(&format!("sent {sent} bytes  received {received} bytes  total size {total}"));
    }
}

/// A monitor that writes the log beside a view.
pub(crate) struct Logging {
    view: Arc<dyn View>,
    log: Arc<LogFile>,
    sources: Vec<Endpoint>,
    destination: Endpoint,
    direction: Direction,
    checksum: bool,
}

impl Logging {
    /// Begins the log of a job.
    pub(crate) fn begin(job: &Job, view: Arc<dyn View>, log: &Arc<LogFile>) -> Self {
        log.line("building file list");
        Self {
            view,
            log: Arc::clone(log),
            sources: job.sources().cloned().collect(),
            destination: job.destination.clone(),
            direction: screen::direction(job),
            checksum: job.options.checksum,
        }
    }

    fn text(&self, event: &Event) -> Option<String> {
        match event {
            Event::Change { action, what, differs, path, target } => {
                let facts = Facts {
                    sources: &self.sources,
                    destination: &self.destination,
                    direction: self.direction,
                    checksum: self.checksum,
                };
                let line = Line { action: *action, what: *what, differs: *differs, path, target };
                self.log.format.line(line, facts)
            }
            Event::Problem(problem) => Some(list::problem(problem, &self.sources, &self.destination)),
            _ => None,
        }
    }
}

impl Monitor for Logging {
    fn observe(&self, event: Event) {
        self.text(&event).iter().for_each(|text| self.log.line(text));
        self.view.observe(event);
    }

    fn prepare(&self, preparation: Preparation) {
        self.view.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.view.warn(warning);
    }

    fn notice(&self, notice: Notice) {
        self.view.notice(notice);
    }
}
