//! `ksync apply`: the sync that a plan describes.

use std::ffi::{OsStr, OsString};

use clap::{Args, Command};

use crate::args::shaping::drop_from;
use crate::args::sync::ConfigurationArgs;
use crate::args::{ConnectionArgs, Mode, OutputArgs, parse_with};
use crate::config::Settings;
use crate::plan::Plan;
use crate::report::CliError;

/// Settings that would make another run of it.
const NOT_FOR_PLANS: [&str; 4] = ["dry-run", "plan", "watch", "list-only"];

/// The paragraph about what a plan holds.
const HELD: &str = "\
The plan holds the endpoints, the options that shape the result, and the state of
both sides. Consent, keys, commands and the way to the other machine come from
this command line, as for any other run. Deletions that wait for consent stop all
of it (25). A plan that was edited, or made by another user or machine, is refused.";

/// The options of `ksync apply`: those of a sync that do not shape its result.
#[derive(Debug, Args)]
#[command(after_help = HELD, version)]
// Each is an option of its own.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct ApplyArgs {
    /// The file that ksync -n --plan FILE wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: OsString,
    /// Consent to every deletion that the plan lists
    #[arg(short = 'y', long)]
    yes: bool,
    /// Allow deletions in DEST although it is a home or a system directory; PATH must lead to it
    #[arg(long, value_name = "PATH", action = clap::ArgAction::Append)]
    force_delete_in: Vec<OsString>,
    /// Then hash all files on both sides, and list what differs (exit 44)
    #[arg(long)]
    verify: bool,
    /// Flush to the disk before reporting success, so the result survives a power cut
    #[arg(long)]
    fsync: bool,
    /// Never compress
    #[arg(long)]
    no_compress: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// The sync that a plan describes. `args` is a command line that [`ApplyArgs`] accepts.
pub(super) fn as_sync(
    file: &OsStr,
    args: &[OsString],
    load: &dyn Fn(&Command, bool) -> Result<Settings, CliError>,
) -> Result<Mode, CliError> {
    let plan = Plan::read(file)?;
    let mut typed = args.iter().skip(2).filter(|arg| *arg != "--").cloned().collect::<Vec<_>>();
    if let Some(at) = typed.iter().position(|arg| arg == file) {
        typed.remove(at);
    }
    let line: Vec<OsString> = args
        .first()
        .cloned()
        .into_iter()
        .chain(plan.options().iter().map(OsString::from))
        .chain(typed)
        .chain([OsString::from("--")])
        .chain(plan.endpoints())
        .collect();
    let load = |command: &Command, with_files: bool| {
        let mut settings = load(command, with_files)?;
        drop_from(&mut settings, &NOT_FOR_PLANS);
        Ok(settings)
    };
    let mut mode = parse_with(line, &load)?;
    if let Mode::Sync(sync) = &mut mode {
        sync.planned = Some(Box::new(plan));
    }
    Ok(mode)
}
