//! Errors of the command line, in the form of all other errors: the parser's own texts name options
//! that nobody typed, and propose some that delete.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::str::FromStr;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use ksync::tree::path::escape;

use crate::foreign;
use crate::report::CliError;

/// Verbs that later versions will have.
pub(crate) const LATER: [&str; 1] = ["run"];

/// Words in an option that a typo must never lead to: it deletes, or consents to deletions.
const HARMFUL: [&str; 5] = ["del", "remove", "force", "yes", "no-keep"];

/// True for an option that a typo must never lead to.
pub(crate) fn is_harmful(name: &str) -> bool {
    HARMFUL.iter().any(|word| name.contains(word))
}

/// Makes a parser of numbers in a range. `expected` continues "takes".
pub(crate) fn number<T: FromStr + PartialOrd + Clone + Send + Sync + 'static>(
    range: std::ops::RangeInclusive<T>,
    expected: &'static str,
) -> impl Fn(&str) -> Result<T, &'static str> + Clone + Send + Sync + 'static {
    move |text| text.parse().ok().filter(|number| range.contains(number)).ok_or(expected)
}

/// Refuses a first word that looks like a verb, if nothing here has this name.
pub(crate) fn refuse_verb(first: &OsStr) -> Result<(), CliError> {
    match first.to_str().filter(|word| LATER.contains(word)) {
        Some(word) if !Path::new(word).exists() => Err(CliError::usage(
            format!("ksync has no verb {word} yet"),
            format!("ksync --help lists the verbs; an entry of that name here is ./{word}."),
        )),
        _ => Ok(()),
    }
}

/// Verbs with options of a sync, in which `-h` has the meaning that it has in rsync.
const LIKE_A_SYNC: [&str; 3] = ["apply", "undo", "verify"];

/// Refuses `ksync help WORD` for a word that is no verb.
pub(crate) fn refuse_help(command: &Command, args: &[OsString]) -> Result<(), CliError> {
    let [_, help, word, ..] = args else { return Ok(()) };
    let is_verb = command.get_subcommands().any(|verb| *word == *verb.get_name());
    let is_option = word.as_encoded_bytes().starts_with(b"-");
    if help != "help" || is_verb || is_option || Path::new("help").exists() {
        return Ok(());
    }
    Err(CliError::usage(
        format!("ksync has no verb {}", escape(word.as_encoded_bytes())),
        "ksync --help lists the verbs.",
    ))
}

/// `ksync help VERB` is `ksync VERB --help`, if nothing here is named help.
pub(crate) fn with_help(args: Vec<OsString>) -> Vec<OsString> {
    match args.split_first() {
        Some((program, [help, words @ ..])) if help == "help" && !Path::new("help").exists() => {
            let flag = OsString::from("--help");
            [program.clone()].into_iter().chain(words.iter().cloned()).chain([flag]).collect()
        }
        Some((program, [verb, flag])) if flag == "-h" && LIKE_A_SYNC.iter().any(|known| verb == known) => {
            vec![program.clone(), verb.clone(), "--help".into()]
        }
        _ => args,
    }
}

