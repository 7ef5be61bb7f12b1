//! `Rule`: one rule of rsync's filter language, and the parser of its text.
//!
//! The grammar is that of rsync's manual, FILTER RULES IN DEPTH: `RULE[,MODIFIERS] [PATTERN]`. A
//! merge file is read where its rule stands: see `filter` for those of a tree's directories. The
//! command line reads all others.

use serde::{Deserialize, Serialize};

use crate::tree::path::escape;

/// Longest pattern, in bytes, of a rule in a merge file. rsync drops longer ones.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// The patterns that `-C` excludes, as in rsync's manual.
pub const CVS_PATTERNS: &str = "RCS SCCS CVS CVS.adm RCSLOG cvslog.* tags TAGS .make.state .nse_depinfo \
     *~ #* .#* ,* _$* *$ *.old *.bak *.BAK *.orig *.rej .del-* *.a *.olb *.o *.obj *.so *.exe *.Z *.elc \
     *.ln core .svn/ .git/ .hg/ .bzr/";

/// The merge file of `:C` and `.C` without a name.
pub const CVS_FILE: &[u8] = b".cvsignore";

/// The bits of a rule.
pub mod bits {
    /// Matching entries are included, and not excluded.
    pub const INCLUDE: u16 = 1;
    /// The rule applies to the sender: it hides or shows. Without a side it applies to both.
    pub const SENDER: u16 = 1 << 1;
    /// The rule applies to the receiver: it protects or risks.
    pub const RECEIVER: u16 = 1 << 2;
    /// The pattern is the name of a merge file, read in each directory.
    pub const DIRECTORY_MERGE: u16 = 1 << 3;
    /// The pattern is compared with the absolute path.
    pub const ABSOLUTE: u16 = 1 << 4;
    /// The rule applies to entries that the pattern does not match.
    pub const NEGATED: u16 = 1 << 5;
    /// The rule does not count inside of a directory that is being deleted.
    pub const PERISHABLE: u16 = 1 << 6;
    /// The rule is about names of extended attributes.
    pub const XATTR: u16 = 1 << 7;
    /// The lines of the merge file are patterns.
    pub const NO_PREFIXES: u16 = 1 << 8;
    /// The rules of the merge file are separated by any white space.
    pub const WORD_SPLIT: u16 = 1 << 9;
    /// The rules of the merge file apply to its directory alone.
    pub const NO_INHERIT: u16 = 1 << 10;
    /// The merge file is one of CVS, or the rule stands for [`CVS_PATTERNS`](super::CVS_PATTERNS).
    pub const CVS: u16 = 1 << 11;
    /// The pattern is the name of a merge file, read once.
    pub const MERGE: u16 = 1 << 12;
    /// The merge file itself is excluded.
    pub const EXCLUDE_SELF: u16 = 1 << 13;

    /// The sides.
    pub const SIDES: u16 = SENDER | RECEIVER;
    /// Any kind of merge file.
    pub const ANY_MERGE: u16 = MERGE | DIRECTORY_MERGE;
    /// All bits of a rule that travels.
    pub const WIRE: u16 = (1 << 12) - 1;
    /// The bits that the rules of a merge file take over from its rule, besides the sides.
    pub(super) const INHERITED: u16 = ABSOLUTE | INCLUDE | NEGATED | PERISHABLE;
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// See [`bits`].
    pub bits: u16,
    /// The pattern in rsync's dialect, or the name of a merge file.
    #[serde(with = "serde_bytes")]
    pub pattern: Vec<u8>,
}

impl Rule {
    /// A rule that includes or excludes on both sides.
    #[must_use]
    pub fn new(include: bool, pattern: impl Into<Vec<u8>>) -> Self {
        Self { bits: if include { bits::INCLUDE } else { 0 }, pattern: pattern.into() }
    }

    /// True if all of these bits are set.
    #[must_use]
    pub fn has(&self, bits: u16) -> bool {
        self.bits & bits == bits
    }

