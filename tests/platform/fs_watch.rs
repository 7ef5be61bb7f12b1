//! `fs/watch` and `logs/stream`: events of the VM's files.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::client::{Cloud, text};

struct Events(BufReader<TcpStream>);

impl Events {
    /// The next event with this type; `None` when the stream has ended.
    fn next(&mut self, kind: &str) -> Option<Value> {
        self.next_with("type", kind)
    }

    fn next_with(&mut self, field: &str, kind: &str) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("a line") == 0 || line.trim_end() == "0" {
                return None;
            }
            let event: Option<Value> =
                line.strip_prefix("data: ").map(|text| serde_json::from_str(text).expect("JSON"));
            if let Some(event) = event.filter(|event| event[field] == kind) {
                return Some(event);
            }
        }
    }
}

#[test]
fn a_watch_reports_what_happens_to_the_files() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let call = |path: &str| format!("/browsers/{id}/fs/{path}");
    cloud.put(&call("create_directory"), &json!({ "path": "/tmp/w/sub" })).has(201);
    let wish = json!({ "path": "/tmp/w", "recursive": true });
    let watch = text(&cloud.post(&call("watch"), &wish).has(201).json()["watch_id"]);
    let begin = |watch: &str| {
        Events(BufReader::new(cloud.begin("GET", &call(&format!("watch/{watch}/events")), &json!({}))))
    };
    // Events before a client reads are kept.
    cloud.call("PUT", &call("write_file?path=/tmp/w/sub/a"), b"1").has(201);
    let mut events = begin(&watch);
    let event = |kind: &str, path: &str, is_dir: bool| {
        let name = path.rsplit('/').next();
        Some(json!({ "type": kind, "path": path, "name": name, "is_dir": is_dir }))
    };
    assert_eq!(events.next("CREATE"), event("CREATE", "/tmp/w/sub/a", false));
    assert_eq!(events.next("WRITE"), event("WRITE", "/tmp/w/sub/a", false));
    // A program's changes count too.
    assert_eq!(cloud.sh(&id, "mkdir ../tmp/w/new").exit_code, 0);
    assert_eq!(events.next("CREATE"), event("CREATE", "/tmp/w/new", true));
    let paths = json!({ "src_path": "/tmp/w/sub/a", "dest_path": "/tmp/w/b" });
    cloud.put(&call("move"), &paths).has(200);
    assert_eq!(events.next("RENAME"), event("RENAME", "/tmp/w/sub/a", false));
    assert_eq!(events.next("CREATE"), event("CREATE", "/tmp/w/b", false));
    cloud.put(&call("delete_file"), &json!({ "path": "/tmp/w/b" })).has(200);
    assert_eq!(events.next("DELETE"), event("DELETE", "/tmp/w/b", false));

    let wish = json!({ "path": "/tmp/w" });
    let flat = text(&cloud.post(&call("watch"), &wish).has(201).json()["watch_id"]);
    let mut flat_events = begin(&flat);
    for name in ["sub/deep", "shallow"] {
        cloud.call("PUT", &call(&format!("write_file?path=/tmp/w/{name}")), b"1").has(201);
    }
    assert_eq!(flat_events.next("CREATE"), event("CREATE", "/tmp/w/shallow", false));

    cloud.call("DELETE", &call(&format!("watch/{watch}")), b"").has(204);
    assert_eq!(events.next("none"), None);
    cloud.call("DELETE", &call(&format!("watch/{watch}")), b"").says(404, "watch not found");
    cloud.get(&call(&format!("watch/{watch}/events"))).says(404, "watch not found");
    cloud.post(&call("watch"), &json!({ "path": "/tmp/none" })).says(404, "path not found");
    cloud.post(&call("watch"), &json!({ "path": "tmp" })).says(400, "path must be absolute");
    // The end of the session ends its watches.
    cloud.call("DELETE", &format!("/browsers/{id}"), b"").has(204);
    assert_eq!(flat_events.next("none"), None);
}

#[test]
fn the_lines_of_a_log_come_as_they_are_written() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let call = |path: &str| format!("/browsers/{id}/{path}");
    let write = |text: &[u8]| cloud.call("PUT", &call("fs/write_file?path=/tmp/log"), text).has(201);
    write(b"old\n\nhalf");
    let begin = |query: &str| {
        let path = call(&format!("logs/stream?{query}"));
        Events(BufReader::new(cloud.begin("GET", &path, &json!({}))))
    };
    let message = |events: &mut Events| events.next_with("event", "log").map(|event| text(&event["message"]));
    let mut all = begin("source=path&path=/tmp/log&follow=false");
    assert_eq!(message(&mut all).as_deref(), Some("old"));
    assert_eq!(cloud.sh(&id, "echo \" a line\" >>../tmp/log; echo next >>../tmp/log").exit_code, 0);
    assert_eq!(message(&mut all).as_deref(), Some("half a line"));
    assert_eq!(message(&mut all).as_deref(), Some("next"));
    for (query, said) in [
        ("source=path&path=tmp/log", "logs source not available"),
        ("source=supervisor&supervisor_process=x", "logs source not available"),
        ("source=path&path=/tmp/none", "failed to open log path"),
    ] {
        let mut events = begin(query);
        assert_eq!(message(&mut events).as_deref(), Some(said), "{query}");
        assert_eq!(message(&mut events), None, "{query}");
    }
    // The end of the session ends its streams.
    cloud.call("DELETE", &format!("/browsers/{id}"), b"").has(204);
    assert_eq!(message(&mut all), None);
}
