//! `fs/…`: the files API.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::client::{Cloud, Reply, text};
use crate::world::wait_for;

struct Files {
    cloud: Cloud,
    id: String,
    root: PathBuf,
}

impl Files {
    fn new() -> Files {
        let cloud = Cloud::new();
        let id = cloud.session();
        let root = text(&cloud.inside(&id)["root"]).into();
        Files { cloud, id, root }
    }

    fn get(&self, call: &str, path: &str) -> Reply {
        self.cloud.get(&format!("/browsers/{}/fs/{call}?path={path}", self.id))
    }

    fn put(&self, call: &str, body: &Value) -> Reply {
        self.cloud.put(&format!("/browsers/{}/fs/{call}", self.id), body)
    }

    fn write(&self, query: &str, bytes: &[u8]) -> Reply {
        self.cloud.call("PUT", &format!("/browsers/{}/fs/write_file?{query}", self.id), bytes)
    }
}

#[test]
fn written_files_are_readable_and_stay_below_the_root() {
    let files = Files::new();
    let noise = crate::world::noise(1, 5_000_000);
    files.write("path=%2Fdeep%2Fdown%2Fa%20b&mode=0640", &noise).has(201);
    let read = files.get("read_file", "/deep/down/a+b").has(200);
    assert!(read.body == noise);
    assert_eq!(read.header("content-type"), Some("application/octet-stream"));
    assert_eq!(read.header("content-length"), Some("5000000"));
    let there = files.root.join("deep/down/a b");
    assert_eq!(std::fs::metadata(&there).expect("a file").permissions().mode() & 0o777, 0o640);
    // A path that already starts with the root names the same file, and no path leads out.
    let named = there.display().to_string().replace(' ', "%20");
    assert_eq!(files.get("file_info", &named).has(200).json()["size_bytes"], 5_000_000);
    files.write("path=/../../../../up", b"up").has(201);
    assert_eq!(std::fs::read(files.root.join("up")).expect("a file"), b"up");
    files.get("read_file", "/none").says(404, "file not found");
    files.get("read_file", "/deep").says(400, "unable to open file");
    files.get("read_file", "").says(400, "path cannot be empty");
    files.write("path=/up/below", b"").says(400, "unable to create directories");
}

#[test]
fn writing_truncates_in_place() {
    let files = Files::new();
    files.write("path=/tmp/a&mode=600", b"long content").has(201);
    let before = std::fs::metadata(files.root.join("tmp/a")).expect("a file");
    files.write("path=/tmp/a&mode=755", b"short").has(201);
    let after = std::fs::metadata(files.root.join("tmp/a")).expect("a file");
    assert_eq!((before.ino(), after.len(), after.mode() & 0o777), (after.ino(), 5, 0o600));
}

/// True if a process of this machine runs a program of this name.
fn is_run(name: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("the processes").flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("exe")).ok())
        .any(|program| program.file_name().is_some_and(|file| file == name))
}

#[test]
fn a_running_program_cannot_be_written() {
    let files = Files::new();
    let sleep = std::fs::read("/bin/sleep").expect("a program");
    files.write("path=/usr/local/bin/own-sleep&mode=755", &sleep).has(201);
    let spawn = format!("/browsers/{}/process/spawn", files.id);
    let program = json!({ "command": "/usr/local/bin/own-sleep", "args": ["1000"] });
    // As in the VM, a fork of another thread may hold the file open for a moment.
    wait_for("its start", || (files.cloud.post(&spawn, &program).status == 200).then_some(()));
    wait_for("its program", || is_run("own-sleep").then_some(()));
    files.write("path=/usr/local/bin/own-sleep", &sleep).says(500, "unable to create file");
}

#[test]
fn an_empty_directory_is_listed_as_null() {
    let files = Files::new();
    files.put("create_directory", &json!({ "path": "/a/b/c", "mode": "0700" })).has(201);
    assert_eq!(files.get("list_files", "/a/b/c").has(200).body, b"null");
    files.write("path=/a/b/z", b"123").has(201);
    std::os::unix::fs::symlink("z", files.root.join("a/b/link")).expect("a link");
    let listed = files.get("list_files", "/a/b/").has(200).json();
    let brief: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| ["name", "path", "mode"].map(|field| text(&entry[field])).join(" "))
        .collect();
    assert_eq!(brief, ["c /a/b/c drwx------", "link /a/b/link Lrwxrwxrwx", "z /a/b/z -rw-r--r--"]);
    assert_eq!(
        (&listed[0]["is_dir"], &listed[2]["is_dir"], &listed[2]["size_bytes"]),
        (&json!(true), &json!(false), &json!(3))
    );
    assert!(text(&listed[0]["mod_time"]).ends_with('Z'));
    let info = files.get("file_info", "/a/b/link").has(200).json();
    assert_eq!((text(&info["name"]), text(&info["mode"])), ("link".to_owned(), "-rw-r--r--".to_owned()));
    files.get("list_files", "/none").says(404, "directory not found");
    files.get("list_files", "/a/b/z").says(500, "failed to read directory");
    files.get("file_info", "/none").says(404, "path not found");
}

