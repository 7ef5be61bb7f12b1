use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::*;
use crate::disk::scan::Away;
use crate::disk::testing::skip::needs;
use crate::tree::entry::Time;
use crate::tree::filter::Rule;
use crate::tree::links::FollowedLinks;
use crate::tree::rule::bits;

/// A tree, what is kept of it, and a clock.
struct Case {
    folder: TempDir,
    kept: Arc<KeptTrees>,
    seconds: Arc<AtomicU64>,
    view: View,
}

type Told = Result<usize, Doubt>;

impl Case {
    fn new(role: Role, options: &Options) -> Self {
        Self::watched(usize::MAX, role, options)
    }

    /// A tree of more directories than inotify may watch; `None` if fanotify is not permitted.
    fn too_large_for_inotify(role: Role, options: &Options) -> Option<Self> {
        let case = Self::watched(0, role, options);
        let root = Root::open(&case.at("")).unwrap();
        let blindness = Changes::begin_on_filesystem(root.descriptor(), true).blindness();
        needs(blindness.is_none(), format!("fanotify: {blindness:?}")).then_some(case)
    }

    fn watched(directories_max: usize, role: Role, options: &Options) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        let (seconds, begin) = (Arc::<AtomicU64>::default(), Instant::now());
        let clock = Arc::clone(&seconds);
        let now = move || begin + Duration::from_secs(clock.load(Ordering::Relaxed));
        let kept = KeptTrees::with_watches(directories_max, 0, now);
        let case = Self { folder, kept, seconds, view: View::new(role, options) };
        for directory in ["a/b/c", "a.b", "d/e", "skip/x"] {
            fs::create_dir_all(case.at(directory)).unwrap();
        }
        for file in ["a/b/c/f", "a/b/f", "a/f", "a.b/f", "d/e/f", "d/f", "f", "skip/f", "d/skip"] {
            fs::write(case.at(file), file).unwrap();
        }
        symlink("../outside", case.at("d/link")).unwrap();
        case
    }

    /// A destination that is kept.
    fn destination() -> Self {
        Self::new(Role::Receiver, &Options::default()).begun()
    }

    /// A source that is kept.
    fn source() -> Self {
        Self::new(Role::Sender, &Options::default()).begun()
    }

    fn begun(self) -> Self {
        assert_eq!(self.list(), Err("new"));
        self.kept.attend();
        assert_eq!(self.list(), Ok(0));
        self
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path)
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.folder.path().join("outside").join(path)
    }

    /// Lists the tree, compares the result with a scan, and tells how it was made.
    fn list(&self) -> Told {
        self.list_as(&self.view)
    }

    fn list_as(&self, view: &View) -> Told {
        let root = Root::open(&self.at("")).unwrap();
        let (mut filter, mut plain_filter) = (view.filter(), view.filter());
        let (scanned, told) = self.kept.list_telling(&root, view.clone(), &mut filter, &mut Away).unwrap();
        let plain = scan(&root, &Subject::Whole, &view.options, Some(&mut plain_filter), &mut Away).unwrap();
        assert_eq!(differences(&scanned, &plain), [], "{told:?}");
        assert_eq!(scanned.skipped.excluded, plain.skipped.excluded, "{told:?}");
        let sorted = |filter: &Filter| {
            let files = filter.files().iter().map(|file| (file.directory.clone(), file.text.clone()));
            files.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(sorted(&filter), sorted(&plain_filter), "{told:?}");
        assert_eq!(told.is_ok(), scanned.is_kept);
        told
    }

    /// Changes the tree, lists it, and lists it once more.
    fn after(&self, change: impl FnOnce()) -> Told {
        change();
        let told = self.list();
        if told.is_err() {
            self.kept.attend();
        }
        assert_eq!(self.list(), Ok(0), "{told:?}");
        told
    }
}

