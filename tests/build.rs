//! The probe of the build script, against less capable linkers and incomplete toolchains. Each test
//! emulates a machine with a wrapper around the C compiler, set as cargo's linker, as a user would
//! set one.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

#[path = "../src/embedded/probe.rs"]
mod probe;
#[path = "world/skip.rs"]
mod skip;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FOLDS: &str = "-Clink-arg=-Wl,--icf=all";
const SCRIPT: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) } }\nINSERT AFTER .text;\n";

/// A machine with this linker.
struct Machine {
    folder: TempDir,
    linker: Option<PathBuf>,
}

impl Machine {
    fn plain() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), linker: None }
    }

    /// Makes a machine whose C compiler gets extra arguments.
    fn with(arguments: &str) -> Self {
        let mut machine = Self::plain();
        let folder = machine.folder.path();
        let linker = folder.join("linker");
        fs::write(&linker, format!("#!/bin/sh\nexec cc \"$@\" {arguments}\n")).unwrap();
        fs::set_permissions(&linker, fs::Permissions::from_mode(0o755)).unwrap();
        machine.linker = Some(linker);
        machine
    }

    fn probe<T>(&self, target: &str, with: impl FnOnce(&probe::Probe<'_>) -> T) -> T {
        let cargo = || {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.current_dir(self.folder.path());
            for (name, _) in std::env::vars_os().filter(|(name, _)| {
                let name = name.to_string_lossy();
                name.contains("RUSTFLAGS") || name.contains("WRAPPER") || name.starts_with("CARGO_TARGET_")
            }) {
                cargo.env_remove(name);
            }
            if let Some(linker) = &self.linker {
                cargo.env(probe::linker_variable(target), linker);
            }
            cargo
        };
        let is_native = target == TARGET && cfg!(all(target_arch = "x86_64", target_os = "linux"));
        let flags = ["-Ctarget-feature=+crt-static".to_owned(), "-Cforce-unwind-tables=no".to_owned()];
        let folder = probe::folder(self.folder.path());
        with(&probe::Probe { cargo: &cargo, target, folder, flags: &flags, is_native })
    }

    fn accepted(&self) -> Result<Vec<String>, String> {
        let script = self.folder.path().join("a script.ld");
        fs::write(&script, SCRIPT).unwrap();
        self.probe(TARGET, |probe| {
            probe.accepted(&[FOLDS.to_owned(), format!("-Clink-arg=-T{}", script.display())])
        })
    }

    /// Makes a machine whose linker prints this text and fails if an argument matches `pattern`.
    fn that_says(pattern: &str, text: &str) -> Self {
        let machine = Self::with("");
        let linker = machine.linker.as_ref().expect("one is set");
        let says = format!("printf '%s\\n' '{text}' 'collect2: error: ld returned 1 exit status' >&2");
        let script = fs::read_to_string(linker).unwrap().replace(
            "exec",
            &format!("for flag; do case $flag in {pattern}) {says}; exit 1;; esac; done\nexec"),
        );
        fs::write(linker, script).unwrap();
        machine
    }
}

#[test]
fn the_default_linker_links_a_static_program() {
    let machine = Machine::plain();
    machine.accepted().expect("a static program");
    machine.probe(TARGET, |probe| probe.check_c_compiler()).expect("a C compiler");
}

#[test]
fn gnu_ld_folds_no_code_and_takes_the_script() {
    let accepted = Machine::with("-fuse-ld=bfd").accepted().expect("GNU ld");
    assert!(matches!(&*accepted, [script] if script.contains("-T")), "{accepted:?}");
}

#[test]
fn other_installed_linkers_work_too() {
    let works = |name: &&str| {
        let output = Command::new("cc").arg(format!("-fuse-ld={name}")).arg("-Wl,--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    let names: Vec<_> = ["gold", "lld", "mold"].into_iter().filter(works).collect();
    skip::needs(!names.is_empty(), "no other linker is installed");
    for name in names {
        let accepted = Machine::with(&format!("-fuse-ld={name}")).accepted().expect(name);
        assert!(accepted.iter().any(|flag| flag == FOLDS), "{name}: {accepted:?}");
    }
}

#[test]
fn a_linker_without_script_support_gets_no_script() {
    // The wrapper fails like a linker without `INSERT`, whichever linker is installed.
    let accepted = Machine::that_says("-T*", "ld: syntax error in script").accepted().expect("a linker");
    assert!(accepted.iter().all(|flag| !flag.contains("-T")), "{accepted:?}");
}

#[test]
fn a_missing_static_c_library_is_named_with_its_package() {
    for text in [
        "/usr/bin/ld: cannot find -lc: No such file or directory",
        "/usr/bin/ld: cannot find -lc",
        "rust-lld: error: unable to find library -lc",
        "/usr/bin/ld.gold: error: cannot find -lc",
        "mold: fatal: library not found: c",
    ] {
        let message = Machine::that_says("-static*", text).accepted().unwrap_err();
        for word in ["libc.a", "is not installed", "libc6-dev", "glibc-static", text] {
            assert!(message.contains(word), "{text}: {message}");
        }
        assert_eq!(message.lines().count(), 2, "{message}");
    }
}

#[test]
fn a_missing_library_of_the_compiler_is_not_taken_for_the_c_library() {
    let text = "/usr/bin/ld: cannot find -lgcc_eh: No such file or directory";
    let message = Machine::that_says("-static*", text).accepted().unwrap_err();
    assert!(message.contains("libgcc_eh") && !message.contains("is not installed"), "{message}");
}

#[test]
fn a_c_library_without_files_for_linking_is_named_with_its_package() {
    let text = "/usr/bin/ld: cannot find Scrt1.o: No such file or directory";
    let message = Machine::that_says("*", text).accepted().unwrap_err();
    assert!(message.contains("files for linking are not installed"), "{message}");
    assert!(message.contains("libc6-dev") && message.contains("Scrt1.o"), "{message}");
}

#[test]
fn a_missing_linker_is_named() {
    let mut machine = Machine::plain();
    machine.linker = Some(machine.folder.path().join("no-such-cc"));
    let message = machine.accepted().unwrap_err();
    assert!(message.contains("no-such-cc` was not found"), "{message}");
    assert!(message.contains("install"), "{message}");
}

#[test]
fn a_missing_standard_library_is_named() {
    // A target that nobody has installed by chance.
    let target = "s390x-unknown-linux-gnu";
    let message = Machine::plain().probe(target, |probe| probe.accepted(&[FOLDS.to_owned()])).unwrap_err();
    assert!(message.contains("Rust's standard library for s390x-unknown-linux-gnu"), "{message}");
    assert!(message.contains("rustup target add s390x-unknown-linux-gnu"), "{message}");
}

#[test]
fn an_unknown_linker_error_is_quoted() {
    let message = Machine::that_says("*", "ld: out of paper").accepted().unwrap_err();
    assert!(message.contains("do not link") && message.contains("out of paper"), "{message}");
}
