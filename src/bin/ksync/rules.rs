//! `--exclude`, `--include` and their `-from` files. The first rule that matches wins, so the order
//! of all four options on the command line matters.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::ArgMatches;
use ksync::tree::filter::{BYTE_ORDER_MARK, Rule};
use ksync::tree::path::escape;

use crate::report::CliError;

/// The origin of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleSource {
    /// One option, one rule.
    Pattern { include: bool, pattern: OsString },
    /// A file with one rule per line.
    File { include: bool, file: OsString },
}

/// The sources in the order of the command line.
pub(crate) fn in_order(matches: &ArgMatches) -> Vec<RuleSource> {
    let mut sources = Vec::new();
    for (id, include, is_file) in [
        ("exclude", false, false),
        ("include", true, false),
        ("exclude_from", false, true),
        ("include_from", true, true),
    ] {
        let indices = matches.indices_of(id).into_iter().flatten();
        let values = matches.get_many::<OsString>(id).into_iter().flatten().cloned();
        sources.extend(indices.zip(values).map(|(index, value)| {
            let source = if is_file {
                RuleSource::File { include, file: value }
            } else {
                RuleSource::Pattern { include, pattern: value }
            };
            (index, source)
        }));
    }
    sources.sort_by_key(|(index, _)| *index);
    sources.into_iter().map(|(_, source)| source).collect()
}

/// The rules of all sources; `read` returns a file's bytes.
///
/// # Errors
/// The first error of `read`, or a rule that has a prefix and no pattern.
pub(crate) fn compile(
    sources: &[RuleSource],
    mut read: impl FnMut(&OsStr) -> Result<Vec<u8>, CliError>,
) -> Result<Vec<Rule>, CliError> {
    let mut rules = Vec::new();
    for source in sources {
        match source {
            RuleSource::Pattern { include, pattern } => {
                let option = if *include { "--include" } else { "--exclude" };
                add(&mut rules, *include, pattern.as_bytes(), || option.to_owned())?;
            }
            RuleSource::File { include, file } => {
                let text = read(file)?;
                let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
                // To rsync a line ends at CR too, and its text at NUL.
                for (number, line) in text.split(|byte| b"\n\r".contains(byte)).enumerate() {
                    let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
                    if !matches!(line.first(), Some(b'#' | b';')) {
                        let location = || format!("{}: line {}", escape(file.as_bytes()), number + 1);
                        add(&mut rules, *include, line, location)?;
                    }
                }
            }
        }
    }
    Ok(rules)
}

/// Adds a rule as rsync does. The prefixes `+ ` and `- ` override the option, and `!` clears all
/// rules so far. An empty text is no rule.
fn add(
    rules: &mut Vec<Rule>,
    include: bool,
    text: &[u8],
    location: impl Fn() -> String,
) -> Result<(), CliError> {
    let (include, pattern) = match text {
        b"" => return Ok(()),
        b"!" => {
            rules.clear();
            return Ok(());
        }
        [b'+', b' ', pattern @ ..] => (true, pattern),
        [b'-', b' ', pattern @ ..] => (false, pattern),
        pattern => (include, pattern),
    };
    if pattern.is_empty() {
        return Err(CliError::usage(
            format!("{}: the rule \"{}\" has no pattern", location(), escape(text)),
            "Write a pattern behind the sign and its space, or remove the rule.",
        ));
    }
    rules.push(Rule { include, pattern: pattern.to_vec() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::args::{Mode, parse};

    fn compiled(args: &[&str], file: &[u8]) -> Vec<String> {
        let all = ["ksync", "a", "b"].iter().chain(args).map(OsString::from);
        let Ok(Mode::Sync(parsed)) = parse(all) else { panic!("{args:?}") };
        let rules = compile(&parsed.rules, |_| Ok(file.to_vec())).unwrap();
        let shown =
            |rule: &Rule| format!("{} {}", if rule.include { '+' } else { '-' }, rule.pattern.escape_ascii());
        rules.iter().map(shown).collect()
    }

    #[test]
    fn rules_keep_the_order_of_the_command_line() {
        let args = ["--include", "a", "--exclude=b", "--include=c", "--exclude", "d", "--exclude=e"];
        assert_eq!(compiled(&args, b""), ["+ a", "- b", "+ c", "- d", "- e"]);
        let args = ["--exclude=*", "--include=a"];
        assert_eq!(compiled(&args, b""), ["- *", "+ a"]);
    }

    #[test]
    fn rules_of_files_take_the_place_of_their_option() {
        let args = ["--exclude=a", "--include-from=f", "--exclude-from", "f", "--include=z"];
        assert_eq!(compiled(&args, b"x\r\n\n# no\n; no\ny"), ["- a", "+ x", "+ y", "- x", "- y", "+ z"]);
    }

    #[test]
    fn prefixes_override_the_option() {
        assert_eq!(
            compiled(&["--exclude", "+ a", "--include=- b", "--exclude=-c"], b""),
            ["+ a", "- b", "- -c"]
        );
        assert_eq!(compiled(&["--exclude=a", "--exclude-from=f"], b"!\nb"), ["- b"]);
    }

    #[test]
    fn patterns_are_bytes() {
        let pattern = RuleSource::Pattern { include: false, pattern: OsString::from_vec(b"\xff".to_vec()) };
        let rules = compile(&[pattern], |_| Ok(Vec::new())).unwrap();
        assert_eq!(rules, vec![Rule { include: false, pattern: b"\xff".to_vec() }]);
    }

    #[test]
    fn files_are_read_as_rsync_reads_them() {
        let from = |text: &[u8]| compiled(&["--exclude-from=f"], text);
        assert_eq!(from(b"a\rb\r\n\n;c\n#d\n e \n"), ["- a", "- b", "-  e "]);
        assert_eq!(from(b"a\0b\n!x\n! \n-\n+x\n- !"), ["- a", "- !x", "- ! ", "- -", "- +x", "- !"]);
        assert_eq!(from(b"\xef\xbb\xbf# no\n\xef\xbb\xbfb"), ["- \\xef\\xbb\\xbfb"]);
    }

    #[test]
    fn a_prefix_without_a_pattern_is_an_error() {
        assert_eq!(compiled(&["--exclude=", "--include=", "--exclude=a"], b""), ["- a"]);
        let error =
            |sources: &[RuleSource]| compile(sources, |_| Ok(b"a\n\n- \n".to_vec())).unwrap_err().to_string();
        let file = RuleSource::File { include: false, file: "rules".into() };
        assert!(error(&[file]).contains("rules: line 3: the rule \"- \" has no pattern"));
        let option = RuleSource::Pattern { include: true, pattern: "+ ".into() };
        assert!(error(&[option]).contains("--include: the rule \"+ \" has no pattern"));
    }
}
