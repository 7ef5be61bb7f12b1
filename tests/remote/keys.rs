//! Logins with every kind of key that OpenSSH's client takes, and servers with few algorithms.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ksync::remote::ssh_config::SshAgent;
use ksync::remote::{ErrorKind, HostKeys, Keys, RemoteError, Target, connect};

use crate::own;
use crate::server::{Server, chmod};
use crate::world::skip::needs_programs;

/// Makes a key with these arguments of `ssh-keygen`.
fn make(server: &Server, name: &str, args: &[&str]) -> PathBuf {
    let file = server.path(name);
    let made =
        Command::new("ssh-keygen").args(["-q", "-N", "", "-C", name, "-f"]).arg(&file).args(args).status();
    assert!(made.unwrap().success(), "{args:?}");
    file
}

fn encrypt(file: &Path, args: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    let done = command.args(["-q", "-p", "-N", "passphrase"]).args(args).arg("-f").arg(file).status();
    assert!(done.unwrap().success());
}

/// Lets the public halves of these keys in, and no others.
fn authorise(server: &Server, names: &[&str]) {
    let lines: String = names.iter().map(|name| server.text(&format!("{name}.pub"))).collect();
    std::fs::write(server.path("key.pub"), lines).unwrap();
}

/// An ssh-agent, stopped when dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(server: &Server) -> Option<Agent> {
        if !needs_programs(&["ssh-agent", "ssh-add"]) {
            return None;
        }
        let socket = server.path("agent");
        let mut command = Command::new("ssh-agent");
        let child = command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Some(Agent { child, socket })
    }

    fn add(&self, file: &Path) {
        let added = Command::new("ssh-add").arg("-q").arg(file).env("SSH_AUTH_SOCK", &self.socket).status();
        assert!(added.unwrap().success());
    }

    fn at(&self) -> SshAgent {
        SshAgent::At(self.socket.clone())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn login(server: &Server, keys: Keys) -> Result<(), RemoteError> {
    connect(&Target { keys, ..server.target() }).await.map(|_| ())
}

#[track_caller]
fn ok(result: Result<(), RemoteError>, what: &str) {
    if let Err(error) = result {
        panic!("{what}: {error}: {error:?}");
    }
}

#[tokio::test]
async fn every_kind_of_key_file_logs_in() {
    let Some(server) = Server::new() else { return };
    for (name, args) in [
        ("ecdsa256", &["-t", "ecdsa", "-b", "256"][..]),
        ("ecdsa384", &["-t", "ecdsa", "-b", "384"]),
        ("ecdsa521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa-short", &["-t", "rsa", "-b", "1024"]),
        ("rsa-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("rsa-pkcs8", &["-t", "rsa", "-b", "3072", "-m", "PKCS8"]),
        ("ecdsa-pem", &["-t", "ecdsa", "-m", "PEM"]),
        ("ecdsa-pkcs8", &["-t", "ecdsa", "-m", "PKCS8"]),
    ] {
        let file = make(&server, name, args);
        authorise(&server, &[name]);
        ok(login(&server, Keys::named(vec![file.clone()])).await, name);
        // As an editor on Windows or a mail leaves it.
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("\r\n{}", text.trim_end().replace('\n', " \r\n"))).unwrap();
        ok(login(&server, Keys::named(vec![file])).await, name);
    }
}

#[tokio::test]
async fn an_rsa_key_never_signs_with_sha1() {
    let Some(mut server) = Server::new() else { return };
    let file = make(&server, "rsa", &["-t", "rsa", "-b", "2048"]);
    authorise(&server, &["rsa"]);
    server.start("PubkeyAcceptedAlgorithms rsa-sha2-512");
    ok(login(&server, Keys::named(vec![file.clone()])).await, "SHA-512");
    server.start("PubkeyAcceptedAlgorithms ssh-rsa");
    assert!(login(&server, Keys::named(vec![file])).await.is_err());
}

#[tokio::test]
async fn a_certificate_logs_in_where_its_key_alone_does_not() {
    let Some(mut server) = Server::new() else { return };
    make(&server, "authority", &["-t", "ed25519"]);
    std::fs::write(server.path("key.pub"), "").unwrap();
    server.start(&format!("TrustedUserCAKeys {}", server.path("authority.pub").display()));
    let agent = Agent::start(&server);
    for (name, args) in
        [("plain", &["-t", "ed25519"][..]), ("ec", &["-t", "ecdsa"]), ("rsa", &["-t", "rsa", "-b", "2048"])]
    {
        let file = make(&server, name, args);
        assert!(login(&server, Keys::named(vec![file.clone()])).await.is_err());
        sign(&server, "authority", name, &["-n", &crate::server::user()]);
        ok(login(&server, Keys::named(vec![file.clone()])).await, name);
        let beside = server.path(format!("{name}-cert.pub"));
        if let Some(agent) = &agent {
            agent.add(&file);
            let keys = Keys { ssh_agent: agent.at(), ..Keys::default() };
            ok(login(&server, keys).await, "a certificate in ssh-agent");
            // The private half is in ssh-agent only.
            let aside = server.path("aside");
            std::fs::rename(&file, &aside).unwrap();
            ok(login(&server, Keys { ssh_agent: agent.at(), ..Keys::named(vec![file.clone()]) }).await, name);
            std::fs::rename(&aside, &file).unwrap();
        }
        let elsewhere = server.path("elsewhere.pub");
        std::fs::rename(&beside, &elsewhere).unwrap();
        let keys = Keys { certificates: vec![elsewhere], ..Keys::named(vec![file]) };
        ok(login(&server, keys).await, "a certificate that is named");
    }
}

#[tokio::test]
async fn ssh_agent_signs_for_files_whose_private_half_cannot_be_used() {
    let Some(server) = Server::new() else { return };
    let Some(agent) = Agent::start(&server) else { return };
    for (name, args, format) in [
        ("locked", &["-t", "ed25519"][..], &[][..]),
        ("locked-rsa", &["-t", "rsa", "-b", "2048"], &[]),
        ("locked-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"], &["-m", "PEM"]),
        ("locked-pkcs8", &["-t", "ecdsa", "-m", "PKCS8"], &["-m", "PKCS8"]),
    ] {
        let file = make(&server, name, args);
        authorise(&server, &[name]);
        let named = |file: &Path| Keys { ssh_agent: agent.at(), ..Keys::named(vec![file.to_owned()]) };
        let in_agent = server.path("copy");
        std::fs::copy(&file, &in_agent).unwrap();
        encrypt(&file, format);
        let error = login(&server, named(&file)).await.unwrap_err();
        assert!(error.hint().contains("passphrase") && error.kind() == ErrorKind::NotAuthorised, "{error:?}");
        let public = server.path(format!("{name}.pub"));
        let error = login(&server, named(&public)).await.unwrap_err();
        assert!(matches!(error, RemoteError::OnlyPublic { .. }), "{error:?}");
        agent.add(&in_agent);
        std::fs::remove_file(&in_agent).unwrap();
        ok(login(&server, named(&file)).await, name);
        // A public half may be open to everybody.
        chmod(&public, 0o644);
        ok(login(&server, named(&public)).await, name);
        std::fs::remove_file(&file).unwrap();
        ok(login(&server, named(&file)).await, "a file of which only the public half is there");
    }
}

