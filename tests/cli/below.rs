//! Delicate entries of a destination: mounted filesystems, pipes, directories that nobody may list,
//! set-id files.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::process::Command;

use crate::world::World;
use crate::world::skip::needs;

/// Runs a script in the world's folder, where `ksync` is a command. Mounts of the script are
/// invisible elsewhere. Skips the test if nothing can be mounted.
pub(crate) fn with_mounts(world: &World, script: &str) -> Option<String> {
    let mut unshare = world.command("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    let can_mount = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"])
        .status()
        .is_ok_and(|status| status.success());
    if !needs(can_mount, "nothing can be mounted here") {
        return None;
    }
    let program = env!("CARGO_BIN_EXE_ksync");
    let script = format!("ksync() {{ {program} --no-progress \"$@\" </dev/null; }}\n{script}");
    let output = unshare.arg(&script).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    Some(text)
}

#[test]
fn delete_spares_only_what_is_below_a_mount() {
    let world = World::new();
    world.tree("src").file("a", "1");
    world.tree("dst").file("extra", "goes").file("old/f", "goes");
    // Mounts a filesystem, and a bind mount of the same filesystem; another filesystem two levels
    // down.
    let script = "
        mkdir -p dst/mp dst/d/bound dst/inner/mp elsewhere
        echo precious >elsewhere/p
        mount -t tmpfs none dst/mp; echo precious >dst/mp/p
        mount --bind elsewhere dst/d/bound
        mount -t tmpfs none dst/inner/mp
        ksync --delete src dst || ksync --delete --yes src dst
        cat dst/mp/p dst/d/bound/p
        [ -d dst/inner/mp ] && [ ! -e dst/extra ] && [ ! -e dst/old ]
        ksync --delete src dst";
    let Some(text) = with_mounts(&world, script) else { return };
    assert!(text.contains("nothing to do"), "{text}");
}

#[test]
fn a_file_does_not_replace_a_directory_with_a_mount() {
    let world = World::new();
    world.tree("src").file("d", "file");
    let script = "
        mkdir -p dst/d/mp; mount -t tmpfs none dst/d/mp; echo precious >dst/d/mp/p
        ksync --delete src dst && exit 1
        cat dst/d/mp/p";
    let Some(text) = with_mounts(&world, script) else { return };
    assert!(text.contains("cannot clear the way of dst/d: "), "{text}");
}

#[test]
fn files_below_a_mount_arrive_there() {
    let world = World::new();
    world.tree("src").file("mp/new", "1").file("mp/d/f", "2").file("mp/changed", "new").link("mp/l", "new");
    let script = "
        mkdir -p dst/mp elsewhere; mount -t tmpfs none dst/mp; echo older >dst/mp/changed
        ksync src dst; diff -r src dst
        ksync src dst | grep 'nothing to do'
        umount dst/mp; mount --bind elsewhere dst/mp
        ksync src dst; diff -r src dst
        [ ! -e dst/mp/.ksync ] && [ ! -e dst/.ksync ]";
    let _ = with_mounts(&world, script);
}

#[test]
fn one_file_system_copies_mount_points_and_spares_their_content() {
    let world = World::new();
    world.tree("src").file("a", "1");
    world.tree("dst").file("mp/spared", "1").file("extra", "goes");
    let script = "
        mkdir src/mp; mount -t tmpfs none src/mp; echo other >src/mp/other
        ksync -x --delete src dst || ksync -x --delete --yes src dst
        [ -e dst/mp/spared ] && [ ! -e dst/mp/other ] && [ ! -e dst/extra ]
        ksync src dst; cat dst/mp/other";
    let Some(text) = with_mounts(&world, script) else { return };
    assert!(text.contains("other"), "{text}");
}

/// Runs a script as [`with_mounts`] does, as a superuser without the right to ignore modes.
fn as_anybody(world: &World, script: &str) -> bool {
    let capabilities = "-dac_override,-dac_read_search";
    let limited = ["--bounding-set", capabilities, "--inh-caps", capabilities, "sh", "-ec"];
    let can_limit = Command::new("setpriv").args(limited).arg("true").status();
    if !needs(can_limit.is_ok_and(|status| status.success()), "capabilities cannot be given up here") {
        return false;
    }
    let program = env!("CARGO_BIN_EXE_ksync");
    let script = format!("ksync() {{ {program} --no-progress \"$@\" </dev/null; }}\n{script}");
    let output = world.command("setpriv").args(limited).arg(&script).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
    true
}