    /// The name of the merge file without its directory.
    #[must_use]
    pub fn merge_name(&self) -> &[u8] {
        self.pattern.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// True if the rule can come over the wire.
    #[must_use]
    pub fn is_wire(&self) -> bool {
        self.bits & !bits::WIRE == 0 && (!self.has(bits::DIRECTORY_MERGE) || !self.merge_name().is_empty())
    }
}

/// The meaning of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The rules so far do not count.
    Clear,
    /// A rule.
    Rule(Rule),
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The text begins with no known kind.
    #[error(
        "the rule \"{0}\" begins with none of exclude, include, merge, dir-merge, hide, show, protect, risk, clear or their signs - + . : H S P R !"
    )]
    Kind(String),
    /// The kind does not take this modifier.
    #[error("the rule \"{0}\" has the modifier \"{1}\", which its kind does not take")]
    Modifier(String, char),
    /// The pattern or the name is missing.
    #[error("the rule \"{0}\" has no pattern")]
    Empty(String),
    /// The clearing rule takes no pattern.
    #[error("the rule \"{0}\" clears the list, and takes no pattern")]
    Trailing(String),
    /// Both the merge file's rule and the rule in it name a side.
    #[error("the rule \"{0}\" names a side, and the rule that merges its file does so too")]
    Sides(String),
    /// The pattern is too long.
    #[error("a pattern is longer than {PATTERN_BYTES_MAX} bytes")]
    Long,
    /// The named merge file cannot be read here.
    #[error("the rule \"{0}\" merges a file that is not in the tree")]
    Outside(String),
    /// The named merge file does not exist.
    #[error("the rule \"{0}\" merges a file that does not exist")]
    Missing(String),
    /// Merge files that merge each other.
    #[error("the rule \"{0}\" merges a file into a file for the {DEPTH_MAX}th time")]
    Deep(String),
    /// The merge file is longer than all of them together may be.
    #[error("the merge files are longer, or more, than ksync honours")]
    Limit,
}

/// Most merge files inside of each other.
pub const DEPTH_MAX: usize = 16;

/// Parses a rule as `--filter` takes it. `of` are the bits of the rule whose merge file holds the
/// text; 0 for the command line.
///
/// # Errors
/// See [`RuleError`].
pub fn parse(text: &[u8], of: u16) -> Result<Parsed, RuleError> {
    let shown = || escape(text).to_string();
    let mut rule = Rule { bits: of & bits::INHERITED, pattern: Vec::new() };
    if of & bits::NO_PREFIXES != 0 {
        if of & bits::CVS != 0 && text == b"!" {
            return Ok(Parsed::Clear);
        }
        rule.bits |= of & bits::SIDES;
        rule.pattern = text.to_vec();
        return finished(rule, shown);
    }
    let (kind, rest) = kind_of(text).ok_or_else(|| RuleError::Kind(shown()))?;
    if kind == b'!' {
        return if rest.is_empty() { Ok(Parsed::Clear) } else { Err(RuleError::Trailing(shown())) };
    }
    rule.bits |= match kind {
        b':' => bits::DIRECTORY_MERGE,
        b'.' => bits::MERGE,
        b'+' => bits::INCLUDE,
        b'-' => 0,
        b'S' => bits::INCLUDE | bits::SENDER,
        b'H' => bits::SENDER,
        b'R' => bits::INCLUDE | bits::RECEIVER,
        b'P' => bits::RECEIVER,
        _ => return Err(RuleError::Kind(shown())),
    };
    let has_side = matches!(kind, b'S' | b'H' | b'R' | b'P');
    let end = rest.iter().position(|byte| b" _".contains(byte)).unwrap_or(rest.len());
    let (modifiers, pattern) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
    for &modifier in modifiers {
        rule.bits |= modify(rule.bits, has_side, modifier)
            .ok_or_else(|| RuleError::Modifier(shown(), char::from(modifier)))?;
    }
    if of & bits::SIDES != 0 {
        if rule.bits & bits::SIDES != 0 {
            return Err(RuleError::Sides(shown()));
        }
        rule.bits |= of & bits::SIDES;
    }
    rule.pattern = pattern.to_vec();
    finished(rule, shown)
}