#[tokio::test]
async fn named_keys_are_the_only_ones_and_others_come_in_openssh_s_order() {
    let Some(server) = Server::new() else { return };
    let Some(agent) = Agent::start(&server) else { return };
    agent.add(&server.path("key"));
    let other = server.path("other");
    let named = Keys { ssh_agent: agent.at(), ..Keys::named(vec![other.clone()]) };
    let error = login(&server, named.clone()).await.unwrap_err().to_string();
    assert!(error.contains("it did not accept the key"), "{error}");
    ok(login(&server, Keys { only_files: false, ..named.clone() }).await, "another key of ssh-agent");
    let off = Keys { ssh_agent: SshAgent::Off, only_files: false, ..named };
    assert!(login(&server, off).await.is_err());
    // A file of the configuration that cannot be used is skipped, and an error names it.
    let broken = server.path("broken");
    std::fs::write(&broken, "nonsense").unwrap();
    chmod(&broken, 0o600);
    let keys = Keys { files: vec![broken.clone(), other], must_be_usable: false, ..off_keys() };
    let error = login(&server, keys).await.unwrap_err().to_string();
    let part = format!("; could not use the private key {}", broken.display());
    assert!(
        error.contains("it did not accept the key (it accepts: publickey)") && error.contains(&part),
        "{error}"
    );
    let keys = Keys { files: vec![broken, server.path("missing"), server.path("key")], ..off_keys() };
    ok(login(&server, keys).await, "the last file");
}

