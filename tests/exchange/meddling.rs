//! Another program changes files during the run.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use ksync::engine::{Engine, ReceiverWork, SendInput, SenderWork};
use ksync::exchange::{FileReceiver, FileSender, Perform, Receiving, Sending};
use ksync::monitor::{Event, ProblemKind};

use crate::world::{Ran, World, noise};

type SourceWork = <FileSender as Engine>::Work;
type TargetWork = <FileReceiver as Engine>::Work;

/// Calls `meddle` before each work.
pub(crate) struct Meddling<P, M> {
    pub(crate) inner: P,
    pub(crate) meddle: M,
}

impl<E: Engine, P: Perform<E>, M: Fn(&E::Work) + Send + Sync + 'static> Perform<E> for Meddling<P, M> {
    fn perform(&self, work: E::Work) -> E::Outcome {
        (self.meddle)(&work);
        self.inner.perform(work)
    }
}

fn run_meddling_with_source(world: &World, meddle: impl Fn(&SourceWork) + Send + Sync + 'static) -> Ran {
    let inner = Sending::new(world.source.clone(), world.options.clone());
    let receiving = Receiving::new(world.target.clone(), world.options.clone());
    world.run_with(Meddling { inner, meddle }, receiving)
}

fn run_meddling_with_target(world: &World, meddle: impl Fn(&TargetWork) + Send + Sync + 'static) -> Ran {
    let sending = Sending::new(world.source.clone(), world.options.clone());
    let inner = Receiving::new(world.target.clone(), world.options.clone());
    world.run_with(sending, Meddling { inner, meddle })
}

const LARGE_BYTES: usize = 5 << 20;

/// One small and one large file that are updated.
fn world() -> World {
    let world = World::deleting();
    let mut content = noise(1, LARGE_BYTES);
    world.write("large", &content);
    content[LARGE_BYTES / 2] ^= 1;
    world.write_target("large", &content[..LARGE_BYTES - 1]);
    world.write("small", b"new and small");
    world.write_target("small", b"old");
    world.write("untouched", b"arrives");
    world
}

#[test]
fn an_edit_of_the_target_during_the_run_is_a_conflict() {
    let world = world();
    let target = world.target.clone();
    let done = Once::new();
    let ran = run_meddling_with_target(&world, move |work| {
        if matches!(work, ReceiverWork::Step(..)) {
            done.call_once(|| {
                fs::write(target.join("small"), "edited here").unwrap();
                fs::write(target.join("large"), "edited here, too").unwrap();
            });
        }
    });
    let mut problems = ran.problems();
    problems.sort_by(|one, other| one.1.cmp(&other.1));
    let conflict = |name: &str| (ProblemKind::Conflict, name.to_owned());
    assert_eq!(problems, [conflict("large"), conflict("small")]);
    assert_eq!(world.read_target("small"), b"edited here");
    assert_eq!(world.read_target("large"), b"edited here, too");
    assert_eq!(world.read_target("untouched"), b"arrives");
    // The next run scans the edit, and replaces it as it should.
    assert_eq!(world.run().problems(), []);
    world.assert_same();
}

#[test]
fn an_edit_of_the_basis_during_the_copy_mixes_no_contents() {
    // The edit comes before each of the works that read the basis: signing, copying, installing.
    for step in 0..6 {
        let world = world();
        let target = world.target.clone();
        let works = std::sync::atomic::AtomicUsize::new(0);
        let ran = run_meddling_with_target(&world, move |work| {
            let about_content =
                matches!(work, ReceiverWork::Report(..) | ReceiverWork::Query(..) | ReceiverWork::Step(..));
            if about_content && works.fetch_add(1, Ordering::Relaxed) == step {
                let file = File::options().write(true).open(target.join("large")).unwrap();
                file.write_all_at(b"changed in place", 1_000_000).unwrap();
            }
        });
        assert!(ran.agent.is_ok(), "{step}: {ran:?}");
        let content = world.read_target("large");
        let is_new = content == fs::read(world.source.join("large")).unwrap();
        let is_edited = content.len() == LARGE_BYTES - 1 && content[1_000_000..].starts_with(b"changed in");
        assert!(is_new || is_edited, "{step}: mixed content");
        assert!(is_new || ran.problems().iter().any(|(kind, _)| *kind == ProblemKind::Conflict), "{step}");
        assert_eq!(world.read_target("untouched"), b"arrives");
        world.run();
        world.assert_same();
    }
}

#[test]
fn a_new_file_at_the_path_of_an_arriving_one_is_a_conflict() {
    let world = World::new();
    world.write("f", b"arrives");
    let target = world.target.clone();
    let ran = run_meddling_with_target(&world, move |work| {
        if matches!(work, ReceiverWork::Step(..)) {
            fs::write(target.join("f"), "was first").unwrap();
        }
    });
    assert_eq!(ran.problems(), [(ProblemKind::Conflict, "f".to_owned())]);
    assert_eq!(world.read_target("f"), b"was first");
}

#[test]
fn a_file_edited_after_the_scan_is_not_removed() {
    let world = World::deleting();
    world.write("f", b"1");
    world.write_target("extra", b"goes");
    let target = world.target.clone();
    let ran = run_meddling_with_target(&world, move |work| {
        if matches!(work, ReceiverWork::Step(..)) {
            fs::write(target.join("extra"), "still needed").unwrap();
        }
    });
    assert_eq!(ran.problems(), [(ProblemKind::Conflict, "extra".to_owned())]);
    assert_eq!(world.read_target("extra"), b"still needed");
}

