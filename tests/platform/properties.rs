//! Properties of browsers: kept, shown, changed, and searched for.

use serde_json::{Value, json};

use crate::client::{Cloud, text};

/// Session ids of a list.
fn ids(cloud: &Cloud, query: &str) -> Vec<String> {
    let listed = cloud.get(&format!("/browsers{query}")).has(200).json();
    listed.as_array().expect("a list").iter().map(|one| text(&one["session_id"])).collect()
}

fn patch(cloud: &Cloud, id: &str, fields: &Value) -> Value {
    cloud.call("PATCH", &format!("/browsers/{id}"), fields.to_string().as_bytes()).has(200).json()
}

#[test]
fn a_browser_is_shown_as_it_was_requested() {
    let cloud = Cloud::new();
    let wish = json!({
        "headless": true, "memory": "4GiB", "region": "eu-west", "kiosk_mode": true,
        "viewport": { "width": 1280, "height": 800, "refresh_rate": 60 }, "start_url": "https://a.example",
        "proxy_id": "p1", "chrome_policy": { "A": 1 }, "tags": { "team": "x" },
        "network": { "private_hosts": ["10.0.0.0/8"] }, "vaults": [{ "name": "v" }],
    });
    let made = cloud.browser(&wish);
    let found = cloud.get(&format!("/browsers/{}", text(&made["session_id"]))).has(200).json();
    for (name, value) in wish.as_object().expect("an object") {
        assert_eq!((&made[name], &found[name]), (value, value), "{name}");
    }
    let plain = cloud.browser(&json!({}));
    assert_eq!((&plain["memory"], &plain["region"]), (&json!("8GiB"), &json!("us-east")));
    assert!(text(&plain["base_url"]).ends_with("/browser/kernel"));
    assert_eq!(made.get("browser_live_view_url"), None, "there is no screen");
    let live_view = text(&plain["browser_live_view_url"]);
    let path = live_view.strip_prefix(&cloud.platform().base_url()).expect("a URL of the platform");
    cloud.bare("GET", path, "").is_error(501, "not_implemented");
    cloud.post("/browsers", &json!({ "memory": "3GiB" })).is_error(400, "bad_request");
    cloud.post("/browsers", &json!({ "kiosk_mode": 1 })).is_error(422, "unprocessable_entity");
}

#[test]
fn a_patch_changes_only_what_can_change() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let fields = json!({ "start_url": "https://b.example", "viewport": { "width": 800, "height": 600 } });
    let patched = patch(&cloud, &id, &fields);
    for name in ["start_url", "viewport"] {
        assert_eq!(patched[name], fields[name]);
    }
    for fixed in [json!({ "region": "us-west" }), json!({ "headless": true }), json!({ "memory": "16GiB" })] {
        let body = fixed.to_string();
        cloud.call("PATCH", &format!("/browsers/{id}"), body.as_bytes()).is_error(400, "bad_request");
    }
    // A refused change changes nothing.
    let both = br#"{"start_url":"https://c.example","name":"new","timeout_seconds":60}"#;
    cloud.call("PATCH", &format!("/browsers/{id}"), both).is_error(400, "bad_request");
    let found = cloud.get(&format!("/browsers/{id}")).json();
    assert_eq!((&found["start_url"], found.get("name")), (&fields["start_url"], None));
}

#[test]
fn a_list_is_filtered_by_status_query_region_and_tags() {
    let cloud = Cloud::new();
    let one = text(&cloud.browser(&json!({ "name": "Alpha", "tags": { "a": "1", "b": "2" } }))["session_id"]);
    let two =
        text(&cloud.browser(&json!({ "region": "us-west", "profile": { "name": "work" } }))["session_id"]);
    let three = text(&cloud.browser(&json!({ "name": "gone" }))["session_id"]);
    cloud.call("DELETE", "/browsers/gone", b"").has(204);
    for (query, expected) in [
        ("", vec![&one, &two]),
        ("?status=all", vec![&three, &one, &two]),
        ("?include_deleted=true", vec![&three, &one, &two]),
        ("?status=deleted", vec![&three]),
        ("?query=alph", vec![&one]),
        ("?query=WORK", vec![&two]),
        ("?query=nothing", vec![]),
        ("?region=us-west", vec![&two]),
        ("?tags%5Ba%5D=1", vec![&one]),
        ("?tags[a]=1&tags[b]=3", vec![]),
    ] {
        assert_eq!(ids(&cloud, query).iter().collect::<Vec<_>>(), expected, "{query}");
    }
    cloud.get("/browsers?status=asleep").is_error(400, "bad_request");
    cloud.get("/browsers/gone").is_error(404, "not_found");
    let deleted = cloud.get("/browsers/gone?include_deleted=true").has(200).json();
    assert_eq!((&deleted["session_id"], &deleted["usage_status"]), (&json!(three), &json!("ready")));
    assert!(text(&deleted["deleted_at"]) >= text(&deleted["created_at"]));
}