fn off_keys() -> Keys {
    Keys { ssh_agent: SshAgent::Off, ..Keys::default() }
}

#[tokio::test]
async fn a_server_with_one_algorithm_of_openssh_is_reached() {
    let Some(mut server) = Server::new() else { return };
    let mut settings = Vec::new();
    for kex in [
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp384",
        "ecdh-sha2-nistp521",
        "diffie-hellman-group14-sha256",
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group-exchange-sha256",
        "sntrup761x25519-sha512@openssh.com",
    ] {
        settings.push(format!("KexAlgorithms {kex}"));
    }
    for cipher in
        ["chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes192-ctr"]
    {
        settings.push(format!("Ciphers {cipher}"));
    }
    for mac in [
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
        "hmac-sha1",
        "hmac-sha1-etm@openssh.com",
        "umac-64@openssh.com",
        "umac-64-etm@openssh.com",
        "umac-128@openssh.com",
        "umac-128-etm@openssh.com",
    ] {
        settings.push(format!("Ciphers aes256-ctr\nMACs {mac}"));
    }
    for line in settings {
        server.start(&line);
        ok(login(&server, server.target().keys).await, &line);
    }
}

#[tokio::test]
async fn an_rsa_host_key_is_trusted_by_its_known_hosts_line() {
    let Some(mut server) = Server::new() else { return };
    make(&server, "host-rsa", &["-t", "rsa", "-b", "2048"]);
    let rsa = server.text("host-rsa.pub");
    for hash in ["rsa-sha2-512", "rsa-sha2-256"] {
        server.start(&format!("HostKey {}\nHostKeyAlgorithms {hash}", server.path("host-rsa").display()));
        let host_keys = HostKeys::Exactly(rsa.clone());
        connect(&Target { host_keys, ..server.target() })
            .await
            .unwrap_or_else(|error| panic!("{hash}: {error:?}"));
    }
    // Of several host keys the known one is asked for, although it is the least preferred type.
    server.start(&format!("HostKey {}", server.path("host-rsa").display()));
    let file = server.path("known_hosts");
    std::fs::write(&file, format!("[127.0.0.1]:{} {rsa}", server.port())).unwrap();
    let host_keys = HostKeys::KnownHosts { files: vec![file], host: "127.0.0.1".into(), port: server.port() };
    connect(&Target { host_keys, ..server.target() }).await.unwrap();
    server.start(&format!("HostKey {}\nHostKeyAlgorithms ssh-rsa", server.path("host-rsa").display()));
    assert!(login(&server, server.target().keys).await.is_err(), "a host key with SHA-1");
}

#[tokio::test]
async fn an_error_names_the_algorithms_of_both_sides() {
    let Some(mut server) = Server::new() else { return };
    for (settings, what) in [
        ("KexAlgorithms diffie-hellman-group1-sha1", "a key exchange"),
        ("Ciphers aes256-ctr\nMACs hmac-md5", "a MAC"),
        ("Ciphers aes256-cbc", "a cipher"),
        // ksync's own client has this key exchange, but not the cipher either.
        ("KexAlgorithms sntrup761x25519-sha512@openssh.com\nCiphers aes256-cbc", "a cipher"),
    ] {
        server.start(settings);
        let error = login(&server, server.target().keys).await.unwrap_err();
        let theirs = settings.rsplit(' ').next().unwrap();
        let start = format!(
            "could not agree on {what} with 127.0.0.1:{}: it has only {theirs}, and ksync has ",
            server.port()
        );
        assert!(error.to_string().starts_with(&start) && error.kind() == ErrorKind::Socket, "{error}");
        assert!(!error.to_string().contains("kex-strict") && !error.is_retryable(), "{error}");
    }
}

