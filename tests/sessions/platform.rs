//! The emulator of the platform in its own process, and direct requests to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::world::{Emulator, Run, World};

/// A running emulator.
pub(crate) struct Platform(Emulator);

impl Platform {
    pub(crate) fn start(world: &World) -> Platform {
        Platform::of(world, world.ksync(["sandbox", "--json", "--home"]))
    }

    /// Starts an emulator whose VMs have worlds of their own.
    pub(crate) fn isolated(world: &World) -> Platform {
        Platform(Emulator::isolated(world, "platform"))
    }

    /// Starts an emulator whose VMs take the text of a file for their kernel's boot id.
    pub(crate) fn started_as(world: &World, boot: &Path) -> Platform {
        let mut command = world.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg("mount --bind \"$1\" /proc/sys/kernel/random/boot_id; shift; exec \"$@\"");
        command.arg("sh").arg(boot).arg(env!("CARGO_BIN_EXE_ksync"));
        command.args(["sandbox", "--json", "--home"]);
        Platform::of(world, command)
    }

    fn of(world: &World, mut command: Command) -> Platform {
        command.arg(world.path("platform"));
        Platform(Emulator::of(command))
    }

    /// Value of an environment variable from the emulator's output.
    pub(crate) fn env(&self, name: &str) -> &str {
        let told = &self.0.told;
        told["env"][name].as_str().unwrap_or_else(|| panic!("{name} in {told}"))
    }

    /// `ksync` with these arguments and the emulator's environment variables.
    pub(crate) fn ksync(&self, world: &World, args: &[&str]) -> Command {
        self.0.lend(world.ksync(args))
    }

    pub(crate) fn run(&self, world: &World, args: &[&str]) -> Run {
        Run::of(self.ksync(world, args))
    }

    /// Creates a session and returns its id.
    pub(crate) fn create(&self, world: &World, args: &[&str]) -> String {
        let run = self.run(world, &[&["session", "create"], args].concat()).ok();
        run.stdout.trim().to_owned()
    }

    /// Root directory of a session's VM.
    pub(crate) fn root(&self, id: &str) -> PathBuf {
        PathBuf::from(self.session(id)["root"].as_str().expect("a root"))
    }

    /// Path on this machine of an [`endpoint`] in a session with a world.
    pub(crate) fn path(&self, world: &World, id: &str, name: &str) -> PathBuf {
        self.root(id).join(world.path(name).strip_prefix("/").expect("an absolute path"))
    }

    /// Status of the API's answer about a session.
    pub(crate) fn status(&self, id: &str) -> u16 {
        self.ask("GET", &format!("/browsers/{id}"), &Value::Null).0
    }

    /// Sends a request to the API, or below `/_sandbox` to the emulator itself. Returns status and
    /// body.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let address = self.env("KERNEL_BASE_URL").strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.env("KERNEL_API_KEY"),
            body.len(),
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            body.lines().skip(1).step_by(2).collect::<String>()
        } else {
            body.to_owned()
        };
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Number of calls of each kind since the last request.
    pub(crate) fn calls(&self) -> Value {
        let (_, told) = self.ask("GET", "/_sandbox/calls", &Value::Null);
        self.ask("DELETE", "/_sandbox/calls", &Value::Null);
        told["calls"].clone()
    }

    /// Sets a fault of the next calls.
    pub(crate) fn fault(&self, fault: Value) {
        assert!(self.ask("POST", "/_sandbox/faults", &fault).0 < 300, "{fault}");
    }

    /// Advances the platform's clock.
    pub(crate) fn advance(&self, seconds: u64) {
        let jump = serde_json::json!({ "advance_seconds": seconds });
        assert!(self.ask("POST", "/_sandbox/clock", &jump).0 < 300);
    }

    /// The emulator's record of a session.
    pub(crate) fn session(&self, id: &str) -> Value {
        self.ask("GET", &format!("/_sandbox/sessions/{id}"), &Value::Null).1
    }
}

/// A path in the world as an endpoint in a session.
pub(crate) fn endpoint(world: &World, session: &str, name: &str) -> String {
    format!("{session}:{}", world.path(name).display())
}
