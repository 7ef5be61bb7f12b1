//! The mechanical part of the rules for comments and names.

/// Columns of a comment line, with its indentation.
const COMMENT_COLUMNS_MAX: usize = 100;

/// Characters of a test's name.
const TEST_NAME_CHARACTERS_MAX: usize = 70;

/// Words of a doc comment that opens with one of [`OPENERS`].
const WORDS_MIN: usize = 4;

/// Openers of doc comments that repeat the name instead of naming the thing.
const OPENERS: [&str; 5] = ["What", "Which", "Whether", "Of", "That"];

/// Comments that are too wide, and doc comments that say less than the name below them.
pub(crate) fn comment_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut lines = text.lines().zip(1..).peekable();
    while let Some((line, number)) = lines.next() {
        faults.extend(width_fault(line, number));
        let Some(opening) = doc_text(line) else { continue };
        let mut words: Vec<&str> = opening.split_whitespace().collect();
        while let Some((next, number)) = lines.next_if(|(next, _)| doc_text(next).is_some()) {
            words.extend(doc_text(next).unwrap_or_default().split_whitespace());
            faults.extend(width_fault(next, number));
        }
        if words.len() < WORDS_MIN && words.first().is_some_and(|first| OPENERS.contains(first)) {
            faults.push(format!("line {number}: a doc comment that says less than a name: {opening}"));
        }
    }
    faults
}

/// A row of a table cannot be wrapped.
fn width_fault(line: &str, number: usize) -> Option<String> {
    let columns = line.chars().count();
    let is_comment = line.trim_start().starts_with("//");
    let is_row = doc_text(line).is_some_and(|text| text.trim_start().starts_with('|'));
    (is_comment && !is_row && columns > COMMENT_COLUMNS_MAX)
        .then(|| format!("line {number}: a comment of {columns} columns"))
}

/// Tests whose names are too long.
pub(crate) fn test_name_faults(text: &str) -> Vec<String> {
    let mut is_test = false;
    let mut faults = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.starts_with("#[") {
            is_test |= line.contains("test]");
        } else if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) {
            let name = rest.split('(').next().unwrap_or_default();
            if std::mem::take(&mut is_test) && name.len() > TEST_NAME_CHARACTERS_MAX {
                faults.push(format!("line {number}: a test's name of {} characters", name.len()));
            }
        } else if !line.starts_with("//") {
            is_test = false;
        }
    }
    faults
}

/// Messages that are not written like all others: an error begins in lower case and has no full
/// stop; a hint is a sentence.
pub(crate) fn message_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let texts = text.split("#[error(").skip(1).map(str::trim_start).filter(|rest| rest.starts_with('"'));
    let errors = texts.filter_map(|rest| literals(rest).into_iter().next());
    let is_wrong = |error: &String| error.starts_with(|c: char| c.is_uppercase()) || error.ends_with('.');
    faults.extend(
        errors.filter(is_wrong).map(|error| format!("an error that is no part of a sentence: {error}")),
    );
    let bodies = text.split("hint(").skip(1).map(|rest| rest.split("\n    }\n").next().unwrap_or_default());
    // Declarations only: a call has no body.
    let bodies = bodies.filter(|body| body.contains("->") && body.contains("=>"));
    for hint in bodies.flat_map(literals).filter(|text| text.split(' ').count() > 2 && !text.starts_with(' '))
    {
        let begins = hint.starts_with(|c: char| c.is_uppercase() || c == '{') || hint.starts_with("--");
        if !begins || !hint.ends_with(['.', '}']) {
            faults.push(format!("a hint that is no sentence: {hint}"));
        }
    }
    faults
}

/// The string literals of some code, with continued lines joined.
fn literals(code: &str) -> Vec<String> {
    let (mut literals, mut open) = (Vec::new(), None::<String>);
    let mut characters = code.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, &mut open) {
            ('"', Some(_)) => literals.extend(open.take()),
            ('"', None) => open = Some(String::new()),
            ('\\', Some(literal)) => match characters.next() {
                Some('\n') => while characters.next_if(|next| next.is_whitespace()).is_some() {},
                Some(escaped) => literal.push(escaped),
                None => {}
            },
            (character, Some(literal)) => literal.push(character),
            // The rest of the line is a comment.
            ('/', None) if characters.peek() == Some(&'/') => {
                while characters.next_if(|next| *next != '\n').is_some() {}
            }
            _ => {}
        }
    }
    literals
}

/// The text of a line that is a doc comment.
fn doc_text(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
}

#[test]
fn wide_comments_and_empty_phrases_are_found() {
    let wide = format!("    // {}", "x".repeat(COMMENT_COLUMNS_MAX - 6));
    assert_eq!(comment_faults(&wide), ["line 1: a comment of 101 columns"]);
    assert_eq!(comment_faults(&format!("/// One.\n{wide}/")), ["line 2: a comment of 102 columns"]);
    for text in ["/// What travels.", "//! Of one.", "fn f() {}\n/// Whether it\n/// is.\nx: bool,"] {
        assert_eq!(comment_faults(text).len(), 1, "{text}");
    }
    for text in [
        "/// What the sender offers first.",
        "/// Files of a tree.",
        "// What now?",
        "/// Of the two,\n/// the longer one.",
    ] {
        assert_eq!(comment_faults(text), Vec::<String>::new(), "{text}");
    }
    let row = format!("//! | {} |", "x".repeat(COMMENT_COLUMNS_MAX));
    assert_eq!(comment_faults(&row), Vec::<String>::new());
    let code = format!("let x = {};", "x".repeat(COMMENT_COLUMNS_MAX));
    assert_eq!(comment_faults(&code), Vec::<String>::new());
}

#[test]
fn long_test_names_are_found() {
    let name = "x".repeat(TEST_NAME_CHARACTERS_MAX + 1);
    assert_eq!(test_name_faults(&format!("#[test]\n// One.\nfn {name}() {{}}")).len(), 1);
    assert_eq!(test_name_faults(&format!("fn {name}() {{}}")), Vec::<String>::new());
    assert_eq!(test_name_faults("#[tokio::test]\nasync fn short() {}"), Vec::<String>::new());
}

#[test]
fn messages_that_differ_from_the_others_are_found() {
    let error = |text: &str| format!("#[error(\"{text}\")]\nA,\n");
    for wrong in ["Cannot read {0}", "cannot read {0}."] {
        assert_eq!(message_faults(&error(wrong)).len(), 1, "{wrong}");
    }
    assert_eq!(message_faults(&error("cannot read {0}")), Vec::<String>::new());
    let hint = |text: &str| format!("    fn hint(&self) -> &str {{\n A => \"{text}\",\n    }}\n");
    for wrong in ["make it yours alone.", "Make it yours alone", "make it \\\n  yours"] {
        assert_eq!(message_faults(&hint(wrong)).len(), 1, "{wrong}");
    }
    for right in ["Make it yours alone.", "--ca-cert takes a PEM file.", "Make it \\\n  yours."] {
        assert_eq!(message_faults(&hint(right)), Vec::<String>::new(), "{right}");
    }
}
