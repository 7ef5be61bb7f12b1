//! From the command line to a request: parses endpoints, loads files that options name, and reports
//! wrong usage before connecting.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ksync::exchange::{chain, plain};
use ksync::kernel::{Access, ApiKey, DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Settings, Waits};
use ksync::monitor::Warning;
use ksync::sync::endpoint::Endpoint;
use ksync::sync::watch::{AfterRound, Live};
use ksync::sync::{self, ConnectOptions, Job};
use ksync::tree::filter::{RULES_BYTES_MAX, RULES_MAX, Rule};
use ksync::tree::path::escape;
use ksync::tree::rule::bits;
use ksync::tree::time_rule::TimeRule;
use ksync::tree::transfer_rules::{Proof, TransferRules};
use ksync::wire::hello::{Consent, FORCED_MAX, FileList, Links, Options, PlanTie, Undo, WatchOptions};
use serde_bytes::ByteBuf;

use crate::args::{ConnectionArgs, OutputArgs, SyncArgs, TransferArgs, WatchArgs, WhatArgs};
use crate::endpoints::{endpoint, is_excluded, mistaken, pair, together};
use crate::files;
use crate::foreign::RELATIVE;
use crate::format::{Format, LOG_FORMAT};
use crate::log_file::LogFile;
use crate::misplaced_key;
use crate::out;
use crate::plan::{self, Plan};
use crate::report::{CliError, USAGE};
use crate::rsh::{Rsh, RsyncPath};
use crate::rules::{self, RuleSettings};
use crate::verbs::AccessArgs;

/// Maximum length of a file that an option names, in bytes. A setup has about one kilobyte, and
/// [`RULES_MAX`] rules fit many times.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Default timeouts for a silent other side. A watch may have no change for hours, so its user must
/// learn of a lost connection sooner.
const TIMEOUT_SECONDS: u64 = 60;
const WATCH_TIMEOUT_SECONDS: u64 = 30;

/// Default timeout for connecting.
const CONNECT_TIMEOUT_SECONDS: u64 = 30;

/// Number of runs that can be undone.
const UNDO_KEEP: u32 = 5;

/// A year stands for never: it can be added to any clock without overflow.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The request of a command line.
#[derive(Debug)]
pub(crate) struct Request {
    /// Jobs in order: one for all SOURCEs on one machine, or one for each, see `together`.
    pub(crate) jobs: Vec<Job>,
    /// The settings of `--watch`.
    pub(crate) live: Option<Live>,
    /// The command that runs after a sync that changed something.
    pub(crate) after: Option<AfterRound>,
    /// The output options.
    pub(crate) show: Show,
    /// The log file.
    pub(crate) log: Option<Arc<LogFile>>,
    /// The plan that the run makes or carries out.
    pub(crate) plan: Option<plan::Use>,
    /// Warnings about the command line.
    pub(crate) warnings: Vec<Warning>,
}

/// The output options of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Show {
    /// Only errors.
    pub(crate) quiet: bool,
    /// The list of changes.
    pub(crate) lists: bool,
    /// Changes in rsync's eleven letters.
    pub(crate) itemize: bool,
    /// Statistics at the end.
    pub(crate) stats: bool,
    /// Progress.
    pub(crate) progress: bool,
    /// JSON for programs.
    pub(crate) json: bool,
    /// The form of the changes, if not one of the usual ones.
    pub(crate) out_format: Option<&'static Format>,
}

