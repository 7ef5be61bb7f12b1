//! Links below SSH: they carry everything, and a failing link is detected.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ksync::remote::{Agent, DisconnectReason, ErrorKind, RemoteError, Target, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::own;
use crate::server::{ECHO, MAGIC, Server, echoes, talk};
use crate::tls::Tls;
use crate::world::link::{Flow, Link};
use crate::world::service::closed_port;
use crate::world::{DEADLINE, noise};

async fn fails(target: &Target) -> RemoteError {
    connect(target).await.map(|_| ()).expect_err("it must not connect")
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_pass_intact_both_ways_at_once() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    echoes(server.connect().await.agent(image.clone()).await.unwrap(), noise(1, 50_000_000)).await;
    let Some((bridge, _service)) = server.bridge() else { return };
    let connection = connect(&server.target_over(&format!("ws://{bridge}"), None)).await.unwrap();
    echoes(connection.agent(image).await.unwrap(), noise(1, 50_000_000)).await;
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_websocket_is_kept_alive_by_pings() {
    let Some(mut server) = Server::new() else { return };
    let Some((bridge, _service)) = server.bridge() else { return };
    let image = server.image("sleep 4; exec cat");
    let target = Target {
        silence_timeout: Duration::from_secs(1),
        ..server.target_over(&format!("ws://{bridge}"), None)
    };
    let connection = connect(&target).await.unwrap();
    echoes(connection.agent(image).await.unwrap(), noise(1, 1000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_output_does_not_stop_the_input() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image("head -c 20000000 /dev/zero & head -c 20000000 | wc -c >\"$HOME/count\"; wait");
    let connection = server.connect().await;
    let Agent { mut reader, mut writer, end, .. } = connection.agent(image).await.unwrap();
    let speaking = tokio::task::spawn_blocking(move || writer.write_all(&noise(1, 20_000_000)));
    tokio::time::timeout(DEADLINE, speaking).await.expect("it is stuck").unwrap().unwrap();
    let listening = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()));
    assert_eq!(listening.await.unwrap().unwrap(), 20_000_000 + MAGIC.len() as u64);
    assert_eq!(end.wait().await.exit_status, Some(0));
    assert_eq!(std::fs::read_to_string(server.home().join("count")).unwrap().trim(), "20000000");
}

/// Writes to an agent that reads nothing, until `harm` strikes. Returns the time until the failure
/// was detected, and the error.
async fn struck(
    server: &Server,
    target: &Target,
    image: ksync::remote::AgentImage,
    harm: impl FnOnce(),
) -> (Duration, RemoteError) {
    assert!(server.home().exists());
    let connection = connect(target).await.unwrap();
    let Agent { mut reader, mut writer, end, .. } = connection.agent(image).await.unwrap();
    let listening = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
    let speaking = tokio::task::spawn_blocking(move || {
        let block = noise(1, 100_000);
        loop {
            if let Err(error) = writer.write_all(&block) {
                return error;
            }
        }
    });
    // By now the window is full.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!speaking.is_finished() && !listening.is_finished());
    let begin = Instant::now();
    harm();
    let told = tokio::time::timeout(DEADLINE, speaking).await.expect("the writer hangs").unwrap();
    let heard = tokio::time::timeout(DEADLINE, listening).await.expect("the reader hangs").unwrap();
    let end = tokio::time::timeout(DEADLINE, end.wait()).await.expect("the end hangs");
    let elapsed = begin.elapsed();
    let error = end.error.expect("an error");
    assert_eq!(told.to_string(), error.to_string());
    assert_eq!(heard.unwrap_err().to_string(), error.to_string());
    drop(told);
    (
        elapsed,
        match &*error {
            RemoteError::Lost { endpoint, source } => {
                RemoteError::Lost { endpoint: endpoint.clone(), source: source.clone() }
            }
            other => panic!("{other:?}"),
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_wakes_a_waiting_writer() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image("exec sleep 60");
    let link = Link::to(server.address());
    let (elapsed, error) =
        struck(&server, &server.target_at(link.address()), image.clone(), || link.cut()).await;
    assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    assert_eq!(error.kind(), ErrorKind::Socket, "{error:?}");
    assert!(error.is_retryable());
    let Some((bridge, service)) = server.bridge() else { return };
    let target = server.target_over(&format!("ws://{bridge}"), None);
    let (elapsed, error) = struck(&server, &target, image, move || drop(service)).await;
    assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    assert_eq!(error.kind(), ErrorKind::Socket, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_link_is_detected() {
    for settings in ["", own::SETTINGS] {
        dead_link_is_detected(settings).await;
    }
}

async fn dead_link_is_detected(settings: &str) {
    let Some(mut server) = Server::with(settings) else { return };
    let image = server.image("exec sleep 60");
    let bridge = server.bridge();
    let addresses = [Some(server.address()), bridge.as_ref().map(|(address, _)| *address)];
    for address in addresses.into_iter().flatten() {
        let link = Link::to(address);
        let target = if address == server.address() {
            server.target_at(link.address())
        } else {
            server.target_over(&format!("ws://{}", link.address()), None)
        };
        let target = Target { silence_timeout: Duration::from_secs(2), ..target };
        let (elapsed, error) = struck(&server, &target, image.clone(), || link.set_flow(Flow::Stalls)).await;
        assert!(elapsed < Duration::from_secs(6), "{elapsed:?}");
        assert!(matches!(error, RemoteError::Lost { source: DisconnectReason::Silence(_), .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }
}

/// More bytes are in flight than the kernel buffers, so the session blocks in a write. There it
/// counts no keepalives.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_link_is_detected_under_load() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image("exec cat >/dev/null");
    let link = Link::to(server.address());
    // The link is the bottleneck.
    link.set_rate(10_000_000);
    let target = Target { silence_timeout: Duration::from_secs(2), ..server.target_at(link.address()) };
    let connection = connect(&target).await.unwrap();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let Agent { mut reader, mut writer, .. } = connection.agent(image.clone()).await.unwrap();
        all.spawn_blocking(move || reader.read_to_end(&mut Vec::new()).map(|_| ()));
        all.spawn_blocking(move || std::io::copy(&mut std::io::repeat(7), &mut writer).map(|_| ()));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    link.set_flow(Flow::Stalls);
    let ends = tokio::time::timeout(DEADLINE, all.join_all()).await.expect("it hangs");
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    for end in ends {
        assert!(end.unwrap_err().to_string().starts_with("lost the connection"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_and_a_silent_server_are_told_apart() {
    let Some(server) = Server::new() else { return };
    let nobody = server.target_at(([127, 0, 0, 1], closed_port()).into());
    let error = fails(&nobody).await;
    assert_eq!(error.kind(), ErrorKind::Socket, "{error:?}");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let connect_timeout = Duration::from_millis(300);
    for target in [server.target_at(address), server.target_over(&format!("ws://{address}"), None)] {
        let begin = Instant::now();
        let error = fails(&Target { connect_timeout, ..target }).await;
        assert_eq!(error.kind(), ErrorKind::ConnectTimeout, "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_websocket_is_refused() {
    let Some(server) = Server::new() else { return };
    let answers = [
        ("HTTP/1.1 301 Moved\r\nLocation: ws://127.0.0.1/?token=secret\r\n\r\n", "a redirect (301)", false),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503", true),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404", false),
        ("SSH-2.0-OpenSSH\r\n", "", false),
    ];
    for (answer, told, retryable) in answers {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/?token=secret", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
        });
        let error = fails(&server.target_over(&url, None)).await;
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let text = format!("{error}: {cause}");
        assert!(text.contains(told) && !text.contains("secret"), "{text}");
        assert!(!format!("{error:?}").contains("token=secret") || answer.contains("Location"), "{error:?}");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Socket, retryable), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_certificate_is_trusted() {
    let Some(mut server) = Server::new() else { return };
    let Some((bridge, _service)) = server.bridge() else { return };
    // It has a runtime of its own, which cannot be dropped here.
    let before = || Tls::before(&format!("ws://{bridge}"), &server);
    let tls = &*Box::leak(Box::new(tokio::task::block_in_place(before)));
    let (ca, other_ca) = (server.path("ca.pem"), server.path("other-ca.pem"));
    let image = server.image(ECHO);
    let target = server.target_over(&tls.url, Some(ca.clone()));
    let connection = connect(&target).await.unwrap();
    echoes(connection.agent(image).await.unwrap(), noise(1, 3_000_000)).await;
    connection.close().await;
    let refused = async |url: String, ca: Option<PathBuf>| {
        let error = fails(&server.target_over(&url, ca)).await;
        assert!(matches!(error, RemoteError::Tls { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Socket);
        std::error::Error::source(&error).unwrap().to_string()
    };
    // No CA; another name; the correct name, but of another CA.
    refused(tls.url.clone(), None).await;
    let told = refused(tls.url.replace("localhost", "127.0.0.1"), Some(ca)).await;
    assert!(told.contains("valid for localhost, and not for 127.0.0.1"), "{told}");
    refused(tls.url.clone(), Some(other_ca)).await;
    // ksync never falls back to plain text when the URL asks for TLS.
    let plain = server.target_over(&format!("wss://{bridge}"), None);
    let error = fails(&Target { connect_timeout: Duration::from_secs(1), ..plain }).await;
    assert!(matches!(error, RemoteError::TimedOut { .. }), "{error:?}");
    let error = fails(&server.target_over("wss://localhost:1", Some(server.path("key")))).await;
    assert!(matches!(error, RemoteError::CaCert { .. }), "{error:?}");
}

/// TCP's connect takes 1 round trip, the key exchange 2, the login 3, the channel 1 and the first
/// answer 1.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_comes_after_eight_round_trips() {
    let Some(mut server) = Server::new() else { return };
    let image = server.image(ECHO);
    echoes(server.connect().await.agent(image.clone()).await.unwrap(), Vec::new()).await;
    let link = Link::delayed(server.address(), Duration::from_millis(50));
    let connection = connect(&server.target_at(link.address())).await.unwrap();
    let mut agent = connection.agent(image).await.unwrap();
    let first = tokio::task::spawn_blocking(move || agent.reader.read_exact(&mut [0; 8]));
    first.await.unwrap().unwrap();
    assert_eq!(link.round_trips(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_weak_ciphers_only_is_refused() {
    let Some(server) = Server::with("Ciphers aes128-cbc,3des-cbc") else { return };
    let error = fails(&server.target()).await;
    assert!(matches!(error, RemoteError::NoCommonAlgorithm { .. }), "{error:?}");
    assert!(
        error.to_string().contains("it has only aes128-cbc, 3des-cbc, and ksync has aes256-gcm"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_key_exchanges_lose_no_bytes() {
    let Some(mut server) = Server::with("RekeyLimit 1M") else { return };
    let image = server.image(ECHO);
    echoes(server.connect().await.agent(image.clone()).await.unwrap(), noise(1, 20_000_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_free_sessions_is_reported() {
    let Some(mut server) = Server::with("MaxSessions 1") else { return };
    let image = server.image(ECHO);
    let connection = server.connect().await;
    let first = connection.agent(image.clone()).await.unwrap();
    let error = connection.agent(image).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, RemoteError::Channel { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::CouldNotStart);
    let (heard, _) = talk(first, noise(1, 10)).await;
    assert_eq!(heard.unwrap().len(), MAGIC.len() + 10);
}
