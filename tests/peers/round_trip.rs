//! Uploads and downloads over every kind of connection, verified by rsync.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::tls::Tls;
use crate::world::noise;

/// Limit of copied third-party source files.
const SOURCE_FILES_MAX: usize = 3000;

/// Uploads, downloads, and repeats both with changes; rsync verifies each step. `endpoint` makes an
/// endpoint from a directory's name.
#[track_caller]
fn goes_round(machine: &Machine, options: &[&str], endpoint: impl Fn(&str) -> String) {
    let world = &machine.world;
    world.tree("src").with_everything().file("large", noise(1, 3 << 20));
    for round in 0..2_usize {
        let up = endpoint("up");
        let sync = |source: &str, destination: &str| {
            let arguments = ["--delete", source, destination];
            machine.run(options.iter().copied().chain(arguments)).ok().stats()
        };
        sync("src", &up);
        machine.rsync_finds_no_difference("src", "up");
        world.assert_same("src", "up");
        sync(&up, "back");
        machine.rsync_finds_no_difference("src", "back");
        world.assert_same("src", "back");
        let again = sync("src", &up);
        assert_eq!(again.sent_bytes, 0);
        assert!(again.summary.starts_with("nothing to do: "), "{}", again.summary);
        let mut large = fs::read(world.path("src/large")).unwrap();
        large[(round + 1) << 20] ^= 1;
        fs::remove_dir_all(world.path("src/nothing")).unwrap_or_default();
        world.tree("src").file("large", large).file("new/file", "new").mode("read me.txt", 0o600);
    }
}

#[test]
fn a_round_trip_works_through_websocat() {
    let Some(machine) = Machine::start() else { return };
    let (bridge, _service) = machine.bridge();
    goes_round(&machine, &[], |name| machine.behind(&bridge, name));
}

#[test]
fn a_round_trip_works_through_ksyncs_bridge() {
    let Some(machine) = Machine::start() else { return };
    let (bridge, _service) = machine.own_bridge();
    goes_round(&machine, &[], |name| machine.behind(&bridge, name));
}

#[test]
fn a_round_trip_works_through_websocat_and_tls() {
    let Some(machine) = Machine::start() else { return };
    let (bridge, _service) = machine.bridge();
    let tls = Tls::before(&bridge, &machine.world);
    goes_round(&machine, &["--ca-cert", "ca.pem"], |name| machine.behind(&tls.url, name));
}

#[test]
fn a_round_trip_works_over_plain_ssh() {
    let Some(machine) = Machine::start() else { return };
    goes_round(&machine, &[], |name| machine.ssh(name));
}

#[test]
fn a_round_trip_works_with_the_setup_of_the_kernel_cli() {
    let Some(machine) = Machine::start() else { return };
    let (bridge, _service) = machine.bridge();
    let key = machine.world.path("key");
    let setup = format!(
        r#"{{
  "vm_domain": "127.0.0.1",
  "session_id": "abcdef",
  "ssh_key_file": "{key}",
  "proxy_command": "websocat --binary {bridge}",
  "ssh_command": "ssh -o 'ProxyCommand=websocat --binary {bridge}' -i {key} root@localhost"
}}
"#,
        key = key.display()
    );
    machine.world.tree(".").file("setup.json", setup);
    let endpoint = |name: &str| format!(":{}", machine.world.path(name).display());
    goes_round(&machine, &["--setup", "setup.json"], endpoint);
}

#[test]
fn third_party_sources_arrive_unchanged() {
    let Some(machine) = Machine::start() else { return };
    let world = &machine.world;
    copy_sources(&world.path("src"));
    let (bridge, _service) = machine.bridge();
    let up = machine.behind(&bridge, "up");
    machine.run(["src", &up]).ok();
    machine.rsync_finds_no_difference("src", "up");
    machine.run([&up, "back"]).ok();
    machine.rsync_finds_no_difference("src", "back");
    let again = machine.run(["src", &up]).ok().stats();
    assert_eq!(again.sent_bytes, 0);
}

/// Copies the sources that cargo has unpacked on this machine, with real names, sizes and modes.
fn copy_sources(to: &Path) {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).expect("a home");
    let root = cargo_home.join("registry/src");
    let mut files = 0;
    for entry in walkdir::WalkDir::new(&root).sort_by_file_name() {
        let entry = entry.expect("an entry");
        let place = to.join(entry.path().strip_prefix(&root).expect("below the root"));
        if entry.file_type().is_dir() {
            fs::create_dir_all(place).expect("a directory");
        } else if entry.file_type().is_symlink() {
            symlink(fs::read_link(entry.path()).expect("a link"), place).expect("a link");
        } else {
            fs::copy(entry.path(), place).expect("a file");
            files += 1;
        }
        if files == SOURCE_FILES_MAX {
            return;
        }
    }
    assert!(files > 0, "there are no sources in {}", root.display());
}