/// Builds the request from the arguments.
pub(crate) fn build(args: SyncArgs) -> Result<Request, CliError> {
    misplaced_key::refuse(&args)?;
    let rsh = args.connection.rsh.as_deref().map(Rsh::parse).transpose()?;
    let accepted = &args.accepted;
    let deletes = args.what.delete || args.what.delete_excluded || accepted.delete_after;
    if accepted.force && !deletes {
        return Err(CliError::usage(
            "ksync replaces a directory by a file only with --delete, and not with --force alone",
            "Add --delete, or leave --force out.",
        ));
    }
    let mistaken = args.endpoints.last().and_then(|text| mistaken(text));
    if args.what.verify && (args.what.dry_run || args.watch.watch) {
        let (other, hint) = if args.watch.watch {
            ("--watch", "Run ksync verify SOURCE DEST when the watch has ended.")
        } else {
            ("--dry-run", "ksync verify SOURCE DEST compares, and changes nothing.")
        };
        return Err(CliError::usage(format!("--verify and {other} exclude each other"), hint));
    }
    let plan = Plan::of(&args)?;
    let warnings = args.warnings.iter().cloned().chain(mistaken).collect();
    let pairs = pair(&args.endpoints, args.connection.setup.is_some())?;
    if args.what.delete_excluded && pairs.len() > 1 {
        return Err(CliError::usage("--delete-excluded takes one SOURCE", "Run one ksync for each SOURCE."));
    }
    let which = &args.which;
    let settings = RuleSettings { nul_ended: which.from0, cvs_exclude: which.cvs_exclude };
    let mut rules = rules::compile(&args.rules, &settings, &mut load)?;
    // As rsync does, behind all other rules.
    let partial_dir = accepted.partial_dir.as_deref().map(|name| name.trim_end_matches('/'));
    let partial_dir = partial_dir.filter(|name| !name.starts_with('/') && !matches!(*name, "" | "."));
    rules.extend(partial_dir.map(|name| Rule::new(false, format!("{name}/").into_bytes())));
    let files = files(&args, &pairs)?;
    let after = after(&args.watch, &pairs)?;
    let live = live(&args.watch, &args.what, &pairs, after.clone())?;
    let is_pull = pairs.iter().any(|(source, _)| source.is_remote());
    if live.is_some() && is_pull && !args.watch.partial_downloads {
        let pattern = |pattern: &&str| Rule::new(false, pattern.as_bytes().to_vec());
        rules.extend(PARTIAL_DOWNLOADS.iter().map(pattern));
    }
    if rules.len() > RULES_MAX {
        let what = format!("{} rules are more than the {RULES_MAX} that are honoured", rules.len());
        return Err(CliError::usage(what, "Join patterns, or put them into a .ksyncignore file."));
    }
    if rules.iter().map(|rule| rule.pattern.len()).sum::<usize>() > RULES_BYTES_MAX {
        return Err(CliError::usage(
            "all patterns together are longer than the 1 MiB that is honoured",
            "Join patterns, or put them into .ksyncignore files.",
        ));
    }
    let OutputArgs { verbose, itemize_changes, quiet, stats, no_progress, json, .. } = args.output;
    let OutputArgs { out_format, log_file, log_file_format, partial_progress, .. } = args.output;
    let log = log_file.map(|file| {
        let format = log_file_format.map_or_else(|| Format::parse(LOG_FORMAT), Ok);
        LogFile::open(&file, format.map_err(|expected| CliError::new(USAGE, expected))?)
    });
    let log = log.transpose()?.map(Arc::new);
    // The format lives as long as the program.
    let out_format: Option<&Format> = out_format.map(|format| &*Box::leak(Box::new(format)));
    let names = accepted.info.names.unwrap_or(verbose > 0 || partial_progress);
    let list_changes = names || itemize_changes || out_format.is_some();
    let lists = (list_changes || args.what.dry_run || json) && !quiet;
    let options = Options {
        delete: deletes,
        delete_excluded: args.what.delete_excluded,
        dry_run: args.what.dry_run,
        checksum: args.what.checksum,
        transfer: transfer_rules(&args.what.transfer),
        backup: args.what.backups.options()?,
        fsync: args.what.fsync,
        one_file_system: args.what.one_file_system,
        links: links(&args.what),
        time_rule: args.what.modify_window.map(time_rule),
        list_changes: lists || log.is_some() || plan.is_some(),
        compress: !args.what.no_compress,
        rules,
        gitignore: which.gitignore,
        files,
        nul_ended: which.from0,
        consent: consent(&args.what, &pairs)?,
        bytes_per_second: args.connection.bwlimit.unwrap_or(0),
        metadata: args.metadata.options()?,
        undo: match args.undo {
            Undo::Off if args.what.undoable && live.is_none() => {
                Undo::Keep(args.what.undo_keep.unwrap_or(UNDO_KEEP))
            }
            undo => undo,
        },
        ..Options::default()
    };
    let mut connection_args = args.connection;
    if let Some(rsh) = &rsh {
        connection_args.identity.extend(rsh.identities.iter().cloned());
        connection_args.contimeout = connection_args.contimeout.or(rsh.connect_timeout);
    }
    if live.is_some() {
        connection_args.timeout = connection_args.timeout.or(Some(WATCH_TIMEOUT_SECONDS));
    }
    let is_sandbox = |(source, destination): &(Endpoint, Endpoint)| {
        [source, destination].iter().any(|side| matches!(side, Endpoint::Sandbox { .. }))
    };
    let keep = if pairs.iter().any(is_sandbox) {
        connection_args.keep.sandbox_time()
    } else {
        connection_args.keep.time()
    };
    let connect_options = ConnectOptions { keep, ..connect_options(connection_args)? };
    let (address_family, ssh_config) =
        rsh.as_ref().map(|rsh| (rsh.address_family, rsh.config.clone())).unwrap_or_default();
    // A kept agent is not root's, and a kept connection follows the usual files.
    let is_usual = !connect_options.sudo && address_family.is_none() && ssh_config.is_none();
    let keep = connect_options.keep.filter(|_| is_usual);
    let connect_options = ConnectOptions { keep, address_family, ssh_config, ..connect_options };
    if connect_options.sudo {
        pairs.iter().try_for_each(refuse_relative)?;
    }
    let several = pairs.len() > 1;
    let resolve = |endpoint| match &rsh {
        Some(rsh) => rsh.endpoint(endpoint, &connect_options),
        None => Ok(sync::resolve(endpoint, &connect_options)),
    };
    // As in rsync: the merge files of DEST count as they are after the transfer.
    let deletes_after = accepted.delete_after
        && !options.dry_run
        && live.is_none()
        && options.rules.iter().any(|rule| rule.has(bits::DIRECTORY_MERGE));
    let job = |(source, destination): (Endpoint, Endpoint)| {
        let mut options = options.clone();
        if several {
            // SOURCE goes into DEST, the transfer root, by this name.
            options.anchor = destination.name().unwrap_or_default().to_vec();
        }
        let (source, destination) = (resolve(source)?, resolve(destination)?);
        let (further, connect_options) = (Vec::new(), connect_options.clone());
        Ok(Job { source, further, destination, options, connect_options, verifies: false })
    };
    let mut jobs = pairs.into_iter().map(job).collect::<Result<Vec<Job>, CliError>>()?;
    jobs.retain(|job| !is_excluded(job));
    let destination = args.endpoints.last().map(|text| resolve(endpoint(text)?)).transpose()?;
    if several {
        jobs = together(jobs, destination.as_ref());
    }
    if deletes_after {
        jobs = jobs.into_iter().flat_map(|job| [without_deletions(&job), job]).collect();
    }
    if plan.is_some() {
        let [job] = jobs.as_mut_slice() else {
            let told = "a plan is about one run, and these SOURCEs and options take several";
            return Err(CliError::usage(told, "Make a plan for each SOURCE, without --delete-after."));
        };
        match &args.planned {
            Some(planned) => planned.tie(job)?,
            None => job.options.plan = Some(PlanTie::Make),
        }
    }
    if args.is_verification {
        jobs = jobs.iter().map(Job::verifying).collect();
    } else if args.what.verify {
        jobs = jobs.into_iter().flat_map(|job| [job.clone(), job.verifying()]).collect();
    }
    Ok(Request {
        jobs,
        live,
        after,
        show: Show {
            quiet,
            lists,
            itemize: itemize_changes,
            stats: accepted.info.stats.unwrap_or(stats),
            // Lines of the log would run into a bar.
            progress: accepted.info.progress.unwrap_or(!no_progress) && !quiet && !ksync::log::is_on(),
            json,
            out_format,
        },
        log,
        plan,
        warnings,
    })
}

