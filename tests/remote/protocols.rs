//! Ports that speak another protocol than the endpoint names: each is recognised at once.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ksync::remote::{ErrorKind, RemoteError, Target, connect};

use crate::server::{ECHO, Server, echoes};
use crate::tls::Tls;
use crate::world::service::{closed_port, websocat};
use crate::world::skip::needs_programs;

/// Longest wait for the error: a silent port is asked after two seconds.
const AT_ONCE: Duration = Duration::from_secs(7);

/// Fails to connect. Returns the error with its causes, and its hint.
async fn refused(target: &Target) -> (RemoteError, String) {
    let begin = Instant::now();
    let error = connect(target).await.map(|_| ()).unwrap_err();
    assert!(begin.elapsed() < AT_ONCE, "{:?}: {error:?}", begin.elapsed());
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    let text = format!("{text}\n{}", error.hint());
    (error, text)
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

/// Listens and answers each connection: with the first text at once, with the second one after the
/// first bytes of the client. Then it closes the connection.
fn answering(at_once: &'static str, then: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(at_once.as_bytes());
            if at_once.is_empty() && then.is_empty() {
                continue;
            }
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(then.as_bytes());
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_of_another_transport_is_named() {
    let Some(server) = Server::new() else { return };
    let Some((bridge, _service)) = server.bridge() else { return };
    let before = || Tls::before(&format!("ws://{bridge}"), &server);
    let tls = &*Box::leak(Box::new(tokio::task::block_in_place(before)));
    let (ca, ssh) = (server.path("ca.pem"), server.address());
    let tls_port = tls.url.rsplit(':').next().unwrap();
    let over = |url: String| server.target_over(&url, Some(ca.clone()));
    for (target, parts) in [
        (
            over(format!("wss://{bridge}")),
            ["could not open a WebSocket to", "without TLS\n", &format!("Write ws://{bridge}/path")],
        ),
        (
            over(format!("ws://localhost:{tls_port}")),
            [
                "could not open a WebSocket to",
                "it speaks TLS\n",
                &format!("Write wss://localhost:{tls_port}/path."),
            ],
        ),
        (
            over(format!("ws://{ssh}")),
            ["open a WebSocket", "it is an SSH server\n", &format!("Write ssh://user@{ssh}/path.")],
        ),
        (
            over(format!("wss://{ssh}")),
            ["open a WebSocket", "it is an SSH server\n", &format!("Write ssh://user@{ssh}/path.")],
        ),
        (
            server.target_at(bridge),
            ["could not agree on an SSH session", "WebSocket bridge", &format!("write ws://{bridge}/path")],
        ),
        (
            server.target_at(([127, 0, 0, 1], tls_port.parse().unwrap()).into()),
            ["agree on an SSH session", "it speaks TLS\n", &format!("write wss://127.0.0.1:{tls_port}/path")],
        ),
    ] {
        let (error, text) = refused(&target).await;
        says(&text, &parts);
        assert!(matches!(error, RemoteError::OtherProtocol { .. }), "{error:?}");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Socket, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_servers_are_quoted() {
    let Some(server) = Server::new() else { return };
    const MAIL: (&str, &str) = ("220 mx.example ESMTP\r\n", "500 what?\r\n");
    const PAGE: (&str, &str) = ("", "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>");
    const OLD: (&str, &str) = ("", "<!DOCTYPE HTML><html>Bad request version</html>");
    const ALERT: (&str, &str) = ("", "\u{15}\u{3}\u{1}\0\u{2}\u{2}F");
    for ((at_once, then), scheme, parts) in [
        (MAIL, "ssh", ["it answers \"220 mx.example ESMTP\"", "Check the host and the port"]),
        (MAIL, "ws", ["it answers \"220 mx.example ESMTP\"", "Check the host and the port"]),
        (MAIL, "wss", ["it answers \"220 mx.example ESMTP\"", "Check the host and the port"]),
        (("@RSYNCD: 31.0\n", ""), "ssh", ["it is an rsync daemon", "user@host:/path"]),
        (("J\0\0\0\n8.0.36\0", ""), "ssh", ["it answers in an unknown protocol", "Check the host"]),
        (PAGE, "ssh", ["it is a web server", "write ws://"]),
        (PAGE, "ws", ["it answered 200 OK", "A web server listens there"]),
        (PAGE, "wss", ["it is a web server", "Write ws://"]),
        (OLD, "ssh", ["it is a web server", "write ws://"]),
        (ALERT, "ssh", ["it speaks TLS", "write wss://"]),
        (ALERT, "ws", ["it speaks TLS", "Write wss://"]),
        (
            ("", "HTTP/1.1 502 Bad Gateway\r\n\r\n<html>nginx"),
            "ws",
            ["it answered 502 Bad Gateway", "A proxy there"],
        ),
        (
            ("", "HTTP/1.1 401 Unauthorized\r\n\r\n"),
            "ws",
            ["it answered 401 Unauthorized", "the token in the URL"],
        ),
        (("", "HTTP/1.1 404 Not Found\r\n\r\n"), "ws", ["it answered 404 Not Found", "the path in the URL"]),
        (
            ("", "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"),
            "ws",
            ["it speaks TLS", "Write wss://"],
        ),
        (
            ("Exceeded MaxStartups\r\n", ""),
            "ssh",
            ["it said \"Exceeded MaxStartups\"", "try again in a moment"],
        ),
        (("", ""), "ssh", ["it closed the connection without an answer", "Check the host and the port"]),
        (("", ""), "ws", ["it closed the connection without an answer", "Check the host and the port"]),
        (("", ""), "wss", ["it closed the connection without an answer", "Check the host and the port"]),
    ] {
        let address = answering(at_once, then);
        let target = match scheme {
            "ssh" => server.target_at(address),
            scheme => server.target_over(&format!("{scheme}://{address}/?token=secret"), None),
        };
        let (error, text) = refused(&target).await;
        says(&text, &parts);
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(error.kind(), ErrorKind::Socket, "{text}");
    }
}

/// As `openssl s_server` does with a client that does not speak TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_tls_server_that_closes_in_silence_is_named() {
    let Some(server) = Server::new() else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 3];
            if stream.read_exact(&mut first).is_ok() && first[..2] == [0x16, 3] {
                let _ = stream.write_all(b"\x15\x03\x03\0\x02\x02\x28");
                let _ = stream.read(&mut [0; 4096]);
            }
        }
    });
    for (target, hint) in [
        (server.target_at(address), format!("write wss://{address}/path")),
        (server.target_over(&format!("ws://{address}"), None), format!("Write wss://{address}/path.")),
    ] {
        let (_, text) = refused(&target).await;
        says(&text, &["it speaks TLS", &hint]);
    }
}

