//! Plans as files: what a dry run found, bound to the state of both sides.
//!
//! A plan is sealed with a secret of this user. It holds endpoints and options, so that an edited
//! or a foreign one could send files elsewhere; such a plan is refused.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use data_encoding::HEXLOWER;
use ksync::content::hash::Hash;
use ksync::exchange::chain;
use ksync::monitor::{Event, Monitor, Notice, Preparation, Problem, ProblemKind, Warning};
use ksync::sync::{self, Endpoint, Job, Report, SharedMonitor};
use ksync::tree::path::escape;
use ksync::tree::plan_state::PlanState;
use ksync::wire::hello::{Consent, History, Options, PlanTie};
use serde_json::{Map, Value, json};

use crate::args::SyncArgs;
use crate::args::shaping::is_shaping;
use crate::json::{kind, with_path};
use crate::list::{Line, verb};
use crate::report::{CliError, Direction, FILE, PLAN, USAGE};
use crate::screen;

/// The longest plan that is read, in bytes: millions of changes.
const BYTES_MAX: u64 = 1 << 30;

/// The field that holds the seal of all others.
const SEAL: &str = "seal";

const ANEW: &str = "Make the plan anew, with ksync -n --plan FILE.";

/// A plan that was read, or the part of one that is known before the dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    endpoints: Vec<String>,
    options: Vec<String>,
    /// The state of both sides, and the digest of the options; only in a plan that was read.
    bound: Option<(PlanState, Hash)>,
}

/// The use of a plan in a run.
#[derive(Debug)]
pub(crate) enum Use {
    /// The dry run writes the plan to this file.
    Make(PathBuf, Plan),
    /// The run carries it out.
    Apply,
}

impl Plan {
    /// The plan of a command line, if it makes or carries one out.
    pub(crate) fn of(args: &SyncArgs) -> Result<Option<Use>, CliError> {
        if args.planned.is_some() {
            return Ok(Some(Use::Apply));
        }
        let Some(file) = &args.what.plan else { return Ok(None) };
        if !args.what.dry_run || args.is_verification {
            return Err(CliError::usage("--plan writes what -n finds", "Add -n, or leave --plan out."));
        }
        if let Some(option) = &args.shaping.unreadable {
            let told = format!("a plan cannot hold the value of {option}, which is not UTF-8");
            return Err(CliError::usage(told, "Put the pattern into a .ksyncignore file."));
        }
        let options = args.shaping.options.iter().chain(&args.shaping.rules).cloned().collect::<Vec<_>>();
        let is_stdin = |option: &String| option.ends_with("-from=-");
        if options.iter().any(is_stdin) || args.connection.setup.as_deref() == Some(Path::new("-")) {
            let told = "a plan cannot hold what comes from stdin";
            return Err(CliError::usage(told, "Put it into a file, and name the file."));
        }
        let endpoints = args.endpoints.iter().map(typed).collect::<Result<_, _>>()?;
        Ok(Some(Use::Make(file.clone(), Self { endpoints, options, bound: None })))
    }

    /// The options, as they can be typed.
    pub(crate) fn options(&self) -> &[String] {
        &self.options
    }

    /// The endpoints, as they can be typed.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = OsString> {
        self.endpoints.iter().map(OsString::from)
    }

    /// Ties a job to this plan.
    pub(crate) fn tie(&self, job: &mut Job) -> Result<(), CliError> {
        let Some((state, options)) = self.bound else { return Ok(()) };
        if digest(&job.options) != options {
            let told =
                "a file of rules has changed since the plan was made, or ksync itself: nothing was changed";
            return Err(CliError::new(PLAN, told).with_hint(Some(ANEW)));
        }
        job.options.plan = Some(PlanTie::Match(state));
        // Half of the plan carried out is another state.
        job.connect_options.retries = 0;
        Ok(())
    }

    /// Reads a plan that this user made on this machine.
    pub(crate) fn read(file: &OsStr) -> Result<Self, CliError> {
        let shown = escape(file.as_bytes());
        let failed = |text: String| CliError::new(USAGE, format!("cannot read the plan {shown}: {text}"));
        let mut bytes = Vec::new();
        let opened = fs::File::open(file).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
        opened.map_err(|error| failed(chain(&error)))?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(failed("it is longer than 1 GiB".to_owned()));
        }
        let no_plan = || failed("it is none".to_owned()).with_hint(Some("ksync -n --plan FILE writes one."));
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(&bytes) else { return Err(no_plan()) };
        let seal = fields.remove(SEAL);
        let expected = sync::seal(Value::Object(fields.clone()).to_string().as_bytes())?.to_string();
        if seal.as_ref().and_then(Value::as_str) != Some(expected.as_str()) {
            let told = format!("the plan {shown} was edited, or made by another user or on another machine");
            return Err(CliError::new(PLAN, told).with_hint(Some(ANEW)));
        }
        Self::parse(&fields).ok_or_else(no_plan)
    }

    fn parse(fields: &Map<String, Value>) -> Option<Self> {
        let texts = |name: &str| -> Option<Vec<String>> {
            fields.get(name)?.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let hash = |name: &str| -> Option<Hash> {
            let bytes = HEXLOWER.decode(fields.get(name)?.as_str()?.as_bytes()).ok()?;
            Some(Hash::from_bytes(bytes.try_into().ok()?))
        };
        let (mut endpoints, options) = (texts("sources")?, texts("options")?);
        endpoints.push(fields.get("destination")?.as_str()?.to_owned());
        let name = |option: &String| {
            let long = option.strip_prefix("--")?;
            Some(long.split('=').next().unwrap_or(long).to_owned())
        };
        let is_known = |option: &String| option == "-F" || name(option).is_some_and(|name| is_shaping(&name));
        let state = PlanState { source: hash("source_state")?, destination: hash("destination_state")? };
        let is_valid =
            fields.get("v") == Some(&1.into()) && options.iter().all(is_known) && endpoints.len() > 1;
        is_valid.then_some(Self { endpoints, options, bound: Some((state, hash("options_digest")?)) })
    }

    /// Writes the plan that a dry run made.
    fn write(&self, file: &Path, job: &Job, found: Found, report: &Report) -> Result<(), CliError> {
        let shown = escape(file.as_os_str().as_bytes()).into_owned();
        let Some(state) = found.state.filter(|_| is_complete(report)) else {
            let told = format!("the plan {shown} was not written: not everything could be compared");
            return Err(
                CliError::new(PLAN, told).with_hint(Some("Look at the problems above, and try again."))
            );
        };
        let tally = &report.summary.tally;
        let (destination, sources) = self.endpoints.split_last().unwrap_or((&EMPTY, &[]));
        let mut plan = json!({
            "v": 1, "version": env!("CARGO_PKG_VERSION"), "sources": sources, "destination": destination,
            "options": self.options, "options_digest": digest(&job.options).to_string(),
            "source_state": state.source.to_string(), "destination_state": state.destination.to_string(),
            "entries": tally.entries, "created": tally.created, "updated": tally.updated,
            "adjusted": tally.adjusted, "deleted": tally.deleted, "changes": found.changes,
        });
        let seal = sync::seal(plan.to_string().as_bytes())?;
        if let Some(fields) = plan.as_object_mut() {
            fields.insert(SEAL.to_owned(), seal.to_string().into());
        }
        let text = serde_json::to_string_pretty(&plan).unwrap_or_default() + "\n";
        private_file(file, text.as_bytes()).map_err(|error| {
            let told = format!("cannot write the plan {shown}: {}", chain(&error));
            CliError::new(FILE, told).with_hint(Some("Name a file that you may write with --plan."))
        })
    }
}