fn without_deletions(job: &Job) -> Job {
    let options = Options { delete: false, delete_excluded: false, ..job.options.clone() };
    Job { options, ..job.clone() }
}

/// The list of `--files-from`.
fn files(args: &SyncArgs, pairs: &[(Endpoint, Endpoint)]) -> Result<Option<FileList>, CliError> {
    let SyncArgs { which, what, watch, accepted, .. } = args;
    let Some(file) = &which.files_from else {
        let told = format!("there is no --relative (-R) without --files-from: {RELATIVE}");
        return if accepted.relative { Err(CliError::new(USAGE, told)) } else { Ok(None) };
    };
    if watch.watch {
        let told = "--watch and --files-from exclude each other";
        return Err(CliError::usage(told, "Watch with --include and --exclude."));
    }
    if pairs.len() > 1 {
        return Err(CliError::usage("--files-from takes one SOURCE", "Run one ksync for each SOURCE."));
    }
    if let Some((Endpoint::Local(source), _)) = pairs.first()
        && source.is_file()
    {
        let told = format!("{} is a file, and --files-from lists entries of a directory", source.display());
        return Err(CliError::usage(told, "Name the directory as SOURCE."));
    }
    files::refuse_remote(file)?;
    files::parse(file, &load(file)?, which.from0, what.recursive)
}

