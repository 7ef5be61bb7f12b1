//! The two output streams. Results go to stdout: the list of changes, the summary line, `--stats`,
//! and the setup that `ksync sandbox` prints for scripts. Messages for people go to stderr: the
//! mapping, progress, problems, errors and hints. So `ksync -n -i a b | grep deleting` sees only
//! changes and the last line.
//!
//! Lost output ends no sync. A reader that went away (`| head`) wanted no more, so this is no error
//! either. Every other failure is, and with JSON that one, too: a program that reads events must
//! not take a run for complete whose last events it never got.

use std::io::{self, Write};
use std::sync::OnceLock;

use ksync::exchange::chain;
use tokio::sync::Notify;

use crate::report::CliError;

/// Exit code: an output could not be written.
const FILE: u8 = 11;

/// The first failure of stdout.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Told of that failure.
static TOLD: Notify = Notify::const_new();

/// Writes one or more lines to stdout.
pub(crate) fn result(text: &str) {
    if let Err(error) = write(io::stdout().lock(), text) {
        let _ = FAILED.set(error);
        TOLD.notify_one();
    }
}

/// Writes one or more lines to stderr.
pub(crate) fn note(text: &str) {
    let _ = write(io::stderr().lock(), text);
}

fn write(mut stream: impl Write, text: &str) -> io::Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // One write, so that lines of both streams on one terminal do not mix.
    stream.write_all(format!("{text}{end}").as_bytes())?;
    stream.flush()
}

/// Refuses a closed stdout, before anything is done.
pub(crate) fn check() -> Result<(), CliError> {
    if is_closed() {
        let what = "cannot write to standard output: it is closed, and --json writes there";
        let hint = "Lead it to a file or a pipe, or leave --json out.";
        return Err(CliError::new(FILE, what).with_hint(Some(hint)));
    }
    Ok(())
}

/// True if this process was started with a closed stdout (`>&-`). The runtime of Rust then opens
/// `/dev/null` in its place, and for reading, too. A shell opens its `>/dev/null` for writing only.
#[cfg(target_os = "linux")]
fn is_closed() -> bool {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{OFlags, fcntl_getfl, fstat};

    let stdout = io::stdout();
    let (Ok(stat), Ok(flags)) = (fstat(&stdout), fcntl_getfl(&stdout)) else { return true };
    let null = std::fs::metadata("/dev/null").map(|null| (null.dev(), null.ino()));
    null.is_ok_and(|null| null == (stat.st_dev, stat.st_ino)) && flags.contains(OFlags::RDWR)
}

#[cfg(not(target_os = "linux"))]
fn is_closed() -> bool {
    false
}

/// Waits until stdout fails.
pub(crate) async fn failed() -> CliError {
    TOLD.notified().await;
    error(FAILED.get())
}

/// The error of stdout, if it matters.
pub(crate) fn failure(is_json: bool) -> Option<CliError> {
    let failed = FAILED.get()?;
    (is_json || failed.kind() != io::ErrorKind::BrokenPipe).then(|| error(Some(failed)))
}

fn error(cause: Option<&io::Error>) -> CliError {
    let cause = cause.map_or_else(String::new, |cause| format!(": {}", chain(cause)));
    CliError::new(FILE, format!("cannot write to standard output{cause}"))
}