/// The sign of a rule's kind, and the text behind it and behind the comma that may follow.
fn kind_of(text: &[u8]) -> Option<(u8, &[u8])> {
    const LONG: [(&[u8], u8); 9] = [
        (b"clear", b'!'),
        (b"dir-merge", b':'),
        (b"exclude", b'-'),
        (b"hide", b'H'),
        (b"include", b'+'),
        (b"merge", b'.'),
        (b"protect", b'P'),
        (b"risk", b'R'),
        (b"show", b'S'),
    ];
    let (&first, rest) = text.split_first()?;
    if let Some((name, sign)) = LONG.iter().find(|(name, _)| name.first() == Some(&first)) {
        let rest = text.strip_prefix(*name)?;
        return match rest.first() {
            Some(b',') => Some((*sign, rest.get(1..)?)),
            None | Some(b'_') => Some((*sign, rest)),
            Some(byte) if byte.is_ascii_whitespace() => Some((*sign, rest)),
            Some(_) => None,
        };
    }
    Some((first, rest.strip_prefix(b",").unwrap_or(rest)))
}

/// The bits that a modifier adds; `None` if it does not fit.
fn modify(has: u16, has_side: bool, modifier: u8) -> Option<u16> {
    let merges = has & bits::ANY_MERGE != 0;
    let has_prefixes = has & bits::NO_PREFIXES == 0;
    match modifier {
        b'-' if merges && has_prefixes => Some(bits::NO_PREFIXES),
        b'+' if merges && has_prefixes => Some(bits::NO_PREFIXES | bits::INCLUDE),
        b'/' => Some(bits::ABSOLUTE),
        b'!' if !merges => Some(bits::NEGATED),
        b'C' if has_prefixes && !has_side => {
            Some(bits::NO_PREFIXES | bits::WORD_SPLIT | bits::NO_INHERIT | bits::CVS)
        }
        b'e' if merges => Some(bits::EXCLUDE_SELF),
        b'n' if merges => Some(bits::NO_INHERIT),
        b'p' => Some(bits::PERISHABLE),
        b'r' if !has_side => Some(bits::RECEIVER),
        b's' if !has_side => Some(bits::SENDER),
        b'w' if merges => Some(bits::WORD_SPLIT),
        b'x' => Some(bits::XATTR),
        _ => None,
    }
}

/// Checks the pattern, and names the merge file of CVS.
fn finished(mut rule: Rule, shown: impl Fn() -> String) -> Result<Parsed, RuleError> {
    if rule.pattern.is_empty() {
        if !rule.has(bits::CVS) {
            return Err(RuleError::Empty(shown()));
        }
        if rule.bits & bits::ANY_MERGE != 0 {
            rule.pattern = CVS_FILE.to_vec();
        }
    }
    if rule.bits & bits::ANY_MERGE != 0 && rule.merge_name().is_empty() {
        return Err(RuleError::Empty(shown()));
    }
    if rule.pattern.len() >= PATTERN_BYTES_MAX { Err(RuleError::Long) } else { Ok(Parsed::Rule(rule)) }
}

