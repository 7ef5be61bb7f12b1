//! `--out-format` and `--log-file-format`: rsync's escapes for the line of a change.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use ksync::monitor::{Action, What};
use ksync::sync::Endpoint;
use ksync::tree::path::escape;

use crate::calendar::{Separator, stamp};
use crate::list::Line;
use crate::report::Direction;
use crate::units::count;

/// The default of `--log-file-format`, as in rsync.
pub(crate) const LOG_FORMAT: &str = "%i %n%L";

/// Escapes that ksync fills in. The metadata of `%l`, `%M`, `%B`, `%U` and `%G` is that of the
/// entry on this machine: in SOURCE if it is here, else in DEST.
const KNOWN: &str = "BfGiLlMnoptU%";

/// Escapes of rsync that have no answer here.
const FOREIGN: &str = "abcChmPu";

/// A format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Escape(Escape),
}

/// An escape: `%-10n`, `%'l`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Escape {
    letter: char,
    width: usize,
    is_left: bool,
    is_grouped: bool,
}

/// The facts about a run that lines depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) sources: &'a [Endpoint],
    pub(crate) destination: &'a Endpoint,
    pub(crate) direction: Direction,
    pub(crate) checksum: bool,
}

impl Format {
    /// Parses a format. The error continues "takes".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('%') {
            plain.push_str(before);
            let is_option = |c: &char| matches!(c, '-' | '\'') || c.is_ascii_digit();
            let options: String = behind.chars().take_while(is_option).collect();
            let letter = behind.get(options.len()..).and_then(|rest| rest.chars().next());
            match letter {
                Some(letter) if KNOWN.contains(letter) => {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    let digits: String = options.chars().filter(char::is_ascii_digit).collect();
                    parts.push(Part::Escape(Escape {
                        letter,
                        width: digits.parse::<usize>().unwrap_or(0).min(WIDTH_MAX),
                        is_left: options.contains('-'),
                        is_grouped: options.contains('\''),
                    }));
                }
                Some(letter) if FOREIGN.contains(letter) => {
                    return Err(format!(
                        "the escapes %i %n %L %f %l %M %B %o %U %G %p %t and %%, and no %{letter}"
                    ));
                }
                // As in rsync, the text of an unknown escape stays.
                other => {
                    plain.push('%');
                    plain.push_str(&options);
                    plain.extend(other);
                }
            }
            let length = options.len() + letter.map_or(0, char::len_utf8);
            rest = behind.get(length..).unwrap_or_default();
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    fn has(&self, letters: &str) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Escape(escape) if letters.contains(escape.letter)))
    }

    /// The line of a change, if it has one. As in rsync, only a format with `%i` lists files and
    /// links of which nothing but the metadata changes.
    pub(crate) fn line(&self, line: Line<'_>, facts: Facts<'_>) -> Option<String> {
        let travels = line.what == What::File && line.differs.time && !facts.checksum;
        let is_listed = line.action != Action::Adjust || travels || line.what == What::Directory;
        if !is_listed && !self.has("i") {
            return None;
        }
        let path = local(line.path, facts);
        let metadata =
            self.has("lMBUG").then(|| path.and_then(|path| path.symlink_metadata().ok())).flatten();
        // As in rsync, a deletion has a form of its own if neither escape names it.
        if line.action == Action::Delete && !self.has("io") {
            return Some(format!("deleting {}", name(line)));
        }
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Escape(escape) => text.push_str(&escape.fill(line, facts, metadata.as_ref())),
            }
        }
        Some(text)
    }
}

/// Widest field, in columns.
const WIDTH_MAX: usize = 1000;

impl Escape {
    fn fill(self, line: Line<'_>, facts: Facts<'_>, metadata: Option<&Metadata>) -> String {
        let value = self.value(line, facts, metadata);
        let missing = self.width.saturating_sub(value.chars().count());
        let room = " ".repeat(missing);
        if self.is_left { format!("{value}{room}") } else { format!("{room}{value}") }
    }

    fn value(self, line: Line<'_>, facts: Facts<'_>, metadata: Option<&Metadata>) -> String {
        let number = |number: u64| if self.is_grouped { count(number) } else { number.to_string() };
        match self.letter {
            'i' => {
                let letters = line.itemized(facts.direction, facts.checksum);
                letters.get(..11).unwrap_or(&letters).to_owned()
            }
            'n' => name(line),
            'L' => line.leads_to(),
            'f' => long_name(line, facts),
            'o' => match (line.action, facts.direction) {
                (Action::Delete, _) => "del.",
                (_, Direction::Down) => "recv",
                (_, Direction::Up | Direction::Local) => "send",
            }
            .to_owned(),
            'l' => number(metadata.map_or(0, Metadata::len)),
            'U' => number(metadata.map_or(0, |metadata| metadata.uid().into())),
            'G' => number(metadata.map_or(0, |metadata| metadata.gid().into())),
            'p' => number(std::process::id().into()),
            'M' => stamp(metadata.map_or(0, MetadataExt::mtime), Separator::Dash),
            'B' => permissions(metadata.map_or(0, MetadataExt::mode)),
            't' => now(),
            letter => letter.to_string(),
        }
    }
}

