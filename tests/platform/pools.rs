//! `/browser_pools`: sessions to lend.

use serde_json::{Value, json};

use crate::client::{Cloud, text};

const AT_ONCE: &str = r#"{"acquire_timeout_seconds":0}"#;

fn pool(cloud: &Cloud, size: usize) {
    let made = cloud.post("/browser_pools", &json!({ "name": "few", "size": size })).has(201).json();
    assert_eq!((&made["available_count"], &made["acquired_count"]), (&json!(size), &json!(0)));
}

fn acquire(cloud: &Cloud) -> Value {
    cloud.call("POST", "/browser_pools/few/acquire", AT_ONCE.as_bytes()).has(200).json()
}

fn release(cloud: &Cloud, browser: &Value, reuse: bool) {
    let body = json!({ "session_id": browser["session_id"], "reuse": reuse });
    cloud.post("/browser_pools/few/release", &body).has(204);
}

#[test]
fn a_pool_lends_its_sessions_and_then_answers_204() {
    let cloud = Cloud::new();
    pool(&cloud, 1);
    let one = acquire(&cloud);
    assert_eq!(one["pool"]["name"], "few");
    let nothing = cloud.call("POST", "/browser_pools/few/acquire", AT_ONCE.as_bytes()).has(204);
    assert!(nothing.body.is_empty());
    assert_eq!(cloud.get("/browser_pools/few").json()["acquired_count"], 1);
    release(&cloud, &one, true);
    assert_eq!(cloud.get("/browser_pools").json()[0]["available_count"], 1);
    cloud
        .post("/browser_pools/few/release", &json!({ "session_id": one["session_id"] }))
        .is_error(400, "bad_request");
    cloud.post("/browser_pools/none/acquire", &json!({})).is_error(404, "not_found");
    cloud.post("/browser_pools", &json!({ "size": 0 })).is_error(400, "bad_request");
    cloud.post("/browser_pools", &json!({ "name": "few", "size": 1 })).is_error(409, "conflict");
    cloud.call("DELETE", "/browser_pools/few", b"").has(204);
    cloud.get(&format!("/browsers/{}", text(&one["session_id"]))).is_error(404, "not_found");
}

#[test]
fn an_acquisition_waits_for_a_release() {
    let cloud = Cloud::new();
    pool(&cloud, 1);
    let one = acquire(&cloud);
    let other = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cloud.post("/browser_pools/few/acquire", &json!({})).has(200).json());
        std::thread::sleep(std::time::Duration::from_millis(100));
        release(&cloud, &one, true);
        waiting.join().expect("an answer")
    });
    assert_eq!(one["session_id"], other["session_id"]);
}

#[test]
fn files_stay_in_a_pool_session_unless_reuse_is_off() {
    let cloud = Cloud::new();
    pool(&cloud, 1);
    let one = acquire(&cloud);
    let file = |browser: &Value, call: &str| {
        format!("/browsers/{}/fs/{call}?path=/tmp/left", text(&browser["session_id"]))
    };
    cloud.call("PUT", &file(&one, "write_file"), b"here").has(201);
    release(&cloud, &one, true);
    // The clock stops while the session waits in the pool.
    cloud.pass(3600.0);
    let two = acquire(&cloud);
    assert_eq!(cloud.get(&file(&two, "read_file")).has(200).body, b"here");
    release(&cloud, &two, false);
    let three = acquire(&cloud);
    assert_ne!(three["session_id"], two["session_id"]);
    cloud.get(&file(&three, "read_file")).says(404, "file not found");
    // The clock runs while the session is lent.
    cloud.pass(3600.0);
    assert_eq!(cloud.stage(&text(&three["session_id"])), "gone");
    assert_eq!(cloud.get("/browser_pools/few").json()["acquired_count"], 0);
}