/// A server of TLS that is slow to answer, and complains at once about plain HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_tls_server_is_not_taken_for_one_without_tls() {
    let Some(server) = Server::new() else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut waiting = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 3];
            if stream.read_exact(&mut first).is_ok() && first == *b"GET" {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 68\r\n\r\n");
                thread::sleep(Duration::from_millis(50));
                let _ = stream.write_all(b"<title>400 The plain HTTP request was sent to HTTPS port</title>");
            }
            waiting.push(stream);
        }
    });
    let target = server.target_over(&format!("wss://{address}"), None);
    let target = Target { connect_timeout: Duration::from_secs(5), ..target };
    let (error, text) = refused(&target).await;
    assert!(matches!(error, RemoteError::TimedOut { .. }), "{error:?}");
    says(&text, &["could not make a TLS connection to wss://", "no answer within 5 s", "write ws://"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_to_no_ssh_server_is_named() {
    let Some(server) = Server::new() else { return };
    if !needs_programs(&["websocat"]) {
        return;
    }
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, closed_port()));
    for (behind, parts) in [
        (
            answering("220 mx.example ESMTP\r\n", ""),
            ["it answers \"220 mx.example", "must lead to an SSH server"],
        ),
        (nobody, ["it closed the connection", "Check that an SSH server runs behind the bridge"]),
    ] {
        let (port, _service) = websocat(&server, "ws-l", &format!("tcp:{behind}"));
        let (_, text) = refused(&server.target_over(&format!("ws://127.0.0.1:{port}"), None)).await;
        says(&text, &parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_defect_of_a_certificate_is_named() {
    let Some(server) = Server::new() else { return };
    let Some((bridge, _service)) = server.bridge() else { return };
    let url = format!("ws://{bridge}");
    let make = |tls: &dyn Fn() -> Tls| -> String {
        Box::leak(Box::new(tokio::task::block_in_place(tls))).url.clone()
    };
    let valid = make(&|| Tls::before(&url, &server));
    let (ca, other) = (server.path("ca.pem"), server.path("other-ca.pem"));
    let ip = valid.replace("localhost", "127.0.0.1");
    let told = async |url: &str, ca: Option<PathBuf>, parts: &[&str]| {
        let (error, text) = refused(&server.target_over(url, ca)).await;
        says(&text, parts);
        assert!(matches!(error, RemoteError::Tls { .. }), "{error:?}");
        assert!(!text.contains("Error(") && !text.contains("CaUsed") && !text.contains("DnsName"), "{text}");
    };
    told(
        &valid,
        Some(other),
        &["an authority that this machine does not know", "--ca-cert", "SSL_CERT_FILE"],
    )
    .await;
    told(&ip, Some(ca.clone()), &["its certificate is valid for localhost, and not for 127.0.0.1"]).await;
    let expired = make(&|| Tls::valid_in(2000..2001, &url, &server));
    told(&expired, Some(ca.clone()), &["its certificate expired ", "Check this machine's clock"]).await;
    let early = make(&|| Tls::valid_in(2090..2091, &url, &server));
    told(&early, Some(ca.clone()), &["its certificate is not valid yet", "Check this machine's clock"]).await;
    let own = make(&|| Tls::self_signed(&url, &server));
    told(&own, None, &["its certificate is self-signed\n", "give the certificate itself with --ca-cert"])
        .await;
    let other_name = own.replace("localhost", "127.0.0.1");
    let itself = server.path("self.pem");
    told(&other_name, Some(itself.clone()), &["valid for localhost, and not for 127.0.0.1"]).await;
    // The hint is right.
    let mut server = server;
    let image = server.image(ECHO);
    let connection = connect(&server.target_over(&own, Some(itself))).await.unwrap();
    echoes(connection.agent(image).await.unwrap(), Vec::new()).await;
    connection.close().await;
}