/// True if all of both sides was seen. Other problems are the same when the plan is carried out.
fn is_complete(report: &Report) -> bool {
    use ProblemKind::{Obstacle, Refused};
    let is_lasting = |problem: &Problem| matches!(problem.kind, Obstacle | Refused);
    let problems = &report.summary.problems;
    report.summary.problem_count == problems.len() as u64 && problems.iter().all(is_lasting)
}

static EMPTY: String = String::new();

/// Writes a file aside and renames it: a plan is there as a whole, or not at all.
fn private_file(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut aside = file.as_os_str().to_owned();
    aside.push(format!(".{}.new", std::process::id()));
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
    let done = written.and_then(|mut file| file.write_all(content)).and_then(|()| fs::rename(&aside, file));
    if done.is_err() {
        let _ = fs::remove_file(&aside);
    }
    done
}

/// An endpoint as it can be typed anywhere on this machine.
fn typed(text: &OsString) -> Result<String, CliError> {
    let unusable = |why: &str| {
        let told = format!("a plan cannot hold the endpoint {}: {why}", escape(text.as_bytes()));
        CliError::usage(told, "Run ksync from another directory, or without --plan.")
    };
    let path = match crate::endpoints::endpoint(text)? {
        // The slash at the end may count.
        Endpoint::Local(path) if text.as_bytes().ends_with(b"/") => std::path::absolute(path.join("")),
        Endpoint::Local(path) => std::path::absolute(path),
        _ => return text.to_str().map(str::to_owned).ok_or_else(|| unusable("it is not UTF-8")),
    };
    let path = path.map_err(|error| unusable(&chain(&error)))?;
    path.to_str().map(str::to_owned).ok_or_else(|| unusable("it is not UTF-8"))
}

/// The digest of the options that shape the result, with the content of the files that they name.
fn digest(options: &Options) -> Hash {
    let consent = Consent { max_delete: options.consent.max_delete, ..Consent::default() };
    let shaping = Options {
        dry_run: false,
        list_changes: false,
        compress: false,
        fsync: false,
        bytes_per_second: 0,
        consent,
        history: History::default(),
        plan: None,
        ..options.clone()
    };
    Hash::of(serde_json::to_string(&shaping).unwrap_or_default().as_bytes())
}

/// Findings of a dry run for its plan.
#[derive(Debug, Default)]
struct Found {
    state: Option<PlanState>,
    changes: Vec<Value>,
}

/// A monitor that collects the plan beside a view.
pub(crate) struct Planning {
    view: SharedMonitor,
    direction: Direction,
    checksum: bool,
    found: Mutex<Found>,
}

impl Planning {
    pub(crate) fn new(job: &Job, view: SharedMonitor) -> Self {
        let (direction, checksum) = (screen::direction(job), job.options.checksum);
        Self { view, direction, checksum, found: Mutex::default() }
    }

    /// Writes the plan.
    pub(crate) fn write(&self, plan: &Plan, file: &Path, job: &Job, report: &Report) -> Result<(), CliError> {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        plan.write(file, job, found, report)
    }
}

impl Monitor for Planning {
    fn observe(&self, event: Event) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match &event {
            // A repetition begins anew.
            Event::Bound(state) => *found = Found { state: Some(*state), changes: Vec::new() },
            Event::Change { action, what, differs, path, target } => {
                let line = Line { action: *action, what: *what, differs: *differs, path, target };
                let line = line.itemized(self.direction, self.checksum);
                let fields = json!({ "action": verb(*action), "kind": kind(*what), "line": line });
                found.changes.push(with_path(fields, path));
            }
            _ => {}
        }
        drop(found);
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