/// All that a run takes from a scan, by path.
fn facts(scanned: &Scanned) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut names = BTreeMap::<(u64, u64), Vec<TreePath>>::new();
    for (at, entry) in scanned.manifest.iter() {
        let mut identity = scanned.identities.get(&scanned.manifest, at).unwrap();
        names.entry((identity.dev, identity.ino)).or_default().push(entry.path.to_path());
        if !entry.is_directory() {
            // A further name outside shows only here, and nothing tells.
            identity.ctime = Time::new(0, 0).unwrap();
        }
        facts.insert(entry.path.to_string(), format!("{entry:?} {identity:?}"));
    }
    let (mut sparse, mut linked) = (scanned.sparse.clone(), scanned.linked.clone());
    sparse.files.sort();
    linked.sort();
    // Nothing tells of a further name outside.
    linked.retain(|path| names.values().any(|names| names.len() > 1 && names.contains(path)));
    let Scanned { doubts, boundaries, inaccessible, unclear, .. } = scanned;
    let problems: Vec<String> = scanned.problems.iter().map(ToString::to_string).collect();
    let rest = format!("{sparse:?} {linked:?} {doubts:?} {boundaries:?} {inaccessible:?}");
    facts.insert("/".to_owned(), format!("{rest} {unclear:?} {problems:?}"));
    facts
}

/// The facts that differ.
fn differences(one: &Scanned, other: &Scanned) -> Vec<(String, Option<String>, Option<String>)> {
    let (one, other) = (facts(one), facts(other));
    let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let differ = names.into_iter().filter(|name| one.get(*name) != other.get(*name));
    differ.map(|name| (name.clone(), one.get(name).cloned(), other.get(name).cloned())).collect()
}

#[test]
fn touched_paths_are_scanned_and_no_others() {
    let roles = [Role::Sender, Role::Receiver];
    let large = roles.map(|role| Case::too_large_for_inotify(role, &Options::default()).map(Case::begun));
    for case in [Case::source(), Case::destination()].into_iter().chain(large.into_iter().flatten()) {
        let at = |path: &str| case.at(path);
        assert_eq!(case.after(|| fs::write(at("a/b/f"), "other").unwrap()), Ok(1));
        assert_eq!(
            case.after(|| File::open(at("f")).unwrap().set_modified(SystemTime::now()).unwrap()),
            Ok(1)
        );
        assert_eq!(
            case.after(|| fs::set_permissions(at("f"), fs::Permissions::from_mode(0o600)).unwrap()),
            Ok(1)
        );
        assert_eq!(case.after(|| fs::create_dir_all(at("new/x/y")).unwrap()), Ok(1));
        assert_eq!(
            case.after(|| fs::write(at("new/x/y/f"), "").unwrap()),
            Ok(1),
            "it is watched from now on"
        );
        assert_eq!(case.after(|| fs::rename(at("new/x"), at("a/x")).unwrap()), Ok(2));
        assert_eq!(case.after(|| fs::write(at("a/x/y/f"), "moved").unwrap()), Ok(1));
        assert_eq!(case.after(|| fs::rename(at("a/x"), case.outside("x")).unwrap()), Ok(1));
        assert_eq!(case.after(|| fs::write(case.outside("x/y/f"), "gone").unwrap()), Ok(0));
        assert_eq!(case.after(|| fs::rename(case.outside("x"), at("back")).unwrap()), Ok(1));
        assert!(case.after(|| fs::remove_dir_all(at("back")).unwrap()).is_ok());
        assert_eq!(case.after(|| fs::remove_file(at("d/link")).unwrap()), Ok(1));
        assert_eq!(case.after(|| symlink("f", at("d/link")).unwrap()), Ok(1));
        assert_eq!(
            case.after(|| fs::set_permissions(at("d"), fs::Permissions::from_mode(0o711)).unwrap()),
            Ok(1)
        );
        let exchange = || renameat_with(CWD, at("a/b"), CWD, at("d/e"), RenameFlags::EXCHANGE).unwrap();
        assert_eq!(case.after(exchange), Ok(2));
        let replaced = || {
            fs::remove_dir_all(at("a.b")).unwrap();
            symlink("a", at("a.b")).unwrap();
        };
        assert!(case.after(replaced).is_ok());
    }
}

