//! The life of a session: activity, idleness, and the effects of its end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Cloud, text};
use crate::world::wait_for;

#[test]
fn standby_starts_after_five_seconds_and_then_the_timeout_runs() {
    let cloud = Cloud::new();
    let id = text(&cloud.browser(&json!({ "timeout_seconds": 100 }))["session_id"]);
    let root = PathBuf::from(text(&cloud.inside(&id)["root"]));
    assert_eq!(cloud.stage(&id), "quiet");
    cloud.pass(5.0);
    assert_eq!(cloud.stage(&id), "standby");
    // Neither programs nor files count as activity.
    assert_eq!(cloud.sh(&id, "echo in").stdout, "in\n");
    cloud.pass(90.0);
    assert_eq!(cloud.stage(&id), "standby");
    assert!(root.exists());
    cloud.pass(11.0);
    assert_eq!(cloud.stage(&id), "gone");
    assert!(!root.exists());
    cloud.get(&format!("/browsers/{id}")).is_error(404, "not_found");
}

#[test]
fn a_cdp_client_keeps_a_session_and_its_end_restarts_the_clock() {
    let cloud = Cloud::new();
    let browser = cloud.browser(&json!({ "timeout_seconds": 10 }));
    let id = text(&browser["session_id"]);
    let mut cdp = cloud.cdp(&browser);
    assert_eq!(cloud.stage(&id), "active");
    cloud.pass(3000.0);
    assert_eq!(cloud.stage(&id), "active");
    cloud.runtime.block_on(async {
        cdp.send(Message::Ping("still there?".into())).await.expect("a ping");
        let answer = cdp.next().await.expect("open").expect("a message");
        assert_eq!(answer, Message::Pong("still there?".into()));
        cdp.close(None).await.expect("a close");
        while cdp.next().await.is_some() {}
    });
    wait_for("the socket's end", || (cloud.stage(&id) == "quiet").then_some(()));
    cloud.pass(16.0);
    assert_eq!(cloud.stage(&id), "gone");
}

#[test]
fn a_cdp_socket_lasts_an_hour_or_as_long_as_its_session() {
    let cloud = Cloud::new();
    let browser = cloud.browser(&json!({ "timeout_seconds": 3600 }));
    let id = text(&browser["session_id"]);
    let mut cdp = cloud.cdp(&browser);
    cloud.pass(3601.0);
    cloud.ends(&mut cdp);
    wait_for("quiet", || (cloud.stage(&id) == "quiet").then_some(()));
    let mut cdp = cloud.cdp(&browser);
    cloud.call("DELETE", &format!("/browsers/{id}"), b"").has(204);
    cloud.ends(&mut cdp);
}

#[test]
fn a_token_expires_after_the_requested_time() {
    let cloud = Cloud::new();
    cloud.fault(&json!({ "call": "create", "token_seconds": 60 }));
    let browser = cloud.browser(&json!({ "timeout_seconds": 3600 }));
    let path =
        text(&browser["cdp_ws_url"]).splitn(4, '/').nth(3).map(|path| format!("/{path}")).expect("a path");
    let mut cdp = cloud.cdp(&browser);
    cloud.pass(61.0);
    // A client that connected in time stays connected.
    cloud.runtime.block_on(cdp.send(Message::Ping("still there?".into()))).expect("a ping");
    cloud.get(&path).is_error(401, "unauthorized");
}

#[test]
fn a_session_ages_when_the_clock_is_advanced() {
    let cloud = Cloud::new();
    let created = |browser: &serde_json::Value| text(&browser["created_at"]);
    let day_of = |text: &str| text[8..10].parse::<i32>().expect("a day");
    cloud.pass(1000.0);
    let browser = cloud.browser(&json!({ "timeout_seconds": 259_200 }));
    let path = format!("/browsers/{}", text(&browser["session_id"]));
    assert_eq!(created(&cloud.get(&path).json()), created(&browser));
    cloud.pass(2.0 * 86_400.0);
    let later = created(&cloud.get(&path).json());
    // The end of a month may lie between them.
    let apart = day_of(&created(&browser)) - day_of(&later);
    assert!(apart == 2 || apart < -25, "{later}");
    assert_eq!(later[11..], created(&browser)[11..]);
}

#[test]
fn computer_control_is_activity() {
    let cloud = Cloud::new();
    let id = text(&cloud.browser(&json!({ "timeout_seconds": 10 }))["session_id"]);
    let batch = format!("/browsers/{id}/computer/batch");
    cloud.pass(14.0);
    assert_eq!(cloud.stage(&id), "standby");
    let begun = Instant::now();
    let actions = json!({ "actions": [
        { "type": "sleep", "sleep": { "duration_ms": 50 } },
        { "type": "move_mouse", "move_mouse": { "x": 10, "y": 10 } },
    ] });
    assert!(cloud.post(&batch, &actions).has(200).body.is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert_eq!(cloud.stage(&id), "quiet");
    let unknown = json!({ "actions": [{ "type": "jump", "jump": {} }] });
    cloud.post(&batch, &unknown).says(400, "actions[0] (jump): unsupported action type: jump");
    let other = json!({ "actions": [{ "type": "sleep", "move_mouse": { "x": 1, "y": 1 } }] });
    let message = "actions[0] (sleep): sleep field is required when type is sleep";
    cloud.post(&batch, &other).says(400, message);
}

#[test]
fn a_session_expires_sooner_on_a_faster_clock() {
    let cloud = Cloud::with_time_scale(30.0);
    let begun = Instant::now();
    let id = text(&cloud.browser(&json!({ "timeout_seconds": 10 }))["session_id"]);
    wait_for("standby", || (cloud.stage(&id) == "standby").then_some(()));
    wait_for("the end", || (cloud.stage(&id) == "gone").then_some(()));
    // The session lives 15 s, and the platform checks every 5 s.
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
