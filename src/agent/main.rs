//! The agent: one side of an exchange over stdin and stdout, on the machine where `ksync` installed
//! it. Its argument may hold the first bytes of its input, sealed, so that they arrive a round trip
//! earlier (see [`flight`]). With the argument `lane:TOKEN` the process is only a further lane of
//! such an agent. With the argument `keep` it serves one run after another (see [`keep`]).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use ksync_core::disk::secret::secret_of;
use ksync_core::engine::{RunError, Summary};
use ksync_core::exchange::kept_trees::{ENTRIES_MIN, KeptTrees};
use ksync_core::exchange::lanes::{Lane, Outlet};
use ksync_core::exchange::runs::{Run, Runs};
use ksync_core::log;
use ksync_core::rendezvous::serve_lane;
use ksync_core::wire::flight::{self, Sealed};
use ksync_core::wire::hello::{self, MAGIC, Request};
use ksync_core::wire::keep;
use ksync_core::wire::lanes::Token;
use ksync_core::wire::message::AbortKind;

use serve::serve;

mod serve;

/// Maximum bytes that a client sent before it learns to repeat them: more than it keeps for
/// repetition.
const SKIPPED_BYTES_MAX: usize = 256 * 1024;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--version" {
        let answered = io::stdout().write_all(b"ksync-agent\n");
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
            let _ = io::stderr().write_all(line.as_bytes());
        });
    }
    if argument == keep::ARGUMENT {
        return if serve_runs().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match serve_once(&argument) {
        Ok(Ok(_)) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            // The peer knows the reason of a failure already, unless the connection itself failed.
            if matches!(error.kind, AbortKind::Connection | AbortKind::Timeout) {
                let text = error.text.as_bytes();
                let _ = unbuffered(io::stderr()).and_then(|mut stderr| stderr.write_all(text));
            }
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves the one run of a fresh agent.
fn serve_once(argument: &str) -> io::Result<Result<Summary, RunError>> {
    let (mut input, mut output) = (unbuffered(io::stdin())?, unbuffered(io::stdout())?);
    let first = first_flight(argument, &mut input, &mut output)?;
    let mut output = Outlet::new(output).holding();
    hello::write(&mut output, None)?;
    // Without its first flight, the client may wait for a sign of us.
    if first.is_empty() {
        output.flush()?;
    }
    serve(Lane::new(Cursor::new(first).chain(input)), output, None)
}

/// Serves one run after another, until stdin ends.
fn serve_runs() -> io::Result<()> {
    let (input, mut output) = (unbuffered(io::stdin())?, unbuffered(io::stdout())?);
    output.write_all(&MAGIC)?;
    let kept = KeptTrees::new(ENTRIES_MIN, Instant::now);
    let warming = Arc::clone(&kept);
    let warm = move |request: Request| serve::warm(&warming, &request);
    let runs = Runs::new(Lane::new(input), Outlet::new(output), warm);
    while let Some(Run { input, mut output }) = runs.next()? {
        hello::write(&mut output, None)?;
        // The peer of a run that failed knows the reason, or is gone.
        let _ = serve(input, output, Some(&kept));
        runs.finish()?;
        kept.settle();
    }
    Ok(())
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
    output.write_all(&said)?;
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

/// A standard stream without a buffer: frames are read and written whole.
fn unbuffered(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}