#[test]
fn file_of_several_names_is_looked_at_each_time() {
    let case = Case::new(Role::Receiver, &Options::default());
    fs::hard_link(case.at("a/f"), case.outside("f")).unwrap();
    let case = case.begun();
    assert_eq!(case.after(|| fs::write(case.outside("f"), "through its other name").unwrap()), Ok(0));
    assert_eq!(case.after(|| fs::remove_file(case.outside("f")).unwrap()), Ok(0));
}

#[test]
fn write_through_a_mapping_shows_when_its_file_is_closed() {
    let case = Case::source();
    // A shared mapping keeps its file open. So a handle stands for it here.
    let file = File::options().write(true).open(case.at("f")).unwrap();
    assert_eq!(case.after(|| drop(file)), Ok(1));
}

#[test]
fn each_doubt_leads_to_a_scan() {
    let case = Case::source();
    case.seconds.store(AGE_MAX.as_secs(), Ordering::Relaxed);
    assert_eq!(case.after(|| {}), Err("age"));
    let again = || {
        fs::rename(case.at(""), case.folder.path().join("old")).unwrap();
        fs::create_dir(case.at("")).unwrap();
        fs::write(case.at("f"), "another directory").unwrap();
    };
    assert_eq!(case.after(again), Err("new"), "another directory is at the path");
    let back = || {
        fs::remove_dir_all(case.at("")).unwrap();
        fs::rename(case.folder.path().join("old"), case.at("")).unwrap();
    };
    assert_eq!(case.after(back), Err("new"));
    let moved = || {
        fs::rename(case.at(""), case.folder.path().join("old")).unwrap();
        fs::rename(case.folder.path().join("old"), case.at("")).unwrap();
    };
    assert_eq!(case.after(moved), Err("everything-touched"));
    assert_eq!(
        case.after(|| fs::set_permissions(case.at(""), fs::Permissions::from_mode(0o750)).unwrap()),
        Err("mount-or-root")
    );
    assert_eq!(case.after(|| fs::write(case.at("d/.ksyncignore"), "skip\n").unwrap()), Err("rules-touched"));
    let moved_in = || {
        fs::create_dir(case.outside("in")).unwrap();
        fs::write(case.outside("in/.ksyncignore"), "f\n").unwrap();
        fs::rename(case.outside("in"), case.at("in")).unwrap();
    };
    assert_eq!(case.after(moved_in), Err("rules-touched"));
    assert_eq!(case.after(|| fs::rename(case.at("in"), case.outside("out")).unwrap()), Err("rules-touched"));
}

#[test]
fn root_moved_by_its_parent_is_the_same_tree_elsewhere() {
    let case = Case::destination();
    let (above, moved) = (case.folder.path(), case.folder.path().with_extension("moved"));
    fs::rename(above, &moved).unwrap();
    let root = Root::open(&moved.join("root")).unwrap();
    let told =
        case.kept.list_telling(&root, case.view.clone(), &mut case.view.filter(), &mut Away).unwrap().1;
    fs::rename(&moved, above).unwrap();
    assert_eq!(told, Ok(0));
    assert_eq!(case.list(), Ok(0));
}

#[test]
fn tree_with_special_files_is_kept() {
    let pipe = |path| rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let case = Case::new(Role::Sender, &Options::default());
    pipe(case.at("pipe"));
    let case = case.begun();
    assert_eq!(case.after(|| pipe(case.at("d/pipe"))), Ok(1));
}

#[test]
fn tree_with_followed_links_is_not_kept() {
    let options = Options { follows: FollowedLinks::ALL, ..Options::default() };
    let case = Case::new(Role::Sender, &options);
    assert_eq!(case.list(), Err("new"));
    case.kept.attend();
    assert_eq!(case.list(), Err("new"));
}