/// Consent to deletions. Only the command line can give it: no file and no variable.
fn consent(what: &WhatArgs, pairs: &[(Endpoint, Endpoint)]) -> Result<Consent, CliError> {
    if what.force_delete_in.len() > FORCED_MAX {
        let told = format!("--force-delete-in is given more than {FORCED_MAX} times");
        return Err(CliError::usage(told, "Run one ksync for each DEST."));
    }
    let is_remote = pairs.iter().any(|(_, destination)| destination.is_remote());
    // A path on DEST's machine; the user may write it in the form of DEST.
    let path = |text: &OsString| match endpoint(text) {
        Ok(endpoint) if is_remote && endpoint.is_remote() => endpoint.path().to_vec(),
        _ => text.as_bytes().to_vec(),
    };
    let force_in = what.force_delete_in.iter().map(|text| ByteBuf::from(path(text))).collect();
    Ok(Consent { yes: what.yes, agreed: None, max_delete: what.max_delete, force_in })
}

/// Refuses endpoints that sudo leads elsewhere, or nowhere: root has another home.
fn refuse_relative((source, destination): &(Endpoint, Endpoint)) -> Result<(), CliError> {
    let Some(remote) = [source, destination].into_iter().find(|endpoint| endpoint.is_remote()) else {
        return Err(CliError::usage(
            "--sudo is for the agent on another machine, and both endpoints are here",
            "Leave it out, or run sudo ksync.",
        ));
    };
    if remote.path().starts_with(b"/") {
        return Ok(());
    }
    Err(CliError::usage(
        format!("with --sudo, {remote} would be below the home of root"),
        "Write the absolute path, as in host:/home/me/site.",
    ))
}

/// The transfer rules; as in rsync, `--size-only` wins over `--ignore-times`.
fn transfer_rules(args: &TransferArgs) -> TransferRules {
    TransferRules {
        update: args.update,
        existing: args.existing,
        ignore_existing: args.ignore_existing,
        size_max: args.max_size,
        size_min: args.min_size,
        prune_empty: args.prune_empty_dirs,
        proof: match (args.size_only, args.ignore_times) {
            (true, _) => Proof::Size,
            (false, true) => Proof::None,
            (false, false) => Proof::Time,
        },
    }
}

