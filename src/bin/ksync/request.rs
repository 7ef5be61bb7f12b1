//! From the command line to a request: parses endpoints, loads files that options name, and reports
//! wrong usage before connecting.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ksync::disk::typed_path;
use ksync::exchange::{chain, plain};
use ksync::kernel::{Access, ApiKey, DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Settings, Waits};
use ksync::monitor::Warning;
use ksync::remote::ssh_config::AddressFamily;
use ksync::sync::endpoint::Endpoint;
use ksync::sync::watch::{AfterRound, Live};
use ksync::sync::{self, ConnectOptions, Job};
use ksync::tree::filter::{RULES_BYTES_MAX, RULES_MAX, Rule};
use ksync::tree::links::FollowedLinks;
use ksync::tree::path::escape;
use ksync::tree::rule::bits;
use ksync::tree::time_rule::TimeRule;
use ksync::wire::hello::{Consent, FORCED_MAX, FileList, Links, Options, PlanTie, Undo, WatchOptions};
use serde_bytes::ByteBuf;

use crate::args::{ConnectionArgs, OutputArgs, SyncArgs, WatchArgs, WhatArgs};
use crate::endpoints::{endpoint, is_excluded, mistaken, pair, together};
use crate::files;
use crate::format::{Format, LOG_FORMAT};
use crate::log_file::LogFile;
use crate::misplaced_key;
use crate::out;
use crate::plan::{self, Plan};
use crate::relative;
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
    args.project.as_ref().map_or(Ok(()), crate::config::ProjectDestination::check)?;
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
    let has_setup = args.connection.setup.is_some();
    let is_relative = args.which.relative && args.which.files_from.is_none();
    let (pairs, mut file_lists): (Vec<_>, Vec<_>) = if is_relative {
        relative::pairs(&args.endpoints, has_setup)?.into_iter().unzip()
    } else {
        (pair(&args.endpoints, has_setup)?, Vec::new())
    };
    file_lists.reverse();
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
        transfer: args.what.transfer.rules(args.what.in_place.appends()),
        bases: args.what.bases.options(args.watch.watch)?,
        in_place: args.what.in_place.is_in_place(),
        backup: args.what.backups.options()?,
        // A power cut could lose the only copy of a removed file.
        fsync: args.what.fsync || args.what.remove_source_files,
        remove_source: args.what.remove_source_files,
        one_file_system: args.what.one_file_system,
        links: links(&args.what),
        follows: followed_links(&args.what),
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
    let given_family = match (connection_args.ipv4, connection_args.ipv6) {
        (true, _) => Some(AddressFamily::Inet),
        (_, true) => Some(AddressFamily::Inet6),
        _ => None,
    };
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
    let address_family = given_family.or(address_family);
    // A kept agent is not root's, and a kept connection follows the usual files.
    let is_usual = !connect_options.sudo && address_family.is_none() && ssh_config.is_none();
    let keep = connect_options.keep.filter(|_| is_usual);
    let connect_options = ConnectOptions { keep, address_family, ssh_config, ..connect_options };
    if connect_options.sudo {
        pairs.iter().try_for_each(refuse_relative)?;
    }
    let several = pairs.len() > 1 && !is_relative;
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
        options.files = file_lists.pop().unwrap_or_else(|| options.files.take());
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
    let SyncArgs { which, what, watch, .. } = args;
    if which.relative && watch.watch {
        let told = "--watch and --relative exclude each other";
        return Err(CliError::usage(
            told,
            "Watch the directory that holds all, with --include and --exclude.",
        ));
    }
    let Some(file) = &which.files_from else { return Ok(None) };
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

/// The rule of `--modify-window`: -1 is exact, as in rsync.
fn time_rule(window: i64) -> TimeRule {
    u32::try_from(window).map_or(TimeRule::Exact, TimeRule::Window)
}

fn links(what: &WhatArgs) -> Links {
    match (what.links, what.safe_links, what.no_links) {
        (true, ..) => Links::All,
        (_, true, _) => Links::Safe,
        (_, _, true) => Links::None,
        _ => Links::ByDirection,
    }
}

fn followed_links(what: &WhatArgs) -> FollowedLinks {
    let given = [
        (what.copy_links, FollowedLinks::ALL),
        (what.copy_unsafe_links, FollowedLinks::UNSAFE),
        (what.copy_dirlinks, FollowedLinks::DIRECTORIES),
    ];
    let given = given.into_iter().filter(|(is_given, _)| *is_given);
    given.fold(FollowedLinks::default(), |all, (_, these)| all.with(these))
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
    if what.remove_source_files {
        return Err(CliError::usage(
            "--watch and --remove-source-files exclude each other: with --delete, the next round would delete \
             what this one moved",
            "Leave one of them out, or run ksync --remove-source-files from time to time.",
        ));
    }
    if pairs.len() > 1 {
        return Err(CliError::usage(
            "--watch takes one SOURCE",
            "Watch the directory that holds them, with --include and --exclude; or run one ksync for each.",
        ));
    }
    // A change of what a link leads to causes no event in SOURCE.
    let poll = args.poll || followed_links(what).any();
    Ok(Some(Live { watch_options: WatchOptions { quiet_ms: args.debounce, poll }, after }))
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
        (
            escape(file.as_bytes()),
            typed_path::open_file(Path::new(file)).map(|file| Box::new(file) as Box<dyn Read>),
        )
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
mod tests;
