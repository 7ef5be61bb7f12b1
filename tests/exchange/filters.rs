//! Filters compared with the programs whose dialects they implement. The same random trees and
//! rules go through rsync and ksync, and the same ignore files through git.
//!
//! Every case follows from the seed and its number, and a failure prints both. `KSYNC_FILTER_SEED`
//! and `KSYNC_FILTER_CASES` choose others: `KSYNC_FILTER_SEED=7 KSYNC_FILTER_CASES=20000 cargo test
//! --test exchange filters`.
//!
//! ksync differs from rsync on purpose in these points, which no case contains:
//!
//! - A byte order mark at the beginning of a rule file. rsync takes it as a part of the first
//!   pattern; ksync skips it, since editors add it and nobody sees it.
//! - A pattern of 4,096 bytes or more. rsync drops it with a warning; ksync applies it, since its
//!   paths may be that long.
//! - More than 10,000 rules, or 1 MiB of patterns. rsync applies them; ksync refuses them before it
//!   starts, since each name may be compared with each rule.
//! - `src` alone, without a slash at its end. In rsync, anchors and rules see `src/…`. In ksync
//!   they see the content of `src`, as with rsync's `src/`, since a directory becomes DEST itself.
//! - `a**/b` in `.ksyncignore`, with plain text right before `**/`. git matches it as `a*/b`, as
//!   `ab` or as `a` and anything, depending on its version. ksync matches it as `a*/b`:
//!   gitignore(5) calls such stars regular asterisks.
//! - An entry of DEST that is called `.ksync`. To rsync it is an entry; to ksync it is the state
//!   directory, which holds unfinished files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ksync::tree::filter::{Filter, IgnoreFile, Rule};
use ksync::tree::path::TreePath;
use ksync::wire::hello::{Consent, Options};

use crate::skip::{needs_programs, program};
use crate::world::World;

/// The default seed.
const SEED: u64 = 14;
/// The default number of trees with rules.
const CASES: u64 = 3000;
/// The default number of ignore files.
const IGNORE_CASES: u64 = 1000;

/// Names that patterns may confuse.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"ab",
    b"a.b",
    b"*",
    b"[",
    b"\\",
    b"a b",
    b"a ",
    "\u{e9}".as_bytes(),
    b"**",
    b"a]",
    b"-",
    b"!",
    b"#",
    b"\xff",
];

/// Components of random patterns.
const ATOMS: &[&[u8]] = &[
    b"a",
    b"b",
    b"ab",
    b".",
    b"*",
    b"*",
    b"**",
    b"***",
    b"?",
    b"[",
    b"]",
    b"[ab]",
    b"[!a]",
    b"[^b]",
    b"[a-b]",
    b"[b-a]",
    b"[]a]",
    b"[\\]a]",
    b"[a/b]",
    b"[!-a]",
    b"[[:alpha:]]",
    b"[[:space:][:punct:]]",
    b"[[:none:]]",
    b"[[:]",
    b"\\",
    b"\\*",
    b"\\a",
    b"\\[",
    b"/",
    b"/",
    b"/",
    b"**/",
    b"/**",
    b"/***",
    b"**/***",
    b"a/",
    b" ",
    b"-",
    b"!",
    b"#",
    "\u{e9}".as_bytes(),
    b"\xff",
];

/// Common patterns.
const PATTERNS: &[&[u8]] = &[
    b"*", b"*/", b"/*", b"/a", b"a/", b"/a/", b"**/a", b"**/a/", b"a/**", b"/a/**", b"a/***", b"/a/***",
    b"a/***/", b"*.b", b"a*", b"a/b", b"/a/b", b"a/*/b", b"a/**/b", b"/**/b", b"**/a/b", b"**", b"***",
    b"**/***", b"[", b"\\", b"a\\", b"*\\", b"/", b"//", b"a//", b"b*/",
];