/// The rule of `--modify-window`: -1 is exact, as in rsync.
fn time_rule(window: i64) -> TimeRule {
    u32::try_from(window).map_or(TimeRule::Exact, TimeRule::Window)
}

fn links(what: &WhatArgs) -> Links {
    match (what.links, what.safe_links) {
        (true, _) => Links::All,
        (_, true) => Links::Safe,
        _ => Links::ByDirection,
    }
}

/// Names that browsers give to unfinished downloads.
const PARTIAL_DOWNLOADS: [&str; 2] = ["*.crdownload", ".com.google.Chrome.*"];

/// The command that runs after a change, and its machine.
fn after(args: &WatchArgs, pairs: &[(Endpoint, Endpoint)]) -> Result<Option<AfterRound>, CliError> {
    let is_remote = pairs.iter().any(|(_, destination)| destination.is_remote());
    match (&args.exec, &args.on_change) {
        (Some(_), _) if !is_remote => Err(CliError::usage(
            "--exec runs on the VM when something has changed there, and DEST is on this machine",
            "--on-change CMD runs here.",
        )),
        (_, Some(_)) if is_remote => Err(CliError::usage(
            "--on-change runs on this machine when something has changed here, and DEST is on the VM",
            "--exec CMD runs there.",
        )),
        (Some(command), _) => Ok(Some(AfterRound::There(command.clone()))),
        (None, Some(command)) => Ok(Some(AfterRound::Here(command.clone()))),
        (None, None) => Ok(None),
    }
}

/// The settings of a watch, if `--watch` is given.
fn live(
    args: &WatchArgs,
    what: &WhatArgs,
    pairs: &[(Endpoint, Endpoint)],
    after: Option<AfterRound>,
) -> Result<Option<Live>, CliError> {
    if !args.watch {
        return Ok(None);
    }
    if what.dry_run {
        return Err(CliError::usage("--watch and --dry-run exclude each other", "Leave one of them out."));
    }
    if what.transfer.prune_empty_dirs {
        return Err(CliError::usage(
            "--watch and --prune-empty-dirs exclude each other: a round sees only a part of the tree",
            "Leave one of them out.",
        ));
    }
    if pairs.len() > 1 {
        return Err(CliError::usage(
            "--watch takes one SOURCE",
            "Watch the directory that holds them, with --include and --exclude; or run one ksync for each.",
        ));
    }
    Ok(Some(Live { watch_options: WatchOptions { quiet_ms: args.debounce, poll: args.poll }, after }))
}

fn connect_options(args: ConnectionArgs) -> Result<ConnectOptions, CliError> {
    if let Some(key) = &args.host_key
        && key.split_whitespace().count() < 2
    {
        return Err(CliError::usage(
            "--host-key is not a public key",
            "Give the type and the key, as in \"ssh-ed25519 AAAA...\": a line of ssh-keyscan without its host.",
        ));
    }
    let api = api(args.ca_cert.as_deref());
    let seconds = |seconds: u64| if seconds == 0 { NEVER } else { NEVER.min(Duration::from_secs(seconds)) };
    Ok(ConnectOptions {
        agent: ksync::agent(),
        bridge: ksync::bridge(),
        identities: args.identity,
        setup: args.setup.map(|file| load(file.as_os_str())).transpose()?,
        ca_cert: args.ca_cert,
        host_key: args.host_key,
        connect_timeout: seconds(args.contimeout.unwrap_or(CONNECT_TIMEOUT_SECONDS)),
        timeout: seconds(args.timeout.unwrap_or(TIMEOUT_SECONDS)),
        retries: args.retries,
        connections: args.connections.map(usize::from),
        api,
        session: variable("KSYNC_SESSION"),
        keep_alive: !args.no_keep_alive,
        keep: None,
        #[cfg(feature = "sandbox")]
        host_files: args.host_files,
        #[cfg(not(feature = "sandbox"))]
        host_files: false,
        forwards: false,
        sudo: args.sudo || args.rsync_path.is_some_and(RsyncPath::is_by_sudo),
        address_family: None,
        ssh_config: None,
    })
}

