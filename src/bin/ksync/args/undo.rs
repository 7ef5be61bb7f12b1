//! `ksync undo`: a sync whose destination knows the tree to make.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Args, Command};
use ksync::sync::undo;
use ksync::wire::hello::Undo;

use crate::args::shaping::drop_from;
use crate::args::sync::ConfigurationArgs;
use crate::args::{ConnectionArgs, Mode, OutputArgs, parse_with};
use crate::config::Settings;
use crate::report::CliError;

/// Settings of other runs.
const OF_OTHERS: [&str; 6] = ["dry-run", "watch", "exec", "on-change", "verify", "undoable"];

/// The flag that a sync does not have.
const LIST: &str = "--list";

/// The paragraph about what an undo does.
const DONE: &str = "\
DEST is the last destination of a run with --undoable from this machine, unless
it is named. RUN is a number of --list; without one, the last run. What changed
since that run stays as it is, and is reported (23). A run that was killed can be
undone, too. An undone run is forgotten, unless something of it stays.";

/// The options of `ksync undo`.
#[derive(Debug, Args)]
#[command(after_help = DONE, version)]
pub(crate) struct UndoArgs {
    /// The destination of the run, and the run's number
    #[arg(value_names = ["DEST", "RUN"], num_args = 0..=2)]
    endpoints: Vec<OsString>,
    /// List the runs that can be undone, the last one first
    #[arg(long)]
    list: bool,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Flush to the disk before reporting success, so the result survives a power cut
    #[arg(long)]
    fsync: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

impl UndoArgs {
    /// The destination and the run.
    fn target(&self) -> Result<(OsString, Option<u64>), CliError> {
        let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<u64>().ok());
        let last = || {
            undo::last().ok_or_else(|| {
                CliError::usage(
                    "no run from this machine can be undone: none had --undoable",
                    "Name the destination of the run: ksync undo DEST.",
                )
            })
        };
        match self.endpoints.as_slice() {
            [] => Ok((last()?, None)),
            [one] => match number(one).filter(|_| !Path::new(one).exists()) {
                Some(run) => Ok((last()?, Some(run))),
                None => Ok((one.clone(), None)),
            },
            [destination, run, ..] => match number(run) {
                Some(run) => Ok((destination.clone(), Some(run))),
                None => Err(CliError::usage("RUN is a number", "ksync undo --list DEST lists the runs.")),
            },
        }
    }
}

/// The sync that does it. `args` is a command line that [`UndoArgs`] accepts.
pub(super) fn as_sync(
    typed: &UndoArgs,
    args: &[OsString],
    load: &dyn Fn(&Command, bool) -> Result<Settings, CliError>,
) -> Result<Mode, CliError> {
    let (destination, run) = typed.target()?;
    let mut options: Vec<OsString> = args.iter().skip(2).filter(|arg| *arg != "--").cloned().collect();
    for own in typed.endpoints.iter().map(OsString::as_os_str).chain([OsStr::new(LIST)]) {
        if let Some(at) = options.iter().position(|arg| arg == own) {
            options.remove(at);
        }
    }
    let ends = [OsString::from("--"), undo::empty_directory()?.into_os_string(), destination];
    let list = typed.list.then(|| OsString::from("--dry-run"));
    let line = args.first().cloned().into_iter().chain(list).chain(options).chain(ends);
    let load = |command: &Command, with_files: bool| {
        let mut settings = load(command, with_files)?;
        drop_from(&mut settings, &OF_OTHERS);
        Ok(settings)
    };
    let mut mode = parse_with(line, &load)?;
    if let Mode::Sync(sync) = &mut mode {
        sync.undo = if typed.list { Undo::List } else { Undo::Restore(run) };
    }
    Ok(mode)
}
