//! Code that the performers of both engines share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::baseline::Baseline;
use crate::disk::error::DiskError;
use crate::disk::scan::{ScanOptions, Subject};
use crate::engine::WorkError;
use crate::log::debug;
use crate::monitor::ProblemKind;
use crate::tree::entry::Entry;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::{Manifest, ManifestError};
use crate::tree::path::TreePath;
use crate::wire::hello::Options;
use crate::wire::message::{AbortKind, SMALL_BYTES_MAX};

/// Classifies a failure of the disk: a full or failing filesystem ends the run, everything else is
/// the problem of one entry.
pub(super) fn work_error(error: &DiskError, kind: ProblemKind) -> WorkError {
    let text = chain(error);
    if error.is_no_space() || error.is_broken() {
        WorkError::Fatal(AbortKind::Storage, text)
    } else if error.is_busy() {
        WorkError::Fatal(AbortKind::Busy, text)
    } else if error.is_conflict() {
        WorkError::Entry(ProblemKind::Conflict, text)
    } else if kind == ProblemKind::Unreadable && error.is_not_found() {
        WorkError::Entry(ProblemKind::Vanished, text)
    } else {
        WorkError::Entry(kind, text)
    }
}

/// Classifies a failure to change an entry.
pub(super) fn unwritable(error: DiskError) -> WorkError {
    work_error(&error, ProblemKind::Unwritable)
}

/// Classifies a failure to set a mode, a time or an owner.
pub(super) fn metadata_error(error: DiskError) -> WorkError {
    if error.is_refused() { WorkError::Entry(ProblemKind::Refused, chain(&error)) } else { unwritable(error) }
}

/// Timeout for a destination that another run uses. A run that was killed a moment ago leaves an
/// agent behind that still writes the content that had arrived.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Repeats an attempt while another run uses the destination.
pub(super) fn retry_while_busy<T>(mut attempt: impl FnMut() -> Result<T, DiskError>) -> Result<T, DiskError> {
    let start = Instant::now();
    let mut has_waited = false;
    loop {
        match attempt() {
            Err(error) if error.is_busy() && start.elapsed() < BUSY_TIMEOUT => {
                if !std::mem::replace(&mut has_waited, true) {
                    debug!("wait ms_max={} why=destination-busy", BUSY_TIMEOUT.as_millis());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Stores the offer as the baseline, if there is a store. A failure costs the next run bytes and
/// nothing else, so it is not reported.
pub(super) fn store_baseline(baseline: Option<&Baseline>, manifest: &Manifest, ignores: &[IgnoreFile]) {
    let is_stored = baseline.is_some_and(|baseline| baseline.store(manifest, ignores));
    debug!("baseline stored={is_stored} entries={}", manifest.len());
}

/// Scan options of either side. A touched file may have been replaced by another one of the same
/// length and time. A checkout writes many files within one clock tick, and they get each other's
/// names. So for small files the content decides; it is pushed anyway.
pub(super) fn scan_options(options: &Options, subject: &Subject) -> ScanOptions {
    let hash_bytes_max = if matches!(subject, Subject::Subtrees(..)) { SMALL_BYTES_MAX } else { 0 };
    ScanOptions {
        hash: options.checksum,
        hash_bytes_max,
        cross_mounts: true,
        metadata: options.metadata.as_deref().cloned().map(Arc::new),
        ..ScanOptions::default()
    }
}

/// Makes a manifest of the first entry alone, under another name.
pub(super) fn renamed(manifest: &Manifest, name: &TreePath) -> Result<Manifest, ManifestError> {
    let entry = manifest.get(0).map(|entry| Entry { path: name.clone(), ..entry.to_entry() });
    Manifest::new(entry.into_iter().collect())
}

/// Formats an error with its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    plain(&text)
}

/// Writes system errors as the parts of a sentence that they are: "No such file or directory (os
/// error 2)" becomes "no such file or directory".
#[must_use]
pub fn plain(text: &str) -> String {
    const MARK: &str = " (os error ";
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(MARK) {
        let number = after.split_once(')');
        let number = number.filter(|(number, _)| number.parse::<u32>().is_ok());
        let Some((_, behind)) = number else {
            plain.push_str(before);
            plain.push_str(MARK);
            rest = after;
            continue;
        };
        let start = before.rfind(": ").map_or(0, |at| at + 2);
        let (lead, cause) = before.split_at_checked(start).unwrap_or((before, ""));
        plain.push_str(lead);
        let mut letters = cause.chars();
        plain.extend(letters.next().into_iter().flat_map(char::to_lowercase));
        plain.push_str(letters.as_str());
        rest = behind;
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_parts_of_a_sentence() {
        for (text, expected) in [
            (
                "cannot read a: No such file or directory (os error 2)",
                "cannot read a: no such file or directory",
            ),
            ("Permission denied (os error 13)", "permission denied"),
            ("a: B (os error 1), c: D (os error 2); e", "a: b, c: d; e"),
            ("cannot read x (os error y): gone", "cannot read x (os error y): gone"),
            ("É (os error 5)", "é"),
            ("plain", "plain"),
            (" (os error ", " (os error "),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
