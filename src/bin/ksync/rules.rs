//! The filter options. The first rule that matches wins, so the order of all of them on the command
//! line matters, except that of `-C`: its rules come last.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::ArgMatches;
use ksync::tree::filter::{BYTE_ORDER_MARK, Rule};
use ksync::tree::path::escape;
use ksync::tree::rule::{CVS_FILE, DEPTH_MAX, Parsed, RuleError, bits, parse, texts};

use crate::report::CliError;

/// The origin of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleSource {
    /// `--exclude` or `--include`: one rule.
    Pattern { include: bool, pattern: OsString },
    /// `--exclude-from` or `--include-from`: a file with one rule per line.
    File { include: bool, file: OsString },
    /// `--filter`: one rule, which may merge files.
    Filter(OsString),
    /// `-F`.
    PerDirectory,
}

/// The settings of all sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RuleSettings {
    /// `--from0`: the rules in files end at a NUL.
    pub(crate) nul_ended: bool,
    /// `-C`, with the patterns of `CVSIGNORE`.
    pub(crate) cvs_exclude: bool,
}

/// Makes a source of an option's value.
type MakeSource = fn(OsString) -> RuleSource;

/// The sources in the order of the command line.
pub(crate) fn in_order(matches: &ArgMatches) -> Vec<RuleSource> {
    let mut sources = Vec::new();
    let kinds: [(&str, MakeSource); 6] = [
        ("exclude", |pattern| RuleSource::Pattern { include: false, pattern }),
        ("include", |pattern| RuleSource::Pattern { include: true, pattern }),
        ("exclude_from", |file| RuleSource::File { include: false, file }),
        ("include_from", |file| RuleSource::File { include: true, file }),
        ("filter", RuleSource::Filter),
        ("per_directory", |_| RuleSource::PerDirectory),
    ];
    for (id, source) in kinds {
        let indices = matches.indices_of(id).into_iter().flatten();
        let values = matches.get_many::<OsString>(id).into_iter().flatten().cloned();
        sources.extend(indices.zip(values).map(|(index, value)| (index, source(value))));
    }
    sources.sort_by_key(|(index, _)| *index);
    sources.into_iter().map(|(_, source)| source).collect()
}

/// The rules of all sources; `read` returns a file's bytes.
///
/// # Errors
/// The first error of `read`, or a text that is no rule.
pub(crate) fn compile(
    sources: &[RuleSource],
    settings: &RuleSettings,
    read: &mut dyn FnMut(&OsStr) -> Result<Vec<u8>, CliError>,
) -> Result<Vec<Rule>, CliError> {
    let mut list = RuleList { rules: Vec::new(), nul_ended: settings.nul_ended, has_cvs: false, read };
    let mut per_directory = 0;
    for source in sources {
        match source {
            RuleSource::Pattern { include, pattern } => {
                let option = if *include { "--include" } else { "--exclude" };
                list.add_plain(*include, pattern.as_bytes(), || option.to_owned())?;
            }
            RuleSource::File { include, file } => {
                let text = (list.read)(file)?;
                let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
                for (line, text) in texts(text, 0, settings.nul_ended) {
                    list.add_plain(*include, text, || at(file, line))?;
                }
            }
            RuleSource::Filter(rule) => list.add(rule.as_bytes(), 0, 0, &|| "--filter".to_owned())?,
            RuleSource::PerDirectory => {
                per_directory += 1;
                let rule: &[u8] = match per_directory {
                    1 => b": /.rsync-filter",
                    2 => b"- .rsync-filter",
                    _ => continue,
                };
                list.add(rule, 0, 0, &|| "-F".to_owned())?;
            }
        }
    }
    if settings.cvs_exclude {
        list.add(b":C", 0, 0, &|| "-C".to_owned())?;
        list.add(b"-C", 0, 0, &|| "-C".to_owned())?;
    }
    Ok(list.rules)
}

fn at(file: &OsStr, line: usize) -> String {
    format!("{}: line {line}", escape(file.as_bytes()))
}

/// The rules so far.
struct RuleList<'a> {
    rules: Vec<Rule>,
    nul_ended: bool,
    /// True once the patterns of CVS are read.
    has_cvs: bool,
    read: &'a mut dyn FnMut(&OsStr) -> Result<Vec<u8>, CliError>,
}

