//! `--json`: one object per line on stdout, for programs.
//!
//! Each has the fields `v` (1), `ts` (seconds since 1970) and `event`.
//!
//! A path is a string. If its bytes are not UTF-8, the string is lossy and `path_base64` holds the
//! bytes.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use ksync::engine::Summary;
use ksync::exchange::plain;
use ksync::exchange::rounds::Round;
use ksync::monitor::{
    Action, Awake, Braked, Event, Monitor, Notice, Preparation, ProblemKind, Reason, Warning, What, Written,
};
use ksync::sync::watch::{News, Said};
use ksync::sync::{Endpoint, Job, Report};
use ksync::wire::hello::Undo;
use ksync::wire::message::Tally;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::brake::{In, Words};
use crate::out;
use crate::report::{self, CliError};
use crate::view::View;
use crate::{codes, list};

/// Interval between two events `progress`.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// Most changes that an event `move` keeps from being told twice.
const RENAMED_MAX: usize = 1 << 20;

/// The view for programs.
pub(crate) struct Json {
    resolved: Mutex<Resolved>,
    awake: Mutex<Option<Awake>>,
    is_ready: AtomicBool,
    /// True once the missing content was reported.
    is_planned: AtomicBool,
    /// Number of full rounds so far.
    scans: AtomicU64,
    words: Words,
    /// The last message of a watch about deletions that wait for consent.
    braked: Mutex<Option<Braked>>,
    is_dry: bool,
    verifies: bool,
    lists_runs: bool,
    progress: Mutex<Progress>,
    /// Changes that the event `move` has told already: whether it is a deletion, and the path.
    renamed: Mutex<HashSet<(bool, Vec<u8>)>>,
}

/// The progress of the content.
#[derive(Default)]
struct Progress {
    written: Written,
    /// The progress that the last event told.
    told: Written,
    /// The file whose transfer began last.
    path: Vec<u8>,
}

/// The parts of the event `resolved`, which come in any order.
#[derive(Default)]
struct Resolved {
    path: Option<Vec<u8>>,
    /// The session's id, and the domain of its VM.
    session: Option<(String, String)>,
    is_in_session: bool,
    is_told: bool,
}

fn is_lost(awake: &Awake) -> bool {
    matches!(awake, Awake::Lost(_))
}

fn is_session(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Session { .. })
}

impl Json {
    /// Prints the start of a job.
    pub(crate) fn begin(job: &Job, watches: bool) -> Self {
        let (source, destination) = (job.source.to_string(), job.destination.to_string());
        let sources: Vec<String> = job.sources().map(ToString::to_string).collect();
        tell(
            "start",
            if job.further.is_empty() {
                json!({ "source": source, "destination": destination })
            } else {
                json!({ "source": source, "sources": sources, "destination": destination })
            },
        );
        Self {
            resolved: Mutex::new(Resolved {
                is_in_session: job.sources().chain([&job.destination]).any(is_session),
                ..Resolved::default()
            }),
            awake: Mutex::default(),
            is_ready: AtomicBool::default(),
            is_planned: AtomicBool::default(),
            scans: AtomicU64::default(),
            words: Words::new(job, watches),
            braked: Mutex::default(),
            is_dry: job.options.dry_run,
            verifies: job.verifies,
            lists_runs: job.options.undo == Undo::List,
            progress: Mutex::default(),
            renamed: Mutex::default(),
        }
    }

    /// Reports deletions that wait for consent. A run ends with that; a watch continues and reports
    /// it once.
    fn brake(&self, braked: &Braked) {
        let (message, hint) = (self.words.what(braked), self.words.hint(braked));
        let entries: Vec<_> = braked
            .head
            .iter()
            .map(|doomed| with_path(json!({ "kind": kind(doomed.what) }), &doomed.path))
            .collect();
        let mut fields = json!({
            "message": message, "hint": hint, "reason": reason(braked.reason), "entries": braked.going,
            "of": braked.held, "first": entries,
        });
        let own = match self.words.of() {
            In::Run => {
                json!({ "code": codes::name(report::BRAKE), "exit": report::BRAKE, "retryable": false })
            }
            In::DryRun | In::Watch => json!({ "kind": "brake" }),
        };
        if let (Some(fields), Value::Object(own)) = (fields.as_object_mut(), own) {
            fields.extend(own);
        }
        tell(if self.words.of() == In::Run { "error" } else { "warning" }, fields);
    }

    /// Prints the event `plan` once, with the content that must travel.
    fn plan(&self, files: u64, bytes: u64) {
        if !self.verifies && !self.is_planned.swap(true, Ordering::Relaxed) {
            tell("plan", json!({ "files": files, "bytes": bytes }));
        }
    }

