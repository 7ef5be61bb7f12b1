//! The command line: options and their help. Nothing is read or looked up here: see `request`.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, ProjectDestination, Settings};
use crate::report::CliError;
use crate::usage::{self, number};
use crate::verbs::{
    CompletionsArgs, ConfigArgs, DoctorArgs, FlushArgs, KeepVerbArgs, ManArgs, ProxyArgs, SchemaArgs,
    SessionArgs, SshArgs,
};
use crate::{accepted, manual, rules};

mod apply;
mod backup;
mod basis;
pub(crate) mod help;
mod metadata;
#[cfg(feature = "sandbox")]
mod sandbox;
pub(crate) mod shaping;
mod sync;
#[cfg(test)]
mod tests;
mod undo;
mod verify;

use apply::ApplyArgs;
#[cfg(feature = "sandbox")]
pub(crate) use sandbox::SandboxArgs;
pub(crate) use sync::{ConnectionArgs, OutputArgs, SyncArgs, WatchArgs, WhatArgs};
use undo::UndoArgs;
use verify::VerifyArgs;

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
    /// Show the settings.
    Config(ConfigArgs),
    /// Run the VM emulator in the foreground.
    #[cfg(feature = "sandbox")]
    Sandbox(SandboxArgs),
}

#[derive(Debug, Parser)]
#[command(
    name = "ksync",
    version,
    about = "Makes DEST a copy of SOURCE and sends only what changed.",
    override_usage = "ksync [OPTIONS] SOURCE... DEST\n       ksync VERB ...: session, ssh, proxy, doctor, verify, flush, keep, sandbox",
    help_template = help::template(),
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
    /// Does what ksync -n --plan FILE planned, or nothing if a side has changed since: exit code 26
    #[command(hide = true, max_term_width = 80)]
    Apply(Box<ApplyArgs>),
    /// Takes a run with --undoable back: what it replaced or deleted is there again
    #[command(hide = true, max_term_width = 80)]
    Undo(Box<UndoArgs>),
    /// Compares all contents of A and B, and changes nothing: exit code 44 if they differ
    #[command(hide = true, max_term_width = 80)]
    Verify(Box<VerifyArgs>),
    /// Shows each setting of the environment and the files, and where it comes from
    #[command(hide = true, max_term_width = 80)]
    Config(ConfigArgs),
    /// Prints the JSON schema of the events of --json, or of the files with settings
    #[command(hide = true, max_term_width = 80)]
    Schema(SchemaArgs),
    /// Prints a completion script: `eval "$(ksync completions bash)"`
    #[command(hide = true, max_term_width = 80)]
    Completions(CompletionsArgs),
    /// Prints the man page: `ksync man | man -l -`
    #[command(hide = true, max_term_width = 80)]
    Man(ManArgs),
    /// Runs a VM emulator on this machine until Ctrl-C: an SSH server behind a WebSocket. Beside it
    /// runs an emulator of the platform's API, with VMs of its own
    #[cfg(feature = "sandbox")]
    #[command(hide = true, max_term_width = 80)]
    Sandbox(SandboxArgs),
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
            Self::Config(args) => args.json,
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

/// The definition of the command line, with the options that stand in no help.
pub(crate) fn command() -> Command {
    config::declare(accepted::declare(Cli::command()))
}

