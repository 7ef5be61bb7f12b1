use std::cell::RefCell;
use std::error::Error;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::PrivateKeyDer;
use serde_json::json;

use super::*;
use crate::kernel::api_key::ApiKey;
use crate::kernel::settings::DEFAULT_TIMEOUT;
use crate::kernel::testing::{Reply, Server};

const KEY: &str = "sk_secret_4711";

const BROWSER: &str = r#"{
    "session_id": "s1", "cdp_ws_url": "wss://h/?jwt=a.token.c", "webdriver_ws_url": "wss://h/?jwt=a.token.c",
    "created_at": "2026-08-01T12:00:00Z", "headless": false, "stealth": false, "timeout_seconds": 60, "new": [1]
}"#;

thread_local! {
    /// Delays that this thread would have slept.
    static SLEPT: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
}

fn settings(base_url: String) -> Settings {
    Settings { base_url, key: ApiKey::new(KEY), project: None, ca_cert: None, timeout: DEFAULT_TIMEOUT }
}

/// Makes a client whose sleeps return at once.
fn client(settings: &Settings) -> Api {
    let mut api = Api::new(settings).unwrap();
    api.http.sleep = |delay| SLEPT.with_borrow_mut(|slept| slept.push(delay));
    api
}

fn parameters(value: &serde_json::Value) -> Parameters {
    value.as_object().unwrap().clone()
}

fn slept() -> Vec<Duration> {
    SLEPT.take()
}

fn saying(replies: impl IntoIterator<Item = Reply>) -> (Api, Server) {
    let server = Server::saying(replies);
    (client(&settings(server.url())), server)
}

/// Every text of an error that a user could see.
fn all_of(error: &ApiError) -> String {
    let mut text = format!("{error} {error:?} {error:#?} {}", error.hint());
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(" {error}"));
        cause = error.source();
    }
    assert!(!text.contains(KEY) && !text.contains("token"), "{text}");
    text
}

