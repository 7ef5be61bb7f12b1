//! `ksync proxy` in the place of websocat: a ProxyCommand for ssh and whatever goes over it.

use std::fs;
use std::process::Command;

use crate::machine::{Machine, Service, are_there};
use crate::world::{Run, noise};

/// A machine behind a bridge, and the options with which OpenSSH's programs get there through ksync.
struct Way {
    machine: Machine,
    options: Vec<String>,
    _bridge: Service,
}

impl Way {
    /// Through `ksync proxy` and websocat.
    fn new() -> Option<Way> {
        let ksync = format!("{} proxy", env!("CARGO_BIN_EXE_ksync"));
        Way::with(&ksync, Machine::bridge)
    }

    /// Through websocat, as people do without ksync, and the bridge that ksync brings to where there is none.
    fn of_others() -> Option<Way> {
        Way::with("websocat --binary", Machine::own_bridge)
    }

    fn with(proxy: &str, bridge: impl FnOnce(&Machine) -> (String, Service)) -> Option<Way> {
        if !are_there(&["scp", "sftp"]) {
            return None;
        }
        let machine = Machine::start()?;
        let (url, bridge) = bridge(&machine);
        let world = &machine.world;
        let host_key = fs::read_to_string(world.path("host-key.pub")).unwrap();
        fs::write(world.path("hosts"), format!("vm {host_key}")).unwrap();
        let options = [
            format!("ProxyCommand={proxy} {url}"),
            format!("IdentityFile={}", world.path("key").display()),
            format!("UserKnownHostsFile={}", world.path("hosts").display()),
            "StrictHostKeyChecking=yes".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        Some(Way { machine, options: options.into(), _bridge: bridge })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.machine.world.command(program);
        command.args(["-F", "none"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// A path there.
    fn there(&self, name: &str) -> String {
        format!("root@vm:{}", self.machine.world.path(name).display())
    }
}

#[test]
fn ssh_runs_commands_through_it_and_their_ends_come_back() {
    for way in [Way::new(), Way::of_others()].into_iter().flatten() {
        let run = |command: &str| {
            let mut ssh = way.command("ssh");
            ssh.args(["root@vm", command]);
            Run::of(ssh)
        };
        let answer = run("echo there; echo trouble >&2; exit 3").fails(3);
        assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("there\n", "trouble\n"));
        // More than any buffer on the way holds, in both directions.
        let much = run("head -c 20000000 /dev/zero | tr '\\0' x").ok();
        assert_eq!(much.stdout.len(), 20_000_000);
    }
}

#[test]
fn scp_and_sftp_copy_through_it() {
    for way in [Way::new(), Way::of_others()].into_iter().flatten() {
        let world = &way.machine.world;
        let content = noise(7, 5_000_000);
        fs::write(world.path("file"), &content).unwrap();
        for old_protocol in [true, false] {
            let mut up = way.command("scp");
            up.args(old_protocol.then_some("-O")).arg("file").arg(way.there("up"));
            Run::of(up).ok();
            assert_eq!(fs::read(world.path("up")).unwrap(), content);
            let mut down = way.command("scp");
            down.args(old_protocol.then_some("-O")).arg(way.there("up")).arg("down");
            Run::of(down).ok();
            assert_eq!(fs::read(world.path("down")).unwrap(), content);
            fs::remove_file(world.path("up")).unwrap();
        }
        let mut sftp = way.command("sftp");
        sftp.args(["-q", "-b", "batch", "root@vm"]);
        // Relative paths there are below the home, which is empty.
        let batch = format!("cd {}\nput file up\nget up back\n", world.path("").display());
        fs::write(world.path("batch"), batch).unwrap();
        Run::of(sftp).ok();
        assert_eq!(fs::read(world.path("back")).unwrap(), content);
    }
}

#[test]
fn rsync_copies_through_it() {
    for way in [Way::new(), Way::of_others()].into_iter().flatten() {
        let world = &way.machine.world;
        world.tree("src").with_everything().file("large", noise(3, 3 << 20));
        let quoted = way.options.iter().map(|option| format!(" -o '{option}'")).collect::<String>();
        let mut rsync = world.command("rsync");
        rsync.args(["-a", "-e", &format!("ssh -F none{quoted}"), "src/", &way.there("dst/")]);
        Run::of(rsync).ok();
        way.machine.rsync_finds_no_difference("src", "dst");
    }
}

#[test]
fn a_bridge_that_is_not_there_is_told() {
    let Some(machine) = Machine::start() else { return };
    let url = format!("ws://127.0.0.1:{}", crate::machine::closed_port());
    let run = machine.world.run(["proxy", &url]).fails(10);
    assert!(run.stderr.contains(&url) && run.stderr.contains("hint: "), "{}", run.stderr);
}
