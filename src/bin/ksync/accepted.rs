//! Options of rsync that need no code: the result is the same without them. They stand in no help.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Options without a value: all spellings of each, the first long one first.
const FLAGS: &[&str] = &[
    // DEST's missing parents are always made.
    "--mkpath",
    // No name passes through a shell.
    "--secluded-args --protect-args -s",
    "--no-secluded-args --no-protect-args --no-s",
    "--trust-sender",
    // ksync scans while it sends, and chooses between delta and whole file for each file.
    "--inc-recursive --i-r",
    "--no-inc-recursive --no-i-r",
    "--whole-file -W",
    "--no-whole-file --no-W",
    // There is no daemon, no remote shell's pipe, and no output that waits for its end.
    "--no-motd",
    "--blocking-io",
    "--no-blocking-io",
    "--8-bit-output -8",
    "--no-8-bit-output --no-8",
    FORCE,
    "--no-force",
    DELETE_AFTER,
    // Holes of files stay holes, and long runs of zeros become some.
    "--sparse -S",
    "--no-sparse --no-S",
];

/// Options with a value that only tunes the transfer.
const TUNING: &[&str] = &[
    "--block-size -B",
    "--checksum-choice --cc",
    "--checksum-seed",
    "--compress-choice --zc",
    "--compress-level --zl",
    "--compress-threads --zt",
    "--max-alloc",
    "--skip-compress",
];

/// ksync replaces a directory by a file only with `--delete`.
const FORCE: &str = "--force";
/// The merge files of DEST count as they are after the transfer.
const DELETE_AFTER: &str = "--delete-after";
const PARTIAL_DIR: &str = "--partial-dir";
const INFO: &str = "--info";

/// The effect of these options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// `--force` is given.
    pub(crate) force: bool,
    /// `--delete-after` is given.
    pub(crate) delete_after: bool,
    /// rsync excludes this directory, and so does ksync. It needs no such directory itself.
    pub(crate) partial_dir: Option<String>,
    /// The flags of all `--info`.
    pub(crate) info: Info,
}

/// The output that `--info` asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Info {
    /// Progress, if mentioned.
    pub(crate) progress: Option<bool>,
    /// The name of each change, if mentioned.
    pub(crate) names: Option<bool>,
    /// Statistics at the end, if mentioned. rsync's level 1 is the summary line.
    pub(crate) stats: Option<bool>,
}

impl Info {
    /// Parses a list of flags, each with a level.
    fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "progress, name, stats and none, each with a level, as in progress2,stats2";
        let mut info = Self::default();
        for flag in text.split(',') {
            let name = flag.trim_end_matches(|c: char| c.is_ascii_digit());
            let digits = flag.get(name.len()..).unwrap_or_default();
            let level: u32 = if digits.is_empty() { 1 } else { digits.parse().map_err(|_| EXPECTED)? };
            match (name.to_ascii_lowercase().as_str(), level) {
                ("progress", _) => info.progress = Some(level > 0),
                ("name", _) => info.names = Some(level > 0),
                ("stats", _) => info.stats = Some(level > 1),
                ("none", _) | ("all", 0) => {
                    info = Self { progress: Some(false), names: Some(false), stats: Some(false) };
                }
                // ksync has no such output.
                (
                    "backup" | "copy" | "del" | "flist" | "misc" | "mount" | "nonreg" | "remove" | "skip"
                    | "symsafe",
                    0,
                ) => {}
                _ => return Err(EXPECTED),
            }
        }
        Ok(info)
    }

    /// Both, where the later one wins.
    fn then(self, later: Self) -> Self {
        Self {
            progress: later.progress.or(self.progress),
            names: later.names.or(self.names),
            stats: later.stats.or(self.stats),
        }
    }
}

/// Declares these options.
pub(crate) fn declare(command: Command) -> Command {
    let flags = FLAGS.iter().map(|names| arg(names).action(ArgAction::SetTrue));
    let tuning = TUNING.iter().map(|names| with_value(names));
    let outbuf = with_value("--outbuf").value_parser(one_of(&["n", "l", "b"], "N, L or B"));
    let stderr = with_value("--stderr").value_parser(one_of(
        &["e", "errors", "c", "client"],
        "errors or client: results go to stdout, all else to stderr",
    ));
    let info = arg(INFO).action(ArgAction::Append).value_parser(Info::parse);
    let others = [with_value(PARTIAL_DIR), outbuf, stderr, info];
    command.args(flags).args(tuning).args(others)
}

/// Reads the effect of these options.
pub(crate) fn read(matches: &ArgMatches) -> Accepted {
    let is_given = |names| matches.value_source(id(names)) == Some(ValueSource::CommandLine);
    let infos = matches.get_many::<Info>(id(INFO)).into_iter().flatten().copied();
    Accepted {
        force: is_given(FORCE),
        delete_after: is_given(DELETE_AFTER),
        partial_dir: matches.get_one::<String>(id(PARTIAL_DIR)).cloned(),
        info: infos.fold(Info::default(), Info::then),
    }
}

/// The id of an option: its first spelling without the dashes.
fn id(names: &'static str) -> &'static str {
    names.split(' ').next().unwrap_or(names).trim_start_matches('-')
}

fn arg(names: &'static str) -> Arg {
    let mut arg = Arg::new(id(names)).hide(true);
    for name in names.split(' ') {
        arg = match (name.strip_prefix("--"), name.chars().nth(1)) {
            (Some(long), _) if arg.get_long().is_none() => arg.long(long),
            (Some(long), _) => arg.alias(long),
            (None, Some(short)) => arg.short(short),
            (None, None) => arg,
        };
    }
    arg
}

fn with_value(names: &'static str) -> Arg {
    arg(names).action(ArgAction::Set).value_name("VALUE")
}

/// A parser of words whose case does not count.
fn one_of(
    words: &'static [&'static str],
    expected: &'static str,
) -> impl Fn(&str) -> Result<String, &'static str> + Clone + Send + Sync + 'static {
    move |text| {
        let lower = text.to_ascii_lowercase();
        if words.contains(&lower.as_str()) { Ok(lower) } else { Err(expected) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_takes_what_ksync_can_show() {
        let info = |progress, names, stats| Ok(Info { progress, names, stats });
        assert_eq!(Info::parse("progress2"), info(Some(true), None, None));
        assert_eq!(Info::parse("NAME,stats2,progress0"), info(Some(false), Some(true), Some(true)));
        assert_eq!(Info::parse("stats1,flist0,del0"), info(None, None, Some(false)));
        assert_eq!(Info::parse("none,name1"), info(Some(false), Some(true), Some(false)));
        for refused in ["", "del", "flist2", "all", "progres", "help", "name,", "stats99999999999"] {
            assert!(Info::parse(refused).is_err(), "{refused}");
        }
    }
}
