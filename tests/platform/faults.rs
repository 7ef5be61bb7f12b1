//! Faults on request, and call counters.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Cloud, text};

#[test]
fn a_429_fault_has_a_retry_after_header() {
    let cloud = Cloud::new();
    cloud.fault(&json!({ "call": "create", "status": 429, "headers": { "Retry-After": "2" } }));
    cloud.fault(&json!({ "call": "create", "status": 529, "times": 2 }));
    // A call without the key uses no fault up.
    cloud.bare("POST", "/browsers", "").is_error(401, "unauthorized");
    let refused = cloud.post("/browsers", &json!({}));
    refused.is_error(429, "too_many_requests");
    assert_eq!(refused.header("retry-after"), Some("2"));
    cloud.get("/browsers").has(200);
    for _ in 0..2 {
        cloud.post("/browsers", &json!({})).is_error(529, "no_capacity");
    }
    cloud.post("/browsers", &json!({})).has(200);
}

#[test]
fn any_call_can_fail_with_a_message_only() {
    let cloud = Cloud::new();
    let id = cloud.session();
    cloud.fault(&json!({ "status": 503, "message_only": true, "message": "waking up" }));
    cloud.get(&format!("/browsers/{id}")).says(503, "waking up");
    cloud.get(&format!("/browsers/{id}")).has(200);
    cloud.fault(&json!({ "call": "get", "status": 500, "code": "odd", "skip": 1 }));
    cloud.get(&format!("/browsers/{id}")).has(200);
    cloud.get(&format!("/browsers/{id}")).is_error(500, "odd");
}

#[test]
fn answers_can_be_delayed_or_withheld() {
    let cloud = Cloud::new();
    cloud.fault(&json!({ "call": "list", "delay_ms": 300 }));
    let begun = Instant::now();
    cloud.get("/browsers").has(200);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    cloud.fault(&json!({ "call": "list", "hang_up": true }));
    assert!(cloud.attempt("GET", "/browsers", b"").is_err());
    cloud.get("/browsers").has(200);
}

#[test]
fn an_invalid_fault_is_refused_and_all_can_be_removed() {
    let cloud = Cloud::new();
    cloud.post("/_sandbox/faults", &json!({ "stauts": 500 })).is_error(422, "unprocessable_entity");
    cloud.post("/_sandbox/faults", &json!({ "call": "frobnicate" })).is_error(422, "unprocessable_entity");
    cloud.fault(&json!({ "status": 500, "times": 9 }));
    cloud.call("DELETE", "/_sandbox/faults", b"").has(204);
    cloud.get("/browsers").has(200);
}

#[test]
fn calls_are_counted() {
    let cloud = Cloud::new();
    let id = cloud.session();
    cloud.sh(&id, "true");
    cloud.sh(&id, "true");
    let counted = cloud.get("/_sandbox/calls").json();
    assert_eq!(counted, json!({ "total": 3, "calls": { "create": 1, "exec": 2 } }));
    cloud.call("DELETE", "/_sandbox/calls", b"").has(204);
    assert_eq!(cloud.get("/_sandbox/calls").json()["total"], 0);
}

#[test]
fn a_cdp_socket_can_end_early_or_be_refused() {
    let cloud = Cloud::new();
    let browser = cloud.browser(&json!({}));
    cloud.fault(&json!({ "call": "cdp", "after_seconds": 60 }));
    let mut cdp = cloud.cdp(&browser);
    cloud.pass(61.0);
    cloud.ends(&mut cdp);
    let path = text(&browser["cdp_ws_url"]).split_once("/browser").map(|(_, path)| format!("/browser{path}"));
    let path = path.expect("a path");
    let handshake = "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    cloud.fault(&json!({ "call": "cdp", "status": 503 }));
    cloud.bare("GET", &path, handshake).has(503);
    cloud.bare("GET", &path, "").is_error(400, "bad_request");
    cloud.bare("GET", "/browser/cdp?jwt=a.b.c", handshake).is_error(401, "unauthorized");
}