#[test]
fn every_call_has_the_form_that_the_platform_expects() {
    let executed = r#"{"exit_code":3,"stdout_b64":"aGk=","stderr_b64":"","duration_ms":12}"#;
    let (api, server) = saying([
        Reply::new(200, BROWSER),
        Reply::new(200, BROWSER),
        Reply::new(204, ""),
        Reply::new(200, BROWSER),
        Reply::new(204, ""),
        Reply::new(200, executed),
        Reply::new(201, ""),
        Reply::new(200, ""),
        Reply::new(204, ""),
    ]);
    let wanted = parameters(&json!({ "timeout_seconds": 90, "name": "n" }));
    assert_eq!(api.create(&wanted).unwrap().session_id, "s1");
    assert_eq!(api.browser("a/b ü?").unwrap().timeout_seconds, 60);
    api.delete("s1").unwrap();
    assert_eq!(
        api.acquire("pool", Duration::from_secs(5), &parameters(&json!({ "name": "n" }))).unwrap().session_id,
        "s1"
    );
    api.release("pool", "s1", false).unwrap();
    let exec = Exec { command: "/bin/bash".into(), timeout_sec: 5, as_root: true, ..Exec::default() };
    let ended = api.exec("s1", &exec).unwrap();
    assert_eq!((ended.exit_code, ended.stdout.as_slice()), (3, &b"hi"[..]));
    api.write_file("s1", "/tmp/a b&c", 0o755, b"\0\xff").unwrap();
    api.delete_file("s1", "/tmp/x").unwrap();
    api.batch("s1", &json!({"actions": []})).unwrap();

    let seen = server.seen();
    let lines: Vec<_> = seen.iter().map(|seen| (seen.line.as_str(), seen.body.as_slice())).collect();
    let exec = br#"{"command":"/bin/bash","args":[],"as_root":true,"timeout_sec":5}"#;
    assert_eq!(
        lines,
        [
            ("POST /browsers", &br#"{"name":"n","timeout_seconds":90}"#[..]),
            ("GET /browsers/a%2Fb%20%C3%BC%3F", b""),
            ("DELETE /browsers/s1", b""),
            ("POST /browser_pools/pool/acquire", br#"{"acquire_timeout_seconds":5,"name":"n"}"#),
            ("POST /browser_pools/pool/release", br#"{"session_id":"s1","reuse":false}"#),
            ("POST /browsers/s1/process/exec", exec),
            ("PUT /browsers/s1/fs/write_file?path=%2Ftmp%2Fa%20b%26c&mode=755", b"\0\xff"),
            ("PUT /browsers/s1/fs/delete_file", br#"{"path":"/tmp/x"}"#),
            ("POST /browsers/s1/computer/batch", br#"{"actions":[]}"#),
        ]
    );
    for (index, seen) in seen.iter().enumerate() {
        assert_eq!(seen.header("authorization"), Some("Bearer sk_secret_4711"));
        assert_eq!(seen.header("user-agent"), Some(concat!("ksync/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(seen.header("x-kernel-project"), None);
        let kind = match index {
            1 | 2 => None,
            6 => Some("application/octet-stream"),
            _ => Some("application/json"),
        };
        assert_eq!(seen.header("content-type"), kind, "{}", seen.line);
    }
}

#[test]
fn the_project_is_named_if_there_is_one() {
    let server = Server::saying([Reply::new(200, "[]")]);
    let mut settings = settings(server.url());
    settings.project = Some("my project".into());
    let api = client(&settings);
    assert!(api.browsers().unwrap().is_empty());
    api.delete("s").unwrap();
    api.write_file("s", "/x", 0o644, b"x").unwrap();
    api.batch("s", &json!({})).unwrap();
    assert_eq!(server.seen().len(), 4);
    for seen in server.seen() {
        assert_eq!(seen.header("x-kernel-project"), Some("my project"), "{}", seen.line);
        assert_eq!(seen.header("x-kernel-project-id"), None, "the older header takes ids only");
    }
    settings.project = Some("p1\r\nX: y".into());
    let error = Api::new(&settings).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().contains("project")), (1, true), "{}", all_of(&error));
}

#[test]
fn each_status_has_its_error() {
    let body = r#"{"code":"the_code","message":"the message","details":[{"code":"x","message":"why"}]}"#;
    for (status, exit, calls) in [
        (400, 5, 1),
        (401, 40, 1),
        (403, 40, 1),
        (404, 41, 1),
        (408, 5, 3),
        (409, 5, 3),
        (410, 41, 1),
        (422, 5, 1),
        (429, 5, 3),
        (500, 5, 3),
        (503, 5, 3),
        (529, 5, 3),
    ] {
        let (api, server) = saying([Reply::new(status, body)]);
        let error = api.browser("me").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "could not look up the session \"me\": the API answered {status} (the_code): the message; why"
            )
        );
        assert_eq!((error.exit_code(), error.status()), (exit, Some(status)), "{}", all_of(&error));
        assert_eq!((server.seen().len(), slept().len()), (calls, calls - 1), "{status}");
    }
}

#[test]
fn a_lack_of_capacity_is_reported_as_such() {
    let (api, _server) = saying([Reply::new(529, r#"{"code":"no_capacity","message":"none"}"#)]);
    let error = api.create(&Parameters::new()).unwrap_err();
    assert_eq!(error.to_string(), "could not create a session: the API answered 529 (no_capacity): none");
    assert_eq!((error.exit_code(), error.is_retryable()), (5, true));
    assert!(error.hint().contains("capacity"));
}

#[test]
fn a_message_of_the_vm_or_a_proxy_is_shown_too() {
    let (api, _server) = saying([Reply::new(400, r#"{"message":"exec: \"nope\": not found"}"#)]);
    let error = api.exec("s", &Exec { command: "nope".into(), ..Exec::default() }).unwrap_err();
    let expected =
        r#"could not run "nope" in the session "s": the API answered 400: exec: "nope": not found"#;
    assert_eq!(error.to_string(), expected);

    let page = "<!doctype html>\n<html><title>504 Gateway Time-out</title></html>";
    let (api, _server) = saying([Reply::with(504, &[("Content-Type", "text/html")], page)]);
    let error = api.delete("s").unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not delete the session \"s\": the API answered 504: 504 Gateway Time-out"
    );
}

#[test]
fn a_missing_file_is_not_a_missing_session() {
    let (api, _server) = saying([
        Reply::new(404, r#"{"message":"file not found"}"#),
        Reply::new(404, r#"{"code":"not_found","message":"browser not found"}"#),
    ]);
    assert_eq!(api.delete_file("s", "/x").unwrap_err().exit_code(), 11);
    assert_eq!(api.delete_file("s", "/x").unwrap_err().exit_code(), 41);
}

#[test]
fn the_client_retries_after_the_delay_that_the_api_asks_for() {
    let (api, server) = saying([
        Reply::with(429, &[("Retry-After", "7")], ""),
        Reply::with(500, &[("Retry-After-Ms", "20")], ""),
        Reply::new(200, BROWSER),
    ]);
    api.browser("s").unwrap();
    assert_eq!(slept(), [Duration::from_secs(7), Duration::from_millis(20)]);
    assert_eq!(server.seen().len(), 3);

    let (api, server) = saying([Reply::with(500, &[("X-Should-Retry", "false")], "")]);
    api.browser("s").unwrap_err();
    assert_eq!((server.seen().len(), slept().len()), (1, 0));

    let (api, _server) = saying([Reply::with(429, &[("Retry-After", "120")], "")]);
    let error = api.browser("s").unwrap_err();
    assert!(error.hint().contains("in 120 s"), "{}", error.hint());
    assert!(slept().iter().all(|delay| *delay <= Duration::from_secs(1)));
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    for sent in ["", "HTTP/1.1 200 OK\r\nContent-Len", "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"] {
        let (api, server) = saying([Reply::Cut(sent), Reply::Cut(sent), Reply::new(200, BROWSER)]);
        api.browser("s").unwrap();
        assert_eq!((server.seen().len(), slept().len()), (3, 2), "{sent}");
    }
}

#[test]
fn a_refused_connection_is_reported_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = client(&settings(format!("http://127.0.0.1:{port}"))).browsers().unwrap_err();
    let expected = format!("could not list the sessions: the connection to http://127.0.0.1:{port} failed");
    assert_eq!((error.to_string(), error.exit_code()), (expected, 10));
    assert!(all_of(&error).contains("refused"), "{}", all_of(&error));
    assert_eq!(slept().len(), 2);
}

#[test]
fn a_silent_server_times_out() {
    let server = Server::saying([Reply::Silence(Duration::from_secs(60))]);
    let mut settings = settings(server.url());
    settings.timeout = Duration::from_millis(300);
    let error = client(&settings).browser("s").unwrap_err();
    assert!(matches!(error, ApiError::TimedOut { is_connecting: false, .. }), "{error:?}");
    assert_eq!((error.exit_code(), server.seen().len()), (30, 3), "{}", all_of(&error));
}

#[test]
fn a_command_that_takes_too_long_is_not_run_again() {
    let exec = Exec { command: "sleep".into(), timeout_sec: 0, ..Exec::default() };
    // The connection fell silent.
    let server = Server::saying([Reply::Silence(Duration::from_secs(60))]);
    let mut settings = settings(server.url());
    settings.timeout = Duration::from_millis(300);
    let error = client(&settings).exec("s", &exec).unwrap_err();
    assert_eq!((error.exit_code(), server.seen().len()), (30, 1), "{}", all_of(&error));
    // The VM reported a timeout.
    let (api, server) = saying([Reply::new(500, r#"{"message":"process timed out"}"#)]);
    let error = api.exec("s", &Exec { timeout_sec: 120, ..exec.clone() }).unwrap_err();
    let expected = "could not run \"sleep\" in the session \"s\": it did not end within 120 s";
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 30), "{}", all_of(&error));
    assert_eq!(server.seen().len(), 1);
    // Any other failure on the VM may pass, so the client retries.
    let (api, server) = saying([Reply::new(500, r#"{"message":"failed to start"}"#)]);
    assert_eq!(api.exec("s", &exec).unwrap_err().exit_code(), 5);
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn a_session_of_a_pool_is_waited_for() {
    let empty = || Reply::new(204, "");
    let (api, server) = saying([empty(), empty(), Reply::new(200, BROWSER)]);
    assert_eq!(api.acquire("p", Duration::from_secs(45), &Parameters::new()).unwrap().session_id, "s1");
    let bodies: Vec<_> = server.seen().iter().map(|seen| seen.text().to_owned()).collect();
    assert_eq!(bodies[0], r#"{"acquire_timeout_seconds":30}"#);
    assert_eq!((bodies.len(), slept().len()), (3, 2));

    let (api, server) = saying([empty()]);
    let error = api.acquire("p", Duration::from_secs(3), &Parameters::new()).unwrap_err();
    let expected = "could not acquire a session of the pool \"p\": none became free within 3 s";
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 5), "{}", all_of(&error));
    assert_eq!(server.seen().len(), 3);
    let (api, server) = saying([empty()]);
    api.acquire("p", Duration::ZERO, &Parameters::new()).unwrap_err();
    assert_eq!(server.seen().len(), 1);

    let (api, _server) = saying([Reply::new(404, r#"{"code":"not_found","message":"no"}"#)]);
    assert_eq!(api.acquire("p", Duration::ZERO, &Parameters::new()).unwrap_err().exit_code(), 5);
}

#[test]
fn all_pages_of_the_list_are_read() {
    let page = |more: &str, next: &str| {
        Reply::with(200, &[("X-Has-More", more), ("X-Next-Offset", next)], format!("[{BROWSER}]"))
    };
    let (api, server) = saying([page("true", "100"), page("true", "150"), page("false", "151")]);
    assert_eq!(api.browsers().unwrap().len(), 3);
    let lines: Vec<_> = server.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, [0, 100, 150].map(|n| format!("GET /browsers?status=active&limit=100&offset={n}")));

    let (api, server) = saying([page("true", "100"), page("true", "100")]);
    let error = api.browsers().unwrap_err();
    assert!(error.to_string().contains("circle"), "{}", all_of(&error));
    assert_eq!(server.seen().len(), 2);

    let (api, server) = saying((1..500).map(|n| page("true", &n.to_string())));
    let error = api.browsers().unwrap_err();
    assert!(error.to_string().contains("too many pages"), "{}", all_of(&error));
    assert_eq!(server.seen().len(), PAGES_MAX);
}

#[test]
fn an_invalid_answer_is_not_quoted() {
    for body in [
        "",
        "<html>",
        "null",
        "{}",
        r#"{"session_id":"s"}"#,
        &BROWSER.replace("false", "\"token\""),
        &BROWSER.replace("\"s1\"", "5"),
    ] {
        let (api, server) = saying([Reply::new(200, body)]);
        let error = api.browser("s").unwrap_err();
        assert!(matches!(error, ApiError::Answer { .. }), "{body}: {error:?}");
        assert_eq!((error.exit_code(), server.seen().len()), (5, 1), "{}", all_of(&error));
    }
    let (api, _server) = saying([Reply::new(200, r#"{"exit_code":0,"stdout_b64":"%"}"#)]);
    let error = api.exec("s", &Exec::default()).unwrap_err();
    assert!(all_of(&error).contains("not how a command ended"));
}

#[test]
fn answers_are_read_with_a_limit() {
    let padded =
        |length: usize| BROWSER.replace("[1]", &format!("\"{}\"", "x".repeat(length - BROWSER.len() + 1)));
    let limit = usize::try_from(ANSWER_BYTES_MAX).unwrap();
    let (api, _server) = saying([Reply::new(200, padded(limit)), Reply::new(200, padded(limit + 1))]);
    api.browser("s").unwrap();
    let error = api.browser("s").unwrap_err();
    assert!(all_of(&error).contains("it is longer than 1048576 bytes"), "{error:?}");

    // An answer without a Content-Length.
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b' '; 2 * limit]].concat();
    let (api, _server) = saying([Reply::Text(endless)]);
    assert!(matches!(api.browser("s").unwrap_err(), ApiError::Answer { .. }));

    // The limit of a command's output is larger, and that of a refusal smaller.
    let output = format!(r#"{{"exit_code":0,"stdout_b64":"{}"}}"#, "A".repeat(4 * 1024 * 1024));
    let (api, _server) = saying([Reply::new(200, output)]);
    assert_eq!(api.exec("s", &Exec::default()).unwrap().stdout.len(), 3 * 1024 * 1024);
    let (api, _server) = saying([Reply::new(400, "x".repeat(5 * limit))]);
    let error = api.browser("s").unwrap_err();
    assert!(error.to_string().len() < 700, "{error}");
}

#[test]
fn the_key_follows_no_redirect() {
    let other = Server::saying([Reply::new(200, BROWSER)]);
    for status in [301, 302, 303, 307, 308] {
        let (api, server) = saying([Reply::with(status, &[("Location", other.url().as_str())], "")]);
        for error in [api.browser("s").unwrap_err(), api.create(&Parameters::new()).unwrap_err()] {
            assert_eq!(error.exit_code(), 10, "{}", all_of(&error));
            assert!(error.to_string().contains(&format!("redirect ({status})")), "{error}");
        }
        assert_eq!(server.seen().len(), 2);
    }
    assert_eq!(other.seen().len(), 0);
}

#[test]
fn no_name_escapes_its_path_segment() {
    let (api, server) = saying([Reply::new(200, BROWSER)]);
    for name in ["", ".", "..", &"x".repeat(NAME_BYTES_MAX + 1)] {
        let error = api.browser(name).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{name}: {}", all_of(&error));
        assert!(error.to_string().len() < 200, "{error}");
    }
    assert_eq!(server.seen().len(), 0);
    api.browser("\u{1b}[2J\u{202e}x/../..").unwrap();
    assert_eq!(server.seen()[0].line, "GET /browsers/%1B%5B2J%E2%80%AEx%2F..%2F..");
    let (api, _server) = saying([Reply::new(404, "")]);
    let error = api.browser("\u{1b}[2J").unwrap_err();
    assert_eq!(error.to_string(), r#"could not look up the session "\u{1b}[2J": the API answered 404"#);
}

#[test]
fn the_key_is_shown_by_nothing() {
    let echo = format!(r#"{{"code":"{KEY}","message":"unknown key {KEY}"}}"#);
    let (api, _server) = saying([Reply::new(401, echo), Reply::new(400, KEY)]);
    let error = api.browsers().unwrap_err();
    assert_eq!(error.to_string(), "could not list the sessions: the API answered 401 (***): unknown key ***");
    all_of(&error);
    all_of(&api.browsers().unwrap_err());
    let shown = format!("{api:?} {api:#?}");
    assert!(shown.contains("127.0.0.1") && !shown.contains(KEY), "{shown}");
    for url in ["http://api.onkernel.com", "https://me:sk_secret_4711@h"] {
        let error = Api::new(&settings(url.into())).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{}", all_of(&error));
    }
}

#[test]
fn an_endless_tls_handshake_times_out() {
    // The kernel accepts the connection, and no program ever reads from it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings(format!("https://{}", listener.local_addr().unwrap()));
    settings.timeout = Duration::from_millis(300);
    let error = client(&settings).browser("s").unwrap_err();
    assert!(matches!(error, ApiError::TimedOut { is_connecting: true, .. }), "{error:?}");
    assert_eq!((error.exit_code(), slept().len()), (35, 2), "{}", all_of(&error));
}

#[test]
fn an_unencrypted_key_never_goes_to_a_proxy() {
    // The environment belongs to a process, so this test starts one of its own.
    let test = "kernel::api::tests::the_project_is_named_if_there_is_one";
    let proxy = Server::saying([Reply::new(502, "")]);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test]).env("ALL_PROXY", proxy.url()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    assert_eq!(proxy.seen().len(), 0);
}

#[test]
fn a_proxy_that_gives_no_connection_is_named_without_its_password() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = Server::saying([Reply::Cut("HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\n\r\n")]);
    let overloaded = Server::saying([Reply::Cut("HTTP/1.1 503 x\r\n\r\n")]);
    for (port, told, exit, calls) in [
        (silent.local_addr().unwrap().port(), "no answer within 0.15 s", 35, 3),
        (refusing.port, "it answered 407 Proxy Authentication Required, and takes NTLM only", 10, 1),
        (overloaded.port, "it answered 503 Service Unavailable", 10, 3),
    ] {
        let address = format!("http://me:token@127.0.0.1:{port}");
        let proxies = Proxies::of(|name| (name == "HTTPS_PROXY").then(|| address.clone()));
        let mut settings = settings("https://api.invalid".into());
        settings.timeout = Duration::from_millis(300);
        let mut api = Api::through(&settings, &proxies).unwrap();
        api.http.sleep = |delay| SLEPT.with_borrow_mut(|slept| slept.push(delay));
        let error = api.browser("s").unwrap_err();
        assert_eq!(error.to_string(), "could not look up the session \"s\"");
        let cause = error.source().unwrap();
        let proxy = format!("http://127.0.0.1:{port} (HTTPS_PROXY)");
        let expected = format!("could not connect to https://api.invalid through the proxy {proxy}");
        assert_eq!(cause.to_string(), expected);
        assert_eq!(cause.source().unwrap().to_string(), told);
        assert_eq!((error.exit_code(), slept().len()), (exit, calls - 1), "{}", all_of(&error));
        assert!(error.hint().contains("_PROXY"), "{}", error.hint());
    }
    for seen in [refusing.seen(), overloaded.seen()].concat() {
        assert_eq!(seen.line, "CONNECT api.invalid:443");
        assert_eq!(seen.header("proxy-authorization"), Some("Basic bWU6dG9rZW4="));
        assert_eq!(seen.header("authorization"), None, "the key is for the API alone");
    }
    let proxies = Proxies::of(|name| (name == "all_proxy").then(|| "gopher://me:token@h".to_owned()));
    let error = Api::through(&settings("https://api.invalid".into()), &proxies).unwrap_err();
    let told = all_of(&error);
    assert!(told.starts_with("could not use the proxy in all_proxy: its scheme is gopher"), "{told}");
    assert_eq!(error.exit_code(), 1);
}

/// Makes a certificate for 127.0.0.1 with a CA of its own. Returns the server's configuration, and
/// the CA's file.
fn certificate(directory: &std::path::Path) -> (Arc<rustls::ServerConfig>, PathBuf) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let file = directory.join("ca.pem");
    std::fs::write(&file, params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    (Arc::new(config), file)
}

#[test]
fn tls_trusts_only_the_given_private_ca() {
    let directory = tempfile::tempdir().unwrap();
    let (config, ca) = certificate(directory.path());
    let server = Server::saying_over_tls([Reply::new(200, BROWSER)], config);
    let mut settings = settings(format!("https://127.0.0.1:{}", server.port));
    let error = client(&settings).browser("s").unwrap_err();
    assert!(matches!(error, ApiError::Untrusted { .. }), "{error:?}");
    assert_eq!((error.exit_code(), slept().len()), (10, 0), "{}", all_of(&error));
    assert!(error.hint().contains("--ca-cert"));
    assert_eq!(server.seen().len(), 0);

    settings.ca_cert = Some(ca);
    let api = client(&settings);
    api.browser("s").unwrap();
    // The second call uses the same connection.
    api.write_file("s", "/x", 0o644, &vec![7; 1_000_000]).unwrap();
    assert_eq!(server.seen()[1].body.len(), 1_000_000);

    settings.ca_cert = Some(directory.path().join("none"));
    let error = Api::new(&settings).unwrap_err();
    assert_eq!(error.exit_code(), 1, "{}", all_of(&error));
}
