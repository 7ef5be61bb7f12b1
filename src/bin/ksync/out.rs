//! The two streams. Results go to stdout: the list of changes, the line that sums up, `--stats`, what
//! `ksync sandbox` tells a script. What is for eyes goes to stderr: the mapping, progress, problems, errors
//! and hints. So `ksync -n -i a b | grep deleting` sees changes and nothing else but the last line.
//!
//! A reader that went away (`| head`) ends no run: what cannot be written is dropped.

use std::io::Write;

/// Writes a line, or several, to stdout.
pub(crate) fn result(text: &str) {
    write(std::io::stdout().lock(), text);
}

/// Writes a line, or several, to stderr.
pub(crate) fn note(text: &str) {
    write(std::io::stderr().lock(), text);
}

fn write(mut stream: impl Write, text: &str) {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // In one piece, so that lines of two streams on one terminal do not run into each other.
    let _ = stream.write_all(format!("{text}{end}").as_bytes());
    let _ = stream.flush();
}
