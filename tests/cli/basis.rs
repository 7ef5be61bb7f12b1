//! `--compare-dest`, `--copy-dest`, `--link-dest`: beside rsync on the same trees, and where rsync
//! has no answer.
//!
//! Meant differences from rsync:
//! - ksync sets the times of links that it makes. rsync does so too, but not with these options.
//! - ksync lists a DEST that it makes; rsync compares it with the basis directory.
//! - `--compare-dest` removes nothing from DEST. rsync removes a file, or what is in its place, if
//!   the directory has that file.
//! - With `--link-dest`, a file of DEST that is right already is not made a link.
//! - A file in the place of a directory of DEST is not looked for in the basis directories.
//! - ksync follows no link inside a basis directory; rsync follows those to directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::plan::{Rng, grow};
use crate::world::noise;
use crate::world::skip::needs_programs;
use crate::world::{Run, World};

const CASES: u64 = 150;
const NAMES: &[&str] = &["a", "a-b", "b", "c.x", "d"];
const PURPOSES: [&str; 3] = ["compare", "copy", "link"];

/// The files and links of a tree that are further names of entries in basis directories.
fn shared(world: &World, tree: &str, bases: &[String]) -> BTreeMap<PathBuf, PathBuf> {
    let inodes = |tree: &Path| -> Vec<(u64, PathBuf)> {
        let entries = walkdir::WalkDir::new(tree).into_iter().filter_map(Result::ok);
        let entries = entries.filter(|entry| !entry.file_type().is_dir());
        entries.map(|entry| (entry.metadata().unwrap().ino(), entry.into_path())).collect()
    };
    let known: BTreeMap<u64, PathBuf> = bases.iter().flat_map(|basis| inodes(&world.path(basis))).collect();
    let root = world.path(tree);
    let pairs = inodes(&root).into_iter();
    let pairs = pairs.filter_map(|(inode, path)| Some((path, known.get(&inode)?.clone())));
    pairs.map(|(path, basis)| (path.strip_prefix(&root).unwrap().to_owned(), basis)).collect()
}

