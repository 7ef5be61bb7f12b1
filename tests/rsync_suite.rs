//! rsync's own test suite against ksync, and the table of its results in `docs/rsync-suite.md`.
//!
//! `tests/rsync-suite/fetch.sh` brings the suite, and `tests/rsync-suite/rsync` translates rsync's
//! grammar. The suite's own runner runs the tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "world/skip.rs"]
mod skip;

use skip::{needs_programs, needs_superuser};

const TABLE: &str = "docs/rsync-suite.md";
/// Seconds after which a test has failed. The slowest that passes takes 10.
const TIMEOUT_SECONDS: &str = "60";
/// Seconds that a test of a race may try to win it.
const RACE_SECONDS: &str = "0.5";

/// The outcome that the table gives for a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The test passes.
    Passes,
    /// The test fails, because ksync means something else, or lacks something.
    Differs,
    /// The test says nothing about ksync, so it does not run.
    DoesNotApply,
}

/// The rows of the table, by test.
fn table() -> BTreeMap<String, Expected> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE)).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        let Some((name, rest)) = line.strip_prefix("| `").and_then(|rest| rest.split_once("` | ")) else {
            continue;
        };
        let (outcome, why) = rest.split_once('|').unwrap_or_else(|| panic!("no third column: {line}"));
        let expected = match outcome.trim() {
            "passes" => Expected::Passes,
            "differs" | "waits" => Expected::Differs,
            "does not apply" => Expected::DoesNotApply,
            _ => panic!("no such outcome: {line}"),
        };
        let is_reasoned = why.trim_matches([' ', '|']).len() > 3;
        assert!(is_reasoned || expected == Expected::Passes, "no reason: {line}");
        assert!(rows.insert(name.to_owned(), expected).is_none(), "{name} stands in the table twice");
    }
    assert!(rows.len() > 300, "{TABLE} has only {} rows", rows.len());
    rows
}

/// The directory that `fetch.sh` has filled; `None` if there is none, or if a test of it needs more
/// than this machine has.
fn suite() -> Option<PathBuf> {
    let cache = || {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
        Some(cache.join("ksync-ci/rsync-suite"))
    };
    let folder = std::env::var_os("KSYNC_RSYNC_SUITE").map(PathBuf::from).or_else(cache);
    let folder = folder.filter(|folder| folder.join("ready").is_file());
    if folder.is_none() {
        skip::skip(
            "rsync's test suite is missing: tests/rsync-suite/fetch.sh DIRECTORY gets it, and KSYNC_RSYNC_SUITE names DIRECTORY",
        );
    }
    folder.filter(|_| needs_superuser() && needs_programs(&["python3"]))
}

/// The outcome of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Passed,
    /// It passed, but no run of ksync got beyond its command line.
    PassedWithoutSync,
    Failed,
    Skipped,
}

/// Runs tests of the suite. Returns the outcome of each, and the output of the suite's runner.
fn run(suite: &Path, tests: &[&str]) -> (BTreeMap<String, Ended>, String) {
    let folder = tempfile::tempdir().unwrap();
    // Some tests drop their rights, and must still reach all of this.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let [source, bin, calls] = ["source", "bin", "bin/calls"].map(|name| folder.path().join(name));
    let copied = Command::new("cp").arg("-a").arg(suite.join("source")).arg(&source).status().unwrap();
    assert!(copied.success());
    for directory in [&bin, &calls, &bin.join("state")] {
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o1777)).unwrap();
    }
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rsync-suite/rsync");
    fs::copy(adapter, bin.join("rsync")).unwrap();
    symlink(env!("CARGO_BIN_EXE_ksync"), bin.join("ksync")).unwrap();
    let tools = ["tools/usr/bin", "tools/bin"].map(|name| suite.join(name)).into_iter();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(tools.chain(std::env::split_paths(&path))).unwrap();
    let output = Command::new("python3")
        .current_dir(&source)
        .args(["runtests.py", "--parallel", "3", "--timeout", TIMEOUT_SECONDS])
        .args(["--race-timeout", RACE_SECONDS, "--timing", "--rsync-bin"])
        .arg(bin.join("rsync"))
        .args(tests)
        .env("PATH", path)
        .env("scratchbase", folder.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut ended = BTreeMap::new();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        let (Some(outcome), Some(name)) = (words.next(), words.next()) else { continue };
        if !tests.contains(&name) {
            continue;
        }
        let outcome = match outcome {
            "PASS" if syncs(&calls.join(name)) => Ended::Passed,
            "PASS" => Ended::PassedWithoutSync,
            "FAIL" | "XFAIL" | "ERROR" => Ended::Failed,
            "SKIP" => Ended::Skipped,
            _ => continue,
        };
        ended.insert(name.to_owned(), outcome);
    }
    (ended, output)
}

/// True if a test's file of calls holds one that was not refused for its options.
fn syncs(calls: &Path) -> bool {
    let calls = fs::read_to_string(calls).unwrap_or_default();
    calls.lines().any(|call| !call.starts_with("1 "))
}

#[test]
fn the_table_has_one_row_for_each_test_of_the_suite() {
    let Some(suite) = suite() else { return };
    let names: Vec<String> = fs::read_dir(suite.join("source/testsuite"))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix("_test.py")?.to_owned()))
        .collect();
    let table = table();
    let missing: Vec<&String> = names.iter().filter(|name| !table.contains_key(*name)).collect();
    let unknown: Vec<&String> = table.keys().filter(|name| !names.contains(name)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing: {missing:?}, unknown: {unknown:?}");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE)).unwrap();
    let count = |outcome: &str| text.matches(&format!("` | {outcome} | ")).count();
    let [passes, differs, waits, others] = ["passes", "differs", "waits", "does not apply"].map(count);
    let sentence = format!(
        "Of the {} tests that apply, {passes} pass, {differs} differ and {waits} wait; {others} do not apply.",
        passes + differs + waits
    );
    assert!(text.contains(&sentence), "the table's sum is: {sentence}");
}

#[test]
fn each_test_of_the_suite_ends_as_the_table_says() {
    let Some(suite) = suite() else { return };
    let table = table();
    // The environment variable names tests of interest, for a developer.
    let only = std::env::var("KSYNC_RSYNC_TESTS").ok();
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|one| one == name));
    let tests: Vec<&str> = table
        .iter()
        .filter(|(name, expected)| **expected != Expected::DoesNotApply && is_wanted(name))
        .map(|(name, _)| name.as_str())
        .collect();
    let (ended, output) = run(&suite, &tests);
    let mut wrong = String::new();
    for name in &tests {
        let told = match (table[*name], ended.get(*name)) {
            (Expected::Passes, Some(Ended::Passed)) => continue,
            // A test of an attack also passes if its options are refused.
            (Expected::Differs, Some(Ended::Failed | Ended::PassedWithoutSync)) => continue,
            (Expected::Differs, Some(Ended::Passed)) => "passes: say so in the table",
            (_, Some(Ended::Passed | Ended::Failed)) => "does not pass any more",
            (_, Some(Ended::PassedWithoutSync)) => "passes without a sync: it does not apply",
            (_, Some(Ended::Skipped)) => "skips itself",
            (_, None) => "has no outcome",
        };
        let _ = writeln!(wrong, "{name} {told}");
    }
    assert!(wrong.is_empty(), "{wrong}\n{output}");
}
