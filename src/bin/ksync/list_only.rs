//! One endpoint alone: its listing, in rsync's lines.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use ksync::engine::lister::Listed;
use ksync::monitor::{Event, Monitor};
use ksync::sync::{self, Endpoint, SharedMonitor};
use ksync::tree::entry::{EntryRef, Kind, Time};
use ksync::tree::filter::Rule;
use ksync::tree::path::escape;
use ksync::wire::message::Subject;

use crate::args::SyncArgs;
use crate::calendar::{Separator, stamp};
use crate::format::permissions;
use crate::report::{self, CliError};
use crate::request::Request;
use crate::run::{Signals, block_on};
use crate::units::{count, rounded};
use crate::{list, out};

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// The path ends in a slash: its content is listed, and not the directory by its name.
    is_inside: bool,
    is_recursive: bool,
    has_targets: bool,
    is_human: bool,
    is_quiet: bool,
}

/// The listing that a command line asks for, if it does. Its job then gets a destination that
/// nobody uses.
pub(crate) fn asked(args: &mut SyncArgs) -> Result<Option<Form>, CliError> {
    let (what, output) = (&args.what, &args.output);
    let changes = what.delete || what.delete_excluded || args.watch.watch || args.watch.exec.is_some();
    let is_alone = args.endpoints.len() == 1 && !changes && !output.json;
    if !(is_alone || what.list_only) {
        return Ok(None);
    }
    if changes || output.json {
        return Err(CliError::usage(
            "--list-only goes neither with --json nor with options that change something",
            "Leave one of them out.",
        ));
    }
    if args.endpoints.len() > 2 {
        return Err(CliError::usage("--list-only takes one SOURCE", "List them one after the other."));
    }
    let Some(source) = args.endpoints.first() else { return Ok(None) };
    let text = source.as_bytes();
    let ends = [&b"/"[..], b":", b"/.", b":.", b"/..", b":.."];
    let form = Form {
        is_inside: matches!(text, b"." | b"..") || ends.iter().any(|end| text.ends_with(end)),
        is_recursive: what.recursive || what.archive,
        has_targets: what.links || what.archive,
        is_human: output.human_readable,
        is_quiet: output.quiet,
    };
    args.endpoints.truncate(1);
    args.endpoints.push(OsString::from("."));
    args.what.dry_run = true;
    Ok(Some(form))
}

/// Prints the listing.
pub(crate) fn run(request: &Request, form: Form) -> Result<u8, CliError> {
    let Some(mut job) = request.jobs.first().cloned() else { return Ok(0) };
    if !form.is_recursive {
        job.options.rules.insert(0, one_level());
    }
    let problems = Arc::new(Problems { source: job.source.clone(), is_quiet: form.is_quiet });
    block_on(async {
        let mut signals = Signals::new()?;
        let (listed, report) = tokio::select! {
            listed = sync::list(&job, problems as SharedMonitor) => listed?,
            () = signals.wait() => return Err(CliError::new(report::SIGNAL, "stopped by a signal")),
        };
        out::result(&lines(&listed, &job.source, form));
        Ok(report::exit_code(&report.summary))
    })
}

/// The rule for a scan of one level: the first rule that matches wins. A file is on that level.
pub(crate) fn one_level() -> Rule {
    Rule::new(false, "/*/*")
}

/// Prints problems, and nothing else.
struct Problems {
    source: Endpoint,
    is_quiet: bool,
}

impl Monitor for Problems {
    fn observe(&self, event: Event) {
        match event {
            Event::Problem(problem) => {
                let sources = std::slice::from_ref(&self.source);
                out::note(&list::problem(&problem, sources, &self.source));
            }
            Event::StateExcluded { directories } if !self.is_quiet => {
                out::note(&format!("ksync: {}", list::state_excluded(directories)));
            }
            _ => {}
        }
    }
}

/// All lines, each with its end.
fn lines(listed: &Listed, source: &Endpoint, form: Form) -> String {
    let mut text = String::new();
    let name = source.name().map(escape).unwrap_or(".".into()).into_owned();
    let (root, prefix) =
        if form.is_inside { (".".to_owned(), String::new()) } else { (name.clone(), format!("{name}/")) };
    let prefix = match listed.subject {
        Subject::Directory { mode, seconds, nanos, .. } => {
            let mtime = Time::new(seconds, nanos).map_or(0, Time::seconds);
            text.push_str(&line('d', mode, None, mtime, &root, form));
            prefix
        }
        Subject::File { .. } | Subject::Several => String::new(),
    };
    if matches!(listed.subject, Subject::Directory { .. }) && !form.is_inside && !form.is_recursive {
        return text;
    }
    let mut entries: Vec<EntryRef<'_>> = listed.manifest.entries().collect();
    entries.sort_by(order);
    for entry in entries {
        let path = entry.path.to_vec();
        let mut name = format!("{prefix}{}", escape(&path));
        let (letter, size) = match entry.kind {
            Kind::Directory => ('d', None),
            Kind::File { size, .. } => ('-', Some(size)),
            Kind::Symlink { target } => {
                if form.has_targets {
                    name.push_str(&format!(" -> {}", escape(target)));
                }
                ('l', Some(target.len() as u64))
            }
        };
        text.push_str(&line(letter, entry.mode, size, entry.mtime.seconds(), &name, form));
    }
    text
}

/// A line. The size of a directory is not known: it says nothing about the content.
fn line(letter: char, mode: u16, size: Option<u64>, seconds: i64, name: &str, form: Form) -> String {
    let number = if form.is_human { rounded } else { count };
    let size = size.map_or_else(|| "-".to_owned(), number);
    let time = stamp(seconds, Separator::Blank);
    format!("{letter}{} {size:>14} {time} {name}\n", permissions(mode.into()))
}

/// The order of rsync: in each directory first all else, then the directories with their content,
/// by their names with a slash.
fn order(one: &EntryRef<'_>, other: &EntryRef<'_>) -> Ordering {
    let [a, b] = [one, other].map(|entry| (entry.path.to_vec(), entry.is_directory()));
    let parts = |path: &(Vec<u8>, bool)| {
        let count = path.0.split(|&byte| byte == b'/').count();
        let parts = path.0.split(|&byte| byte == b'/').enumerate();
        let named = |(at, part): (usize, &[u8])| {
            let is_directory = at + 1 < count || path.1;
            (is_directory, [part, if is_directory { b"/" } else { b"" }].concat())
        };
        parts.map(named).collect::<Vec<_>>()
    };
    parts(&a).cmp(&parts(&b))
}
