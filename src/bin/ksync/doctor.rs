//! `ksync doctor`: tests each step, from the API key to a file sent to the VM and back. Reports its
//! time, and a remedy if it fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ksync::exchange::chain;
use ksync::kernel::{
    Api, ApiError, Browser, ConnectedVm, Expiry, KernelError, Resources, Room, StoredSession,
    keep_alive_remedy,
};
use ksync::monitor::{Event, Monitor, Notice, Quiet, Warning};
use ksync::remote::{self, Proxies, RemoteError};
use ksync::sync::watch::Listener;
use ksync::sync::{ConnectOptions, Endpoint, Job, Runner, SharedMonitor, SyncError, Visit};
use ksync::wire::hello::Options;
use serde_json::json;
use tokio::sync::oneshot;

use crate::out;
use crate::report::{CliError, NOT_STARTED};
use crate::request;
use crate::run::block_on;
use crate::screen::{noticed, warned};
use crate::units::bytes;
use crate::verbs::DoctorArgs;

/// Size of the file that travels both ways, in bytes.
const PROBE_BYTES: usize = 1 << 20;

/// Difference between two clocks above which it matters, in seconds. Certificates and tokens live
/// for minutes at least.
const SKEW_S_MAX: f64 = 30.0;

/// Free room below which a VM gets into trouble, in bytes.
const ROOM_BYTES_MIN: u64 = 100 << 20;

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
    let mut checks = Checks { json: args.json, failed: None };
    // Each step passes its result to the next one.
    let _ = examine(args, &connect_options, &mut checks);
    Ok(checks.failed.unwrap_or(0))
}

/// Reports the steps, and keeps the exit code of the first failure.
struct Checks {
    json: bool,
    failed: Option<u8>,
}

/// Finding of a step: a detail, and a remedy if something is not as it should be.
struct Found {
    detail: String,
    remedy: Option<String>,
}

impl From<String> for Found {
    fn from(detail: String) -> Self {
        Self { detail, remedy: None }
    }
}

/// The failure of a step, with a remedy that does not name the doctor.
struct StepError(CliError);

impl From<CliError> for StepError {
    fn from(error: CliError) -> Self {
        Self(error)
    }
}

impl From<SyncError> for StepError {
    fn from(error: SyncError) -> Self {
        Self(CliError::caused(error.exit_code(), &error).with_hint(error.remedy()))
    }
}

impl From<KernelError> for StepError {
    fn from(error: KernelError) -> Self {
        Self(CliError::caused(error.exit_code(), &error).with_hint(error.remedy()))
    }
}

impl From<ApiError> for StepError {
    fn from(error: ApiError) -> Self {
        KernelError::from(error).into()
    }
}

