//! `--files-from`: the entries of SOURCE that take part.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use ksync::tree::filter::BYTE_ORDER_MARK;
use ksync::tree::path::escape;
use ksync::tree::rule::texts;
use ksync::tree::subtrees::SUBTREES_MAX;
use ksync::wire::hello::{FILES_BYTES_MAX, FileList};
use serde_bytes::ByteBuf;

use crate::report::CliError;

/// Refuses a file on another machine, which rsync would read there.
pub(crate) fn refuse_remote(file: &OsStr) -> Result<(), CliError> {
    let bytes = file.as_bytes();
    let head = bytes.split(|&byte| byte == b'/').next().unwrap_or_default();
    if !head.contains(&b':') {
        return Ok(());
    }
    Err(CliError::usage(
        format!("--files-from {} names a file on another machine", escape(bytes)),
        "Fetch the list first, or pipe it: ssh HOST cat FILE | ksync --files-from - ...",
    ))
}

/// Parses a list as rsync does: a path per line, relative to SOURCE. `None` is all of SOURCE.
pub(crate) fn parse(
    file: &OsStr,
    text: &[u8],
    nul_ended: bool,
    recursive: bool,
) -> Result<Option<FileList>, CliError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut list = FileList { paths: Vec::new(), recursive };
    for (line, text) in texts(text, 0, nul_ended) {
        let at = |what: &str| format!("{}: line {line}: {} {what}", escape(file.as_bytes()), escape(text));
        let mut names: Vec<&[u8]> = Vec::new();
        let parts: Vec<&[u8]> = text.split(|&byte| byte == b'/').collect();
        for (number, name) in parts.iter().enumerate() {
            match *name {
                b"." if !names.is_empty() && parts.get(number + 1).is_some_and(|next| !next.is_empty()) => {
                    return Err(CliError::usage(
                        at("has a /./ inside, which would cut the path"),
                        "Name the directory before it as SOURCE, and list the rest.",
                    ));
                }
                b"" | b"." => {}
                b".." => {
                    names.pop().ok_or_else(|| {
                        CliError::usage(at("leads out of SOURCE"), "Name a directory above as SOURCE.")
                    })?;
                }
                name => names.push(name),
            }
        }
        let has_contents = matches!(parts.last(), Some(&(b"" | b"." | b"..")));
        if names.is_empty() && recursive {
            return Ok(None);
        }
        list.paths.push((ByteBuf::from(names.join(&b'/')), has_contents));
    }
    list.paths.sort_unstable();
    list.paths.dedup();
    if list.is_within_limits() {
        return Ok(Some(list));
    }
    let what = format!(
        "{} lists {} paths; {SUBTREES_MAX} with {} KiB are the most",
        escape(file.as_bytes()),
        list.paths.len(),
        FILES_BYTES_MAX >> 10
    );
    Err(CliError::usage(what, "List directories with -r, or split the list."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<FileList>, CliError> {
        parse(OsStr::new("list"), text.as_bytes(), false, false)
    }

    #[test]
    fn lists_are_read_as_rsync_reads_them() {
        let list = parsed("b\r\n\n# no\n;no\n/a/b\n./c/\nd/../e/.\na/b\n.\n x \n").unwrap().unwrap();
        let shown = list
            .paths
            .iter()
            .map(|(path, contents)| format!("{}{}", path.escape_ascii(), if *contents { "/" } else { "" }));
        assert_eq!(shown.collect::<Vec<_>>(), ["/", " x ", "a/b", "b", "c/", "e/"]);
        let nul = parse(OsStr::new("-"), b"a\nb\0c", true, true).unwrap().unwrap();
        assert_eq!(nul.paths[0].0.as_slice(), b"a\nb");
        assert_eq!(parse(OsStr::new("-"), b"a\n.", false, true).unwrap(), None, "all of SOURCE");
        assert_eq!(parsed("").unwrap(), Some(FileList::default()));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused_with_their_line() {
        let error = |text: &str| parsed(text).unwrap_err().to_string();
        assert!(
            error("a\n../b").starts_with("ksync: list: line 2: ../b leads out of SOURCE\n  hint: Name a")
        );
        assert!(error("a/./b").starts_with("ksync: list: line 1: a/./b has a /./ inside"));
        assert!(error(&"a/".repeat(410_000)).contains("lists 1 paths; 50000 with 800 KiB are the most"));
        assert!(
            refuse_remote(OsStr::new("host:list")).unwrap_err().to_string().contains("on another machine")
        );
        assert!(refuse_remote(OsStr::new("./host:list")).is_ok() && refuse_remote(OsStr::new("-")).is_ok());
    }
}