    /// Prints the event `progress`, if there was any since the last one.
    fn progress(&self) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let Progress { written, told, path } = &mut *progress;
        if written == told || !self.is_planned.load(Ordering::Relaxed) {
            return;
        }
        *told = *written;
        let Written { files, total_files, bytes, total_bytes } = *written;
        let fields = json!({
            "files": files, "total_files": total_files, "bytes": bytes, "total_bytes": total_bytes,
        });
        tell("progress", if path.is_empty() { fields } else { with_path(fields, path) });
    }

    /// Prints the event `move`, and remembers the two changes that say the same.
    fn renamed(&self, from: Vec<u8>, path: Vec<u8>) {
        let mut fields = json!({ "outcome": "done", "kind": "file", "from": String::from_utf8_lossy(&from) });
        if let (Some(fields), Err(_)) = (fields.as_object_mut(), std::str::from_utf8(&from)) {
            fields.insert("from_base64".to_owned(), BASE64.encode(&from).into());
        }
        tell("move", with_path(fields, &path));
        let mut renamed = self.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        // A peer may send any number of them.
        if renamed.len() < RENAMED_MAX {
            renamed.extend([(true, from), (false, path)]);
        }
    }

    /// True for a change that the event `move` has told.
    fn is_told(&self, action: Action, path: &[u8]) -> bool {
        let mut renamed = self.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_part = matches!(action, Action::Create | Action::Delete);
        is_part && !renamed.is_empty() && renamed.remove(&(action == Action::Delete, path.to_vec()))
    }

    /// Prints the event `difference`.
    fn differs(&self, action: Action, what: What, path: &[u8]) {
        let difference = match action {
            Action::Create | Action::Copy => "missing",
            Action::Update => "content",
            Action::Adjust => "metadata",
            Action::Delete => "extra",
        };
        tell("difference", with_path(json!({ "difference": difference, "kind": kind(what) }), path));
    }

    /// Prints the event `verify`, which ends a verification.
    fn verified(&self, report: &Report) {
        let Tally { entries, total_bytes, created, updated, adjusted, deleted, .. } = report.summary.tally;
        tell(
            "verify",
            json!({
                "equal": report.differences() == 0, "entries": entries, "total_bytes": total_bytes,
                "differences": report.differences(), "missing": created, "content": updated,
                "metadata": adjusted, "extra": deleted, "problems": report.summary.problem_count,
                "ms": millis(report.elapsed), "exit": report::exit_of(report),
                "wire_up_bytes": report.wire_up_bytes, "wire_down_bytes": report.wire_down_bytes,
            }),
        );
    }

    /// Prints the events `file` and `delete`.
    fn changed(&self, action: Action, what: What, path: &[u8]) {
        if self.is_told(action, path) {
            return;
        }
        let outcome = if self.is_dry { "planned" } else { "done" };
        if action == Action::Delete {
            return tell("delete", with_path(json!({ "kind": kind(what), "outcome": outcome }), path));
        }
        tell(
            "file",
            with_path(json!({ "action": list::verb(action), "kind": kind(what), "outcome": outcome }), path),
        );
    }

    /// Learns a part of the event `resolved`, and prints it once it is complete.
    fn resolve(&self, learn: impl FnOnce(&mut Resolved)) {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        learn(&mut resolved);
        let Resolved { path: Some(path), session, is_in_session, is_told: false } = &*resolved else {
            return;
        };
        let fields = match session {
            None if *is_in_session => return,
            None => json!({}),
            Some((id, domain)) => json!({ "session_id": id, "vm_domain": domain }),
        };
        tell("resolved", with_path(fields, path));
        resolved.is_told = true;
    }

    fn awake(&self) -> MutexGuard<'_, Option<Awake>> {
        self.awake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Option<Braked>> {
        self.braked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports why there was no run, or why it ended early.
pub(crate) fn report_error(error: &CliError) {
    tell(
        "error",
        json!({
            "code": codes::name(error.exit), "exit": error.exit, "message": error.what(),
            "hint": error.hint(), "retryable": codes::is_retryable(error.exit),
        }),
    );
}

/// Reports a warning of some kind.
pub(crate) fn warn(kind: &str, warning: &Warning) {
    tell("warning", json!({ "kind": kind, "message": plain(&warning.what), "hint": warning.hint }));
}

fn tell(event: &str, fields: Value) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut object = Map::new();
    object.insert("v".to_owned(), 1.into());
    // Milliseconds are precise enough for people and programs.
    object.insert("ts".to_owned(), (now.as_millis() as f64 / 1000.0).into());
    object.insert("event".to_owned(), event.into());
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    out::result(&Value::Object(object).to_string());
}

