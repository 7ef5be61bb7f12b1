//! A keeper whose network namespace is gone, as after the end of a container.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::kept::Kept;
use crate::machine::Machine;
use crate::world::skip::{needs, needs_programs, needs_superuser};
use crate::world::{Run, wait_for};

/// Address of the machine in either namespace.
const MACHINE: &str = "10.98.0.1";

/// A process that holds a namespace.
struct Holder(Child);

impl Holder {
    /// Runs a command in the namespace.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(command.get_program());
        inside.args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null());
        inside
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(line: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(line.split(' ')).current_dir("/").env("PATH", crate::world::skip::path());
    command
}

fn done(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_keeper_whose_network_namespace_is_gone_delays_no_run_for_long() {
    if !needs_superuser() || !needs_programs(&["ip", "nsenter", "unshare"]) {
        return;
    }
    // This thread, and what it starts, leave the machine's own network.
    if !needs(unshare(CloneFlags::CLONE_NEWNET).is_ok(), "no network namespace can be made") {
        return;
    }
    let mut holding = Command::new("unshare");
    let holder = Holder(holding.args(["--net", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap());
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    wait_for("a namespace", || {
        let other = std::fs::read_link(format!("/proc/{}/ns/net", holder.0.id())).ok()?;
        (other != own).then_some(())
    });
    for line in [
        "link set lo up",
        &format!("address add {MACHINE}/32 dev lo"),
        &format!("link add kv0 type veth peer name kv1 netns {}", holder.0.id()),
        "address add 10.99.0.1/30 dev kv0",
        "link set kv0 up",
    ] {
        done(ip(line));
    }
    for line in ["address add 10.99.0.2/30 dev kv1", "link set kv1 up", "route add 10.98.0.1 via 10.99.0.1"] {
        done(holder.inside(&ip(line)));
    }
    // The session of the lost connection ends by itself.
    let settings = format!("ListenAddress {MACHINE}\nClientAliveInterval 2\nClientAliveCountMax 1");
    let Some(machine) = Machine::with(&settings) else { return };
    let Some(kept) = Kept::of(machine) else { return };
    let world = &kept.machine.world;
    let key = std::fs::read_to_string(world.path("host-key.pub")).unwrap();
    world.tree("home/.ssh").file("known_hosts", format!("[{MACHINE}]:{} {key}", kept.machine.port));
    let there = format!("ssh://root@{MACHINE}:{}{}", kept.machine.port, world.path("dst").display());
    let copy = || kept.ksync(["--identity", "key", "src", &there]);
    world.tree("src").file("a", "one");
    Run::of(holder.inside(&copy())).ok();
    let keeper = kept.keeper();
    Run::of(holder.inside(&copy())).ok();
    assert_eq!(kept.keeper().served, 1);
    done(ip("link delete kv0"));
    drop(holder);
    assert!(keeper.is_alive());
    for content in ["changed", "changed again"] {
        world.tree("src").file("a", content);
        let begin = Instant::now();
        Run::of(copy()).ok();
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        kept.is_same();
    }
    Run::of(kept.ksync(["keep", "stop"])).ok();
    kept.ends(&keeper);
}
