//! Settings from outside the command line: `KSYNC_<OPTION>`, the project's `.ksync.toml` in the
//! current directory, and the user's `config.toml`. Each key is the name of a long option.
//!
//! The precedence is command line, environment, project, user. Rules add up, and those of the
//! higher source come first, since the first rule that matches wins.
//!
//! A project's file comes with a tree that somebody else may have written. It may therefore set
//! only the keys of [`PROJECT`]: no command, no key, no URL, no file to read or write, and no
//! consent. It counts only if it belongs to this user or to root.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Id};
use ksync::sync::{Endpoint, consent};
use ksync::tree::path::escape;

use crate::endpoints::endpoint;
use crate::nearest::distance;
use crate::report::CliError;
use crate::usage;

pub(crate) mod file;
pub(crate) mod schema;
pub(crate) mod show;
#[cfg(test)]
mod tests;

/// The key of the project's destination, which is no option.
pub(crate) const DEST: &str = "dest";

/// Keys that a project's file may set. Some of these options come with later versions.
const PROJECT: &[&str] = &[
    "acls",
    "backup",
    "bwlimit",
    "checksum",
    "chmod",
    "compress",
    "cvs-exclude",
    "debounce",
    "delete",
    "dry-run",
    "exclude",
    "executability",
    "existing",
    "fsync",
    "fuzzy",
    "gitignore",
    "hard-links",
    "human-readable",
    "ignore-existing",
    "ignore-times",
    "include",
    "itemize-changes",
    "max-size",
    "min-size",
    "modify-window",
    "no-compress",
    "no-keep",
    "no-keep-alive",
    "no-progress",
    "one-file-system",
    "partial-downloads",
    "poll",
    "progress",
    "prune-empty-dirs",
    "retries",
    "safe-links",
    "size-only",
    "sparse",
    "stats",
    "timeout",
    "undo-keep",
    "undoable",
    "update",
    "verbose",
    "verify",
    "watch",
    "whole-file",
    "xattrs",
];

/// Keys that a project's file may only turn on: turned off, they would undo a caution of the user.
const CAUTIONS: &[&str] = &[
    "backup",
    "checksum",
    "dry-run",
    "existing",
    "fsync",
    "ignore-existing",
    "one-file-system",
    "safe-links",
    "undoable",
    "update",
    "verify",
];

/// Variables that are no options.
const OTHERS: [&str; 2] = ["KSYNC_LOG", "KSYNC_SESSION"];

/// Keys that mean nothing where a command line only lists or shows: `-n`, `--list-only`, one
/// endpoint.
const OF_RUNS: &[&str] = &["exec", "on-change", "watch"];

/// Keys that mean nothing for a listing, besides.
const OF_SYNCS: &[&str] = &["delete", "delete-excluded", "json"];

/// Options that only the command line gives: consent, help, and the choice of the settings.
const COMMAND_LINE: &[&str] =
    &["force-delete-in", "help", "list-only", "no-config", "plan", "remove-source-files", "version", "yes"];

/// Options whose values are rules.
const RULES: &[&str] = &["exclude", "exclude-from", "filter", "include", "include-from"];

/// Options that mean something only with `--watch`.
const OF_WATCH: &[&str] = &["partial-downloads", "poll"];

/// Options of which one excludes the other.
const ONE_OF: &[&str] = &["exec", "on-change"];

/// Flags of which `--no-FLAG` is refused with a hint.
const NOT_NEGATED: &[&str] = &[
    "archive",
    "help",
    "itemize-changes",
    "links",
    "perms",
    "quiet",
    "recursive",
    "times",
    "verbose",
    "version",
];

/// The origin of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Environment(String),
    Project(PathBuf),
    User(PathBuf),
}

impl Origin {
    /// The kind of the origin, for programs.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Environment(_) => "environment",
            Self::Project(_) => "project",
            Self::User(_) => "user",
        }
    }

    /// The variable or file.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Environment(variable) => variable.clone(),
            Self::Project(file) | Self::User(file) => {
                escape(file.as_os_str().as_encoded_bytes()).into_owned()
            }
        }
    }
}

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Flag(bool),
    Text(Vec<OsString>),
}

/// A destination that a project's file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProjectDestination {
    pub(crate) file: PathBuf,
    pub(crate) destination: OsString,
    /// True if the command line has it, too.
    pub(crate) is_typed: bool,
}

