//! Many connections in the fast order, in a row and at once. By hand, with all servers:
//!
//! ```sh
//! KSYNC_SSH_ROUNDS=1000 KSYNC_SSH_SERVERS=DIRECTORY cargo test --test ssh rounds -- --nocapture
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync_ssh::{Config, LoginReply, Order, Request};

use crate::host::{Host, Key, connect, read};
use crate::servers::{Program, installed};

/// Connections in a row, and in all where several run at once.
const ROUNDS: usize = 50;
const AT_ONCE: usize = 8;

fn rounds() -> usize {
    std::env::var("KSYNC_SSH_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"))
}

/// Connects, logs in and runs a command whose output tells its input.
async fn round(address: SocketAddr, order: Order, key: &Key, number: usize) -> Duration {
    let start = Instant::now();
    let session = connect(address, Config { order, ..Config::default() }).await;
    let (public, input) = (key.public(), format!("round {number}"));
    let signature = key.sign(&session.client(|client| client.to_sign("root", &public)));
    let command = Request::Exec(b"cat".into());
    let started = session.start("root", &public, &signature, &command, input.as_bytes());
    let (channel, _) = started.expect("a flight");
    channel.writer().eof().expect("an end of input");
    assert_eq!(session.login_reply().await.expect("an answer"), LoginReply::Success);
    let (reader, _writer) = channel.split();
    assert_eq!(read(reader).await.text(), input);
    start.elapsed()
}

async fn all(name: &str, address: SocketAddr, key: Key) {
    let session = connect(address, Config::default()).await;
    assert_eq!(key.login(&session).await, LoginReply::Success);
    let order = session.client(|client| client.facts()).expect("facts").order();
    assert_ne!(order, Order::Safe);
    let mut times = Vec::new();
    for number in 0..rounds() {
        times.push(round(address, order.clone(), &key, number).await);
    }
    times.sort();
    let start = Instant::now();
    let key = Arc::new(key);
    let tasks = (0..AT_ONCE).map(|task| {
        let (order, key) = (order.clone(), Arc::clone(&key));
        tokio::spawn(async move {
            for number in (task..rounds()).step_by(AT_ONCE) {
                round(address, order.clone(), &key, number).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no failure");
    }
    println!(
        "{name}: {} in a row, median {:?}, longest {:?}; as many, {AT_ONCE} at once, in {:?}; no failure",
        times.len(),
        times[times.len() / 2],
        times.last().expect("a round"),
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_in_the_fast_order_never_fail() {
    if let Some(host) = Host::with("") {
        all("this machine's sshd", host.address(), host.key("key")).await;
    }
    if rounds() > ROUNDS {
        for installed in installed(&[Program::Sshd]) {
            let server = installed.start("");
            all(&server.name(), server.address, server.key("key")).await;
        }
    }
}