/// Parses the arguments that stand on the command line.
fn read(command: &mut Command, args: &[OsString]) -> Result<(Cli, ArgMatches), clap::Error> {
    let matches = command.try_get_matches_from_mut(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.sync.rules = rules::in_order(&matches);
    cli.sync.behind_i = behind_i(&matches);
    cli.sync.accepted = accepted::read(&matches);
    if cli.sync.what.plan.is_some() {
        cli.sync.shaping = shaping::of(command, &matches);
    }
    Ok((cli, matches))
}

/// Adds the settings to a sync. The parser takes them as arguments in front of the typed ones.
fn with_settings(
    command: &mut Command,
    args: &[OsString],
    typed: Cli,
    matches: &ArgMatches,
    settings: Settings,
) -> Result<Cli, clap::Error> {
    let (added, rules) = settings.arguments(command, matches);
    let Some((program, rest)) = args.split_first().filter(|_| !added.is_empty()) else {
        return Ok(with_destination(typed, settings));
    };
    let all: Vec<OsString> = [program.clone()].into_iter().chain(added).chain(rest.iter().cloned()).collect();
    let (mut cli, _) = read(command, &all)?;
    // The first rule that matches wins, and the typed ones come first.
    let rules = rules.min(cli.sync.rules.len());
    cli.sync.rules.rotate_left(rules);
    let shown = cli.sync.shaping.rules.len();
    cli.sync.shaping.rules.rotate_left(rules.min(shown));
    cli.sync.behind_i = typed.sync.behind_i;
    Ok(with_destination(cli, settings))
}

/// Without an endpoint the current directory goes to the destination of the project.
fn with_destination(mut cli: Cli, settings: Settings) -> Cli {
    if let Some((file, destination)) = settings.destination() {
        let ends = [OsString::from("."), destination.clone()];
        let is_typed = cli.sync.endpoints == ends;
        if is_typed || cli.sync.endpoints.is_empty() {
            let (file, destination) = (file.to_owned(), destination.clone());
            cli.sync.project = Some(ProjectDestination { file, destination, is_typed });
            cli.sync.endpoints = ends.into();
        }
    }
    cli.sync.warnings = settings.warnings;
    cli
}

/// Parses a command line, without any setting from elsewhere.
#[cfg(test)]
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Mode, CliError> {
    parse_with(args, &|_, _| Ok(Settings::default()))
}

/// Parses a command line. A sync gets the settings that `load` returns; its second argument is
/// false if files do not count.
pub(crate) fn parse_with(
    args: impl IntoIterator<Item = OsString>,
    load: &dyn Fn(&Command, bool) -> Result<Settings, CliError>,
) -> Result<Mode, CliError> {
    let mut command = command();
    let args: Vec<OsString> = args.into_iter().collect();
    usage::refuse_help(&command, &args)?;
    let args = usage::with_help(args);
    let parsed = match read(&mut command, &args) {
        Ok((cli, matches)) if cli.verb.is_none() => {
            let is_help = cli.sync.output.human_readable && cli.sync.endpoints.is_empty();
            let settings = if is_help {
                Settings::default()
            } else {
                load(&command, !cli.sync.configuration.no_config)?
            };
            with_settings(&mut command, &args, cli, &matches, settings)
        }
        read => read.map(|(cli, _)| cli),
    };
    match parsed {
        Ok(Cli { verb: Some(Verb::Session(args)), .. }) => Ok(Mode::Session(args)),
        Ok(Cli { verb: Some(Verb::Ssh(args)), .. }) => Ok(Mode::Ssh(args)),
        Ok(Cli { verb: Some(Verb::Doctor(args)), .. }) => Ok(Mode::Doctor(args)),
        Ok(Cli { verb: Some(Verb::Proxy(args)), .. }) => Ok(Mode::Proxy(args)),
        Ok(Cli { verb: Some(Verb::Flush(args)), .. }) => Ok(Mode::Flush(args)),
        Ok(Cli { verb: Some(Verb::Keep(args)), .. }) => Ok(Mode::Keep(args)),
        // Without the options that are accepted for rsync users, and that do nothing.
        Ok(Cli { verb: Some(Verb::Completions(args)), .. }) => {
            Ok(Mode::Show(manual::completions(Cli::command(), args.shell)))
        }
        Ok(Cli { verb: Some(Verb::Apply(typed)), .. }) => apply::as_sync(&typed.file, &args, load),
        Ok(Cli { verb: Some(Verb::Undo(typed)), .. }) => undo::as_sync(&typed, &args, load),
        Ok(Cli { verb: Some(Verb::Verify(_)), .. }) => verify::as_sync(&args, load),
        Ok(Cli { verb: Some(Verb::Config(args)), .. }) => Ok(Mode::Config(args)),
        Ok(Cli { verb: Some(Verb::Schema(args)), .. }) => {
            Ok(Mode::Show(manual::schema(&command, args.schema)))
        }
        Ok(Cli { verb: Some(Verb::Man(_)), .. }) => Ok(Mode::Show(manual::page(Cli::command()))),
        #[cfg(feature = "sandbox")]
        Ok(Cli { verb: Some(Verb::Sandbox(args)), .. }) => Ok(Mode::Sandbox(args)),
        Ok(Cli { sync, .. }) if sync.output.human_readable && sync.endpoints.is_empty() => {
            Ok(Mode::Show(help::SHORT.to_owned()))
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
