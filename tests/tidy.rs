//! House rules that neither compiler nor clippy checks. Each rule is a function over the text of a
//! file. Each has a test with a bad text, to prove that it can fail.
//!
//! The layers are those of `lib.rs`: an import may only point up the table. Between crates the
//! compiler keeps that order, and each `Cargo.toml` says which crates its layers may use. The table
//! here is for the layers of one crate, and stricter than the order. `disk` and `engine` do not
//! know each other; `exchange` joins them. `remote` knows only the handshake of the wire. Only
//! `sync` starts a sandbox. `monitor` precedes `wire`, because events travel over the wire too.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/prose.rs"]
mod prose;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use circles::{Modules, circles};
use prose::{comment_faults, message_faults, test_name_faults};

/// A part of `src/` with its permitted imports.
struct Layer {
    name: &'static str,
    /// Layers that it may import, besides itself.
    imports: &'static [&'static str],
    /// Names that its text may not contain.
    strangers: &'static [&'static str],
}

/// `content` may use a clock: its tests measure the cost of hostile input.
const FILES_AND_PEERS: &[&str] = &["std::fs", "rustix", "std::net"];
/// A Unix socket, `std::os::unix::net`, is permitted, because it leads to no other machine.
const PEERS: &[&str] = &["std::net", "tokio"];
const NOTHING_OUTSIDE: &[&str] =
    &["std::fs", "std::net", "std::time", "Instant", "SystemTime", "rustix", "nix"];
const TERMINAL: &[&str] = &["IsTerminal", "std::io::stdout", "std::io::stderr"];

/// In the order of the layers. A directory that is missing here fails the test. `src/core` holds
/// all layers up to `rendezvous`, and `src/client` the ones from `private` on, save the sandbox.
const LAYERS: &[Layer] = &[
    Layer { name: "log", imports: &[], strangers: NOTHING_OUTSIDE },
    Layer { name: "content", imports: &[], strangers: FILES_AND_PEERS },
    Layer { name: "tree", imports: &["content"], strangers: NOTHING_OUTSIDE },
    Layer { name: "monitor", imports: &["content", "tree"], strangers: TERMINAL },
    Layer { name: "wire", imports: &["content", "tree", "monitor"], strangers: NOTHING_OUTSIDE },
    Layer { name: "engine", imports: &["content", "tree", "monitor", "wire"], strangers: NOTHING_OUTSIDE },
    Layer { name: "disk", imports: &["content", "tree"], strangers: PEERS },
    Layer { name: "watch", imports: &["tree", "disk"], strangers: PEERS },
    Layer {
        name: "exchange",
        imports: &["log", "content", "tree", "monitor", "wire", "engine", "disk", "watch"],
        strangers: PEERS,
    },
    Layer { name: "rendezvous", imports: &["wire", "exchange"], strangers: PEERS },
    Layer { name: "agent", imports: &[], strangers: PEERS },
    Layer { name: "ssh", imports: &[], strangers: &["std::fs", "std::net"] },
    Layer { name: "private", imports: &[], strangers: PEERS },
    Layer { name: "remote", imports: &["log", "tree", "wire", "private"], strangers: &["indicatif", "clap"] },
    Layer {
        name: "kernel",
        imports: &["log", "tree", "wire", "private", "remote"],
        strangers: &["indicatif", "clap"],
    },
    Layer { name: "sandbox", imports: &[], strangers: &[] },
    Layer {
        name: "sync",
        imports: &[
            "log", "content", "tree", "monitor", "wire", "engine", "disk", "exchange", "private", "remote",
            "kernel", "watch", "sandbox",
        ],
        strangers: &["indicatif", "clap", "IsTerminal"],
    },
];

/// Longest file, in lines. A longer file has more than one subject.
const LINES_MAX: usize = 700;

#[test]
fn imports_point_up_the_table_of_layers() {
    assert_clean("src", |path, text| match layer_name(path) {
        Some("lib" | "bin" | "bridge" | "embedded") | None => Vec::new(),
        Some(name) => match LAYERS.iter().find(|layer| layer.name == name) {
            Some(layer) => layering_faults(layer, text),
            None => vec![format!("the layer {name} is not in the table")],
        },
    });
}

