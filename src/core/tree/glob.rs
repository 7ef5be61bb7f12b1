//! Globs: compiled wildcards of a pattern, and their comparison with a text.
//!
//! A pattern is a sequence of segments of fixed length with gaps between them. Within a component
//! only a literal `/` matches a slash, so the leftmost place of a segment is always right. No
//! placed segment is ever tried again, whoever wrote the pattern. A comparison costs at most the
//! pattern's length times the text's. A text that is shorter than all segments together costs
//! nothing.

/// A compiled sequence of wildcards and literals. It matches a whole text or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Glob {
    /// A malformed pattern, which matches nothing: an unclosed `[`, a `\` at the end.
    Never,
    /// Exactly this text.
    Literal(Box<[u8]>),
    /// `*` and this text, in one component.
    Ending(Box<[u8]>),
    /// Anything else.
    Pieces(Box<Pieces>),
}

/// Segments and the gaps before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Length of all segments together, in bytes.
    bytes: usize,
    /// The bytes that every matching text contains.
    needed: Set,
    pieces: Box<[Piece]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    gap: Gap,
    segment: Segment,
}

/// The bytes allowed before a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// Nothing.
    None,
    /// `*`: bytes of one component.
    Within,
    /// `**`: any bytes.
    Across,
    /// gitignore's `**/`: nothing, or bytes that end in `/`.
    Components,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Mixed(Box<[Token]>),
}

/// Matches one byte.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: any byte but `/`.
    Any,
    /// `[…]`: a byte of a set.
    Class(Box<Set>),
}

/// A set of bytes.
pub(super) type Set = [u64; 4];

/// Result of an attempt to place a group of segments.
enum Attempt {
    /// The group is placed and ends here.
    Placed(usize),
    /// The first segment does not match at the start of the attempt.
    Elsewhere,
    /// The component ends too early. No start in the component of the first segment does better.
    NextComponent,
    /// The text ends too early.
    Over,
}

impl Glob {
    /// A text without wildcards.
    pub(super) fn literal(text: &[u8]) -> Self {
        Self::Literal(text.into())
    }

    /// Compiles rsync's wildcards. A pattern that `floats` may begin after any slash.
    pub(super) fn rsync(text: &[u8], floats: bool) -> Self {
        let mut compiler = Compiler::new(if floats { Gap::Components } else { Gap::None });
        compiler.run(text, |_, stars, rest| (if stars > 1 { Gap::Across } else { Gap::Within }, rest));
        compiler.finish()
    }

    /// Compiles gitignore's wildcards.
    pub(super) fn gitignore(text: &[u8]) -> Self {
        let mut compiler = Compiler::new(Gap::None);
        compiler.run(text, |before, stars, rest| {
            let is_component = stars > 1 && matches!(before, None | Some(b'/'));
            match rest {
                [b'/', rest @ ..] if is_component => (Gap::Components, rest),
                [] | [b'\\', b'/', ..] if is_component => (Gap::Across, rest),
                _ => (Gap::Within, rest),
            }
        });
        compiler.finish()
    }

    /// True if all of `text` matches. `held` gives the bytes of `text`, or of a longer text that
    /// contains it.
    pub(super) fn matches<'a>(&self, text: &[u8], held: impl FnOnce() -> &'a Set) -> bool {
        match self {
            Self::Never => false,
            Self::Literal(literal) => **literal == *text,
            Self::Ending(literal) => text
                .strip_suffix(&**literal)
                .is_some_and(|rest| literal.contains(&b'/') || !rest.contains(&b'/')),
            Self::Pieces(pieces) => pieces.may_match(text, held) && pieces.match_now(text),
        }
    }
}

