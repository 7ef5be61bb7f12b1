//! Kept connections to the sessions of a platform.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::platform::Platform;
use crate::world::{Run, World, wait_for};

/// A platform with a session, and a directory to copy.
struct Sessions {
    world: World,
    platform: Platform,
    id: String,
}

impl Sessions {
    fn start() -> Sessions {
        let world = World::new();
        world.tree("src").file("a", "one");
        let platform = Platform::start(&world);
        let id = platform.create(&world, &["--name", "mine"]);
        Sessions { world, platform, id }
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut command = self.platform.ksync(&self.world, args);
        command.env("KSYNC_KEEP", "1").env("XDG_RUNTIME_DIR", self.world.path("tmp"));
        Run::of(command)
    }

    fn there(&self) -> String {
        crate::platform::endpoint(&self.world, "mine", "dst")
    }

    /// The served runs of each keeper, with its process.
    fn keepers(&self) -> Vec<(i64, u64)> {
        let told = self.run(&["keep", "list", "--json"]).stdout;
        let lines = told.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| (line["pid"].as_i64().unwrap(), line["served"].as_u64().unwrap())).collect()
    }

    fn keeper(&self) -> (i64, u64) {
        wait_for("a keeper", || self.keepers().pop())
    }

    fn has_no_keeper(&self) {
        wait_for("the end of the keeper", || self.keepers().is_empty().then_some(()));
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.run(&["keep", "stop"]);
    }
}

#[test]
fn a_session_is_served_by_one_keeper_for_syncs_and_commands() {
    let sessions = Sessions::start();
    sessions.run(&["src", &sessions.there()]).ok();
    sessions.keeper();
    // The keeper lets the VM stand by: one that is held costs money.
    let is_held = || sessions.platform.session(&sessions.id)["stage"] == "active";
    wait_for("a session that nobody holds", || (!is_held()).then_some(()));
    sessions.world.tree("src").file("a", "changed");
    sessions.run(&["src", &sessions.there()]).ok();
    sessions.world.assert_same("src", "dst");
    assert_eq!(sessions.keeper().1, 1);
    let run = sessions.run(&["ssh", "mine", "echo out; echo err >&2; exit 7"]).fails(7);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(sessions.keeper().1, 2);
    let run = sessions.run(&["ssh", "mine", "kill -9 $$"]);
    let without = sessions.run(&["ssh", "--no-keep", "mine", "kill -9 $$"]);
    assert_eq!((run.status.code(), run.stderr), (without.status.code(), without.stderr));
}

#[test]
fn a_session_that_is_deleted_or_renamed_ends_its_keeper() {
    let sessions = Sessions::start();
    sessions.run(&["src", &sessions.there()]).ok();
    let (pid, _) = sessions.keeper();
    sessions.platform.run(&sessions.world, &["session", "delete", "mine"]).ok();
    let run = sessions.run(&["src", &sessions.there()]);
    let without = sessions.run(&["--no-keep", "src", &sessions.there()]);
    assert_eq!(run.status.code(), without.status.code(), "{run:?} {without:?}");
    assert_ne!(run.status.code(), Some(0));
    sessions.has_no_keeper();
    // Another session that gets the name has a keeper of its own.
    sessions.platform.create(&sessions.world, &["--name", "mine"]);
    sessions.run(&["src", &sessions.there()]).ok();
    assert_ne!(sessions.keeper().0, pid);
}

#[test]
fn another_api_key_finds_no_kept_connection() {
    let sessions = Sessions::start();
    sessions.run(&["src", &sessions.there()]).ok();
    sessions.keeper();
    let mut command = sessions.platform.ksync(&sessions.world, &["src", &sessions.there()]);
    command
        .env("KSYNC_KEEP", "1")
        .env("XDG_RUNTIME_DIR", sessions.world.path("tmp"))
        .env("KERNEL_API_KEY", "sk_wrong");
    Run::of(command).fails(40);
    assert_eq!(sessions.keeper().1, 0);
}

/// Round trip of the slow link to the VM, and the attempts to see one: a busy machine adds to it.
const ROUND_TRIP: Duration = Duration::from_millis(400);
const ATTEMPTS: u32 = 6;

#[test]
fn a_command_over_a_kept_connection_takes_one_round_trip() {
    let sessions = Sessions::start();
    // The first run's connection, and the keeper's.
    sessions.platform.fault(json!({ "call": "bridge", "delay_ms": 200, "times": 2 }));
    sessions.run(&["src", &sessions.there()]).ok();
    sessions.keeper();
    let took = |_| {
        // The keeper opens the channel for the next command meanwhile.
        std::thread::sleep(3 * ROUND_TRIP);
        let start = Instant::now();
        sessions.run(&["ssh", "mine", "true"]).ok();
        start.elapsed()
    };
    let fastest = (0..ATTEMPTS).map(took).find(|took| *took < 2 * ROUND_TRIP);
    assert!(fastest.is_some_and(|took| took >= ROUND_TRIP), "{fastest:?}");
    assert!(sessions.keeper().1 > 0);
}
