//! What can be typed. Nothing is read and nothing is looked up here: see `request`.

use std::ffi::OsString;
#[cfg(feature = "sandbox")]
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::rules::{self, Source};
use crate::verbs::{DoctorArgs, FlushArgs, ProxyArgs, SessionArgs, SshArgs};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Mode {
    /// A text: help or the version.
    Show(String),
    /// A sync.
    Sync(Box<SyncArgs>),
    /// Something with sessions.
    Session(SessionArgs),
    /// A shell or a command in a session.
    Ssh(SshArgs),
    /// An examination of a session.
    Doctor(DoctorArgs),
    /// A pipe to a bridge.
    Proxy(ProxyArgs),
    /// A wait for a watch.
    Flush(FlushArgs),
    /// The stand-in VM in the foreground.
    #[cfg(feature = "sandbox")]
    Sandbox(SandboxArgs),
}

/// Help that fits a screen of 80 columns and starts with what most people look for.
const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Examples:
  ksync ./site sandbox:/tmp/site              try it: a stand-in VM, here
  ksync -n --delete ./site me@host:/srv/site  what would change over there?
  ksync -w ./site session:/srv/site           and each save, a moment later
  ksync session create                        a browser VM, by KERNEL_API_KEY
  ksync ./site session:/tmp/site              into it
  ksync wss://host:2222/tmp/out ./out         from a VM to this machine

Places:
  ./dir  /dir             on this machine
  sandbox:/dir            in the stand-in VM that ksync carries
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
    /// Makes, lists, sets up and deletes Kernel sessions
    #[command(hide = true, max_term_width = 80)]
    Session(SessionArgs),
    /// Runs a command or a shell on a session's VM
    #[command(hide = true, max_term_width = 80)]
    Ssh(SshArgs),
    /// Tries each step from the API key to a file that goes there and back
    #[command(hide = true, max_term_width = 80)]
    Doctor(DoctorArgs),
    /// Joins standard input and output to a bridge: a ProxyCommand for ssh, scp, sftp and rsync
    #[command(hide = true, max_term_width = 80)]
    Proxy(ProxyArgs),
    /// Waits until everything that was saved so far is in its copy, where ksync --watch keeps one
    #[command(hide = true, max_term_width = 80)]
    Flush(FlushArgs),
    /// Runs a stand-in VM on this machine until Ctrl-C, an SSH server behind a WebSocket; and beside it a stand-in
    /// for the platform's API, with VMs of its own
    #[cfg(feature = "sandbox")]
    #[command(hide = true, max_term_width = 80)]
    Sandbox(SandboxArgs),
}

/// The options of a sync.
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    #[arg(value_name = "PLACE", hide = true)]
    pub(crate) places: Vec<OsString>,
    #[command(flatten)]
    pub(crate) what: WhatArgs,
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) way: WayArgs,
    #[command(flatten)]
    pub(crate) foreign: ForeignArgs,
    /// The rules in the order of the command line, since the first that matches wins.
    #[arg(skip)]
    pub(crate) rules: Vec<Source>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is done")]
pub(crate) struct WhatArgs {
    /// Show what would be done and change nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Remove from DEST what SOURCE does not have, once all else is in place
    #[arg(long, visible_alias = "del",
          aliases = ["delete-before", "delete-during", "delete-delay", "delete-after"])]
    pub(crate) delete: bool,
    /// Copy directories in which SOURCE has another filesystem mounted without what is in them
    #[arg(short = 'x', long)]
    pub(crate) one_file_system: bool,
    /// Delete without a question: whatever --delete finds
    #[arg(short = 'y', long)]
    pub(crate) yes: bool,
    /// Delete at most N entries; if there are more, delete none (exit 25)
    #[arg(long, value_name = "N", value_parser = max_delete, allow_hyphen_values = true)]
    pub(crate) max_delete: Option<u64>,
    /// Delete in DEST even if it is a home or a directory of the system: PATH must
    /// lead to it
    #[arg(long, value_name = "PATH", action = ArgAction::Append)]
    pub(crate) force_delete_in: Vec<OsString>,
    /// Compare by content, not by size and time
    #[arg(short = 'c', long)]
    pub(crate) checksum: bool,
    /// Done means on the disk: what is reported survives a power cut
    #[arg(long)]
    pub(crate) fsync: bool,
    /// Compress on the way: on by itself, given up where it does not pay
    #[arg(short = 'z', long, overrides_with = "no_compress")]
    pub(crate) compress: bool,
    /// Never compress
    #[arg(long, overrides_with = "compress")]
    pub(crate) no_compress: bool,
    /// What ksync always does: directories, links, modes and times are kept
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
#[command(next_help_heading = "What takes part (rsync's patterns, the first that matches wins)")]
pub(crate) struct WhichArgs {
    /// Leave out what matches; a leading / is SOURCE, or DEST if several SOURCEs go into it
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true, action = ArgAction::Append)]
    exclude: Vec<OsString>,
    /// Do not leave out what matches
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true, action = ArgAction::Append)]
    include: Vec<OsString>,
    /// Patterns from a file, one a line; - is stdin
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    exclude_from: Vec<OsString>,
    /// The same for --include
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    include_from: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub(crate) struct WatchArgs {
    /// Keep DEST a copy: what is saved is there a moment later
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
    /// Look for changes instead of being told of them
    #[arg(long, requires = "watch")]
    pub(crate) poll: bool,
    /// For how long nothing may have been touched before it is looked at
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(crate) debounce: u32,
    /// Also fetch what a browser has not finished downloading
    #[arg(long, requires = "watch")]
    pub(crate) partial_downloads: bool,
    /// Run CMD on the VM when something has changed there; with --watch, each time
    #[arg(long, value_name = "CMD", allow_hyphen_values = true)]
    pub(crate) exec: Option<String>,
    /// The same on this machine, when something has changed here
    #[arg(long, value_name = "CMD", allow_hyphen_values = true, conflicts_with = "exec")]
    pub(crate) on_change: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is shown")]
pub(crate) struct OutputArgs {
    /// List each change
    #[arg(short = 'v', long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// List each change in rsync's eleven letters
    #[arg(short = 'i', long)]
    pub(crate) itemize_changes: bool,
    /// Only errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Numbers at the end
    #[arg(long)]
    pub(crate) stats: bool,
    /// One JSON object a line instead, for programs
    #[arg(long)]
    pub(crate) json: bool,
    /// Show progress: on by itself
    #[arg(long, overrides_with = "no_progress", hide = true)]
    progress: bool,
    /// Show no progress
    #[arg(long, overrides_with_all = ["progress", "partial_progress"])]
    pub(crate) no_progress: bool,
    #[arg(short = 'P', overrides_with = "no_progress", hide = true)]
    partial_progress: bool,
    /// What ksync always does: it uses no colours
    #[arg(long, hide = true)]
    no_color: bool,
    /// This text
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The version
    #[arg(short = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// This text, when alone; else what ksync always does: numbers for people.
    #[arg(short = 'h', long, hide = true)]
    human_readable: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "The way there")]