impl Pieces {
    /// Makes the cheap checks, which most texts fail.
    fn may_match<'a>(&self, text: &[u8], held: impl FnOnce() -> &'a Set) -> bool {
        text.len() >= self.bytes
            && self.pieces.last().is_some_and(|last| last.segment.ends(text))
            && self.needed.iter().zip(held()).all(|(needed, held)| needed & !held == 0)
    }

    /// Places the groups of segments one after the other, after [`Self::may_match`].
    fn match_now(&self, text: &[u8]) -> bool {
        let mut rest = &*self.pieces;
        let mut at = 0;
        while let Some((first, others)) = rest.split_first() {
            let inner = others.iter().take_while(|piece| piece.gap == Gap::Within).count();
            let (group, after) =
                (rest.get(..=inner).unwrap_or(rest), others.get(inner..).unwrap_or_default());
            match place(group, first.gap, text, at, after.is_empty()) {
                Some(end) => (rest, at) = (after, end),
                None => return false,
            }
        }
        at == text.len()
    }
}

/// Places a group of segments as far left as possible from `at` on. Within the group only `*`
/// separates segments. The last group ends where the text ends.
fn place(group: &[Piece], gap: Gap, text: &[u8], at: usize, is_last: bool) -> Option<usize> {
    let mut start = at;
    loop {
        match attempt(group, gap, text, start, is_last) {
            Attempt::Placed(end) => return Some(end),
            Attempt::Over => return None,
            Attempt::Elsewhere | Attempt::NextComponent if matches!(gap, Gap::None | Gap::Within) => {
                return None;
            }
            Attempt::Elsewhere if gap == Gap::Across => start += 1,
            Attempt::Elsewhere | Attempt::NextComponent => start = next_component(text, start)?,
        }
    }
}

fn next_component(text: &[u8], at: usize) -> Option<usize> {
    text.get(at..)?.iter().position(|&byte| byte == b'/').map(|slash| at + slash + 1)
}

/// Tries to place a group whose first segment begins at `start`. A last segment after a `**` may
/// begin later.
fn attempt(group: &[Piece], gap: Gap, text: &[u8], start: usize, is_last: bool) -> Attempt {
    let mut at = start;
    for (number, piece) in group.iter().enumerate() {
        let length = piece.segment.length();
        let Some(latest) = text.len().checked_sub(length).filter(|&latest| latest >= at) else {
            return Attempt::Over;
        };
        let moves = number > 0;
        let found = if is_last && number + 1 == group.len() {
            // The segment must end where the text ends; it is known to match there.
            match (moves, gap) {
                (true, _) if text.get(at..latest).is_some_and(|between| between.contains(&b'/')) => {
                    return Attempt::NextComponent;
                }
                (true, _) | (false, Gap::Across) => Some(latest),
                (false, _) => (latest == at).then_some(at),
            }
        } else if moves {
            match piece.segment.find(text, at, latest) {
                Some(found) => Some(found),
                None if next_component(text, at).is_some() => return Attempt::NextComponent,
                None => return Attempt::Over,
            }
        } else {
            piece.segment.is_at(text, at).then_some(at)
        };
        match found {
            Some(found) => at = found + length,
            None => return Attempt::Elsewhere,
        }
    }
    Attempt::Placed(at)
}

impl Segment {
    fn length(&self) -> usize {
        match self {
            Self::Literal(bytes) => bytes.len(),
            Self::Mixed(tokens) => tokens.len(),
        }
    }

    fn add_needed(&self, needed: &mut Set) {
        match self {
            Self::Literal(bytes) => bytes.iter().for_each(|&byte| insert(needed, byte)),
            Self::Mixed(tokens) => tokens.iter().for_each(|token| match token {
                Token::Byte(byte) => insert(needed, *byte),
                Token::Any | Token::Class(_) => {}
            }),
        }
    }

    fn is_at(&self, text: &[u8], at: usize) -> bool {
        let Some(part) = text.get(at..at + self.length()) else { return false };
        match self {
            Self::Literal(bytes) => **bytes == *part,
            Self::Mixed(tokens) => tokens.iter().zip(part).all(|(token, &byte)| token.has(byte)),
        }
    }

