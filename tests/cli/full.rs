//! A full disk, and a limit for the length of files. The run reports a lack of space before it
//! writes, where it can be known. Otherwise it does no harm.
//!
//! Each run sees a small tmpfs in a namespace of its own, which only the superuser can create.
//! Other users run the remaining tests.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::world::skip::skip;
use crate::world::{Run, World, noise};

const MIB: usize = 1 << 20;

/// True if this user can create namespaces with mounts of their own.
fn can_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["-m", "sh", "-c", "mount -t tmpfs none /mnt && umount /mnt"]);
    probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a shell script in which `dst` is a tmpfs with these options, and `$KSYNC` is the program.
/// Fails if the superuser cannot do that.
fn with_small_dst(world: &World, options: &str, script: &str) -> Option<Run> {
    if !can_mount() {
        assert!(!rustix::process::geteuid().is_root(), "the superuser can make no namespace");
        skip("only the superuser can make a namespace");
        return None;
    }
    fs::create_dir_all(world.path("dst")).unwrap();
    let script = format!("mount -t tmpfs -o {options} none dst || exit 99\n{script}");
    let mut command = world.command("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
    command.env("KSYNC", env!("CARGO_BIN_EXE_ksync"));
    Some(Run::of(command))
}

/// The endpoints of the three directions: from `src` to `dst`.
fn directions(world: &World) -> [(String, String); 3] {
    let far = |name: &str| world.far(name).into_string().unwrap();
    [("src".to_owned(), "dst".to_owned()), ("src".to_owned(), far("dst")), (far("src"), "dst".to_owned())]
}

#[test]
fn missing_space_is_reported_before_any_write() {
    let world = World::new();
    world.tree("src").file("a", "small").file("b", noise(1, 6 * MIB)).file("c", noise(2, 6 * MIB));
    for (from, to) in directions(&world) {
        let script =
            format!("echo old >dst/old; $KSYNC --delete --yes {from} {to}; code=$?; ls -A dst; exit $code");
        let Some(run) = with_small_dst(&world, "size=10M,mode=755", &script) else { return };
        let run = run.fails(11);
        assert!(run.stderr.contains("not enough space in "), "{to}: {}", run.stderr);
        assert!(run.stderr.contains("12.5 MB are needed and 10.4 MB are free"), "{to}: {}", run.stderr);
        assert_eq!(run.stderr.contains("the other side"), to.contains("sandbox:"), "{}", run.stderr);
        assert_eq!(run.stdout.lines().last(), Some("old"), "{to}: {}", run.stdout);
    }
}

#[test]
fn missing_inodes_are_reported_before_any_write() {
    let world = World::new();
    let tree = world.tree("src");
    (0..60).fold(tree, |tree, number| tree.file(format!("{number}"), "x"));
    for (from, to) in directions(&world) {
        let script = format!("$KSYNC {from} {to}; code=$?; ls -A dst; exit $code");
        let Some(run) = with_small_dst(&world, "size=10M,nr_inodes=50,mode=755", &script) else { return };
        let run = run.fails(11);
        assert!(run.stderr.contains("not enough inodes in "), "{to}: {}", run.stderr);
        assert!(run.stderr.contains("60 files and directories are needed"), "{to}: {}", run.stderr);
        assert!(!run.stdout.lines().any(|line| line == "1"), "{to}: {}", run.stdout);
    }
}

#[test]
fn a_new_destination_is_removed_if_the_source_does_not_fit() {
    let world = World::new();
    world.tree("src").file("b", noise(1, 12 * MIB));
    for (from, to) in directions(&world) {
        let script = format!("$KSYNC {from} {to}/new/one; code=$?; ls -A dst; exit $code");
        let Some(run) = with_small_dst(&world, "size=10M,mode=755", &script) else { return };
        let run = run.fails(11);
        assert!(!run.stdout.lines().any(|line| line == "new"), "{to}: {}", run.stdout);
    }
}

#[test]
fn a_sparse_file_longer_than_the_disk_is_copied() {
    let world = World::new();
    world.tree("src").file("sparse", noise(1, MIB));
    File::options().write(true).open(world.path("src/sparse")).unwrap().set_len(64 * MIB as u64).unwrap();
    if world.path("src/sparse").metadata().unwrap().blocks() * 512 > 4 * MIB as u64 {
        return skip("this filesystem has no holes");
    }
    for (from, to) in directions(&world) {
        let script = format!("$KSYNC {from} {to} && cmp src/sparse dst/sparse");
        let Some(run) = with_small_dst(&world, "size=10M,mode=755", &script) else { return };
        run.ok();
    }
}

#[test]
fn a_tree_that_just_fits_is_copied_and_updated() {
    let world = World::new();
    world.tree("src").file("a", noise(1, 4 * MIB)).file("b", noise(2, 4 * MIB));
    for (from, to) in directions(&world) {
        // The second run touches both files and changes one: 8 MiB exist, and 4 MiB are added.
        let script = format!(
            "$KSYNC {from} {to} && touch -d @5 src/a src/b && $KSYNC {from} {to} &&
            printf x | dd of=src/a bs=1 seek=9 conv=notrunc status=none && $KSYNC {from} {to} && diff -r src dst"
        );
        let Some(run) = with_small_dst(&world, "size=13M,mode=755", &script) else { return };
        run.ok();
    }
}

#[test]
fn a_disk_that_fills_up_gets_the_part_back_and_loses_nothing() {
    let world = World::new();
    // The new content is as long as the old one, so only the transfer shows that it differs.
    world.tree("src").file("a", "small").file("b", noise(1, 40 * MIB));
    world.tree("old").file("b", noise(2, 40 * MIB)).file("gone", "old");
    for (from, to) in directions(&world) {
        let script = format!(
            "cp old/* dst; touch -d @5 dst/b
            $KSYNC --delete --yes {from} {to}; code=$?
            find dst -name '*.part'; cmp old/b dst/b || echo torn; cat dst/gone; echo
            df --output=avail -B1 dst | tail -n 1; exit $code"
        );
        let Some(run) = with_small_dst(&world, "size=60M,mode=755", &script) else { return };
        let run = run.fails(11);
        let said = format!("{to}: {}{}", run.stdout, run.stderr);
        assert!(!run.stdout.contains(".part") && !run.stdout.contains("torn"), "{said}");
        assert!(run.stdout.lines().any(|line| line == "old"), "{said}");
        let free: u64 = run.stdout.lines().last().unwrap().trim().parse().unwrap();
        assert!(free > 15 * MIB as u64, "{said}");
    }
}

#[test]
fn a_file_beyond_the_file_size_limit_is_a_problem_of_that_file() {
    let world = World::new();
    world.tree("src").file("a", "small").file("long", noise(1, 17 * MIB)).file("z", "small");
    for ((from, to), list) in
        directions(&world).iter().flat_map(|way| ["-v", "-i", "--json"].map(|list| (way, list)))
    {
        let _ = fs::remove_dir_all(world.path("dst"));
        // In blocks of 512 bytes. The agent must fit, and the emulator's record of the stream.
        let script = format!("ulimit -f 32768; exec $KSYNC {list} {from} {to}");
        let mut command = world.command("sh");
        command.args(["-c", &script]).env("KSYNC", env!("CARGO_BIN_EXE_ksync"));
        let run = Run::of(command).fails(23);
        let told = if list == "--json" { &run.stdout } else { &run.stderr };
        assert!(told.contains("long") && told.contains("ulimit -f"), "{to}: {told}");
        // Only what is there is listed as changed.
        let is_listed = |name: &str| {
            let ends = [format!("create  {name}"), format!("f+++++++++ {name}")];
            let field = format!(r#""path":"{name}""#);
            run.stdout.lines().any(|line| {
                let is_file = line.contains(r#""event":"file""#) && line.contains(&field);
                is_file || ends.iter().any(|end| line.ends_with(end))
            })
        };
        assert_eq!(["a", "long", "z"].map(is_listed), [true, false, true], "{list} {to}: {}", run.stdout);
        assert_eq!(fs::read(world.path("dst/z")).unwrap(), b"small", "{to}");
        assert!(!world.path("dst/long").exists() && !world.path("dst/.ksync").exists(), "{to}");
    }
}

#[test]
fn an_error_of_a_local_run_names_no_other_side() {
    let world = World::new();
    world.tree("src").file("a", "x");
    world.tree("other").file("file", "x");
    let run = world.run([world.path("src"), world.path("other/file/below")]).fails(11);
    assert!(!run.stderr.contains("other side"), "{}", run.stderr);
}

#[test]
fn watch_goes_on_when_the_full_disk_has_room_again() {
    let world = World::new();
    world.tree("src").file("small", "one");
    for to in ["dst/copy".to_owned(), world.far("dst/copy").into_string().unwrap()] {
        let script = format!(
            "soon() {{ n=300; until \"$@\"; do n=$((n - 1)); [ $n -gt 0 ] || return 1; sleep 0.1; done; }}
            $KSYNC --json -w src {to} >watch 2>notes & pid=$!
            soon grep -q '\"ready\"' watch || exit 98
            head -c 8000000 /dev/zero | tr '\\0' x >src/big
            soon grep -q 'not enough space' watch || exit 97
            mount -o remount,size=30M dst
            soon cmp -s src/big dst/copy/big; code=$?
            kill $pid; wait $pid; cat watch; exit $code"
        );
        let Some(run) = with_small_dst(&world, "size=4M,mode=755", &script) else { return };
        run.ok();
        fs::remove_file(world.path("src/big")).unwrap();
    }
}
