//! `ksync __complete WORD`: the endpoints that a word of the command line may become, one a line.
//! Only the completion scripts call it. They add the paths of this machine.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use ksync::monitor::{Event, Monitor};
use ksync::sync::{self, SharedMonitor};

use crate::args::{self, Mode};
use crate::config::Settings;
use crate::endpoints::endpoint;
use crate::run::block_on;
use crate::{list_only, out, request};

const VERB: &str = "__complete";

/// The patience of somebody who pressed Tab. A kept connection answers in a round trip.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The word to complete, if this command line asks for that.
pub(crate) fn word(args: impl Iterator<Item = OsString>) -> Option<String> {
    let [verb, word] = <[OsString; 2]>::try_from(args.skip(1).collect::<Vec<_>>()).ok()?;
    (verb == VERB).then(|| word.into_string().ok())?
}

/// Prints the candidates. Nobody can read an error here: there are none then.
pub(crate) fn print(word: &str) {
    let candidates = candidates(word);
    if !candidates.is_empty() {
        out::result(&candidates.join("\n"));
    }
}

fn candidates(word: &str) -> Vec<String> {
    if word.starts_with(['.', '/', '-', '~']) {
        return Vec::new();
    }
    if word.contains(':') {
        return entries(word).unwrap_or_default();
    }
    let machines = sync::machines().into_iter().map(|name| format!("{name}:"));
    machines.filter(|name| name.starts_with(word) && !name.contains(char::is_control)).collect()
}

/// The entries of a directory on another machine whose paths begin with `word`.
fn entries(word: &str) -> Option<Vec<String>> {
    let path = endpoint(word.as_ref()).ok()?.path().to_vec();
    let path = String::from_utf8(path).ok().filter(|path| word.ends_with(path.as_str())).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let directory = word.strip_suffix(name)?;
    let line =
        ["ksync", "--list-only", "-q", "--retries=0", "--contimeout=3", "--timeout=4", "--", directory];
    let Ok(Mode::Sync(mut args)) =
        args::parse_with(line.map(OsString::from), &|_, _| Ok(Settings::default()))
    else {
        return None;
    };
    list_only::asked(&mut args).ok()??;
    let mut job = request::build(*args).ok()?.jobs.pop()?;
    if !sync::is_reachable(&job.source, &job.connect_options) {
        return None;
    }
    job.options.rules.insert(0, list_only::one_level());
    let listed = block_on(async {
        let listed = tokio::time::timeout(TIMEOUT, sync::list(&job, Arc::new(Quiet) as SharedMonitor)).await;
        Ok(listed.ok().and_then(Result::ok))
    });
    let (listed, _) = listed.ok()??;
    let mut entries = Vec::new();
    for entry in listed.manifest.entries() {
        let path = entry.path.to_vec();
        let Ok(text) = String::from_utf8(path) else { continue };
        let is_wanted = text.starts_with(name)
            && (name.starts_with('.') || !text.starts_with('.'))
            && !text.contains(char::is_control);
        if is_wanted && !text.contains('/') {
            entries.push(format!("{directory}{text}{}", if entry.is_directory() { "/" } else { "" }));
        }
    }
    Some(entries)
}

/// Says nothing.
struct Quiet;

impl Monitor for Quiet {
    fn observe(&self, _event: Event) {}
}
