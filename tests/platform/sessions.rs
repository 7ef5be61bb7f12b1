//! `/browsers`: sessions.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::client::{Cloud, text};

#[test]
fn a_session_is_created_found_changed_and_deleted() {
    let cloud = Cloud::new();
    let made = cloud
        .browser(&json!({ "name": "one", "timeout_seconds": 300, "headless": true, "kiosk_mode": true }));
    let id = text(&made["session_id"]);
    assert_eq!(made["timeout_seconds"], 300);
    assert_eq!(
        (&made["headless"], &made["stealth"], &made["name"]),
        (&json!(true), &json!(false), &json!("one"))
    );
    for field in ["cdp_ws_url", "webdriver_ws_url", "created_at"] {
        assert!(!text(&made[field]).is_empty(), "{field}");
    }
    for name in [id.as_str(), "one"] {
        let found = cloud.get(&format!("/browsers/{name}")).has(200).json();
        assert_eq!(found["session_id"], made["session_id"]);
        assert_eq!(found["cdp_ws_url"], made["cdp_ws_url"]);
    }
    let patch = json!({ "name": "two words", "tags": { "a": "b" } }).to_string();
    let patched = cloud.call("PATCH", "/browsers/one", patch.as_bytes()).has(200).json();
    assert_eq!((&patched["name"], &patched["tags"]), (&json!("two words"), &json!({ "a": "b" })));
    cloud.get("/browsers/one").is_error(404, "not_found");
    assert!(cloud.call("DELETE", "/browsers/two%20words", b"").has(204).body.is_empty());
    cloud.call("DELETE", "/browsers/two%20words", b"").is_error(404, "not_found");
    cloud.get(&format!("/browsers/{id}")).is_error(404, "not_found");
}

#[test]
fn an_invalid_request_is_refused_with_a_reason() {
    let cloud = Cloud::new();
    let made = cloud.browser(&json!({ "name": "one" }));
    for timeout in [9, 259_201] {
        cloud.post("/browsers", &json!({ "timeout_seconds": timeout })).is_error(400, "bad_request");
    }
    cloud.call("POST", "/browsers", b"{").is_error(400, "bad_request");
    cloud.post("/browsers", &json!({ "timeout_seconds": "x" })).is_error(422, "unprocessable_entity");
    cloud.post("/browsers", &json!({ "name": "one" })).is_error(409, "conflict");
    let id = text(&made["session_id"]);
    cloud
        .call("PATCH", &format!("/browsers/{id}"), br#"{"timeout_seconds":99}"#)
        .is_error(400, "bad_request");
    cloud.call("PATCH", &format!("/browsers/{id}"), br#"{"name":"one"}"#).has(200);
    cloud.get("/browsers?limit=101").is_error(400, "bad_request");
    cloud.get("/nothing").is_error(404, "not_found");
    cloud.post("/browsers/none/process/exec", &json!({ "command": "true" })).is_error(404, "not_found");
    assert_eq!(cloud.get("/browsers").json().as_array().map(Vec::len), Some(1));
}

#[test]
fn a_call_without_the_key_is_refused() {
    let cloud = Cloud::new();
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp5\r\n"] {
        cloud.bare("GET", "/browsers", headers).is_error(401, "unauthorized");
        cloud.bare("DELETE", "/browsers/x", headers).is_error(401, "unauthorized");
    }
    let other = Cloud::new();
    assert_ne!(cloud.platform().api_key(), other.platform().api_key());
}

#[test]
fn a_list_comes_in_pages() {
    let cloud = Cloud::new();
    let ids: Vec<String> = (0..5).map(|_| cloud.session()).collect();
    let page = |query: &str| {
        let reply = cloud.get(&format!("/browsers{query}")).has(200);
        let listed: Vec<String> =
            reply.json().as_array().expect("a list").iter().map(|one| text(&one["session_id"])).collect();
        let header = |name| reply.header(name).map(str::to_owned);
        (listed, header("x-has-more"), header("x-next-offset"))
    };
    let (yes, no) = (Some("true".to_owned()), Some("false".to_owned()));
    let none = Some("0".to_owned());
    assert_eq!(page("?limit=2"), (ids[..2].to_vec(), yes.clone(), Some("2".to_owned())));
    assert_eq!(page("?limit=2&offset=2"), (ids[2..4].to_vec(), yes, Some("4".to_owned())));
    assert_eq!(page("?limit=2&offset=4"), (ids[4..].to_vec(), no.clone(), none.clone()));
    assert_eq!(page(""), (ids, no, none));
}

#[test]
fn the_token_names_the_vm() {
    let cloud = Cloud::new();
    let (one, other) = (cloud.browser(&json!({})), cloud.browser(&json!({})));
    let payload = |browser: &Value| {
        let url = text(&browser["cdp_ws_url"]);
        assert!(url.starts_with("ws://127.0.0.1:") && url.contains("/browser/cdp?jwt="), "{url}");
        let parts: Vec<&str> = url.split("jwt=").nth(1).expect("a token").split('.').collect();
        assert_eq!(parts.len(), 3);
        let payload = URL_SAFE_NO_PAD.decode(parts[1]).expect("base64url, unpadded");
        serde_json::from_slice::<Value>(&payload).expect("JSON")
    };
    assert_eq!(payload(&one)["session"]["id"], one["session_id"]);
    assert!(payload(&one)["exp"].as_u64() > Some(1_700_000_000));
    let (fqdn, other) = (text(&payload(&one)["session"]["fqdn"]), text(&payload(&other)["session"]["fqdn"]));
    assert_ne!(fqdn, other);
    let inside = cloud.inside(&text(&one["session_id"]));
    assert_eq!(text(&inside["ssh_address"]), format!("{fqdn}:2222"));
}

#[test]
fn the_host_of_the_socket_is_the_vm_if_there_is_no_token() {
    let cloud = Cloud::new();
    cloud.fault(&json!({ "call": "create", "without_jwt": true }));
    let browser = cloud.browser(&json!({}));
    let (url, id) = (text(&browser["cdp_ws_url"]), text(&browser["session_id"]));
    let host = url.strip_prefix("ws://").and_then(|rest| rest.split(':').next()).expect("a host");
    assert_eq!(text(&cloud.inside(&id)["ssh_address"]), format!("{host}:2222"));
    assert!(!url.contains("jwt"), "{url}");
    let _held = cloud.cdp(&browser);
    assert_eq!(cloud.stage(&id), "active");
    assert!(text(&cloud.browser(&json!({}))["cdp_ws_url"]).contains("jwt="), "only once");
}
