//! Builds the two programs that `ksync` carries inside, the agent and the bridge, as static x86_64
//! Linux binaries. Their compressed files are `$OUT_DIR/agent.gz` and `$OUT_DIR/bridge.gz`. The
//! compile-time variables `KSYNC_AGENT_SHA256` and `KSYNC_BRIDGE_SHA256` hold the SHA-256 of the
//! uncompressed binaries.
//!
//! The image's glibc is older than most build machines', so a dynamic agent would not start there.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libdeflater::{CompressionLvl, Compressor, crc32};
use sha2::{Digest, Sha256};

use probe::Probe;

mod probe;

/// The target of every VM, whatever the build host.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Variable with the path of a prebuilt agent, for hosts that cannot build for [`TARGET`]. The
/// bridge must be beside it.
const OVERRIDE: &str = "KSYNC_AGENT";

/// Variable with the cargo profile of the inner build, if it is not the one of the outer build.
const PROFILE: &str = "KSYNC_AGENT_PROFILE";

/// The inner profile of release builds. Sizes are checked only here.
const PROFILE_RELEASE: &str = "agent";

/// The inner profile of debug builds, for the loop of edit and test. It builds in a tenth of the
/// time.
const PROFILE_DEBUG: &str = "agent-quick";

/// `agent.gz` is padded to a multiple of this. So a shell can read exactly the agent from a stream
/// with `dd`, whose blocks have one size.
const BLOCK_BYTES: usize = 4096;

/// A program that ksync carries.
struct Program {
    /// The name of the package and of its binary.
    binary: &'static str,
    /// The name in files and messages.
    name: &'static str,
    /// Maximum compressed size, in bytes.
    packed_bytes_max: usize,
}

/// The agent is sent to every new VM.
const AGENT: Program = Program { binary: "ksync-agent", name: "agent", packed_bytes_max: 1264 * 1024 };

/// The bridge is sent to VMs that have no other. A program that does nothing has nine tenths of its
/// size, because of std and glibc.
const BRIDGE: Program = Program { binary: "ksync-bridge", name: "bridge", packed_bytes_max: 600 * 1024 };

/// The sources of both programs, and this crate. A change elsewhere does not rebuild them.
const SOURCES: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "src/agent", "src/bridge", "src/core", "src/embedded"];

/// C flags of the agent. They drop unwinding tables, and all zstd levels above 4 except level 6.
/// Level 6 takes 41 KB of the compressed agent, and reduced the download of a kernel source upgrade
/// by 7 %.
const C_FLAGS: &str = "-ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables \
    -DZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_LAZY2_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR \
    -DZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR -DZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR \
    -DZSTD_STRIP_ERROR_STRINGS -DHUF_FORCE_DECOMPRESS_X1 -DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT";

/// Linker script that discards the unwinding tables of std and glibc. The agent aborts on panic, so
/// nothing reads them; they are 50 KB of the 830 KB that would be sent.
const WITHOUT_UNWINDING: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.eh_frame_hdr) \
    *(.gcc_except_table) *(.gcc_except_table.*) } }\nINSERT AFTER .text;\n";

/// A flag that makes the programs smaller, but that some linkers reject.
struct Optional {
    /// The flag; `SCRIPT` stands for the path of the linker script.
    flag: &'static str,
    /// Maximum compressed bytes that the flag saves in a program.
    saved_bytes: usize,
}

/// GNU ld cannot fold code; gold and mold do not know `INSERT`.
const OPTIONAL: [Optional; 2] = [
    Optional { flag: "-Clink-arg=-TSCRIPT", saved_bytes: 64 * 1024 },
    // Identical code folding: functions with the same code are kept once.
    Optional { flag: "-Clink-arg=-Wl,--icf=all", saved_bytes: 16 * 1024 },
];

/// The alternative for machines that cannot build.
const PREBUILT: &str = "Or set KSYNC_AGENT to the path of a ksync-agent that lies beside a ksync-bridge, both built on x86_64 Linux \
    with RUSTFLAGS='-C target-feature=+crt-static' cargo build -p ksync-agent -p ksync-bridge --examples \
    --profile agent --target x86_64-unknown-linux-gnu";

/// Settings of the outer build that would leak into the agent: wrappers and flags of clippy,
/// coverage and cross builds, features and profiles.
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
    let Err(message) = pack_all() else { return ExitCode::SUCCESS };
    for line in message.lines() {
        // Nobody is left to hear of a failure of this write.
        let _ = tell(&format!("cargo::error={line}"));
    }
    ExitCode::FAILURE
}

