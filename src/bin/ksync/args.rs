//! The command line: options and their help. Nothing is read or looked up here: see `request`.

use std::ffi::OsString;
#[cfg(feature = "sandbox")]
use std::net::SocketAddr;
use std::path::PathBuf;

#[cfg(feature = "sandbox")]
use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::report::CliError;
use crate::rules::{self, RuleSource};
use crate::usage::{self, number};
use crate::verbs::{DoctorArgs, FlushArgs, KeepArgs, KeepVerbArgs, ProxyArgs, SessionArgs, SshArgs};

/// The mode that the command line selects.
#[derive(Debug)]
pub(crate) enum Mode {
    /// Print a text: help or the version.
    Show(String),
    /// Sync.
    Sync(Box<SyncArgs>),
    /// Manage sessions.
    Session(SessionArgs),
    /// Run a shell or a command in a session.
    Ssh(SshArgs),
    /// Examine a session.
    Doctor(DoctorArgs),
    /// Connect stdin and stdout to a bridge.
    Proxy(ProxyArgs),
    /// Wait for a watch.
    Flush(FlushArgs),
    /// List and end kept connections.
    Keep(KeepVerbArgs),
    /// Run the VM emulator in the foreground.
    #[cfg(feature = "sandbox")]
    Sandbox(SandboxArgs),
}

/// Help that fits a screen of 80 columns and starts with the most common uses.
const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Examples:
  ksync ./site sandbox:/tmp/site              try it: an emulated VM, here
  ksync -n --delete ./site me@host:/srv/site  what would change over there?
  ksync -w ./site session:/srv/site           and each save, a moment later
  ksync session create                        a session, by KERNEL_API_KEY
  ksync ./site session:/tmp/site              into it
  ksync wss://host:2222/tmp/out ./out         from a VM to this machine

Endpoints:
  ./dir  /dir             on this machine
  sandbox:/dir            in the emulated VM that ksync carries
  session:/dir            in the current Kernel session; else ID:/dir, NAME:/dir
  :/dir                   in the VM that --setup describes
  user@host:/dir          on an SSH host; with a port ssh://user@host:22/dir
  wss://host:2222/dir     on an SSH host behind a WebSocket bridge
A directory becomes DEST itself, with or without a trailing slash. A file goes
into a DEST that is a directory or ends in a slash. Several SOURCEs go into DEST
by name. A remote path without a leading slash is below the remote home.

{all-args}

Exit status: 0 done, 1 usage, 23 some entries failed, 24 source files vanished,
25 deletions wait for consent; others say why there was no run. Further verbs,
each with a --help of its own: ksync session, ssh, proxy, doctor, flush, keep,
sandbox.
";

#[derive(Debug, Parser)]
#[command(
    name = "ksync",
    version,
    about = "Makes DEST a copy of SOURCE and sends only what changed.",
    override_usage = "ksync [OPTIONS] SOURCE... DEST\n       ksync session|ssh|proxy|doctor|flush|keep|sandbox ...",
    help_template = TEMPLATE,
    max_term_width = 80,
    disable_help_flag = true,
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    sync: SyncArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Creates, lists, sets up and deletes Kernel sessions
    #[command(hide = true, max_term_width = 80)]
    Session(SessionArgs),
    /// Runs a command or a shell on a session's VM, and forwards ports
    #[command(hide = true, max_term_width = 80)]
    Ssh(SshArgs),
    /// Tests each step, from the API key to a file sent to the VM and back
    #[command(hide = true, max_term_width = 80)]
    Doctor(DoctorArgs),
    /// Connects standard input and output to a bridge: a ProxyCommand for ssh, scp, sftp and rsync
    #[command(hide = true, max_term_width = 80)]
    Proxy(ProxyArgs),
    /// Waits until ksync --watch has copied everything that was saved so far
    #[command(hide = true, max_term_width = 80)]
    Flush(FlushArgs),
    /// Lists and closes the connections that are kept for the next runs
    #[command(hide = true, max_term_width = 80)]
    Keep(KeepVerbArgs),
    /// Runs a VM emulator on this machine until Ctrl-C: an SSH server behind a WebSocket. Beside it
    /// runs an emulator of the platform's API, with VMs of its own
    #[cfg(feature = "sandbox")]
    #[command(hide = true, max_term_width = 80)]
    Sandbox(SandboxArgs),
}

