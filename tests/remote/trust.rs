//! Trust: ksync in host keys, and servers in ksync's keys.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use ksync::remote::{ErrorKind, HostKeyError, HostKeys, Keys, RemoteError, Target, connect};

use crate::server::{ECHO, Server, echoes};
use crate::world::noise;
use crate::world::service::make_key;
use crate::world::skip::needs_programs;

fn known_hosts(server: &Server, text: &str) -> Target {
    let file = server.path("known_hosts");
    std::fs::write(&file, text).unwrap();
    let host_keys = HostKeys::KnownHosts { files: vec![file], host: "127.0.0.1".into(), port: server.port() };
    Target { host_keys, ..server.target() }
}

#[track_caller]
fn why_not_trusted(result: Result<ksync::remote::Connection, RemoteError>) -> HostKeyError {
    match result.map(|_| ()) {
        Err(error @ RemoteError::HostKey { .. }) => {
            assert_eq!(error.kind(), ErrorKind::HostKey);
            assert!(!error.hint().is_empty());
            let RemoteError::HostKey { source, .. } = error else { unreachable!() };
            *source
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_host_is_known_by_any_line_of_openssh() {
    let Some(server) = Server::new() else { return };
    let (ed25519, ecdsa, port) = (server.text("host.pub"), server.text("host_ecdsa.pub"), server.port());
    for line in [
        format!("[127.0.0.1]:{port} {ed25519}"),
        format!("other,[127.0.0.?]:* {ed25519}"),
        format!("127.0.0.1 {ed25519}"),
        // The host also has a key of a preferred type. It must show the key that the file knows.
        format!("[127.0.0.1]:{port} {ecdsa}"),
    ] {
        connect(&known_hosts(&server, &line)).await.unwrap_or_else(|error| panic!("{line}: {error:?}"));
    }
    // The file is hashed by OpenSSH itself.
    let target = known_hosts(&server, &format!("[127.0.0.1]:{port} {ed25519}"));
    let file = server.path("known_hosts");
    let hashing = Command::new("ssh-keygen").arg("-H").arg("-f").arg(&file).output().unwrap();
    assert!(hashing.status.success() && server.text("known_hosts").starts_with("|1|"));
    connect(&target).await.unwrap();
}

#[tokio::test]
async fn a_host_without_a_matching_record_is_refused_and_not_learnt() {
    let Some(server) = Server::new() else { return };
    let (right, wrong, port) = (server.text("host.pub"), server.text("other.pub"), server.port());
    let refused = async |text: String| {
        let error = why_not_trusted(connect(&known_hosts(&server, &text)).await);
        assert_eq!(server.text("known_hosts"), text, "something was written");
        error
    };
    let name = format!("[127.0.0.1]:{port}");
    assert!(matches!(refused(String::new()).await, HostKeyError::Unknown { .. }));
    assert!(matches!(refused(format!("!{name},* {right}")).await, HostKeyError::Unknown { .. }));
    assert!(matches!(refused(format!("{name} {wrong}")).await, HostKeyError::Changed { .. }));
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7";
    assert!(matches!(refused(format!("{name} {rsa}")).await, HostKeyError::Changed { .. }));
    let revoked = format!("{name} {right}\n@revoked * {right}");
    assert!(matches!(refused(revoked).await, HostKeyError::Revoked { .. }));
    let authority = format!("@cert-authority * {right}");
    assert!(matches!(refused(authority).await, HostKeyError::Authority { .. }));
    let host_keys = HostKeys::KnownHosts { files: vec![server.home()], host: "127.0.0.1".into(), port };
    let unreadable = connect(&Target { host_keys, ..server.target() }).await;
    assert!(matches!(why_not_trusted(unreadable), HostKeyError::Unreadable { .. }));
    let host_keys = HostKeys::Exactly(wrong);
    let unexpected = connect(&Target { host_keys, ..server.target() }).await;
    assert!(matches!(why_not_trusted(unexpected), HostKeyError::NotExpected { .. }));
}

#[tokio::test]
async fn the_first_key_is_kept_and_a_later_one_refused() {
    let Some(mut server) = Server::new() else { return };
    let store = server.path("state/ksync/hosts");
    let host_keys = HostKeys::PinOnFirstUse { store: store.clone(), endpoint: "vm 1".into() };
    let target = Target { host_keys, ..server.target() };
    for _ in 0..2 {
        connect(&target).await.unwrap();
    }
    let pinned = std::fs::read_to_string(&store).unwrap();
    assert_eq!(pinned.lines().count(), 1);
    // A new key of the same type, then only a key of the other type.
    make_key(&server, "host", "ed25519");
    server.start("");
    assert!(matches!(why_not_trusted(connect(&target).await), HostKeyError::Changed { line: 1, .. }));
    server.start("HostKeyAlgorithms ecdsa-sha2-nistp256");
    assert!(matches!(why_not_trusted(connect(&target).await), HostKeyError::Changed { line: 1, .. }));
    assert_eq!(std::fs::read_to_string(&store).unwrap(), pinned);
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_not_authorised() {
    let Some(server) = Server::new() else { return };
    let target = Target { keys: Keys::named(vec![server.path("other")]), ..server.target() };
    let error = connect(&target).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error:?}");
    let user = target.user.clone();
    let expected = format!(
        "could not log in as {user} on 127.0.0.1:{}: it did not accept the key (it accepts: publickey)",
        server.port()
    );
    assert_eq!(error.to_string(), expected);
    // The same server accepts the right key, also from memory, and after a wrong one.
    connect(&Target { keys: Keys::named(vec![server.path("other"), server.path("key")]), ..server.target() })
        .await
        .unwrap();
    let keys = Keys { text: Some(server.text("key")), ..Keys::named(Vec::new()) };
    connect(&Target { keys, ..server.target() }).await.unwrap();
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_named() {
    let Some(server) = Server::new() else { return };
    let secret = server.path("secret");
    let mut making = Command::new("ssh-keygen");
    making.args(["-q", "-t", "ed25519", "-N", "passphrase", "-f"]).arg(&secret);
    assert!(making.status().unwrap().success());
    // Not a key, but protected like one.
    std::fs::set_permissions(server.path("sshd.log"), PermissionsExt::from_mode(0o600)).unwrap();
    for (file, hint) in [
        (secret, "ssh-add"),
        (server.path("missing"), "Check the path of the key."),
        (server.path("sshd.log"), "ssh-keygen"),
    ] {
        let target = Target { keys: Keys::named(vec![file.clone()]), ..server.target() };
        let error = connect(&target).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        assert!(error.hint().contains(hint), "{}", error.hint());
        assert_eq!(error.kind(), ErrorKind::NotAuthorised);
    }
}

/// ssh-agent is found through the environment, so this test runs itself again in another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_ssh_agent_logs_in() {
    const INNER: &str = "KSYNC_TEST_SSH_AGENT_KEY";
    let Some(mut server) = Server::new() else { return };
    if let Some(key) = std::env::var_os(INNER) {
        std::fs::copy(std::path::Path::new(&key).with_extension("pub"), server.path("key.pub")).unwrap();
        let image = server.image(ECHO);
        for keys in [Keys::default(), Keys::named(vec![key.into()])] {
            let target = Target { keys, ..server.target() };
            let connection = connect(&target).await.unwrap();
            echoes(connection.agent(image.clone()).await.unwrap(), noise(1, 100)).await;
        }
        return;
    }
    if !needs_programs(&["ssh-agent", "ssh-add"]) {
        return;
    }
    let (socket, key) = (server.path("socket"), server.path("locked"));
    let mut agent =
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    while !socket.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    make_key(&server, "locked", "ed25519");
    let add = Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).status().unwrap();
    assert!(add.success());
    // From now on the file alone is useless.
    let lock = Command::new("ssh-keygen").args(["-q", "-p", "-N", "passphrase", "-f"]).arg(&key).status();
    assert!(lock.unwrap().success());
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "trust::a_key_in_ssh_agent_logs_in"])
        .env("SSH_AUTH_SOCK", &socket)
        .env(INNER, &key)
        .output()
        .unwrap();
    let _ = agent.kill();
    let _ = agent.wait();
    let told = String::from_utf8_lossy(&inner.stdout).into_owned();
    assert!(inner.status.success() && told.contains("1 passed"), "{told}");
}
