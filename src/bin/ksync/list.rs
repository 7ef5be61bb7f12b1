//! Changes and problems as lines.

use ksync::monitor::{Action, Differs, Problem, ProblemKind, What};
use ksync::tree::path::escape;

use crate::report::Direction;
use crate::units::counted;

/// A change in words: `create  css/`.
pub(crate) fn plain(action: Action, what: What, path: &[u8]) -> String {
    let verb = match action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Adjust => "adjust",
        Action::Delete => "delete",
    };
    format!("{verb}  {}", shown(what, path))
}

/// A change in the eleven letters of `rsync --itemize-changes`: `<f+++++++++ a`.
///
/// Owner, group and the letters after them are not compared, so they stay dots. A link's target is
/// not shown.
pub(crate) fn itemized(
    action: Action,
    what: What,
    differs: Differs,
    path: &[u8],
    direction: Direction,
    checksum: bool,
) -> String {
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
    let path = shown(what, path);
    match action {
        Action::Delete => format!("*deleting   {path}"),
        Action::Create => format!("{made_by}{kind}+++++++++ {path}"),
        Action::Update if what == What::File => {
            let content = if checksum { 'c' } else { '.' };
            format!("{made_by}{kind}{content}{} {path}", letters(differs))
        }
        Action::Update => format!("{made_by}{kind}c{} {path}", letters(Differs { size: false, ..differs })),
        Action::Adjust => format!(".{kind}.{} {path}", letters(differs)),
    }
}

/// Size, time and permissions, and the letters after them.
fn letters(differs: Differs) -> String {
    let letter = |differs, letter| if differs { letter } else { '.' };
    let Differs { size, time, mode } = differs;
    format!("{}{}{}.....", letter(size, 's'), letter(time, 't'), letter(mode, 'p'))
}

/// A problem: `ksync: cannot read: a/b: Permission denied`.
pub(crate) fn problem(problem: &Problem) -> String {
    let what = match problem.kind {
        ProblemKind::Unreadable => "cannot read",
        ProblemKind::Vanished => "cannot read what vanished",
        ProblemKind::Changed => "cannot read what keeps changing",
        ProblemKind::Unwritable => "cannot write",
        ProblemKind::Refused => "cannot keep metadata",
        ProblemKind::Conflict => "cannot replace what changed in the meantime",
        ProblemKind::Obstacle => "cannot clear the way",
        ProblemKind::Corrupt => "cannot verify",
        ProblemKind::Unsupported => "cannot copy",
        // The cause is the whole message.
        ProblemKind::NotDeleted if problem.path.is_empty() => {
            return format!("ksync: {}", visible(&problem.cause));
        }
        ProblemKind::NotDeleted => "cannot delete",
        ProblemKind::Unlisted => {
            let path = escape(&problem.path);
            return format!("ksync: cannot list {path}, so what is in it stays: {}", visible(&problem.cause));
        }
    };
    let path = if problem.path.is_empty() { ".".into() } else { escape(&problem.path) };
    format!("ksync: {what}: {path}: {}", visible(&problem.cause))
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
        assert_eq!(plain(Action::Create, What::Directory, b"css"), "create  css/");
        assert_eq!(plain(Action::Delete, What::File, b"a\x1b[2J"), "delete  a\\u{1b}[2J");
        assert_eq!(plain(Action::Adjust, What::Directory, b""), "adjust  ./");
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
            (Adjust, What::File, Up, false, ".f.stp..... p"),
            (Adjust, What::Directory, Down, false, ".d.stp..... p/"),
            (Delete, What::File, Up, false, "*deleting   p"),
            (Delete, What::Directory, Up, false, "*deleting   p/"),
        ] {
            let differs = Differs { size: true, time: true, mode: true };
            assert_eq!(itemized(action, what, differs, b"p", direction, checksum), line);
            assert_eq!(line.rfind(" p"), Some(11), "{line}");
        }
    }

    #[test]
    fn an_equal_attribute_is_a_dot() {
        let time = Differs { time: true, ..Differs::default() };
        let line = itemized(Action::Adjust, What::Directory, time, b"", Direction::Local, false);
        assert_eq!(line, ".d..t...... ./");
        let mode = Differs { mode: true, ..Differs::default() };
        let line = itemized(Action::Update, What::File, mode, b"a", Direction::Local, false);
        assert_eq!(line, ">f...p..... a");
    }

    #[test]
    fn problems_name_verb_path_and_cause() {
        let told = |kind, path: &[u8], cause: &str| {
            problem(&Problem { kind, path: path.to_vec(), cause: cause.to_owned() })
        };
        assert_eq!(
            told(ProblemKind::Unreadable, b"a\nb", "Permission denied"),
            "ksync: cannot read: a\\nb: Permission denied"
        );
        assert_eq!(
            told(ProblemKind::NotDeleted, b"", "\x1b]0;owned\x07 a\\nb"),
            "ksync: \\u{1b}]0;owned\\u{7} a\\nb"
        );
    }
}
