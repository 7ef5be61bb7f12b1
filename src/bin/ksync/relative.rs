//! `--relative`: each SOURCE keeps its path below DEST.

use std::ffi::OsString;

use ksync::sync::endpoint::Endpoint;
use ksync::tree::path::escape;
use ksync::wire::hello::FileList;
use serde_bytes::ByteBuf;

use crate::endpoints::pair;
use crate::report::CliError;

/// A directory, DEST, and the entries of the directory that go there; `None` is all of it.
type Listed = ((Endpoint, Endpoint), Option<FileList>);

/// Splits each SOURCE into a directory and a path below it. SOURCEs below one directory are one
/// pair.
pub(crate) fn pairs(endpoints: &[OsString], has_setup: bool) -> Result<Vec<Listed>, CliError> {
    let (destination, sources) = match endpoints {
        [sources @ .., destination] if !sources.is_empty() => (destination, sources),
        // The usual error.
        _ => return pair(endpoints, has_setup).map(|_| Vec::new()),
    };
    let mut listed: Vec<Listed> = Vec::new();
    for text in sources {
        let both = pair(&[text.clone(), destination.clone()], has_setup)?;
        let Some((source, destination)) = both.into_iter().next() else { continue };
        let (root, rest) = split(source.path()).ok_or_else(|| {
            CliError::usage(
                format!("{} leads out of the directory that it is relative to", escape(source.path())),
                "Name that directory, and write /./ where the path below DEST begins.",
            )
        })?;
        let root = source.with_path(&root);
        let at = listed.iter().position(|((other, _), _)| *other == root);
        let at = at.unwrap_or_else(|| {
            listed.push(((root, destination), Some(FileList { paths: Vec::new(), recursive: true })));
            listed.len() - 1
        });
        let Some((_, list)) = listed.get_mut(at) else { continue };
        if rest.is_empty() {
            *list = None;
        } else if let Some(list) = list {
            list.paths.push((ByteBuf::from(rest), false));
        }
    }
    for list in listed.iter_mut().filter_map(|(_, list)| list.as_mut()) {
        list.paths.sort_unstable();
        list.paths.dedup();
        if !list.is_within_limits() {
            return Err(CliError::usage(
                "there are too many SOURCEs",
                "Use --files-from, or split the list.",
            ));
        }
    }
    Ok(listed)
}

/// The directory that a path is relative to, and the names below it; `None` if they lead out.
fn split(path: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    const CUT: &[u8] = b"/./";
    let cut = path.windows(CUT.len()).position(|bytes| bytes == CUT);
    let (root, rest) = match (cut, path) {
        (Some(at), _) => {
            let (root, rest) = path.split_at(at);
            (if root.is_empty() { b"/" } else { root }, rest.get(CUT.len()..)?)
        }
        (None, [b'/', rest @ ..]) => (&b"/"[..], rest),
        (None, [b'~', b'/', rest @ ..]) => (&b"~"[..], rest),
        (None, rest) => (&b"."[..], rest),
    };
    let mut names: Vec<&[u8]> = Vec::new();
    for name in rest.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some((root.to_vec(), names.join(&b'/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cut_at_its_first_dot_between_slashes() {
        for (path, root, rest) in [
            ("a/b", ".", "a/b"),
            ("a//b/", ".", "a/b"),
            ("./a", ".", "a"),
            ("/a/b", "/", "a/b"),
            ("/a/./b/c", "/a", "b/c"),
            ("/./a", "/", "a"),
            ("a/./b/./c", "a", "b/c"),
            ("a/./", "a", ""),
            ("a/.", ".", "a"),
            ("~/a/b", "~", "a/b"),
            ("a/b/../c", ".", "a/c"),
        ] {
            let expected = (root.as_bytes().to_vec(), rest.as_bytes().to_vec());
            assert_eq!(split(path.as_bytes()), Some(expected), "{path}");
        }
        for path in ["../a", "a/./../b", "a/../.."] {
            assert_eq!(split(path.as_bytes()), None, "{path}");
        }
    }
}
