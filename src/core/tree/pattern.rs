//! Wildcards over paths, in two well-known dialects: rsync's filter patterns and gitignore.
//!
//! Parsing decides which part of a path a pattern is compared with; `Glob` compares. Both follow
//! the programs that own the dialect: rsync's `exclude.c` and `wildmatch.c`, git's `dir.c` and
//! `wildmatch.c`. `tests/exchange/filters.rs` compares them with the programs themselves.

use std::cell::OnceCell;

use crate::tree::glob::{Glob, Set, bytes_of};

/// The program whose rules a pattern follows where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// rsync's `--exclude` and `--include`.
    Rsync,
    /// gitignore, as in `.ksyncignore`.
    Gitignore,
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    compared: PathPart,
    directories_only: bool,
    glob: Glob,
    /// The part before the stars of rsync's `dir/***`, which the directory itself matches.
    itself: Option<Glob>,
}

/// The part of a path that a pattern is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathPart {
    /// The last component.
    Name,
    /// The last components, this many of them. A shorter path never matches.
    Tail(usize),
    /// The whole path.
    Path,
}

impl Pattern {
    /// Compiles `text`; `None` if it is empty.
    #[must_use]
    pub fn new(text: &[u8], dialect: Dialect) -> Option<Self> {
        match dialect {
            _ if text.is_empty() => None,
            Dialect::Rsync => Some(Self::rsync(text)),
            Dialect::Gitignore => Some(Self::gitignore(text)),
        }
    }

    fn rsync(text: &[u8]) -> Self {
        let directories_only = text.len() > 1 && text.ends_with(b"/");
        let text = if directories_only { text.strip_suffix(b"/").unwrap_or(text) } else { text };
        // rsync counts the slashes of the text, and looks for `**` in it, before it handles escapes
        // and classes.
        let slashes = text.iter().filter(|&&byte| byte == b'/').count();
        let spans = text.windows(2).any(|pair| pair == b"**");
        let is_wild = text.iter().any(|byte| b"*[?".contains(byte));
        let (anchored, body) = text.strip_prefix(b"/").map_or((false, text), |body| (true, body));
        let pattern = |compared, glob| Self { compared, directories_only, glob, itself: None };
        if !is_wild {
            // A backslash is an ordinary byte if the pattern has no wildcard.
            let compared = match (anchored, slashes) {
                (true, _) => PathPart::Path,
                (false, 0) => PathPart::Name,
                (false, slashes) => PathPart::Tail(slashes + 1),
            };
            return pattern(compared, Glob::literal(body));
        }
        if !spans {
            let compared = match (anchored, slashes) {
                (true, _) => PathPart::Path,
                (false, 0) => PathPart::Name,
                (false, slashes) => PathPart::Tail(slashes + 1),
            };
            return pattern(compared, Glob::rsync(body, false));
        }
        // A pattern with `**` that is not anchored may begin after any slash. A leading `**/` also
        // matches nothing, so that the text after it may begin there too.
        let stars = body.iter().take_while(|&&byte| byte == b'*').count();
        let leads = !anchored && stars > 1 && body.get(stars) == Some(&b'/');
        let rest = if leads { body.get(stars + 1..).unwrap_or_default() } else { body };
        let floats = leads || (!anchored && stars < 2);
        let itself = text.ends_with(b"***").then(|| before_stars(rest)).flatten();
        let compared = if leads && !rest.contains(&b'/') && !rest.windows(2).any(|pair| pair == b"**") {
            PathPart::Name
        } else {
            PathPart::Path
        };
        let glob = |text: &[u8]| Glob::rsync(text, floats && compared == PathPart::Path);
        Self { itself: itself.map(glob), ..pattern(compared, glob(rest)) }
    }

    fn gitignore(text: &[u8]) -> Self {
        let (directories_only, text) = text.strip_suffix(b"/").map_or((false, text), |text| (true, text));
        let compared = if text.contains(&b'/') { PathPart::Path } else { PathPart::Name };
        let body = text.strip_prefix(b"/").unwrap_or(text);
        Self { compared, directories_only, glob: Glob::gitignore(body), itself: None }
    }

