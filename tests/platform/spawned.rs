//! `process/spawn`, and the calls about a spawned process.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::client::{Cloud, decoded, text};
use crate::world::wait_for;

/// Path on this machine of a file in the home directory of a session's VM.
fn in_home(cloud: &Cloud, id: &str, name: &str) -> PathBuf {
    PathBuf::from(text(&cloud.inside(id)["root"])).join("root").join(name)
}

struct Process<'a> {
    cloud: &'a Cloud,
    base: String,
}

impl Process<'_> {
    fn spawn<'a>(cloud: &'a Cloud, id: &str, line: &str) -> Process<'a> {
        Process::of(cloud, id, &json!({ "command": "/bin/sh", "args": ["-c", line] }))
    }

    fn of<'a>(cloud: &'a Cloud, id: &str, program: &Value) -> Process<'a> {
        let made = cloud.post(&format!("/browsers/{id}/process/spawn"), program).has(200).json();
        assert!(made["pid"].as_i64() > Some(1) && text(&made["started_at"]).ends_with('Z'), "{made}");
        let base = format!("/browsers/{id}/process/{}", text(&made["process_id"]));
        Process { cloud, base }
    }

    fn status(&self) -> Value {
        self.cloud.get(&format!("{}/status", self.base)).has(200).json()
    }

    fn exit_code(&self) -> Value {
        wait_for("an exit", || Some(self.status()).filter(|status| status["state"] == "exited"))["exit_code"]
            .clone()
    }

    fn post(&self, what: &str, body: &Value) -> crate::client::Reply {
        self.cloud.post(&format!("{}/{what}", self.base), body)
    }

    /// Reads the stream to its end, and returns its events.
    fn events(&self) -> Vec<Value> {
        let reply = self.cloud.get(&format!("{}/stdout/stream", self.base)).has(200);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let said = String::from_utf8(reply.body).expect("UTF-8");
        let events = said.split("\n\n").filter(|event| !event.is_empty());
        events
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
            .collect()
    }
}

#[test]
fn a_spawned_process_reads_input_streams_output_and_exits() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let process = Process::spawn(&cloud, &id, "read line; echo \"got $line\"; echo oops >&2; exit 3");
    let status = process.status();
    assert_eq!((&status["state"], &status["exit_code"]), (&json!("running"), &Value::Null));
    assert!(status["mem_bytes"].as_u64() > Some(0), "{status}");
    let written = process.post("stdin", &json!({ "data_b64": STANDARD.encode("hello\n") })).has(200).json();
    assert_eq!(written, json!({ "written_bytes": 6 }));
    let events = process.events();
    let said = |stream: &str| -> Vec<u8> {
        let events = events.iter().filter(|event| event["stream"] == stream);
        events.flat_map(|event| decoded(&event["data_b64"])).collect()
    };
    assert_eq!((said("stdout"), said("stderr")), (b"got hello\n".to_vec(), b"oops\n".to_vec()));
    assert_eq!(events.last(), Some(&json!({ "event": "exit", "exit_code": 3 })));
    assert_eq!(process.exit_code(), 3);
    process.post("stdin", &json!({ "data_b64": "!" })).says(400, "invalid base64");
    process.post("stdin", &json!({ "data_b64": "YQ==" })).says(500, "failed to write to stdin");
    process.post("kill", &json!({ "signal": "TERM" })).says(500, "failed to signal process");
}

#[test]
fn signals_arrive_and_the_exit_code_is_minus_one() {
    let cloud = Cloud::new();
    let id = cloud.session();
    for signal in ["TERM", "KILL", "INT", "HUP"] {
        // The process inherits ignored signals: SIGHUP below nohup, SIGINT in the background of a
        // script. A shell in place of tee would catch SIGINT until it has become another program.
        let line = format!("exec env --default-signal tee {signal}");
        let process = Process::spawn(&cloud, &id, &line);
        let ready = in_home(&cloud, &id, signal);
        wait_for("a process that can be signalled", || ready.exists().then_some(()));
        process.post("kill", &json!({ "signal": "USR1" })).says(400, "invalid signal");
        assert_eq!(process.post("kill", &json!({ "signal": signal })).has(200).json(), json!({ "ok": true }));
        assert_eq!(process.exit_code(), -1, "{signal}");
    }
}

