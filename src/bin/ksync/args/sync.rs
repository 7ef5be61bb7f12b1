//! The options of a sync, in the groups of the help.

use std::ffi::OsString;
use std::path::PathBuf;

#[cfg(feature = "sandbox")]
use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};

use ksync::monitor::Warning;
use ksync::tree::transfer_rules::{Proof, TransferRules};
use ksync::wire::hello::Undo;

use crate::accepted::Accepted;
use crate::args::backup::BackupArgs;
use crate::args::basis::{BasisArgs, InPlaceArgs};
use crate::args::metadata::MetadataArgs;
use crate::args::seconds;
use crate::args::shaping::Shaping;
use crate::config::ProjectDestination;
use crate::format::Format;
use crate::plan::Plan;
use crate::rsh::RsyncPath;
use crate::rules::RuleSource;
use crate::size::{rate, size};
use crate::usage::number;
use crate::verbs::KeepArgs;

/// The options of a sync.
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    #[arg(value_name = "ENDPOINT", hide = true)]
    pub(crate) endpoints: Vec<OsString>,
    #[command(flatten)]
    pub(crate) what: WhatArgs,
    #[command(flatten)]
    pub(crate) metadata: MetadataArgs,
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    /// The rules in the order of the command line, since the first that matches wins.
    #[arg(skip)]
    pub(crate) rules: Vec<RuleSource>,
    /// The project's destination, if it counts.
    #[arg(skip)]
    pub(crate) project: Option<ProjectDestination>,
    /// The endpoint right behind `-i`, which ssh takes for a key.
    #[arg(skip)]
    pub(crate) behind_i: Option<OsString>,
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    /// Warnings about files with settings.
    #[arg(skip)]
    pub(crate) warnings: Vec<Warning>,
    /// True for `ksync verify`: the endpoints are compared, and nothing is changed.
    #[arg(skip)]
    pub(crate) is_verification: bool,
    /// The plan of `ksync apply`.
    #[arg(skip)]
    pub(crate) planned: Option<Box<Plan>>,
    /// The request of `ksync undo`.
    #[arg(skip)]
    pub(crate) undo: Undo,
    /// The options that a plan keeps, if one is made.
    #[arg(skip)]
    pub(crate) shaping: Shaping,
    /// Options that rsync users give, and that need no field here.
    #[arg(skip)]
    pub(crate) accepted: Accepted,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sync")]
pub(crate) struct WhatArgs {
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// With -n, write the plan to FILE; ksync apply FILE carries it out, or nothing (exit 26)
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Delete entries of DEST that SOURCE does not have, after everything else
    #[arg(long, visible_alias = "del",
          aliases = ["delete-before", "delete-during", "delete-delay"])]
    pub(crate) delete: bool,
    /// The same, and delete excluded entries of DEST too
    #[arg(long)]
    pub(crate) delete_excluded: bool,
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
    /// Remove files and links from SOURCE once DEST has them, flushed to the disk; implies --fsync
    #[arg(long, alias = "remove-sent-files")]
    pub(crate) remove_source_files: bool,
    #[command(flatten)]
    pub(crate) backups: BackupArgs,
    #[command(flatten)]
    pub(crate) bases: BasisArgs,
    #[command(flatten)]
    pub(crate) in_place: InPlaceArgs,
    /// Keep what is replaced or deleted in .ksync of DEST: ksync undo takes the run back. Not with
    /// --watch
    #[arg(long)]
    pub(crate) undoable: bool,
    /// Keep that of the last N runs [default: 5]
    #[arg(long, value_name = "N", value_parser = number(1..=1000u32, "a number of runs, 1 to 1000"), allow_negative_numbers = true)]
    pub(crate) undo_keep: Option<u32>,
    /// Compare by content, not by size and time
    #[arg(short = 'c', long)]
    pub(crate) checksum: bool,
    #[command(flatten)]
    pub(crate) transfer: TransferArgs,
    /// Times may differ by N seconds; by default by what DEST's filesystem rounds off, -1 is exact
    #[arg(short = '@', long, value_name = "N", value_parser = number(-1..=86_400i64, "seconds, -1 to 86400"),
          allow_hyphen_values = true)]
    pub(crate) modify_window: Option<i64>,
    /// Then hash all files on both sides, and list what differs (exit 44)
    #[arg(long)]
    pub(crate) verify: bool,
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
    pub(crate) archive: bool,
    #[arg(short = 'r', long, hide = true)]
    pub(crate) recursive: bool,
    /// List SOURCE, as a SOURCE without a DEST does: one level, all levels with -r
    #[arg(long)]
    pub(crate) list_only: bool,
    #[arg(short = 't', long, hide = true)]
    times: bool,
    /// Copy links that are absolute or lead out of the tree from the VM too
    #[arg(short = 'l', long, overrides_with_all = ["safe_links", "no_links"])]
    pub(crate) links: bool,
    /// Exclude links that are absolute or lead out of the tree: what a pull does by itself
    #[arg(long, overrides_with_all = ["links", "no_links"])]
    pub(crate) safe_links: bool,
    /// Copy no links; what DEST has under their names stays
    #[arg(long, alias = "no-l", overrides_with_all = ["links", "safe_links"])]
    pub(crate) no_links: bool,
    /// Copy what links lead to, and not the links. With --watch, this and the next two imply --poll
    #[arg(short = 'L', long)]
    pub(crate) copy_links: bool,
    /// Copy what absolute links lead to, and links that lead out of SOURCE
    #[arg(long)]
    pub(crate) copy_unsafe_links: bool,
    /// Copy the directories that links lead to, and not these links
    #[arg(short = 'k', long)]
    pub(crate) copy_dirlinks: bool,
    #[arg(long, hide = true)]
    partial: bool,
}