/// The layer of a file: `src/NAME.rs` or `src/NAME/…`, also below `src/core` and `src/client`.
/// Other files, such as `lib.rs`, combine layers.
fn layer_name(path: &Path) -> Option<&str> {
    let crates = ["src/client", "src/core", "src"];
    let path = crates.into_iter().find_map(|folder| path.strip_prefix(folder).ok())?;
    Path::new(path.iter().next()?).file_stem()?.to_str()
}

#[test]
fn modules_of_a_layer_do_not_import_each_other_in_circles() {
    let modules: Modules = rust_files("src")
        .into_iter()
        .filter_map(|path| {
            let layer = layer_name(&path)?;
            LAYERS.iter().find(|known| known.name == layer)?;
            let text = fs::read_to_string(root().join(&path)).expect("a file");
            let crates = ["src/client", "src/core", "src/sandbox", "src/ssh", "src"];
            let module = crates.into_iter().find_map(|folder| path.strip_prefix(folder).ok())?;
            let name = module.with_extension("").to_str()?.replace('/', "::");
            let name = name.strip_suffix("::mod").unwrap_or(&name).to_owned();
            Some((name, code_of(&text)))
        })
        .collect();
    assert!(modules.len() > LAYERS.len());
    assert_eq!(circles(&modules), Vec::<String>::new());
}

#[test]
fn files_are_short_and_hold_no_leftovers() {
    for folder in ["src", "tests", "benches", "examples"] {
        assert_clean(folder, |_, text| [length_faults(text), leftover_faults(text)].concat());
    }
}

#[test]
fn comments_and_test_names_keep_the_mechanical_rules() {
    for folder in ["src", "tests", "benches"] {
        assert_clean(folder, |_, text| [comment_faults(text), test_name_faults(text)].concat());
    }
}

#[test]
fn messages_are_written_alike() {
    assert_clean("src", |_, text| message_faults(text));
}

#[test]
fn the_ci_script_runs_the_commands_of_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let script = fs::read_to_string(root().join(".ci/run")).expect(".ci/run");
    assert_eq!(promise_faults(&readme, &script), Vec::<String>::new());
}

#[test]
fn files_that_the_documents_link_exist() {
    for document in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(document)).expect("a document");
        let missing: Vec<_> = links(&text).filter(|link| !root().join(link).exists()).collect();
        assert_eq!(missing, Vec::<&str>::new(), "{document}");
    }
}

/// Targets of a Markdown text's links that are files of this repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// Forbidden names in a layer's text.
fn layering_faults(layer: &Layer, text: &str) -> Vec<String> {
    let code = code_of(text);
    let imports = imported_layers(&code).into_iter().filter(|name| {
        name != layer.name
            && !layer.imports.contains(&name.as_str())
            && LAYERS.iter().any(|layer| layer.name == name)
    });
    let strangers = layer.strangers.iter().filter(|stranger| names(&code, stranger));
    let climbs = names(&code, "super::super").then(|| "super::super".to_owned());
    imports
        .map(|name| format!("crate::{name}"))
        .chain(strangers.map(|&name| name.to_owned()))
        .chain(climbs)
        .map(|what| format!("{} may not name {what}", layer.name))
        .collect()
}

/// First components of all paths that begin with `crate::`, also of those in braces.
fn imported_layers(code: &str) -> BTreeSet<String> {
    let mut layers = BTreeSet::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        let mut depth = 0;
        let mut at_start = true;
        for (index, character) in rest.char_indices() {
            match character {
                '{' => (depth, at_start) = (depth + 1, depth == 0),
                '}' => depth -= 1,
                ',' => at_start = depth == 1,
                _ if character.is_whitespace() => {}
                _ if is_of_name(character) && at_start => {
                    let name = &rest[index..];
                    let end = name.find(|character| !is_of_name(character)).unwrap_or(name.len());
                    layers.insert(name[..end].to_owned());
                    at_start = false;
                }
                _ => {}
            }
            if depth == 0 && !character.is_whitespace() {
                break;
            }
        }
    }
    layers
}

