//! `ksync doctor`: tests each step, from the API key to a file sent to the VM and back. Reports its
//! time, and a remedy if it fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync::kernel::{Access, Browser, ConnectedVm, KernelError};
use ksync::monitor::{Event, Monitor, Quiet, Warning};
use ksync::sync::{self, ConnectOptions, Endpoint, Job, SharedMonitor, Visit};
use ksync::wire::hello::Options;
use serde_json::json;

use crate::out;
use crate::report::{CliError, NOT_STARTED};
use crate::request;
use crate::run::block_on;
use crate::screen::warned;
use crate::verbs::DoctorArgs;

/// Size of the file that travels both ways, in bytes.
const PROBE_BYTES: usize = 1 << 20;

/// The harmless actions of `--full`: no click and no key.
fn actions() -> serde_json::Value {
    json!({ "actions": [
        { "type": "sleep", "sleep": { "duration_ms": 50 } },
        { "type": "move_mouse", "move_mouse": { "x": 10, "y": 10 } },
    ] })
}

/// Runs all steps; after a failure the rest is skipped.
pub(crate) fn run(args: &DoctorArgs) -> Result<u8, CliError> {
    let connect_options = request::access_options(&args.access);
    let access = sync::access(&connect_options)?;
    let mut checks = Checks { json: args.json, failed: None };
    // Each step passes its result to the next one.
    let _ = examine(args, &connect_options, &access, &mut checks);
    Ok(checks.failed.unwrap_or(0))
}

/// Reports the steps, and keeps the exit code of the first failure.
struct Checks {
    json: bool,
    failed: Option<u8>,
}

impl Checks {
    /// Runs one step; `None` if it failed.
    fn step<T>(&mut self, name: &str, step: impl FnOnce() -> Result<(T, String), CliError>) -> Option<T> {
        let begun = Instant::now();
        let result = step();
        let took = begun.elapsed();
        match result {
            Ok((value, detail)) => {
                self.tell(name, took, "ok", &detail, None);
                Some(value)
            }
            Err(error) => {
                self.failed.get_or_insert(error.exit);
                self.tell(name, took, "failed", error.what(), error.hint());
                None
            }
        }
    }

    fn tell(&self, name: &str, took: Duration, verdict: &str, detail: &str, remedy: Option<&str>) {
        let seconds = took.as_secs_f64();
        if self.json {
            let check = json!({
                "check": name, "verdict": verdict, "seconds": seconds, "detail": detail, "remedy": remedy,
            });
            return out::result(&check.to_string());
        }
        out::result(&format!("{verdict:>6}  {seconds:7.3} s  {name}: {detail}"));
        if let Some(remedy) = remedy {
            out::result(&format!("        remedy: {remedy}"));
        }
    }
}

fn examine(
    args: &DoctorArgs,
    connect_options: &ConnectOptions,
    access: &Access,
    checks: &mut Checks,
) -> Option<()> {
    let api = checks.step("API key", || {
        let api = access.api()?;
        Ok((api, "KERNEL_API_KEY is set".to_owned()))
    })?;
    checks.step("API", || {
        let sessions = api.browsers().map_err(KernelError::from)?;
        Ok(((), format!("it answers; active sessions: {}", sessions.len())))
    })?;
    let browser: Browser = checks.step("session", || {
        let session = access.meant(&args.session)?;
        let browser = api.browser(&session).map_err(KernelError::from)?;
        let detail = format!("{}, made {}", browser.session_id, browser.created_at);
        Ok((browser, detail))
    })?;
    let ConnectedVm { stored, .. } = checks.step("VM", || {
        let reached = access.set_up(&api, &browser, |_| ())?;
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
        let told = &reached.provisioned;
        let detail = format!("sshd {}, bridge {}", version(&told.sshd), version(&told.websocat));
        Ok((reached, detail))
    })?;
    checks.step("connection", || {
        let bridge = stored.bridge_url();
        block_on(async {
            let monitor: SharedMonitor = Arc::new(Warner);
            let visit = Visit::begin(&browser.session_id, connect_options, &monitor).await?;
            visit.end().await;
            Ok(((), format!("{bridge}, with the host key that the API told")))
        })
    })?;
    checks.step("there and back", || {
        round_trip(&browser.session_id, connect_options)?;
        Ok(((), "a megabyte, every byte the same".to_owned()))
    })?;
    if args.full {
        checks.step("computer controls", || {
            api.batch(&browser.session_id, &actions()).map_err(KernelError::from)?;
            Ok(((), "a batch of two actions".to_owned()))
        })?;
    }
    Some(())
}

/// Sends a file of random bytes to the VM and fetches it back.
fn round_trip(session: &str, connect_options: &ConnectOptions) -> Result<(), CliError> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| CliError::new(NOT_STARTED, format!("{what}: {error}"))
    };
    let folder = Folder::new().map_err(failed("cannot make a directory"))?;
    let (sent, back) = (folder.0.join("sent"), folder.0.join("back"));
    let probe = noise();
    fs::write(&sent, &probe).map_err(failed("cannot write"))?;
    let name = format!("ksync-probe-{}", std::process::id());
    let there = Endpoint::Session { name: session.to_owned(), path: format!("/tmp/{name}").into_bytes() };
    let job = |source: Endpoint, destination: Endpoint| Job {
        source,
        further: Vec::new(),
        destination,
        options: Options::default(),
        connect_options: connect_options.clone(),
    };
    block_on(async {
        let done = async {
            sync::run(&job(Endpoint::Local(sent), there.clone()), quiet()).await?;
            sync::run(&job(there, Endpoint::Local(back.clone())), quiet()).await
        };
        let done = done.await;
        let visit = Visit::begin(session, connect_options, &quiet()).await?;
        let _ = visit.shell(format!("rm -f /tmp/{name}").as_bytes(), None).await;
        visit.end().await;
        done.map_err(CliError::from)
    })?;
    if fs::read(&back).map_err(failed("cannot read what came back"))? == probe {
        Ok(())
    } else {
        Err(CliError::new(VERIFICATION, "what came back is not what was sent"))
    }
}

/// For all connections but the first, which has warned already.
fn quiet() -> SharedMonitor {
    Arc::new(Quiet)
}

/// Exit code: a content failed its verification.
const VERIFICATION: u8 = 44;

/// Reports only warnings; the steps report the rest.
struct Warner;

impl Monitor for Warner {
    fn observe(&self, _event: Event) {}

    fn warn(&self, warning: Warning) {
        out::note(&warned(&warning));
    }
}

/// Incompressible bytes, the same in each run.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        // Knuth's MMIX generator; its upper bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..PROBE_BYTES).map(|_| next()).collect()
}

/// A private directory that is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path: &Path = &std::env::temp_dir().join(format!("ksync-doctor-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
