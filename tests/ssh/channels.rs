//! Channels, windows and rekeying.

use ksync_ssh::{ChannelEvent, Config, RekeyLimit, Request};

use crate::host::{Host, read, run};
use crate::world::noise;

const BYTES: usize = 20_000_000;

#[tokio::test]
async fn twenty_megabytes_survive_rekeying_by_either_side() {
    let Some(host) = Host::with("RekeyLimit 1M") else { return };
    let input = noise(1, BYTES);
    for rekey_limit in [RekeyLimit::default(), RekeyLimit { bytes: 700_000, packets: 1 << 31 }] {
        let session = host.session(Config { rekey_limit, ..Config::default() }).await;
        let output = run(&session, "cat", &input).await;
        assert_eq!(output.status, Some(0));
        assert!(output.stdout == input, "{} of {BYTES} bytes", output.stdout.len());
    }
}

#[tokio::test]
async fn ten_channels_carry_ten_streams_at_once() {
    let Some(host) = Host::with("") else { return };
    let session = host.session(Config::default()).await;
    let runs = (0..10).map(|number| {
        let session = session.clone();
        tokio::spawn(async move {
            let input = noise(number, 1_000_000);
            let output = run(&session, "cat", &input).await;
            assert!(output.stdout == input && output.status == Some(0), "{number}");
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.expect("a stream");
    }
}

#[tokio::test]
async fn a_channel_that_nobody_reads_stops_no_other_one() {
    let Some(host) = Host::with("") else { return };
    let session = host.session(Config::default()).await;
    let unread = session.open().await.expect("a channel");
    unread.writer().request(&Request::Exec(b"head -c 30000000 /dev/zero".into()), false).expect("a command");
    for _ in 0..5 {
        assert_eq!(run(&session, "cat", &noise(1, 1_000_000)).await.stdout.len(), 1_000_000);
    }
    let (reader, _writer) = unread.split();
    assert_eq!(read(reader).await.stdout.len(), 30_000_000);
}

#[tokio::test]
async fn a_terminal_has_its_size_and_a_signal_its_name() {
    let Some(host) = Host::with("AcceptEnv KSYNC_TEST") else { return };
    let session = host.session(Config::default()).await;
    let mut channel = session.open().await.expect("a channel");
    let pty = Request::Pty { term: "xterm".into(), columns: 91, rows: 17, modes: vec![(53, 0)] };
    channel.writer().request(&pty, true).expect("a terminal");
    let env = Request::Env { name: "KSYNC_TEST".into(), value: "told".into() };
    channel.writer().request(&env, true).expect("a variable");
    let command = "echo $KSYNC_TEST; stty size; read line; stty size; kill -TERM $$";
    channel.writer().request(&Request::Exec(command.into()), true).expect("a command");
    for _ in 0..3 {
        let answer = loop {
            match channel.next().await.expect("an answer") {
                ChannelEvent::Window(_) => {}
                event => break event,
            }
        };
        assert_eq!(answer, ChannelEvent::Success);
    }
    let mut shown = Vec::new();
    while !shown.ends_with(b"17 91\r\n") {
        if let ChannelEvent::Data(data) = channel.next().await.expect("output") {
            shown.extend_from_slice(&data);
        }
    }
    assert!(shown.starts_with(b"told\r\n"), "{}", String::from_utf8_lossy(&shown));
    channel.writer().request(&Request::WindowChange { columns: 33, rows: 9 }, true).expect("a size");
    channel.writer().send(b"x\n").await.expect("a line");
    let (reader, _writer) = channel.split();
    let output = read(reader).await;
    assert!(output.stdout.ends_with(b"9 33\r\n"), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((output.status, output.signal.as_deref()), (None, Some("TERM")));
}