/// The whole job: finds or builds the programs, compresses them, and passes on their hashes.
fn pack_all() -> Result<(), String> {
    tell(&format!("cargo::rerun-if-env-changed={OVERRIDE}"))?;
    tell(&format!("cargo::rerun-if-env-changed={PROFILE}"))?;
    tell(&format!("cargo::rerun-if-env-changed={}", probe::linker_variable(TARGET)))?;
    let (agent, bridge, room_bytes) = match env::var_os(OVERRIDE).filter(|value| !value.is_empty()) {
        Some(path) => {
            let agent = PathBuf::from(path);
            let bridge = agent.with_file_name(BRIDGE.binary);
            for file in [&agent, &bridge] {
                tell(&format!("cargo::rerun-if-changed={}", file.display()))?;
            }
            // The flags of a prebuilt binary's linker are unknown here.
            (agent, bridge, OPTIONAL.iter().map(|flag| flag.saved_bytes).sum())
        }
        None => {
            let (folder, room_bytes) = build()?;
            (folder.join(AGENT.binary), folder.join(BRIDGE.binary), room_bytes)
        }
    };
    pack_one(&AGENT, &agent, room_bytes)?;
    pack_one(&BRIDGE, &bridge, room_bytes)
}

/// Checks and compresses one program. `room_bytes` raises the size limit for flags that the linker
/// rejected.
fn pack_one(program: &Program, file: &Path, room_bytes: usize) -> Result<(), String> {
    let Program { name, .. } = *program;
    let packed_bytes_max = program.packed_bytes_max + room_bytes;
    let binary = fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    check_machine(&binary).map_err(|what| format!("{} {what}", file.display()))?;

    let packed = pack(&binary).map_err(|error| format!("cannot compress the {name}: {error}"))?;
    if packed.len() > packed_bytes_max && profile() == PROFILE_RELEASE {
        return Err(format!("{name}.gz is {} bytes, more than {packed_bytes_max}", packed.len()));
    }
    let out = variable("OUT_DIR")?.join(format!("{name}.gz"));
    fs::write(&out, packed).map_err(|error| format!("cannot write {}: {error}", out.display()))?;

    let sha256: String = Sha256::digest(&binary).iter().map(|byte| format!("{byte:02x}")).collect();
    tell(&format!("cargo::rustc-env=KSYNC_{}_SHA256={sha256}", name.to_uppercase()))
}

/// Runs the inner cargo. Returns the directory of the binaries, and the bytes that they may be
/// larger because the linker rejected flags.
fn build() -> Result<(PathBuf, usize), String> {
    let root = root()?;
    for source in SOURCES.iter().map(|source| root.join(source)).filter(|source| source.exists()) {
        tell(&format!("cargo::rerun-if-changed={}", source.display()))?;
    }

    let target_dir = target_dir(&variable("OUT_DIR")?)?.join("agent");
    let script = target_dir.join("without-unwinding.ld");
    fs::create_dir_all(&target_dir)
        .and_then(|()| fs::write(&script, WITHOUT_UNWINDING))
        .map_err(|error| format!("cannot write {}: {error}", script.display()))?;
    let (flags, room_bytes) = rust_flags(&root, &target_dir, &script)?;
    let status = agent_cargo(&root, &target_dir, &flags)?
        .status()
        .map_err(|error| format!("cannot run cargo for the agent and the bridge: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the agent and the bridge for {TARGET} could not be built ({status}); the compiler's messages follow.\n{PREBUILT}"
        ));
    }
    Ok((target_dir.join(TARGET).join(profile()).join("examples"), room_bytes))
}

/// The root of the workspace.
fn root() -> Result<PathBuf, String> {
    let member = variable("CARGO_MANIFEST_DIR")?;
    let root = member.ancestors().nth(2).ok_or_else(|| format!("{} has no root", member.display()))?;
    Ok(root.to_owned())
}

