//! The agent: one side of an exchange over stdin and stdout, on the machine where `ksync` installed
//! it. Its argument may hold the first bytes of its input, sealed, so that they arrive a round trip
//! earlier (see [`flight`]). With the argument `lane:TOKEN` the process is only a further lane of
//! such an agent.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ksync_core::disk::baseline::Baseline;
use ksync_core::disk::expand_home;
use ksync_core::disk::secret::secret_of;
use ksync_core::engine::{Config, Receiver, RunError, Sender, Summary};
use ksync_core::exchange::lanes::Lane;
use ksync_core::exchange::rounds::{self, WatchedSource};
use ksync_core::exchange::{FileReceiver, FileSender, Incoming, Link, Receiving, Sending, Timeouts, run};
use ksync_core::log;
use ksync_core::monitor::Quiet;
use ksync_core::rendezvous::{Rendezvous, serve_lane};
use ksync_core::wire::flight::{self, Sealed};
use ksync_core::wire::hello::{self, Request, Role};
use ksync_core::wire::lanes::Token;
use ksync_core::wire::message::AbortKind;

/// Maximum bytes that a client sent before it learns to repeat them: more than it keeps for
/// repetition.
const SKIPPED_BYTES_MAX: usize = 256 * 1024;

/// Variable that the VM emulator sets to its directory where it has no file system of its own.
const CONFINED_TO: &str = "KSYNC_SANDBOX_CONFINED_TO";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--version" {
        let answered = io::Write::write_all(&mut io::stdout(), b"ksync-agent\n");
        return if answered.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let Some(token) = argument.strip_prefix("lane:") {
        // The client sees that the lane did not answer, or that it ended.
        let served = Token::parse(token).is_some_and(|token| {
            unbuffered(io::stdout())
                .and_then(|mut output| serve_lane(token, io::stdin(), &mut output))
                .is_ok()
        });
        return if served { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if std::env::var_os(log::VARIABLE).is_some_and(|level| level == log::LEVEL) {
        log::begin(|_, text| {
            let line = format!("{}{text}\n", log::MARK);
            let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
        });
    }
    match serve(&argument) {
        Ok(Ok(_)) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            // The peer knows the reason of a failure already, unless the connection itself failed.
            if matches!(error.kind, AbortKind::Connection | AbortKind::Timeout) {
                let text = error.text.as_bytes();
                let _ =
                    unbuffered(io::stderr()).and_then(|mut stderr| io::Write::write_all(&mut stderr, text));
            }
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Sends hello, reads the request, and runs it.
fn serve(argument: &str) -> io::Result<Result<Summary, RunError>> {
    let (mut input, mut writer) = (unbuffered(io::stdin())?, unbuffered(io::stdout())?);
    let first = first_flight(argument, &mut input, &mut writer)?;
    let mut reader = Cursor::new(first).chain(input);
    hello::write(&mut writer, None)?;
    let request = hello::read(&mut reader).map_err(io::Error::other)?.request;
    let Some(Request { role, path, further, options, baseline_key, watch, timeout_ms }) = request else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client's hello holds no request"));
    };
    // Messages name the absolute path.
    let path = expand_home(&path);
    let path = std::path::absolute(&path).unwrap_or(path);
    let baseline = || baseline_key.and_then(|key| Some(Baseline::new(baselines()?, &key)));
    let compress = options.compress;
    let config = Config { options: options.clone(), relay: true, ..Config::default() };
    let timeouts = Timeouts::of_agent(Duration::from_millis(timeout_ms.into()));
    let incoming =
        Incoming { main: Lane::new(reader), joiner: Some(Box::new(Rendezvous)), timeouts, carried: None };
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
            let disk = Sending::new(path, options).with_baseline(baseline()).with_further(further);
            run(incoming, writer, Sender::new(&config), disk, false, compress, &Quiet)
        }
        Role::Receiver => {
            let disk = Receiving::new(path, options).with_baseline(baseline());
            run(incoming, writer, Receiver::new(&config), disk, false, compress, &Quiet)
        }
    })
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

/// The first bytes of the input, if our argument holds them and our secret opens them. Otherwise
/// this tells the client our secret, and the client sends everything over `input`.
fn first_flight(argument: &str, input: &mut File, output: &mut File) -> io::Result<Vec<u8>> {
    let sealed = Sealed::parse(argument);
    if sealed.is_none() && argument != flight::UNSEALED {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the argument is no first flight"));
    }
    let exe = std::env::current_exe()?;
    let secret = exe.parent().and_then(|directory| secret_of(directory).ok());
    let name = exe.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    let opened = secret.as_ref().and_then(|secret| sealed.as_ref()?.open(secret, &name));
    if let Some(first) = opened {
        return Ok(first);
    }
    let mut said = secret.as_ref().map(flight::tell).unwrap_or_default();
    if sealed.is_some() {
        said.extend_from_slice(flight::AGAIN);
    }
    io::Write::write_all(output, &said)?;
    if let Some(sealed) = sealed {
        skip(input, &sealed.marker())?;
    }
    Ok(Vec::new())
}

/// Reads up to the marker, and not a byte further.
fn skip(input: &mut File, marker: &[u8]) -> io::Result<()> {
    let mut tail = Vec::new();
    for _ in 0..SKIPPED_BYTES_MAX {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        if tail.len() == marker.len() {
            tail.remove(0);
        }
        tail.extend_from_slice(&byte);
        if tail == marker {
            return Ok(());
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The directory of baselines: beside our own binary, in the private directory where the client
/// installed it.
fn baselines() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.join("offers"))
}

/// A standard stream without a buffer: frames are read and written whole.
fn unbuffered(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}
