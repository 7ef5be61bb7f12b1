//! Imports inside of a layer: modules that import each other, directly or by way of others, can
//! only be understood, tested and moved together.

use std::collections::{BTreeMap, BTreeSet};

/// Modules by their path below the crate, such as `disk::scan`, and their code without comments.
pub(crate) type Modules = BTreeMap<String, String>;

/// Groups of modules that import each other in a circle.
pub(crate) fn circles(modules: &Modules) -> Vec<String> {
    let tests = test_modules(modules);
    let is_test = |name: &str| tests.iter().any(|test| is_within(name, test));
    let imports: BTreeMap<&str, BTreeSet<&str>> = modules
        .iter()
        .filter(|(name, _)| !is_test(name))
        .map(|(name, code)| {
            let mut imported = imported_modules(name, code, modules);
            imported.retain(|import| !is_test(import));
            (name.as_str(), imported)
        })
        .collect();
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for &module in imports.keys() {
        if told.contains(module) {
            continue;
        }
        let reached = reachable(module, &imports);
        let circle: BTreeSet<&str> =
            reached.iter().filter(|&&other| reachable(other, &imports).contains(module)).copied().collect();
        if circle.contains(module) {
            circles.push(circle.iter().copied().collect::<Vec<_>>().join(", "));
            told.extend(circle);
        }
    }
    circles
}

/// Modules that `from` imports, directly or by way of others.
fn reachable<'a>(from: &'a str, imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left = vec![from];
    while let Some(module) = left.pop() {
        let new = imports.get(module).into_iter().flatten().filter(|&&import| reached.insert(import));
        left.extend(new.copied().collect::<Vec<_>>());
    }
    reached
}

fn imported_modules<'a>(name: &str, code: &str, modules: &'a Modules) -> BTreeSet<&'a str> {
    // A visibility imports nothing.
    let code = code.replace("pub(in crate::", "pub(in ");
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let parent = name.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut imported = BTreeSet::new();
    for path in paths(code) {
        let absolute = if let Some(rest) = path.strip_prefix("crate::") {
            rest.to_owned()
        } else if let Some(rest) = path.strip_prefix("super::") {
            format!("{parent}::{rest}")
        } else {
            format!("{name}::{path}")
        };
        let known = modules.keys().filter(|module| is_within(&absolute, module));
        imported.extend(known.max_by_key(|module| module.len()).map(String::as_str));
    }
    imported.remove(name);
    imported
}

/// True if `path` is `module` or something in it.
fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Modules that are compiled only for tests.
fn test_modules(modules: &Modules) -> Vec<String> {
    let mut tests = Vec::new();
    for (name, code) in modules {
        let lines: Vec<&str> = code.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let declared = pair[1].rsplit_once("mod ").and_then(|(_, rest)| rest.strip_suffix(';'));
            if let (true, Some(module)) =
                (pair[0].starts_with("#[cfg(") && pair[0].contains("test"), declared)
            {
                tests.push(format!("{name}::{module}"));
            }
        }
    }
    tests
}

/// All paths of `use` declarations, and all others that begin with `crate::`.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        if let Some((_, tree)) = statement.rsplit_once("use ") {
            expand("", &tree.split_whitespace().collect::<String>(), &mut paths);
        }
        for (start, _) in statement.match_indices("crate::") {
            let path = &statement[start..];
            let end = path.find(|character: char| !(character.is_alphanumeric() || "_:".contains(character)));
            paths.push(path[..end.unwrap_or(path.len())].to_owned());
        }
    }
    paths
}

/// The paths of a `use` tree without white space, each after `prefix`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, list)) = tree.split_once('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{head}");
    let (mut depth, mut start) = (0, 0);
    for (index, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if index > start {
                    expand(&prefix, &list[start..index], paths);
                }
                start = index + 1;
            }
            _ => {}
        }
    }
}

#[test]
fn circles_are_found() {
    let modules = |texts: &[(&str, &str)]| -> Modules {
        texts.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
    };
    let direct =
        modules(&[("disk::a", "use crate::disk::b::B;"), ("disk::b", "fn f(a: crate::disk::a::A) {}")]);
    assert_eq!(circles(&direct), ["disk::a, disk::b"]);
    let indirect = modules(&[
        ("disk", "mod a;\npub use a::A;"),
        ("disk::a", "use super::{b::{B, C}, x::X};"),
        ("disk::b", "use crate::{disk::Any, tree};"),
    ]);
    assert_eq!(circles(&indirect), ["disk, disk::a, disk::b"]);
}

#[test]
fn tests_and_one_way_imports_are_no_circles() {
    let modules: Modules = [
        ("disk", "mod a;\n#[cfg(test)]\nmod testing;"),
        ("disk::a", "fn f() {}\n#[cfg(test)]\nmod tests {\nuse crate::disk::b::B;\n}"),
        ("disk::b", "use crate::disk::a::{self, A};\nuse crate::disk::testing::T;"),
        ("disk::testing", "use crate::disk::b::B;"),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .collect();
    assert_eq!(circles(&modules), Vec::<String>::new());
}