#[test]
fn a_source_that_changes_before_it_is_read_is_named() {
    let shorter: Option<&[u8]> = Some(b"another one");
    let longer: Option<&[u8]> = Some(&[8; LARGE_BYTES + 1]);
    for (content, kind) in
        [(None, ProblemKind::Vanished), (shorter, ProblemKind::Changed), (longer, ProblemKind::Changed)]
    {
        let world = world();
        let source = world.source.clone();
        let done = Once::new();
        let ran = run_meddling_with_source(&world, move |work| {
            if matches!(work, SenderWork::Step { .. }) {
                // The other threads wait meanwhile.
                done.call_once(|| {
                    for path in ["small", "large"].map(|name| source.join(name)) {
                        match content {
                            None => fs::remove_file(path).unwrap(),
                            Some(content) => fs::write(path, content).unwrap(),
                        }
                    }
                });
            }
        });
        let mut problems = ran.problems();
        problems.sort_by(|one, other| one.1.cmp(&other.1));
        assert_eq!(problems, [(kind, "large".to_owned()), (kind, "small".to_owned())]);
        assert_eq!(world.read_target("small"), b"old");
        assert_eq!(world.read_target("large").len(), LARGE_BYTES - 1);
        assert_eq!(world.read_target("untouched"), b"arrives");
    }
}

#[test]
fn a_source_that_changes_half_way_is_named_and_not_installed() {
    for cut in [false, true] {
        let world = World::new();
        world.write("large", &noise(1, LARGE_BYTES));
        world.write("other", b"arrives");
        let source = world.source.clone();
        let done = AtomicBool::new(false);
        let ran = run_meddling_with_source(&world, move |work| {
            let half_way =
                matches!(work, SenderWork::Step { steps, .. } if matches!(steps[..], [(_, SendInput::More)]));
            if half_way && !done.swap(true, Ordering::Relaxed) {
                let file = File::options().write(true).open(source.join("large")).unwrap();
                if cut { file.set_len(2_000_000).unwrap() } else { file.write_all_at(b"changed", 0).unwrap() }
            }
        });
        assert_eq!(ran.problems(), [(ProblemKind::Changed, "large".to_owned())]);
        assert!(!world.target.join("large").exists() && world.target.join("other").exists());
        world.run_and_check();
    }
}

#[test]
fn a_source_that_is_only_touched_half_way_arrives() {
    let world = World::new();
    world.write("large", &noise(1, LARGE_BYTES));
    let source = world.source.clone();
    let ran = run_meddling_with_source(&world, move |work| {
        if matches!(work, SenderWork::Step { steps, .. } if matches!(steps[..], [(_, SendInput::More)])) {
            File::open(source.join("large")).unwrap().set_modified(SystemTime::now()).unwrap();
        }
    });
    assert_eq!(ran.problems(), []);
    assert_eq!(world.read_target("large"), noise(1, LARGE_BYTES));
    world.run_and_check();
}

#[test]
fn a_growing_source_arrives_as_far_as_it_was_listed() {
    for has_old in [false, true] {
        let world = World::new();
        world.write("log", &noise(1, LARGE_BYTES));
        world.write("other", b"arrives");
        if has_old {
            world.write_target("log", &noise(1, LARGE_BYTES / 2));
        }
        let stop = AtomicBool::new(false);
        let ran = thread::scope(|scope| {
            let mut log = File::options().append(true).open(world.source.join("log")).unwrap();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    log.write_all(&[7; 10_000]).unwrap();
                    thread::sleep(std::time::Duration::from_micros(200));
                }
            });
            let ran = world.run();
            stop.store(true, Ordering::Relaxed);
            ran
        });
        assert_eq!(ran.problems(), []);
        assert!(ran.events.contains(&Event::Grew { path: b"log".to_vec() }), "{:?}", ran.events);
        assert_eq!(world.read_target("other"), b"arrives");
        let (copy, log) = (world.read_target("log"), fs::read(world.source.join("log")).unwrap());
        assert!(copy.len() >= LARGE_BYTES && log.starts_with(&copy));
        world.run_and_check();
    }
}

#[test]
fn a_source_that_changed_since_it_was_read_is_not_removed() {
    for is_same_size in [false, true] {
        let mut world = World::new();
        world.options.remove_source = true;
        for name in ["changed", "gone", "moved", "stays"] {
            world.write(name, b"content");
        }
        let source = world.source.clone();
        let ran = run_meddling_with_source(&world, move |work| {
            if matches!(work, SenderWork::Remove { .. }) {
                fs::write(source.join("changed"), if is_same_size { "CONTENT" } else { "more content" })
                    .unwrap();
                fs::remove_file(source.join("gone")).unwrap();
                fs::rename(source.join("moved"), source.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", source.join("moved")).unwrap();
            }
        });
        let kept = |name: &str| (ProblemKind::NotRemoved, name.to_owned());
        assert_eq!(ran.problems(), [kept("changed"), kept("moved")]);
        let is_there = |name: &str| world.source.join(name).symlink_metadata().is_ok();
        assert!(is_there("changed") && is_there("moved") && is_there("elsewhere") && !is_there("stays"));
    }
}

#[test]
fn a_copy_that_somebody_removed_keeps_its_source() {
    let mut world = World::new();
    world.options.remove_source = true;
    world.write("a", b"content");
    world.write("b", b"content");
    let target = world.target.clone();
    let ran = run_meddling_with_target(&world, move |work| {
        if matches!(work, ReceiverWork::Confirm(..)) {
            fs::remove_file(target.join("a")).unwrap();
        }
    });
    assert_eq!(ran.problems(), [(ProblemKind::NotRemoved, "a".to_owned())]);
    assert!(world.source.join("a").exists() && !world.source.join("b").exists());
}
