use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::*;
use crate::content::hash::{Hash, Hasher};
use crate::disk::testing::{Fixture, NOBODY, give_away, metadata, path, time};

fn staged(fixture: &Fixture, content: &[u8]) -> Staging {
    let (mut staging, _) = Staging::open(&fixture.root, &path("f")).unwrap();
    staging.keep(0).unwrap();
    staging.append(content).unwrap();
    staging
}

fn finish(fixture: &Fixture, staging: Staging, seen: Option<&Identity>) -> Result<(), DiskError> {
    staging.finish(&fixture.root, &metadata(), seen, Durability::Eventually)
}

fn seen(fixture: &Fixture) -> Option<Identity> {
    fixture.root.stat(&path("f")).unwrap().map(|stat| stat.identity)
}

fn read_back(staging: &Staging) -> Vec<u8> {
    let mut bytes = vec![0; staging.len() as usize];
    staging.read_at(&mut bytes, 0).unwrap();
    let mut hasher = Hasher::new();
    staging.read_back(0, &mut |piece| hasher.take(piece)).unwrap();
    assert_eq!(hasher.finish(), Hash::of(&bytes));
    bytes
}

#[test]
fn a_finished_file_has_its_metadata_and_leaves_nothing_staged() {
    let fixture = Fixture::new();
    finish(&fixture, staged(&fixture, b"new"), None).unwrap();
    let stat = fixture.root.stat(&path("f")).unwrap().unwrap();
    assert_eq!(fs::read(fixture.at("f")).unwrap(), b"new");
    assert_eq!((stat.mode, stat.mtime()), (0o644, time(1)));
    assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
}

#[test]
fn superusers_new_files_get_the_owner_of_the_directory() {
    let fixture = Fixture::new();
    if !give_away(&fixture.at(".")) {
        return;
    }
    let root = WritableRoot::create(&fixture.at("new/root")).unwrap();
    root.make_directory(&path("d"), 0o755).unwrap();
    root.make_symlink(&path("l"), b"d", time(1), None, None).unwrap();
    let (staging, _) = Staging::open(&root, &path("f")).unwrap();
    staging.finish(&root, &metadata(), None, Durability::Eventually).unwrap();
    for made in ["new", "new/root", "new/root/d", "new/root/l", "new/root/f"] {
        let metadata = fs::symlink_metadata(fixture.at(made)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY), "{made}");
    }
}

#[test]
fn a_staged_file_stays_invisible_until_it_is_finished() {
    let fixture = Fixture::new();
    fs::write(fixture.at("f"), "old").unwrap();
    let staging = staged(&fixture, b"new");
    assert_eq!(fs::read(fixture.at("f")).unwrap(), b"old");
    finish(&fixture, staging, seen(&fixture).as_ref()).unwrap();
    assert_eq!(fs::read(fixture.at("f")).unwrap(), b"new");
}

#[test]
fn early_write_back_releases_a_dropped_file_at_once() {
    let fixture = Fixture::new();
    fs::write(fixture.at("f"), "old").unwrap();
    let content: Vec<u8> = (0..20_u8).flat_map(|mib| vec![mib + 1; 1 << 20]).collect();
    let stage = |have| {
        let (staging, there) = Staging::open(&fixture.root, &path("f")).unwrap();
        assert_eq!(there, have);
        let mut staging = staging.replacing();
        content[have as usize..].chunks(3 << 19).for_each(|bytes| staging.append(bytes).unwrap());
        staging
    };
    // The file would be busy if a thread still had it open.
    drop(stage(0));
    let (mut staging, _) = Staging::open(&fixture.root, &path("f")).unwrap();
    staging.keep(9 << 20).unwrap();
    drop(staging);
    finish(&fixture, stage(9 << 20), seen(&fixture).as_ref()).unwrap();
    assert!(fs::read(fixture.at("f")).unwrap() == content);
}

