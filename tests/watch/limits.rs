//! Changes that the system does not report: overflowing queues, directories without a watch,
//! vanished roots.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::vm::{stop, ticks};
use crate::watcher::{Direction, Watcher, is_there};
use crate::world::{World, wait_for};

/// Creates more events than an inotify queue holds (`fs.inotify.max_queued_events`).
pub(crate) fn overflow(world: &World) {
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
    let most: usize = most.trim().parse().expect("a number");
    // Each file makes at least three events: create, close and delete.
    for number in 0..most / 3 + 1000 {
        let path = world.path(format!("src/passing-{number}"));
        fs::write(&path, "").unwrap();
        fs::remove_file(&path).unwrap();
    }
}

/// `ksync` with at most `most` watches, in a user namespace of its own.
fn with_watches(world: &World, most: u32, direction: Direction, options: &[&str]) -> Command {
    let mut command = world.command("unshare");
    let limit = format!("echo {most} > /proc/sys/user/max_inotify_watches && exec \"$@\"");
    command.args(["--user", "--map-root-user", "sh", "-c", &limit, "sh", env!("CARGO_BIN_EXE_ksync")]);
    command.args(options).args(direction.endpoints(world));
    command
}

fn can_limit_watches() -> bool {
    is_there(
        "unshare",
        &["--user", "--map-root-user", "sh", "-c", "echo 5 > /proc/sys/user/max_inotify_watches"],
    )
}

#[test]
fn an_overflowing_queue_loses_no_change() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").with_everything();
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        // In a download the agent watches, and the sandbox that started it is the client.
        let stopped = if direction == Direction::Down {
            let [agent] = crate::vm::programs_below(&world.far_home())[..] else { panic!("one agent") };
            agent
        } else {
            watcher.pid()
        };
        let mark = watcher.mark();
        stop(stopped);
        overflow(&world);
        // No event reports these changes.
        world.tree("src").file("late/and/deep", "x").file("src/main.rs", "changed");
        fs::remove_file(world.path("src/empty")).unwrap();
        fs::rename(world.path("src/nothing"), world.path("src/something")).unwrap();
        rustix::process::kill_process(stopped, Signal::CONT).expect("a signal");
        watcher.event_where("round", mark, |round| round["whole"] == true);
        world.assert_same("src", "dst");
        // Entries that came while the process was stopped are watched by now.
        let mark = watcher.mark();
        fs::write(world.path("src/late/and/deep"), "later").unwrap();
        let round = watcher.event_where("round", mark, |_| true);
        assert_eq!(round["whole"], false, "{direction:?}");
        watcher.is_there();
    }
}

#[test]
fn too_many_directories_are_polled_with_one_warning() {
    if !can_limit_watches() {
        return;
    }
    for direction in Direction::ALL {
        let world = World::new();
        for number in 0..30 {
            world.tree("src").file(format!("{number}/file"), "x");
        }
        let command = with_watches(&world, 10, direction, &["--watch", "--json", "--delete"]);
        let watcher = Watcher::of(&world, direction.near(), command);
        watcher.event("ready");
        let told = watcher.event("warning");
        let message = told["message"].as_str().unwrap();
        assert!(
            message.contains("sudo sysctl fs.inotify.max_user_watches=1048576"),
            "{direction:?}: {message}"
        );
        // Found by polling alone.
        fs::write(world.path("src/29/file"), "seen by looking").unwrap();
        fs::write(world.path("src/0/file"), "seen or told").unwrap();
        fs::remove_dir_all(world.path("src/15")).unwrap();
        let is_done = || {
            let is_there =
                |name: &str, text: &str| fs::read_to_string(world.path(name)).is_ok_and(|is| is == text);
            let is_there =
                is_there("dst/29/file", "seen by looking") && is_there("dst/0/file", "seen or told");
            (is_there && !world.path("dst/15").exists()).then_some(())
        };
        wait_for("what nobody told", is_done);
        watcher.is_there();
        let polling = watcher.events("warning");
        assert_eq!(polling.len(), 1, "{direction:?}: {polling:#?}");
    }
    let world = World::new();
    world.tree("src").file("a/file", "x").file("b/file", "x");
    let watcher = Watcher::of(&world, "src", with_watches(&world, 1, Direction::Up, &["--watch"]));
    watcher.note("how to be told of changes", |line| {
        let cause = "ksync: polling for changes: only 1 directories can be watched: raise \
                     fs.inotify.max_user_watches (sudo sysctl fs.inotify.max_user_watches=1048576)";
        (line == cause).then_some(())
    });
}

#[test]
fn the_poll_option_finds_changes() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").with_everything();
        let watcher = Watcher::ready(&world, direction, &["--poll", "--delete"]);
        world.tree("src").file("new/file", "x");
        fs::remove_file(world.path("src/empty")).unwrap();
        let is_done = || world.path("dst/new/file").exists() && !world.path("dst/empty").exists();
        wait_for("what nobody told", || is_done().then_some(()));
        watcher.is_there();
    }
}

#[test]
fn a_watch_that_follows_links_sees_changes_behind_them() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("out").file("file", "old").file("dir/f", "x");
        world.tree("src").file("f", "x").link("file", "../out/file").link("dir", "../out/dir");
        let watcher = Watcher::ready(&world, direction, &["-L", "--delete"]);
        world.tree("out").file("file", "new one").file("dir/g", "y");
        let is_done = || {
            fs::read(world.path("dst/file")).is_ok_and(|content| content == b"new one")
                && world.path("dst/dir/g").exists()
        };
        wait_for("what lies behind links", || is_done().then_some(()));
        drop(watcher);
    }
}

