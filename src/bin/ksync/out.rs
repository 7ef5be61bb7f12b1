//! The two output streams. Results go to stdout: the list of changes, the summary line, `--stats`,
//! and the setup that `ksync sandbox` prints for scripts. Messages for people go to stderr: the
//! mapping, progress, problems, errors and hints. So `ksync -n -i a b | grep deleting` sees only
//! changes and the last line.
//!
//! A reader that went away (`| head`) ends no run: output that cannot be written is dropped.

use std::io::Write;

/// Writes one or more lines to stdout.
pub(crate) fn result(text: &str) {
    write(std::io::stdout().lock(), text);
}

/// Writes one or more lines to stderr.
pub(crate) fn note(text: &str) {
    write(std::io::stderr().lock(), text);
}

fn write(mut stream: impl Write, text: &str) {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // One write, so that lines of both streams on one terminal do not mix.
    let _ = stream.write_all(format!("{text}{end}").as_bytes());
    let _ = stream.flush();
}
