//! The diagnostic log of the client: `KSYNC_LOG=debug` or `-vv` prints it on stderr.

use std::fmt::Arguments;
use std::time::Instant;

use ksync::log::{self, LEVEL, Side, VARIABLE};
use ksync::tree::path::escape;

use crate::args::Mode;
use crate::out;
use crate::report::CliError;

/// Number of `-v` that ask for the log.
const VERBOSE_MIN: u8 = 2;

/// Begins the log, if the environment or the command line asks for it.
pub(crate) fn begin(mode: &Mode) -> Result<(), CliError> {
    let is_asked = match mode {
        // Help and the version take no settings.
        Mode::Show(_) => return Ok(()),
        Mode::Sync(args) => args.output.verbose >= VERBOSE_MIN,
        _ => false,
    };
    let level = std::env::var_os(VARIABLE).filter(|level| !level.is_empty());
    if let Some(level) = level.as_ref().filter(|level| *level != LEVEL) {
        let what = format!("{VARIABLE}={} is not a level of the log", level.display());
        return Err(CliError::usage(what, format!("Set {VARIABLE}={LEVEL}, or unset it.")));
    }
    if is_asked || level.is_some() {
        let start = Instant::now();
        log::begin(move |side, text| out::note(&line(start.elapsed().as_secs_f64(), side, text)));
        log::line(Side::Here, format_args!("start version={}", env!("CARGO_PKG_VERSION")));
    }
    Ok(())
}

/// Formats a line. The agent's lines have the time of their arrival.
fn line(seconds: f64, side: Side, text: Arguments<'_>) -> String {
    let side = match side {
        Side::Here => "here ",
        Side::There => "there",
    };
    // Names in the text are escaped already, so backslashes stay.
    let text = text.to_string();
    let text = text.split('\\').map(|part| escape(part.as_bytes())).collect::<Vec<_>>().join("\\");
    format!("{LEVEL} {seconds:.3} {side} {text}")
}

/// Logs the end of the program.
pub(crate) fn end(exit: u8) {
    if log::is_on() {
        log::line(Side::Here, format_args!("end exit={exit}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_seconds_side_and_no_control_characters() {
        let line = line(1.5, Side::There, format_args!("file path=a\\n\x1b[2J\nb"));
        assert_eq!(line, "debug 1.500 there file path=a\\n\\u{1b}[2J\\nb");
    }
}