/// A rule excludes the directory, on the command line or in an ignore file of the source. Such a
/// directory does not matter to the run: although it cannot be listed, other entries are deleted.
#[test]
fn an_excluded_directory_that_nobody_may_list_is_no_problem() {
    for destination in ["dst", "sandbox:$PWD/dst"] {
        for (rules, option) in [("secret/\n", ""), ("d/secret\n*.log\n", ""), ("*.log\n", "--exclude=secret")]
        {
            let world = World::new();
            world
                .tree("src")
                .file(".ksyncignore", rules)
                .file("d/a", "1")
                .file("goes", "2")
                .file("d/goes", "3");
            let script = format!(
                "
                ksync {option} --delete src {destination}
                mkdir -p dst/d/secret; echo precious >dst/d/secret/p; chmod 0 dst/d/secret
                ! ls dst/d/secret 2>/dev/null
                rm src/goes src/d/goes; echo new >src/d/new
                ksync {option} --delete src {destination} 2>told
                [ ! -s told ] || ! grep -q secret told
                [ ! -e dst/goes ] && [ ! -e dst/d/goes ] && [ -e dst/d/new ]
                ksync {option} --delete src {destination} | grep 'nothing to do'
                chmod 700 dst/d/secret; cat dst/d/secret/p
                # One that is not excluded is told, and keeps nothing else from being deleted.
                mkdir dst/d/other; echo precious >dst/d/other/p; chmod 0 dst/d/other; rm src/d/new
                code=0; ksync {option} --delete src {destination} 2>told || code=$?
                [ $code = 23 ] && grep -q other told && [ ! -e dst/d/new ]
                chmod 700 dst/d/other; cat dst/d/other/p"
            );
            if !as_anybody(&world, &script) {
                return;
            }
        }
    }
}

fn make_fifo(world: &World, at: &str) {
    assert!(Command::new("mkfifo").arg(world.path(at)).status().unwrap().success());
}

#[test]
fn pipes_and_sockets_of_the_destination_are_replaced_or_deleted() {
    let world = World::new();
    world.tree("src").file("file", "1").link("link", "file").file("directory/f", "2");
    world.tree("dst").file("file.x", "1").file("gone/f", "1");
    for at in ["dst/file", "dst/link", "dst/directory", "dst/extra", "dst/gone/q"] {
        make_fifo(&world, at);
    }
    let _socket = std::os::unix::net::UnixListener::bind(world.path("dst/socket")).unwrap();
    world.sync("src", "dst");
    assert_eq!(fs::read(world.path("dst/file")).unwrap(), b"1");
    assert!(world.path("dst/extra").symlink_metadata().unwrap().file_type().is_fifo());
    let _ = world.run(["--delete", "--yes", "src", "dst"]);
    let _ = world.run(["--delete", "src", "dst"]);
    world.assert_same("src", "dst");
}

#[test]
fn set_id_bits_stay_with_their_owner() {
    let world = World::new();
    let bits = |at: &str| world.path(at).metadata().unwrap().mode() & 0o7777;
    world.tree("src").file("own", "1").file("foreign", "1").file("group", "1");
    let modes = [("own", 0o6755), ("foreign", 0o4755), ("group", 0o6755)];
    let is_root = chown(world.path("src/foreign"), Some(65534), Some(65534)).is_ok();
    if needs(is_root, "only the superuser has files of other owners") {
        chown(world.path("src/group"), None, Some(65534)).unwrap();
    }
    for (name, mode) in modes {
        fs::set_permissions(world.path("src").join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for _ in 0..2 {
        world.sync("src", "dst");
        assert_eq!(bits("dst/own"), 0o6755);
        if is_root {
            assert_eq!((bits("dst/foreign"), bits("dst/group")), (0o755, 0o4755));
        }
    }
    world.sync("src", world.far("up"));
    for (name, _) in modes {
        assert_eq!(bits(&format!("up/{name}")) & 0o6000, 0, "nobody knows who is who over there");
    }
}