#[test]
fn lost_events_lead_to_a_scan() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 100_000 {
        return;
    }
    let case = Case::source();
    let file = File::options().write(true).open(case.at("f")).unwrap();
    let other = File::options().write(true).open(case.at("a/f")).unwrap();
    // Equal events in a row would count once.
    for _ in 0..=limit / 2 {
        file.write_at(b"1", 0).unwrap();
        other.write_at(b"1", 0).unwrap();
    }
    fs::write(case.at("new"), "").unwrap();
    assert_eq!(case.list(), Err("everything-touched"));
}

#[test]
fn other_rules_or_options_have_a_scan_of_their_own() {
    let case = Case::source();
    let without = Options { rules: vec![Rule::new(false, b"skip".to_vec())], ..Options::default() };
    let view = View::new(Role::Sender, &without);
    assert_eq!(case.list_as(&view), Err("new"));
    case.kept.attend();
    assert_eq!((case.list_as(&view), case.list()), (Ok(0), Ok(0)));
    fs::write(case.at("skip/f"), "excluded and not watched").unwrap();
    fs::write(case.at("a/skip"), "excluded").unwrap();
    assert_eq!((case.list_as(&view), case.list()), (Ok(1), Ok(2)));
    let checksum = View::new(Role::Sender, &Options { checksum: true, ..Options::default() });
    assert_eq!(case.list_as(&checksum), Err("new"));
    case.kept.attend();
    assert_eq!(case.list_as(&checksum), Err("new"), "contents are read each time");
    // A third tree takes the place of the one that was used least.
    let other = View::new(Role::Receiver, &without);
    assert_eq!(case.list_as(&other), Err("new"));
    case.kept.attend();
    assert_eq!((case.list_as(&other), case.list(), case.list_as(&view)), (Ok(0), Ok(0), Err("new")));
}

#[test]
fn trees_with_merge_files_are_scanned_each_time() {
    let case = Case::source();
    let merge = Rule { bits: bits::DIRECTORY_MERGE, pattern: b".rules".to_vec() };
    let view = View::new(Role::Sender, &Options { rules: vec![merge], ..Options::default() });
    for text in ["- a\n", "- skip\n"] {
        fs::write(case.at("a/.rules"), text).unwrap();
        assert_eq!(case.list_as(&view), Err("merge-files"));
        case.kept.attend();
    }
}

#[test]
fn rules_about_absolute_paths_hold_for_kept_trees_too() {
    let case = Case::source();
    let pattern = case.at("a/f").into_os_string().into_encoded_bytes();
    let rule = Rule { bits: bits::ABSOLUTE, pattern };
    let view = View::new(Role::Sender, &Options { rules: vec![rule], ..Options::default() });
    assert_eq!(case.list_as(&view), Err("new"));
    case.kept.attend();
    let root = Root::open(&case.at("")).unwrap();
    let mut filter = view.filter();
    let listed = case.kept.list_telling(&root, view.clone(), &mut filter, &mut Away).unwrap();
    assert_eq!(listed.1, Ok(0));
    let excludes = |path: &str| filter.excludes(&TreePath::new(path.as_bytes()).unwrap(), false);
    assert!(excludes("a/f") && !excludes("f"));
}

#[test]
fn likely_tree_is_kept_before_its_first_run() {
    let case = Case::new(Role::Sender, &Options::default());
    case.kept.want(case.at(""), case.view.clone());
    case.kept.attend();
    assert_eq!(case.list(), Ok(0));
}

#[test]
fn destination_that_lost_writes_is_scanned() {
    use crate::disk::writable::WritableRoot;
    let case = Case::new(Role::Receiver, &Options::default());
    let root = WritableRoot::open(&case.at("")).unwrap();
    if !root.outlives_power() {
        return;
    }
    let case = case.begun();
    root.begin_writing(true, true);
    root.expect_files().unwrap();
    assert_eq!(case.list(), Ok(0), "a marker of this mount raises no doubt");
    root.mark_lost();
    assert_eq!(case.list(), Err("doubted-files"));
}

