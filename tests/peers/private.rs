//! Privacy of local files: keys, pins and stored state.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use crate::machine::Machine;
use crate::world::skip::{needs, needs_superuser};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A machine with a source tree.
fn machine() -> Option<Machine> {
    let machine = Machine::start()?;
    machine.world.tree("src").file("a", "text");
    Some(machine)
}

#[test]
fn a_private_key_that_others_can_read_is_not_used() {
    let Some(machine) = machine() else { return };
    let (key, endpoint) = (machine.world.path("key"), machine.ssh("dst"));
    for mode in [0o644, 0o640, 0o604, 0o660, 0o601] {
        chmod(&key, mode);
        let run = machine.run(["src", &endpoint]).fails(40);
        let said = format!("the private key key can be read by others (mode {mode:04o}), so it is not used");
        assert!(run.stderr.contains(&said) && run.stderr.contains("chmod 600 key"), "{}", run.stderr);
    }
    // A default key file with such a mode is not used either.
    chmod(&key, 0o600);
    let default = machine.world.home().join(".ssh/id_ed25519");
    fs::copy(&key, &default).unwrap();
    machine.world.run(["src", &endpoint]).ok();
    chmod(&default, 0o644);
    let run = machine.world.run(["src", &endpoint]).fails(40);
    assert!(run.stderr.contains("id_ed25519 can be read by others"), "{}", run.stderr);
    // As with ssh, the mode of another owner's file is that owner's business.
    let chowned = chown(&default, Some(65534), None).is_ok();
    if needs(chowned, "only the superuser has files of other owners") {
        machine.world.run(["src", &endpoint]).ok();
    }
    chmod(&key, 0o400);
    machine.run(["src", &endpoint]).ok();
}

#[test]
fn an_unsafe_state_directory_only_stops_runs_that_need_a_pin() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    let (pinned, known) = (machine.behind(&bridge, "dst"), machine.ssh("dst"));
    let state = machine.world.path("state/ksync");
    fs::create_dir(&state).unwrap();
    let open: &dyn Fn() = &|| chmod(&state, 0o777);
    let shared: &dyn Fn() = &|| chmod(&state, 0o770);
    let foreign: &dyn Fn() = &|| {
        chmod(&state, 0o700);
        let _ = chown(&state, Some(65534), None);
    };
    let mut spoils = vec![(open, "can be changed by other users (mode 0777)"), (shared, "(mode 0770)")];
    if needs_superuser() {
        spoils.push((foreign, "belongs to another user (uid 65534, and this is uid 0)"));
    }
    for (spoil, why) in spoils {
        spoil();
        let run = machine.run(["src", &pinned]).fails(5);
        let start = format!("ksync: cannot use the state directory: {} ", state.display());
        assert!(run.stderr.starts_with(&start) && run.stderr.contains(why), "{}", run.stderr);
        assert!(run.stderr.contains("chmod 700") && run.stderr.contains("XDG_STATE_HOME"), "{}", run.stderr);
        // The key is in the user's own known_hosts, so ksync need not store it.
        let run = machine.run(["src", &known]).ok();
        assert!(run.stderr.contains(why), "{}", run.stderr);
        assert!(!machine.run(["src", "local"]).ok().stderr.contains("state"));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }
}

#[test]
fn a_pin_is_not_written_through_a_symlink() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    let endpoint = machine.behind(&bridge, "dst");
    let (state, elsewhere) = (machine.world.path("state/ksync"), machine.world.path("elsewhere"));
    fs::create_dir(&state).unwrap();
    chmod(&state, 0o700);
    fs::write(&elsewhere, "theirs\n").unwrap();
    symlink(&elsewhere, state.join("known_hosts")).unwrap();
    let run = machine.run(["src", &endpoint]).fails(5);
    assert!(run.stderr.contains("it is a symbolic link, which is not written through"), "{}", run.stderr);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "theirs\n");
    // With the key given as an option there is nothing to store.
    let key = fs::read_to_string(machine.world.path("host-key.pub")).unwrap();
    machine.run(["--host-key", &key, "src", &endpoint]).ok();
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "theirs\n");
}
