//! Wildcards over paths, in the two dialects that people know: rsync's filter patterns and gitignore.
//!
//! A pattern is compiled to a list of tokens and matched by following all of its states at once, so that
//! no pattern, whoever wrote it, costs more than its length times that of the path.

/// Whose rules a pattern follows where they differ.
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
    tokens: Vec<Token>,
    /// Matched against the whole path instead of its last component or a tail of it.
    anchored: bool,
    /// Matched against more than the last component.
    has_slash: bool,
    directories_only: bool,
    /// rsync's `dir/***`: the directory itself matches too.
    with_content: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: one byte but `/`.
    Any,
    /// `[…]`: one byte of a set.
    Class(Box<[bool; 256]>),
    /// `*`: bytes but `/`.
    Star,
    /// `**`: bytes.
    Stars,
    /// gitignore's `**/`: nothing, or components that end in `/`. Always followed by [`Token::Within`].
    Components,
    /// The state inside such components.
    Within,
}

impl Pattern {
    /// Compiles `text`, which is neither empty nor only slashes; `None` where it is.
    #[must_use]
    pub fn new(text: &[u8], dialect: Dialect) -> Option<Self> {
        let with_content = dialect == Dialect::Rsync && text.ends_with(b"/***");
        let body = if with_content { text.get(..text.len() - 4)? } else { text };
        let directories_only = body.ends_with(b"/");
        let body = body.strip_suffix(b"/").unwrap_or(body);
        let leading = body.starts_with(b"/");
        let body = body.strip_prefix(b"/").unwrap_or(body);
        if body.is_empty() {
            return None;
        }
        let inner_slash = body.contains(&b'/');
        let anchored = leading || (dialect == Dialect::Gitignore && inner_slash);
        let spans = dialect == Dialect::Rsync && body.windows(2).any(|pair| pair == b"**");
        Some(Self {
            tokens: compile(body, dialect),
            anchored,
            has_slash: inner_slash || spans,
            directories_only,
            with_content,
        })
    }

    /// Whether the pattern matches `path`, relative to where the pattern was written.
    #[must_use]
    pub fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.with_content {
            let above = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
            let mut directories = above.filter_map(|(slash, _)| path.get(..slash));
            return directories.any(|directory| self.matches_itself(directory))
                || (is_directory && self.matches_itself(path));
        }
        (is_directory || !self.directories_only) && self.matches_itself(path)
    }

    fn matches_itself(&self, path: &[u8]) -> bool {
        if self.anchored {
            return run(&self.tokens, path);
        }
        let mut starts =
            path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(slash, _)| slash + 1);
        if self.has_slash {
            std::iter::once(0)
                .chain(starts)
                .any(|start| run(&self.tokens, path.get(start..).unwrap_or_default()))
        } else {
            run(&self.tokens, path.get(starts.next_back().unwrap_or(0)..).unwrap_or_default())
        }
    }
}

fn compile(body: &[u8], dialect: Dialect) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'*' => {
                let stars = 1 + after.iter().take_while(|&&next| next == b'*').count();
                rest = after.get(stars - 1..).unwrap_or_default();
                let at_start = matches!(tokens.last(), None | Some(Token::Byte(b'/') | Token::Within));
                match (dialect, stars) {
                    (_, 1) => tokens.push(Token::Star),
                    (Dialect::Rsync, _) => tokens.push(Token::Stars),
                    (Dialect::Gitignore, _) if at_start && rest.starts_with(b"/") => {
                        rest = rest.get(1..).unwrap_or_default();
                        tokens.extend([Token::Components, Token::Within]);
                    }
                    (Dialect::Gitignore, _) if at_start && rest.is_empty() => {
                        // Everything inside: at least one byte.
                        tokens.extend([Token::Any, Token::Stars]);
                    }
                    (Dialect::Gitignore, _) => tokens.push(Token::Star),
                }
            }
            b'?' => tokens.push(Token::Any),
            b'[' => match class(after) {
                Some((set, after)) => {
                    tokens.push(Token::Class(set));
                    rest = after;
                }
                None => tokens.push(Token::Byte(b'[')),
            },
            b'\\' => {
                let (escaped, after) =
                    after.split_first().map_or((b'\\', after), |(&next, after)| (next, after));
                tokens.push(Token::Byte(escaped));
                rest = after;
            }
            _ => tokens.push(Token::Byte(byte)),
        }
    }
    tokens
}

/// The set of a `[…]` whose bracket has been read, and what follows; `None` where it is not closed.
fn class(text: &[u8]) -> Option<(Box<[bool; 256]>, &[u8])> {
    let negated = matches!(text.first(), Some(b'!' | b'^'));
    let mut rest = if negated { text.get(1..)? } else { text };
    let mut set = Box::new([false; 256]);
    let mut first = true;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        if byte == b']' && !first {
            break;
        }
        first = false;
        if byte == b'['
            && let Some((members, after)) = named_class(after)
        {
            rest = after;
            set.iter_mut().zip(0..=u8::MAX).for_each(|(slot, byte)| *slot |= members(&byte));
            continue;
        }
        let (low, after) =
            if byte == b'\\' { rest.split_first().map(|(&b, after)| (b, after))? } else { (byte, rest) };
        rest = after;
        let mut high = low;
        if let [b'-', end, after @ ..] = rest
            && *end != b']'
        {
            (high, rest) = (*end, after);
        }
        set.iter_mut().zip(0..=u8::MAX).for_each(|(slot, byte)| *slot |= (low..=high).contains(&byte));
    }
    if negated {
        set.iter_mut().for_each(|slot| *slot = !*slot);
    }
    // No class matches the separator.
    if let Some(slot) = set.get_mut(usize::from(b'/')) {
        *slot = false;
    }
    Some((set, rest))
}

