//! The emulator of a VM and of the platform in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::World;
use super::link::Link;

/// A running `ksync sandbox --json`, ended when dropped.
pub(crate) struct Emulator {
    child: Child,
    /// Its JSON output.
    pub(crate) told: Value,
}

impl Emulator {
    pub(crate) fn new(world: &World) -> Emulator {
        Emulator::of(world.ksync(["sandbox", "--json"]))
    }

    /// Starts an emulator whose VMs have worlds of their own, with their files in a directory.
    pub(crate) fn isolated(world: &World, home: &str) -> Emulator {
        let mut command = world.ksync(["sandbox", "--json", "--home", home]);
        command.env_remove("KSYNC_SANDBOX_HOST_FILES");
        Emulator::of(command)
    }

    /// Starts an emulator by a command.
    pub(crate) fn of(mut command: Command) -> Emulator {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let told = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
        Emulator { child, told }
    }

    /// Puts a link before the VM. `--setup=vm.json` leads through it.
    pub(crate) fn behind_link(&self, world: &World) -> Link {
        let setup = self.told["setup"].to_string();
        let (before, rest) = setup.split_once("ws://127.0.0.1:").expect("a URL");
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).expect("a port");
        let (port, after) = rest.split_at(end);
        let link = Link::to(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().expect("a port"))));
        world.tree(".").file("vm.json", format!("{before}ws://127.0.0.1:{}{after}", link.port));
        link
    }

    /// Adds the environment variables that the emulator printed to a command.
    pub(crate) fn lend(&self, mut command: Command) -> Command {
        for (name, value) in self.told["env"].as_object().expect("variables") {
            command.env(name, value.as_str().expect("a string"));
        }
        command
    }

    pub(crate) fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.end();
    }
}
