//! The options that shape the result of a run: those that a plan keeps.

use std::ffi::OsStr;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::Settings;

/// Long names of these options. None of them runs a command, gives consent, or concerns the
/// connection.
const SHAPING: &[&str] = &[
    "acls",
    "append",
    "append-verify",
    "archive",
    "backup",
    "backup-dir",
    "checksum",
    "chmod",
    "chown",
    "compare-dest",
    "copy-dest",
    "copy-dirlinks",
    "copy-links",
    "copy-unsafe-links",
    "cvs-exclude",
    "delete",
    "delete-after",
    "delete-excluded",
    "devices",
    "D",
    "executability",
    "existing",
    "files-from",
    "force",
    "from0",
    "gitignore",
    "group",
    "groupmap",
    "hard-links",
    "ignore-existing",
    "ignore-times",
    "inplace",
    "link-dest",
    "links",
    "max-delete",
    "max-size",
    "min-size",
    "modify-window",
    "no-links",
    "no-perms",
    "numeric-ids",
    "one-file-system",
    "owner",
    "partial-dir",
    "prune-empty-dirs",
    "recursive",
    "relative",
    "remove-source-files",
    "safe-links",
    "size-only",
    "specials",
    "suffix",
    "undo-keep",
    "undoable",
    "update",
    "usermap",
    "xattrs",
];

/// Long names of the options that hold rules.
const RULES: &[&str] = &["exclude", "exclude-from", "filter", "include", "include-from"];

/// The only such option without a long name.
const PER_DIRECTORY: char = 'F';

/// The given options that shape the result, as they can be typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shaping {
    /// All options but rules.
    pub(crate) options: Vec<String>,
    /// Rules in the order in which they count.
    pub(crate) rules: Vec<String>,
    /// The option whose value is not UTF-8, if there is one.
    pub(crate) unreadable: Option<String>,
}

/// True if a plan keeps the option of this long name.
pub(crate) fn is_shaping(long: &str) -> bool {
    SHAPING.contains(&long) || RULES.contains(&long)
}

/// Drops settings that shape a result, and `others`: a plan or an earlier run has its own.
pub(super) fn drop_from(settings: &mut Settings, others: &[&str]) {
    settings.all.retain(|setting| {
        let positive = setting.key.strip_prefix("no-").unwrap_or(&setting.key);
        let names = [setting.key.as_str(), positive];
        !names.iter().any(|name| is_shaping(name) || others.contains(name))
    });
}

/// Collects the options that were given.
pub(super) fn of(command: &Command, matches: &ArgMatches) -> Shaping {
    let mut shaping = Shaping::default();
    let mut rules: Vec<(usize, String)> = Vec::new();
    for arg in command.get_arguments().filter(|arg| is_given(arg, matches)) {
        let id = arg.get_id().as_str();
        let (name, is_rule) = match (arg.get_long(), arg.get_short()) {
            (Some(long), _) if is_shaping(long) => (format!("--{long}"), RULES.contains(&long)),
            (None, Some(PER_DIRECTORY)) => (format!("-{PER_DIRECTORY}"), true),
            _ => continue,
        };
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            if matches.get_flag(id) {
                shaping.options.push(name);
            }
            continue;
        }
        let indices = matches.indices_of(id).into_iter().flatten();
        for (index, value) in indices.zip(matches.get_raw(id).into_iter().flatten()) {
            let Some(text) = with_value(&name, value) else {
                shaping.unreadable = Some(name.clone());
                continue;
            };
            if is_rule { rules.push((index, text)) } else { shaping.options.push(text) }
        }
    }
    rules.sort_unstable();
    shaping.rules = rules.into_iter().map(|(_, text)| text).collect();
    shaping
}

fn is_given(arg: &Arg, matches: &ArgMatches) -> bool {
    matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
}

fn with_value(name: &str, value: &OsStr) -> Option<String> {
    let value = value.to_str()?;
    Some(if name.starts_with("--") { format!("{name}={value}") } else { name.to_owned() })
}