/// The profile of the inner build.
fn profile() -> String {
    let is_debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let default = if is_debug { PROFILE_DEBUG } else { PROFILE_RELEASE };
    env::var(PROFILE).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// A cargo for programs of [`TARGET`], without the settings of the outer build.
fn inner_cargo(program: &Path, root: &Path) -> Command {
    let mut cargo = Command::new(program);
    cargo.current_dir(root);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if CLEARED.contains(&&*text) || CLEARED_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// The cargo that builds agent and bridge.
fn agent_cargo(root: &Path, target_dir: &Path, flags: &[String]) -> Result<Command, String> {
    let mut cargo = inner_cargo(&variable("CARGO")?, root);
    cargo.args(["build", "--package", AGENT.binary, "--package", BRIDGE.binary, "--examples"]);
    // With an explicit target, the flags below do not reach build scripts and procedural macros,
    // which cannot be static.
    cargo.args(["--profile", &profile(), "--target", TARGET]).arg("--target-dir").arg(target_dir);
    if root.join("Cargo.lock").exists() {
        // The outer build has fetched all crates, so this also works without a network.
        cargo.arg("--locked");
    }
    cargo.env(format!("CFLAGS_{}", TARGET.replace('-', "_")), C_FLAGS);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(cargo)
}

/// The compiler flags of agent and bridge, for the encoded variable: it overrides every other
/// source of flags, and paths may contain spaces. Flags that the linker rejects are dropped. Also
/// returns the bytes that the programs may be larger without them.
fn rust_flags(root: &Path, target_dir: &Path, script: &Path) -> Result<(Vec<String>, usize), String> {
    let script = script.to_str().ok_or_else(|| format!("{} is not UTF-8", script.display()))?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Cforce-unwind-tables=no".to_owned()];
    // The first flight has some kilobytes: vector code for its cipher would not pay for its size.
    flags.extend(["--cfg=chacha20_force_soft".to_owned(), "--cfg=poly1305_force_soft".to_owned()]);
    let optional = OPTIONAL.map(|optional| optional.flag.replace("SCRIPT", script));
    let accepted = {
        let program = variable("CARGO")?;
        let cargo = || inner_cargo(&program, root);
        let is_native = env::var_os("HOST").is_some_and(|host| host == TARGET);
        let folder = probe::folder(target_dir);
        let probe = Probe { cargo: &cargo, target: TARGET, folder, flags: &flags, is_native };
        let accepted = probe.accepted(&optional);
        accepted.and_then(|accepted| probe.check_c_compiler().map(|()| accepted))
    };
    let accepted = accepted.map_err(|what| {
        format!("the agent and the bridge, static programs for {TARGET}, cannot be built here.\n{what}\n{PREBUILT}")
    })?;
    let missing = OPTIONAL.iter().zip(&optional).filter(|(_, flag)| !accepted.contains(flag));
    let room_bytes = missing.map(|(optional, _)| optional.saved_bytes).sum();
    flags.extend(accepted);
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    // The last matching prefix wins, so the more specific ones come last.
    for (from, to) in [(home.as_deref(), "/cargo"), (Some(root), "/ksync"), (Some(target_dir), "/target")] {
        if let Some(from) = from.filter(|from| from.is_absolute()) {
            let from = from.to_str().ok_or_else(|| format!("{} is not UTF-8", from.display()))?;
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
    }
    Ok((flags, room_bytes))
}

/// The folder that all profiles of the outer build share: the nearest one that cargo marked as a
/// cache, otherwise the one above `<profile>/build/<package>/out`.
fn target_dir(out_dir: &Path) -> Result<&Path, String> {
    out_dir
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .or_else(|| out_dir.ancestors().nth(4))
        .ok_or_else(|| format!("no target directory above {}", out_dir.display()))
}

/// Checks that these are the bytes of a 64-bit x86 program for ELF systems.
fn check_machine(binary: &[u8]) -> Result<(), String> {
    const X86_64: &[u8] = &[62, 0];
    if binary.starts_with(b"\x7fELF\x02") && binary.get(18..20) == Some(X86_64) {
        Ok(())
    } else {
        Err("is not an x86_64 Linux program".to_owned())
    }
}

/// Compresses with gzip (RFC 1952), without name and time. An extra field in the header pads the
/// file to whole blocks: every gunzip skips it, while many complain about zeros after the end.
/// libdeflate's output is 3 % smaller than zlib's.
fn pack(binary: &[u8]) -> Result<Vec<u8>, String> {
    /// Magic, method "deflate", the flag of an extra field, no time, the slowest method, an unknown
    /// system.
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

/// Prints a line for cargo.
fn tell(line: &str) -> Result<(), String> {
    writeln!(io::stdout(), "{line}").map_err(|error| format!("cannot write to cargo: {error}"))
}