pub(crate) struct WayArgs {
    /// A private key to log in with; may be given several times
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    pub(crate) identity: Vec<PathBuf>,
    /// What `kernel browsers ssh ID --setup-only -o json` prints; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) setup: Option<PathBuf>,
    /// The only host key to accept: "ssh-ed25519 AAAA..."
    #[arg(long, value_name = "KEY")]
    pub(crate) host_key: Option<String>,
    /// Further roots to trust for wss://
    #[arg(long, value_name = "FILE", env = "KSYNC_CA_CERT", hide_env_values = true)]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Let the session's clock run while ksync works
    #[arg(long)]
    pub(crate) no_keep_alive: bool,
    /// Channels that may carry an upload, 1 to 8: by itself, as many as pay
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) connections: Option<u8>,
    /// Give up when nothing comes for so long: 60, with --watch 30; 0 is never
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Connect again so often, if a connection that worked is lost and nothing comes of it; 0 is
    /// never
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) retries: u32,
    /// Give up connecting after so long; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) contimeout: u64,
}

/// What rsync has and ksync has not, named so that the answer can say what to use instead.
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
    /// Where to listen: a loopback address, with port 0 for any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// The home directory of what runs there; without it, one in ksync's state directory
    #[arg(long, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// How many seconds of the sessions' clock pass in a real one
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub(crate) time_scale: f64,
    /// Print one line of JSON once it answers
    #[arg(long)]
    pub(crate) json: bool,
    /// This text
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// Parses the limit of `--max-delete`.
fn max_delete(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "--max-delete takes a number of entries, 0 or more")
}

/// Reads a command line. The error is a text for eyes.
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
        Ok(Cli { sync, .. }) if sync.output.human_readable && sync.places.is_empty() => {
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
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_hand_used_to_rsync_types_is_understood() {
        let args = sync("ksync -avzPh --delete-after -e x -n --itemize-changes a b");
        assert_eq!(args.places, ["a", "b"]);
        assert!(args.what.delete && args.what.dry_run && args.output.itemize_changes);
        assert_eq!((args.output.verbose, args.foreign.rsh), (1, Some("x".into())));
        for line in ["ksync -rtlp a b", "ksync -aa -vv a b", "ksync --del a b", "ksync a b --partial -i"] {
            assert_eq!(sync(line).places, ["a", "b"], "{line}");
        }
    }

    #[test]
    fn of_two_that_contradict_each_other_the_last_counts() {
        assert!(sync("ksync -z --no-compress a b").what.no_compress);
        assert!(!sync("ksync --no-compress -z a b").what.no_compress);
        assert!(sync("ksync -P --no-progress a b").output.no_progress);
        assert!(!sync("ksync --no-progress --progress a b").output.no_progress);
        assert!(!sync("ksync --no-progress -P a b").output.no_progress);
    }

    #[test]
    fn how_many_may_be_deleted_is_a_number_from_zero_on() {
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
        assert_eq!(sync("ksync a sandbox").places, ["a", "sandbox"]);
        assert_eq!(sync("ksync ./sandbox b").places, ["./sandbox", "b"]);
        assert_eq!(sync("ksync -- -a -b").places, ["-a", "-b"]);
    }

    #[test]
    fn h_alone_is_help_and_with_others_nothing_new() {
        assert!(matches!(parsed("ksync -h"), Ok(Mode::Show(text)) if text.contains("Examples:")));
        assert!(matches!(parsed("ksync --help"), Ok(Mode::Show(text)) if text.contains("Examples:")));
        assert!(matches!(parsed("ksync sandbox --help"), Ok(Mode::Show(text)) if text.contains("--listen")));
        assert!(matches!(parsed("ksync --version"), Ok(Mode::Show(text)) if text.starts_with("ksync ")));
        assert_eq!(sync("ksync -h a b").places, ["a", "b"]);
    }

    #[test]
    fn help_fits_eighty_columns() {
        let Ok(Mode::Show(text)) = parsed("ksync --help") else { panic!("no help") };
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn what_is_unknown_is_an_error_that_names_it() {
        assert!(parsed("ksync --frobnicate a b").unwrap_err().contains("--frobnicate"));
        for number in ["0", "9", "x", "-1"] {
            let told = parsed(&format!("ksync -j={number} a b")).unwrap_err();
            assert!(told.contains("--connections <N>"), "{told}");
        }
    }
}