impl RuleList<'_> {
    /// Adds a rule of `--exclude` or `--include` as rsync does. The prefixes `+ ` and `- ` override
    /// the option, and `!` clears all rules so far. An empty text is no rule.
    fn add_plain(
        &mut self,
        include: bool,
        text: &[u8],
        location: impl Fn() -> String,
    ) -> Result<(), CliError> {
        let (include, pattern) = match text {
            b"" => return Ok(()),
            b"!" => {
                self.rules.clear();
                return Ok(());
            }
            [b'+', b' ', pattern @ ..] => (true, pattern),
            [b'-', b' ', pattern @ ..] => (false, pattern),
            pattern => (include, pattern),
        };
        if pattern.is_empty() {
            return Err(refused(&location(), &RuleError::Empty(escape(text).to_string())));
        }
        self.rules.push(Rule::new(include, pattern));
        Ok(())
    }

    /// Adds a rule of `--filter`, or of a file that such a rule with the bits `of` merges.
    fn add(
        &mut self,
        text: &[u8],
        of: u16,
        depth: usize,
        location: &dyn Fn() -> String,
    ) -> Result<(), CliError> {
        let mut rule = match parse(text, of).map_err(|error| refused(&location(), &error))? {
            Parsed::Rule(rule) => rule,
            Parsed::Clear => {
                self.rules.clear();
                return Ok(());
            }
        };
        if rule.has(bits::EXCLUDE_SELF) {
            rule.bits &= !bits::EXCLUDE_SELF;
            self.rules.push(Rule::new(false, rule.merge_name()));
        }
        if rule.has(bits::MERGE) {
            if depth == DEPTH_MAX {
                return Err(refused(&location(), &RuleError::Deep(escape(text).to_string())));
            }
            let file = OsString::from_vec(rule.pattern);
            let text = (self.read)(&file)?;
            let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
            for (line, text) in texts(text, rule.bits, self.nul_ended) {
                self.add(text, rule.bits, depth + 1, &|| at(&file, line))?;
            }
            return Ok(());
        }
        if rule.has(bits::CVS) && !rule.has(bits::DIRECTORY_MERGE) {
            return if self.has_cvs { Ok(()) } else { self.add_cvs(rule) };
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Adds the patterns of CVS: its own, and those of this user.
    fn add_cvs(&mut self, rule: Rule) -> Result<(), CliError> {
        self.has_cvs = true;
        let (of, first) = (rule.bits, self.rules.len());
        self.rules.push(Rule { pattern: Vec::new(), ..rule });
        let add = |rules: &mut Vec<Rule>, text: &[u8], name: &OsStr| {
            for (line, text) in texts(text, of, self.nul_ended) {
                match parse(text, of).map_err(|error| refused(&at(name, line), &error))? {
                    Parsed::Rule(rule) => rules.push(rule),
                    Parsed::Clear => rules.truncate(first),
                }
            }
            Ok(())
        };
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let file = home.map(|home| std::path::Path::new(&home).join(OsStr::from_bytes(CVS_FILE)));
        if let Some(file) = file.filter(|file| file.exists()) {
            let text = (self.read)(file.as_os_str())?;
            add(&mut self.rules, &text, file.as_os_str())?;
        }
        let variable = std::env::var_os("CVSIGNORE").unwrap_or_default();
        add(&mut self.rules, variable.as_bytes(), OsStr::new("CVSIGNORE"))
    }
}

fn refused(location: &str, error: &RuleError) -> CliError {
    let hint = match error {
        RuleError::Empty(_) => "Write a pattern behind the sign and its space, or remove the rule.",
        RuleError::Kind(_) => {
            "Write a rule as in '- *.o', '+ keep.o' or ': .rsync-filter', or use --exclude."
        }
        RuleError::Modifier(..) => {
            "Put a space or an underscore between the rule's modifiers and its pattern."
        }
        RuleError::Trailing(_) => "Remove what follows the !.",
        RuleError::Sides(_) => "Remove the side from one of the two rules.",
        RuleError::Long => "Shorten the pattern.",
        RuleError::Outside(_) | RuleError::Missing(_) => "Name a file that exists.",
        RuleError::Deep(_) => "Look for a file that merges itself.",
        RuleError::Limit => "Join patterns, or use fewer files.",
    };
    CliError::usage(format!("{location}: {error}"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Mode, parse};

    fn compiled(args: &[&str], file: &[u8]) -> Vec<String> {
        let all = ["ksync", "a", "b"].iter().chain(args).map(OsString::from);
        let Ok(Mode::Sync(parsed)) = parse(all) else { panic!("{args:?}") };
        let rules = compile(&parsed.rules, &RuleSettings::default(), &mut |_| Ok(file.to_vec())).unwrap();
        let shown = |rule: &Rule| {
            format!("{} {}", if rule.has(bits::INCLUDE) { '+' } else { '-' }, rule.pattern.escape_ascii())
        };
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
        let rules = compile(&[pattern], &RuleSettings::default(), &mut |_| Ok(Vec::new())).unwrap();
        assert_eq!(rules, vec![Rule::new(false, b"\xff".to_vec())]);
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
        let error = |sources: &[RuleSource]| {
            compile(sources, &RuleSettings::default(), &mut |_| Ok(b"a\n\n- \n".to_vec()))
                .unwrap_err()
                .to_string()
        };
        let file = RuleSource::File { include: false, file: "rules".into() };
        assert!(error(&[file]).contains("rules: line 3: the rule \"- \" has no pattern"));
        let option = RuleSource::Pattern { include: true, pattern: "+ ".into() };
        assert!(error(&[option]).contains("--include: the rule \"+ \" has no pattern"));
    }
}
