//! `ksync sandbox`: the VM emulator in the foreground, and the platform's emulator beside it.
//!
//! stdout gets the setup, so that `ksync sandbox > vm.json` writes a file for `--setup`; stderr
//! gets the instructions. With `--export`, a process in the background runs the emulators, and
//! stdout gets the environment variables for a shell.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ksync::monitor::Warning;
use ksync::sandbox::platform::{Platform, PlatformOptions};
use ksync::sandbox::{Isolation, LinkConditions, Options, Sandbox, SandboxError, Setup};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde_json::{Map, Value, json};

use crate::args::SandboxArgs;
use crate::out;
use crate::report::{self, CliError};
use crate::run::{Signals, block_on};
use crate::screen::warned;
use crate::shell::quoted;

/// Exit code: a local file could not be written.
const FILE: u8 = 11;

/// Runs until a signal comes; with `--export`, until a process in the background runs.
pub(crate) fn run(args: &SandboxArgs) -> Result<u8, CliError> {
    if args.export {
        return export(args);
    }
    block_on(async {
        let mut signals = Signals::new()?;
        let home = Home::new(args.home.clone())?;
        let isolation = if args.host_files { Isolation::HostFiles } else { Isolation::World };
        let options = Options {
            listen: args.listen,
            home: home.path.clone(),
            isolation,
            conditions: LinkConditions::default(),
        };
        let sandbox = Sandbox::start(options).await?;
        if let Some((what, hint)) = sandbox.files().warning() {
            out::note(&warned(&Warning { what, hint: hint.to_owned() }));
        }
        let platform = Platform::start(PlatformOptions {
            sshd: None,
            listen: SocketAddr::new(args.listen.ip(), 0),
            home: home.path.clone(),
            isolation,
            conditions: LinkConditions::default(),
            time_scale: args.time_scale,
            client_key: Some(sandbox.client_public_key().to_owned()),
            chromium: args.cdp.clone(),
        })
        .await?;
        let served = serve(&sandbox, &platform, &home, args.json, &mut signals).await;
        platform.stop().await;
        sandbox.stop().await;
        served.map(|()| 0)
    })
}

/// Starts a process in the background, and prints the variables for its use.
fn export(args: &SandboxArgs) -> Result<u8, CliError> {
    let cannot_start = |error: io::Error| {
        CliError::new(report::NOT_STARTED, format!("cannot start a process in the background: {error}"))
    };
    let mut command = Command::new(std::env::current_exe().map_err(cannot_start)?);
    command.args(["sandbox", "--json", "--listen", &args.listen.to_string()]);
    command.args(["--time-scale", &args.time_scale.to_string()]);
    command.args(args.home.iter().flat_map(|home| ["--home".as_ref(), home.as_os_str()]));
    command.args(args.cdp.iter().flat_map(|url| ["--cdp", url]));
    command.args(args.host_files.then_some("--host-files"));
    // A Ctrl-C in the shell is not for it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(cannot_start)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(cannot_start)?;
    }
    let told: Value = serde_json::from_str(&line).unwrap_or_default();
    // Passes on what it has said so far. Whoever waits for the end of this process's stderr must
    // not wait for that of the emulators.
    if let Some(mut stderr) = child.stderr.take() {
        if told.is_object() {
            let flags = fcntl_getfl(&stderr).map_err(|error| cannot_start(error.into()))?;
            fcntl_setfl(&stderr, flags | OFlags::NONBLOCK).map_err(|error| cannot_start(error.into()))?;
        }
        let mut said = Vec::new();
        let _ = stderr.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        if !said.is_empty() {
            out::note(&said);
        }
    }
    let Some(env) = told.get("env").and_then(Value::as_object) else {
        let code = child.wait().map_err(cannot_start)?.code();
        return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(report::NOT_STARTED));
    };
    let mut lines: String = env
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quoted(value.as_str().unwrap_or_default())))
        .collect();
    lines.push_str(&format!("export KSYNC_SANDBOX_PID={}", child.id()));
    out::result(&lines);
    match out::failure(false) {
        None => Ok(0),
        Some(error) => {
            // Nobody could end it.
            let _ = child.kill();
            Err(error)
        }
    }
}

