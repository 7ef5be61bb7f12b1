//! The command line: options and their help. Nothing is read or looked up here: see `request`.

use std::ffi::OsString;
#[cfg(feature = "sandbox")]
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::rules::{self, RuleSource};
use crate::verbs::{DoctorArgs, FlushArgs, ProxyArgs, SessionArgs, SshArgs};

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
  ksync session create                        a browser VM, by KERNEL_API_KEY
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
each with a --help of its own: ksync session, ssh, proxy, doctor, flush,
sandbox.
";

#[derive(Debug, Parser)]
#[command(
    name = "ksync",
    version,
    about = "Makes DEST a copy of SOURCE and sends only what changed.",
    override_usage = "ksync [OPTIONS] SOURCE... DEST\n       ksync session|ssh|proxy|doctor|flush|sandbox ...",
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
    /// Runs a command or a shell on a session's VM
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
    /// Runs a VM emulator on this machine until Ctrl-C: an SSH server behind a WebSocket. Beside it
    /// runs an emulator of the platform's API, with VMs of its own
    #[cfg(feature = "sandbox")]
    #[command(hide = true, max_term_width = 80)]
    Sandbox(SandboxArgs),
}

/// The options of a sync.
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    #[arg(value_name = "PLACE", hide = true)]
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
    #[arg(long, value_name = "N", value_parser = max_delete, allow_hyphen_values = true)]
    pub(crate) max_delete: Option<u64>,
    /// Allow deletions in DEST although it is a home or a system directory; PATH must lead to it
    #[arg(long, value_name = "PATH", action = ArgAction::Append)]
    pub(crate) force_delete_in: Vec<OsString>,
    /// Compare by content, not by size and time
    #[arg(short = 'c', long)]
    pub(crate) checksum: bool,
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
    #[arg(short = 'l', long, hide = true)]
    links: bool,
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
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(crate) debounce: u32,
    /// Also fetch files that a browser is still downloading
    #[arg(long, requires = "watch")]
    pub(crate) partial_downloads: bool,
    /// Run CMD on the VM after a sync that changed something there; with --watch, after each such
    /// round
    #[arg(long, value_name = "CMD", allow_hyphen_values = true)]
    pub(crate) exec: Option<String>,
    /// Run CMD on this machine, after a sync that changed something here
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
    /// Do not keep the session active while ksync works
    #[arg(long)]
    pub(crate) no_keep_alive: bool,
    /// Maximum channels for an upload, 1 to 8; by default as many as pay
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) connections: Option<u8>,
    /// Give up after this long without a sign of the other side: 60, with --watch 30; 0 is never
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Reconnect at most N times in a row without progress, after a working connection is lost; 0
    /// is never
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) retries: u32,
    /// Give up connecting after this long; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) contimeout: u64,
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
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// The home directory in the VM; by default one in ksync's state directory
    #[arg(long, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Speed of the sessions' clock: its seconds per real second
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub(crate) time_scale: f64,
    /// Print one line of JSON when the VM answers
    #[arg(long)]
    pub(crate) json: bool,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// Parses the limit of `--max-delete`.
fn max_delete(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "--max-delete takes a number of entries, 0 or more")
}

/// Parses a command line. The error is a text for the user.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Mode, String> {
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.sync.rules = rules::in_order(&matches);
        Ok(cli)
    });
    match parsed {
        Ok(Cli { verb: Some(Verb::Session(args)), .. }) => Ok(Mode::Session(args)),
        Ok(Cli { verb: Some(Verb::Ssh(args)), .. }) => Ok(Mode::Ssh(args)),
        Ok(Cli { verb: Some(Verb::Doctor(args)), .. }) => Ok(Mode::Doctor(args)),
        Ok(Cli { verb: Some(Verb::Proxy(args)), .. }) => Ok(Mode::Proxy(args)),
        Ok(Cli { verb: Some(Verb::Flush(args)), .. }) => Ok(Mode::Flush(args)),
        #[cfg(feature = "sandbox")]
        Ok(Cli { verb: Some(Verb::Sandbox(args)), .. }) => Ok(Mode::Sandbox(args)),
        Ok(Cli { sync, .. }) if sync.output.human_readable && sync.endpoints.is_empty() => {
            Ok(Mode::Show(command.render_help().to_string()))
        }
        Ok(Cli { sync, .. }) => Ok(Mode::Sync(Box::new(sync))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Mode::Show(error.render().to_string())),
            _ => Err(error.render().to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Mode, String> {
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
            let told = parsed(&format!("ksync {wrong} a b")).unwrap_err();
            assert!(told.contains("--max-delete takes a number of entries, 0 or more"), "{told}");
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

    #[test]
    fn an_unknown_option_is_an_error_that_names_it() {
        assert!(parsed("ksync --frobnicate a b").unwrap_err().contains("--frobnicate"));
        for number in ["0", "9", "x", "-1"] {
            let told = parsed(&format!("ksync -j={number} a b")).unwrap_err();
            assert!(told.contains("--connections <N>"), "{told}");
        }
    }
}