    /// True if the pattern matches.
    #[must_use]
    pub fn matches(&self, named: &Named<'_>) -> bool {
        if self.directories_only && !named.is_directory {
            return false;
        }
        let part = match self.compared {
            PathPart::Path => named.path,
            PathPart::Name => named.name,
            PathPart::Tail(count) => match tail(named.path, count) {
                Some(part) => part,
                None => return false,
            },
        };
        let held = || named.bytes.get_or_init(|| bytes_of(named.path));
        self.glob.matches(part, held)
            || (named.is_directory && self.itself.as_ref().is_some_and(|glob| glob.matches(part, held)))
    }
}

/// An entry as patterns see it. Facts that several patterns need are computed once.
#[derive(Debug)]
pub struct Named<'a> {
    path: &'a [u8],
    name: &'a [u8],
    is_directory: bool,
    bytes: OnceCell<Set>,
}

impl<'a> Named<'a> {
    /// The entry at `path`, relative to the place where the patterns were written.
    #[must_use]
    pub fn new(path: &'a [u8], is_directory: bool) -> Self {
        let name = path.iter().rposition(|&byte| byte == b'/').and_then(|slash| path.get(slash + 1..));
        Self { path, name: name.unwrap_or(path), is_directory, bytes: OnceCell::new() }
    }
}

/// The text before the slash and the stars that end a pattern; `None` if no slash precedes them.
fn before_stars(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().rposition(|&byte| byte != b'*')? + 1;
    let before = text.get(..end)?.strip_suffix(b"/")?;
    // An escaped slash is a slash.
    let escapes = before.iter().rev().take_while(|&&byte| byte == b'\\').count();
    before.get(..before.len() - escapes % 2)
}