/// The texts of a merge file's rules, each with the number of its line from 1. Without word
/// splitting, lines that begin with `#` or `;` are comments.
pub fn texts(file: &[u8], of: u16, nul_ended: bool) -> impl Iterator<Item = (usize, &[u8])> {
    let splits_words = of & bits::WORD_SPLIT != 0;
    let mut line = 1;
    let ends = move |byte: &u8| {
        splits_words && is_space(*byte) || if nul_ended { *byte == 0 } else { b"\n\r".contains(byte) }
    };
    let mut rest = Some(file);
    std::iter::from_fn(move || {
        loop {
            let text = rest?;
            let number = line;
            let end = text.iter().position(ends);
            let (own, after) = match end {
                Some(end) => (text.get(..end)?, text.get(end + 1..)),
                None => (text, None),
            };
            if end.and_then(|end| text.get(end)).is_some_and(|byte| matches!(byte, b'\n' | 0)) {
                line += 1;
            }
            rest = after;
            // For rsync, as for any program in C, a text ends at a NUL.
            let own = own.split(|&byte| byte == 0).next().unwrap_or_default();
            let is_comment = !splits_words && matches!(own.first(), Some(b'#' | b';'));
            if !own.is_empty() && !is_comment {
                return Some((number, own));
            }
        }
    })
}