#[test]
fn a_moved_or_replaced_root_ends_the_watch_and_deletes_nothing() {
    for direction in Direction::ALL {
        for is_replaced in [false, true] {
            let world = World::new();
            world.tree("src").with_everything();
            let watcher = Watcher::ready(&world, direction, &["--delete"]);
            fs::rename(world.path("src"), world.path("elsewhere")).unwrap();
            if is_replaced {
                world.tree("src").file("another", "tree");
            }
            let error = watcher.event("error");
            let shown = if direction == Direction::Down {
                world.path("src").display().to_string()
            } else {
                "src".to_owned()
            };
            let expected =
                format!("{shown} is gone, or was replaced by another directory: nothing was changed");
            assert!(error["message"].as_str().unwrap().ends_with(&expected), "{direction:?}: {error}");
            assert_eq!(error["exit"], 3, "{direction:?}: {error}");
            watcher.ends(3);
            world.assert_same("elsewhere", "dst");
        }
    }
}

#[test]
fn an_unmounted_source_ends_the_watch_and_deletes_nothing() {
    let namespace = ["--user", "--map-root-user", "--mount"];
    let mounts = "mount -t tmpfs none /mnt && umount -l /mnt";
    if !is_there("unshare", &[&namespace[..], &["sh", "-c", mounts]].concat()) {
        return;
    }
    let world = World::new();
    world.tree("src").file("under", "the mount");
    world.tree("go");
    // The mount is private: from outside only the copy is visible.
    let script = "mount -t tmpfs none src && mkdir src/dir && echo x > src/dir/file && touch src/other && \
                  { (while [ ! -e go/umount ]; do sleep 0.02; done; umount -l src; touch go/done) & } && \
                  exec \"$@\"";
    let mut command = world.command("unshare");
    command.args(namespace).args(["sh", "-c", script, "sh", env!("CARGO_BIN_EXE_ksync")]);
    command.args(["--watch", "--json", "--delete", "src", "dst"]);
    let watcher = Watcher::of(&world, "src", command);
    watcher.event("ready");
    fs::write(world.path("go/umount"), "").unwrap();
    wait_for("the end of the mount", || world.path("go/done").exists().then_some(()));
    // No event reports the unmount; the next round of any kind finds it.
    let _ = world.run(["flush", "src"]);
    let error = watcher.event("error");
    assert_eq!(error["exit"], 3, "{error}");
    watcher.ends(3);
    assert_eq!(fs::read_to_string(world.path("dst/dir/file")).unwrap(), "x\n");
    assert!(!world.path("dst/under").exists());
}

#[test]
fn a_vanished_destination_is_filled_again() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").with_everything();
        let watcher = Watcher::ready(&world, direction, &[]);
        fs::remove_dir_all(world.path("dst")).unwrap();
        world.tree("src").file("a", "one small change");
        wait_for("all of it", || world.path("dst/src/data.bin").exists().then_some(()));
        watcher.is_there();
        // Another user's directory replaces the destination.
        fs::rename(world.path("dst"), world.path("aside")).unwrap();
        world.tree("dst").file("foreign", "stays");
        world.tree("src").file("b", "another small change");
        wait_for("all of it", || world.path("dst/src/data.bin").exists().then_some(()));
        watcher.flush();
        assert_eq!(fs::read_to_string(world.path("dst/foreign")).unwrap(), "stays", "{direction:?}");
        fs::remove_file(world.path("dst/foreign")).unwrap();
        watcher.is_there();
    }
}

#[test]
fn two_watches_against_each_other_come_to_rest() {
    let world = World::new();
    world.tree("src").with_everything();
    let one = Watcher::ready(&world, Direction::Local, &[]);
    let mut back = world.ksync(["--watch", "--json", "dst"]);
    back.arg("src");
    let other = Watcher::of(&world, "dst", back);
    other.event("ready");
    let both = [&one, &other];
    for number in 0..5 {
        world.tree("src").file(format!("from-src/{number}"), "x").file("src/main.rs", format!("{number}"));
        wait_for("the way there", || world.path(format!("dst/from-src/{number}")).exists().then_some(()));
        one.flush();
        world.tree("dst").file(format!("from-dst/{number}"), "y").time("empty", 1_000_000 + number, 7);
        wait_for("the way back", || world.path(format!("src/from-dst/{number}")).exists().then_some(()));
        other.flush();
    }
    both.iter().for_each(|watcher| watcher.flush());
    world.assert_same("src", "dst");
    let rounds = || both.map(|watcher| watcher.mark());
    let worked = || both.map(|watcher| ticks(watcher.pid()));
    let (at_rest, worked_before) = (rounds(), worked());
    thread::sleep(Duration::from_secs(3));
    assert_eq!(rounds(), at_rest, "nothing is told");
    // Rounds with nothing to do are not reported, but cost time.
    let spent = [worked()[0] - worked_before[0], worked()[1] - worked_before[1]];
    assert!(spent.iter().all(|ticks| *ticks <= 10), "{spent:?} hundredths of a second");
    world.assert_same("src", "dst");
}