    fn ends(&self, text: &[u8]) -> bool {
        text.len().checked_sub(self.length()).is_some_and(|at| self.is_at(text, at))
    }

    /// The first match from `at` to `latest` with no slash before it.
    fn find(&self, text: &[u8], at: usize, latest: usize) -> Option<usize> {
        if let Self::Literal(bytes) = self
            && let Some(&first) = bytes.first()
            && first != b'/'
        {
            return find_literal(bytes, first, text, at, latest);
        }
        for at in at..=latest {
            if self.is_at(text, at) {
                return Some(at);
            }
            if text.get(at) == Some(&b'/') {
                return None;
            }
        }
        None
    }
}

/// [`Segment::find`] for a literal that does not begin with a slash.
fn find_literal(bytes: &[u8], first: u8, text: &[u8], mut at: usize, latest: usize) -> Option<usize> {
    loop {
        let between = text.get(at..=latest)?;
        let stop = between.iter().position(|&byte| byte == first || byte == b'/')?;
        at += stop;
        if between.get(stop) != Some(&first) {
            return None;
        }
        if text.get(at..at + bytes.len()) == Some(bytes) {
            return Some(at);
        }
        at += 1;
    }
}

impl Token {
    fn has(&self, byte: u8) -> bool {
        match self {
            Self::Byte(wanted) => *wanted == byte,
            Self::Any => byte != b'/',
            Self::Class(set) => has(set, byte),
        }
    }
}

/// The set of a text's bytes.
pub(super) fn bytes_of(text: &[u8]) -> Set {
    let mut set = Set::default();
    text.iter().for_each(|&byte| insert(&mut set, byte));
    set
}

fn has(set: &Set, byte: u8) -> bool {
    set.get(usize::from(byte / 64)).is_some_and(|word| word >> (byte % 64) & 1 == 1)
}

fn insert(set: &mut Set, byte: u8) {
    if let Some(word) = set.get_mut(usize::from(byte / 64)) {
        *word |= 1 << (byte % 64);
    }
}

/// Compiles a pattern into pieces.
struct Compiler {
    gap: Gap,
    tokens: Vec<Token>,
    pieces: Vec<Piece>,
    is_broken: bool,
}

impl Compiler {
    fn new(gap: Gap) -> Self {
        Self { gap, tokens: Vec::new(), pieces: Vec::new(), is_broken: false }
    }

