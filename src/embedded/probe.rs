//! The probe: finds the optional flags that the linker accepts, and names the missing parts of a
//! toolchain without static linking for the VM.
//!
//! Each answer comes from a program of one line, which cargo builds with the agent's configuration.
//! That includes the linker of its config files and of `CARGO_TARGET_…_LINKER`, and the same
//! `rustc`. One build takes 0.2 s. The first build tries all flags at once, so a linker that
//! accepts everything costs one build.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The probe's package. It belongs to no workspace, whatever directory it is in.
const MANIFEST: &str = "[package]\nname = \"probe\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[workspace]\n\n\
    [profile.dev]\npanic = \"abort\"\ndebug = false\nincremental = false\n";

/// The probe's program: it contains std, and with std the C library.
const PROGRAM: &str = "fn main() { println!(\"started\"); }\n";

/// Maximum length of a quoted tool message, in characters.
const QUOTE_CHARS_MAX: usize = 300;

/// Builds programs of one line for a target.
pub(crate) struct Probe<'a> {
    /// Creates a `cargo` without arguments, in the agent's environment.
    pub(crate) cargo: &'a dyn Fn() -> Command,
    /// The target.
    pub(crate) target: &'a str,
    /// The directory that the probe may fill and remove.
    pub(crate) folder: PathBuf,
    /// Flags that a link needs, and that every linker accepts.
    pub(crate) flags: &'a [String],
    /// True if this machine runs programs of the target.
    pub(crate) is_native: bool,
}

/// The result of one build of the probe.
enum Built {
    Yes,
    /// The output of the tools.
    No(String),
}

/// The task for cargo.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Only check that std is there.
    Check,
    /// Link.
    Link,
}

impl Probe<'_> {
    /// The optional flags that the linker accepts, in their order.
    ///
    /// # Errors
    /// A static program cannot be linked at all; the message names the missing part and its
    /// package.
    pub(crate) fn accepted(&self, optional: &[String]) -> Result<Vec<String>, String> {
        self.write().map_err(|error| format!("cannot write to {}: {error}", self.folder.display()))?;
        if matches!(self.link(optional)?, Built::Yes) {
            return Ok(optional.to_vec());
        }
        if let Built::No(text) = self.link(&[])? {
            return Err(self.diagnose(&text)?);
        }
        let mut accepted = Vec::new();
        for flag in optional {
            if matches!(self.link(std::slice::from_ref(flag))?, Built::Yes) {
                accepted.push(flag.clone());
            }
        }
        // Flags that work one by one may fail together.
        Ok(if matches!(self.link(&accepted)?, Built::Yes) { accepted } else { Vec::new() })
    }

    /// Checks for a C compiler that `cc-rs` would use for the target and that finds the C library's
    /// headers.
    ///
    /// # Errors
    /// There is none; the message names the missing part.
    pub(crate) fn check_c_compiler(&self) -> Result<(), String> {
        let underscored = self.target.replace('-', "_");
        let names = [format!("CC_{}", self.target), format!("CC_{underscored}")];
        let chosen = ["TARGET_CC", "HOST_CC", "CC", "CROSS_COMPILE"];
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // A user who names a compiler may name one with arguments or a wrapper. Its own messages
        // are better than ours.
        if names.iter().any(|name| is_set(name)) || chosen.into_iter().any(is_set) {
            return Ok(());
        }
        let cross = format!("{}-gcc", self.target.replace("-unknown", ""));
        let candidates: &[&str] = if self.is_native { &["cc"] } else { &[&cross, "cc"] };
        let Some((compiler, text)) = candidates.iter().find_map(|name| Some((name, preprocess(name)?)))
        else {
            return Err(format!(
                "there is no C compiler for {}: {}",
                self.target,
                self.c_compiler_packages()
            ));
        };
        if self.is_native && !text.is_empty() {
            let quote = quote(&text);
            return Err(format!(
                "the C compiler `{compiler}` does not find the C library's headers: {LIBC_PACKAGES}.\nIt said: {quote}"
            ));
        }
        Ok(())
    }

    /// Finds the missing part of the toolchain, after a static program without optional flags did
    /// not link.
    fn diagnose(&self, text: &str) -> Result<String, String> {
        let target = self.target;
        if let Built::No(text) = self.run(Goal::Check, self.flags)? {
            return Ok(if text.contains("E0463") {
                format!(
                    "Rust's standard library for {target} is not installed: rustup target add {target} \
                     (Debian: libstd-rust-dev of amd64, Fedora: rust-std-static of x86_64; Alpine's own Rust has none: \
                     use rustup)."
                )
            } else {
                format!("rustc does not compile for {target}.\nIt said: {}", quote(&text))
            });
        }
        if let Some(linker) = missing_linker(text) {
            return Ok(format!("the linker `{linker}` was not found: {}.", self.c_compiler_packages()));
        }
        let dynamic: Vec<String> =
            self.flags.iter().filter(|flag| !flag.contains("crt-static")).cloned().collect();
        let said = format!("The linker said: {}", quote(text));
        Ok(match self.run(Goal::Link, &dynamic)? {
            // Only the static program fails, so a static library is missing.
            Built::Yes if !lacks_libc(text) => format!(
                "static programs for {target} do not link, while dynamic ones do: a static library of the C compiler \
                 (libgcc_eh.a) or of glibc (libc.a) is missing: {LIBC_PACKAGES}.\n{said}"
            ),
            Built::Yes => {
                format!(
                    "glibc's static library (libc.a) for {target} is not installed: {LIBC_PACKAGES}.\n{said}"
                )
            }
            Built::No(text) if self.is_native && lacks_libc(&text) => {
                format!("the C library's files for linking are not installed: {LIBC_PACKAGES}.\n{said}")
            }
            Built::No(_) if !self.is_native => format!(
                "cargo's linker for {target} does not link for it: {}.\n{said}",
                self.c_compiler_packages()
            ),
            Built::No(_) => format!("programs for {target} do not link.\n{said}"),
        })
    }

    fn c_compiler_packages(&self) -> String {
        if self.is_native {
            return "install a C compiler (Debian, Ubuntu: gcc and libc6-dev, Fedora: gcc and glibc-static, \
                    Arch: gcc, openSUSE: gcc and glibc-devel-static)"
                .to_owned();
        }
        let variable = linker_variable(self.target);
        let cross = format!("{}-gcc", self.target.replace("-unknown", ""));
        format!(
            "install one (Debian, Ubuntu: gcc-x86-64-linux-gnu and libc6-dev-amd64-cross) \
             and set {variable}={cross}"
        )
    }

    /// Links with these optional flags. A program that links and does not start counts as not
    /// linked.
    fn link(&self, optional: &[String]) -> Result<Built, String> {
        let built = self.run(Goal::Link, &[self.flags, optional].concat())?;
        if matches!(built, Built::No(_)) || !self.is_native {
            return Ok(built);
        }
        let program = self.folder.join("target").join(self.target).join("debug/probe");
        let output = Command::new(&program)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(if output.status.success() && output.stdout == b"started\n" {
            Built::Yes
        } else {
            Built::No(format!("error: the program that was linked does not run ({})", output.status))
        })
    }

    fn run(&self, goal: Goal, flags: &[String]) -> Result<Built, String> {
        let verb = if goal == Goal::Check { "check" } else { "build" };
        let output = (self.cargo)()
            .args([verb, "--quiet", "--offline", "--color", "never", "--target", self.target])
            .arg("--manifest-path")
            .arg(self.folder.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(self.folder.join("target"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // The messages are parsed, so they must be in English.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run cargo to try the linker: {error}"))?;
        let text = || String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Built::Yes } else { Built::No(text()) })
    }

    /// Writes the package, and removes any earlier one: a linker or a library may have come or gone
    /// since.
    fn write(&self) -> std::io::Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        fs::create_dir_all(self.folder.join("src"))?;
        fs::write(self.folder.join("Cargo.toml"), MANIFEST)?;
        fs::write(self.folder.join("src/main.rs"), PROGRAM)
    }
}

