//! The order of packets: round trips, and what follows a login that fails.

use ksync_ssh::{Config, Facts, LoginReply, Order, Request, SshError};

use crate::host::{Host, connect, read, run, try_connect};
use crate::world::link::Link;

/// TCP, KEXINIT, key exchange, login, channel, command.
const SAFE_ROUND_TRIPS: usize = 6;

/// TCP, key exchange, everything else.
const FAST_ROUND_TRIPS: usize = 3;

/// The facts that a connection in the safe order finds.
async fn facts(host: &Host) -> Facts {
    let session = host.session(Config::default()).await;
    session.client(|client| client.facts()).expect("facts")
}

async fn fast(host: &Host) -> Config {
    let facts = facts(host).await;
    assert!(facts.allows_early_channel(&host.key("key").public().blob), "{facts:?}");
    Config { order: facts.order(), ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_safe_order_takes_six_round_trips() {
    let Some(host) = Host::with("") else { return };
    let link = Link::to(host.address());
    let session = connect(link.address(), Config::default()).await;
    assert_eq!(host.key("key").login(&session).await, LoginReply::Success);
    assert_eq!(run(&session, "echo hi", b"").await.text(), "hi\n");
    assert!(link.round_trips() <= SAFE_ROUND_TRIPS + 1, "{}", link.round_trips());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fast_order_takes_three_round_trips() {
    let Some(host) = Host::with("") else { return };
    let config = fast(&host).await;
    let link = Link::to(host.address());
    let session = connect(link.address(), config).await;
    let key = host.key("key");
    let signature = key.sign(&session.client(|client| client.to_sign("root", &key.public())));
    let input = vec![b'x'; 1 << 20];
    let command = Request::Exec(b"wc -c".into());
    let (channel, sent) =
        session.start("root", &key.public(), &signature, &command, &input).expect("a flight");
    assert_eq!(sent, input.len());
    channel.writer().eof().expect("an end of input");
    assert_eq!(session.login_reply().await.expect("an answer"), LoginReply::Success);
    let (reader, _writer) = channel.split();
    assert_eq!(read(reader).await.text().trim(), input.len().to_string());
    assert!(link.round_trips() <= FAST_ROUND_TRIPS + 1, "{}", link.round_trips());
}

#[tokio::test]
async fn an_early_command_behind_a_wrong_key_runs_once_behind_the_right_one() {
    let Some(host) = Host::with("") else { return };
    let session = connect(host.address(), fast(&host).await).await;
    let stranger = host.key("stranger");
    let signature = stranger.sign(&session.client(|client| client.to_sign("root", &stranger.public())));
    let command = Request::Exec(b"cat; echo done".into());
    let (channel, _) =
        session.start("root", &stranger.public(), &signature, &command, b"input ").expect("a flight");
    let LoginReply::Failure { methods, partial } = session.login_reply().await.expect("an answer") else {
        panic!("a stranger was let in")
    };
    assert_eq!((methods, partial), (vec!["publickey".to_owned()], false));
    channel.writer().send(b"more ").await.expect("input");
    channel.writer().eof().expect("an end of input");
    let key = host.key("key").public();
    assert_eq!(session.probe("root", &key).await.expect("an answer"), LoginReply::Acceptable);
    assert_eq!(host.key("key").login(&session).await, LoginReply::Success);
    let (reader, _writer) = channel.split();
    assert_eq!(read(reader).await.text(), "input more done\n");
}

#[tokio::test]
async fn a_guess_that_the_host_no_longer_has_fails_cleanly() {
    let Some(host) = Host::with("KexAlgorithms ecdh-sha2-nistp256") else { return };
    let mut facts = facts(&host).await;
    assert_eq!(facts.guess.key_exchange, "ecdh-sha2-nistp256");
    facts.guess.key_exchange = "curve25519-sha256".into();
    let config = Config { order: facts.order(), ..Config::default() };
    assert_ne!(config.order, Order::Safe);
    let error = match try_connect(host.address(), config.clone()).await {
        Err(ksync_ssh::ConnectError::Ssh(error)) => error,
        _ => panic!("connected"),
    };
    assert!(matches!(error, SshError::NoCommon { .. } | SshError::Disconnected { .. }), "{error}");
    assert_eq!(ksync_ssh::fallback(&config.order, &error, false), ksync_ssh::Fallback::InOrder);
}
