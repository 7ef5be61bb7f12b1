//! Changes and problems as lines.

use ksync::exchange;
use ksync::monitor::{Action, Differs, Letters, Problem, ProblemKind, What};
use ksync::sync::Endpoint;
use ksync::tree::path::escape;

use crate::calendar::{Separator, stamp};
use crate::report::Direction;
use crate::units::{bytes, count, counted};

/// The verb of a change. A copy is made from a basis directory.
pub(crate) fn verb(action: Action) -> &'static str {
    match action {
        Action::Create | Action::Copy => "create",
        Action::Update => "update",
        Action::Adjust => "adjust",
        Action::Delete => "delete",
    }
}

/// A change of an entry, as its event reports it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) action: Action,
    pub(crate) what: What,
    pub(crate) differs: Differs,
    pub(crate) path: &'a [u8],
    /// The target of a link, or the entry whose further name this one becomes; else empty.
    pub(crate) target: &'a [u8],
}

impl Line<'_> {
    /// The change in words: `create  css/`. A new root is no line: the mapping names it.
    pub(crate) fn in_words(self) -> Option<String> {
        let is_root = self.action == Action::Create && self.path.is_empty();
        (!is_root).then(|| format!("{}  {}", verb(self.action), self.name()))
    }

    /// The change in the eleven letters of `rsync --itemize-changes`: `<f+++++++++ a`.
    ///
    /// Owner, group and the letters after them stay dots unless an option copies them.
    pub(crate) fn itemized(self, direction: Direction, checksum: bool) -> String {
        let Self { action, what, differs, .. } = self;
        let travels = match direction {
            Direction::Up => '<',
            // rsync, too, takes a local run for a download.
            Direction::Down | Direction::Local => '>',
        };
        let (kind, made_by) = match what {
            What::Directory => ('d', 'c'),
            What::File => ('f', travels),
            What::Symlink => ('L', 'c'),
            What::Special => ('S', 'c'),
        };
        let made_by = if self.is_hard_link() { 'h' } else { made_by };
        let content = if checksum { 'c' } else { '.' };
        let name = self.name();
        match action {
            Action::Delete => format!("*deleting   {name}"),
            Action::Create => format!("{made_by}{kind}+++++++++ {name}"),
            Action::Update if self.is_hard_link() => format!("h{kind}.{} {name}", letters(differs)),
            Action::Update if what == What::File => {
                format!("{made_by}{kind}{content}{} {name}", letters(differs))
            }
            Action::Update => {
                format!("{made_by}{kind}c{} {name}", letters(Differs { size: false, ..differs }))
            }
            // Without --checksum rsync transfers each file of another time, and learns only then
            // that its content is the same.
            Action::Adjust if what == What::File && differs.time && !checksum => {
                format!("{made_by}{kind}.{} {name}", letters(differs))
            }
            Action::Adjust => format!(".{kind}.{} {name}", letters(differs)),
            Action::Copy => format!("c{kind}.{} {name}", letters(differs)),
        }
    }

    fn name(self) -> String {
        let name = shown(self.what, self.path);
        format!("{name}{}", self.leads_to())
    }

    /// True if the entry becomes a further name of another one.
    fn is_hard_link(&self) -> bool {
        !self.target.is_empty() && self.what != What::Symlink
    }

    /// The target with rsync's arrow; empty for an entry without one.
    pub(crate) fn leads_to(&self) -> String {
        match self.target {
            b"" => String::new(),
            target if self.is_hard_link() => format!(" => {}", escape(target)),
            target => format!(" -> {}", escape(target)),
        }
    }
}

/// Size, time and permissions, and the letters after them.
fn letters(differs: Differs) -> String {
    let letter = |differs, letter| if differs { letter } else { '.' };
    let Differs { size, time, mode, attributes } = differs;
    let [owner, group, acl, xattr] =
        [(Letters::OWNER, 'o'), (Letters::GROUP, 'g'), (Letters::ACL, 'a'), (Letters::XATTR, 'x')]
            .map(|(of, shown)| letter(attributes.has(of), shown));
    let (size, time, mode) = (letter(size, 's'), letter(time, 't'), letter(mode, 'p'));
    format!("{size}{time}{mode}{owner}{group}.{acl}{xattr}")
}