/// The packages with glibc's files for linking, the static ones included.
const LIBC_PACKAGES: &str = "install it (Debian, Ubuntu: libc6-dev, Fedora: glibc-static, openSUSE: \
    glibc-devel-static, Arch: glibc; Alpine and other systems without glibc have none)";

/// The variable that names a target's linker to cargo.
#[must_use]
pub(crate) fn linker_variable(target: &str) -> String {
    format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase())
}

/// The linker that rustc could not start: "linker `cc` not found".
fn missing_linker(text: &str) -> Option<&str> {
    let rest = text.split_once("linker `")?.1;
    let (name, rest) = rest.split_once('`')?;
    rest.starts_with(" not found").then_some(name)
}

/// True if a linker misses the C library or its start files. GNU ld, gold, lld and mold each have
/// their own message.
fn lacks_libc(text: &str) -> bool {
    let misses = |line: &str| {
        let is_missing = ["cannot find", "unable to find library", "library not found", "cannot open"]
            .into_iter()
            .any(|words| line.contains(words));
        let is_libc =
            |word: &str| matches!(word, "-lc" | "c") || word.ends_with("crt1.o") || word.ends_with("crti.o");
        is_missing && line.split([' ', ':', ',']).any(is_libc)
    };
    text.lines().any(misses)
}

/// The messages of a compiler for a C file that includes a header of the C library: empty if all is
/// well. `None` if there is no such compiler.
fn preprocess(compiler: impl AsRef<OsStr>) -> Option<String> {
    let mut child = Command::new(compiler)
        .args(["-E", "-x", "c", "-o", "/dev/null", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // A compiler that does not read its input reports why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(b"#include <stdlib.h>\n"));
    let output = child.wait_with_output().ok()?;
    Some(if output.status.success() {
        String::new()
    } else {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })
}

/// The most informative line of a tool's output: the first error of the linker, otherwise the first
/// error.
fn quote(text: &str) -> String {
    const FAULTS: [&str; 6] =
        ["ld: ", "lld: error", "cannot find", "unable to find", "mold: ", "fatal error"];
    let line = text
        .lines()
        .find(|line| !line.contains("\"cc\"") && FAULTS.into_iter().any(|fault| line.contains(fault)))
        .or_else(|| text.lines().find(|line| line.starts_with("error")))
        .or_else(|| text.lines().next())
        .unwrap_or("nothing");
    line.trim().trim_start_matches("= note: ").chars().take(QUOTE_CHARS_MAX).collect()
}

/// The folder of a probe for builds in `target_dir`.
#[must_use]
pub(crate) fn folder(target_dir: &Path) -> PathBuf {
    target_dir.join("probe")
}