fn is_of_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Reports if `code` contains this name as a whole.
fn names(code: &str, what: &str) -> bool {
    code.match_indices(what).any(|(start, _)| {
        let before = code[..start].chars().next_back();
        let after = code[start + what.len()..].chars().next();
        !before.is_some_and(is_of_name) && (what.ends_with(':') || !after.is_some_and(is_of_name))
    })
}

/// The text without comments, and without quoted text on one line.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        let (mut quoted, mut previous) = (false, ' ');
        for (index, character) in line.char_indices() {
            if !quoted && line[index..].starts_with("//") {
                break;
            }
            // Skip the quote in '"', and an escaped one.
            if character == '"' && previous != '\\' && previous != '\'' {
                quoted = !quoted;
            }
            if !quoted {
                code.push(character);
            }
            previous = if previous == '\\' { ' ' } else { character };
        }
        code.push('\n');
    }
    code
}

fn length_faults(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let fault = format!("{lines} lines are more than {LINES_MAX}");
    (lines > LINES_MAX).then_some(fault).into_iter().collect()
}

/// Ignored tests, open tasks, commented-out code, and glob imports.
fn leftover_faults(text: &str) -> Vec<String> {
    // Split in two parts, because this file is checked too.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK")];
    let ignored = concat!("#[", "ignore");
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let comment = trimmed.strip_prefix("//").filter(|rest| !rest.starts_with(['/', '!'])).map(str::trim);
        let is_glob = trimmed.starts_with("use ") && trimmed.ends_with("::*;") && trimmed != "use super::*;";
        let fault = if marks.iter().any(|mark| trimmed.contains(mark)) {
            "something is left to do"
        } else if trimmed.starts_with(ignored) {
            "a test does not run"
        } else if comment.is_some_and(is_code) {
            "code is commented out"
        } else if is_glob && trimmed != "use proptest::prelude::*;" {
            "an import says not what"
        } else {
            continue;
        };
        faults.push(format!("line {}: {fault}: {trimmed}", index + 1));
    }
    faults
}

/// Reports if a comment looks like code, by its first word or its end.
fn is_code(comment: &str) -> bool {
    let ends = [";", "{", "}", "});", "),"];
    let starts = ["let ", "use ", "pub ", "fn ", "mod ", "#[", "return ", "assert"];
    ends.iter().any(|end| comment.ends_with(end)) && !comment.contains(". ")
        || starts.iter().any(|start| comment.starts_with(start)) && comment.ends_with([';', ')', '{'])
}

