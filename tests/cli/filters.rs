//! rsync's filter language, beside rsync: the same trees and rules have the same end.
//!
//! Each case follows from its seed, and a failure prints it with the rules and merge files.
//! `KSYNC_FILTER_SEEDS` sets the number of seeds: `KSYNC_FILTER_SEEDS=3000 cargo test --test cli
//! filter_language`. `KSYNC_FILTER_FIRST` sets the first one.
//!
//! ksync differs from rsync on purpose in these points, which no case contains:
//!
//! - A line of a merge file in the tree that is no rule. rsync ends with 1, at times after it has
//!   copied a part; ksync leaves the file's directory out, copies the rest, deletes nothing there
//!   and ends with 23. At the top of SOURCE, both end before they begin.
//! - A merge file that is a link or cannot be read. rsync follows the one and ignores the other in
//!   silence; ksync handles both like a line that is no rule.
//! - A `dir-merge` or `merge` rule of a merge file in the tree that leads out of the tree. rsync
//!   reads that file; ksync takes the rule for none, since the tree may be somebody else's.
//! - A directory with a wildcard in its name that holds a merge file with anchored rules. rsync
//!   takes the name for a part of the pattern.
//! - `-C` in a merge file of the tree. rsync also reads `~/.cvsignore` and `CVSIGNORE` there.
//! - A file in the place of a directory that holds something protected: see `select`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plan::Rng;
use crate::world::skip::{needs_programs, program};
use crate::world::{Run, World};

/// Names that patterns hit often.
const NAMES: &[&str] = &["a", "b", "ab", "c.o", "core", "x y"];

/// Names of merge files. The last two need no rule of their own.
const MERGE_FILES: &[&str] = &[".f", ".g", ".rsync-filter", ".cvsignore"];

const PATTERNS: &[&str] = &[
    "a",
    "b",
    "ab",
    "*.o",
    "core",
    "x y",
    "*",
    "*/",
    "a/",
    "b/",
    "/a",
    "/b",
    "/ab/",
    "/a/b",
    "a/b",
    "a/*",
    "/*/a",
    "**/b",
    "a/**",
    "a/***",
    "/b/***",
    "/*",
    "?",
    "[ab]",
    "[!a]",
    "a*",
    "/a/*/b",
    "**",
    "*b*",
    "/**/a",
    "b/***",
    "[[:alpha:]]",
    "\\a*",
    "*.[a-o]",
    ".f",
    ".*",
    "ab/a/",
    "dst/a",
    "src/a/",
    "/**/dst/b",
    "/**/src/**/b",
    "x?y",
];

struct Case {
    rng: Rng,
}