/// The error for a command line that the parser refused.
pub(crate) fn error(error: &clap::Error, command: &Command, args: &[OsString]) -> CliError {
    let all = |kind| strings(error, kind);
    let first = |kind| all(kind).into_iter().next().unwrap_or_default();
    let option = plain(&first(ContextKind::InvalidArg));
    let verbs = verbs(command, args);
    let all_options = format!("{} --help lists all options.", with_verbs(&verbs));
    match error.kind() {
        ErrorKind::UnknownArgument => {
            // A verb has options of its own.
            let instead = if verbs.is_empty() { foreign::instead(&option) } else { None };
            unknown(&option, instead, &first(ContextKind::SuggestedArg), all_options)
        }
        ErrorKind::InvalidSubcommand => {
            let verb = first(ContextKind::InvalidSubcommand);
            let group = verbs.join(" ");
            CliError::usage(
                format!("ksync {group} has no verb {verb}"),
                format!("ksync {group} --help lists them."),
            )
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let group = with_verbs(&verbs);
            CliError::usage(format!("{group} needs a verb"), format!("{group} --help lists them."))
        }
        ErrorKind::ValueValidation => {
            let value = escape(first(ContextKind::InvalidValue).as_bytes()).into_owned();
            let expected = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            CliError::usage(format!("{option} takes {expected}, and not \"{value}\""), all_options)
        }
        // An option that needs a value and has none is an invalid value to the parser.
        ErrorKind::InvalidValue | ErrorKind::NoEquals | ErrorKind::TooFewValues => {
            CliError::usage(format!("{option} needs a value"), all_options)
        }
        ErrorKind::TooManyValues | ErrorKind::WrongNumberOfValues => {
            CliError::usage(format!("{option} takes no value"), all_options)
        }
        ErrorKind::ArgumentConflict => {
            let other = all(ContextKind::PriorArg).iter().map(|name| plain(name)).collect::<Vec<_>>();
            let other = if other.is_empty() { "the other options".to_owned() } else { other.join(", ") };
            CliError::usage(format!("{option} cannot be used with {other}"), "Leave one of them out.")
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = all(ContextKind::InvalidArg).iter().map(|name| plain(name)).collect::<Vec<_>>();
            let usage = usage(command, &verbs);
            CliError::usage(format!("{} is missing", missing.join(", ")), format!("Write {usage}."))
        }
        ErrorKind::InvalidUtf8 => {
            CliError::usage("an argument is not UTF-8, and only paths and patterns need not be", all_options)
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            CliError::usage(line.strip_prefix("error: ").unwrap_or(line), all_options)
        }
    }
}

/// The error for an option that ksync does not have.
fn unknown(option: &str, instead: Option<&str>, suggested: &str, all_options: String) -> CliError {
    let shown = escape(option.as_bytes());
    if let Some(instead) = instead {
        return CliError::new(crate::report::USAGE, format!("there is no {shown}: {instead}"));
    }
    let suggested = Some(plain(suggested)).filter(|name| name.starts_with("--") && !is_harmful(name));
    let hint = suggested.map_or(all_options.clone(), |name| format!("There is {name}; {all_options}"));
    CliError::usage(format!("there is no option {shown}"), hint)
}

/// The program and the verbs, as they are typed.
fn with_verbs(verbs: &[String]) -> String {
    ["ksync"].into_iter().chain(verbs.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// An argument without its value: `--timeout` for `--timeout <SECONDS>`, `URL` for `<URL>`.
fn plain(name: &str) -> String {
    let is_long = name.starts_with("--");
    let name = name.split(|letter| letter == ' ' || (is_long && letter == '=')).next().unwrap_or_default();
    name.trim_start_matches(['<', '[']).trim_end_matches(['>', ']', '.']).to_owned()
}

fn strings(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(one)) => vec![one.clone()],
        Some(ContextValue::Strings(many)) => many.clone(),
        _ => Vec::new(),
    }
}

/// The verbs at the beginning of a command line.
fn verbs(command: &Command, args: &[OsString]) -> Vec<String> {
    let (mut command, mut verbs) = (command, Vec::new());
    for word in args.iter().skip(1) {
        let Some(verb) = word.to_str().and_then(|word| command.find_subcommand(word)) else { break };
        verbs.push(verb.get_name().to_owned());
        command = verb;
    }
    verbs
}

/// The plain usage of a verb: its required arguments.
fn usage(command: &Command, verbs: &[String]) -> String {
    let mut verb = command;
    for name in verbs {
        verb = verb.find_subcommand(name).unwrap_or(verb);
    }
    let names = verb.get_positionals().filter(|argument| argument.is_required_set()).map(|argument| {
        let names = argument.get_value_names().unwrap_or_default();
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        if names.is_empty() { argument.get_id().to_string().to_uppercase() } else { names.join(" ") }
    });
    let usage = [with_verbs(verbs)].into_iter().chain(names).collect::<Vec<_>>().join(" ");
    format!("{usage}; {} --help has the options", with_verbs(verbs))
}
