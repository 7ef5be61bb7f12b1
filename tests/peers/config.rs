//! `~/.ssh/config` and keys as users have them, with the program itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::machine::Machine;
use crate::world::Run;
use crate::world::skip::needs_superuser;

/// A user without rights.
const NOBODY: u32 = 65534;

/// A machine with a source tree, and with its key among the default ones.
fn machine(settings: &str) -> Option<Machine> {
    let machine = Machine::with(settings)?;
    machine.world.tree("src").file("a", "text");
    let ssh = machine.world.home().join(".ssh");
    fs::copy(machine.world.path("key"), ssh.join("id_ed25519")).unwrap();
    Some(machine)
}

impl Machine {
    fn configure(&self, text: &str) {
        let text = text.replace("PORT", &self.port.to_string());
        self.world.tree("home/.ssh").file("config", text).mode("config", 0o600);
    }

    fn dst(&self, host: &str) -> String {
        format!("{host}{}", self.world.path("dst").display())
    }
}

#[test]
fn a_match_block_leads_to_the_host_that_ssh_finds() {
    let Some(machine) = machine("") else { return };
    for block in [
        "Match host vm",
        "Match originalhost v*,other",
        "Match user root originalhost vm",
        "Match exec \"test %n = vm\"",
        "Match !host 127.0.0.1 localuser root",
    ] {
        machine.configure(&format!("{block}\n HostName 127.0.0.1\n Port PORT\n User root\n"));
        machine.world.run(["src", &machine.dst("ssh://root@vm")]).ok();
        machine.rsync_finds_no_difference("src", "dst");
        fs::remove_dir_all(machine.world.path("dst")).unwrap();
    }
    machine.configure("Match host vm\n ProxyJump jump\nHost vm\n HostName 127.0.0.1\n Port PORT\n");
    let run = machine.world.run(["src", &machine.dst("ssh://root@vm")]).fails(1);
    assert!(run.stderr.contains("through a proxy (jump), which ksync cannot follow"), "{}", run.stderr);
    machine.configure("Match host vm\n BindInterface lo\n");
    let run = machine.world.run(["src", &machine.dst("ssh://root@vm")]).fails(1);
    let said = "ksync: cannot follow the SSH configuration: ";
    assert!(
        run.stderr.starts_with(said) && run.stderr.contains("config:2: BindInterface lo: "),
        "{}",
        run.stderr
    );
    assert!(!machine.world.path("dst").exists());
}

#[test]
fn a_host_of_the_configuration_needs_no_user_and_no_scheme() {
    let Some(machine) = machine("") else { return };
    let host = "Host vm *.vm\n HostName 127.0.0.1\n Port PORT\n User root\n";
    machine.configure(host);
    let run = machine.world.run(["src", &machine.dst("vm:")]).ok();
    assert!(run.stderr.starts_with(&format!("src → {}", machine.dst("vm:"))), "{}", run.stderr);
    machine.rsync_finds_no_difference("src", "dst");
    machine.world.run([&machine.dst("vm:"), "back"]).ok();
    machine.rsync_finds_no_difference("src", "back");
    // A pattern names no host.
    let run = machine.world.run(["src", &machine.dst("a.vm:")]).fails(40);
    assert!(run.stderr.contains("user@a.vm:/path"), "{}", run.stderr);
    // A session that was used from here goes before the host.
    let known = serde_json::json!({
        "session_id": "abc",
        "name": "vm",
        "vm_domain": "127.0.0.1",
        "host_key": fs::read_to_string(machine.world.path("host-key.pub")).unwrap().trim(),
        "key_file": machine.world.path("key"),
        "cdp_ws_url": "ws://127.0.0.1:1/",
        "base_url": "https://api.example",
    });
    machine.world.tree("state/ksync/sessions").file("abc.json", known.to_string());
    let run = machine.world.run(["src", &machine.dst("vm:")]).fails(10);
    assert!(run.stderr.contains("wss://127.0.0.1:2222"), "{}", run.stderr);
}