/// The settings for reaching sessions.
pub(crate) fn access(args: &AccessArgs) -> Result<Access, CliError> {
    let waits = Waits::new(|what, _| out::note(&format!("ksync: {}", plain(&what))));
    Ok(Access { waits, ..ksync::sync::access(&access_options(args))? })
}

/// The connect options for a session, without a sync.
pub(crate) fn access_options(args: &AccessArgs) -> ConnectOptions {
    ConnectOptions {
        identities: args.identity.iter().cloned().collect(),
        ca_cert: args.ca_cert.clone(),
        api: api(args.ca_cert.as_deref()),
        session: variable("KSYNC_SESSION"),
        ..ConnectOptions::new(ksync::agent(), ksync::bridge())
    }
}

/// The platform's API, if there is a key. The key comes only from the environment, since every user
/// can read the arguments of a process.
fn api(ca_cert: Option<&Path>) -> Option<Settings> {
    Some(Settings {
        base_url: variable("KERNEL_BASE_URL").unwrap_or_else(|| DEFAULT_BASE_URL.to_owned()),
        key: ApiKey::new(&variable("KERNEL_API_KEY")?),
        project: variable("KERNEL_PROJECT"),
        ca_cert: ca_cert.map(Path::to_owned),
        timeout: DEFAULT_TIMEOUT,
    })
}

