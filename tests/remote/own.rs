//! Servers that only ksync's own SSH client can talk to: the same trust, logins and channels.

use std::process::{Command, Stdio};

use ksync::remote::ssh_config::SshAgent;
use ksync::remote::{ErrorKind, HostKeys, Keys, RemoteError, Target, connect};

use crate::server::Server;
use crate::world::skip::needs_programs;
use crate::world::wait_for;

/// A line of sshd's configuration.
pub(crate) const SETTINGS: &str = "KexAlgorithms sntrup761x25519-sha512@openssh.com";

fn make(server: &Server, name: &str, args: &[&str]) -> Keys {
    let file = server.path(name);
    let mut command = Command::new("ssh-keygen");
    let made = command.args(["-q", "-N", "", "-C", name, "-f"]).arg(&file).args(args).status();
    assert!(made.unwrap().success(), "{args:?}");
    Keys::named(vec![file])
}

fn authorise(server: &Server, name: &str) {
    std::fs::copy(server.path(format!("{name}.pub")), server.path("key.pub")).unwrap();
}

#[tokio::test]
async fn every_kind_of_key_and_certificate_logs_in() {
    let Some(server) = Server::with(SETTINGS) else { return };
    for (name, args) in [
        ("ecdsa256", &["-t", "ecdsa", "-b", "256"][..]),
        ("ecdsa521", &["-t", "ecdsa", "-b", "521"]),
        ("ed25519", &["-t", "ed25519"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
    ] {
        let keys = make(&server, name, args);
        authorise(&server, name);
        connect(&Target { keys: keys.clone(), ..server.target() })
            .await
            .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        make(&server, "authority", &["-t", "ed25519"]);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-I", "it", "-n", "root", "-s"]).arg(server.path("authority"));
        assert!(command.arg(server.path(format!("{name}.pub"))).status().unwrap().success());
        std::fs::write(server.path("key.pub"), format!("cert-authority {}", server.text("authority.pub")))
            .unwrap();
        connect(&Target { keys, ..server.target() }).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        for made in ["authority", "authority.pub"] {
            std::fs::remove_file(server.path(made)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_key_of_ssh_agent_that_is_bound_to_the_host_logs_in() {
    let Some(server) = Server::with(SETTINGS) else { return };
    if !needs_programs(&["ssh-agent", "ssh-add"]) {
        return;
    }
    let socket = server.path("agent");
    let mut agent =
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    wait_for("ssh-agent", || socket.exists().then_some(()));
    let known_hosts = server.path("known_hosts");
    std::fs::write(
        &known_hosts,
        format!("host {}other {}", server.text("host.pub"), server.text("other.pub")),
    )
    .unwrap();
    let mut results = Vec::new();
    for (host, name) in [("host", "key"), ("other", "other")] {
        std::fs::write(server.path("key.pub"), server.text(&format!("{name}.pub"))).unwrap();
        let mut add = Command::new("ssh-add");
        add.args(["-q", "-H"]).arg(&known_hosts).args(["-h", host]).arg(server.path(name));
        assert!(add.env("SSH_AUTH_SOCK", &socket).status().unwrap().success());
        let keys = Keys { ssh_agent: SshAgent::At(socket.clone()), ..Keys::default() };
        results.push(connect(&Target { keys, ..server.target() }).await.map(drop));
    }
    let _ = agent.kill();
    let _ = agent.wait();
    assert!(results[0].is_ok(), "{:?}", results[0]);
    assert_eq!(results[1].as_ref().unwrap_err().kind(), ErrorKind::NotAuthorised);
}

#[tokio::test]
async fn a_wrong_host_key_and_a_wrong_user_key_are_told_as_usual() {
    let Some(server) = Server::with(SETTINGS) else { return };
    let host_keys = HostKeys::Exactly(server.text("other.pub"));
    let error = connect(&Target { host_keys, ..server.target() }).await.map(drop).unwrap_err();
    assert!(matches!(error, RemoteError::HostKey { .. }), "{error:?}");
    let keys = Keys::named(vec![server.path("other")]);
    let error = connect(&Target { keys, ..server.target() }).await.map(drop).unwrap_err();
    assert!(error.to_string().ends_with("it did not accept the key (it accepts: publickey)"), "{error}");
}

#[tokio::test]
async fn commands_run_also_where_one_channel_is_allowed() {
    for more in ["", "\nMaxSessions 1"] {
        let Some(server) = Server::with(&format!("{SETTINGS}{more}")) else { return };
        let connection = server.connect().await;
        for (command, status) in [("echo one; echo two >&2; exit 3", 3), ("kill -TERM $$", 128)] {
            let mut lines = Vec::new();
            let told = connection.run(command.as_bytes(), &mut |line| lines.push(line.to_vec())).await;
            assert_eq!(told.unwrap(), status);
            lines.sort();
            assert_eq!(lines.len(), if status == 3 { 2 } else { 0 }, "{lines:?}");
        }
        connection.close().await;
    }
}

#[tokio::test]
async fn a_server_that_ends_is_told_as_lost() {
    let Some(server) = Server::with(SETTINGS) else { return };
    let connection = server.connect().await;
    let error = connection.run(b"kill -9 $PPID; sleep 60", &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, RemoteError::Lost { .. }) && connection.is_closed(), "{error:?}");
}