/// The last `count` components of a path; `None` if it has fewer.
fn tail(path: &[u8], count: usize) -> Option<&[u8]> {
    let mut slashes = path.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    // The slash before the last `count` components, or the path's start if it has exactly as many.
    match slashes.by_ref().take(count).enumerate().last() {
        Some((seen, slash)) if seen + 1 == count => path.get(slash + 1..),
        Some((seen, _)) if seen + 2 == count => Some(path),
        None if count == 1 => Some(path),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(dialect: Dialect, pattern: &[u8], path: &str) -> bool {
        let (path, is_directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        let named = Named::new(path.as_bytes(), is_directory);
        Pattern::new(pattern, dialect).unwrap().matches(&named)
    }

    fn assert_all(dialect: Dialect, table: &[(&str, &[&str], &[&str])]) {
        for (pattern, yes, no) in table {
            let check = |path: &str| matches(dialect, pattern.as_bytes(), path);
            yes.iter().for_each(|path| assert!(check(path), "{pattern} {path}"));
            no.iter().for_each(|path| assert!(!check(path), "{pattern} {path}"));
        }
    }

    #[test]
    fn rsync_patterns_match_as_its_manual_says() {
        assert_all(
            Dialect::Rsync,
            &[
                ("*.o", &["a.o", "d/a.o", ".o"], &["a.oo", "a.o/b"]),
                ("/foo", &["foo", "foo/"], &["d/foo", "foob"]),
                ("foo/", &["foo/", "d/foo/"], &["foo"]),
                ("foo/bar", &["foo/bar", "d/foo/bar"], &["foo/x/bar", "xfoo/bar"]),
                ("f*/bar", &["foo/bar", "d/foo/bar"], &["foo/x/bar", "bar", "xfoo/bar"]),
                ("/foo/*/bar", &["foo/x/bar"], &["foo/bar", "foo/x/y/bar"]),
                ("/foo/**/bar", &["foo/x/bar", "foo/x/y/bar"], &["foo/bar"]),
                ("foo/**", &["foo/x", "d/foo/x/y"], &["foo"]),
                ("foo/***", &["foo/", "foo/x", "foo/x/y", "d/foo/x"], &["foo", "food/x"]),
                ("foo/***/", &["foo/", "foo/x/"], &["foo", "foo/x"]),
                ("a[0-9a-c]?", &["a1x", "abx"], &["adx", "a1", "a1/"]),
                ("[!a]b", &["xb"], &["ab", "/b"]),
                ("[[:digit:]]", &["5"], &["x"]),
            ],
        );
    }

    #[test]
    fn rsync_patterns_match_at_the_top_as_deep_below() {
        assert_all(
            Dialect::Rsync,
            &[
                ("**/foo", &["foo", "foo/", "d/foo", "d/e/foo"], &["xfoo", "foo/x"]),
                ("**/foo/", &["foo/", "d/foo/"], &["foo", "d/foo"]),
                ("**/foo/*", &["foo/x", "d/foo/x"], &["foo/x/y", "xfoo/x"]),
                ("**/*.o", &["a.o", "d/a.o"], &["a.c"]),
                ("**/***", &["foo", "foo/", "d/foo"], &[]),
                ("***/foo", &["foo", "d/foo"], &["xfoo"]),
                ("**foo", &["foo", "d/foo", "xfoo", "d/xfoo"], &["foox"]),
                // For rsync an anchored one does not.
                ("/**/foo", &["d/foo", "d/e/foo"], &["foo"]),
                ("/**foo", &["foo", "xfoo", "d/foo"], &["foo/x"]),
            ],
        );
    }

    #[test]
    fn rsync_patterns_are_as_literal_or_broken_as_to_rsync() {
        assert_all(
            Dialect::Rsync,
            &[
                // Without wildcards a backslash is an ordinary byte; with one, it escapes.
                (r"a\b", &[r"a\b", r"d/a\b"], &["ab", r"a\\b"]),
                (r"a\", &[r"a\"], &["a"]),
                (r"\*", &["*"], &["x", r"\*"]),
                (r"*\b", &["ab", r"a\b"], &[r"a\bc", r"\"]),
                (r"*\", &[], &["a", r"a\"]),
                ("[x", &[], &["[x", "x"]),
                ("*[", &[], &["a[", "["]),
                (r"[a\]", &[], &["a", r"[a\]"]),
                ("[[:none:]]", &[], &["n", "[[:none:]]"]),
                ("[[:space:]]", &["\u{b}", " "], &["x"]),
                ("[]a]", &["]", "a"], &["[]a]"]),
                (r"[\]a-c]", &["]", "a", "b"], &[r"\"]),
                ("[a-c-e]", &["b", "-", "e"], &["d"]),
                ("[!-a]", &["b"], &["-", "a"]),
                ("[^a]", &["b", "^"], &["a"]),
                // A slash counts anywhere in the text, and no class matches one.
                ("[a/b]", &[], &["a", "b", "/", "d/a"]),
                ("/[a/b]", &["a", "b"], &["c"]),
                ("a[/]b", &[], &["a/b"]),
                (r"x\/***", &["x/", "x/y"], &["x"]),
                ("/", &[], &["a", "a/"]),
                ("a//", &[], &["a", "a/"]),
                ("//a", &[], &["a"]),
            ],
        );
    }

    #[test]
    fn gitignore_patterns_match_as_its_manual_says() {
        assert_all(
            Dialect::Gitignore,
            &[
                ("*.o", &["a.o", "d/a.o"], &["a.oo"]),
                ("/foo", &["foo"], &["d/foo"]),
                ("foo/bar", &["foo/bar"], &["d/foo/bar"]),
                ("**/foo", &["foo", "d/foo", "d/e/foo"], &["xfoo", "d/xfoo"]),
                ("/**/foo", &["foo", "d/foo"], &["xfoo"]),
                ("foo/**", &["foo/x", "foo/x/y"], &["foo", "d/foo/x"]),
                ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "ab"]),
                ("foo*bar", &["foobar", "fooxbar"], &["foo/bar"]),
                ("foo**bar", &["foobar", "fooxbar"], &["foo/bar"]),
                ("d/x**y", &["d/xy", "d/x1y"], &["d/x/y"]),
                ("build/", &["build/", "d/build/"], &["build"]),
                (r"foo\", &[], &["foo", r"foo\"]),
                (r"\#x", &["#x"], &[r"\#x"]),
                ("[x", &[], &["[x", "x"]),
                ("/", &[], &["a", "a/"]),
            ],
        );
    }
}
