//! Builds the agent that `ksync` carries inside: this crate again, without its client half, as a static
//! x86_64 Linux binary. Leaves it compressed in `$OUT_DIR/agent.gz`, and the SHA-256 of the uncompressed
//! binary in the compile-time variable `KSYNC_AGENT_SHA256`.
//!
//! The image's glibc is older than most build machines', so a dynamic agent would not start there.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libdeflater::{CompressionLvl, Compressor, crc32};
use sha2::{Digest, Sha256};

/// What every VM runs, whatever the host that builds.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Names a prebuilt agent, for hosts that cannot build for [`TARGET`].
const OVERRIDE: &str = "KSYNC_AGENT";

/// Set for the inner build, so that a mistake in its features ends in an error and not in a fork bomb.
const GUARD: &str = "KSYNC_AGENT_BUILD";

/// `agent.gz` is a whole number of these bytes, so that a shell can read exactly the agent from a stream
/// with `dd`, whose blocks are of one size.
const BLOCK_BYTES: usize = 4096;

/// Largest `agent.gz`: it is sent to every new VM.
const PACKED_BYTES_MAX: usize = 840 * 1024;

/// What the agent is made of. A change elsewhere does not build it again.
const SOURCES: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "src/build.rs",
    "src/lib.rs",
    "src/bin/ksync-agent.rs",
    "src/monitor.rs",
    "src/content",
    "src/tree",
    "src/wire",
    "src/engine",
    "src/disk",
    "src/exchange",
    "src/rendezvous.rs",
];

/// C flags of the agent: what zstd does above level 4 is left out, and so are tables for unwinding.
const C_FLAGS: &str = "-ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables \
    -DZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_LAZY_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_LAZY2_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR \
    -DZSTD_STRIP_ERROR_STRINGS -DHUF_FORCE_DECOMPRESS_X1 -DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT";

/// Linker script that leaves out the tables for unwinding which std and glibc bring along. The agent aborts
/// on panic, so nothing reads them; they are 50 KB of the 830 KB that would travel.
const WITHOUT_UNWINDING: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.eh_frame_hdr) \
    *(.gcc_except_table) *(.gcc_except_table.*) } }\nINSERT AFTER .text;\n";

/// Settings of the outer build that would leak into the agent: wrappers and flags of clippy, coverage and
/// cross builds, features and profiles.
const CLEARED: [&str; 7] = [
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
];

/// As [`CLEARED`], by the start of the name.
const CLEARED_PREFIXES: [&str; 4] =
    ["CARGO_FEATURE_", "CARGO_PROFILE_", "CARGO_BUILD_TARGET", "CARGO_BUILD_BUILD_DIR"];

fn main() -> ExitCode {
    let done = if env::var_os("CARGO_FEATURE_CLIENT").is_some() {
        pack_agent()
    } else {
        tell("cargo::rerun-if-changed=src/build.rs")
    };
    let Err(message) = done else { return ExitCode::SUCCESS };
    for line in message.lines() {
        // Nobody is left to hear of a failure to say this.
        let _ = tell(&format!("cargo::error={line}"));
    }
    ExitCode::FAILURE
}

/// The whole job: find or build the agent, compress it, name its hash.
fn pack_agent() -> Result<(), String> {
    tell(&format!("cargo::rerun-if-env-changed={OVERRIDE}"))?;
    let agent = match env::var_os(OVERRIDE).filter(|value| !value.is_empty()) {
        Some(path) => {
            tell("cargo::rerun-if-changed=src/build.rs")?;
            tell(&format!("cargo::rerun-if-changed={}", Path::new(&path).display()))?;
            PathBuf::from(path)
        }
        None => build_agent()?,
    };
    let binary = fs::read(&agent).map_err(|error| format!("cannot read {}: {error}", agent.display()))?;
    check_machine(&binary).map_err(|what| format!("{} {what}", agent.display()))?;

    let packed = pack(&binary).map_err(|error| format!("cannot compress the agent: {error}"))?;
    if packed.len() > PACKED_BYTES_MAX {
        return Err(format!("agent.gz is {} bytes, more than {PACKED_BYTES_MAX}", packed.len()));
    }
    let out = variable("OUT_DIR")?.join("agent.gz");
    fs::write(&out, packed).map_err(|error| format!("cannot write {}: {error}", out.display()))?;

    let sha256: String = Sha256::digest(&binary).iter().map(|byte| format!("{byte:02x}")).collect();
    tell(&format!("cargo::rustc-env=KSYNC_AGENT_SHA256={sha256}"))
}

