//! Deletions after a session's VM was replaced: entries that the new VM lacks were never deleted
//! there.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::platform::{Platform, endpoint};
use crate::world::World;
use crate::world::skip::needs;

/// Ends a session and makes another one of the same name, with an empty directory on its VM.
fn replace(platform: &Platform, world: &World, id: &str, directory: &str) -> String {
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
    fs::remove_dir_all(world.path(directory)).unwrap();
    fs::create_dir(world.path(directory)).unwrap();
    platform.create(world, &["--name", "mine"])
}

#[test]
fn a_recreated_session_never_counts_as_emptied() {
    // The session is named by its name, and as the current session.
    for name in ["mine", "session"] {
        let world = World::new();
        let platform = Platform::start(&world);
        world.tree("there").file("a", "a").file("d/b", "b");
        let mut id = platform.create(&world, &["--name", "mine"]);
        let far = endpoint(&world, name, "there");
        platform.run(&world, &["--delete", &far, "back"]).ok();
        id = replace(&platform, &world, &id, "there");
        for _ in 0..2 {
            let told = platform.run(&world, &["--delete", &far, "back"]).fails(25);
            assert!(
                told.stderr.contains("the session's VM is another one than at the last sync"),
                "{told:?}"
            );
            assert!(world.path("back/a").exists() && world.path("back/d/b").exists(), "{name}");
            // New files on the VM arrive, but do not count as consent to the deletions.
            world.tree("there").file("new", "new");
            let told = platform.run(&world, &["--delete", &far, "back"]).fails(25);
            assert!(told.stderr.contains("; 3 entries would go"), "{told:?}");
            assert!(world.path("back/new").exists() && world.path("back/a").exists(), "{name}");
            id = replace(&platform, &world, &id, "there");
            fs::remove_file(world.path("back/new")).unwrap();
        }
        // Another name makes another pair of endpoints.
        let other = endpoint(&world, &id, "there");
        platform.run(&world, &["--delete", &other, "back"]).fails(25);
        platform.run(&world, &["--delete", "--yes", &far, "back"]).ok();
        assert!(!world.path("back/a").exists() && !world.path("back/d").exists());
        world.tree("there").file("later", "x").file("gone", "x");
        platform.run(&world, &["--delete", &far, "back"]).ok();
        fs::remove_file(world.path("there/gone")).unwrap();
        platform.run(&world, &["--delete", &far, "back"]).ok();
        assert!(!world.path("back/gone").exists());
    }
}

#[test]
fn a_destination_on_another_vm_is_not_the_last_copy() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("a", "a");
    let id = platform.create(&world, &["--name", "mine"]);
    let far = endpoint(&world, "mine", "there");
    platform.run(&world, &["--delete", "src", &far]).ok();
    replace(&platform, &world, &id, "there");
    world.tree("there").file("image's own", "x");
    let told = platform.run(&world, &["--delete", "src", &far]).fails(25);
    assert!(told.stderr.contains("the session's VM is another one"), "{told:?}");
    assert!(world.path("there/image's own").exists() && world.path("there/a").exists());
}

/// The session and host key are the same, but the machine was restarted, perhaps from an older
/// image.
#[test]
fn a_restarted_vm_never_counts_as_emptied() {
    let unshare = ["--mount", "--propagation", "private", "true"];
    let can_mount = Command::new("unshare").args(unshare).status().is_ok_and(|status| status.success());
    if !needs(can_mount, "nothing can be mounted here") {
        return;
    }
    let world = World::new();
    let boot = world.path("boot");
    fs::write(&boot, "11111111-1111-4111-8111-111111111111\n").unwrap();
    let platform = Platform::started_as(&world, &boot);
    world.tree("there").file("a", "a").file("b", "b");
    let id = platform.create(&world, &[]);
    let far = endpoint(&world, &id, "there");
    platform.run(&world, &["--delete", &far, "back"]).ok();
    fs::remove_file(world.path("there/a")).unwrap();
    fs::write(&boot, "22222222-2222-4222-8222-222222222222\n").unwrap();
    let told = platform.run(&world, &["--delete", &far, "back"]).fails(25);
    assert!(told.stderr.contains("the session's VM is another one"), "{told:?}");
    assert!(world.path("back/a").exists());
    fs::write(&boot, "11111111-1111-4111-8111-111111111111\n").unwrap();
    platform.run(&world, &["--delete", &far, "back"]).ok();
    assert!(!world.path("back/a").exists());
}