impl Case {
    fn one_of<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.rng.below(from.len() as u64) as usize]
    }

    fn is(&mut self, one_in: u64) -> bool {
        self.rng.below(one_in) == 0
    }

    /// Kind and separator of a rule, in its short or its long form.
    fn kind(&mut self, short: &str, long: &str, modifiers: &str) -> String {
        let separator = if self.is(4) { "_" } else { " " };
        match (self.is(3), modifiers.is_empty()) {
            (true, true) => format!("{long}{separator}"),
            (true, false) => format!("{long},{modifiers}{separator}"),
            (false, true) => format!("{short}{separator}"),
            (false, false) if self.is(2) => format!("{short},{modifiers}{separator}"),
            (false, false) => format!("{short}{modifiers}{separator}"),
        }
    }

    fn modifiers(&mut self, from: &str, has_sides: bool) -> String {
        let chosen = from.chars().filter(|&letter| {
            let rare = if letter == 'x' { 20 } else { 7 };
            !(has_sides && "sr".contains(letter)) && self.rng.below(rare) == 0
        });
        chosen.collect()
    }

    /// A rule that is no merge. `has_sides`: the merge file's own rule names a side.
    fn plain(&mut self, has_sides: bool) -> String {
        let kinds: &[(&str, &str)] = if has_sides {
            &[("-", "exclude"), ("+", "include")]
        } else {
            &[
                ("-", "exclude"),
                ("-", "exclude"),
                ("+", "include"),
                ("H", "hide"),
                ("S", "show"),
                ("P", "protect"),
                ("R", "risk"),
            ]
        };
        let (short, long) = kinds[self.rng.below(kinds.len() as u64) as usize];
        let modifiers = self.modifiers("/!spxr", has_sides || !"-+".contains(short));
        let kind = self.kind(short, long, &modifiers);
        format!("{kind}{}", self.one_of(PATTERNS))
    }

    /// The text of a merge file for a rule with these modifiers.
    fn merge_text(&mut self, modifiers: &str, in_tree: bool, depth: u64) -> String {
        let has = |letter: char| modifiers.contains(letter);
        let (has_sides, is_cvs) = (has('s') || has('r'), has('C'));
        let has_prefixes = !is_cvs && !has('-') && !has('+');
        let splits = is_cvs || has('w');
        let mut text = String::new();
        for _ in 0..=self.rng.below(3) {
            let rule = match self.rng.below(12) {
                0 if !splits => "# - a".to_owned(),
                1 if !splits => String::new(),
                2 if has_prefixes && depth > 0 && !has_sides && in_tree => {
                    let modifiers = self.modifiers("e", false);
                    let kind = self.kind(":", "dir-merge", &modifiers);
                    format!("{kind}{}", self.one_of(&[".g", ".f"]))
                }
                3 if has_prefixes || is_cvs => "!".to_owned(),
                4 if has_prefixes && !has_sides && !in_tree && depth > 0 => "-C".to_owned(),
                _ if !has_prefixes => self.one_of(PATTERNS).to_owned(),
                _ => self.plain(has_sides),
            };
            let rule = if splits { rule.replace("x y", "x?y").replace(' ', "_") } else { rule };
            text += &rule;
            text += if splits && self.is(2) { " " } else { "\n" };
        }
        text
    }

    /// A directory of few names, with merge files.
    fn grow(&mut self, directory: &Path, merges: &BTreeMap<&'static str, String>, depth: u64) {
        fs::create_dir_all(directory).unwrap();
        for name in NAMES {
            let path = directory.join(name);
            match self.rng.below(7) {
                0..=2 => fs::write(path, self.one_of(&["", "x", "yy"])).unwrap(),
                3..=4 if depth > 0 => self.grow(&path, merges, depth - 1),
                4 => fs::create_dir(path).unwrap(),
                _ => {}
            }
        }
        for (name, modifiers) in merges {
            if self.is(3) {
                let text = self.merge_text(modifiers, true, 1);
                fs::write(directory.join(name), text).unwrap();
            }
        }
    }

    /// The options, and the modifiers of each merge file in the trees.
    fn options(&mut self, folder: &Path) -> (Vec<String>, BTreeMap<&'static str, String>) {
        let mut options = Vec::new();
        let mut merges: BTreeMap<&'static str, String> = BTreeMap::new();
        for number in 0..=self.rng.below(4) {
            match self.rng.below(12) {
                0..=4 => {
                    let rule = self.plain(false);
                    options.push(format!("--filter={rule}"));
                }
                5 => options.push(format!("--exclude={}", self.one_of(PATTERNS))),
                6 => options.push(format!("--include={}", self.one_of(PATTERNS))),
                7 | 8 => {
                    let name = MERGE_FILES[self.rng.below(2) as usize];
                    let mut modifiers = self.modifiers("enpsr/w", false);
                    modifiers += ["", "", "", "-", "+", "C"][self.rng.below(6) as usize];
                    // Rules of a file that is both must suit both.
                    if merges.contains_key(name) {
                        continue;
                    }
                    let kind = self.kind(":", "dir-merge", &modifiers);
                    let path = if self.is(4) { "../" } else { "" };
                    options.push(format!("--filter={kind}{path}{name}"));
                    merges.insert(name, modifiers);
                }
                9 => {
                    let mut modifiers = self.modifiers("epsr/w", false);
                    modifiers += ["", "", "-", "+", "C"][self.rng.below(5) as usize];
                    let file = folder.join(format!("rules{number}"));
                    fs::write(&file, self.merge_text(&modifiers, false, 1)).unwrap();
                    let kind = self.kind(".", "merge", &modifiers);
                    options.push(format!("--filter={kind}{}", file.display()));
                }
                10 => {
                    let file = folder.join(format!("rules{number}"));
                    let lines: Vec<_> = (0..2).map(|_| self.one_of(PATTERNS)).collect();
                    fs::write(&file, lines.join("\n")).unwrap();
                    let option = self.one_of(&["--exclude-from", "--include-from"]);
                    options.push(format!("{option}={}", file.display()));
                }
                _ if !merges.contains_key(".rsync-filter") => {
                    options.push(self.one_of(&["-F", "-FF"]).to_owned());
                    merges.insert(".rsync-filter", String::new());
                }
                _ => options.push("--filter=!".to_owned()),
            }
        }
        if self.is(6) {
            options.push("-C".to_owned());
            merges.insert(".cvsignore", "C".to_owned());
        }
        match self.rng.below(5) {
            0 => {}
            1 => options.push("--delete-excluded".to_owned()),
            2 => options.push("--delete-after".to_owned()),
            _ => options.push("--delete".to_owned()),
        }
        (options, merges)
    }
}