/// Runs the inner cargo and answers where it left the binary.
fn build_agent() -> Result<PathBuf, String> {
    if env::var_os(GUARD).is_some() {
        return Err(format!("{GUARD} is set: the agent's own build must not ask for the feature `client`"));
    }
    let root = variable("CARGO_MANIFEST_DIR")?;
    for source in SOURCES.iter().filter(|source| root.join(source).exists()) {
        tell(&format!("cargo::rerun-if-changed={source}"))?;
    }

    let target_dir = target_dir(&variable("OUT_DIR")?)?.join("agent");
    let script = target_dir.join("without-unwinding.ld");
    fs::create_dir_all(&target_dir)
        .and_then(|()| fs::write(&script, WITHOUT_UNWINDING))
        .map_err(|error| format!("cannot write {}: {error}", script.display()))?;
    let status = inner_cargo(&root, &target_dir, &script)?
        .status()
        .map_err(|error| format!("cannot run cargo for the agent: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the agent for {TARGET} could not be built ({status}); the compiler's messages follow.\n\
             It needs Rust's standard library for that target (rustup target add {TARGET}), a linker for it, \
             and glibc's static libraries (Fedora: glibc-static).\n\
             Or set {OVERRIDE} to the path of a ksync-agent that was built on x86_64 Linux with \
             RUSTFLAGS='-C target-feature=+crt-static' cargo build --no-default-features --features agent --bin ksync-agent \
             --profile agent --target {TARGET}"
        ));
    }
    Ok(target_dir.join(TARGET).join("agent").join("ksync-agent"))
}

fn inner_cargo(root: &Path, target_dir: &Path, script: &Path) -> Result<Command, String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(root).args([
        "build",
        "--no-default-features",
        "--features",
        "agent",
        "--bin",
        "ksync-agent",
    ]);
    // With an explicit target the flags below do not reach build scripts and procedural macros, which
    // cannot be static.
    cargo.args(["--profile", "agent", "--target", TARGET]).arg("--target-dir").arg(target_dir);
    if root.join("Cargo.lock").exists() {
        // The outer build has fetched all of it, so this also works without a network.
        cargo.arg("--locked");
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if CLEARED.contains(&&*text) || CLEARED_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    cargo.env(GUARD, "1").env(format!("CFLAGS_{}", TARGET.replace('-', "_")), C_FLAGS);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root, target_dir, script)?);
    Ok(cargo)
}

/// The agent's compiler flags, in the encoded form: it goes before every other source of flags, and paths
/// may hold spaces.
fn rust_flags(root: &Path, target_dir: &Path, script: &Path) -> Result<String, String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let script = script.to_str().ok_or_else(|| format!("{} is not UTF-8", script.display()))?;
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Cforce-unwind-tables=no".to_owned(),
        format!("-Clink-arg=-T{script}"),
        // Functions that became the same code are kept once.
        "-Clink-arg=-Wl,--icf=all".to_owned(),
    ];
    // The last prefix that fits is the one that counts, so the more particular ones come last.
    for (from, to) in [(home.as_deref(), "/cargo"), (Some(root), "/ksync"), (Some(target_dir), "/target")] {
        if let Some(from) = from.filter(|from| from.is_absolute()) {
            let from = from.to_str().ok_or_else(|| format!("{} is not UTF-8", from.display()))?;
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
    }
    Ok(flags.join("\x1f"))
}

/// The folder that all profiles of the outer build share: the nearest that cargo marked as a cache, or else
/// the one above `<profile>/build/<package>/out`.
fn target_dir(out_dir: &Path) -> Result<&Path, String> {
    out_dir
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .or_else(|| out_dir.ancestors().nth(4))
        .ok_or_else(|| format!("no target directory above {}", out_dir.display()))
}

/// Whether these are the bytes of a 64-bit x86 program for ELF systems.
fn check_machine(binary: &[u8]) -> Result<(), String> {
    const X86_64: &[u8] = &[62, 0];
    if binary.starts_with(b"\x7fELF\x02") && binary.get(18..20) == Some(X86_64) {
        Ok(())
    } else {
        Err("is not an x86_64 Linux program".to_owned())
    }
}

/// Gzip (RFC 1952) without name and time, made a whole number of blocks by an extra field in the header: every
/// gunzip skips that, whereas many complain of zeros after the end. libdeflate finds 3 % more than zlib does.
fn pack(binary: &[u8]) -> Result<Vec<u8>, String> {
    /// Magic, method "deflate", the flag of an extra field, no time, the slowest method, an unknown system.
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 2, 255];
    /// The extra field's own length, then the name and length of its one subfield.
    const FIELD_BYTES: usize = 2 + 4;
    const TRAILER_BYTES: usize = 4 + 4;
    let mut compressor = Compressor::new(CompressionLvl::best());
    let mut body = vec![0; compressor.deflate_compress_bound(binary.len())];
    let length = compressor.deflate_compress(binary, &mut body).map_err(|error| error.to_string())?;
    body.truncate(length);

    let bare = HEADER.len() + FIELD_BYTES + body.len() + TRAILER_BYTES;
    let padding = bare.next_multiple_of(BLOCK_BYTES) - bare;
    let short = |length: usize| u16::try_from(length).map_err(|error| error.to_string());
    let mut packed = HEADER.to_vec();
    packed.extend(short(4 + padding)?.to_le_bytes());
    packed.extend(b"ks");
    packed.extend(short(padding)?.to_le_bytes());
    packed.resize(packed.len() + padding, 0);
    packed.extend(body);
    packed.extend(crc32(binary).to_le_bytes());
    let whole = u32::try_from(binary.len()).map_err(|error| error.to_string())?;
    packed.extend(whole.to_le_bytes());
    Ok(packed)
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}

/// Says something to cargo.
fn tell(line: &str) -> Result<(), String> {
    writeln!(io::stdout(), "{line}").map_err(|error| format!("cannot write to cargo: {error}"))
}