/// Pseudo-random numbers from a seed (splitmix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn one_of<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }

    fn pattern(&mut self) -> Vec<u8> {
        if self.below(3) == 0 {
            return self.one_of(PATTERNS).to_vec();
        }
        (0..=self.below(5)).flat_map(|_| self.one_of(ATOMS).to_vec()).collect()
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// True if git's answer depends on its version: see the list above.
fn is_undecided(pattern: &[u8]) -> bool {
    let plain = pattern.iter().take_while(|byte| !b"*?[\\".contains(byte)).count();
    plain > 0 && pattern[plain - 1] != b'/' && pattern[plain..].starts_with(b"**")
}

/// Runs `check` on the numbers of all cases, on several threads. It returns a text if the case
/// differs.
fn all_cases(what: &str, count: u64, check: impl Fn(u64, u64) -> Option<String> + Sync) {
    let (seed, count) = (number("KSYNC_FILTER_SEED", SEED), number("KSYNC_FILTER_CASES", count));
    let _ = writeln!(std::io::stderr(), "{what}: seed {seed}, {count} cases");
    let next = AtomicU64::new(0);
    let work = || {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        numbers
            .take_while(|number| *number < count)
            .filter_map(|number| check(seed, number))
            .collect::<Vec<_>>()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let differences: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(
        differences.is_empty(),
        "{what}: seed {seed}, {} of {count} cases differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

fn join(root: &Path, name: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(name))
}

/// Creates random entries. The path decides the kind of an entry, so that two trees of one case
/// agree on it.
fn grow(root: &Path, directory: &[u8], depth: usize, kinds: u64, content: &str, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        let name = rng.one_of(NAMES);
        let path = [directory, name].concat();
        let kind = path.iter().fold(kinds, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        if depth < 3 && Rng(kind).below(2) == 0 {
            fs::create_dir_all(join(root, &path)).unwrap();
            grow(root, &[&path, &b"/"[..]].concat(), depth + 1, kinds, content, rng);
        } else {
            fs::write(join(root, &path), content).unwrap();
        }
    }
}

/// The paths of a tree, each with its content or "directory".
fn listed(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let entries = walkdir::WalkDir::new(root).min_depth(1).into_iter().map(|entry| {
        let entry = entry.unwrap();
        let what = if entry.file_type().is_dir() {
            "directory".to_owned()
        } else {
            fs::read_to_string(entry.path()).unwrap()
        };
        let path = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        (path, what)
    });
    entries.filter(|(path, _)| !path.starts_with(b".ksync")).collect()
}

#[test]
fn rules_select_the_same_entries_as_rsyncs_rules() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    all_cases("rules", CASES, |seed, number| {
        let mut rng = Rng(seed.wrapping_mul(0x1_0000_0000).wrapping_add(number));
        let delete = number % 2 == 1;
        let mut world = World::in_memory();
        let rsyncs = world.folder.path().join("rsyncs");
        let (kinds, there) = (rng.below(1 << 30) as u64, rng.below(1 << 30) as u64);
        grow(&world.source, b"", 0, kinds, "of the source", &mut rng);
        for target in [&world.target, &rsyncs] {
            fs::create_dir(target).unwrap();
            grow(target, b"", 0, kinds, "old", &mut Rng(there));
        }
        let rules: Vec<_> = (0..=rng.below(4)).map(|_| Rule::new(rng.below(3) == 0, rng.pattern())).collect();
        let mut rsync = Command::new(program("rsync")?);
        rsync.arg("-a").args(delete.then_some("--delete"));
        for rule in &rules {
            let sign = if rule.bits == 1 { &b"--exclude=+ "[..] } else { b"--include=- " };
            rsync.arg(OsStr::from_bytes(&[sign, &rule.pattern].concat()));
        }
        let slashed = |path: &Path| join(path, b"");
        let ran = rsync.arg(slashed(&world.source)).arg(slashed(&rsyncs)).output().unwrap();
        assert!(ran.status.success(), "{number}: {}", String::from_utf8_lossy(&ran.stderr));
        let consent = Consent { yes: true, ..Consent::default() };
        world.options = Options { delete, rules: rules.clone(), consent, ..Options::default() };
        let ended = world.run();
        assert_eq!(ended.problems(), [], "{number}");
        let (ours, theirs) = (listed(&world.target), listed(&rsyncs));
        (ours != theirs).then(|| {
            let shown: Vec<_> = rules
                .iter()
                .map(|rule| {
                    format!("{} {}", if rule.bits == 1 { "+" } else { "-" }, rule.pattern.escape_ascii())
                })
                .collect();
            let paths = ours.keys().chain(theirs.keys()).filter(|path| ours.get(*path) != theirs.get(*path));
            let differing: Vec<_> = paths
                .map(|path| {
                    format!("{}: {:?}, rsync {:?}", path.escape_ascii(), ours.get(path), theirs.get(path))
                })
                .collect();
            format!("case {number} (delete: {delete}), rules {shown:?}: {differing:?}")
        })
    });
}

#[test]
fn ignore_files_select_the_same_entries_as_gits() {
    if !needs_programs(&["git"]) {
        return;
    }
    all_cases("ignore files", IGNORE_CASES, |seed, number| {
        let mut rng = Rng(!seed.wrapping_mul(0x1_0000_0000).wrapping_add(number));
        let world = World::in_memory();
        let root = &world.source;
        let git = |arguments: &[&str]| {
            let mut git = Command::new(program("git").unwrap());
            git.arg("-C").arg(root).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
            git.env("GIT_CONFIG_NOSYSTEM", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
            git
        };
        // The files that `git init` would create, without starting a process.
        for directory in ["objects", "refs"] {
            fs::create_dir_all(root.join(".git").join(directory)).unwrap();
        }
        fs::write(root.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(root.join(".git/config"), "[core]\nrepositoryformatversion = 0\nignorecase = false\n")
            .unwrap();
        grow(root, b"", 0, rng.below(1 << 30) as u64, "", &mut rng);
        let paths: Vec<_> = listed(root).into_iter().filter(|(path, _)| !path.starts_with(b".git")).collect();
        let directories = paths.iter().filter(|(_, what)| what == "directory").map(|(path, _)| path.clone());
        let directories: Vec<_> = std::iter::once(Vec::new()).chain(directories).collect();
        let mut filter = Filter::default();
        let mut shown = Vec::new();
        for directory in directories.into_iter().take(3) {
            let mut text = Vec::new();
            for _ in 0..=rng.below(4) {
                text.extend([&b""[..], b"", b"!", b"\\"][rng.below(4)]);
                let decided = std::iter::repeat_with(|| rng.pattern()).find(|pattern| !is_undecided(pattern));
                text.extend(decided.unwrap());
                text.extend([&b"\n"[..], b"\n", b"\r\n", b" \n", b"  \r\n"][rng.below(5)]);
            }
            fs::write(join(root, &directory).join(".gitignore"), &text).unwrap();
            shown.push(format!("{}: {}", directory.escape_ascii(), text.escape_ascii()));
            assert!(filter.add(IgnoreFile { directory, text }));
        }
        let mut asked = git(&["check-ignore", "--no-index", "-z", "--stdin"]).spawn().unwrap();
        let names: Vec<u8> = paths.iter().flat_map(|(path, _)| [path, &b"\0"[..]].concat()).collect();
        asked.stdin.take().unwrap().write_all(&names).unwrap();
        let answer = asked.wait_with_output().unwrap();
        assert!(matches!(answer.status.code(), Some(0 | 1)), "{number}: {:?}", answer.status);
        let ignored: Vec<_> = answer.stdout.split(|&byte| byte == 0).collect();
        let differing: Vec<_> = paths
            .iter()
            .filter(|(path, what)| {
                let ours = filter.excludes_within(&TreePath::new(&**path).unwrap(), what == "directory");
                ours != ignored.contains(&&**path)
            })
            .map(|(path, what)| format!("{} ({what})", path.escape_ascii()))
            .collect();
        (!differing.is_empty()).then(|| format!("case {number}, {shown:?}: {differing:?}"))
    });
}

/// Patterns with the highest cost if the matcher does not keep the leftmost position of a segment.
/// The time is exponential without any bound. With a bound of pattern length times name length it
/// is 39 s.
#[test]
fn no_pattern_takes_long_to_match() {
    const BYTES: usize = 64 << 10;
    let name =
        |number: u32| TreePath::new(format!("{}b{number}", "a".repeat(250)).into_bytes()).expect("a path");
    let names: Vec<_> = (1000..3000).map(name).collect();
    for unit in ["*a", "*?", "**a", "**/", "a*", "?", "[a-c]*", "*[!b]", "**/*a", "*a/"] {
        let text = [unit.repeat(BYTES / unit.len()), "*bb*".to_owned()].concat().into_bytes();
        let rsync = Filter::new(&[Rule::new(false, text.clone())]);
        let mut git = Filter::new(&[]);
        let text = text[text.len() - BYTES + 8..].to_vec();
        assert!(git.add(IgnoreFile { directory: Vec::new(), text }));
        for filter in [rsync, git] {
            let start = Instant::now();
            assert!(!names.iter().any(|name| filter.excludes(name, false)), "{unit}");
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "{unit}: {took:?}");
        }
    }
}
