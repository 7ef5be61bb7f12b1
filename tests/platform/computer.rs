//! The computer controls: each call, and what it leaves behind.

use serde_json::json;

use crate::client::{Cloud, text};

#[test]
fn the_mouse_moves_and_stays_on_the_screen() {
    let cloud = Cloud::new();
    let wish = json!({ "viewport": { "width": 800, "height": 600 } });
    let id = text(&cloud.browser(&wish)["session_id"]);
    let path = |call: &str| format!("/browsers/{id}/computer/{call}");
    let position = || cloud.post(&path("get_mouse_position"), &json!({})).has(200).json();
    assert_eq!(position(), json!({ "x": 0, "y": 0 }));
    for (call, body, at) in [
        ("move_mouse", json!({ "x": 5, "y": 6 }), (5, 6)),
        ("click_mouse", json!({ "x": 7, "y": 8, "button": "right", "num_clicks": 2 }), (7, 8)),
        ("drag_mouse", json!({ "path": [[1, 2], [3, 4]] }), (3, 4)),
        ("scroll", json!({ "x": 799, "y": 599, "delta_y": -1 }), (799, 599)),
    ] {
        assert!(cloud.post(&path(call), &body).has(200).body.is_empty(), "{call}");
        assert_eq!(position(), json!({ "x": at.0, "y": at.1 }), "{call}");
    }
    let beyond = "coordinates exceed screen bounds (max: 799x599)";
    for (call, body, message) in [
        ("move_mouse", json!({ "x": 800, "y": 0 }), beyond),
        ("drag_mouse", json!({ "path": [[1, 2], [3, 600]] }), beyond),
        ("drag_mouse", json!({ "path": [[1, 2]] }), "path must contain at least two points"),
        ("click_mouse", json!({ "x": -1, "y": 0 }), "coordinates must be non-negative"),
        ("click_mouse", json!({ "x": 1, "y": 0, "button": "top" }), "unsupported button: top"),
        ("scroll", json!({ "x": 1, "y": 0 }), "at least one of delta_x or delta_y must be non-zero"),
        ("press_key", json!({ "keys": [] }), "keys must contain at least one key symbol"),
    ] {
        cloud.post(&path(call), &body).says(400, message);
    }
    assert_eq!(position(), json!({ "x": 799, "y": 599 }));
    cloud.post(&path("type"), &json!({ "text": "ä" })).has(200);
    cloud.post(&path("press_key"), &json!({ "keys": ["Return"] })).has(200);
    assert_eq!(
        cloud.post(&path("cursor"), &json!({ "hidden": true })).has(200).json(),
        json!({ "ok": true })
    );
    cloud
        .post(&path("batch"), &json!({ "actions": [] }))
        .says(400, "actions must contain at least one action");
}

#[test]
fn a_screenshot_is_a_png_of_the_requested_size() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let path = |call: &str| format!("/browsers/{id}/computer/{call}");
    let shot = |body: &serde_json::Value| {
        let reply = cloud.post(&path("screenshot"), body).has(200);
        assert_eq!(reply.header("content-type"), Some("image/png"));
        assert_eq!(&reply.body[..8], b"\x89PNG\r\n\x1a\n");
        let number = |at: usize| u32::from_be_bytes(reply.body[at..at + 4].try_into().expect("four bytes"));
        ((number(16), number(20)), reply.body)
    };
    assert_eq!(shot(&json!({})).0, (1920, 1080));
    let corner = json!({ "region": { "x": 10, "y": 10, "width": 30, "height": 20 } });
    let (size, before) = shot(&corner);
    assert_eq!(size, (30, 20));
    cloud.post(&path("move_mouse"), &json!({ "x": 20, "y": 20 })).has(200);
    assert_ne!(shot(&corner).1, before, "the pointer is visible");
    let beyond = json!({ "region": { "x": 1900, "y": 0, "width": 30, "height": 20 } });
    cloud.post(&path("screenshot"), &beyond).says(400, "region exceeds screen bounds");
}

#[test]
fn each_session_has_a_clipboard_of_its_own() {
    let cloud = Cloud::new();
    let (one, other) = (cloud.session(), cloud.session());
    let path = |id: &str, call: &str| format!("/browsers/{id}/computer/clipboard/{call}");
    cloud.post(&path(&one, "write"), &json!({ "text": "copied" })).has(200);
    assert_eq!(cloud.post(&path(&one, "read"), &json!({})).has(200).json(), json!({ "text": "copied" }));
    assert_eq!(cloud.post(&path(&other, "read"), &json!({})).has(200).json(), json!({ "text": "" }));
}
