//! Who may call what: the emulator's own calls, the calls to a VM, and the calls that are not
//! served.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Cdp, Cloud, decoded, text};
use crate::world::skip::needs_programs;
use crate::world::wait_for;

/// `base_url` and token of a session.
fn direct(browser: &Value) -> (String, String) {
    let url = text(&browser["cdp_ws_url"]);
    let token = url.split_once("?jwt=").expect("a token").1.to_owned();
    let base = text(&browser["base_url"]);
    let path = base.strip_prefix("http://127.0.0.1:").expect("a URL").split_once('/').expect("a path").1;
    (format!("/{path}"), token)
}

#[test]
fn the_emulators_own_calls_refuse_web_pages() {
    let cloud = Cloud::new();
    for (headers, status) in [
        ("", 200),
        ("Origin: https://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: http://127.0.0.1\r\n", 403),
    ] {
        assert_eq!(cloud.bare("GET", "/_sandbox/clock", headers).status, status, "{headers}");
        let changed = cloud.bare("DELETE", "/_sandbox/faults", headers).status;
        assert_eq!(changed, if status == 200 { 204 } else { status }, "{headers}");
    }
    for (host, status) in [
        ("127.0.0.1", 200),
        ("127.0.0.1:9", 200),
        ("localhost:9", 200),
        ("[::1]:9", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("192.0.2.1", 403),
        ("", 403),
    ] {
        assert_eq!(cloud.at_host(host, "/_sandbox/clock").status, status, "{host}");
    }
}

#[test]
fn a_vm_answers_at_its_base_url_with_the_token_alone() {
    let cloud = Cloud::new();
    let browser = cloud.browser(&json!({ "name": "one" }));
    let (base, token) = direct(&browser);
    let path = |path: &str| format!("{base}/{path}");
    let info = path(&format!("fs/file_info?path=/tmp&jwt={token}"));
    assert_eq!(cloud.bare("GET", &info, "").has(200).json()["path"], "/tmp");
    let exec = path(&format!("process/exec?jwt={token}"));
    let program = json!({ "command": "/bin/sh", "args": ["-c", "printf direct"] }).to_string();
    let ran = cloud.bare_with("POST", &exec, "", program.as_bytes()).has(200).json();
    assert_eq!(decoded(&ran["stdout_b64"]), b"direct");
    // The key is no token, and a token no key.
    let key = format!("Authorization: Bearer {}\r\n", cloud.platform().api_key());
    cloud.bare("GET", &path("fs/file_info?path=/tmp"), &key).is_error(401, "unauthorized");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    cloud.bare("GET", "/browsers", &bearer).is_error(401, "unauthorized");
    cloud.bare("GET", &format!("/browsers?jwt={token}"), "").is_error(401, "unauthorized");
    cloud
        .bare("GET", &path(&format!("fs/file_info?path=/tmp&jwt={token}x")), "")
        .is_error(401, "unauthorized");
    cloud
        .bare("POST", &path(&format!("playwright/execute?jwt={token}")), "")
        .is_error(501, "not_implemented");
    cloud.bare("POST", &path(&format!("replays?jwt={token}")), "").is_error(404, "not_found");
    cloud.call("DELETE", "/browsers/one", b"").has(204);
    cloud.bare("GET", &info, "").is_error(401, "unauthorized");
}

#[test]
fn a_stale_token_is_refused_at_the_base_url() {
    let cloud = Cloud::new();
    cloud.fault(&json!({ "call": "create", "token_seconds": 60 }));
    let browser = cloud.browser(&json!({ "timeout_seconds": 600 }));
    let (base, token) = direct(&browser);
    let list = format!("{base}/fs/list_files?path=/&jwt={token}");
    cloud.bare("GET", &list, "").has(200);
    cloud.pass(61.0);
    cloud.bare("GET", &list, "").is_error(401, "unauthorized");
    cloud.get(&format!("/browsers/{}/fs/list_files?path=/", text(&browser["session_id"]))).has(200);
    let faulty = cloud.browser(&json!({}));
    cloud.fault(&json!({ "call": "list_files", "status": 403 }));
    let (base, token) = direct(&faulty);
    cloud.bare("GET", &format!("{base}/fs/list_files?path=/&jwt={token}"), "").is_error(403, "forbidden");
}

#[test]
fn what_is_not_served_answers_501_with_the_endpoint() {
    let cloud = Cloud::new();
    for (method, path) in [
        ("POST", "/browsers/x/playwright/execute"),
        ("GET", "/browsers/x/telemetry/events"),
        ("POST", "/browsers/x/repl"),
        ("GET", "/profiles"),
        ("DELETE", "/vaults/x/items/y"),
    ] {
        let reply = cloud.call(method, path, b"");
        reply.is_error(501, "not_implemented");
        assert_eq!(text(&reply.json()["message"]), format!("the emulator does not serve {method} {path}"));
        assert_eq!(reply.header("x-should-retry"), Some("false"));
        cloud.bare(method, path, "").is_error(401, "unauthorized");
    }
    // The answer comes after the request's whole body.
    cloud.call("POST", "/extensions", &vec![0; 8 << 20]).is_error(501, "not_implemented");
    cloud.get("/nothing").is_error(404, "not_found");
    cloud.get("/browsers/x/nothing").is_error(404, "not_found");
    cloud.call("PUT", "/browsers", b"").is_error(404, "not_found");
}

/// Sends a command to a socket and returns the answer.
fn command(cloud: &Cloud, socket: &mut Cdp, command: &str) -> Value {
    cloud.runtime.block_on(async {
        socket.send(Message::text(command)).await.expect("a command");
        let answer = tokio::time::timeout(Duration::from_secs(30), socket.next()).await;
        let answer = answer.expect("in time").expect("an answer").expect("a message");
        serde_json::from_str(answer.to_text().expect("text")).expect("JSON")
    })
}

#[test]
fn the_cdp_socket_answers_every_command() {
    let cloud = Cloud::new();
    let browser = cloud.browser(&json!({ "start_url": "https://a.example/" }));
    let mut socket = cloud.cdp(&browser);
    let mut say = |text: &str| command(&cloud, &mut socket, text);
    let version = say(r#"{"id":1,"method":"Browser.getVersion"}"#);
    assert_eq!((&version["id"], &version["result"]["protocolVersion"]), (&json!(1), &json!("1.3")));
    let targets = say(r#"{"id":2,"method":"Target.getTargets","sessionId":"s"}"#);
    assert_eq!(targets["result"]["targetInfos"][0]["url"], "https://a.example/");
    assert_eq!(targets["sessionId"], "s");
    let refused = say(r#"{"id":3,"method":"Page.navigate","params":{}}"#);
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(3), &json!(-32601)));
    assert!(text(&refused["error"]["message"]).contains("Page.navigate"));
    assert_eq!(say("no JSON")["error"]["code"], -32700);

    let bidi = json!({ "cdp_ws_url": browser["webdriver_ws_url"] });
    let refused = command(&cloud, &mut cloud.cdp(&bidi), r#"{"id":4,"method":"session.status","params":{}}"#);
    assert_eq!((&refused["id"], &refused["error"]), (&json!(4), &json!("unknown command")));

    let (_, token) = direct(&browser);
    let version = cloud.bare("GET", &format!("/json/version?jwt={token}"), "").has(200).json();
    assert_eq!(version["webSocketDebuggerUrl"], browser["cdp_ws_url"]);
    cloud.bare("GET", "/json/version", "").is_error(401, "unauthorized");
}

/// URL of a server that answers one request as a Chromium answers `/json/version`, and keeps the
/// connection open.
fn version_server(socket_url: &str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let body = json!({ "webSocketDebuggerUrl": socket_url }).to_string();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        let mut lines = BufReader::new(socket.try_clone().expect("a socket")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "GET /json/version HTTP/1.1");
        while lines.next().is_some_and(|line| !line.expect("text").is_empty()) {}
        write!(socket, "HTTP/1.1 200 OK\r\nContent-Length:{}\r\n\r\n{body}", body.len()).expect("an answer");
        let _ = lines.next();
    });
    format!("http://{address}")
}

#[test]
fn a_chromium_beside_the_emulator_answers_the_cdp_sockets() {
    let chromium = Cloud::new();
    let there = chromium.browser(&json!({ "start_url": "https://there.example/" }));
    let cloud = Cloud::with_chromium(&version_server(&text(&there["cdp_ws_url"])));
    let here = cloud.browser(&json!({ "start_url": "https://here.example/" }));
    let mut socket = cloud.cdp(&here);
    let targets = command(&cloud, &mut socket, r#"{"id":1,"method":"Target.getTargets"}"#);
    assert_eq!(targets["result"]["targetInfos"][0]["url"], "https://there.example/");
    assert_eq!(cloud.stage(&text(&here["session_id"])), "active");
    assert_eq!(chromium.stage(&text(&there["session_id"])), "active");
    drop(socket);
    wait_for("the other socket", || (chromium.stage(&text(&there["session_id"])) != "active").then_some(()));
}

#[test]
fn a_session_sends_http_requests() {
    if !needs_programs(&["curl"]) {
        return;
    }
    let cloud = Cloud::new();
    let browser = cloud.browser(&json!({}));
    let curl = format!("/browsers/{}/curl", text(&browser["session_id"]));
    let there = cloud.platform().base_url();
    let fetch = |fields: Value| {
        let mut fields = fields;
        fields["url"] = format!("{there}{}", text(&fields["url"])).into();
        cloud.post(&curl, &fields).has(200).json()
    };
    let clock = fetch(json!({ "url": "/_sandbox/clock", "response_encoding": "base64" }));
    assert_eq!(
        (&clock["status"], &clock["headers"]["content-type"]),
        (&json!(200), &json!(["application/json"]))
    );
    assert!(String::from_utf8(decoded(&clock["body"])).expect("UTF-8").contains("now_seconds"));
    let key = format!("Bearer {}", cloud.platform().api_key());
    let made = fetch(json!({
        "url": "/browsers", "method": "POST", "headers": { "Authorization": key }, "body": r#"{"name":"made"}"#,
    }));
    assert_eq!(made["status"], 200);
    cloud.get("/browsers/made").has(200);
    assert_eq!(fetch(json!({ "url": "/_sandbox/clock", "method": "HEAD" }))["status"], 404);
    for refused in
        [json!({ "url": "file:///etc/passwd" }), json!({ "url": "http://a", "headers": { "@/x": "y" } })]
    {
        assert_eq!(cloud.post(&curl, &refused).status, 400, "{refused}");
    }
    let nowhere = cloud.post(&curl, &json!({ "url": "http://127.0.0.1:1/" })).has(502).json();
    assert!(text(&nowhere["message"]).contains("curl: (7)"), "{nowhere}");

    let (base, token) = direct(&browser);
    let raw = format!("{base}/curl/raw?jwt={token}&url={there}/_sandbox/faults");
    assert_eq!(cloud.bare("DELETE", &raw, "").status, 204);
    let refused = cloud.bare_with("POST", &raw, "Content-Type: text/plain\r\n", b"{");
    refused.is_error(400, "bad_request");
}