/// The ways to reach DEST.
#[derive(Debug, Clone, Copy)]
enum Way {
    Local,
    Up,
    Down,
}

/// The content of each file, link or directory.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let walk = walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| entry.file_name() != ".ksync");
    let shown = walk.filter_map(Result::ok).map(|entry| {
        let content = if entry.file_type().is_dir() {
            "a directory".to_owned()
        } else {
            format!("{:?}", fs::read_to_string(entry.path()).unwrap())
        };
        (entry.path().strip_prefix(root).unwrap().to_owned(), content)
    });
    shown.collect()
}

fn copy(from: &Path, to: &Path) {
    for (path, _) in seen(from) {
        let (from, to) = (from.join(&path), to.join(&path));
        if from.is_dir() { fs::create_dir_all(to).unwrap() } else { fs::copy(from, to).map(|_| ()).unwrap() }
    }
}

/// Removes entries of the destination that have another kind than those of the source.
fn clear(source: &Path, destination: &Path) {
    for (path, _) in seen(source) {
        let (new, old) = (source.join(&path), destination.join(path));
        if old.is_dir() && !new.is_dir() {
            fs::remove_dir_all(old).unwrap();
        }
    }
}

/// Runs one case; `false` if rsync takes its rules for none.
fn check(world: &World, seed: u64, way: Way) -> Result<bool, String> {
    let folder = world.path(format!("case{seed}"));
    let [source, ours, theirs] = ["src", "k/dst", "r/dst"].map(|name| folder.join(name));
    fs::create_dir_all(&folder).unwrap();
    let mut case = Case { rng: Rng::new(seed + 1) };
    let (options, merges) = case.options(&folder);
    case.grow(&source, &merges, 2);
    case.grow(&ours, &merges, 2);
    clear(&source, &ours);
    // Above both trees.
    for name in merges.keys().filter(|_| case.is(2)).collect::<Vec<_>>() {
        let text = case.merge_text(&merges[name], false, 0);
        for folder in [&folder, &folder.join("k"), &folder.join("r")] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(name), &text).unwrap();
        }
    }
    copy(&ours, &theirs);
    let before = seen(&ours);
    let cvs = |command: &mut Command| {
        command.env("CVSIGNORE", "ab !x");
    };
    let mut rsync = Command::new(program("rsync").unwrap());
    rsync
        .arg("-rtc")
        .args(&options)
        .arg(source.join(""))
        .arg(theirs.join(""))
        .env("HOME", world.path("home"));
    cvs(&mut rsync);
    let theirs_ran = Run::of(rsync);
    let name = |path: &Path| path.strip_prefix(world.path(".")).unwrap().to_str().unwrap().to_owned();
    let mut ksync = world.ksync(["-rtc", "--yes"]);
    ksync.args(&options);
    cvs(&mut ksync);
    match way {
        Way::Local => ksync.arg(name(&source)).arg(name(&ours)),
        Way::Up => ksync.arg(name(&source)).arg(world.far(name(&ours))),
        Way::Down => ksync.arg(world.far(name(&source))).arg(name(&ours)),
    };
    let ours_ran = Run::of(ksync);
    let is_valid = theirs_ran.status.code() != Some(1);
    let told = || {
        let merge_files = |tree: &BTreeMap<PathBuf, String>| {
            let is_merge_file = |path: &Path| {
                MERGE_FILES.iter().any(|merge| path.file_name().is_some_and(|name| name == *merge))
            };
            let files = tree.iter().filter(|(path, _)| is_merge_file(path));
            files.map(|(path, text)| format!("\n    {}: {text}", path.display())).collect::<String>()
        };
        let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let rules = entries.filter(|path| path.is_file());
        let rules = rules.map(|path| format!("\n  {}: {:?}", path.display(), fs::read_to_string(&path)));
        format!(
            "seed {seed}, {options:?}, {way:?}{}\n  source:{}\n  before:{}\n  rsync: {:?} {}\n  ksync: {:?} {}",
            rules.collect::<String>(),
            merge_files(&seen(&source)),
            merge_files(&before),
            theirs_ran.status.code(),
            theirs_ran.stderr,
            ours_ran.status.code(),
            ours_ran.stderr
        )
    };
    if is_valid {
        let (ours, theirs, offer) = (seen(&ours), seen(&theirs), seen(&source));
        let paths: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let differing: Vec<_> = paths
            .into_iter()
            .filter(|path| ours.get(*path) != theirs.get(*path))
            .map(|path| {
                format!(
                    "  {}: {:?}, rsync {:?}, before {:?}, offered {:?}\n",
                    path.display(),
                    ours.get(path),
                    theirs.get(path),
                    before.get(path),
                    offer.get(path)
                )
            })
            .collect();
        if !differing.is_empty() || !matches!(ours_ran.status.code(), Some(0 | 23)) {
            return Err(format!("{}{}", differing.concat(), told()));
        }
    } else if ours_ran.status.code() == Some(0) {
        return Err(told());
    }
    fs::remove_dir_all(folder).unwrap();
    Ok(is_valid)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Runs these cases, two at a time.
