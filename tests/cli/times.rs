//! Modification times: filesystems that keep coarse ones, and `--modify-window`.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::world::skip::needs;
use crate::world::{Run, World};

/// Sets the modification time of a file or directory.
fn touch(world: &World, name: &str, time: Duration) {
    let file = fs::File::open(world.path(name)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
}

/// True if this user can mount an ext4 filesystem with inodes of 128 bytes, which keep whole
/// seconds.
fn can_mount_coarse() -> bool {
    let script =
        "mkdir -p /mnt && truncate -s 4M \"$0\" && mkfs.ext4 -q -I 128 \"$0\" && mount -o loop \"$0\" /mnt";
    let folder = tempfile::tempdir().unwrap();
    let mut probe = Command::new("unshare");
    probe.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(folder.path().join("image"));
    probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn copies_on_a_filesystem_of_whole_seconds_are_in_place_and_edits_arrive() {
    if !needs(can_mount_coarse(), "no ext4 with whole seconds can be mounted") {
        return;
    }
    for is_far in [false, true] {
        let world = World::new();
        world.tree("src").file("f", "one").file("d/g", "two").link("l", "f");
        touch(&world, "src/f", Duration::new(1_700_000_000, 123_456_789));
        let dst = if is_far { world.far("dst/copy") } else { "dst/copy".into() };
        let dst = dst.into_string().unwrap();
        fs::create_dir(world.path("dst")).unwrap();
        // The copy is as new as the edit, and the edit is as long as the old content.
        let script = format!(
            "truncate -s 20M image && mkfs.ext4 -q -I 128 image && mount -o loop image dst || exit 99
            $KSYNC src {dst} && $KSYNC -n src {dst} && $KSYNC src {dst} || exit 98
            printf abc >src/f && $KSYNC src {dst} && printf xyz >src/f && $KSYNC src {dst} && cmp src/f dst/copy/f"
        );
        let mut command = world.command("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
        command.env("KSYNC", env!("CARGO_BIN_EXE_ksync"));
        let run = Run::of(command).ok();
        let nothing = run.stdout.matches("nothing to do: 4 entries are in place").count();
        assert_eq!(nothing, 2, "{}", run.stdout);
    }
}

#[test]
fn edit_within_a_second_arrives_where_all_times_are_whole_seconds() {
    let world = World::new();
    world.tree("src").file("f", "one");
    for (time, content) in [(Duration::from_secs(100), "one"), (Duration::from_millis(100_500), "two")] {
        fs::write(world.path("src/f"), content).unwrap();
        touch(&world, "src/f", time);
        world.sync("src", "dst");
        assert_eq!(fs::read_to_string(world.path("dst/f")).unwrap(), content);
    }
}

#[test]
fn modify_window_is_the_largest_difference_that_does_not_count() {
    let world = World::new();
    world.tree("src").file("f", "one");
    touch(&world, "src/f", Duration::from_millis(100_000));
    world.sync("src", "dst");
    touch(&world, "src/f", Duration::from_millis(104_500));
    touch(&world, "src", Duration::from_secs(100));
    touch(&world, "dst", Duration::from_secs(100));
    for (window, is_same) in [("4", true), ("3", false), ("-1", false)] {
        let run = world.run(["-n", "--modify-window", window, "src", "dst"]);
        assert_eq!(run.summary().starts_with("nothing to do"), is_same, "{window}: {}", run.stdout);
    }
    // Only the time differs: no content goes.
    assert_eq!(
        world.run(["-@-1", "src", "dst"]).summary().split("; ").nth(1).map(|end| &end[..13]),
        Some("copied 0 B in")
    );
}
