//! The world of a session's VM: files, users and processes of its own.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::client::{Cloud, text};

/// The official CLI's commands on a VM.
const OFFICIAL: &str = include_str!("../provision/official.sh");

/// Directories of this machine in which a session writes below.
const PLACES: [&str; 7] = ["etc", "home", "opt", "root", "srv", "usr/local/bin", "var/lib"];

/// Kind and mode, size and time of this machine's entries where a session could write; not those of
/// programs that run beside the test.
fn host() -> BTreeMap<PathBuf, (u32, u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let places = PLACES.into_iter().chain(["usr/bin", "usr/sbin", "usr/local/sbin", "root/.ssh"]);
    for place in places {
        let depth = if place == "root" { 1 } else { 3 };
        let place = Path::new("/").join(place);
        for entry in walkdir::WalkDir::new(place).max_depth(depth).into_iter().filter_map(Result::ok) {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            let known = (meta.mode(), meta.size(), meta.mtime(), meta.mtime_nsec());
            found.insert(entry.into_path(), known);
        }
    }
    found
}

#[test]
fn whatever_a_session_writes_stays_in_the_session() {
    let cloud = Cloud::new();
    let (one, other) = (cloud.session(), cloud.session());
    let name = format!("ksync-test-{}", std::process::id());
    let before = host();
    let places = [&PLACES[..], &["tmp", "run", "dev/shm", "home/kernel", "new", ""]].concat();
    for place in &places {
        let line = format!("mkdir -p /{place} && echo 1 >/{place}/{name} && cat /{place}/{name}");
        assert_eq!(cloud.sh(&one, &line).stdout, "1\n", "{place}");
    }
    let deleting = "rm -rf /etc/ssh /usr/share/doc /var/lib/apt && chmod 700 /usr/local && useradd -m me";
    assert_eq!(cloud.sh(&one, deleting).exit_code, 0);
    let official = json!({
        "command": "/bin/bash", "args": ["-c", OFFICIAL, "official", "ssh-ed25519 AAAA test"], "as_root": true,
    });
    assert_eq!(cloud.exec(&one, &official).exit_code, 0);
    assert_eq!(cloud.sh(&one, "cat /root/.ssh/authorized_keys").stdout, "ssh-ed25519 AAAA test\n");

    for place in &places {
        let path = format!("/{place}/{name}");
        assert_ne!(cloud.sh(&other, &format!("test -e {path}")).exit_code, 0, "{path} in the other session");
        assert!(!Path::new(&path).exists(), "{path} on this machine");
    }
    assert_eq!(cloud.sh(&other, "test -e /root/.ssh/authorized_keys").exit_code, 1);
    let now = host();
    let changed: Vec<_> =
        before.keys().chain(now.keys()).filter(|path| before.get(*path) != now.get(*path)).collect();
    assert!(changed.is_empty(), "changed on this machine: {changed:?}");
}

#[test]
fn programs_and_the_files_api_see_one_file_system() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let write = |path: &str, text: &str| {
        let call = format!("/browsers/{id}/fs/write_file?path={path}&mode=755");
        cloud.call("PUT", &call, text.as_bytes()).has(201);
    };
    let read = |path: &str| cloud.get(&format!("/browsers/{id}/fs/read_file?path={path}"));
    write("/usr/local/bin/tool", "#!/bin/sh\necho ran\n");
    assert_eq!(cloud.exec(&id, &json!({ "command": "tool" })).stdout, "ran\n");
    cloud.sh(
        &id,
        "echo 2 >/etc/made; mkdir /a; ln -s /etc/made /a/link; ln -s /a /tmp/a; ln -s /../../etc /up",
    );
    for path in ["/etc/made", "/a/link", "/tmp/a/link", "/up/made"] {
        assert_eq!(read(path).has(200).body, b"2\n", "{path}");
    }
    write("/tmp/a/new", "3");
    assert_eq!(cloud.sh(&id, "cat /a/new").stdout, "3");
    let gone = json!({ "path": "/etc/made" });
    cloud.put(&format!("/browsers/{id}/fs/delete_file"), &gone).has(200);
    assert_eq!(cloud.sh(&id, "test -e /etc/made").exit_code, 1);
}

#[test]
fn an_absolute_link_does_not_lead_out_of_a_session() {
    let (cloud, secret) = (Cloud::new(), tempfile::tempdir().expect("a folder"));
    let id = cloud.session();
    std::fs::write(secret.path().join("file"), "secret").expect("a file");
    let out = format!("{}/file", secret.path().display());
    symlink(&out, format!("{}/tmp/link", cloud.root(&id))).expect("a link");
    cloud.get(&format!("/browsers/{id}/fs/read_file?path=/tmp/link")).says(404, "file not found");
    cloud.call("PUT", &format!("/browsers/{id}/fs/write_file?path=/tmp/link"), b"bad");
    assert_eq!(std::fs::read(&out).expect("a file"), b"secret");
    assert_ne!(cloud.sh(&id, &format!("cat {out}")).stdout, "secret");
}

#[test]
fn a_session_has_the_users_root_and_kernel() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let line = "id -un; id -u; pwd; echo $HOME $USER; touch ~/own && stat -c %U ~/own";
    let run = |user: serde_json::Value| {
        let mut program = json!({ "command": "sh", "args": ["-c", line] });
        program.as_object_mut().expect("an object").extend(user.as_object().expect("an object").clone());
        cloud.exec(&id, &program).stdout
    };
    assert_eq!(run(json!({})), "root\n0\n/root\n/root root\nroot\n");
    assert_eq!(run(json!({ "as_root": true })), run(json!({})));
    let kernel = "kernel\n1000\n/home/kernel\n/home/kernel kernel\nkernel\n";
    assert_eq!(run(json!({ "as_user": "kernel" })), kernel);
    let owned = json!({ "path": "/root/own", "mode": "640", "owner": "kernel", "group": "kernel" });
    cloud.put(&format!("/browsers/{id}/fs/set_file_permissions"), &owned).has(200);
    assert_eq!(cloud.sh(&id, "stat -c '%U %G %a' /root/own").stdout, "kernel kernel 640\n");
}

#[test]
fn a_session_cannot_signal_processes_of_this_machine() {
    let cloud = Cloud::new();
    let id = cloud.session();
    let mark = format!("1000.{}", std::process::id());
    let mut sleep = Command::new("sleep").arg(&mark).stdin(Stdio::null()).spawn().expect("sleep");
    let line = format!("kill -9 {} 2>/dev/null; pkill -9 -f {mark}x* ; kill -9 -1; true", sleep.id());
    cloud.sh(&id, &line);
    assert!(sleep.try_wait().expect("wait").is_none(), "killed from inside");
    sleep.kill().expect("kill");
    sleep.wait().expect("wait");
    assert_eq!(cloud.sh(&id, "ls /proc | grep -c '^[0-9]'").exit_code, 0, "the session still works");
    let told =
        cloud.post(&format!("/browsers/{id}/process/spawn"), &json!({ "command": "sleep", "args": ["9"] }));
    let pid = told.has(200).json()["pid"].clone();
    assert_eq!(cloud.sh(&id, &format!("cat /proc/{pid}/comm; kill {pid}")).stdout, "sleep\n");
    assert!(!text(&cloud.inside(&id)["root"]).is_empty());
}