/// Whether a byte belongs to a class.
type Members = fn(&u8) -> bool;

/// The POSIX class `:name:]` whose opening bracket has been read.
fn named_class(text: &[u8]) -> Option<(Members, &[u8])> {
    let text = text.strip_prefix(b":")?;
    let end = text.windows(2).position(|pair| pair == b":]")?;
    let members: Members = match text.get(..end)? {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| byte.is_ascii_graphic() || *byte == b' ',
        b"punct" => u8::is_ascii_punctuation,
        b"space" => u8::is_ascii_whitespace,
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    };
    Some((members, text.get(end + 2..)?))
}

/// Whether the tokens match all of `text`.
fn run(tokens: &[Token], text: &[u8]) -> bool {
    // states[i]: the tokens before i have matched what was read.
    let mut states = vec![false; tokens.len() + 1];
    enter(tokens, &mut states, 0);
    let mut next = vec![false; tokens.len() + 1];
    for &byte in text {
        next.fill(false);
        for (at, token) in tokens.iter().enumerate() {
            if !states.get(at).is_some_and(|&active| active) {
                continue;
            }
            match token {
                Token::Byte(wanted) if *wanted == byte => enter(tokens, &mut next, at + 1),
                Token::Any if byte != b'/' => enter(tokens, &mut next, at + 1),
                Token::Class(set) if set.get(usize::from(byte)).is_some_and(|&member| member) => {
                    enter(tokens, &mut next, at + 1);
                }
                Token::Star if byte != b'/' => enter(tokens, &mut next, at),
                Token::Stars => enter(tokens, &mut next, at),
                Token::Within => {
                    enter(tokens, &mut next, at);
                    if byte == b'/' {
                        enter(tokens, &mut next, at + 1);
                    }
                }
                Token::Byte(_) | Token::Any | Token::Class(_) | Token::Star | Token::Components => {}
            }
        }
        std::mem::swap(&mut states, &mut next);
    }
    states.last().is_some_and(|&matched| matched)
}

/// Activates a state and those that are reached from it without reading anything.
fn enter(tokens: &[Token], states: &mut [bool], at: usize) {
    let Some(state) = states.get_mut(at) else { return };
    if *state {
        return;
    }
    *state = true;
    match tokens.get(at) {
        Some(Token::Star | Token::Stars) => enter(tokens, states, at + 1),
        Some(Token::Components) => {
            enter(tokens, states, at + 1);
            enter(tokens, states, at + 2);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(dialect: Dialect, pattern: &str, path: &str) -> bool {
        let (path, is_directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        Pattern::new(pattern.as_bytes(), dialect).unwrap().matches(path.as_bytes(), is_directory)
    }

    #[test]
    fn rsync_patterns_match_as_its_manual_says() {
        for (pattern, yes, no) in [
            ("*.o", &["a.o", "d/a.o", ".o"][..], &["a.oo", "a.o/b"][..]),
            ("/foo", &["foo", "foo/"], &["d/foo", "foob"]),
            ("foo/", &["foo/", "d/foo/"], &["foo"]),
            ("foo/bar", &["foo/bar", "d/foo/bar"], &["foo/x/bar", "xfoo/bar"]),
            ("/foo/*/bar", &["foo/x/bar"], &["foo/bar", "foo/x/y/bar"]),
            ("/foo/**/bar", &["foo/x/bar", "foo/x/y/bar"], &["foo/bar"]),
            ("foo/**", &["foo/x", "d/foo/x/y"], &["foo"]),
            ("foo/***", &["foo/", "foo/x", "foo/x/y", "d/foo/x"], &["foo", "food/x"]),
            ("a[0-9a-c]?", &["a1x", "abx"], &["adx", "a1", "a1/"]),
            ("[!a]b", &["xb"], &["ab", "/b"]),
            ("[[:digit:]]", &["5"], &["x"]),
            (r"\*", &["*"], &["x"]),
            ("[x", &["[x"], &["x"]),
        ] {
            yes.iter().for_each(|path| assert!(matches(Dialect::Rsync, pattern, path), "{pattern} {path}"));
            no.iter().for_each(|path| assert!(!matches(Dialect::Rsync, pattern, path), "{pattern} {path}"));
        }
    }

    #[test]
    fn gitignore_patterns_match_as_its_manual_says() {
        for (pattern, yes, no) in [
            ("*.o", &["a.o", "d/a.o"][..], &["a.oo"][..]),
            ("/foo", &["foo"], &["d/foo"]),
            ("foo/bar", &["foo/bar"], &["d/foo/bar"]),
            ("**/foo", &["foo", "d/foo", "d/e/foo"], &["xfoo", "d/xfoo"]),
            ("foo/**", &["foo/x", "foo/x/y"], &["foo", "d/foo/x"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "ab"]),
            ("foo*bar", &["foobar", "fooxbar"], &["foo/bar"]),
            ("build/", &["build/", "d/build/"], &["build"]),
        ] {
            yes.iter()
                .for_each(|path| assert!(matches(Dialect::Gitignore, pattern, path), "{pattern} {path}"));
            no.iter()
                .for_each(|path| assert!(!matches(Dialect::Gitignore, pattern, path), "{pattern} {path}"));
        }
    }

    #[test]
    fn no_pattern_costs_more_than_its_length_times_the_paths() {
        let pattern = Pattern::new(&b"*a".repeat(1000), Dialect::Rsync).unwrap();
        assert!(!pattern.matches(&[b'a'; 255].repeat(3), false));
    }
}