/// The options of a sync.
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    #[arg(value_name = "ENDPOINT", hide = true)]
    pub(crate) endpoints: Vec<OsString>,
    #[command(flatten)]
    pub(crate) what: WhatArgs,
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    #[command(flatten)]
    pub(crate) foreign: ForeignArgs,
    /// The rules in the order of the command line, since the first that matches wins.
    #[arg(skip)]
    pub(crate) rules: Vec<RuleSource>,
    /// The endpoint right behind `-i`, which ssh takes for a key.
    #[arg(skip)]
    pub(crate) behind_i: Option<OsString>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sync")]
pub(crate) struct WhatArgs {
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Delete entries of DEST that SOURCE does not have, after everything else
    #[arg(long, visible_alias = "del",
          aliases = ["delete-before", "delete-during", "delete-delay", "delete-after"])]
    pub(crate) delete: bool,
    /// Do not descend into other filesystems that are mounted in SOURCE
    #[arg(short = 'x', long)]
    pub(crate) one_file_system: bool,
    /// Consent to every deletion that --delete finds
    #[arg(short = 'y', long)]
    pub(crate) yes: bool,
    /// Delete at most N entries; if there are more, delete none (exit 25)
    #[arg(long, value_name = "N", value_parser = number(0..=u64::MAX, "a number of entries, 0 or more"), allow_hyphen_values = true)]
    pub(crate) max_delete: Option<u64>,
    /// Allow deletions in DEST although it is a home or a system directory; PATH must lead to it
    #[arg(long, value_name = "PATH", action = ArgAction::Append)]
    pub(crate) force_delete_in: Vec<OsString>,
    /// Compare by content, not by size and time
    #[arg(short = 'c', long)]
    pub(crate) checksum: bool,
    /// Times may differ by N seconds; by default by what DEST's filesystem rounds off, -1 is exact
    #[arg(short = '@', long, value_name = "N", value_parser = clap::value_parser!(i64).range(-1..=86_400),
          allow_hyphen_values = true)]
    pub(crate) modify_window: Option<i64>,
    /// Flush to the disk before reporting success, so the result survives a power cut
    #[arg(long)]
    pub(crate) fsync: bool,
    /// Compress the transfer: on by default, skipped where it does not pay
    #[arg(short = 'z', long, overrides_with = "no_compress")]
    pub(crate) compress: bool,
    /// Never compress
    #[arg(long, overrides_with = "compress")]
    pub(crate) no_compress: bool,
    /// Accepted for rsync users: ksync always keeps directories, links, modes and times
    #[arg(short = 'a', long)]
    archive: bool,
    #[arg(short = 'r', long, hide = true)]
    recursive: bool,
    #[arg(short = 't', long, hide = true)]
    times: bool,
    /// Copy links that are absolute or lead out of the tree from the VM too
    #[arg(short = 'l', long, overrides_with = "safe_links")]
    pub(crate) links: bool,
    /// Exclude links that are absolute or lead out of the tree: what a pull does by itself
    #[arg(long, overrides_with = "links")]
    pub(crate) safe_links: bool,
    #[arg(short = 'p', long, hide = true)]
    perms: bool,
    #[arg(long, hide = true)]
    partial: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters (rsync's patterns, the first that matches wins)")]
pub(crate) struct WhichArgs {
    /// Exclude entries that match; a leading / is SOURCE, or DEST if several SOURCEs go into it
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true, action = ArgAction::Append)]
    exclude: Vec<OsString>,
    /// Do not exclude entries that match
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true, action = ArgAction::Append)]
    include: Vec<OsString>,
    /// Read --exclude patterns from a file, one per line; - is stdin
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    exclude_from: Vec<OsString>,
    /// Read --include patterns from a file, likewise
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    include_from: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub(crate) struct WatchArgs {
    /// Keep DEST a copy: send each change a moment after it is saved
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
    /// Scan for changes at intervals instead of watching
    #[arg(long, requires = "watch")]
    pub(crate) poll: bool,
    /// Debounce: SOURCE must be quiet this long before a round starts
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = number(0..=100u32, "milliseconds, 0 to 100"), allow_negative_numbers = true)]
    pub(crate) debounce: u32,
    /// Also fetch files that a browser is still downloading
    #[arg(long, requires = "watch")]
    pub(crate) partial_downloads: bool,
    /// Run CMD there after a sync that changed something; with --watch, after each such round.
    /// If it fails (exit 47), the next run runs it again
    #[arg(long, value_name = "CMD", allow_hyphen_values = true)]
    pub(crate) exec: Option<String>,
    /// The same on this machine, after a sync that changed something here
    #[arg(long, value_name = "CMD", allow_hyphen_values = true, conflicts_with = "exec")]
    pub(crate) on_change: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// List each change; -vv also logs each decision on stderr, as KSYNC_LOG=debug does
    #[arg(short = 'v', long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// List each change in rsync's eleven letters
    #[arg(short = 'i', long)]
    pub(crate) itemize_changes: bool,
    /// Print only errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Print statistics at the end
    #[arg(long)]
    pub(crate) stats: bool,
    /// Print one JSON object per line, for programs
    #[arg(long)]
    pub(crate) json: bool,
    /// Show progress (the default)
    #[arg(long, overrides_with = "no_progress", hide = true)]
    progress: bool,
    /// Show no progress
    #[arg(long, overrides_with_all = ["progress", "partial_progress"])]
    pub(crate) no_progress: bool,
    #[arg(short = 'P', overrides_with = "no_progress", hide = true)]
    partial_progress: bool,
    /// Accepted for rsync users: ksync never uses colours
    #[arg(long, hide = true)]
    no_color: bool,
    /// Print this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// Print this help, when alone; otherwise accepted for rsync users: numbers are always
    /// readable.
    #[arg(short = 'h', long, hide = true)]
    human_readable: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// A private key file, or the .pub of a key in ssh-agent; may be given several times
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    pub(crate) identity: Vec<PathBuf>,
    /// The output of `kernel browsers ssh ID --setup-only -o json`; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) setup: Option<PathBuf>,
    /// The only host key to accept: "ssh-ed25519 AAAA..."
    #[arg(long, value_name = "KEY")]
    pub(crate) host_key: Option<String>,
    /// Additional root certificates for wss://
    #[arg(long, value_name = "FILE", env = "KSYNC_CA_CERT", hide_env_values = true)]
    pub(crate) ca_cert: Option<PathBuf>,
    /// With sandbox:, use this machine's files, and not those of a world of its own
    #[cfg(feature = "sandbox")]
    #[arg(long, env = "KSYNC_SANDBOX_HOST_FILES", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) host_files: bool,
    /// Do not keep the session active while ksync works
    #[arg(long)]
    pub(crate) no_keep_alive: bool,
    /// Maximum channels for an upload, 1 to 8; by default as many as pay
    #[arg(short = 'j', long, value_name = "N", value_parser = number(1..=8u8, "a number from 1 to 8"), allow_negative_numbers = true)]
    pub(crate) connections: Option<u8>,
    /// Give up after this long without a sign of the other side: 60, with --watch 30; 0 is never
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), allow_negative_numbers = true)]
    pub(crate) timeout: Option<u64>,
    /// Reconnect at most N times in a row without progress, after a working connection is lost; 0
    /// is never
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = number(0..=u32::MAX, "a number, 0 or more"), allow_negative_numbers = true)]
    pub(crate) retries: u32,
    /// Give up connecting after this long; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds(), allow_negative_numbers = true)]
    pub(crate) contimeout: u64,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
}