    /// Reads a pattern. `gap` gets the byte before some stars, their number and the rest of the
    /// text. It returns the gap that they stand for and the rest to read.
    fn run(&mut self, text: &[u8], gap: impl Fn(Option<u8>, usize, &[u8]) -> (Gap, &[u8])) {
        let mut rest = text;
        let mut before = None;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            let token = match byte {
                b'*' => {
                    let more = after.iter().take_while(|&&next| next == b'*').count();
                    let (gap, after) = gap(before, more + 1, after.get(more..).unwrap_or_default());
                    // A `**/` includes its slash.
                    before = Some(if gap == Gap::Components { b'/' } else { b'*' });
                    self.close(gap);
                    rest = after;
                    continue;
                }
                b'?' => Some(Token::Any),
                b'[' => class(after).map(|(token, after)| {
                    rest = after;
                    token
                }),
                b'\\' => after.split_first().map(|(&escaped, after)| {
                    rest = after;
                    Token::Byte(escaped)
                }),
                _ => Some(Token::Byte(byte)),
            };
            before = text.get(..text.len() - rest.len()).and_then(|read| read.last().copied());
            match token {
                Some(token) => self.tokens.push(token),
                None => {
                    self.is_broken = true;
                    return;
                }
            }
        }
    }

    /// Ends a segment.
    fn close(&mut self, next: Gap) {
        // A second wildcard that spans directories, directly after a `**/`, takes its place: so any
        // number of them costs no more.
        if self.tokens.is_empty()
            && self.gap == Gap::Components
            && matches!(next, Gap::Components | Gap::Across)
        {
            self.gap = next;
            return;
        }
        let tokens = std::mem::take(&mut self.tokens);
        let literal = tokens.iter().map(|token| match token {
            Token::Byte(byte) => Some(*byte),
            Token::Any | Token::Class(_) => None,
        });
        let segment = match literal.collect::<Option<Vec<_>>>() {
            Some(bytes) => Segment::Literal(bytes.into()),
            None => Segment::Mixed(tokens.into()),
        };
        self.pieces.push(Piece { gap: std::mem::replace(&mut self.gap, next), segment });
    }

    fn finish(mut self) -> Glob {
        if self.is_broken {
            return Glob::Never;
        }
        self.close(Gap::None);
        match &*self.pieces {
            [Piece { gap: Gap::None, segment: Segment::Literal(bytes) }] => Glob::Literal(bytes.clone()),
            [
                Piece { gap: Gap::None, segment: Segment::Literal(first) },
                Piece { gap: Gap::Within, segment: Segment::Literal(bytes) },
            ] if first.is_empty() && !bytes.contains(&b'/') => Glob::Ending(bytes.clone()),
            pieces => {
                let bytes = pieces.iter().map(|piece| piece.segment.length()).sum();
                let mut needed = Set::default();
                pieces.iter().for_each(|piece| piece.segment.add_needed(&mut needed));
                Glob::Pieces(Box::new(Pieces { bytes, needed, pieces: self.pieces.into() }))
            }
        }
    }
}

/// Parses a `[…]` whose bracket has been read; also returns the rest. `None` if it is not closed,
/// or names a class that does not exist.
fn class(text: &[u8]) -> Option<(Token, &[u8])> {
    let negated = matches!(text.first(), Some(b'!' | b'^'));
    let mut rest = if negated { text.get(1..)? } else { text };
    let mut set = Set::default();
    // The lower end of a range, in case a `-` follows.
    let mut low = None;
    let mut is_first = true;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b']' if !is_first => break,
            b'\\' => {
                let (&escaped, after) = after.split_first()?;
                rest = after;
                insert(&mut set, escaped);
                low = Some(escaped);
            }
            b'-' if low.is_some() && !matches!(after.first(), None | Some(b']')) => {
                let end = after.strip_prefix(b"\\").unwrap_or(after);
                let (&high, after) = end.split_first()?;
                rest = after;
                (low.take()?..=high).for_each(|byte| insert(&mut set, byte));
            }
            b'[' if after.starts_with(b":") => {
                let inside = after.get(1..)?;
                let end = inside.iter().position(|&byte| byte == b']')?;
                match inside.get(..end)?.strip_suffix(b":") {
                    Some(name) => {
                        let members = named_class(name)?;
                        (0..=u8::MAX).filter(members).for_each(|byte| insert(&mut set, byte));
                        rest = inside.get(end + 1..)?;
                        low = None;
                    }
                    None => {
                        insert(&mut set, b'[');
                        low = Some(b'[');
                    }
                }
            }
            _ => {
                insert(&mut set, byte);
                low = Some(byte);
            }
        }
        is_first = false;
    }
    if negated {
        set.iter_mut().for_each(|word| *word = !*word);
    }
    // No class matches the separator.
    if let Some(word) = set.get_mut(usize::from(b'/' / 64)) {
        *word &= !(1 << b'/');
    }
    let mut members = (0..=u8::MAX).filter(|&byte| has(&set, byte));
    let token = match (members.next(), members.next()) {
        (Some(byte), None) => Token::Byte(byte),
        _ => Token::Class(Box::new(set)),
    };
    Some((token, rest))
}

/// Tests whether a byte belongs to a class.
type Members = fn(&u8) -> bool;

/// The members of `[:name:]`.
fn named_class(name: &[u8]) -> Option<Members> {
    Some(match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| matches!(byte, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    })
}