/// Adds a path to the fields.
pub(crate) fn with_path(mut fields: Value, path: &[u8]) -> Value {
    if let Some(object) = fields.as_object_mut() {
        object.insert("path".to_owned(), String::from_utf8_lossy(path).into());
        if std::str::from_utf8(path).is_err() {
            object.insert("path_base64".to_owned(), BASE64.encode(path).into());
        }
    }
    fields
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

fn numbers(summary: &Summary, elapsed: Duration) -> Value {
    let Tally { entries, total_bytes, created, updated, adjusted, deleted, .. } = summary.tally;
    let Tally { files, sent_bytes, matched_bytes, moved, copied, .. } = summary.tally;
    json!({
        "entries": entries, "total_bytes": total_bytes, "created": created, "updated": updated,
        "adjusted": adjusted, "deleted": deleted, "moved": moved, "copied": copied, "files": files,
        "sent_bytes": sent_bytes, "matched_bytes": matched_bytes, "problems": summary.problem_count,
        "ms": millis(elapsed),
    })
}

/// A round, with the number of full rounds so far: rounds without changes are not reported.
fn round(round: &Round, scans: u64) -> Value {
    let mut fields = numbers(&round.summary, round.elapsed);
    if let Some(object) = fields.as_object_mut() {
        object.insert("whole".to_owned(), round.is_full.into());
        object.insert("scans".to_owned(), scans.into());
    }
    fields
}

pub(crate) fn kind(what: What) -> &'static str {
    match what {
        What::Directory => "directory",
        What::File => "file",
        What::Symlink => "symlink",
        What::Special => "special",
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Protected => "protected",
        Reason::Limit { .. } => "max-delete",
        Reason::OtherMachine => "other-machine",
        Reason::Emptied => "emptied",
        Reason::OtherFilesystem => "other-filesystem",
        Reason::Foreign => "foreign",
        Reason::Most => "most",
    }
}

fn problem_kind(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Unreadable => "unreadable",
        ProblemKind::Vanished => "vanished",
        ProblemKind::Changed => "changed",
        ProblemKind::Unwritable => "unwritable",
        ProblemKind::Conflict => "conflict",
        ProblemKind::Obstacle => "obstacle",
        ProblemKind::Corrupt => "corrupt",
        ProblemKind::NotDeleted => "not-deleted",
        ProblemKind::NotRemoved => "not-removed",
        ProblemKind::Unlisted => "unlisted",
        ProblemKind::Refused => "refused",
    }
}