impl ProjectDestination {
    /// Refuses a destination that the user never typed: the file may have come with a tree that
    /// somebody else wrote. VMs of the user's own account need no such care.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        let shown = escape(self.destination.as_encoded_bytes());
        let parsed = endpoint(&self.destination)?;
        let is_harmless = matches!(parsed, Endpoint::Session { .. } | Endpoint::Sandbox { .. });
        if is_harmless || consent::is_known_destination(&self.file, &self.destination) {
            return Ok(());
        }
        if self.is_typed {
            // The run does not need the record.
            let _ = consent::know_destination(&self.file, &self.destination);
            return Ok(());
        }
        Err(CliError::usage(
            format!(
                "{} names the DEST {shown}, to which nothing was copied from here yet",
                escape(self.file.as_os_str().as_encoded_bytes())
            ),
            format!("If that is meant, write it once: ksync . {shown}"),
        ))
    }
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The long name of the option, or [`DEST`].
    pub(crate) key: String,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
    /// True if a higher source gives the same key.
    pub(crate) is_overridden: bool,
}

/// All settings, from the highest source to the lowest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) all: Vec<Setting>,
    /// Messages about files that do not count.
    pub(crate) warnings: Vec<ksync::monitor::Warning>,
}

/// Declares `--no-FLAG` for each flag that a setting may turn on.
pub(crate) fn declare(command: Command) -> Command {
    let has = |long: &str| {
        command.get_arguments().any(|arg| {
            arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|names| names.contains(&long))
        })
    };
    let flags = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    let flags: Vec<(String, Id)> = flags
        .filter_map(|flag| Some((flag.get_long()?.to_owned(), flag.get_id().clone())))
        .filter(|(long, _)| !long.starts_with("no-") && !NOT_NEGATED.contains(&long.as_str()))
        .map(|(long, id)| (format!("no-{long}"), id))
        .filter(|(name, _)| !has(name))
        .collect();
    flags.into_iter().fold(command, |command, (name, id)| {
        // The parser keeps names for the life of the program.
        let name: &'static str = name.leak();
        command.arg(Arg::new(name).long(name).hide(true).action(ArgAction::SetTrue).overrides_with(id))
    })
}

/// The option of a key, by its long name or an alias of it.
pub(crate) fn option<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let mut options = command.get_arguments().filter(|arg| is_key(arg));
    options.find(|arg| {
        arg.get_long() == Some(key) || arg.get_all_aliases().is_some_and(|names| names.contains(&key))
    })
}

/// True if an argument can be a key: an option with an effect, or a `no-` form with no other name.
pub(crate) fn is_key(arg: &Arg) -> bool {
    let Some(long) = arg.get_long() else { return false };
    // The ids of the hidden negations are their names.
    let is_negation = long.starts_with("no-") && arg.is_hide_set();
    !is_negation && !arg.is_positional()
}

/// The name that an option shares with its negation.
fn group(key: &str) -> &str {
    if ONE_OF.contains(&key) { "exec" } else { key.strip_prefix("no-").unwrap_or(key) }
}

fn is_rule(key: &str) -> bool {
    RULES.contains(&key)
}

/// The variable of an option: `KSYNC_MAX_DELETE`.
pub(crate) fn variable(key: &str) -> String {
    format!("KSYNC_{}", key.to_uppercase().replace('-', "_"))
}

/// True if a project's file may set a key.
pub(crate) fn is_for_projects(key: &str) -> bool {
    key == DEST || PROJECT.contains(&key)
}

/// True if a project's file may turn a key on, and not off.
pub(crate) fn is_caution(key: &str) -> bool {
    CAUTIONS.contains(&key)
}

/// True if a user's file and the environment may set a key.
pub(crate) fn is_for_users(key: &str) -> bool {
    key != DEST && !COMMAND_LINE.contains(&key)
}

impl Settings {
    /// Reads the environment and, if wanted, the files.
    pub(crate) fn load(command: &Command, with_files: bool) -> Result<Self, CliError> {
        let mut settings =
            Self { all: environment(command, |name| std::env::var_os(name))?, ..Self::default() };
        settings.warnings = misspelt(command, std::env::vars_os().map(|(name, _)| name));
        if with_files {
            let project = std::env::current_dir().unwrap_or_default().join(file::PROJECT_FILE);
            settings.add_project(command, &project)?;
            if let Some(user) = file::user_file() {
                settings.all.extend(file::load(command, Origin::User(user))?);
            }
        }
        settings.mark();
        Ok(settings)
    }