async fn serve(
    sandbox: &Sandbox,
    platform: &Platform,
    home: &Home,
    json: bool,
    signals: &mut Signals,
) -> Result<(), CliError> {
    let home = home.path.canonicalize().unwrap_or_else(|_| home.path.clone());
    // The port is in the name, since several sandboxes may share a home.
    let url = sandbox.url();
    let port = url.rsplit(':').next().unwrap_or_default();
    let key = PrivateFile::write(home.join(format!("client-key-{port}")), sandbox.client_key())?;
    let setup = sandbox.setup(&key.0);
    if json {
        out::result(&one_line(&setup, platform));
        // Without this line nobody can use the emulator.
        out::failure(json).map_or(Ok(()), Err)?;
        signals.wait().await;
    } else {
        let text = pretty(&setup);
        let file = PrivateFile::write(home.join(format!("setup-{port}.json")), &text)?;
        out::result(&text);
        out::note(&usage(&url, &setup, &file.0, &sandbox.host_key()));
        out::note(&platform_usage(platform));
        signals.wait().await;
    }
    Ok(())
}

fn one_line(setup: &Setup, platform: &Platform) -> String {
    let env: Map<String, Value> =
        env(platform).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({ "setup": setup, "env": env, "ssh_command": setup.ssh_command }).to_string()
}

/// The environment variables that direct a client of the platform to the emulator.
fn env(platform: &Platform) -> [(&'static str, String); 3] {
    [
        ("KERNEL_BASE_URL", platform.base_url()),
        ("KERNEL_API_KEY", platform.api_key().to_owned()),
        ("KSYNC_CA_CERT", platform.ca_cert().display().to_string()),
    ]
}

fn pretty(setup: &Setup) -> String {
    // Five strings under five names can always be encoded as JSON.
    serde_json::to_string_pretty(setup).unwrap_or_default()
}

fn usage(url: &str, setup: &Setup, file: &Path, host_key: &str) -> String {
    format!(
        "\nAn emulated VM answers at {url} until Ctrl-C.\n\n\
         Sync with it:\n  ksync ./dir :/tmp/dir --setup {} --host-key '{host_key}'\n\n\
         Log in (needs websocat):\n  {}\n",
        quoted(&file.display().to_string()),
        setup.ssh_command
    )
}

fn platform_usage(platform: &Platform) -> String {
    let lines = env(platform).map(|(name, value)| format!("  export {name}={}\n", quoted(&value)));
    format!(
        "\nThe platform's API, with VMs of its own (eval \"$(ksync sandbox --export)\" does all of this):\n{}",
        lines.concat()
    )
}

/// The directory for the files of the VMs.
struct Home {
    path: PathBuf,
    is_temporary: bool,
}

impl Home {
    /// The requested directory; by default one in ksync's state directory, so that an installed
    /// agent stays; otherwise a temporary one.
    fn new(asked: Option<PathBuf>) -> Result<Self, CliError> {
        let state = || {
            let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
            absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))
        };
        if let Some(path) = asked.or_else(|| Some(state()?.join("ksync/sandbox"))) {
            return Ok(Self { path, is_temporary: false });
        }
        let path = std::env::temp_dir().join(format!("ksync-sandbox-{}", std::process::id()));
        // Not recursive: an existing directory may belong to another user.
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| cannot("make", &path, &error))?;
        Ok(Self { path, is_temporary: true })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.is_temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A file that only its owner can read, removed on drop.
struct PrivateFile(PathBuf);

impl PrivateFile {
    fn write(path: PathBuf, text: &str) -> Result<Self, CliError> {
        // A file from an earlier run may have another mode, or be a link.
        let written = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path),
        };
        written
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| cannot("write", &path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::new(FILE, format!("cannot {verb} {}: {error}", path.display()))
}

impl From<SandboxError> for CliError {
    fn from(error: SandboxError) -> Self {
        match &error {
            SandboxError::NotLoopback(_) => {
                Self::caused(report::USAGE, &error).with_hint(Some("Use --listen 127.0.0.1:PORT."))
            }
            SandboxError::Listen { .. } => Self::caused(report::NOT_STARTED, &error)
                .with_hint(Some("With port 0 any free port is taken: --listen 127.0.0.1:0.")),
            SandboxError::TimeScale(_) => Self::caused(report::USAGE, &error)
                .with_hint(Some("--time-scale takes a number from 0.001 to 1000000.")),
            SandboxError::Home { .. } => Self::caused(report::NOT_STARTED, &error)
                .with_hint(Some("Name a directory that can be written: --home DIR.")),
            _ => Self::caused(report::NOT_STARTED, &error),
        }
    }
}