/// Signs the public half of `key`, which makes `KEY-cert.pub`.
fn sign(server: &Server, authority: &str, key: &str, args: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-I", "it"]).args(args).arg("-s").arg(server.path(authority));
    assert!(command.arg(server.path(format!("{key}.pub"))).status().unwrap().success());
}

#[tokio::test]
async fn a_host_certificate_is_trusted_by_its_authority() {
    let Some(mut server) = Server::new() else { return };
    make(&server, "authority", &["-t", "ed25519"]);
    make(&server, "rsa-authority", &["-t", "rsa", "-b", "2048"]);
    make(&server, "host-rsa", &["-t", "rsa", "-b", "2048"]);
    let (ed25519, rsa, plain) =
        (server.text("authority.pub"), server.text("rsa-authority.pub"), server.text("host.pub"));
    let port = server.port();
    let authority = |key: &str| format!("@cert-authority [127.0.0.1]:{port},other {key}");
    let named = ["-h", "-n", "vm,127.0.0.1"];
    /// Host key, its authority, arguments of ssh-keygen, known_hosts, and the error.
    type Case<'a> = (&'a str, &'a str, &'a [&'a str], String, Option<&'a str>);
    let cases: [Case<'_>; 12] = [
        ("host", "authority", &named, authority(&ed25519), None),
        ("host", "rsa-authority", &named, authority(&ed25519) + &authority(&rsa), None),
        ("host-rsa", "authority", &named, authority(&ed25519), None),
        ("host", "authority", &["-h", "-n", "127.0.*"], format!("@cert-authority 127.0.0.1 {ed25519}"), None),
        // The certificate of an unknown authority counts as its plain key.
        ("host", "rsa-authority", &named, authority(&ed25519) + &format!("127.0.0.1 {plain}"), None),
        (
            "host",
            "rsa-authority",
            &named,
            authority(&ed25519),
            Some("it has no certificate of that authority"),
        ),
        ("host", "authority", &["-h", "-n", "vm"], authority(&ed25519), Some("it does not name this host")),
        ("host", "authority", &["-h"], authority(&ed25519), Some("it does not name this host")),
        (
            "host",
            "authority",
            &["-h", "-n", "127.0.0.1", "-V", "20200101:20210101"],
            authority(&ed25519),
            Some("this is not its time"),
        ),
        ("host", "authority", &["-n", "127.0.0.1"], authority(&ed25519), Some("it is not one of a host")),
        (
            "host",
            "authority",
            &named,
            authority(&ed25519) + &format!("@revoked * {ed25519}"),
            Some("is revoked"),
        ),
        (
            "host",
            "authority",
            &named,
            authority(&ed25519) + &format!("@revoked * {plain}"),
            Some("is revoked"),
        ),
    ];
    for (key, signer, args, known, wrong) in cases {
        sign(&server, signer, key, args);
        let path = |name: &str| server.path(name).display().to_string();
        let key_lines =
            format!("HostKey {}\nHostCertificate {}", path(key), path(&format!("{key}-cert.pub")));
        let file = server.path("known_hosts");
        std::fs::write(&file, &known).unwrap();
        let host_keys = HostKeys::KnownHosts { files: vec![file], host: "127.0.0.1".into(), port };
        for settings in ["", own::SETTINGS] {
            server.start(&format!("{settings}\n{key_lines}"));
            let host_keys = host_keys.clone();
            let result = connect(&Target { host_keys, ..server.target() }).await.map(|_| ());
            match (wrong, result) {
                (None, result) => ok(result, &format!("{key} {signer} {args:?}")),
                (Some(wrong), Err(error @ RemoteError::HostKey { .. })) => {
                    let cause = std::error::Error::source(&error).unwrap().to_string();
                    assert!(cause.contains(wrong) && error.kind() == ErrorKind::HostKey, "{args:?}: {cause}");
                }
                (Some(wrong), other) => panic!("{wrong}: {other:?}"),
            }
        }
    }
}
