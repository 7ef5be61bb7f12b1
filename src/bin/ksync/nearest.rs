//! The hint for a SOURCE on this machine that does not exist: another endpoint was meant, or
//! another name.

use std::ffi::OsString;
use std::path::Path;

use ksync::sync::Endpoint;
use ksync::tree::path::escape;

use crate::endpoints::mistaken;
use crate::report::CliError;

/// Names of a directory that are compared.
const NAMES_MAX: usize = 10_000;

/// Adds the hint to the error of a run from a missing SOURCE.
pub(crate) fn hinted(error: CliError, source: &Endpoint) -> CliError {
    let Endpoint::Local(path) = source else { return error };
    if error.exit != SELECTION || path.symlink_metadata().is_ok() {
        return error;
    }
    let hint = match (mistaken(path.as_os_str()), nearest(path)) {
        (Some(warning), _) => warning.hint,
        (None, Some(name)) => {
            let near = path.with_file_name(name);
            format!("Check how it is spelled; there is {}.", escape(near.as_os_str().as_encoded_bytes()))
        }
        (None, None) => return error,
    };
    error.with_hint(Some(hint))
}

/// Exit code: a SOURCE cannot be read.
const SELECTION: u8 = 3;

/// The name in the directory of `path` that is nearest to its own.
fn nearest(path: &Path) -> Option<OsString> {
    let wanted = path.file_name()?.to_str()?;
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let names = std::fs::read_dir(parent.unwrap_or(Path::new("."))).ok()?;
    let names = names.take(NAMES_MAX).filter_map(|entry| Some(entry.ok()?.file_name()));
    let near = names.filter_map(|name| Some((distance(wanted, name.to_str()?), name)));
    // A third of the letters may differ.
    let near = near.filter(|(distance, _)| *distance <= wanted.chars().count().div_ceil(3));
    near.min().map(|(_, name)| name)
}

/// Letters to insert, remove, replace or swap, to make `b` of `a`. Upper and lower case are one.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|text| text.to_lowercase().chars().collect::<Vec<_>>());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut least =
                (at(&row, j) + usize::from(x != y)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let is_swap = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if is_swap {
                least = least.min(at(&before, j - 1) + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_typos() {
        for (a, b, expected) in [
            ("site", "site", 0),
            ("stie", "site", 1),
            ("sit", "site", 1),
            ("Site", "site", 0),
            ("abc", "xyz", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_missing_source_gets_the_nearest_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("index.html"), "").unwrap();
        let hint = |name: &str| {
            let error = CliError::new(SELECTION, "x");
            let source = Endpoint::Local(folder.path().join(name));
            hinted(error, &source).hint().map(str::to_owned)
        };
        let near = folder.path().join("index.html");
        let told = format!("Check how it is spelled; there is {}.", near.display());
        assert_eq!(hint("indx.html").as_deref(), Some(told.as_str()));
        assert_eq!(hint("other.css"), None);
        assert_eq!(hint("index.html"), None);
    }
}
