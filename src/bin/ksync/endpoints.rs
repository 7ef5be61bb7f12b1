//! SOURCE and DEST of a run: each SOURCE gets its place, and those on one machine become one job.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use ksync::monitor::Warning;
use ksync::sync::endpoint::{Endpoint, EndpointError};
use ksync::sync::{self, Job};
use ksync::tree::filter::Filter;
use ksync::tree::path::{TreePath, escape};

use crate::report::{CliError, USAGE};

/// Pairs each SOURCE with its destination.
pub(crate) fn pair(endpoints: &[OsString], has_setup: bool) -> Result<Vec<(Endpoint, Endpoint)>, CliError> {
    let usage = "Write ksync SOURCE... DEST; ksync --help has examples.";
    let (destination, sources) = match endpoints {
        [] => return Err(CliError::usage("there is no SOURCE and no DEST", usage)),
        [_] => return Err(CliError::usage("there is no DEST", usage)),
        [sources @ .., destination] => (endpoint(destination)?, sources),
    };
    let sources = sources.iter().map(|source| endpoint(source)).collect::<Result<Vec<_>, _>>()?;
    if let Some(source) = sources.iter().find(|source| source.is_remote() && destination.is_remote()) {
        return Err(CliError::usage(
            format!("both {source} and {destination} are remote"),
            "Copy to a local directory first, and from there in a second run.",
        ));
    }
    let in_setup = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Setup { .. });
    match (in_setup(&destination) || sources.iter().any(in_setup), has_setup) {
        (true, false) => {
            return Err(CliError::usage(
                "an endpoint that begins with : is in the VM of --setup, and there is none",
                "Add --setup FILE with what `kernel browsers ssh ID --setup-only -o json` prints.",
            ));
        }
        (false, true) => {
            return Err(CliError::usage(
                "--setup describes a VM, but no endpoint is in it",
                "Write the endpoint in the VM as :/path.",
            ));
        }
        _ => {}
    }
    match <[Endpoint; 1]>::try_from(sources) {
        Ok([source]) => {
            refuse_home(&source, endpoints.last())?;
            Ok(vec![(source, destination)])
        }
        Err(sources) => into_directory(sources, destination),
    }
}

/// A warning about an endpoint on this machine that does not exist, and looks like one on another.
pub(crate) fn mistaken(text: &OsStr) -> Option<Warning> {
    let Ok(Endpoint::Local(path)) = endpoint(text) else { return None };
    if path.symlink_metadata().is_ok() {
        return None;
    }
    let shown = escape(text.as_bytes());
    let hint = match shown.split_once('@') {
        _ if shown.contains("::") => {
            "A path on another machine is written host:path, with one colon, and no slash before it."
                .to_owned()
        }
        Some((user, host)) if !user.is_empty() && !host.is_empty() && !shown.contains('/') => {
            format!("A path on another machine has a colon: {shown}:path.")
        }
        _ => session_hint(&shown)?,
    };
    Some(Warning { what: format!("{shown} is a name on this machine"), hint })
}

/// The hint for a text that may mean a session whose name has a slash: `a b/c:/tmp`.
fn session_hint(shown: &str) -> Option<String> {
    let (name, path) = shown.split_once(":/")?;
    let is_bare = !shown.starts_with(['/', '.', '~']) && name.contains('/');
    is_bare.then(|| {
        format!("For a session called \"{name}\", first run ksync session use \"{name}\", and write session:/{path}.")
    })
}

/// Refuses to copy a directory onto the home just because the path is missing. (A file goes into
/// the home, as with scp.)
fn refuse_home(source: &Endpoint, destination: Option<&OsString>) -> Result<(), CliError> {
    let (Endpoint::Local(path), Some(destination)) = (source, destination) else { return Ok(()) };
    let name = own_name(source).ok().and_then(|name| String::from_utf8(name).ok());
    let is_plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let name = name.filter(is_plain).unwrap_or_else(|| "site".to_owned());
    let of_session = || {
        let is_one = endpoint(destination).is_ok_and(|endpoint| matches!(endpoint, Endpoint::Session { .. }));
        let shown = escape(destination.as_bytes());
        (is_one && shown.ends_with(':')).then(|| (format!("{shown}."), format!("{shown}{name}")))
    };
    match Endpoint::without_path(destination, &name).or_else(of_session) {
        Some((home, inside)) if path.is_dir() => Err(CliError::usage(
            format!("{} names no directory to make a copy of {source}", escape(destination.as_bytes())),
            format!("Write {home} for the home itself, or {inside}."),
        )),
        _ => Ok(()),
    }
}