/// The itemized lines but that of DEST itself, in order.
fn lines(run: &Run) -> Vec<String> {
    let is_line = |line: &&str| {
        line.starts_with(['<', '>', 'c', 'h', '.', '*'])
            && line.as_bytes().get(11) == Some(&b' ')
            && !line.ends_with(" ./")
    };
    let mut lines: Vec<String> = run.stdout.lines().filter(is_line).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Compares one case. `false` if rsync follows a link in it, or a run is not complete.
fn check(world: &World, seed: u64) -> bool {
    let name = |part: &str| format!("{seed}/{part}");
    let mut rng = Rng::new(seed);
    // rsync compares whole seconds.
    grow(&mut rng, NAMES, world.tree(name("src")), "", 2).time("", 2_000_000, 0);
    let bases: Vec<String> = (0..=rng.below(2)).map(|n| name(&format!("ref{n}"))).collect();
    for basis in &bases {
        // Some are like SOURCE in all, and some in nothing.
        let mut own = if rng.below(2) == 0 { Rng::new(seed) } else { Rng::new(rng.below(u64::MAX)) };
        grow(&mut own, NAMES, world.tree(basis), "", 2).time("", 1_000_000, 0);
    }
    let purpose = PURPOSES[seed as usize % 3];
    if rng.below(3) == 0 && purpose != "compare" {
        for dest in ["ours", "theirs"] {
            let tree = world.tree(name(dest)).link("a", "b").file("b", "dest").file("c.x", "dest");
            tree.time("b", 1_000_000, 0).time("c.x", 1_000_000, 0).time("", 1_000_000, 0);
        }
    }
    let leads_to_directory = |basis: &String| {
        let entries = walkdir::WalkDir::new(world.path(basis)).into_iter().filter_map(Result::ok);
        entries.into_iter().any(|entry| entry.path_is_symlink() && entry.path().is_dir())
    };
    if bases.iter().any(leads_to_directory) {
        return false;
    }
    let mut options = vec!["-ai".to_owned()];
    options.extend(bases.iter().map(|basis| {
        let basis = basis.rsplit_once('/').map_or("", |(_, basis)| basis);
        format!("--{purpose}-dest=../{basis}")
    }));
    options.extend((rng.below(2) == 0).then(|| "--delete".to_owned()));
    options.extend((rng.below(4) == 0).then(|| "--checksum".to_owned()));
    let mut rsync = world.command("rsync");
    rsync.args(&options).arg(name("src/")).arg(name("theirs/"));
    let mut ksync = world.ksync(&options);
    ksync.arg("--yes").arg(name("src")).arg(name("ours"));
    let before = world.snapshot(name(""));
    let (expected, ran) = (Run::of(rsync), Run::of(ksync));
    if !expected.status.success() || ran.status.code() == Some(23) {
        // A directory stands in a file's place: rsync and ksync both leave it.
        return false;
    }
    let what = format!(
        "seed {seed} {options:?}\n{}{}\nrsync:\n{}\n{before:#?}",
        ran.stdout, ran.stderr, expected.stdout
    );
    assert!(ran.status.success(), "{what}");
    assert_eq!(lines(&ran), lines(&expected), "{what}");
    let [ours, theirs] = ["ours", "theirs"].map(|dest| {
        let mut seen = world.snapshot(name(dest));
        seen.values_mut().filter(|seen| seen.is_link()).for_each(|seen| seen.forget_time());
        (seen, shared(world, &name(dest), &bases))
    });
    assert_eq!(ours, theirs, "{what}");
    let mut again = world.ksync(&options);
    let again = Run::of({
        again.arg("--yes").arg(name("src")).arg(name("ours"));
        again
    });
    assert!(again.summary().starts_with("nothing to do"), "{what}\nagain:\n{}", again.stdout);
    fs::remove_dir_all(world.path(seed.to_string())).unwrap();
    true
}

#[test]
fn basis_directories_end_as_rsync_leaves_them() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let compared = (0..CASES).filter(|&seed| check(&world, seed)).count() as u64;
    assert!(compared * 2 > CASES, "only {compared} of {CASES} were compared");
}

/// SOURCE, and a basis directory with one equal, one edited and one other file.
fn plant(world: &World) -> Vec<u8> {
    let mut large = noise(1, 3 << 20);
    let tree = |name: &str, large: &[u8]| {
        let tree = world.tree(name).file("d/same", "same").file("large", large).file("mode", "mode");
        tree.time("d/same", 1_000_000, 0).time("mode", 1_000_000, 0).time("d", 1_000_000, 0)
    };
    tree("ref", &large).mode("mode", 0o600).time("large", 1_000_000, 0);
    large[1 << 20] ^= 1;
    tree("src", &large);
    large
}

#[test]
fn edited_file_of_a_basis_directory_costs_only_its_edit() {
    for (is_up, is_down) in [(false, false), (true, false), (false, true)] {
        for purpose in PURPOSES {
            let world = World::new();
            plant(&world);
            let source = if is_down { world.far("src") } else { "src".into() };
            let dest = if is_up { world.far("dst") } else { "dst".into() };
            let option = format!("--{purpose}-dest=../ref");
            let stats = world.sync_with(&[&*option], source, dest);
            assert!(stats.sent_bytes < 1 << 20, "{purpose} {is_up} sent {}", stats.sent_bytes);
            let is_there = |name: &str| world.path("dst").join(name).exists();
            assert_eq!(is_there("d/same"), purpose != "compare");
            assert!(is_there("d") && is_there("mode"));
            assert_eq!(
                fs::read(world.path("dst/large")).unwrap(),
                fs::read(world.path("src/large")).unwrap()
            );
            let links = fs::metadata(world.path("ref/d/same")).unwrap().nlink();
            assert_eq!(links, if purpose == "link" { 2 } else { 1 });
            assert_eq!(fs::metadata(world.path("ref/mode")).unwrap().mode() & 0o777, 0o600);
        }
    }
}