    fn add_project(&mut self, command: &Command, project: &Path) -> Result<(), CliError> {
        match file::stranger(project) {
            Some(warning) => self.warnings.push(warning),
            None => self.all.extend(file::load(command, Origin::Project(project.to_owned()))?),
        }
        Ok(())
    }

    /// Marks the settings that a higher source overrides.
    fn mark(&mut self) {
        let mut seen: Vec<(String, Origin)> = Vec::new();
        for setting in &mut self.all {
            let group = group(&setting.key).to_owned();
            let is_given = seen.iter().any(|(known, origin)| *known == group && *origin != setting.origin);
            setting.is_overridden = is_given && !is_rule(&setting.key);
            seen.push((group, setting.origin.clone()));
        }
    }

    /// The destination of the project, and the file that names it.
    pub(crate) fn destination(&self) -> Option<(&Path, &OsString)> {
        let setting = self.all.iter().find(|setting| setting.key == DEST)?;
        match (&setting.origin, &setting.value) {
            (Origin::Project(file), Value::Text(values)) => Some((file, values.first()?)),
            _ => None,
        }
    }

    /// The arguments for what the command line leaves open, and the number of rules among them.
    pub(crate) fn arguments(&self, command: &Command, typed_matches: &ArgMatches) -> (Vec<OsString>, usize) {
        let is_typed = |arg: &Arg| {
            let id = arg.get_id().as_str();
            // The matches know only the arguments of their own command.
            let source =
                typed_matches.try_contains_id(id).is_ok().then(|| typed_matches.value_source(id)).flatten();
            source == Some(ValueSource::CommandLine)
        };
        let typed: Vec<&str> =
            command.get_arguments().filter(|arg| is_typed(arg)).filter_map(|arg| arg.get_long()).collect();
        let is_on = |key: &str| {
            let by_setting = |setting: &Setting| {
                !setting.is_overridden && setting.key == key && setting.value == Value::Flag(true)
            };
            typed.contains(&key) || (!typed.contains(&"no-watch") && self.all.iter().any(by_setting))
        };
        let watches = is_on("watch");
        let endpoints = typed_endpoints(typed_matches);
        let is_listing = typed.contains(&"list-only") || endpoints == 1;
        let is_passive = is_listing || typed.contains(&"dry-run");
        let (mut arguments, mut rules) = (Vec::new(), 0);
        let wanted = self.all.iter().filter(|setting| !setting.is_overridden && setting.key != DEST);
        for Setting { key, value, origin, .. } in wanted {
            let is_open = is_rule(key) || !typed.iter().any(|typed| group(typed) == group(key));
            // The parser reads this variable itself.
            let is_read = matches!(origin, Origin::Environment(_))
                && option(command, key).is_some_and(|option| option.get_env().is_some());
            let key = key.as_str();
            let is_idle = is_passive && OF_RUNS.contains(&key) || is_listing && OF_SYNCS.contains(&key);
            if !is_open || is_read || is_idle || (OF_WATCH.contains(&key) && !watches) {
                continue;
            }
            match value {
                Value::Flag(true) => arguments.push(OsString::from(format!("--{key}"))),
                // Some flags are on by themselves.
                Value::Flag(false) if has_negation(command, key) => {
                    arguments.push(OsString::from(format!("--no-{key}")));
                }
                Value::Flag(false) => {}
                Value::Text(values) => {
                    rules += if is_rule(key) { values.len() } else { 0 };
                    arguments.extend(values.iter().map(|value| with_value(key, value)));
                }
            }
        }
        (arguments, rules)
    }
}

/// Number of endpoints that stand on the command line.
fn typed_endpoints(typed: &ArgMatches) -> usize {
    let is_known = typed.try_contains_id("endpoints").is_ok();
    let endpoints = is_known.then(|| typed.get_many::<OsString>("endpoints")).flatten();
    endpoints.map_or(0, Iterator::count)
}

/// True if an option with an effect turns a flag off.
fn has_negation(command: &Command, key: &str) -> bool {
    let negation = format!("no-{key}");
    command.get_arguments().any(|arg| {
        arg.get_long() == Some(&*negation)
            || arg.get_all_aliases().is_some_and(|names| names.contains(&&*negation))
    })
}

fn with_value(key: &str, value: &OsString) -> OsString {
    let mut argument = OsString::from(format!("--{key}="));
    argument.push(value);
    argument
}

