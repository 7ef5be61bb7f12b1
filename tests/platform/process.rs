//! `process/exec`: commands that run to their end.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Cloud, Ran};
use crate::world::wait_for;

fn ran(exit_code: i64, stdout: &str, stderr: &str) -> Ran {
    Ran { exit_code, stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

/// Reports if a process of a VM exists and has not exited. The state is always valid, while the
/// command line is empty during an exec.
fn is_alive(root: &str, pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("{root}/proc/{pid}/stat")).ok();
    let state = state.as_deref().and_then(|line| line.rsplit_once(") ")).map(|(_, rest)| rest);
    state.is_some_and(|rest| !rest.starts_with(['Z', 'X']))
}

#[test]
fn a_program_runs_without_a_shell_in_its_own_environment() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let echo = json!({ "command": "echo", "args": ["$HOME", "a  b", "*"] });
    assert_eq!(cloud.exec(&id, &echo), ran(0, "$HOME a  b *\n", ""));
    let line =
        "echo $HOME:$USER:$KSYNC_SANDBOX_ROOT:$X; pwd; env | grep -c CARGO; cat; echo oops >&2; exit 7";
    let program = json!({ "command": "/bin/sh", "args": ["-c", line], "env": { "X": "y" }, "as_root": true });
    assert_eq!(cloud.exec(&id, &program), ran(7, "/root:root:/:y\n/root\n0\n", "oops\n"));
    let there = json!({ "command": "pwd", "cwd": "/tmp" });
    assert_eq!(cloud.exec(&id, &there).stdout, "/tmp\n");
    assert_eq!(cloud.sh(&id, "kill -9 $$").exit_code, -1);
    let binary = cloud.sh(&id, "head -c 3000000 /dev/zero | tr '\\0' x");
    assert_eq!(binary.stdout.len(), 3_000_000);
}

#[test]
fn an_invalid_program_is_an_error_from_the_vm() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let exec = |program| cloud.post(&format!("/browsers/{id}/process/exec"), &program);
    exec(json!({})).says(400, "command required");
    exec(json!({ "command": "/no/such" })).says(400, "fork/exec /no/such: no such file or directory");
    exec(json!({ "command": "no-such" })).says(400, "exec: \"no-such\": executable file not found in $PATH");
    exec(json!({ "command": "true", "cwd": "/no/dir" }))
        .says(400, "chdir /no/dir: no such file or directory");
    let both = json!({ "command": "true", "as_root": true, "as_user": "kernel" });
    exec(both).says(400, "cannot specify both as_root and as_user");
    exec(json!({ "command": "true", "as_user": "kernel" })).has(200);
    exec(json!({ "command": "true", "as_user": "nobody-here" })).has(400);
    exec(json!({ "command": 5 })).is_error(422, "unprocessable_entity");
}

#[test]
fn a_timeout_kills_the_process_alone() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let line = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $! $$ >pids; exec sleep 1000";
    let program = json!({ "command": "/bin/sh", "args": ["-c", line], "timeout_sec": 1 });
    cloud.post(&format!("/browsers/{id}/process/exec"), &program).says(500, "process timed out");
    let pids = cloud.sh(&id, "cat pids").stdout;
    let (child, direct) = pids.trim().split_once(' ').expect("two");
    let root = cloud.root(&id);
    assert!(is_alive(&root, child) && !is_alive(&root, direct), "{pids}");
    cloud.call("DELETE", &format!("/browsers/{id}"), b"").has(204);
    wait_for("the end of what was left", || (!is_alive(&root, child)).then_some(()));
}

#[test]
fn exec_hangs_on_an_inherited_output_even_beyond_its_timeout() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let timed = |line: &str| {
        let begun = Instant::now();
        assert_eq!(cloud.sh(&id, line), ran(0, "done\n", ""));
        begun.elapsed()
    };
    assert!(timed("sleep 2 & echo done") >= Duration::from_secs(2));
    assert!(timed("setsid sleep 2 >/dev/null 2>&1 </dev/null & echo done") < Duration::from_secs(2));
    let begun = Instant::now();
    let program =
        json!({ "command": "/bin/sh", "args": ["-c", "sleep 2 & exec sleep 1000"], "timeout_sec": 1 });
    cloud.post(&format!("/browsers/{id}/process/exec"), &program).says(500, "process timed out");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_client_that_disconnects_ends_its_process() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let program = json!({ "command": "/bin/sh", "args": ["-c", "echo $$ >pid; exec sleep 1000"] });
    let call = cloud.begin("POST", &format!("/browsers/{id}/process/exec"), &program);
    let root = cloud.root(&id);
    let pid = wait_for("its number", || {
        let pid = std::fs::read_to_string(Path::new(&root).join("root/pid")).ok()?;
        pid.strip_suffix('\n').map(str::to_owned)
    });
    assert!(is_alive(&root, &pid));
    drop(call);
    wait_for("its end", || (!is_alive(&root, &pid)).then_some(()));
}

#[test]
fn a_vm_has_no_rsync_zstd_or_rclone() {
    let cloud = Cloud::new();
    let id = cloud.session();
    assert_eq!(cloud.sh(&id, "command -v rsync zstd rclone; command -v cat >/dev/null"), ran(0, "", ""));
}

#[test]
fn a_session_and_its_platform_leave_nothing_behind() {
    let mut cloud = Cloud::new();
    let id = cloud.session();
    let line = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!";
    let pid = cloud.sh(&id, line).stdout.trim().to_owned();
    let root = cloud.root(&id);
    let other = cloud.session();
    let (other_root, kept) = (cloud.root(&other), cloud.sh(&other, line).stdout.trim().to_owned());
    assert!(is_alive(&root, &pid));
    cloud.call("DELETE", &format!("/browsers/{id}"), b"").has(204);
    wait_for("the end of the process", || (!is_alive(&root, &pid)).then_some(()));
    assert!(!Path::new(&root).exists());
    assert!(is_alive(&other_root, &kept), "another session's");
    let folder = cloud.platform().ca_cert();
    let platform = cloud.platform.take().expect("a platform");
    cloud.runtime.block_on(platform.stop());
    wait_for("the end of the other", || (!is_alive(&other_root, &kept)).then_some(()));
    assert!(!folder.parent().expect("a folder").exists());
}
