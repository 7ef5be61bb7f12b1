//! `ksync verify`: a dry run that compares contents, and calls the changes differences.

use std::ffi::OsString;

use clap::{Args, Command};

use crate::args::metadata::MetadataArgs;
use crate::args::sync::{ConfigurationArgs, WhichArgs};
use crate::args::{ConnectionArgs, Mode, OutputArgs, parse_with};
use crate::config::Settings;
use crate::report::CliError;
use crate::usage::number;

/// The flag that a sync does not have.
const IGNORE_EXTRA: &str = "--ignore-extra";

/// The paragraph about the result.
const RESULT: &str = "\
Both sides hash the whole content of each file; no earlier result is believed.
Each difference is a line in the letters of ksync -i: what a run from A to B would
change. *extra is an entry that only B has. Exit status: 0 equal, 44 different,
23 some entries could not be compared.";

/// The options of `ksync verify`. They have the names, types and effects of those of a sync: the
/// command line is parsed once more as one, with the settings.
#[derive(Debug, Args)]
#[command(after_help = RESULT, version)]
// Each is an option of its own.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct VerifyArgs {
    /// The two endpoints; several As are compared with what has their names in B
    #[arg(value_names = ["A", "B"], num_args = 2.., required = true)]
    endpoints: Vec<OsString>,
    /// Report no entries that only B has
    #[arg(long)]
    ignore_extra: bool,
    /// Do not descend into other filesystems that are mounted in A
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Times may differ by N seconds; by default by what B's filesystem rounds off, -1 is exact
    #[arg(short = '@', long, value_name = "N", value_parser = number(-1..=86_400i64, "seconds, -1 to 86400"),
          allow_hyphen_values = true)]
    modify_window: Option<i64>,
    /// Compare links that are absolute or lead out of the tree on a VM too
    #[arg(short = 'l', long, overrides_with = "safe_links")]
    links: bool,
    /// Pass over links that are absolute or lead out of the tree
    #[arg(long, overrides_with = "links")]
    safe_links: bool,
    #[arg(short = 'a', long, hide = true)]
    archive: bool,
    #[arg(short = 'r', long, hide = true)]
    recursive: bool,
    #[arg(short = 't', long, hide = true)]
    times: bool,
    #[arg(short = 'c', long, hide = true)]
    checksum: bool,
    #[arg(short = 'n', long, hide = true)]
    dry_run: bool,
    #[command(flatten)]
    metadata: MetadataArgs,
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// The sync that stands for a verification. `args` is a command line that [`VerifyArgs`] accepts.
pub(super) fn as_sync(
    args: &[OsString],
    load: &dyn Fn(&Command, bool) -> Result<Settings, CliError>,
) -> Result<Mode, CliError> {
    let (program, rest) = args.split_at(args.len().min(1));
    let rest = rest.get(1..).unwrap_or_default();
    let end = rest.iter().position(|arg| arg == "--").unwrap_or(rest.len());
    let (options, behind) = rest.split_at(end);
    let has_extra = !options.iter().any(|arg| arg == IGNORE_EXTRA);
    let delete = if has_extra { "--delete" } else { "--no-delete" };
    let typed = options.iter().filter(|arg| *arg != IGNORE_EXTRA).chain(behind).cloned();
    let own = ["--dry-run", "--checksum", delete, "--no-delete-excluded", "--no-verify"].map(OsString::from);
    let line = program.iter().cloned().chain(own).chain(typed);
    let mut mode = parse_with(line, load)?;
    if let Mode::Sync(sync) = &mut mode {
        sync.is_verification = true;
        // Settings of other runs, which change something.
        (sync.watch.watch, sync.watch.exec, sync.watch.on_change) = (false, None, None);
    }
    Ok(mode)
}