#[test]
fn addresses_are_those_of_the_configuration() {
    let Some(machine) = machine("") else { return };
    let host = "Host vm\n HostName localhost\n HostKeyAlias machine\n Port PORT\n User root\n";
    machine.configure(&format!("{host} AddressFamily inet\n BindAddress 127.0.0.9\n"));
    let known = fs::read_to_string(machine.world.path("host-key.pub")).unwrap();
    machine
        .world
        .tree("home/.ssh")
        .file("known_hosts", format!("machine {known}"))
        .mode("known_hosts", 0o600);
    let exec = format!("echo $SSH_CONNECTION >{}", machine.world.path("from").display());
    machine.world.run(["--exec", &exec, "src", &machine.dst("vm:")]).ok();
    let from = fs::read_to_string(machine.world.path("from")).unwrap();
    assert!(from.starts_with("127.0.0.9 "), "{from}");
    machine.configure(&format!("{host} AddressFamily inet6\n"));
    let run = machine.world.run(["src", &machine.dst("vm:")]).fails(10);
    assert!(run.stderr.contains("could not connect to localhost"), "{}", run.stderr);
}

#[test]
fn a_command_runs_where_the_server_allows_one_session() {
    let Some(machine) = machine("MaxSessions 1") else { return };
    let ran = machine.world.path("ran");
    let exec = format!("echo ran >>{}", ran.display());
    machine.run(["--exec", &exec, "src", &machine.ssh("dst")]).ok();
    machine.rsync_finds_no_difference("src", "dst");
    assert_eq!(fs::read_to_string(ran).unwrap(), "ran\n");
}

#[test]
fn a_home_of_another_user_does_no_harm_if_everything_is_given() {
    let Some(machine) = machine("") else { return };
    if !needs_superuser() {
        return;
    }
    let (bridge, _service) = machine.bridge();
    let (world, host_key) = (&machine.world, fs::read_to_string(machine.world.path("host-key.pub")).unwrap());
    // The other user reaches the source, the key and the program, but not the home.
    let (program, key) = (world.path("program"), world.path("other-users-key"));
    fs::copy(env!("CARGO_BIN_EXE_ksync"), &program).unwrap();
    fs::copy(world.path("key"), &key).unwrap();
    chown(&key, Some(NOBODY), None).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for (path, bits) in [(".", 0o755), ("src", 0o755), ("program", 0o755), ("home", 0o700)] {
        mode(&world.path(path), bits);
    }
    machine.configure("Host *\n BindInterface lo\n");
    let homes = [Some(world.home()), Some("/nonexistent".into()), None];
    for (home, endpoint) in
        homes.iter().flat_map(|home| [(home, machine.ssh("dst")), (home, machine.behind(&bridge, "dst"))])
    {
        let mut ksync = world.command(&program);
        ksync.args(["--identity", "other-users-key", "--host-key", host_key.trim(), "src", &endpoint]);
        for variable in ["HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            ksync.env_remove(variable);
        }
        home.as_ref().map(|home| ksync.env("HOME", home));
        // The second number has no name and no home.
        ksync.uid(if home.is_some() { NOBODY } else { NOBODY - 7 });
        if home.is_none() {
            chown(&key, Some(NOBODY - 7), None).unwrap();
        }
        Run::of(ksync).ok();
        machine.rsync_finds_no_difference("src", "dst");
        fs::remove_dir_all(world.path("dst")).unwrap();
    }
}