/// A non-empty environment variable.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads a file that an option names; `-` is stdin.
pub(crate) fn load(file: &OsStr) -> Result<Vec<u8>, CliError> {
    let (shown, opened) = if file == "-" {
        ("stdin".into(), Ok(Box::new(std::io::stdin()) as Box<dyn Read>))
    } else {
        (escape(file.as_bytes()), std::fs::File::open(file).map(|file| Box::new(file) as Box<dyn Read>))
    };
    let mut bytes = Vec::new();
    opened
        .and_then(|reader| reader.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| CliError::new(USAGE, format!("cannot read {shown}: {}", chain(&error))))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(CliError::new(USAGE, format!("cannot read {shown}: it is longer than 4 MiB")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Mode, parse};

    fn built(line: &str) -> Result<Request, CliError> {
        let Ok(Mode::Sync(args)) = parse(line.split(' ').map(OsString::from)) else { panic!("{line}") };
        build(*args)
    }

    fn pairs(line: &str) -> Vec<String> {
        let jobs = built(line).unwrap().jobs;
        let sources = |job: &Job| job.sources().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        jobs.iter().map(|job| format!("{} > {}", sources(job), job.destination)).collect()
    }

    fn error(line: &str) -> String {
        let error = built(line).unwrap_err();
        assert_eq!(error.exit, USAGE, "{line}");
        error.to_string()
    }

    #[test]
    fn one_source_goes_to_the_named_destination() {
        assert_eq!(pairs("ksync a sandbox:/b"), ["a > sandbox:/b"]);
        assert_eq!(pairs("ksync me@host:a b/"), ["me@host:a > b/"]);
    }

    #[test]
    fn sources_on_one_machine_are_one_job() {
        for (line, jobs) in [
            ("ksync a/x y/ sandbox:/d", &["a/x y/ > sandbox:/d"][..]),
            ("ksync sandbox:/x y /no/d", &["sandbox:/x > /no/d/x", "y > /no/d/y"]),
            ("ksync vm:x y vm:z me@h:z2 /no/d", &["vm:x vm:z > /no/d", "y > /no/d/y", "me@h:z2 > /no/d/z2"]),
            ("ksync --delete vm:x vm:y /no/d", &["vm:x > /no/d/x", "vm:y > /no/d/y"]),
            // Only `src` is a directory: its deletions belong to it alone.
            ("ksync --delete src a b vm:/d", &["src > vm:/d/src", "a b > vm:/d"]),
        ] {
            assert_eq!(pairs(line), jobs, "{line}");
        }
    }

    #[test]
    fn a_local_dot_gets_the_name_of_its_directory() {
        let here = std::env::current_dir().unwrap();
        let name = here.file_name().unwrap().to_str().unwrap();
        assert_eq!(pairs("ksync --delete . a sandbox:d")[0], format!(". > sandbox:d/{name}"));
    }

    #[test]
    fn wrong_usage_is_reported_with_a_hint() {
        for (line, text) in [
            ("ksync -v", "there is no SOURCE and no DEST"),
            ("ksync a", "there is no DEST"),
            ("ksync a sandbox:b c@d:e", "both sandbox:b and c@d:e are remote"),
            ("ksync a :/b", "an endpoint that begins with : is in the VM of --setup, and there is none"),
            ("ksync --setup x a b", "--setup describes a VM, but no endpoint is in it"),
            ("ksync a/x b/x sandbox:/d", "two SOURCEs would both become sandbox:/d/x"),
            ("ksync sandbox: sandbox:/x d", "sandbox:. has no name that it could have in DEST"),
            ("ksync a b /dev/null", "/dev/null is not a directory, and several SOURCEs go into one"),
            ("ksync a http://b/c", "\"http://b/c\" is not an endpoint: its scheme is not ssh, ws or wss"),
            ("ksync -e rsh a b", "\"rsh\" is not a plain ssh (-e, --rsh), and ksync starts no remote shell"),
            ("ksync --host-key AAAA a b", "--host-key is not a public key"),
        ] {
            let error = error(line);
            let (what, hint) = error.split_once("\n  hint: ").unwrap_or_else(|| panic!("{error}"));
            assert_eq!(what, format!("ksync: {text}"));
            let begins = hint.starts_with(|c: char| c.is_uppercase()) || hint.starts_with("--");
            assert!(begins && hint.ends_with('.'), "{hint}");
        }
    }

    #[test]
    fn a_directory_is_not_copied_onto_the_home_for_want_of_a_path() {
        for destination in ["host:", "me@host:", "session:", "sandbox:", "ssh://me@host", "wss://vm:2222/"] {
            let told = error(&format!("ksync src {destination}"));
            assert!(told.starts_with(&format!("ksync: {destination} names no directory")), "{told}");
            // A file, and several sources by name, may go there; as a source it means the home.
            built(&format!("ksync Cargo.toml {destination}")).unwrap();
            built(&format!("ksync src tests {destination}")).unwrap();
            built(&format!("ksync {destination} src")).unwrap();
        }
        assert!(error("ksync src host:").ends_with("hint: Write host:. for the home itself, or host:src."));
        for destination in ["host:.", "host:~", "host:site", "ssh://host/~"] {
            built(&format!("ksync src {destination}")).unwrap();
        }
    }

    #[test]
    fn a_key_behind_i_is_refused_with_the_right_option() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).display().to_string()
        };
        let key = file("k", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        let public = file("k.pub", "ssh-ed25519 AAAA me\n");
        for file in [&key, &public] {
            for line in [format!("ksync -i {file} a me@host:b"), format!("ksync -avi {file} a me@host:b")] {
                let told =
                    format!("ksync: -i lists the changes, and {file} is a key\n  hint: A key is given by");
                assert!(error(&line).starts_with(&told), "{}", error(&line));
            }
        }
        assert!(error("ksync -i /no/.ssh/mine a me@host:b").contains("hint: A key is given by --identity"));
        let plain = file("plain", "-----");
        for line in
            [format!("ksync -i {plain} a d"), format!("ksync -iv {key} a d"), format!("ksync -i {key} d")]
        {
            built(&line).unwrap();
        }
    }

    #[test]
    fn transfer_rules_are_those_of_rsync() {
        let rules = |line: &str| built(line).unwrap().jobs[0].options.transfer;
        assert_eq!(rules("ksync -W a b"), TransferRules::default());
        let all = TransferRules {
            update: true,
            existing: true,
            ignore_existing: true,
            size_max: Some(1024),
            size_min: Some(1),
            prune_empty: true,
            proof: Proof::Size,
        };
        let line = "ksync -uIm --existing --ignore-existing --size-only --max-size 1k --min-size=1b a b";
        assert_eq!(rules(line), all);
        assert_eq!(rules("ksync -I --no-whole-file a b").proof, Proof::None);
        assert!(built("ksync --force --delete-excluded a b").unwrap().jobs[0].options.delete);
        let excluded = built("ksync --delete-excluded a b").unwrap();
        assert!(excluded.jobs[0].options.delete && excluded.jobs[0].options.delete_excluded);
        assert!(error("ksync --delete-excluded a b c").starts_with("ksync: --delete-excluded takes one"));
        assert!(error("ksync -w -m a b").starts_with("ksync: --watch and --prune-empty-dirs exclude"));
    }

    #[test]
    fn a_new_name_here_that_looks_remote_gets_a_hint() {
        let hint = |line: &str| built(line).unwrap().warnings.pop().map(|warning| warning.hint);
        let told = hint("ksync a me@host");
        assert_eq!(told.as_deref(), Some("A path on another machine has a colon: me@host:path."));
        assert!(hint("ksync a ./x::mod").is_some_and(|hint| hint.contains("host:path, with one colon")));
        for line in ["ksync a me@host:", "ksync a d", "ksync a ./me@host", "ksync a @", "ksync a src"] {
            assert_eq!(hint(line), None, "{line}");
        }
    }

    #[test]
    fn consent_holds_the_typed_options() {
        let consent = |line: &str| built(line).unwrap().jobs[0].options.consent.clone();
        assert_eq!(consent("ksync --delete a b"), Consent::default());
        let all = consent(
            "ksync --delete -y --max-delete=0 --force-delete-in=/x --force-delete-in me@host:y a me@host:y",
        );
        let force_in = vec![ByteBuf::from(b"/x"), ByteBuf::from(b"y")];
        assert_eq!(all, Consent { yes: true, agreed: None, max_delete: Some(0), force_in });
        // A name that looks like a remote endpoint.
        assert_eq!(consent("ksync --force-delete-in=a:b a b").force_in, [ByteBuf::from(b"a:b")]);
    }

    #[test]
    fn an_unreadable_file_is_named() {
        assert_eq!(
            error("ksync --exclude-from /no/file a b"),
            "ksync: cannot read /no/file: no such file or directory"
        );
    }

    #[test]
    fn options_reach_both_ends() {
        let request = built("ksync -nci --fsync --delete --no-compress --exclude=x --timeout 0 a b").unwrap();
        let job = &request.jobs[0];
        let rules = vec![ksync::tree::filter::Rule::new(false, b"x".to_vec())];
        let options = Options {
            delete: true,
            dry_run: true,
            checksum: true,
            fsync: true,
            list_changes: true,
            rules,
            ..Options::default()
        };
        assert_eq!(job.options, options);
        assert_eq!(
            (job.connect_options.timeout, job.connect_options.connect_timeout),
            (NEVER, Duration::from_secs(30))
        );
        assert_eq!(request.show, Show { lists: true, itemize: true, progress: true, ..Show::default() });
        assert!(!built("ksync -nq a b").unwrap().jobs[0].options.list_changes);
        assert!(built("ksync a b").unwrap().jobs[0].options.compress);
        let connections = |line| built(line).unwrap().jobs[0].connect_options.connections;
        assert_eq!((connections("ksync a b"), connections("ksync -j 1 a b")), (None, Some(1)));
        assert_eq!(connections("ksync --connections 8 a b"), Some(8));
    }
}
