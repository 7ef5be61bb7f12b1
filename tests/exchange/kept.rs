//! The kept agent: the real program serves one run after another, as fresh agents would.

mod agent;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use ksync::wire::hello::{Consent, Options};
use ksync::wire::keep;
use ksync::wire::message::AbortKind;
use tempfile::TempDir;

use crate::skip::{needs_programs, needs_superuser};
use crate::world::{differences, noise, set_mode, set_time, write};
use agent::{Kept, Order, Program, Ran};

/// Two trees.
struct Case {
    folder: TempDir,
    program: Program,
}

impl Case {
    /// Two trees in memory, and files in the source: enough for the agent to keep them.
    fn large() -> Self {
        let case = Self::small();
        for number in 0..1200_u32 {
            let path = case.source().join(format!("d{}/{number}", number % 30));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, number.to_string()).unwrap();
        }
        case
    }

    fn small() -> Self {
        let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let case = Self { folder, program: Program::new() };
        fs::create_dir(case.source()).unwrap();
        for name in ["a", "b/c", "b/d/e"] {
            write(&case.source().join(name), name.as_bytes());
        }
        case
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.at("source")
    }

    fn target(&self) -> PathBuf {
        self.at("target")
    }

    fn run(&self, kept: &Kept, is_upload: bool, options: &Options) -> Ran {
        self.with(is_upload, options, |order| kept.run(order))
    }

    fn with<T>(&self, is_upload: bool, options: &Options, work: impl FnOnce(&Order<'_>) -> T) -> T {
        let [source, target, baselines] = ["source", "target", "baselines"].map(|name| self.at(name));
        let options = options.clone();
        work(&Order { source: &source, target: &target, is_upload, options, baselines: &baselines })
    }

    /// Runs an order that must succeed, and compares the trees.
    fn sync(&self, kept: &Kept, is_upload: bool) -> Ran {
        let ran = self.run(kept, is_upload, &deleting());
        assert!(ran.result.is_ok(), "{ran:?}");
        assert_eq!(differences(&self.source(), &self.target()), Vec::<String>::new());
        ran
    }
}

fn deleting() -> Options {
    Options { delete: true, consent: Consent { yes: true, ..Consent::default() }, ..Options::default() }
}

#[test]
fn repeat_scans_nothing_and_then_what_was_touched() {
    for is_upload in [true, false] {
        let case = Case::large();
        let kept = case.program.keep();
        case.sync(&kept, is_upload);
        kept.wait_for_log("keep ok=true", 1);
        case.sync(&kept, is_upload);
        assert_eq!(kept.logged("scan kept=true").len(), 1);
        assert_eq!(kept.logged("touched=0").len(), 1);
        let side = if is_upload { case.target() } else { case.source() };
        fs::write(side.join("d3/new"), "touched").unwrap();
        fs::remove_file(side.join("d4/4")).unwrap();
        case.sync(&kept, is_upload);
        assert_eq!(kept.logged("scan kept=true").len(), 2);
        assert_eq!(kept.logged("touched=2").len(), 1);
        assert_eq!(kept.logged("scan kept=false why=new").len(), 1);
        assert!(kept.end());
    }
}

#[test]
fn likely_tree_is_scanned_before_its_first_run() {
    let case = Case::large();
    let kept = case.program.keep();
    let warm = case.with(false, &Options::default(), |order| keep::encode_warm(&order.request()));
    kept.write(&warm.unwrap());
    kept.wait_for_log("keep ok=true", 1);
    assert!(case.run(&kept, false, &Options::default()).result.is_ok());
    assert_eq!(kept.logged("scan kept=true").len(), 1);
    assert!(kept.logged("scan kept=false").is_empty());
}

#[test]
fn cut_runs_leave_neither_locks_nor_threads_nor_descriptors() {
    let case = Case::small();
    write(&case.source().join("large"), &noise(1, 300_000));
    let kept = case.program.keep();
    kept.ping();
    let held = kept.held();
    let written: Arc<Mutex<Vec<u8>>> = Arc::default();
    let ran = case.with(true, &deleting(), |order| kept.run_writing(order, &written));
    assert!(ran.result.is_ok(), "{ran:?}");
    let stream = written.lock().unwrap().clone();
    let mut cuts: Vec<usize> = (0..stream.len().min(1500)).step_by(40).collect();
    cuts.extend((1500..stream.len()).step_by(40_000));
    for cut in cuts {
        fs::remove_dir_all(case.target()).unwrap();
        if cut > 0 {
            kept.run_cut(&stream[..cut]);
        }
        kept.run_cut(&noise(cut as u64, 100));
        kept.ping();
        case.sync(&kept, true);
        assert!(!case.target().join(".ksync").exists());
    }
    kept.wait_until(|| kept.held() == held, "a thread or a descriptor stays");
    assert!(kept.end());
}

#[test]
fn refused_run_does_not_end_the_agent() {
    let case = Case::small();
    let kept = case.program.keep();
    case.sync(&kept, true);
    let (source, missing) = (case.source(), case.folder.path().join("missing"));
    let (too, options) = (missing.join("too"), Options::default());
    let order = |source, is_upload| Order {
        source,
        target: &missing,
        is_upload,
        options: options.clone(),
        baselines: &too,
    };
    let ran = kept.run(&order(&too, false));
    assert_eq!(ran.facts(), case.program.run_fresh(&order(&too, false)).facts());
    assert_eq!(ran.result.unwrap_err().kind, AbortKind::Selection);
    fs::write(&missing, "in the way").unwrap();
    let ran = kept.run(&order(&source, true));
    assert_eq!(ran.facts(), case.program.run_fresh(&order(&source, true)).facts());
    assert!(ran.result.is_err());
    case.sync(&kept, true);
    assert!(kept.end());
}