fn check_all(seeds: std::ops::Range<u64>, way: impl Fn(u64) -> Way + Sync) {
    let world = World::new();
    fs::write(world.path("home/.cvsignore"), "b *.x\nx?y").unwrap();
    let count = seeds.end - seeds.start;
    let results = std::sync::Mutex::new((0, Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (world, results, way, seeds) = (&world, &results, &way, seeds.clone());
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % 2 == thread) {
                    let result = check(world, seed, way(seed));
                    let mut results = results.lock().unwrap();
                    match result {
                        Ok(is_valid) => results.0 += u64::from(is_valid),
                        Err(told) => results.1.push(told),
                    }
                }
            });
        }
    });
    let (valid, failed) = results.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} cases differ:\n{}",
        failed.len(),
        failed[..failed.len().min(5)].join("\n\n")
    );
    assert!(valid > count * 3 / 4, "{valid} of {count} cases have rules");
}

#[test]
fn filter_language_selects_what_rsyncs_does() {
    if needs_programs(&["rsync"]) {
        let (first, seeds) = (number("KSYNC_FILTER_FIRST", 0), number("KSYNC_FILTER_SEEDS", 100));
        check_all(first..first + seeds, |_| Way::Local);
    }
}

#[test]
fn filter_language_is_the_same_on_the_way_up_and_down() {
    if needs_programs(&["rsync"]) {
        let (first, seeds) = (number("KSYNC_FILTER_FIRST", 0), number("KSYNC_FILTER_FAR_SEEDS", 24));
        check_all(first..first + seeds, |seed| if seed % 4 < 2 { Way::Up } else { Way::Down });
    }
}
