//! Words, patterns and tokens of `ssh_config`, as OpenSSH splits, matches and expands them.

use std::path::{Path, PathBuf};

use crate::remote::known_hosts::pattern_matches;

/// Takes the next word as OpenSSH's `strdelim` does, and skips what separates it from the next one.
/// A word ends at blanks, at one `=`, or after double quotes. Fails if the quotes do not end.
pub(super) fn take_word<'a>(rest: &mut &'a str) -> Result<String, String> {
    let text = rest.trim_start_matches(is_blank);
    let end = text.find(|c| is_blank(c) || c == '=' || c == '"').unwrap_or(text.len());
    let (head, tail) = text.split_at(end);
    let skip_blanks = |text: &'a str| text.trim_start_matches(is_blank);
    if let Some(quoted) = tail.strip_prefix('"') {
        let (inner, after) = quoted.split_once('"').ok_or(QUOTES)?;
        *rest = skip_blanks(after);
        return Ok(format!("{head}{inner}"));
    }
    let after = skip_blanks(tail);
    *rest = skip_blanks(after.strip_prefix('=').unwrap_or(after));
    Ok(head.to_owned())
}

/// Splits the arguments of a keyword as OpenSSH's `argv_split` does: at blanks outside of quotes,
/// up to a comment.
pub(super) fn arguments(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|&c| is_blank(c)).is_some() {}
        if characters.peek().is_none_or(|&c| c == '#') {
            return Ok(words);
        }
        let (mut word, mut quote) = (String::new(), None);
        while let Some(c) = characters.next_if(|&c| quote.is_some() || !is_blank(c)) {
            match (c, quote) {
                ('\\', _) => {
                    let escaped = characters
                        .next_if(|&next| "'\"\\".contains(next) || (quote.is_none() && next == ' '));
                    word.push(escaped.unwrap_or(c));
                }
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(end)) if c == end => quote = None,
                _ => word.push(c),
            }
        }
        if quote.is_some() {
            return Err(QUOTES.to_owned());
        }
        words.push(word);
    }
}

const QUOTES: &str = "its quotes do not end";

pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\x0c')
}

/// Matches a name with patterns separated by commas. A negated pattern that matches decides.
pub(super) fn list_matches(list: &str, name: &str) -> bool {
    let mut matches = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if pattern_matches(pattern, name) => return false,
            Some(_) => {}
            None => matches |= pattern_matches(pattern, name),
        }
    }
    matches
}

/// Expands `%` tokens by `value`, and `%%`. An unknown token is an error, as in OpenSSH.
pub(super) fn expand_tokens(text: &str, value: impl Fn(char) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            expanded.push(c);
            continue;
        }
        match characters.next() {
            Some('%') => expanded.push('%'),
            Some(token) => {
                let known = value(token);
                expanded
                    .push_str(&known.ok_or_else(|| format!("it holds %{token}, which means nothing here"))?);
            }
            None => return Err("it ends in a single %".to_owned()),
        }
    }
    Ok(expanded)
}

/// Expands `${NAME}`. A variable that is not set is an error, as in OpenSSH.
pub(super) fn expand_environment(text: &str) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or("it holds a ${ without its }")?;
        let value = std::env::var(name).map_err(|_| format!("the variable {name} is not set"))?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Files that a pattern of Include names, sorted by name as `glob` does it. A pattern without
/// wildcards names its file even if that is missing.
pub(super) fn included(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let name = component.as_os_str().to_string_lossy();
        if !name.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(component));
            continue;
        }
        found = found.iter().flat_map(|directory| matching(directory, &name)).collect();
    }
    found
}

fn matching(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let matches =
        |name: &str| name.starts_with('.') == pattern.starts_with('.') && pattern_matches(pattern, name);
    let mut files: Vec<_> =
        names.filter(|name| matches(&name.to_string_lossy())).map(|name| directory.join(name)).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_split_as_openssh_does() {
        let split = |text| arguments(text).unwrap();
        assert_eq!(split("a  b\t\"c d\" # e"), ["a", "b", "c d"]);
        assert_eq!(split(r#"a\ b 'c "d' e#f "\"g\\" h\i"#), ["a b", "c \"d", "e#f", "\"g\\", r"h\i"]);
        assert_eq!(split("\"\" x"), ["", "x"]);
        assert_eq!(split("# only"), [""; 0]);
        assert!(arguments("\"open").is_err());
    }

    #[test]
    fn a_word_ends_at_a_blank_or_one_equals_sign_or_after_quotes() {
        let mut rest = "HostName = \"a b\"  c=d ==e";
        let mut words = Vec::new();
        while !rest.is_empty() {
            words.push(take_word(&mut rest).unwrap());
        }
        assert_eq!(words, ["HostName", "a b", "c", "d", "", "e"]);
        assert!(take_word(&mut "\"open").is_err());
    }

    #[test]
    fn tokens_and_variables_are_expanded_or_named() {
        let token = |c| (c == 'h').then(|| "vm".to_owned());
        assert_eq!(expand_tokens("%h.%%h", token).unwrap(), "vm.%h");
        assert!(expand_tokens("%q", token).unwrap_err().contains("%q"));
        assert!(expand_tokens("100%", token).is_err());
        let path = std::env::var("PATH").unwrap();
        assert_eq!(expand_environment("a${PATH}b$c").unwrap(), format!("a{path}b$c"));
        assert!(expand_environment("${KSYNC_NO_SUCH}").unwrap_err().contains("KSYNC_NO_SUCH"));
        assert!(expand_environment("${PATH").is_err());
    }

    #[test]
    fn wildcards_of_an_include_match_in_every_component() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["b/x.conf", "a/y.conf", "a/z", ".c/x.conf"] {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), "").unwrap();
        }
        assert_eq!(included(&root.join("*/*.conf")), [root.join("a/y.conf"), root.join("b/x.conf")]);
        assert_eq!(included(&root.join("none")), [root.join("none")]);
        assert_eq!(included(&root.join("none*")), Vec::<PathBuf>::new());
    }
}