/// A problem: `ksync: cannot read src/a/b: permission denied`. The path is written as the user can
/// type it, below SOURCE or DEST.
pub(crate) fn problem(problem: &Problem, sources: &[Endpoint], destination: &Endpoint) -> String {
    use ProblemKind::{Changed, NotRemoved, Unreadable, Vanished};
    let is_in_source = matches!(problem.kind, Unreadable | Vanished | Changed | NotRemoved);
    let path =
        if is_in_source { in_source(sources, &problem.path) } else { below(destination, &problem.path) };
    let cause = visible(&exchange::plain(cause(problem)));
    let (what, then) = match problem.kind {
        ProblemKind::Unreadable => ("cannot read", ""),
        ProblemKind::Vanished => ("cannot read", ", which vanished"),
        ProblemKind::Changed => ("cannot read", ", which keeps changing"),
        ProblemKind::Unwritable => ("cannot write", ""),
        ProblemKind::Refused => ("cannot keep the metadata of", ""),
        ProblemKind::Conflict => ("cannot replace", ", which changed in the meantime"),
        ProblemKind::Obstacle => ("cannot clear the way of", ""),
        ProblemKind::Corrupt => ("cannot verify", ""),
        // The cause is the whole message.
        ProblemKind::NotDeleted if problem.path.is_empty() => return format!("ksync: {cause}"),
        ProblemKind::NotDeleted => ("cannot delete", ""),
        ProblemKind::NotRemoved => ("cannot remove", ", which stays"),
        ProblemKind::Unlisted => ("cannot list", ", so what is in it stays"),
    };
    format!("ksync: {what} {path}{then}: {cause}")
}

/// A path of the offered tree, as the user can type it. Of several SOURCEs the first component
/// names one, or the path is that of a SOURCE which is missing.
fn in_source(sources: &[Endpoint], path: &[u8]) -> String {
    let [_, _, ..] = sources else {
        return sources.first().map_or_else(|| escape(path).into_owned(), |source| below(source, path));
    };
    if let Some(missing) = sources.iter().find(|source| source.path() == path) {
        return missing.to_string();
    }
    let (name, rest) = path.iter().position(|&byte| byte == b'/').map_or((path, &b""[..]), |slash| {
        let (name, rest) = path.split_at(slash);
        (name, rest.get(1..).unwrap_or_default())
    });
    let source = sources.iter().find(|source| source.name() == Some(name));
    source.map_or_else(|| escape(path).into_owned(), |source| below(source, rest))
}

/// A path of a tree, below its endpoint. A single file is its own endpoint.
fn below(endpoint: &Endpoint, path: &[u8]) -> String {
    let is_file = matches!(endpoint, Endpoint::Local(path) if !path.is_dir());
    if path.is_empty() || (is_file && endpoint.name() == Some(path)) {
        return endpoint.to_string();
    }
    endpoint.clone().join(path).to_string()
}

/// The cause of a problem, without the path if that is its own: `cannot open a/b: no such file`.
fn cause(problem: &Problem) -> &str {
    let own = format!(" {}: ", escape(&problem.path));
    match problem.cause.split_once(&own) {
        Some((verb, rest)) if verb.starts_with("cannot ") && !verb.contains(':') => rest,
        _ => &problem.cause,
    }
}

/// The text for directories of the source that have the name of ksync's own.
pub(crate) fn state_excluded(directories: u64) -> String {
    let directories = counted(directories, "directory", "directories");
    format!("{directories} named .ksync not copied: ksync keeps its state under this name")
}

/// The text for links that were excluded because they lead out of the tree.
pub(crate) fn links_excluded(links: u64, first: &[u8]) -> String {
    let (such_as, them) = if links == 1 { (":", "it") } else { (", the first is", "them") };
    let links = counted(links, "link", "links");
    format!(
        "{links} not copied, absolute or out of the tree{such_as} {} (--links copies {them})",
        escape(first)
    )
}

/// The text for a basis directory that does not exist.
pub(crate) fn basis_missing(path: &[u8]) -> String {
    format!("{} is no directory there, so it was passed over", escape(path))
}

/// The text for devices that were passed over.
pub(crate) fn devices_passed_over(devices: u64, first: &[u8]) -> String {
    let such_as = if devices == 1 { ":" } else { ", the first is" };
    let devices = counted(devices, "device", "devices");
    format!("{devices} not copied, since only root in DEST can make them{such_as} {}", escape(first))
}

/// The text for entries that were passed over, since the options do not copy their kind.
pub(crate) fn non_regular_skipped(entries: u64, first: &[u8]) -> String {
    let such_as = if entries == 1 { "" } else { ", the first is" };
    let entries = if entries == 1 { "file".to_owned() } else { format!("{} files", count(entries)) };
    format!("skipping non-regular {entries}{such_as} \"{}\"", escape(first))
}

/// The line for a file or link that was removed from the source.
pub(crate) fn source_removed(path: &[u8]) -> String {
    format!("remove   {} from SOURCE", escape(path))
}

/// The line for a run that can be undone.
pub(crate) fn stored(run: u64, files: u64, total: u64) -> String {
    let seconds = i64::try_from(run / 1000).unwrap_or(i64::MAX);
    let time = stamp(seconds, Separator::Blank);
    format!("{run}  {time} UTC  {} kept, {}", counted(files, "file", "files"), bytes(total))
}

/// The line for a file that grew while it was read.
pub(crate) fn grew(path: &[u8]) -> String {
    format!("ksync: {} grew while it was read: the next run copies the rest", escape(path))
}