/// Options of rsync that ksync lacks, declared so that the error can name the alternative.
#[derive(Debug, Args)]
pub(crate) struct ForeignArgs {
    #[arg(short = 'e', long, hide = true, allow_hyphen_values = true)]
    pub(crate) rsh: Option<OsString>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) rsync_path: Option<OsString>,
    #[arg(long, hide = true)]
    pub(crate) daemon: bool,
}

/// The options of `ksync sandbox`.
#[cfg(feature = "sandbox")]
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// The loopback address to listen on; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0", value_parser = address)]
    pub(crate) listen: SocketAddr,
    /// The directory for the files of the VMs; by default one in ksync's state directory
    #[arg(long, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Let the VMs use this machine's files, and not those of a world of their own
    #[arg(long, env = "KSYNC_SANDBOX_HOST_FILES", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) host_files: bool,
    /// Speed of the sessions' clock: its seconds per real second
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = number(f64::MIN..=f64::MAX, "a number"))]
    pub(crate) time_scale: f64,
    /// A Chromium that answers the sessions' CDP: ws://HOST:PORT/... or http://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = chromium)]
    pub(crate) cdp: Option<String>,
    /// Print one line of JSON when the VM answers
    #[arg(long)]
    pub(crate) json: bool,
    /// Run in the background, and print the environment variables for eval "$(ksync sandbox
    /// --export)"; kill $KSYNC_SANDBOX_PID ends it
    #[arg(long, conflicts_with = "json")]
    pub(crate) export: bool,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

