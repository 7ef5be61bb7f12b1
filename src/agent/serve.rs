//! Serves one run: reads the client's request, and runs one side of an exchange.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync_core::disk::baseline::Baseline;
use ksync_core::disk::expand_home;
use ksync_core::engine::{Config, Receiver, RunError, Sender, Summary};
use ksync_core::exchange::kept_trees::KeptTrees;
use ksync_core::exchange::lanes::{Lane, Outlet};
use ksync_core::exchange::rounds::{self, WatchedSource};
use ksync_core::exchange::{
    FileReceiver, FileSender, Incoming, Link, Pace, Receiving, Sending, Timeouts, run,
};
use ksync_core::monitor::Quiet;
use ksync_core::rendezvous::Rendezvous;
use ksync_core::wire::hello::{self, Request, Role};
use ksync_core::wire::message::AbortKind;

/// Variable that the VM emulator sets to its directory where it has no file system of its own.
const CONFINED_TO: &str = "KSYNC_SANDBOX_CONFINED_TO";

/// Reads the request, and runs it. Scans are kept in `kept`, if there is one.
pub(crate) fn serve(
    mut reader: Lane,
    mut writer: Outlet,
    kept: Option<&Arc<KeptTrees>>,
) -> io::Result<Result<Summary, RunError>> {
    let request = hello::read(&mut reader).map_err(io::Error::other)?.request;
    let Some(Request { role, path, further, options, baseline_key, watch, timeout_ms }) = request else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client's hello holds no request"));
    };
    writer.set_pace(Pace::of(options.bytes_per_second));
    let path = absolute(&path);
    let baseline = || baseline_key.and_then(|key| Some(Baseline::new(baselines()?, &key)));
    let compress = options.compress;
    let config = Config { options: options.clone(), relay: true, ..Config::default() };
    let timeouts = Timeouts::of_agent(Duration::from_millis(timeout_ms.into()));
    let incoming = Incoming { main: reader, joiner: Some(Box::new(Rendezvous)), timeouts, carried: None };
    let further: Vec<_> = further.iter().map(|path| expand_home(path)).collect();
    if let Err(error) = further.iter().chain([&path]).try_for_each(|path| permit(path)) {
        return Ok(Err(match role {
            Role::Sender => Link::<FileSender>::new(incoming, writer, false, compress).refuse(error),
            Role::Receiver => Link::<FileReceiver>::new(incoming, writer, false, compress).refuse(error),
        }));
    }
    if let Some(watch_options) = watch {
        return Ok(Err(match role {
            Role::Sender => {
                let link = Link::new(incoming, writer, false, compress);
                match WatchedSource::new(&path, watch_options, Instant::now) {
                    Ok(source) => {
                        let error = source.send(&link, &config, baseline, &Quiet, &mut drop);
                        link.close();
                        error
                    }
                    Err(error) => link.refuse(error),
                }
            }
            Role::Receiver => {
                let link = Link::new(incoming, writer, false, compress);
                let error = rounds::receive(&link, &path, &config, baseline, &Quiet, &mut drop);
                link.close();
                error
            }
        }));
    }
    Ok(match role {
        Role::Sender => {
            let disk = Sending::new(path, options)
                .with_baseline(baseline())
                .with_further(further)
                .keeping(kept.cloned());
            run(incoming, writer, Sender::new(&config), disk, false, compress, &Quiet)
        }
        Role::Receiver => {
            let disk = Receiving::new(path, options).with_baseline(baseline()).keeping(kept.cloned());
            run(incoming, writer, Receiver::new(&config), disk, false, compress, &Quiet)
        }
    })
}

/// Keeps the tree of a request that is likely to come.
pub(crate) fn warm(kept: &Arc<KeptTrees>, request: &Request) {
    let Request { role, path, further, options, watch, .. } = request;
    let path = absolute(path);
    if permit(&path).is_ok() && further.is_empty() && watch.is_none() {
        kept.warm(*role, &path, options);
    }
}

/// The path of a request. Messages name the absolute path.
fn absolute(path: &[u8]) -> PathBuf {
    let path = expand_home(path);
    std::path::absolute(&path).unwrap_or(path)
}

/// Refuses a path outside of the VM emulator's directory, if it has no file system of its own.
fn permit(path: &Path) -> Result<(), RunError> {
    let Some(directory) = std::env::var_os(CONFINED_TO).map(PathBuf::from) else { return Ok(()) };
    let climbs = path.components().any(|component| component == Component::ParentDir);
    if path.starts_with(&directory) && !climbs {
        return Ok(());
    }
    let (path, directory) = (path.display(), directory.display());
    let text = format!(
        "{path} is a path of this machine: the emulated VM has no files of its own here, except in {directory}"
    );
    Err(RunError { kind: AbortKind::Selection, by_peer: false, text })
}

/// The directory of baselines: beside our own binary, in the private directory where the client
/// installed it.
fn baselines() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.join("offers"))
}