#[test]
fn an_ssh_command_for_rsync_leads_ksync_to_the_same_host() {
    let Some(machine) = Machine::start() else { return };
    let world = &machine.world;
    world.tree("src").file("a", "text");
    // ssh's configuration names no host, so that only -e tells that this is one.
    for (from, to) in [("key", "my key"), ("key.pub", "my key.pub")] {
        fs::rename(world.path(from), world.path(to)).unwrap();
    }
    let ssh = |more: &str| format!("ssh -p {} -i 'my key' {more}", machine.port);
    let bare = format!("127.0.0.1:{}", world.path("dst").display());
    let both = [
        ["-av", "-e", &ssh("-l root -o BatchMode=yes -o StrictHostKeyChecking=yes"), "src/", &bare],
        ["-a", "--rsh", &ssh("-oUser=root -q -o ServerAliveInterval=9"), "src/", &format!("root@{bare}")],
    ];
    for args in both {
        world.run(args).ok();
        machine.rsync_finds_no_difference("src", "dst");
        // rsync takes the same command line, and finds nothing left to do.
        let mut rsync = world.command("rsync");
        let known = format!("-o UserKnownHostsFile={}", world.home().join(".ssh/known_hosts").display());
        rsync.args(["-ai", args[1], &format!("{} {known}", args[2]), args[3], args[4]]);
        assert_eq!(Run::of(rsync).ok().stdout, "");
        fs::remove_dir_all(world.path("dst")).unwrap();
    }
    let port = machine.port;
    for (rsh, endpoint, told) in [
        (
            ssh(""),
            format!("ssh://root@127.0.0.1:1{}", world.path("dst").display()),
            format!("the endpoint names port 1 of 127.0.0.1, and -e names port {port}"),
        ),
        (
            ssh("-l me"),
            format!("root@{bare}"),
            "the endpoint names user root of 127.0.0.1, and -e names user me".into(),
        ),
        (ssh(""), "session:/x".into(), "-e ssh is for an SSH host, and session:/x is none".into()),
        (ssh(""), "sandbox:/x".into(), "-e ssh is for an SSH host, and sandbox:/x is none".into()),
        (ssh(""), "wss://vm/x".into(), "-e ssh is for an SSH host, and wss://vm/x is none".into()),
        (ssh("-J jump"), bare.clone(), "-J jump of -e is refused: ".into()),
        (
            ssh("-o StrictHostKeyChecking=no"),
            bare.clone(),
            "-o StrictHostKeyChecking=no of -e is refused: ".into(),
        ),
    ] {
        let run = world.run(["-e", &rsh, "src", &endpoint]).fails(1);
        assert!(run.stderr.starts_with(&format!("ksync: {told}")), "{}", run.stderr);
    }
    // Without -e the name is no host.
    let run = world.run(["src", &bare]);
    assert!(!run.status.success() && !world.path("dst").exists(), "{}", run.stderr);
    // rsync ignores the command where both sides are here.
    world.run(["-e", "ssh -p 1", "src", "dst"]).ok();
}

#[test]
fn another_configuration_and_an_address_family_lead_to_the_host_of_ssh() {
    let Some(machine) = machine("") else { return };
    let world = &machine.world;
    machine.configure("Host vm\n HostName 192.0.2.1\n ConnectTimeout 1\n");
    let known = fs::read_to_string(world.path("host-key.pub")).unwrap();
    world.tree("home/.ssh").file("known_hosts", format!("machine {known}")).mode("known_hosts", 0o600);
    let host = "Host vm\n HostName localhost\n HostKeyAlias machine\n User root\n";
    world.tree(".").file("other", format!("{host} Port {}\n", machine.port)).mode("other", 0o600);
    let ssh = |more: &str| format!("ssh {more} -F {}", world.path("other").display());
    let destination = machine.dst("vm:");
    for args in
        [&["-e", &ssh("-4")][..], &["-4", "-e", &ssh("")], &["--ipv4", "-6", "--ipv4", "-e", &ssh("")]]
    {
        world.run([args, &["src", &destination]].concat()).ok();
        machine.rsync_finds_no_difference("src", "dst");
        let mut rsync = world.command("rsync");
        let shell = format!(
            "{} -o UserKnownHostsFile={} -i {} -o BatchMode=yes",
            ssh("-4"),
            world.home().join(".ssh/known_hosts").display(),
            world.path("key").display()
        );
        rsync.args(["-ai", "-e", &shell, "src/", &destination]);
        assert_eq!(Run::of(rsync).ok().stdout, "");
        fs::remove_dir_all(world.path("dst")).unwrap();
    }
    for args in [&["-e", &ssh("-6")][..], &["-6", "-e", &ssh("-4")], &["--ipv6", "-e", &ssh("")]] {
        let run = world.run([args, &["src", &destination]].concat()).fails(10);
        assert!(run.stderr.contains("could not connect to localhost"), "{}", run.stderr);
    }
    assert!(!world.path("dst").exists());
}
