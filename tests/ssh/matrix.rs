//! The client against servers of other kinds and versions: OpenSSH 8.4 to 10.x, dropbear, tinysshd,
//! paramiko, AsyncSSH and Go's x/crypto.
//!
//! ```sh
//! tests/ssh/servers.sh DIRECTORY
//! KSYNC_SSH_SERVERS=DIRECTORY cargo test --test ssh matrix
//! ```

use std::time::Duration;

use ksync_ssh::{
    ChannelEvent, Config, ConnectError, Facts, Fallback, LoginReply, OpenError, Order, Request, Session,
    SshError, fallback,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::host::{Key, Output, connect, read, run, try_connect};
use crate::servers::{PENALTIES_SINCE, Program, Server, installed};
use crate::world::link::Link;
use crate::world::noise;

/// TCP, key exchange, everything else.
const FAST_ROUND_TRIPS: usize = 3;

/// The facts that a connection in the safe order finds.
async fn facts(server: &Server) -> Facts {
    let session = connect(server.address, Config::default()).await;
    assert_eq!(server.key("key").login(&session).await, LoginReply::Success, "{}", server.name());
    session.client(|client| client.facts()).expect("facts")
}

async fn fast(server: &Server) -> Config {
    let facts = facts(server).await;
    assert_ne!(facts.order(), Order::Safe, "{}", server.name());
    Config { order: facts.order(), ..Config::default() }
}

/// A login with a command and its input, in one flight.
struct Flight {
    session: Session,
    channel: ksync_ssh::Channel,
}

impl Flight {
    fn start(session: Session, key: &Key, command: &str, input: &[u8]) -> Self {
        let flight = Self::start_of_more(session, key, command, input);
        flight.channel.writer().eof().expect("an end of input");
        flight
    }

    /// Starts a command whose input goes on.
    fn start_of_more(session: Session, key: &Key, command: &str, input: &[u8]) -> Self {
        let public = key.public();
        let signature = key.sign(&session.client(|client| client.to_sign("root", &public)));
        let request = Request::Exec(command.into());
        let started = session.start("root", &public, &signature, &request, input);
        let (channel, sent) = started.expect("a flight");
        assert_eq!(sent, input.len());
        Self { session, channel }
    }

    async fn reply(&self) -> LoginReply {
        self.session.login_reply().await.expect("an answer")
    }

    async fn output(self) -> Output {
        let (reader, _writer) = self.channel.split();
        read(reader).await
    }
}

/// Starts each sshd with these settings, and connects to it in the fast order.
async fn each_sshd(settings: &str, test: impl AsyncFn(&Server, Config)) {
    for installed in installed(&[Program::Sshd]) {
        let plain = installed.start("");
        let config = fast(&plain).await;
        let server = installed.start(settings);
        test(&server, config).await;
    }
}

#[tokio::test]
async fn every_server_takes_the_safe_order() {
    let all = [
        Program::Sshd,
        Program::Dropbear,
        Program::Tinysshd,
        Program::Paramiko,
        Program::AsyncSsh,
        Program::Go,
    ];
    for installed in installed(&all) {
        let server = installed.start("");
        let name = server.name();
        let facts = facts(&server).await;
        println!("{name}: {} {:?} strict={}", facts.server_id, facts.guess, facts.is_strict);
        assert_eq!(facts.order() != Order::Safe, installed.program == Program::Sshd, "{name}");
        assert!(!facts.allows_early_channel(&server.key("stranger").public().blob), "{name}");
        let session = connect(server.address, Config::default()).await;
        let stranger = server.key("stranger").public();
        let refused = session.probe("root", &stranger).await;
        // tinysshd likes every key until it is signed with, and then takes no other one.
        if installed.program != Program::Tinysshd {
            assert!(matches!(refused, Ok(LoginReply::Failure { .. })), "{name}: {refused:?}");
            assert_eq!(server.key("key").login(&session).await, LoginReply::Success, "{name}");
            assert_eq!(run(&session, "echo hi", b"").await.stdout, b"hi\n", "{name}");
        }
        let session = connect(server.address, Config::default()).await;
        assert_eq!(server.key("key").login(&session).await, LoginReply::Success, "{name}");
        let input = noise(1, 300_000);
        assert!(run(&session, "cat", &input).await.stdout == input, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sshd_takes_the_fast_order_in_three_round_trips() {
    each_sshd("", async |server, config| {
        let link = Link::to(server.address);
        let session = connect(link.address(), config).await;
        let mut flight = Flight::start(session, &server.key("key"), "echo hi", b"");
        let mut output = Vec::new();
        while output.is_empty() {
            if let ChannelEvent::Data(data) = flight.channel.next().await.expect("output") {
                output = data.to_vec();
            }
        }
        let (name, carried) = (server.name(), link.carried());
        println!(
            "{name}: {} round trips, {} bytes up, {} down",
            link.round_trips(),
            carried.up_bytes,
            carried.down_bytes
        );
        assert_eq!(output, b"hi\n", "{name}");
        assert_eq!(link.round_trips(), FAST_ROUND_TRIPS, "{name}");
    })
    .await;
}

#[tokio::test]
async fn each_sshd_takes_a_megabyte_with_the_login() {
    each_sshd("", async |server, config| {
        let input = noise(7, 1 << 20);
        let session = connect(server.address, config).await;
        let flight = Flight::start(session, &server.key("key"), "cat", &input);
        assert_eq!(flight.reply().await, LoginReply::Success, "{}", server.name());
        assert!(flight.output().await.stdout == input, "{}", server.name());
    })
    .await;
}

#[tokio::test]
async fn each_sshd_goes_on_with_the_next_key() {
    each_sshd("", async |server, config| {
        let name = server.name();
        let session = connect(server.address, config).await;
        let flight = Flight::start(session, &server.key("stranger"), "cat; echo once", b"input ");
        assert!(matches!(flight.reply().await, LoginReply::Failure { .. }), "{name}");
        assert_eq!(server.key("key").login(&flight.session).await, LoginReply::Success, "{name}");
        assert_eq!(flight.output().await.text(), "input once\n", "{name}");
    })
    .await;
}

#[tokio::test]
async fn each_sshd_shows_its_banner_and_forces_its_command() {
    for settings in ["ForceCommand echo forced", "Match User root\nForceCommand echo forced"] {
        for installed in installed(&[Program::Sshd]) {
            let config = fast(&installed.start("")).await;
            // The banner is a file that every release has.
            let server = installed.start(&format!("Banner /etc/shells\n{settings}"));
            let name = server.name();
            let session = connect(server.address, config).await;
            let flight = Flight::start(session, &server.key("key"), "echo asked", b"");
            assert_eq!(flight.reply().await, LoginReply::Success, "{name}");
            assert_eq!(flight.session.take_banners().concat().trim(), "/bin/sh", "{name}");
            assert_eq!(flight.output().await.text(), "forced\n", "{name}");
        }
    }
}

#[tokio::test]
async fn each_sshd_that_takes_one_key_ends_cleanly() {
    each_sshd("MaxAuthTries 1", async |server, config| {
        let name = server.name();
        let order = config.order.clone();
        let session = connect(server.address, config.clone()).await;
        let flight = Flight::start(session, &server.key("stranger"), "echo hi", b"");
        let error = flight.session.login_reply().await.expect_err("a login");
        assert!(matches!(error, SshError::Disconnected { .. } | SshError::Io(_)), "{name}: {error}");
        let has_opened = flight.session.client(|client| client.has_opened());
        assert_eq!(fallback(&order, &error, has_opened), Fallback::InOrder, "{name}");
        let session = connect(server.address, config).await;
        let flight = Flight::start(session, &server.key("key"), "echo hi", b"");
        assert_eq!(flight.output().await.text(), "hi\n", "{name}");
    })
    .await;
}

#[tokio::test]
async fn each_sshd_that_allows_few_sessions_refuses_cleanly() {
    for (allowed, settings) in
        [(0, "MaxSessions 0"), (1, "MaxSessions 1"), (0, "Match User root\nMaxSessions 0")]
    {
        each_sshd(settings, async |server, config| {
            let name = server.name();
            let session = connect(server.address, config).await;
            // The command goes on while the next channel is asked for.
            let mut flight = Flight::start_of_more(session, &server.key("key"), "cat", b"input");
            assert_eq!(flight.reply().await, LoginReply::Success, "{name}");
            if allowed == 1 {
                assert_eq!(flight.channel.next().await, Some(ChannelEvent::Opened), "{name}");
                let second = flight.session.open().await;
                assert!(matches!(second, Err(OpenError::Refused { .. })), "{name}");
                flight.channel.writer().eof().expect("an end of input");
                assert_eq!(flight.output().await.text(), "input", "{name}");
            } else {
                let event = flight.channel.next().await;
                assert!(matches!(event, Some(ChannelEvent::Refused { .. })), "{name}: {event:?}");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn each_sshd_changes_keys_behind_the_login_and_in_the_midst() {
    // The first limit is reached by the login, so that KEXINIT follows SUCCESS.
    for (settings, bytes) in [("RekeyLimit 256", 100_000), ("RekeyLimit 64K", 3_000_000)] {
        each_sshd(settings, async |server, config| {
            let name = server.name();
            let input = noise(3, bytes);
            let (early, rest) = input.split_at(bytes / 3);
            let session = connect(server.address, config).await;
            let key = server.key("key");
            let public = key.public();
            let signature = key.sign(&session.client(|client| client.to_sign("root", &public)));
            let cat = Request::Exec(b"cat".into());
            let (channel, sent) = session.start("root", &public, &signature, &cat, early).expect("a flight");
            assert_eq!(sent, early.len());
            let (reader, writer) = channel.split();
            let sending = async {
                writer.send(rest).await.expect("input");
                writer.eof().expect("input");
            };
            let (output, ()) = tokio::join!(read(reader), sending);
            assert!(output.stdout == input && output.status == Some(0), "{name}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_sshd_that_punishes_punishes_no_fallback() {
    for installed in installed(&[Program::Sshd]) {
        if installed.version() < PENALTIES_SINCE {
            continue;
        }
        // As the default, with a threshold that wrong keys reach at once.
        let server = installed.start("PerSourcePenalties min:15 authfail:5 noauth:1");
        let name = server.name();
        let right = fast(&server).await;
        // One wrong guess, and the connection in order that follows it.
        let mut wrong = facts(&server).await;
        wrong.guess.key_exchange = "curve25519-sha256@libssh.org".into();
        wrong.guess.host_key = "ecdsa-sha2-nistp256".into();
        let config = Config { order: wrong.order(), ..Config::default() };
        let Err(ConnectError::Ssh(error)) = try_connect(server.address, config.clone()).await else {
            panic!("{name}: connected")
        };
        assert_eq!(fallback(&config.order, &error, false), Fallback::InOrder, "{name}: {error}");
        for _ in 0..5 {
            let session = connect(server.address, right.clone()).await;
            let flight = Flight::start(session, &server.key("key"), "echo hi", b"");
            assert_eq!(flight.output().await.text(), "hi\n", "{name}");
        }
        // Wrong keys are punished, and the client says that the connection was closed.
        let mut refused = None;
        for _ in 0..40 {
            let stream = TcpStream::connect(server.address).await.expect("a connection");
            let connecting = Session::connect(stream, right.clone(), None, async |_| Ok::<_, ()>(()));
            match timeout(Duration::from_secs(60), connecting).await.expect("in time") {
                Ok(session) => {
                    let flight = Flight::start(session, &server.key("stranger"), "echo hi", b"");
                    assert!(matches!(flight.reply().await, LoginReply::Failure { .. }), "{name}");
                }
                Err(ConnectError::Ssh(error)) => {
                    refused = Some(error);
                    break;
                }
                Err(ConnectError::HostKey(())) => panic!("{name}: another host key"),
            }
            // The process that serves a connection tells its penalty as it ends.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let refused = refused.unwrap_or_else(|| panic!("{name}: never refused"));
        assert!(
            matches!(refused, SshError::Closed | SshError::NotSsh | SshError::Io(_)),
            "{name}: {refused}"
        );
    }
}