/// The options that pass over offered entries, with rsync's meanings.
#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// Pass over files that are newer in DEST
    #[arg(short = 'u', long)]
    pub(crate) update: bool,
    /// Update only what DEST has, and create nothing
    #[arg(long, alias = "ignore-non-existing")]
    pub(crate) existing: bool,
    /// Create only what DEST lacks, and update no file and no link
    #[arg(long)]
    pub(crate) ignore_existing: bool,
    /// Compare by size alone
    #[arg(long)]
    pub(crate) size_only: bool,
    /// Compare the content of each file, also of one whose size and time are equal
    #[arg(short = 'I', long)]
    pub(crate) ignore_times: bool,
    /// Pass over files of more than SIZE bytes; rsync's units: 1.5m, 100KiB, 1GB-1
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) max_size: Option<u64>,
    /// Pass over files of less than SIZE bytes
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) min_size: Option<u64>,
    /// Create no directories that hold nothing but directories, and with --delete delete them
    #[arg(short = 'm', long)]
    pub(crate) prune_empty_dirs: bool,
}

impl TransferArgs {
    /// The transfer rules; as in rsync, `--size-only` wins over `--ignore-times`.
    pub(crate) fn rules(&self, append: bool) -> TransferRules {
        TransferRules {
            update: self.update,
            existing: self.existing,
            ignore_existing: self.ignore_existing,
            size_max: self.max_size,
            size_min: self.min_size,
            prune_empty: self.prune_empty_dirs,
            proof: match (self.size_only, self.ignore_times) {
                (true, _) => Proof::Size,
                (false, true) => Proof::None,
                (false, false) => Proof::Time,
            },
            append,
        }
    }
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
    /// Add a rule of rsync's filter language: '- *.o', 'P logs/', ': .rsync-filter', '. FILE'
    #[arg(short = 'f', long, value_name = "RULE", allow_hyphen_values = true, action = ArgAction::Append)]
    filter: Vec<OsString>,
    /// Read the .rsync-filter of each directory; twice also excludes these files
    #[arg(short = 'F', num_args = 0, default_missing_value = "", action = ArgAction::Append)]
    per_directory: Vec<OsString>,
    /// Exclude what CVS ignores: *.o, *~, .git/ and such, and what each .cvsignore names
    #[arg(short = 'C', long)]
    pub(crate) cvs_exclude: bool,
    /// Exclude what the .gitignore files of SOURCE name, as git does
    #[arg(long)]
    pub(crate) gitignore: bool,
    /// Copy only what FILE lists, a path below SOURCE per line; - is stdin. A directory comes
    /// without its content, with one level of it if a slash ends it, and with all of it with -r
    #[arg(long, value_name = "FILE")]
    pub(crate) files_from: Option<OsString>,
    /// Keep the path of each SOURCE below DEST, from its start or from a /./ inside on
    #[arg(short = 'R', long)]
    pub(crate) relative: bool,
    /// The entries of --files-from and the rules in files end at a NUL, and not with their line
    #[arg(short = '0', long)]
    pub(crate) from0: bool,
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
    /// List each change in this form, with rsync's escapes, as in '%o %n'
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    pub(crate) out_format: Option<Format>,
    /// Add each change and problem to FILE, with its time in UTC
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<OsString>,
    /// The form of the changes in --log-file; by default '%i %n%L'
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    pub(crate) log_file_format: Option<Format>,
    /// Print one JSON object per line, for programs
    #[arg(long)]
    pub(crate) json: bool,
    /// Show progress (the default)
    #[arg(long, overrides_with = "no_progress", hide = true)]
    progress: bool,
    /// Show no progress
    #[arg(long, overrides_with_all = ["progress", "partial_progress"])]
    pub(crate) no_progress: bool,
    /// List each change, as -v, and show progress
    #[arg(short = 'P', overrides_with = "no_progress")]
    pub(crate) partial_progress: bool,
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
    pub(crate) human_readable: bool,
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
    /// Give up connecting after this long: 30; 0 is never
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), allow_negative_numbers = true)]
    pub(crate) contimeout: Option<u64>,
    /// Send and receive at most RATE a second, all lanes together; in KiB, or with a unit as in
    /// 1.5m; 0 is any rate
    #[arg(long, value_name = "RATE", value_parser = rate, allow_hyphen_values = true, overrides_with = "no_bwlimit")]
    pub(crate) bwlimit: Option<u64>,
    #[arg(long, hide = true, overrides_with = "bwlimit")]
    no_bwlimit: bool,
    /// Run the agent on the other machine as root, by sudo -n; --rsync-path="sudo rsync" does too
    #[arg(long)]
    pub(crate) sudo: bool,
    #[arg(long, value_name = "PROGRAM", hide = true, value_parser = RsyncPath::parse)]
    pub(crate) rsync_path: Option<RsyncPath>,
    /// The ssh command for an SSH host, as in 'ssh -p PORT -i FILE'; RSYNC_RSH is ignored
    #[arg(short = 'e', long, value_name = "SSH", allow_hyphen_values = true)]
    pub(crate) rsh: Option<OsString>,
    /// Reach an SSH host by IPv4 only, as ssh -4 does
    #[arg(short = '4', long, overrides_with = "ipv6")]
    pub(crate) ipv4: bool,
    /// Reach it by IPv6 only
    #[arg(short = '6', long, overrides_with = "ipv4")]
    pub(crate) ipv6: bool,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Settings (KSYNC_<OPTION>, .ksync.toml, config.toml; see ksync config)")]
pub(crate) struct ConfigurationArgs {
    /// Read neither .ksync.toml here nor the config.toml of this user
    #[arg(long)]
    pub(crate) no_config: bool,
}