#[test]
fn an_interrupted_staging_keeps_its_bytes_for_the_next_run() {
    let fixture = Fixture::new();
    let content: Vec<u8> = (0..300_000_u32).map(|byte| byte as u8).collect();
    drop(staged(&fixture, &content));
    let (mut staging, have) = Staging::open(&fixture.root, &path("f")).unwrap();
    assert_eq!(have, 300_000);
    assert_eq!(read_back(&staging), content);
    staging.keep(100_000).unwrap();
    staging.append(b"end").unwrap();
    finish(&fixture, staging, None).unwrap();
    assert_eq!(fs::read(fixture.at("f")).unwrap(), [&content[..100_000], b"end"].concat());
}

#[test]
fn a_destination_that_changed_since_it_was_seen_is_kept() {
    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let changes: [Change<'_>; 4] = [
        ("edited", &|file| fs::write(file, "theirs").unwrap()),
        ("removed", &|file| fs::remove_file(file).unwrap()),
        ("replaced by the like of it", &|file| {
            fs::copy(file, file.with_extension("copy")).unwrap();
            fs::rename(file.with_extension("copy"), file).unwrap();
        }),
        ("now a directory", &|file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
    ];
    for (name, change) in changes {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        let before = seen(&fixture);
        let staging = staged(&fixture, b"ours");
        change(&fixture.at("f"));
        let error = finish(&fixture, staging, before.as_ref()).unwrap_err();
        assert!(error.is_conflict(), "{name}: {error}");
        assert_ne!(fs::read(fixture.at("f")).unwrap_or_default(), b"ours", "{name}");
        assert_eq!(Staging::open(&fixture.root, &path("f")).unwrap().1, 4, "{name}: what is staged stays");
    }
}

#[test]
fn a_destination_that_appeared_is_kept() {
    let fixture = Fixture::new();
    let staging = staged(&fixture, b"ours");
    fs::write(fixture.at("f"), "theirs").unwrap();
    assert!(finish(&fixture, staging, None).unwrap_err().is_conflict());
    assert_eq!(fs::read(fixture.at("f")).unwrap(), b"theirs");
}

#[test]
fn a_part_of_another_user_is_not_accepted() {
    let fixture = Fixture::new();
    drop(staged(&fixture, b"poison"));
    if give_away(&fixture.at(".ksync").join(Staging::name(&path("f")))) {
        let (staging, have) = Staging::open(&fixture.root, &path("f")).unwrap();
        assert_eq!(have, 0);
        assert!(staging.is_empty());
    }
}

#[test]
fn a_discarded_part_is_gone() {
    let fixture = Fixture::new();
    staged(&fixture, b"half").discard().unwrap();
    assert_eq!(Staging::open(&fixture.root, &path("f")).unwrap().1, 0);
}

#[test]
fn long_runs_of_zeros_take_no_space() {
    let fixture = Fixture::new();
    let mut staging = staged(&fixture, b"start");
    for _ in 0..64 {
        staging.append(&[0; 256 * 1024]).unwrap();
    }
    staging.append(b"end").unwrap();
    finish(&fixture, staging, None).unwrap();
    let data = fixture.at("f").metadata().unwrap();
    assert_eq!(data.len(), 8 + 16 * 1024 * 1024);
    assert!(data.blocks() * 512 < 1024 * 1024, "{} blocks", data.blocks());
}

#[test]
fn ranges_of_the_basis_are_appended() {
    let fixture = Fixture::new();
    let old: Vec<u8> = (0..1_000_000_u32).map(|byte| (byte / 7) as u8).collect();
    fs::write(fixture.at("f"), &old).unwrap();
    let (source, _) = fixture.root.open_file(&path("f")).unwrap();
    let mut staging = staged(&fixture, b"new");
    staging.append_from(&source, 1000, 900_000).unwrap();
    staging.append(b"end").unwrap();
    assert_eq!(read_back(&staging), [b"new", &old[1000..901_000], b"end"].concat());
    assert!(staging.append_from(&source, 999_999, 2).is_err());
}
