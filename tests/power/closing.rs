//! Filesystems that report only at `close` that they did not take the written data.

use std::fs;
use std::process::Command;

use crate::fuse::{KEPT_BYTES, Quirks, Quirky};

#[test]
fn an_error_at_close_is_a_failure_and_installs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("mount")).unwrap();
    let quirks = Quirks { cuts: true, ..Quirks::default() };
    let Some(_quirky) = Quirky::mounted(&at("mount"), quirks) else { return };
    let run = |source: &str, target: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ksync"));
        command.args(["-q", "--no-progress"]).arg(at(source)).arg(at(target)).env("HOME", at("home"));
        command.output().unwrap()
    };
    let noise = |length: usize| (0..length).map(|n| (n / 3 * 7 + n) as u8).collect::<Vec<_>>();
    let zeros_inside = [noise(9000), vec![0; 200_000], noise(9000)].concat();

    // New files: in one message, in many pieces, and with a hole.
    for (name, content) in [("small", noise(90_000)), ("large", noise(5_000_000)), ("sparse", zeros_inside)] {
        let (source, target) = (format!("src {name}"), format!("mount/{name}"));
        fs::create_dir(at(&source)).unwrap();
        fs::write(at(&source).join("f"), content).unwrap();
        let output = run(&source, &target);
        assert_eq!(output.status.code(), Some(11), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!at(&target).join("f").exists(), "{name} is in place");
    }
    // A file that replaces another one.
    fs::create_dir(at("src")).unwrap();
    fs::write(at("src/f"), noise(KEPT_BYTES - 10)).unwrap();
    assert!(run("src", "mount/dst").status.success());
    fs::write(at("src/f"), noise(900_000)).unwrap();
    assert_eq!(run("src", "mount/dst").status.code(), Some(11));
    assert_eq!(fs::read(at("mount/dst/f")).unwrap(), noise(KEPT_BYTES - 10), "the old version stays");
}
