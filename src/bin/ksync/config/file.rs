//! The two files: where they are, who may write them, and how their values become settings.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use ksync::exchange::chain;
use ksync::monitor::Warning;
use ksync::tree::path::escape;
use rustix::fs::OFlags;
use toml::{Table, Value as Toml};

use crate::config::{
    DEST, Origin, Setting, Value, check, is_caution, is_for_projects, is_for_users, option, unknown,
};
use crate::report::{CliError, USAGE};

/// The project's file, in the current directory.
pub(crate) const PROJECT_FILE: &str = ".ksync.toml";

/// Longest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The user's file, if there is a home.
pub(crate) fn user_file() -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let directory = std::env::var_os("XDG_CONFIG_HOME").and_then(absolute);
    let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let directory = directory.or_else(|| home().map(|home| home.join(".config")))?;
    Some(directory.join("ksync").join("config.toml"))
}

/// The warning about a project's file that belongs to somebody else.
pub(crate) fn stranger(project: &Path) -> Option<Warning> {
    let owner = project.symlink_metadata().ok()?.uid();
    let target = project.metadata().map_or(owner, |target| target.uid());
    let user = rustix::process::geteuid().as_raw();
    let is_foreign = |uid: u32| uid != user && uid != 0;
    (is_foreign(owner) || is_foreign(target)).then(|| Warning {
        what: format!(
            "{} is ignored: it belongs to another user",
            escape(project.as_os_str().as_encoded_bytes())
        ),
        hint: "Copy it to a file of your own, if its settings are yours.".to_owned(),
    })
}

/// Opens a regular file. A FIFO would wait for its writer for ever.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// Loads a file; one that is missing has no settings.
pub(crate) fn load(command: &Command, origin: Origin) -> Result<Vec<Setting>, CliError> {
    let (Origin::Project(path) | Origin::User(path)) = &origin else { return Ok(Vec::new()) };
    let shown = origin.name();
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        // A directory that is closed to this user is that of somebody else, as a home under sudo.
        Err(_) if path.symlink_metadata().is_err() => return Ok(Vec::new()),
        Err(error) => {
            let hint = "Make it readable, or run with --no-config.";
            let told = format!("cannot read {shown}: {}", chain(&error));
            return Err(CliError::new(USAGE, told).with_hint(Some(hint)));
        }
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => {
            return Err(CliError::usage(
                format!("cannot read {shown}: it is longer than 1 MiB"),
                "Put long lists of patterns into a file for --exclude-from.",
            ));
        }
        Ok(_) => {}
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| CliError::usage(format!("cannot read {shown}: it is not UTF-8"), "Save it as UTF-8."))?;
    parse(command, &text, &origin)
}

/// Parses the text of a file.
pub(super) fn parse(command: &Command, text: &str, origin: &Origin) -> Result<Vec<Setting>, CliError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
        let cause = error.message().replace('\n', ", ");
        CliError::usage(
            format!("{}: line {line}: {cause}", origin.name()),
            "Write one key = value on each line, as in exclude = [\"*.tmp\"].",
        )
    })?;
    table.into_iter().map(|(key, value)| setting(command, &key, value, origin)).collect()
}

fn setting(command: &Command, key: &str, value: Toml, origin: &Origin) -> Result<Setting, CliError> {
    let is_project = matches!(origin, Origin::Project(_));
    if key == DEST {
        return destination(value, origin);
    }
    let option = option(command, key).ok_or_else(|| unknown(command, key, origin))?;
    let key = option.get_long().unwrap_or(key);
    if is_project && !is_for_projects(key) {
        return Err(CliError::usage(
            format!("{}: the key {key} may not stand in the file of a project", origin.name()),
            format!(
                "The file comes with the tree, and others may have written it. Give --{key} on the command \
                 line{}.",
                if is_for_users(key) { ", or in your own config.toml" } else { "" }
            ),
        ));
    }
    if !is_for_users(key) {
        return Err(CliError::usage(
            format!("{}: only the command line may give {key}", origin.name()),
            format!("Remove the key, and write --{key} where it is meant."),
        ));
    }
    let value = converted(option, key, value, origin)?;
    if is_project && is_caution(key) && value == Value::Flag(false) {
        return Err(CliError::usage(
            format!("{}: the file of a project may turn {key} on, and not off", origin.name()),
            format!("Remove the key; --no-{key} on the command line turns it off."),
        ));
    }
    check(command, key, &value, origin)?;
    Ok(Setting { key: key.to_owned(), value, origin: origin.clone(), is_overridden: false })
}

fn destination(value: Toml, origin: &Origin) -> Result<Setting, CliError> {
    let wrong = |what: &str| {
        CliError::usage(
            format!("{}: {what}", origin.name()),
            "A project names its DEST as in dest = \"host:/srv/site\" or dest = \"session:/tmp/site\".",
        )
    };
    let text = match value {
        Toml::String(text) if matches!(origin, Origin::Project(_)) => text,
        Toml::String(_) => return Err(wrong("dest is a key for the file of a project")),
        _ => return Err(wrong("dest takes a text")),
    };
    if text.contains("://") {
        return Err(wrong("dest may not be a URL"));
    }
    if text.is_empty() {
        return Err(wrong("dest is empty"));
    }
    let value = Value::Text(vec![text.into()]);
    Ok(Setting { key: DEST.to_owned(), value, origin: origin.clone(), is_overridden: false })
}

/// The value that an option takes.
fn converted(option: &Arg, key: &str, value: Toml, origin: &Origin) -> Result<Value, CliError> {
    let wrong = |expected: &str| {
        CliError::usage(
            format!("{}: {key} takes {expected}", origin.name()),
            "ksync schema config has the type of each key.",
        )
    };
    let scalar = |value: Toml| match value {
        Toml::String(text) => Some(OsString::from(text)),
        Toml::Integer(number) => Some(number.to_string().into()),
        Toml::Float(number) => Some(number.to_string().into()),
        _ => None,
    };
    match (option.get_action(), value) {
        (ArgAction::SetTrue | ArgAction::Count, Toml::Boolean(is_on)) => Ok(Value::Flag(is_on)),
        (ArgAction::SetTrue | ArgAction::Count, _) => Err(wrong("true or false")),
        (ArgAction::Append, Toml::Array(values)) => {
            let values: Option<Vec<OsString>> = values.into_iter().map(scalar).collect();
            values.map(Value::Text).ok_or_else(|| wrong("a list of texts"))
        }
        (ArgAction::Append, value) => {
            scalar(value).map(|value| Value::Text(vec![value])).ok_or_else(|| wrong("a list of texts"))
        }
        (_, value) => {
            scalar(value).map(|value| Value::Text(vec![value])).ok_or_else(|| wrong("a text or a number"))
        }
    }
}