impl Checks {
    /// Runs one step; `None` if it failed.
    fn step<T, F: Into<Found>>(
        &mut self,
        name: &str,
        step: impl FnOnce() -> Result<(T, F), StepError>,
    ) -> Option<T> {
        let begun = Instant::now();
        let result = step();
        let took = begun.elapsed();
        match result {
            Ok((value, found)) => {
                let Found { detail, remedy } = found.into();
                let verdict = if remedy.is_none() { "ok" } else { "warning" };
                self.tell(name, took, verdict, &detail, remedy.as_deref());
                Some(value)
            }
            Err(StepError(error)) => {
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
        out::result(&format!("{verdict:>7}  {seconds:7.3} s  {name}: {detail}"));
        if let Some(remedy) = remedy {
            out::result(&format!("         remedy: {remedy}"));
        }
    }
}

fn examine(args: &DoctorArgs, connect_options: &ConnectOptions, checks: &mut Checks) -> Option<()> {
    let access = checks.step("state directory", || {
        let access = request::access(&args.access)?;
        access.check_state()?;
        let detail = format!("{} can be written", access.directory.display());
        Ok((access, detail))
    })?;
    checks.step("proxy settings", || {
        let told = Proxies::of_environment().in_force().map_err(SyncError::from)?;
        Ok(((), told))
    })?;
    let api = checks.step("API key", || {
        let api = access.api()?;
        Ok((api, "KERNEL_API_KEY is set".to_owned()))
    })?;
    checks.step("API", || {
        let sessions = api.browsers()?;
        Ok(((), format!("it answers; active sessions: {}", sessions.len())))
    })?;
    checks.step("clock", || Ok(((), skew(api.ahead_s()))))?;
    let browser: Browser = checks.step("session", || {
        let session = access.meant(&args.session)?;
        let browser = api.browser(&session)?;
        let detail = format!("{}, made {}", browser.session_id, browser.created_at);
        Ok((browser, detail))
    })?;
    checks.step("session life", || Ok(((), life(&browser, api_time(&api)))))?;
    // A session that is not kept awake can still be reached.
    let _ = checks.step("keep-alive", || keep_alive(&browser, connect_options));
    let ConnectedVm { stored, .. } = checks.step("VM", || {
        let reached = access.set_up(&api, &browser, |_| ())?;
        let told = &reached.provisioned;
        let sshd = told.sshd.as_deref().unwrap_or("of an unknown version");
        let detail = format!("sshd {sshd}, bridge {}", told.bridge());
        Ok((reached, detail))
    })?;
    checks.step("connection", || connection(&stored, connect_options))?;
    checks.step("disk and memory", || Ok(((), room(access.resources(&browser.session_id)?))))?;
    checks.step("there and back", || {
        let (up, down) = there_and_back(&browser.session_id, connect_options)?;
        let rates = format!("{} there, {} back", rate(up), rate(down));
        Ok(((), format!("a megabyte, every byte the same; {rates}")))
    })?;
    if args.full {
        checks.step("computer controls", || {
            api.batch(&browser.session_id, &actions())?;
            Ok(((), "a batch of two actions".to_owned()))
        })?;
    }
    Some(())
}

/// The difference between the clocks, in seconds that the API's is ahead.
fn skew(ahead_s: Option<f64>) -> Found {
    let Some(ahead_s) = ahead_s else { return "the API tells no time".to_owned().into() };
    let off = ahead_s.abs();
    if off < SKEW_S_MAX {
        return format!("within {} s of the API's", off.ceil().max(1.0)).into();
    }
    let side = if ahead_s > 0.0 { "behind" } else { "ahead of" };
    Found {
        detail: format!("this machine's clock is {} {side} the API's", time(Duration::from_secs_f64(off))),
        remedy: Some(
            "Check this machine's clock: with a wrong one, certificates and tokens count as expired, or as not valid yet."
                .to_owned(),
        ),
    }
}

/// The time by the API's clock, or by this machine's if they agree.
fn api_time(api: &Api) -> SystemTime {
    let ahead_s = api.ahead_s().filter(|ahead_s| ahead_s.abs() >= SKEW_S_MAX).unwrap_or_default();
    let now = SystemTime::now();
    let by = Duration::try_from_secs_f64(ahead_s.abs()).unwrap_or_default();
    let then = if ahead_s > 0.0 { now.checked_add(by) } else { now.checked_sub(by) };
    then.unwrap_or(now)
}

/// Time left for the session and for its token.
fn life(browser: &Browser, now: SystemTime) -> Found {
    let expiry = Expiry::of_browser(browser);
    let (age, token) = expiry.left(now);
    let left = |left: Option<Duration>| left.map_or_else(|| "an unknown time".to_owned(), time);
    let idle = time(Duration::from_secs(browser.timeout_seconds));
    let detail = format!(
        "ends in {} at the latest, and {idle} after it falls idle; the token that keeps it awake holds for {}",
        left(age),
        left(token),
    );
    let end = expiry.end(now, true).filter(|end| end.is_short_in(now).is_zero());
    Found { detail, remedy: end.map(|end| end.told(&browser.session_id, now).1) }
}

/// Opens the WebSocket that keeps the session awake.
fn keep_alive(browser: &Browser, connect_options: &ConnectOptions) -> Result<((), String), StepError> {
    let url = &browser.cdp_ws_url;
    let opening = async {
        let (opened, is_open) = oneshot::channel();
        let holding = remote::hold_open(url, connect_options.ca_cert.as_deref(), || {
            let _ = opened.send(());
        });
        Ok(tokio::select! {
            error = holding => Err(error),
            _ = is_open => Ok(()),
        })
    };
    let opened: Result<(), RemoteError> = block_on(opening)?;
    match opened {
        Ok(()) => Ok(((), "the WebSocket that keeps the session awake opens".to_owned())),
        Err(error) => {
            let idle = time(Duration::from_secs(browser.timeout_seconds));
            let what = format!(
                "{}; the platform deletes the session {idle} after it falls idle, and SSH does not count as use",
                chain(&error)
            );
            let remedy = keep_alive_remedy(&browser.session_id, url, Some(&error), true);
            let exit = SyncError::from(error).exit_code();
            Err(CliError::new(exit, what).with_hint(Some(remedy)).into())
        }
    }
}

fn connection(stored: &StoredSession, connect_options: &ConnectOptions) -> Result<((), String), StepError> {
    let monitor: SharedMonitor = Arc::new(Warner);
    let mut reached = Err(StepError(CliError::new(NOT_STARTED, "nothing was tried")));
    block_on(async {
        reached = match Visit::begin(&stored.session_id, connect_options, &monitor).await {
            Ok(visit) => {
                let round_trip = visit.round_trip();
                visit.end().await;
                Ok(round_trip)
            }
            Err(error) => Err(error.into()),
        };
        Ok(())
    })?;
    let ms = reached?.as_secs_f64() * 1000.0;
    let bridge = stored.bridge_url();
    Ok(((), format!("{bridge}, with the host key that the API told; a round trip takes {ms:.1} ms")))
}

/// Free disk and memory of the VM.
fn room(Resources { disk, memory }: Resources) -> Found {
    let told = |room: Option<Room>| match room {
        Some(room) => format!("{} of {} free", bytes(room.free_bytes), bytes(room.total_bytes)),
        None => "unknown".to_owned(),
    };
    let is_short = |room: Option<Room>| room.is_some_and(|room| room.free_bytes < ROOM_BYTES_MIN);
    let remedy = match (is_short(disk), is_short(memory)) {
        (true, _) => {
            Some("Make room on the VM: a sync needs some for the files, and for those that it replaces.")
        }
        (_, true) => Some(
            "End programs on the VM, or take a session with more memory: the kernel kills them otherwise.",
        ),
        _ => None,
    };
    Found {
        detail: format!("disk {}, memory {}", told(disk), told(memory)),
        remedy: remedy.map(str::to_owned),
    }
}

/// A span of time in its largest unit.
fn time(span: Duration) -> String {
    let counted = |number: u64, unit: &str| format!("{number} {unit}{}", if number == 1 { "" } else { "s" });
    match span.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 2 * 3600 => counted(seconds / 60, "minute"),
        seconds if seconds < 4 * 24 * 3600 => counted(seconds / 3600, "hour"),
        seconds => counted(seconds / (24 * 3600), "day"),
    }
}

/// Sends a file of random bytes to the VM and fetches it back. Returns the time that its content
/// took each way.
fn there_and_back(
    session: &str,
    connect_options: &ConnectOptions,
) -> Result<(Duration, Duration), StepError> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| CliError::new(NOT_STARTED, format!("{what}: {error}"))
    };
    let folder = Folder::new().map_err(failed("cannot make a directory"))?;
    let [small, sent, back] = ["small", "sent", "back"].map(|name| folder.0.join(name));
    let probe = noise();
    fs::write(&small, b"x").map_err(failed("cannot write"))?;
    fs::write(&sent, &probe).map_err(failed("cannot write"))?;
    let name = format!("ksync-probe-{}", std::process::id());
    let far = |path: String| Endpoint::Session { name: session.to_owned(), path: path.into_bytes() };
    let (far_small, there) = (far(format!("/tmp/{name}.small")), far(format!("/tmp/{name}")));
    let job = |source: Endpoint, destination: Endpoint| Job {
        source,
        further: Vec::new(),
        destination,
        options: Options::default(),
        connect_options: connect_options.clone(),
        verifies: false,
    };
    let small_back = Endpoint::Local(folder.0.join("small-back"));
    // The first one connects, and the second one shows what a job costs without its content.
    let jobs = [
        job(Endpoint::Local(small), far_small.clone()),
        job(far_small, small_back),
        job(Endpoint::Local(sent), there.clone()),
        job(there, Endpoint::Local(back.clone())),
    ];
    let unsent = CliError::new(NOT_STARTED, "not everything was sent");
    let mut took = Ok(Vec::new());
    block_on(async {
        let mut runner = Runner::default();
        let sending = async {
            let mut took = Vec::new();
            for job in &jobs {
                let listener: Listener = Arc::new(|_| {});
                took.push(runner.run_and_then(job, None, quiet(), listener).await?.elapsed);
            }
            Ok::<_, SyncError>(took)
        };
        took = sending.await.map_err(StepError::from);
        runner.close().await;
        let visit = Visit::begin(session, connect_options, &quiet()).await?;
        let _ = visit.shell(format!("rm -f /tmp/{name} /tmp/{name}.small").as_bytes(), None).await;
        visit.end().await;
        Ok(())
    })?;
    let took = took?;
    if fs::read(&back).map_err(failed("cannot read what came back"))? != probe {
        return Err(CliError::new(VERIFICATION, "what came back is not what was sent").into());
    }
    let [_, cost, up, down] = took.as_slice() else { return Err(unsent.into()) };
    Ok((up.saturating_sub(*cost), down.saturating_sub(*cost)))
}

/// The rate at which the probe travelled in this time.
fn rate(took: Duration) -> String {
    // Less says more about this machine than about the connection.
    const TOOK_MIN: Duration = Duration::from_millis(10);
    if took < TOOK_MIN {
        return "more than 100 MB/s".to_owned();
    }
    format!("{:.1} MB/s", PROBE_BYTES as f64 / 1e6 / took.as_secs_f64())
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

    fn notice(&self, notice: Notice) {
        // The keep-alive is a step of its own.
        if let (Notice::Wait { .. }, Some(line)) = (&notice, noticed(&notice)) {
            out::note(&line);
        }
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