/// The settings of the environment. An empty variable is none.
fn environment(
    command: &Command,
    variable_of: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<Setting>, CliError> {
    let mut settings = Vec::new();
    for arg in command.get_arguments().filter(|arg| is_key(arg)) {
        let Some(key) = arg.get_long() else { continue };
        let own = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned);
        let name = own.unwrap_or_else(|| variable(key));
        let Some(text) = variable_of(&name).filter(|text| !text.is_empty()) else { continue };
        let origin = Origin::Environment(name.clone());
        if matches!(key, "help" | "version") {
            continue;
        }
        if !is_for_users(key) {
            return Err(CliError::usage(
                format!("{name}: only the command line may give --{key}"),
                format!("Unset the variable, and write --{key} where it is meant."),
            ));
        }
        let value = match arg.get_action() {
            ArgAction::SetTrue | ArgAction::Count => match text.to_str().and_then(as_bool) {
                Some(is_on) => Value::Flag(is_on),
                None => {
                    let shown = escape(text.as_encoded_bytes()).into_owned();
                    return Err(CliError::usage(
                        format!("{name} takes true or false, and not \"{shown}\""),
                        format!("Write {name}=true, or unset it."),
                    ));
                }
            },
            ArgAction::Append => Value::Text(lines(&text)),
            _ => Value::Text(vec![text]),
        };
        check(command, key, &value, &origin)?;
        settings.push(Setting { key: key.to_owned(), value, origin, is_overridden: false });
    }
    Ok(settings)
}

/// Warnings about variables that are no settings, and nearly have the name of one.
fn misspelt(command: &Command, names: impl Iterator<Item = OsString>) -> Vec<ksync::monitor::Warning> {
    /// Most letters that differ.
    const DISTANCE_MAX: usize = 2;
    let names = names.filter_map(|name| name.into_string().ok());
    let names: Vec<String> = names.filter(|name| name.starts_with("KSYNC_")).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let own = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).map(str::to_owned);
    let keys = command.get_arguments().filter(|arg| is_key(arg)).filter_map(Arg::get_long).map(variable);
    let known: Vec<String> = own.chain(keys).chain(OTHERS.map(str::to_owned)).collect();
    let unknown = names.into_iter().filter(|name| !known.contains(name));
    unknown
        .filter_map(|name| {
            let near = known.iter().map(|known| (distance(&name, known), known)).min()?;
            (near.0 <= DISTANCE_MAX && !OTHERS.contains(&near.1.as_str())).then(|| ksync::monitor::Warning {
                what: format!("the variable {name} is no setting"),
                hint: format!("There is {}; ksync config shows all settings in force.", near.1),
            })
        })
        .collect()
}

/// The lines of a variable that may hold several values.
fn lines(text: &OsString) -> Vec<OsString> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let lines = text.as_bytes().split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| OsString::from_vec(line.to_vec())).collect()
}

fn as_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Checks a value with the parser of the option, so that the error names the setting.
fn check(command: &Command, key: &str, value: &Value, origin: &Origin) -> Result<(), CliError> {
    let Value::Text(values) = value else { return Ok(()) };
    for value in values {
        let args = [OsString::from("ksync"), with_value(key, value)];
        if let Err(error) = command.clone().try_get_matches_from(&args)
            && error.kind() != clap::error::ErrorKind::MissingRequiredArgument
        {
            let told = usage::error(&error, command, &args);
            let what = told.what().replacen(&format!("--{key}"), key, 1);
            return Err(CliError::usage(
                format!("{}: {what}", origin.name()),
                "Correct the value, or remove it.",
            ));
        }
    }
    Ok(())
}

/// The error for a key that there is not, with the nearest one.
pub(crate) fn unknown(command: &Command, key: &str, origin: &Origin) -> CliError {
    let shown = escape(key.as_bytes());
    let what = format!("{}: there is no key {shown}", origin.name());
    let is_wanted = |known: &&str| match origin {
        Origin::Project(_) => is_for_projects(known),
        Origin::Environment(_) | Origin::User(_) => is_for_users(known),
    };
    let keys = command.get_arguments().filter(|arg| is_key(arg)).filter_map(Arg::get_long).chain([DEST]);
    let plain = |name: &str| name.to_lowercase().replace(['_', '-'], "");
    let near = keys.filter(is_wanted).map(|known| (distance(key, known), known));
    let near = near.filter(|(distance, _)| *distance <= key.chars().count().div_ceil(3)).min();
    let near = near.filter(|(_, known)| plain(known) == plain(key) || !usage::is_harmful(known));
    let all = "ksync schema config lists all keys.";
    let hint = near.map_or(all.to_owned(), |(_, known)| format!("There is {known}; {all}"));
    CliError::usage(what, hint)
}