/// The white space of C's `isspace`.
#[must_use]
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::bits::{
        ABSOLUTE, CVS, DIRECTORY_MERGE, EXCLUDE_SELF, INCLUDE, MERGE, NEGATED, NO_INHERIT, NO_PREFIXES,
        PERISHABLE, RECEIVER, SENDER, WORD_SPLIT, XATTR,
    };
    use super::*;

    fn rule(text: &str) -> (u16, String) {
        within(text, 0)
    }

    fn within(text: &str, of: u16) -> (u16, String) {
        match parse(text.as_bytes(), of) {
            Ok(Parsed::Rule(rule)) => (rule.bits, String::from_utf8(rule.pattern).unwrap()),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn kinds_have_long_and_short_names() {
        for (long, short, expected) in [
            ("exclude", "-", 0),
            ("include", "+", INCLUDE),
            ("merge", ".", MERGE),
            ("dir-merge", ":", DIRECTORY_MERGE),
            ("hide", "H", SENDER),
            ("show", "S", SENDER | INCLUDE),
            ("protect", "P", RECEIVER),
            ("risk", "R", RECEIVER | INCLUDE),
        ] {
            for text in
                [format!("{long} x y"), format!("{long}_x y"), format!("{short} x y"), format!("{short}_x y")]
            {
                assert_eq!(rule(&text), (expected, "x y".to_owned()), "{text}");
            }
            for text in [format!("{long},p x"), format!("{short},p x"), format!("{short}p_x")] {
                assert_eq!(rule(&text), (expected | PERISHABLE, "x".to_owned()), "{text}");
            }
        }
        assert_eq!(rule("-  x"), (0, " x".to_owned()), "a second space belongs to the pattern");
        assert_eq!(rule("-__x"), (0, "_x".to_owned()));
        for text in ["!", "clear", "!,"] {
            assert_eq!(parse(text.as_bytes(), 0), Ok(Parsed::Clear), "{text}");
        }
    }

    #[test]
    fn modifiers_are_those_of_rsyncs_manual() {
        for (text, expected) in [
            ("-/ x", ABSOLUTE),
            ("-! x", NEGATED),
            ("+!/ x", NEGATED | ABSOLUTE | INCLUDE),
            ("-s x", SENDER),
            ("-r x", RECEIVER),
            ("-rs x", RECEIVER | SENDER),
            ("-x x", XATTR),
            ("Hp x", SENDER | PERISHABLE),
            ("dir-merge,n- x", DIRECTORY_MERGE | NO_INHERIT | NO_PREFIXES),
            (":+ x", DIRECTORY_MERGE | INCLUDE | NO_PREFIXES),
            (":e x", DIRECTORY_MERGE | EXCLUDE_SELF),
            (".w x", MERGE | WORD_SPLIT),
            (":s x", DIRECTORY_MERGE | SENDER),
        ] {
            assert_eq!(rule(text), (expected, "x".to_owned()), "{text}");
        }
        let cvs = CVS | NO_PREFIXES | WORD_SPLIT | NO_INHERIT;
        assert_eq!(rule(":C"), (DIRECTORY_MERGE | cvs, ".cvsignore".to_owned()));
        assert_eq!(rule(":sC mine"), (DIRECTORY_MERGE | SENDER | cvs, "mine".to_owned()));
        assert_eq!(rule("-C"), (cvs, String::new()));
    }

    #[test]
    fn refused_rules_are_told_with_their_reason() {
        for (text, told) in [
            ("x", "the rule \"x\" begins with none of exclude, include"),
            ("exclude/ x", "the rule \"exclude/ x\" begins with none of"),
            ("excluded x", "the rule \"excluded x\" begins with none of"),
            (" - x", "the rule \" - x\" begins with none of"),
            ("-e x", "the rule \"-e x\" has the modifier \"e\", which its kind does not take"),
            ("-n x", "has the modifier \"n\""),
            ("-w x", "has the modifier \"w\""),
            ("-x.o", "has the modifier \".\""),
            ("--x", "has the modifier \"-\""),
            (":! x", "has the modifier \"!\""),
            (":-+ x", "has the modifier \"+\""),
            (":-C x", "has the modifier \"C\""),
            ("Hs x", "has the modifier \"s\""),
            ("PC x", "has the modifier \"C\""),
            ("-\tx", "has the modifier \"\t\""),
            ("-", "the rule \"-\" has no pattern"),
            ("exclude", "the rule \"exclude\" has no pattern"),
            ("- ", "the rule \"- \" has no pattern"),
            (":n ", "has no pattern"),
            (": a/", "has no pattern"),
            ("! x", "the rule \"! x\" clears the list, and takes no pattern"),
            ("clear ", "clears the list, and takes no pattern"),
        ] {
            let error = parse(text.as_bytes(), 0).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
        let long = format!("- {}", "x".repeat(PATTERN_BYTES_MAX));
        assert_eq!(parse(long.as_bytes(), 0), Err(RuleError::Long));
        let sided = parse(b"H x", SENDER).unwrap_err().to_string();
        assert!(sided.contains("names a side, and the rule that merges its file does so too"), "{sided}");
    }

    #[test]
    fn rules_of_a_merge_file_take_over_its_modifiers() {
        assert_eq!(
            within("+ x", DIRECTORY_MERGE | SENDER | PERISHABLE | ABSOLUTE | NO_INHERIT),
            (INCLUDE | SENDER | PERISHABLE | ABSOLUTE, "x".to_owned())
        );
        assert_eq!(within("+ x", NO_PREFIXES | MERGE), (0, "+ x".to_owned()));
        assert_eq!(within("- x", NO_PREFIXES | INCLUDE), (INCLUDE, "- x".to_owned()));
        assert_eq!(within("!", NO_PREFIXES), (0, "!".to_owned()));
        assert_eq!(parse(b"!", NO_PREFIXES | CVS), Ok(Parsed::Clear));
        assert_eq!(within("!x", NO_PREFIXES | CVS), (0, "!x".to_owned()));
    }

    #[test]
    fn merge_files_are_split_as_rsync_splits_them() {
        let split = |file: &str, of, nul_ended| {
            let texts = texts(file.as_bytes(), of, nul_ended);
            texts.map(|(line, text)| format!("{line}:{}", text.escape_ascii())).collect::<Vec<_>>()
        };
        assert_eq!(split("- a\r\n\n# no\n;no\n - b \n- c#d", 0, false), ["1:- a", "5: - b ", "6:- c#d"]);
        assert_eq!(split("a\0x\nb", 0, false), ["1:a", "2:b"]);
        assert_eq!(split("a\nb\0#c\0d", 0, true), ["1:a\\nb", "3:d"]);
        assert_eq!(split("a #b\t;c\n d\n", WORD_SPLIT, false), ["1:a", "1:#b", "1:;c", "2:d"]);
    }
}