impl Monitor for Json {
    fn observe(&self, event: Event) {
        match event {
            Event::Resolved { path } => self.resolve(|resolved| resolved.path = Some(path)),
            Event::Braked(braked) => {
                let is_new = self.told().as_ref() != Some(&braked);
                if is_new {
                    self.brake(&braked);
                    *self.told() = Some(braked);
                }
            }
            Event::Change { action, what, path, .. } if self.verifies => self.differs(action, what, &path),
            // A new root is no entry of the tree.
            Event::Change { action: Action::Create, path, .. } if path.is_empty() => {}
            Event::Change { action, what, path, .. } => self.changed(action, what, &path),
            Event::Renamed { from, path } => self.renamed(from, path),
            Event::Began { path } => {
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).path = path;
            }
            Event::Problem(problem) => {
                let fields = json!({ "kind": problem_kind(problem.kind), "message": problem.cause });
                tell("warning", with_path(fields, &problem.path));
            }
            Event::Left { what, path } => {
                tell("left", with_path(json!({ "kind": kind(what) }), &path));
            }
            Event::SourceRemoved { path } => tell("source-removed", with_path(json!({}), &path)),
            Event::StateExcluded { directories } if !self.is_ready.load(Ordering::Relaxed) => {
                tell(
                    "warning",
                    json!({ "kind": "state-excluded", "message": list::state_excluded(directories) }),
                );
            }
            Event::LinksExcluded { links, first } if !self.is_ready.load(Ordering::Relaxed) => {
                let message = list::links_excluded(links, &first);
                tell("warning", with_path(json!({ "kind": "links-excluded", "message": message }), &first));
            }
            Event::DevicesPassedOver { devices, first } if !self.is_ready.load(Ordering::Relaxed) => {
                let message = list::devices_passed_over(devices, &first);
                tell("warning", with_path(json!({ "kind": "devices", "message": message }), &first));
            }
            Event::BasisMissing { path } => {
                let message = list::basis_missing(&path);
                tell("warning", with_path(json!({ "kind": "basis-missing", "message": message }), &path));
            }
            Event::NonRegularSkipped { entries, first } if !self.is_ready.load(Ordering::Relaxed) => {
                let message = list::non_regular_skipped(entries, &first);
                tell("warning", with_path(json!({ "kind": "non-regular", "message": message }), &first));
            }
            Event::Grew { path } if !self.is_ready.load(Ordering::Relaxed) => {
                tell(
                    "warning",
                    with_path(json!({ "kind": "grew", "message": "it grew while it was read" }), &path),
                );
            }
            Event::Stored { run, files, bytes } if self.lists_runs => {
                tell("undo-run", json!({ "run": run, "files": files, "bytes": bytes }));
            }
            Event::Polling { cause } => tell("warning", json!({ "kind": "polling", "message": cause })),
            Event::Scanned { entries, bytes } if !self.is_ready.load(Ordering::Relaxed) => {
                tell("scan", json!({ "entries": entries, "bytes": bytes }));
            }
            Event::Written(written) => {
                if written.files == 0 && written.bytes == 0 {
                    self.plan(written.total_files, written.total_bytes);
                }
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).written = written;
                // The end may come before the next tick.
                if written.files > 0 && written.files == written.total_files {
                    self.progress();
                }
            }
            Event::Scanned { .. }
            | Event::Grew { .. }
            | Event::Planned { .. }
            | Event::Excluded { .. }
            | Event::StateExcluded { .. }
            | Event::LinksExcluded { .. }
            | Event::DevicesPassedOver { .. }
            | Event::NonRegularSkipped { .. }
            | Event::Moved { .. }
            | Event::Matched { .. }
            | Event::Bound(_)
            | Event::Stored { .. }
            | Event::Paired(_) => {}
        }
    }

    fn prepare(&self, preparation: Preparation) {
        let step = match preparation {
            Preparation::LookUp => "look-up",
            Preparation::SetUp => "set-up",
            Preparation::BringBridge => "bring-bridge",
        };
        tell("provision", json!({ "step": step }));
    }

    fn warn(&self, warning: Warning) {
        self::warn("session", &warning);
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::Session { session_id, vm_domain } => {
                self.resolve(|resolved| resolved.session = Some((session_id, vm_domain)));
            }
            Notice::KeepAlive(awake) => {
                let before = self.awake().replace(awake.clone());
                match awake {
                    Awake::Lost(warning) => self::warn("keep-alive", &warning),
                    Awake::Back => tell("keep-alive", json!({ "state": "held" })),
                    // Every connection begins with this.
                    Awake::Held | Awake::Off if before.as_ref().is_some_and(|before| !is_lost(before)) => {}
                    Awake::Held => tell("keep-alive", json!({ "state": "held" })),
                    Awake::Off => tell("keep-alive", json!({ "state": "off" })),
                }
            }
            Notice::Connected { round_trips, round_trip, is_kept } => tell(
                "connected",
                json!({ "round_trips": round_trips, "round_trip_ms": millis(round_trip), "kept": is_kept }),
            ),
            Notice::Agent { installed_bytes } => tell(
                "agent",
                json!({
                    "installed": installed_bytes > 0, "bytes": installed_bytes,
                    "version": env!("CARGO_PKG_VERSION"),
                }),
            ),
            Notice::Wait { what, wait } => {
                tell("retry", json!({ "message": plain(&what), "wait_ms": millis(wait) }));
            }
        }
    }
}

impl View for Json {
    fn period(&self) -> Duration {
        PROGRESS_PERIOD
    }

    fn tick(&self) {
        self.progress();
    }

    fn report(&self, report: &Report) {
        if report.verified {
            return self.verified(report);
        }
        self.plan(0, 0);
        let mut fields = numbers(&report.summary, report.elapsed);
        if let Some(object) = fields.as_object_mut() {
            object.insert("exit".to_owned(), report::exit_of(report).into());
            object.insert("dry_run".to_owned(), report.dry_run.into());
            object.insert("wire_up_bytes".to_owned(), report.wire_up_bytes.into());
            object.insert("wire_down_bytes".to_owned(), report.wire_down_bytes.into());
        }
        tell("summary", fields);
    }

    fn news(&self, news: News<'_>) {
        match news {
            News::Round(of) => {
                self.plan(0, 0);
                if of.is_full && of.summary.braked.is_none() {
                    *self.told() = None;
                }
                let full = u64::from(of.is_full);
                let scans = self.scans.fetch_add(full, Ordering::Relaxed) + full;
                if !self.is_ready.swap(true, Ordering::Relaxed) {
                    tell("ready", round(of, scans));
                } else if of.has_changed() || of.summary.problem_count > 0 {
                    tell("round", round(of, scans));
                }
            }
            News::Lost { error, wait } => {
                tell("retry", json!({ "message": ksync::exchange::chain(error), "wait_ms": millis(wait) }));
            }
            News::Command(Said::Begins { command, is_again }) => {
                tell("exec", json!({ "command": command, "again": is_again }));
            }
            News::Command(Said::Line(line)) => {
                tell("exec-output", json!({ "line": String::from_utf8_lossy(line) }));
            }
            News::Command(Said::Ended(status)) => tell("exec-end", json!({ "status": status })),
            News::Command(Said::Failed(error)) => {
                tell("exec-end", json!({ "status": null, "message": ksync::exchange::chain(error) }));
            }
        }
    }
}