#[test]
fn entries_are_moved_changed_and_deleted() {
    let files = Files::new();
    files.write("path=/a/one", b"1").has(201);
    files.put("move", &json!({ "src_path": "/a/one", "dest_path": "/a/two" })).has(200);
    files.put("move", &json!({ "src_path": "/a/one", "dest_path": "/a/two" })).says(404, "source not found");
    files.put("move", &json!({ "src_path": "/a/one" })).says(400, "src_path and dest_path required");
    let mode = json!({ "path": "/a/two", "mode": "1711", "owner": "root" });
    files.put("set_file_permissions", &mode).has(200);
    assert_eq!(text(&files.get("file_info", "/a/two").json()["mode"]), "trwx--x--x");
    files.put("set_file_permissions", &json!({ "path": "/a/two", "mode": "rw" })).says(400, "invalid mode");
    files.put("set_file_permissions", &json!({ "path": "/x", "mode": "600" })).says(404, "path not found");
    files.put("delete_file", &json!({ "path": "/a" })).says(500, "failed to delete file");
    files.put("delete_file", &json!({ "path": "/a/two" })).has(200);
    files.put("delete_file", &json!({ "path": "/a/two" })).says(404, "file not found");
    files.write("path=/a/deep/er", b"1").has(201);
    files.put("delete_directory", &json!({ "path": "/a" })).has(200);
    files.put("delete_directory", &json!({ "path": "/a" })).has(200);
    files.put("delete_directory", &json!({})).says(400, "path cannot be empty");
    files.put("delete_directory", &json!({ "path": "/" })).says(500, "failed to delete directory");
    assert!(files.root.join("root").is_dir());
}

#[test]
fn one_form_uploads_many_files_or_none() {
    let files = Files::new();
    let upload =
        |fields: &[(&str, &[u8])]| files.cloud.form(&format!("/browsers/{}/fs/upload", files.id), fields);
    let noise = crate::world::noise(2, 1_000_000);
    // The fields come in any order, with arbitrary content.
    let fields: [(&str, &[u8]); 4] = [
        ("files[0][file]", &noise),
        ("files[1][dest_path]", b"/tmp/b"),
        ("files[0][dest_path]", b"/deep/down/a"),
        ("files[1][file]", b""),
    ];
    assert!(upload(&fields).has(201).body.is_empty());
    assert!(std::fs::read(files.root.join("deep/down/a")).expect("a file") == noise);
    assert_eq!(std::fs::read(files.root.join("tmp/b")).expect("a file"), b"");
    upload(&fields[..3]).says(400, "each file needs a file and a dest_path");
    upload(&[("file", b"x")]).says(400, "invalid form field");
    upload(&[("files[0][file]", b"x"), ("files[0][dest_path]", b"tmp/c")])
        .says(400, "dest_path must be absolute");
    files
        .cloud
        .post(&format!("/browsers/{}/fs/upload", files.id), &json!({}))
        .says(400, "invalid multipart form");
    upload(&[("files[0][file]", b"x"), ("files[0][dest_path]", b"/../../up")]).has(201);
    assert_eq!(std::fs::read(files.root.join("up")).expect("a file"), b"x");
}

#[test]
fn a_directory_is_downloaded_and_uploaded_as_an_archive() {
    let files = Files::new();
    files.write("path=/tmp/d/sub/a&mode=700", b"content").has(201);
    files.write("path=/tmp/d/b", &crate::world::noise(3, 100_000)).has(201);
    let packed = files.get("download_dir_zip", "/tmp/d").has(200);
    assert_eq!(packed.header("content-type"), Some("application/zip"));
    let upload = format!("/browsers/{}/fs/upload_zip", files.id);
    files.cloud.form(&upload, &[("dest_path", b"/new/place"), ("zip_file", &packed.body)]).has(201);
    for name in ["sub/a", "b"] {
        let read = |place: &str| std::fs::read(files.root.join(place).join(name)).expect("a file");
        assert!(read("tmp/d") == read("new/place"), "{name}");
    }
    let mode = std::fs::metadata(files.root.join("new/place/sub/a")).expect("a file").mode() & 0o777;
    assert_eq!(mode, 0o700);
    // No entry of an archive leads out of its directory.
    let climbing: Vec<u8> =
        packed.body.windows(5).enumerate().fold(packed.body.clone(), |mut body, (at, name)| {
            if name == b"sub/a" {
                body[at..at + 5].copy_from_slice(b"../aa");
            }
            body
        });
    files
        .cloud
        .form(&upload, &[("dest_path", b"/other"), ("zip_file", &climbing)])
        .says(400, "invalid path in zip: ../aa");
    files
        .cloud
        .form(&upload, &[("dest_path", b"/other"), ("zip_file", b"no zip")])
        .says(400, "zip: not a valid zip file");
    files.cloud.form(&upload, &[("dest_path", b"/other")]).says(400, "zip_file and dest_path required");
    assert!(!files.root.join("other").exists());
    files.get("download_dir_zip", "/none").says(404, "directory not found");
    files.get("download_dir_zip", "/tmp/d/b").says(400, "path is not a directory");
}

#[test]
fn a_relative_path_is_refused() {
    let files = Files::new();
    let message = "path must be absolute";
    files.write("path=tmp/a", b"1").says(400, message);
    for call in ["read_file", "list_files", "file_info", "download_dir_zip"] {
        files.get(call, "tmp").says(400, message);
    }
    for call in ["create_directory", "delete_file", "delete_directory", "set_file_permissions"] {
        files.put(call, &json!({ "path": "./tmp", "mode": "755" })).says(400, message);
    }
    for (src_path, dest_path) in [("/tmp", "x"), ("tmp", "/x")] {
        files.put("move", &json!({ "src_path": src_path, "dest_path": dest_path })).says(400, message);
    }
    assert!(files.root.join("tmp").exists());
}