#[test]
fn filesystem_of_a_large_tree_may_be_busy_elsewhere() {
    let Some(case) = Case::too_large_for_inotify(Role::Sender, &Options::default()) else { return };
    let case = case.begun();
    // Twice the events that the kernel's queue holds, none of them equal to the one before.
    let names: Vec<PathBuf> = (0..40).map(|number| case.outside(&number.to_string())).collect();
    for _ in 0..400 {
        names.iter().for_each(|name| fs::write(name, "a log").unwrap());
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(case.after(|| fs::write(case.at("a/b/c/f"), "other").unwrap()), Ok(1));
}

#[test]
fn directory_renamed_in_a_large_tree_is_known_by_its_new_path() {
    let Some(case) = Case::too_large_for_inotify(Role::Receiver, &Options::default()) else { return };
    let case = case.begun();
    assert!(case.after(|| fs::rename(case.at("a"), case.at("d/z")).unwrap()).is_ok());
    assert_eq!(case.after(|| fs::write(case.at("d/z/b/c/f"), "renamed").unwrap()), Ok(1));
    let again = || {
        fs::create_dir(case.at("a")).unwrap();
        fs::write(case.at("a/f"), "new").unwrap();
    };
    assert!(case.after(again).is_ok());
    assert_eq!(case.after(|| fs::write(case.at("a/f"), "newer").unwrap()), Ok(1));
}

/// A generator of the same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn path(&mut self, case: &Case) -> PathBuf {
        const NAMES: [&str; 5] = ["a", "b", "A", "a.b", "skip"];
        let depth = 1 + self.below(4);
        (0..depth).fold(case.at(""), |path, _| path.join(NAMES[self.below(NAMES.len() as u64) as usize]))
    }

    /// Changes something. Most changes fail now and then, since there is nothing to change.
    fn change(&mut self, case: &Case) {
        let (one, other) = (self.path(case), self.path(case));
        let _ = match self.below(16) {
            0..=2 => fs::write(&one, vec![7; self.below(20_000) as usize]),
            3 | 4 => fs::create_dir_all(&one),
            5 => fs::remove_file(&one),
            6 => fs::remove_dir_all(&one),
            7 | 8 => fs::rename(&one, &other),
            9 => fs::rename(&one, case.outside("x")),
            10 => fs::rename(case.outside("x"), &one),
            11 => symlink("f", &one),
            12 => fs::set_permissions(&one, fs::Permissions::from_mode(0o700 + self.below(8) as u32)),
            13 => File::open(&one).and_then(|file| file.set_modified(SystemTime::now())),
            14 => fs::hard_link(&one, &other),
            _ => renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).map_err(Into::into),
        };
    }
}

#[test]
fn kept_scan_equals_a_real_one_after_any_changes() {
    let rules = vec![Rule::new(false, b"skip".to_vec())];
    let (mut kept, mut scanned) = (0, 0);
    let seeds = std::env::var("KSYNC_KEPT_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(16) {
        let role = if seed % 2 == 0 { Role::Sender } else { Role::Receiver };
        let rules = if seed % 4 < 2 { rules.clone() } else { Vec::new() };
        let options = Options { rules, ..Options::default() };
        let large = (seed % 8 < 4).then(|| Case::too_large_for_inotify(role, &options)).flatten();
        let case = large.unwrap_or_else(|| Case::new(role, &options)).begun();
        // Real trees have more entries than are touched between two runs.
        for number in 0..100 {
            fs::write(case.at("d/e").join(number.to_string()), "").unwrap();
        }
        let mut random = Random(seed);
        for _ in 0..40 {
            for _ in 0..random.below(6) {
                random.change(&case);
            }
            match case.list() {
                Ok(_) => kept += 1,
                Err(_) => scanned += 1,
            }
            if random.below(2) == 0 {
                case.kept.attend();
            }
        }
    }
    assert!(kept > 2 * scanned, "kept {kept}, scanned {scanned}");
}