#[test]
fn a_process_is_forgotten_ten_seconds_after_its_end() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let process = Process::spawn(&cloud, &id, "exit 0");
    assert_eq!(process.exit_code(), 0);
    // The clock runs from the last event, which comes just after the exit.
    process.events();
    cloud.pass(9.0);
    process.status();
    cloud.pass(2.0);
    wait_for("forgetting", || {
        let reply = cloud.get(&format!("{}/status", process.base));
        (reply.status == 404).then(|| reply.says(404, "process not found"))
    });
    let unknown = Process { cloud: &cloud, base: format!("/browsers/{id}/process/none") };
    unknown.post("stdin", &json!({ "data_b64": "" })).says(404, "process not found");
    unknown.post("kill", &json!({ "signal": "TERM" })).says(404, "process not found");
    cloud.get(&format!("{}/stdout/stream", unknown.base)).says(404, "process not found");
}

#[test]
fn events_are_small_and_unread_ones_block_the_process() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let process = Process::spawn(&cloud, &id, "head -c 3000000 /dev/zero");
    // More bytes than 256 events and a pipe hold.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(process.status()["state"], "running");
    let events = process.events();
    let lengths: Vec<usize> = events
        .iter()
        .filter(|event| event["stream"] == "stdout")
        .map(|event| decoded(&event["data_b64"]).len())
        .collect();
    assert!(lengths.iter().all(|length| (1..=4096).contains(length)));
    assert_eq!(lengths.iter().sum::<usize>(), 3_000_000);
}

#[test]
fn a_process_can_have_a_terminal_with_input_and_resizing() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let line = "stty size; read line; echo \"got $line\" >&2; trap 'stty size; exit 5' WINCH; : >ready
                while :; do sleep 0.01; done";
    let program = json!({
        "command": "sh", "args": ["-c", line], "allocate_tty": true, "rows": 17, "cols": 91,
    });
    let process = Process::of(&cloud, &id, &program);
    process.post("stdin", &json!({ "data_b64": STANDARD.encode("it\r") })).has(200);
    let ready = in_home(&cloud, &id, "ready");
    wait_for("the trap", || ready.exists().then_some(()));
    let answer = process.post("resize", &json!({ "rows": 50, "cols": 132 })).has(200).json();
    assert_eq!(answer, json!({ "ok": true }));
    assert_eq!(process.exit_code(), json!(5));
    let mut events = process.events();
    assert_eq!(events.pop(), Some(json!({ "event": "exit", "exit_code": 5 })));
    // All output is one stream, echoed input and standard error included.
    assert!(events.iter().all(|event| event["stream"] == "stdout"), "{events:?}");
    let said: Vec<u8> = events.iter().flat_map(|event| decoded(&event["data_b64"])).collect();
    let mut lines: Vec<_> = std::str::from_utf8(&said).expect("UTF-8").split_terminator("\r\n").collect();
    // The echo of the input may precede the first size.
    lines[..2].sort_unstable();
    assert_eq!(lines, ["17 91", "it", "got it", "50 132"]);
}

#[test]
fn a_process_without_terminal_rejects_resizing_and_errors_are_the_same() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let process = Process::spawn(&cloud, &id, "test -t 0 || exit 4");
    process.post("resize", &json!({ "rows": 1, "cols": 1 })).says(400, "process has no terminal");
    assert_eq!(process.exit_code(), json!(4));
    let spawn = format!("/browsers/{id}/process/spawn");
    for (program, message) in [
        ("no-such-program", "exec: \"no-such-program\": executable file not found in $PATH"),
        ("/no/such/program", "fork/exec /no/such/program: no such file or directory"),
    ] {
        for allocate_tty in [false, true] {
            let program = json!({ "command": program, "allocate_tty": allocate_tty });
            cloud.post(&spawn, &program).says(400, message);
        }
    }
}
