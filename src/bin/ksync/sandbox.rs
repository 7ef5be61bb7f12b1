//! `ksync sandbox`: the VM emulator in the foreground, and the platform's emulator beside it.
//!
//! stdout gets the setup, so that `ksync sandbox > vm.json` writes a file for `--setup`; stderr
//! gets the instructions.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ksync::sandbox::platform::{Platform, PlatformOptions};
use ksync::sandbox::{LinkConditions, Options, Sandbox, SandboxError, Setup};
use serde_json::{Map, Value, json};

use crate::args::SandboxArgs;
use crate::out;
use crate::report::{self, CliError};
use crate::run::{Signals, block_on};
use crate::shell::quoted;

/// Exit code: a local file could not be written.
const FILE: u8 = 11;

/// Runs until a signal comes.
pub(crate) fn run(args: &SandboxArgs) -> Result<u8, CliError> {
    block_on(async {
        let mut signals = Signals::new()?;
        let home = Home::new(args.home.clone())?;
        let options =
            Options { listen: args.listen, home: home.path.clone(), conditions: LinkConditions::default() };
        let sandbox = Sandbox::start(options).await?;
        let platform = Platform::start(PlatformOptions {
            listen: SocketAddr::new(args.listen.ip(), 0),
            home: home.path.clone(),
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
    format!("\nThe platform's API, with VMs of its own:\n{}", lines.concat())
}

/// The home directory of the programs in the VM.
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