/// Pairs each of several SOURCEs with its name in DEST.
fn into_directory(
    sources: Vec<Endpoint>,
    destination: Endpoint,
) -> Result<Vec<(Endpoint, Endpoint)>, CliError> {
    if let Endpoint::Local(path) = &destination
        && path.symlink_metadata().is_ok()
        && !path.is_dir()
    {
        return Err(CliError::usage(
            format!("{destination} is not a directory, and several SOURCEs go into one"),
            "Name a directory as DEST.",
        ));
    }
    let mut names = BTreeSet::new();
    let mut pairs = Vec::with_capacity(sources.len());
    for source in sources {
        let name = own_name(&source)?;
        if !names.insert(name.clone()) {
            return Err(CliError::usage(
                format!("two SOURCEs would both become {}", destination.join(&name)),
                "Sync them one after the other, to two destinations.",
            ));
        }
        let inside = destination.clone().join(&name);
        pairs.push((source, inside));
    }
    Ok(pairs)
}

/// The name of a SOURCE in DEST. The name of a local `.` must be looked up.
fn own_name(source: &Endpoint) -> Result<Vec<u8>, CliError> {
    let looked_up = || match source {
        Endpoint::Local(path) => path.canonicalize().ok()?.file_name().map(|name| name.as_bytes().to_vec()),
        _ => None,
    };
    source.name().map(<[u8]>::to_vec).or_else(looked_up).ok_or_else(|| {
        CliError::usage(
            format!("{source} has no name that it could have in DEST"),
            "Sync it alone, to a DEST with a name.",
        )
    })
}

/// Most bytes of the paths of one job: they go with the request.
const SOURCE_BYTES_MAX: usize = 64 << 10;

/// Joins jobs whose SOURCEs are on one machine: one connection, one exchange, one summary. With
/// `--delete` each directory stays a job, since each is a copy of its own: the brake knows them by
/// source and destination.
pub(crate) fn together(jobs: Vec<Job>, destination: Option<&Endpoint>) -> Vec<Job> {
    let Some(destination) = destination else { return jobs };
    let stays_alone = |job: &Job| match &job.source {
        Endpoint::Local(path) => job.options.delete && path.is_dir(),
        _ => job.options.delete,
    };
    let machine = |endpoint: &Endpoint| endpoint.clone().with_path(b"");
    let path_bytes = |job: &Job| job.sources().map(|source| source.path().len()).sum();
    let mut joined: Vec<Job> = Vec::new();
    for job in jobs {
        let with = joined.iter_mut().find(|other| {
            let bytes: usize = path_bytes(other);
            !stays_alone(&job)
                && !stays_alone(other)
                && machine(&other.source) == machine(&job.source)
                && bytes + job.source.path().len() <= SOURCE_BYTES_MAX
        });
        let Some(other) = with else {
            joined.push(job);
            continue;
        };
        other.further.push(job.source);
        // Every SOURCE now goes into DEST, the transfer root, by its name.
        other.options.anchor.clear();
        other.destination.clone_from(destination);
    }
    joined
}

/// The SOURCEs of a job, for a person.
pub(crate) fn named(sources: &[Endpoint]) -> String {
    const NAMED_MAX: usize = 3;
    let named: Vec<String> = sources.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    match sources.len().checked_sub(NAMED_MAX) {
        None | Some(0) => named.join(", "),
        Some(more) => format!("{} and {more} more", named.join(", ")),
    }
}

/// True if the rules exclude a SOURCE as a whole, as far as this side can tell. Only the remote
/// side knows the kind of a remote SOURCE.
pub(crate) fn is_excluded(job: &Job) -> bool {
    let Ok(path) = TreePath::new(&*job.options.anchor) else { return false };
    let filter = Filter::new(&job.options.rules);
    match &job.source {
        Endpoint::Local(source) => filter.excludes(&path, source.is_dir()),
        _ => filter.excludes(&path, false) && filter.excludes(&path, true),
    }
}

pub(crate) fn endpoint(text: &OsStr) -> Result<Endpoint, CliError> {
    Ok(sync::parse(text, std::env::var("KSYNC_SESSION").ok().as_deref())?)
}

impl From<EndpointError> for CliError {
    fn from(error: EndpointError) -> Self {
        Self::new(USAGE, error.to_string()).with_hint(error.kind.hint())
    }
}