/// Text from a peer: bytes that could steer a terminal are escaped. Backslashes stay single, since
/// paths in the text are escaped already.
pub(crate) fn visible(text: &str) -> String {
    let parts: Vec<_> = text.split('\\').map(|part| escape(part.as_bytes())).collect();
    parts.join("\\")
}

/// A destination entry that left the source: `left    css/`.
pub(crate) fn left(what: What, path: &[u8]) -> String {
    format!("left    {} (--delete would remove it)", shown(what, path))
}

pub(crate) fn shown(what: What, path: &[u8]) -> String {
    let slash = if what == What::Directory { "/" } else { "" };
    let path = if path.is_empty() { ".".into() } else { escape(path) };
    format!("{path}{slash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_listed_in_words() {
        let told = |action, what, path, target| {
            Line { action, what, differs: Differs::default(), path, target }.in_words()
        };
        assert_eq!(told(Action::Create, What::Directory, b"css", b"").unwrap(), "create  css/");
        assert_eq!(told(Action::Delete, What::File, b"a\x1b[2J", b"").unwrap(), "delete  a\\u{1b}[2J");
        assert_eq!(told(Action::Adjust, What::Directory, b"", b"").unwrap(), "adjust  ./");
        assert_eq!(told(Action::Update, What::Symlink, b"l", b"t\x1b").unwrap(), "update  l -> t\\u{1b}");
        assert_eq!(told(Action::Create, What::Directory, b"", b""), None);
    }

    #[test]
    fn itemized_changes_have_rsyncs_eleven_letters() {
        use Action::{Adjust, Create, Delete, Update};
        use Direction::{Down, Local, Up};
        for (action, what, direction, checksum, line) in [
            (Create, What::File, Up, false, "<f+++++++++ p"),
            (Create, What::File, Down, false, ">f+++++++++ p"),
            (Create, What::File, Local, false, ">f+++++++++ p"),
            (Create, What::Directory, Up, false, "cd+++++++++ p/"),
            (Create, What::Symlink, Up, false, "cL+++++++++ p"),
            (Update, What::File, Up, false, "<f.stp..... p"),
            (Update, What::File, Up, true, "<fcstp..... p"),
            (Update, What::Symlink, Up, false, "cLc.tp..... p"),
            (Adjust, What::File, Up, false, "<f.stp..... p"),
            (Adjust, What::File, Up, true, ".f.stp..... p"),
            (Adjust, What::Directory, Down, false, ".d.stp..... p/"),
            (Delete, What::File, Up, false, "*deleting   p"),
            (Delete, What::Directory, Up, false, "*deleting   p/"),
        ] {
            let differs = Differs { size: true, time: true, mode: true, ..Differs::default() };
            let told = Line { action, what, differs, path: b"p", target: b"" };
            assert_eq!(told.itemized(direction, checksum), line);
            assert_eq!(line.rfind(" p"), Some(11), "{line}");
        }
    }

    #[test]
    fn an_equal_attribute_is_a_dot() {
        let told = |action, what, differs, path, target| {
            Line { action, what, differs, path, target }.itemized(Direction::Local, false)
        };
        let time = Differs { time: true, ..Differs::default() };
        assert_eq!(told(Action::Adjust, What::Directory, time, b"", b""), ".d..t...... ./");
        assert_eq!(told(Action::Adjust, What::Symlink, time, b"l", b"t"), ".L..t...... l -> t");
        let mode = Differs { mode: true, ..Differs::default() };
        assert_eq!(told(Action::Update, What::File, mode, b"a", b""), ">f...p..... a");
        assert_eq!(told(Action::Adjust, What::File, mode, b"a", b""), ".f...p..... a");
    }

    #[test]
    fn problems_name_verb_path_and_cause_once() {
        let told = |kind, path: &[u8], cause: &str| {
            let [source, destination] =
                ["./src", "me@host:/dst"].map(|text| Endpoint::parse(text.as_ref()).unwrap());
            problem(
                &Problem { kind, path: path.to_vec(), cause: cause.to_owned() },
                std::slice::from_ref(&source),
                &destination,
            )
        };
        use ProblemKind::{NotDeleted, Unreadable, Unwritable, Vanished};
        for (kind, path, cause, line) in [
            (Unreadable, &b"a\nb"[..], "no", "cannot read ./src/a\\nb: no"),
            (
                Unreadable,
                b"d/sub",
                "cannot open d/sub: Permission denied (os error 13)",
                "cannot read ./src/d/sub: permission denied",
            ),
            (Vanished, b"a", "cannot open a: gone", "cannot read ./src/a, which vanished: gone"),
            (Unreadable, b"", "no", "cannot read ./src: no"),
            (Unwritable, b"a", "cannot make b: no", "cannot write me@host:/dst/a: cannot make b: no"),
            (NotDeleted, b"", "\x1b]0;owned\x07 a\\nb", "\\u{1b}]0;owned\\u{7} a\\nb"),
        ] {
            assert_eq!(told(kind, path, cause), format!("ksync: {line}"));
        }
    }
}
