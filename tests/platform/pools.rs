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

#[test]
fn a_pool_is_changed_flushed_and_found() {
    let cloud = Cloud::new();
    let wish = json!({
        "name": "few", "size": 2, "headless": true, "memory": "2GiB", "region": "us-west",
        "start_url": "https://a.example", "extensions": [{ "name": "e" }],
    });
    let made = cloud.post("/browser_pools", &wish).has(201).json();
    assert_eq!((&made["region"], &made["extension_ids"]), (&json!("us-west"), &json!(["e"])));
    let config = &made["browser_pool_config"];
    for name in ["name", "size", "headless", "memory", "start_url", "extensions"] {
        assert_eq!(config[name], wish[name], "{name}");
    }
    let one = acquire(&cloud);
    assert_eq!((&one["region"], &one["memory"]), (&json!("us-west"), &json!("2GiB")));
    release(&cloud, &one, true);
    let patch = |fields: Value| cloud.call("PATCH", "/browser_pools/few", fields.to_string().as_bytes());
    let patched = patch(json!({ "name": "", "size": 3, "memory": "4GiB", "start_url": "" })).has(200).json();
    assert_eq!((&patched["name"], &patched["available_count"]), (&json!("few"), &json!(3)));
    let config = &patched["browser_pool_config"];
    assert_eq!((&config["memory"], config.get("start_url")), (&json!("4GiB"), None));
    patch(json!({ "region": "us-east" })).is_error(400, "bad_request");
    let network = json!({ "allowed_hosts": ["a.example"] });
    patch(json!({ "network": network, "expected_network": {} })).has(200);
    patch(json!({ "network": {}, "expected_network": {} })).is_error(409, "stale_network");
    patch(json!({ "network": {}, "expected_network": network })).has(200);
    patch(json!({ "memory": "16GiB" })).is_error(400, "bad_request");
    // An idle session keeps what it was made with, until it is flushed.
    let same = acquire(&cloud);
    assert_eq!((&same["session_id"], &same["memory"]), (&one["session_id"], &json!("2GiB")));
    release(&cloud, &same, true);
    cloud.post("/browser_pools/few/flush", &json!({})).has(204);
    cloud.get(&format!("/browsers/{}", text(&one["session_id"]))).is_error(404, "not_found");
    assert_eq!(acquire(&cloud)["memory"], "4GiB");
    cloud.post("/browser_pools/none/flush", &json!({})).is_error(404, "not_found");

    cloud.post("/browser_pools", &json!({ "name": "other", "size": 1 })).has(201);
    let names = |query: &str| {
        let reply = cloud.get(&format!("/browser_pools{query}")).has(200);
        let names = reply.json().as_array().expect("a list").iter().map(|pool| text(&pool["name"])).collect();
        (names, reply.header("x-has-more").map(str::to_owned))
    };
    for (query, expected, more) in [
        ("", vec!["few", "other"], "false"),
        ("?limit=1", vec!["few"], "true"),
        ("?limit=1&offset=1", vec!["other"], "false"),
        ("?name=FEW", vec!["few"], "false"),
        ("?name=fe", vec![], "false"),
        ("?query=THE", vec!["other"], "false"),
        ("?region=us-east", vec!["other"], "false"),
    ] {
        let expected = expected.into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(query), (expected, Some(more.to_owned())), "{query}");
    }
    cloud.call("PATCH", "/browser_pools/other", br#"{"name":"few"}"#).is_error(409, "conflict");
}

#[test]
fn a_name_and_tags_of_a_lease_end_with_it() {
    let cloud = Cloud::new();
    pool(&cloud, 1);
    let other = cloud.browser(&json!({ "name": "taken" }));
    let acquire = |fields: Value| {
        let mut fields = fields;
        fields["acquire_timeout_seconds"] = json!(0);
        cloud.post("/browser_pools/few/acquire", &fields)
    };
    acquire(json!({ "name": "taken" })).is_error(409, "conflict");
    acquire(json!({ "start_url": 1 })).is_error(422, "unprocessable_entity");
    let lease = json!({ "name": "mine", "tags": { "a": "b" }, "start_url": "https://lease.example" });
    let one = acquire(lease.clone()).has(200).json();
    for name in ["name", "tags", "start_url"] {
        assert_eq!(one[name], lease[name], "{name}");
    }
    assert_eq!(cloud.get("/browsers/mine").has(200).json()["session_id"], one["session_id"]);
    release(&cloud, &one, true);
    cloud.get("/browsers/mine").is_error(404, "not_found");
    let two = acquire(json!({ "profile": { "name": "p" } })).has(200).json();
    assert_eq!((&two["session_id"], two.get("name"), two.get("tags")), (&one["session_id"], None, None));
    // A session with a profile of its lease is not used again.
    release(&cloud, &two, true);
    let three = acquire(json!({})).has(200).json();
    assert_ne!(three["session_id"], two["session_id"]);
    assert_ne!(three["session_id"], other["session_id"]);
}