#[test]
fn edit_of_a_linked_file_leaves_the_basis_directory_alone() {
    let world = World::new();
    plant(&world);
    world.run(["--link-dest=../ref", "src", "dst"]).ok();
    world.tree("src").file("d/same", "edited").mode("d/same", 0o600);
    world.run(["--link-dest=../ref", "src", "dst"]).ok();
    assert_eq!(fs::read_to_string(world.path("dst/d/same")).unwrap(), "edited");
    assert_eq!(fs::read_to_string(world.path("ref/d/same")).unwrap(), "same");
    assert_eq!(fs::metadata(world.path("ref/d/same")).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn links_inside_a_basis_directory_are_not_followed() {
    for is_up in [false, true] {
        for purpose in PURPOSES {
            let world = World::new();
            world.tree("src").file("d/f", "secret").time("d/f", 1_000_000, 0);
            world.tree("outside").file("f", "secret").time("f", 1_000_000, 0);
            world.tree("ref").dir("x");
            symlink("../outside", world.path("ref/d")).unwrap();
            let dest = if is_up { world.far("dst") } else { "dst".into() };
            let option = format!("--{purpose}-dest=../ref");
            world.run([option.as_ref(), "src".as_ref(), &*dest]).ok();
            world.assert_same("src/d", "dst/d");
            assert_eq!(fs::metadata(world.path("outside/f")).unwrap().nlink(), 1);
        }
    }
}

#[test]
fn missing_basis_directory_is_named_and_passed_over() {
    let world = World::new();
    plant(&world);
    let run = world.run(["--link-dest=../none", "--link-dest=../ref", "src", "dst"]).ok();
    assert!(run.stderr.contains("dst/../none is no directory there"), "{}", run.stderr);
    world.assert_same("src", "dst");
    assert_eq!(fs::metadata(world.path("ref/d/same")).unwrap().nlink(), 2);
}

#[test]
fn several_sources_find_themselves_in_the_basis_directory_by_name() {
    for delete in [None, Some("--delete")] {
        let world = World::new();
        for top in ["", "ref/"] {
            for name in ["one", "two"] {
                world.tree(format!("{top}{name}")).file("f", name).time("f", 1_000_000, 0);
            }
        }
        let options = ["--link-dest=../ref"].into_iter().chain(delete);
        world.run(options.chain(["one", "two", "dst"])).ok();
        for name in ["one", "two"] {
            assert_eq!(fs::metadata(world.path(format!("ref/{name}/f"))).unwrap().nlink(), 2, "{name}");
        }
    }
}

#[test]
fn single_file_finds_itself_in_the_basis_directory() {
    let world = World::new();
    for name in ["src/f", "ref/g"] {
        let (tree, name) = name.split_once('/').unwrap();
        world.tree(tree).file(name, "same").time(name, 1_000_000, 0);
    }
    world.tree("dst");
    world.run(["--link-dest=../ref", "src/f", "dst/g"]).ok();
    assert_eq!(fs::metadata(world.path("ref/g")).unwrap().nlink(), 2);
}

#[test]
fn wrong_use_of_basis_directories_is_reported() {
    let world = World::new();
    world.tree("src");
    for (options, told) in [
        (&["--link-dest=a", "--copy-dest=b"][..], "--copy-dest and --link-dest exclude each other"),
        (&["--link-dest=", "-v"], "--link-dest takes up to 20 directories"),
        (&["--watch", "--compare-dest=a"], "--watch and --compare-dest exclude each other"),
    ] {
        let run = world.run(options.iter().copied().chain(["src", "dst"])).fails(1);
        assert!(run.stderr.contains(told), "{}", run.stderr);
    }
}
