//! `--exclude`, `--include` and their `-from` files, in the order of the command line: the first rule that
//! matches wins, so the order between the four options matters.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::ArgMatches;
use ksync::tree::filter::Rule;

/// Where rules come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// One option, one rule.
    Pattern { include: bool, pattern: OsString },
    /// A file with a rule on each line.
    File { include: bool, file: OsString },
}

/// The sources as they stand on the command line.
pub(crate) fn in_order(matches: &ArgMatches) -> Vec<Source> {
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
                Source::File { include, file: value }
            } else {
                Source::Pattern { include, pattern: value }
            };
            (index, source)
        }));
    }
    sources.sort_by_key(|(index, _)| *index);
    sources.into_iter().map(|(_, source)| source).collect()
}

/// The rules of all sources; `read` gives a file's bytes.
///
/// # Errors
/// The first that `read` gives.
pub(crate) fn compile<E>(
    sources: &[Source],
    mut read: impl FnMut(&OsStr) -> Result<Vec<u8>, E>,
) -> Result<Vec<Rule>, E> {
    let mut rules = Vec::new();
    for source in sources {
        match source {
            Source::Pattern { include, pattern } => add(&mut rules, *include, pattern.as_bytes()),
            Source::File { include, file } => {
                for line in read(file)?.split(|&byte| byte == b'\n') {
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    // Blank lines and comments, as rsync has them.
                    if !matches!(line.first(), None | Some(b'#' | b';')) {
                        add(&mut rules, *include, line);
                    }
                }
            }
        }
    }
    Ok(rules)
}

/// Adds a rule. As with rsync, `+ ` and `- ` before a pattern overrule the option, and `!` forgets all rules
/// so far.
fn add(rules: &mut Vec<Rule>, include: bool, text: &[u8]) {
    let (include, pattern) = match text {
        b"!" => return rules.clear(),
        [b'+', b' ', pattern @ ..] => (true, pattern),
        [b'-', b' ', pattern @ ..] => (false, pattern),
        pattern => (include, pattern),
    };
    if !pattern.is_empty() {
        rules.push(Rule { include, pattern: pattern.to_vec() });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::args::{Mode, parse};

    fn compiled(args: &[&str], file: &[u8]) -> Vec<String> {
        let all = ["ksync", "a", "b"].iter().chain(args).map(OsString::from);
        let Ok(Mode::Sync(parsed)) = parse(all) else { panic!("{args:?}") };
        let rules = compile(&parsed.rules, |_| Ok::<_, Infallible>(file.to_vec())).unwrap();
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
    fn files_stand_where_they_are_named() {
        let args = ["--exclude=a", "--include-from=f", "--exclude-from", "f", "--include=z"];
        assert_eq!(compiled(&args, b"x\r\n\n# no\n; no\ny"), ["- a", "+ x", "+ y", "- x", "- y", "+ z"]);
    }

    #[test]
    fn prefixes_overrule_the_option() {
        assert_eq!(
            compiled(&["--exclude", "+ a", "--include=- b", "--exclude=-c"], b""),
            ["+ a", "- b", "- -c"]
        );
        assert_eq!(compiled(&["--exclude=a", "--exclude-from=f"], b"!\nb"), ["- b"]);
    }

    #[test]
    fn patterns_are_bytes() {
        let rules = compile(
            &[Source::Pattern { include: false, pattern: OsString::from_vec(b"\xff".to_vec()) }],
            |_| Ok::<_, Infallible>(Vec::new()),
        );
        assert_eq!(rules, Ok(vec![Rule { include: false, pattern: b"\xff".to_vec() }]));
    }
}