/// The present time, as rsync writes it into its log.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    stamp(i64::try_from(seconds).unwrap_or(i64::MAX), Separator::Blank)
}

/// Nine letters for a mode, as `ls` writes them.
pub(crate) fn permissions(mode: u32) -> String {
    let mut letters: Vec<char> = "rwxrwxrwx".chars().collect();
    for (index, letter) in letters.iter_mut().enumerate() {
        if mode & (0o400 >> index) == 0 {
            *letter = '-';
        }
    }
    for (bit, index, set, unset) in [(0o4000, 2, 's', 'S'), (0o2000, 5, 's', 'S'), (0o1000, 8, 't', 'T')] {
        if let Some(letter) = letters.get_mut(index).filter(|_| mode & bit != 0) {
            *letter = if *letter == 'x' { set } else { unset };
        }
    }
    letters.into_iter().collect()
}

fn name(line: Line<'_>) -> String {
    crate::list::shown(line.what, line.path)
}

/// The name with that of its SOURCE, without a leading slash, as in rsync.
fn long_name(line: Line<'_>, facts: Facts<'_>) -> String {
    let path = match (line.action, local(line.path, facts)) {
        (Action::Delete, _) | (_, None) => return escape(line.path).into_owned(),
        (_, Some(path)) => path,
    };
    escape(path.as_os_str().as_encoded_bytes()).trim_start_matches('/').to_owned()
}

/// The entry on this machine.
fn local(path: &[u8], facts: Facts<'_>) -> Option<PathBuf> {
    let below = |endpoint: &Endpoint, path: &[u8]| match endpoint {
        Endpoint::Local(top) if path.is_empty() || !top.is_dir() => Some(top.clone()),
        Endpoint::Local(_) => match endpoint.clone().join(path) {
            Endpoint::Local(path) => Some(path),
            _ => None,
        },
        _ => None,
    };
    match facts.sources {
        [Endpoint::Local(_), _, ..] => {
            let (name, rest) =
                path.split_at(path.iter().position(|&byte| byte == b'/').unwrap_or(path.len()));
            let source = facts.sources.iter().find(|source| source.name() == Some(name))?;
            below(source, rest.strip_prefix(b"/").unwrap_or_default())
        }
        [source @ Endpoint::Local(_)] => below(source, path),
        _ => below(facts.destination, path),
    }
}

#[cfg(test)]
mod tests {
    use ksync::monitor::Differs;

    use super::*;

    fn line(format: &str, action: Action, what: What, path: &[u8], target: &[u8]) -> Option<String> {
        let [source, destination] = ["/no/src", "me@h:d"].map(|text| Endpoint::parse(text.as_ref()).unwrap());
        let facts = Facts {
            sources: &[source],
            destination: &destination,
            direction: Direction::Up,
            checksum: false,
        };
        let differs = Differs { mode: true, ..Differs::default() };
        Format::parse(format).unwrap().line(Line { action, what, differs, path, target }, facts)
    }

    #[test]
    fn escapes_are_filled_in_as_rsync_does() {
        let told = |format| line(format, Action::Create, What::File, b"a", b"").unwrap();
        assert_eq!(told("%i %n|%4n|%-4n|%o|%%|%q|%"), "<f+++++++++ a|   a|a   |send|%|%q|%");
        let link = line("%n%L", Action::Create, What::Symlink, b"l", b"t\n").unwrap();
        assert_eq!(link, "l -> t\\n");
        let delete = |format| line(format, Action::Delete, What::Directory, b"d", b"").unwrap();
        assert_eq!(
            [delete("%n"), delete("%o %n"), delete("%i %n")],
            ["deleting d/", "del. d/", "*deleting   d/"]
        );
        assert_eq!(line("%n", Action::Adjust, What::File, b"a", b""), None);
        assert_eq!(line("%i", Action::Adjust, What::File, b"a", b"").unwrap(), ".f...p.....");
    }

    #[test]
    fn an_escape_that_ksync_cannot_fill_in_is_an_error() {
        assert!(Format::parse("%n %C").unwrap_err().ends_with("and no %C"));
    }

    #[test]
    fn permissions_have_nine_letters() {
        let texts = [0o755, 0o4711, 0o2640, 0o1777, 0o1000].map(permissions);
        assert_eq!(texts, ["rwxr-xr-x", "rws--x--x", "rw-r-S---", "rwxrwxrwt", "--------T"]);
    }
}