#[test]
fn agent_ends_with_its_channel_also_in_a_run() {
    let case = Case::small();
    let kept = case.program.keep();
    kept.write(&keep::encode_data(b"\0KSY"));
    kept.end();
    let kept = case.program.keep();
    kept.ping();
    kept.write(b"no record");
    assert!(!kept.end(), "a channel without records is a failure");
}

/// A generator of the same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Changes something below a root. Some changes fail, since there is nothing to change.
    fn change(&mut self, root: &Path) {
        let mut path = || {
            let directory = root.join(format!("d{}", self.below(8)));
            match self.below(3) {
                0 => directory.join((self.below(40) * 30).to_string()),
                1 => directory.join(format!("n{}", self.below(4))),
                _ => directory.join(format!("s/n{}", self.below(4))),
            }
        };
        let (one, other) = (path(), path());
        let _ = match self.below(9) {
            0..=2 if !one.is_dir() => {
                write(&one, &noise(self.below(1000), self.below(3000) as usize));
                Ok(())
            }
            3 => fs::rename(&one, &other),
            4 => fs::remove_file(&one),
            5 => fs::remove_dir_all(one.parent().unwrap().join("s")),
            6 => std::os::unix::fs::symlink("elsewhere", &one),
            7 if one.is_file() => {
                set_mode(&one, 0o600 + self.below(0o100) as u32);
                Ok(())
            }
            8 if one.is_file() => {
                set_time(&one, 1_000_000_000 + self.below(1000) as i64, 5);
                Ok(())
            }
            _ => fs::create_dir_all(&one),
        };
    }

    fn options(&mut self) -> Options {
        let options = Options { list_changes: true, ..deleting() };
        let rule = |pattern: &[u8]| ksync_rule(pattern);
        match self.below(8) {
            0 => Options { delete: false, ..options },
            1 => Options { checksum: true, ..options },
            2 => Options { rules: vec![rule(b"n1")], ..options },
            3 => Options { rules: vec![rule(b"s/")], ..options },
            4 => Options { consent: Consent { max_delete: Some(1), ..Consent::default() }, ..options },
            _ => options,
        }
    }
}

fn ksync_rule(pattern: &[u8]) -> ksync::tree::filter::Rule {
    ksync::tree::filter::Rule::new(false, pattern.to_vec())
}

#[test]
fn kept_agent_plans_and_does_what_a_fresh_one_would() {
    for (seed, is_upload) in [(1, true), (2, false)] {
        let case = Case::large();
        let kept = case.program.keep();
        case.sync(&kept, is_upload);
        kept.wait_for_log("keep ok=true", 1);
        let mut random = Random(seed);
        for step in 0..30 {
            let changes = random.below(5);
            (0..changes).for_each(|_| random.change(&case.source()));
            (0..random.below(3)).for_each(|_| random.change(&case.target()));
            let options = random.options();
            let plan = Options { dry_run: true, ..options.clone() };
            let fresh = case.with(is_upload, &plan, |order| case.program.run_fresh(order));
            let planned = case.run(&kept, is_upload, &plan);
            assert_eq!(planned.facts(), fresh.facts(), "step {step}");
            let done = case.run(&kept, is_upload, &options);
            if done.result.is_err() {
                continue;
            }
            let again = case.with(is_upload, &options, |order| case.program.run_fresh(order));
            let tally = again.result.unwrap().tally;
            let changed = (tally.created, tally.updated, tally.adjusted, tally.deleted, tally.files);
            assert_eq!(changed, (0, 0, 0, 0, 0), "step {step}: {done:?}");
            if options.delete && options.rules.is_empty() && options.consent.yes {
                assert_eq!(differences(&case.source(), &case.target()), Vec::<String>::new(), "step {step}");
            }
        }
        let kept_scans = kept.logged("scan kept=true").len();
        assert!(kept_scans > 15, "{kept_scans} of 60 scans were kept: {:?}", kept.logged("kept=false"));
    }
}

#[test]
fn file_that_got_another_name_since_it_was_listed_is_replaced() {
    let case = Case::large();
    let kept = case.program.keep();
    case.sync(&kept, true);
    kept.wait_for_log("keep ok=true", 1);
    fs::hard_link(case.target().join("d1/1"), case.folder.path().join("backup")).unwrap();
    write(&case.source().join("d1/1"), b"new");
    case.sync(&kept, true);
    assert_eq!(kept.logged("scan kept=true").len(), 1);
    assert_eq!(fs::read(case.folder.path().join("backup")).unwrap(), b"1");
}

#[test]
fn mount_over_a_directory_of_a_kept_tree_is_noticed() {
    if !needs_superuser() || !needs_programs(&["unshare", "nsenter", "mount"]) {
        return;
    }
    let case = Case::large();
    let kept = Kept::of(Command::new("unshare").arg("-m").arg(case.program.path()).arg(keep::ARGUMENT));
    case.sync(&kept, true);
    kept.wait_for_log("keep ok=true", 1);
    // In the namespace of the agent alone.
    let mut mount = Command::new("nsenter");
    mount.args(["-m", "-t", &kept.id().to_string(), "mount", "-t", "tmpfs", "none"]);
    assert!(mount.arg(case.target().join("d7")).status().unwrap().success());
    let ran = case.run(&kept, true, &Options::default());
    assert_eq!(kept.logged("scan kept=false why=mount-or-root").len(), 1);
    assert_eq!(ran.result.unwrap().tally.created, 40);
    assert!(kept.end());
}