#[cfg(feature = "sandbox")]
fn chromium(text: &str) -> Result<String, &'static str> {
    let is_url = ["ws://", "http://"].iter().any(|scheme| text.starts_with(scheme));
    is_url.then(|| text.to_owned()).ok_or("a URL, as in http://127.0.0.1:9222")
}

#[cfg(feature = "sandbox")]
fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address and a port, as in 127.0.0.1:0")
}

/// Parses seconds.
pub(crate) fn seconds() -> impl Fn(&str) -> Result<u64, &'static str> + Clone + Send + Sync + 'static {
    number(0..=u64::MAX, "seconds, 0 or more")
}

impl Mode {
    /// True if stdout gets JSON for programs.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Sync(args) => args.output.json,
            Self::Session(args) => args.verb.is_json(),
            Self::Doctor(args) => args.json,
            Self::Keep(args) => matches!(args.verb, crate::verbs::KeepVerb::List { json: true }),
            #[cfg(feature = "sandbox")]
            Self::Sandbox(args) => args.json,
            Self::Show(_) | Self::Ssh(_) | Self::Proxy(_) | Self::Flush(_) => false,
        }
    }
}

/// The endpoint right behind `-i`, alone or at the end of a cluster of options.
fn behind_i(matches: &ArgMatches) -> Option<OsString> {
    const ITEMIZE: &str = "itemize_changes";
    let is_given = matches.value_source(ITEMIZE) == Some(ValueSource::CommandLine);
    let index = is_given.then(|| matches.index_of(ITEMIZE)).flatten()?;
    let indices = matches.indices_of("endpoints")?;
    let mut endpoints = indices.zip(matches.get_many::<OsString>("endpoints")?);
    endpoints.find(|(at, _)| *at == index + 1).map(|(_, endpoint)| endpoint.clone())
}