/// Commands of the README's first block that the script does not run literally.
fn promise_faults(readme: &str, script: &str) -> Vec<String> {
    let block = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    let commands = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let commands: Vec<_> = commands.filter(|command| !command.is_empty()).collect();
    let missing = commands.iter().filter(|command| !script.contains(**command));
    let mut faults: Vec<_> = missing.map(|command| format!("not in .ci/run: {command}")).collect();
    if commands.is_empty() {
        faults.push("the README begins with no command".to_owned());
    }
    faults
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Asserts that no Rust file of a folder has a fault.
#[track_caller]
fn assert_clean(folder: &str, faults_of: impl Fn(&Path, &str) -> Vec<String>) {
    let mut faults = Vec::new();
    let mut files = 0;
    for path in rust_files(folder) {
        let text = fs::read_to_string(root().join(&path)).expect("a file");
        faults
            .extend(faults_of(&path, &text).into_iter().map(|fault| format!("{}: {fault}", path.display())));
        files += 1;
    }
    assert!(files > 0 || !root().join(folder).exists(), "nothing was looked at in {folder}");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// All Rust files below a folder of the repository, with their paths in it.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let walk = walkdir::WalkDir::new(root().join(folder)).sort_by_file_name();
    let paths = walk.into_iter().filter_map(|entry| Some(entry.ok()?.into_path()));
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.map(|path| path.strip_prefix(root()).expect("below the root").to_owned()).collect()
}

mod the_rules_themselves {
    use super::*;

    fn faults_in(layer: &str, text: &str) -> Vec<String> {
        layering_faults(LAYERS.iter().find(|known| known.name == layer).expect("a layer"), text)
    }

    #[test]
    fn imports_that_point_down_are_found() {
        assert_eq!(faults_in("engine", "use crate::disk::Root;"), ["engine may not name crate::disk"]);
        assert_eq!(faults_in("disk", "use crate::engine::Work;"), ["disk may not name crate::engine"]);
        assert_eq!(
            faults_in("remote", "use crate::{tree::path, exchange};"),
            ["remote may not name crate::exchange"]
        );
        assert_eq!(
            faults_in("tree", "use crate::{\n    content::{hash, wire},\n    monitor::Event,\n};"),
            ["tree may not name crate::monitor"]
        );
    }

    #[test]
    fn forbidden_clocks_files_and_runtimes_are_found() {
        assert_eq!(faults_in("engine", "let start = Instant::now();"), ["engine may not name Instant"]);
        assert_eq!(faults_in("wire", "use std::net::TcpStream;"), ["wire may not name std::net"]);
        assert_eq!(faults_in("private", "tokio::spawn(run);"), ["private may not name tokio"]);
        assert_eq!(faults_in("sync", "std::io::stderr().is_terminal()"), Vec::<String>::new());
        assert_eq!(faults_in("sync", "use std::io::IsTerminal;"), ["sync may not name IsTerminal"]);
        assert_eq!(faults_in("tree", "use super::super::x;"), ["tree may not name super::super"]);
    }

    #[test]
    fn comments_quotes_and_longer_names_are_no_fault() {
        for text in [
            "// use crate::disk::Root;",
            "//! [`crate::disk`]",
            "let text = \"crate::disk and std::fs\";",
            "let quote = '\"'; // crate::disk",
            "let tokio_like = my_std::fsx();",
            "use crate::engine::disk_like;",
        ] {
            assert_eq!(faults_in("engine", text), Vec::<String>::new(), "{text}");
        }
        assert_eq!(faults_in("engine", "let q = '\"'; use crate::exchange::run;").len(), 1);
    }

    #[test]
    fn files_that_are_too_long_are_found() {
        assert_eq!(length_faults(&"\n".repeat(LINES_MAX)), Vec::<String>::new());
        assert_eq!(length_faults(&"\n".repeat(LINES_MAX + 1)).len(), 1);
    }

    #[test]
    fn leftovers_are_found() {
        for text in [
            concat!("// TO", "DO: later"),
            concat!("todo: FIX", "ME"),
            concat!("    #[", "ignore]"),
            concat!("    #[", "ignore = \"slow\"]"),
            "    // let x = 1;",
            "// foo(bar);",
            "// if x {",
            "// }",
            "// assert_eq!(a, b)",
            "use crate::tree::*;",
        ] {
            assert_eq!(leftover_faults(text).len(), 1, "{text}");
        }
        for text in
            ["// So that it holds; and is short.", "/// let x = 1;", "use super::*;", "let x = 1; // one"]
        {
            assert_eq!(leftover_faults(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn links_to_files_are_found_and_links_to_sites_are_not() {
        let text = "[a](src/a.rs), [b](https://example.com/b) and\n[`c`](c.md).";
        assert_eq!(links(text).collect::<Vec<_>>(), ["src/a.rs", "c.md"]);
    }

    #[test]
    fn a_readme_command_missing_from_the_script_is_found() {
        let readme = "# x\n```sh\ncargo run -- a b   # try it\ncargo test\n```\n```sh\nother\n```";
        assert_eq!(promise_faults(readme, "cargo run -- a b\ncargo test\n"), Vec::<String>::new());
        assert_eq!(promise_faults(readme, "cargo test"), ["not in .ci/run: cargo run -- a b"]);
        assert_eq!(promise_faults("", "cargo test").len(), 1);
    }
}
