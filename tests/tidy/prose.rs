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