/// Parses a command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Mode, CliError> {
    let mut command = Cli::command();
    let args = usage::with_help(args.into_iter().collect());
    let parsed = command.try_get_matches_from_mut(&args).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.sync.rules = rules::in_order(&matches);
        cli.sync.behind_i = behind_i(&matches);
        Ok(cli)
    });
    match parsed {
        Ok(Cli { verb: Some(Verb::Session(args)), .. }) => Ok(Mode::Session(args)),
        Ok(Cli { verb: Some(Verb::Ssh(args)), .. }) => Ok(Mode::Ssh(args)),
        Ok(Cli { verb: Some(Verb::Doctor(args)), .. }) => Ok(Mode::Doctor(args)),
        Ok(Cli { verb: Some(Verb::Proxy(args)), .. }) => Ok(Mode::Proxy(args)),
        Ok(Cli { verb: Some(Verb::Flush(args)), .. }) => Ok(Mode::Flush(args)),
        Ok(Cli { verb: Some(Verb::Keep(args)), .. }) => Ok(Mode::Keep(args)),
        #[cfg(feature = "sandbox")]
        Ok(Cli { verb: Some(Verb::Sandbox(args)), .. }) => Ok(Mode::Sandbox(args)),
        Ok(Cli { sync, .. }) if sync.output.human_readable && sync.endpoints.is_empty() => {
            Ok(Mode::Show(command.render_help().to_string()))
        }
        Ok(Cli { sync, .. }) => {
            sync.endpoints.first().map_or(Ok(()), |first| usage::refuse_verb(first))?;
            Ok(Mode::Sync(Box::new(sync)))
        }
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Mode::Show(error.render().to_string())),
            _ => Err(usage::error(&error, &command, &args)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Mode, CliError> {
        parse(line.split(' ').map(OsString::from))
    }

    fn sync(line: &str) -> SyncArgs {
        match parsed(line) {
            Ok(Mode::Sync(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rsyncs_common_options_are_accepted() {
        let args = sync("ksync -avzPh --delete-after -e x -n --itemize-changes a b");
        assert_eq!(args.endpoints, ["a", "b"]);
        assert!(args.what.delete && args.what.dry_run && args.output.itemize_changes);
        assert_eq!((args.output.verbose, args.foreign.rsh), (1, Some("x".into())));
        for line in ["ksync -rtlp a b", "ksync -aa -vv a b", "ksync --del a b", "ksync a b --partial -i"] {
            assert_eq!(sync(line).endpoints, ["a", "b"], "{line}");
        }
    }

    #[test]
    fn the_last_of_two_contradicting_options_counts() {
        assert!(sync("ksync -z --no-compress a b").what.no_compress);
        assert!(!sync("ksync --no-compress -z a b").what.no_compress);
        assert!(sync("ksync -P --no-progress a b").output.no_progress);
        assert!(!sync("ksync --no-progress --progress a b").output.no_progress);
        assert!(!sync("ksync --no-progress -P a b").output.no_progress);
    }

    #[test]
    fn max_delete_takes_a_number_from_zero_on() {
        assert_eq!(sync("ksync --max-delete=5 a b").what.max_delete, Some(5));
        assert_eq!(sync("ksync --max-delete 0 a b").what.max_delete, Some(0));
        for wrong in ["--max-delete=-1", "--max-delete -1", "--max-delete=x", "--max-delete="] {
            let told = parsed(&format!("ksync {wrong} a b")).unwrap_err().to_string();
            assert!(told.starts_with("ksync: --max-delete takes a number of entries, 0 or more"), "{told}");
        }
    }

    #[test]
    fn a_verb_counts_only_in_the_first_place() {
        assert!(matches!(parsed("ksync sandbox --json"), Ok(Mode::Sandbox(SandboxArgs { json: true, .. }))));
        assert_eq!(sync("ksync a sandbox").endpoints, ["a", "sandbox"]);
        assert_eq!(sync("ksync ./sandbox b").endpoints, ["./sandbox", "b"]);
        assert_eq!(sync("ksync -- -a -b").endpoints, ["-a", "-b"]);
    }

    #[test]
    fn h_alone_prints_help_and_with_others_changes_nothing() {
        assert!(matches!(parsed("ksync -h"), Ok(Mode::Show(text)) if text.contains("Examples:")));
        assert!(matches!(parsed("ksync --help"), Ok(Mode::Show(text)) if text.contains("Examples:")));
        assert!(matches!(parsed("ksync sandbox --help"), Ok(Mode::Show(text)) if text.contains("--listen")));
        assert!(matches!(parsed("ksync --version"), Ok(Mode::Show(text)) if text.starts_with("ksync ")));
        assert_eq!(sync("ksync -h a b").endpoints, ["a", "b"]);
    }

    #[test]
    fn every_verb_has_a_help_of_its_own() {
        let (command, mut verbs) = (Cli::command(), Vec::new());
        for verb in command.get_subcommands() {
            verbs.push(verb.get_name().to_owned());
            verbs.extend(
                verb.get_subcommands().map(|below| format!("{} {}", verb.get_name(), below.get_name())),
            );
        }
        assert!(verbs.len() > 10, "{verbs:?}");
        for (verb, flag) in verbs.iter().flat_map(|verb| [(verb, "-h"), (verb, "--help")]) {
            let help = parsed(&format!("ksync {verb} {flag}"));
            let is_its_own = |text: &String| text.contains(&format!("Usage: ksync {verb}"));
            assert!(matches!(&help, Ok(Mode::Show(text)) if is_its_own(text)), "{verb} {flag}: {help:?}");
        }
    }

    #[test]
    fn help_fits_eighty_columns() {
        let Ok(Mode::Show(text)) = parsed("ksync --help") else { panic!("no help") };
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    fn refused(line: &str) -> String {
        let error = parsed(line).unwrap_err();
        assert_eq!(error.exit, crate::report::USAGE);
        error.to_string()
    }

    #[test]
    fn an_unknown_option_is_an_error_that_names_it() {
        let hint = "hint: ksync --help lists all options.";
        assert_eq!(
            refused("ksync --frobnicate a b"),
            format!("ksync: there is no option --frobnicate\n  {hint}")
        );
        assert_eq!(refused("ksync -nQ a b"), format!("ksync: there is no option -Q\n  {hint}"));
        assert_eq!(
            refused("ksync --cheksum a b"),
            "ksync: there is no option --cheksum\n  hint: There is --checksum; ksync --help lists all options."
        );
        // A verb has options of its own.
        assert_eq!(
            refused("ksync ssh -H abc"),
            "ksync: there is no option -H\n  hint: ksync ssh --help lists all options."
        );
    }

    #[test]
    fn a_typo_never_leads_to_an_option_that_deletes() {
        let (command, mut tried) = (Cli::command(), 0);
        let names = command.get_arguments().flat_map(|argument| {
            let aliases = argument.get_all_aliases().unwrap_or_default();
            argument.get_long().into_iter().chain(aliases).map(str::to_owned).collect::<Vec<_>>()
        });
        for name in names.collect::<Vec<_>>() {
            for at in 0..name.len() {
                for typo in [
                    format!("{}{}", &name[..at], &name[at + 1..]),
                    format!("{}x{}", &name[..at], &name[at + 1..]),
                    format!("{}{}{}", &name[..=at], &name[at..=at], &name[at + 1..]),
                ] {
                    let Err(error) = parsed(&format!("ksync --{typo} a b")) else { continue };
                    tried += 1;
                    let hint = error.hint().unwrap_or_default();
                    for word in ["delete", "--del", "remove", "force", "--yes"] {
                        assert!(!hint.contains(word), "--{typo}: {error}");
                    }
                    assert!(!error.to_string().contains("tip:"), "{error}");
                }
            }
        }
        assert!(tried > 500, "{tried}");
    }

    #[test]
    fn wrong_values_are_named_with_what_the_option_takes() {
        for (line, text) in [
            ("ksync --timeout=-1 a b", "--timeout takes seconds, 0 or more, and not \"-1\""),
            ("ksync --timeout -1 a b", "--timeout takes seconds, 0 or more, and not \"-1\""),
            ("ksync --contimeout=x a b", "--contimeout takes seconds, 0 or more, and not \"x\""),
            ("ksync --retries=1.5 a b", "--retries takes a number, 0 or more, and not \"1.5\""),
            ("ksync --debounce=101 a b", "--debounce takes milliseconds, 0 to 100, and not \"101\""),
            ("ksync -j=0 a b", "--connections takes a number from 1 to 8, and not \"0\""),
            ("ksync -j -1 a b", "--connections takes a number from 1 to 8, and not \"-1\""),
            ("ksync --connections=9 a b", "--connections takes a number from 1 to 8, and not \"9\""),
            ("ksync --timeout= a b", "--timeout takes seconds, 0 or more, and not \"\""),
            ("ksync flush --timeout=x", "--timeout takes seconds, 0 or more, and not \"x\""),
            ("ksync session create --timeout 9", "--timeout takes seconds, 10 to 259200, and not \"9\""),
            (
                "ksync sandbox --listen=x",
                "--listen takes an address and a port, as in 127.0.0.1:0, and not \"x\"",
            ),
            ("ksync sandbox --time-scale=x", "--time-scale takes a number, and not \"x\""),
            ("ksync sandbox --cdp=x", "--cdp takes a URL, as in http://127.0.0.1:9222, and not \"x\""),
            ("ksync a b --exclude", "--exclude needs a value"),
            ("ksync --checksum=1 a b", "--checksum takes no value"),
            ("ksync --poll a b", "--watch is missing"),
            ("ksync proxy", "URL-OR-SESSION is missing"),
            ("ksync session use", "SESSION is missing"),
            ("ksync session lst", "ksync session has no verb lst"),
            ("ksync session", "ksync session needs a verb"),
            ("ksync --exec x --on-change y a b", "--exec cannot be used with --on-change"),
        ] {
            let told = refused(line);
            let (what, hint) = told.split_once("\n  hint: ").unwrap_or_else(|| panic!("{told}"));
            assert_eq!(what, format!("ksync: {text}"), "{line}");
            assert!(hint.ends_with('.') && !hint.contains("--ca-cert"), "{line}: {hint}");
        }
        assert_eq!(
            refused("ksync proxy"),
            "ksync: URL-OR-SESSION is missing\n  hint: Write ksync proxy URL-OR-SESSION; ksync proxy --help has the \
             options."
        );
    }

    #[test]
    fn forwards_stand_before_or_behind_the_session_and_not_in_the_command() {
        let ssh = |line: &str| match parsed(line) {
            Ok(Mode::Ssh(args)) => args,
            other => panic!("{line}: {other:?}"),
        };
        for line in [
            "ksync ssh -L 1:a:2 -R 3:b:4 vm -D 5 ls -L 6",
            "ksync ssh -L1:a:2 vm -R3:b:4 -D5 -- ls -L 6",
            "ksync ssh vm -D 5 -R 3:b:4 -L 1:a:2 ls -L 6",
        ] {
            let args = ssh(line);
            let told = args.forwards().iter().map(ToString::to_string).collect::<Vec<_>>();
            let expected = [
                "localhost:1 here to a:2 there",
                "localhost:3 there to b:4 here",
                "SOCKS on localhost:5 here",
            ];
            assert_eq!(told, expected, "{line}");
            assert_eq!((args.session.as_str(), args.command.len()), ("vm", 3), "{line}");
        }
        assert!(ssh("ksync ssh -N vm").no_command);
        assert_eq!(
            refused("ksync ssh -N vm ls").split('\n').next(),
            Some("ksync: -N cannot be used with COMMAND")
        );
        assert_eq!(
            refused("ksync ssh vm -L 80:web").split('\n').next(),
            Some("ksync: -L takes [BIND:]PORT:HOST:PORT, and not \"80:web\"")
        );
    }

    #[test]
    fn a_verb_of_a_later_version_is_no_source() {
        for line in ["ksync verify a b", "ksync man", "ksync completions bash x", "ksync -n config"] {
            let verb = line.split(' ').find(|word| usage::LATER.contains(word)).unwrap();
            let hint = format!("hint: ksync --help lists the verbs; an entry of that name here is ./{verb}.");
            assert_eq!(refused(line), format!("ksync: ksync has no verb {verb} yet\n  {hint}"));
        }
        assert_eq!(sync("ksync ./verify b").endpoints, ["./verify", "b"]);
        assert_eq!(sync("ksync a verify").endpoints, ["a", "verify"]);
        // This package has such a directory.
        assert_eq!(sync("ksync src b").endpoints, ["src", "b"]);
    }

    #[test]
    fn help_is_a_verb_of_its_own() {
        assert!(matches!(parsed("ksync help"), Ok(Mode::Show(text)) if text.contains("Examples:")));
        assert!(matches!(parsed("ksync help proxy"), Ok(Mode::Show(text)) if text.contains("ksync proxy")));
        let nested = parsed("ksync help session create");
        assert!(matches!(nested, Ok(Mode::Show(text)) if text.contains("ksync session create")));
    }

    #[test]
    fn the_endpoint_behind_i_is_known() {
        let behind = |line: &str| sync(line).behind_i;
        for line in ["ksync -i k a b", "ksync -avi k a b", "ksync a -i k b", "ksync --itemize-changes k a b"]
        {
            assert_eq!(behind(line).as_deref(), Some("k".as_ref()), "{line}");
        }
        for line in ["ksync k a b", "ksync -iv k a b", "ksync -i -n k a b", "ksync k a b -i"] {
            assert_eq!(behind(line), None, "{line}");
        }
    }
}
