//! The first round sends everything; later rounds send each save, on the same connection.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::watcher::{Direction, Watcher};
use crate::world::World;

#[test]
fn a_save_arrives_in_an_incremental_round() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").with_everything();
        let watcher = Watcher::start(&world, direction, &[]);
        let ready = watcher.event("ready");
        world.assert_same("src", "dst");
        assert_eq!(ready["whole"], true, "{direction:?}");

        let mark = watcher.mark();
        world.tree("src").file("src/main.rs", "fn main() { println!() }\n");
        let round = watcher.event_where("round", mark, |_| true);
        assert_eq!(fs::read(world.path("dst/src/main.rs")).unwrap(), b"fn main() { println!() }\n");
        assert_eq!((&round["whole"], &round["files"]), (&false.into(), &1.into()), "{direction:?}: {round}");
        assert!(round["entries"].as_u64().unwrap() < 5, "not all was listed: {round}");
        watcher.is_there();
        assert!(!world.path("dst/.ksync").exists());
    }
}

#[test]
fn a_single_file_is_watched() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("notes", "one").file("other", "x");
        world.tree("dst");
        let [source, destination] = direction.endpoints(&world);
        let (mut file, mut command) = (source, world.ksync(["--watch", "--json"]));
        file.push("/notes");
        command.arg(&file).arg(&destination);
        let near = if direction == Direction::Down { "dst" } else { "src/notes" };
        let watcher = Watcher::of(&world, near, command);
        watcher.event("ready");
        let mark = watcher.mark();
        world.tree("src").file("notes.tmp", "two");
        fs::rename(world.path("src/notes.tmp"), world.path("src/notes")).unwrap();
        watcher.event_where("round", mark, |_| true);
        assert_eq!(fs::read(world.path("dst/notes")).unwrap(), b"two", "{direction:?}");
        fs::write(world.path("src/notes"), "three").unwrap();
        watcher.flush();
        assert_eq!(fs::read(world.path("dst/notes")).unwrap(), b"three", "{direction:?}");
        assert_eq!(fs::read_dir(world.path("dst")).unwrap().count(), 1, "{direction:?}");
        // An editor that keeps a backup moves the file away and writes it anew.
        for (pause, content) in [(40, "four"), (500, "five")] {
            fs::rename(world.path("src/notes"), world.path("src/notes~")).unwrap();
            std::thread::sleep(Duration::from_millis(pause));
            fs::write(world.path("src/notes"), content).unwrap();
            watcher.flush();
            assert_eq!(fs::read_to_string(world.path("dst/notes")).unwrap(), content, "{direction:?}");
        }
    }
}

#[test]
fn a_signal_ends_the_watch_with_20_and_leaves_nothing_behind() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").with_everything();
        let watcher = Watcher::ready(&world, direction, &[]);
        watcher.signal(Signal::INT);
        watcher.ends(20);
        world.assert_same("src", "dst");
        assert!(!world.path("dst/.ksync").exists());
        assert_eq!(fs::read_dir(world.path("state/ksync/watch")).unwrap().count(), 0, "{direction:?}");
    }
}
