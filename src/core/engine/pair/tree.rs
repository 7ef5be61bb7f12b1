//! Trees in memory: grown, changed and compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::tree::entry::{Entry, Kind, Time};
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;

/// A deterministic random number generator (xorshift64*).
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.roll() >> 11) as usize % bound
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.roll().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum What {
    Directory,
    File(Arc<Vec<u8>>),
    Link(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) mode: u16,
    pub(super) mtime: Time,
}

impl Node {
    pub(super) fn is_directory(&self) -> bool {
        self.what == What::Directory
    }
}

pub(super) type Tree = BTreeMap<TreePath, Node>;

pub(super) fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

pub(super) fn time(seconds: i64) -> Time {
    Time::new(seconds, 5).unwrap()
}

pub(super) fn directory() -> Node {
    Node { what: What::Directory, mode: 0o755, mtime: time(1) }
}

pub(super) fn file(content: &[u8]) -> Node {
    Node { what: What::File(Arc::new(content.to_vec())), mode: 0o644, mtime: time(1) }
}

pub(super) fn link(target: &str) -> Node {
    Node { what: What::Link(target.as_bytes().to_vec()), mode: 0o777, mtime: time(1) }
}

pub(super) fn tree<const N: usize>(nodes: [(&str, Node); N]) -> Tree {
    nodes.into_iter().map(|(name, node)| (path(name), node)).collect()
}

pub(super) fn manifest(tree: &Tree) -> Arc<Manifest> {
    let entries = tree.iter().map(|(path, node)| {
        let kind = match &node.what {
            What::Directory => Kind::Directory,
            What::File(content) => Kind::File { size: content.len() as u64, hash: None },
            What::Link(target) => Kind::Symlink { target: target.as_slice().into() },
        };
        Entry { path: path.clone(), kind, mode: node.mode, mtime: node.mtime, attributes: None }
    });
    Arc::new(Manifest::new(entries.collect()).unwrap())
}

pub(super) fn remove_with_all_below(tree: &mut Tree, gone: &TreePath) {
    tree.retain(|path, _| path != gone && !path.is_below(gone));
}

/// Lengths around every threshold, and one that travels in several pieces.
const LENGTHS: [usize; 10] =
    [0, 1, 1000, (16 << 10) - 1, (16 << 10) + 1, 40 << 10, 100 << 10, 128 << 10, (128 << 10) + 1, 200 << 10];

/// A tree of up to about thirty entries.
pub(super) fn grow(rng: &mut Rng) -> Tree {
    let mut tree = Tree::new();
    grow_in(rng, &mut tree, None, 0);
    tree
}

fn grow_in(rng: &mut Rng, tree: &mut Tree, parent: Option<&TreePath>, depth: usize) {
    for name in [&b"a"[..], b"a.b", b"b", b"c\xff"] {
        if rng.below(3) == 0 {
            continue;
        }
        let path = parent.map_or_else(|| TreePath::new(name), |parent| parent.join(name)).unwrap();
        let node = any_node(rng, depth < 2);
        let is_directory = node.is_directory();
        tree.insert(path.clone(), node);
        if is_directory {
            grow_in(rng, tree, Some(&path), depth + 1);
        }
    }
}

fn any_node(rng: &mut Rng, may_be_directory: bool) -> Node {
    let what = match rng.below(if may_be_directory { 6 } else { 4 }) {
        0 => What::Link(format!("to/{}", rng.below(3)).into_bytes()),
        1..=3 => {
            let length = LENGTHS[rng.below(LENGTHS.len())];
            What::File(Arc::new(rng.bytes(length)))
        }
        _ => What::Directory,
    };
    let mode = if matches!(what, What::Link(_)) { 0o777 } else { [0o755, 0o644, 0o500][rng.below(3)] };
    Node { what, mode, mtime: any_time(rng) }
}

fn any_time(rng: &mut Rng) -> Time {
    Time::new(rng.below(1 << 40) as i64 - (1 << 39), rng.below(1_000_000_000) as u32).unwrap()
}

/// Changes a few entries.
pub(super) fn change(rng: &mut Rng, tree: &mut Tree) {
    for _ in 0..rng.below(6) {
        let Some(path) = tree.keys().nth(rng.below(tree.len().max(1))).cloned() else { return };
        match rng.below(6) {
            0 => remove_with_all_below(tree, &path),
            1 => {
                remove_with_all_below(tree, &path);
                tree.insert(path, any_node(rng, true));
            }
            2 => {
                if let Some(node) = tree.get_mut(&path) {
                    node.mtime = any_time(rng);
                }
            }
            3 => {
                if let Some(node) = tree.get_mut(&path).filter(|node| !matches!(node.what, What::Link(_))) {
                    node.mode = 0o711;
                }
            }
            4 => edit(rng, tree, &path),
            _ => {
                if tree[&path].is_directory() {
                    tree.insert(path.join(b"new").unwrap(), any_node(rng, true));
                }
            }
        }
    }
}

/// Changes a content a little, as an editor does.
fn edit(rng: &mut Rng, tree: &mut Tree, path: &TreePath) {
    let mtime = any_time(rng);
    let Some(node) = tree.get_mut(path) else { return };
    if let What::File(content) = &mut node.what {
        let mut bytes = content.to_vec();
        let at = rng.below(bytes.len() + 1);
        match rng.below(4) {
            0 => drop(bytes.splice(at..at, *b"inserted")),
            1 => bytes.truncate(at),
            2 => bytes.extend(rng.bytes(5000)),
            _ => bytes[at..].iter_mut().take(3).for_each(|byte| *byte ^= 1),
        }
        *content = Arc::new(bytes);
        node.mtime = mtime;
    }
}

/// The expected target after a run, derived from the rules alone.
pub(super) fn expected(source: &Tree, target: &Tree, delete: bool) -> Tree {
    if delete {
        return source.clone();
    }
    let mut result = target.clone();
    for (path, node) in source {
        let holds_something = target.keys().any(|below| below.is_below(path));
        match target.get(path) {
            Some(old) if old.is_directory() && !node.is_directory() && holds_something => continue,
            _ => drop(result.insert(path.clone(), node.clone())),
        }
    }
    result
}

/// The differences, in words.
pub(super) fn differences(expected: &Tree, actual: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(actual.keys()).collect();
    let describe = |node: Option<&Node>| match node {
        None => "nothing".to_owned(),
        Some(Node { what, mode, mtime }) => match what {
            What::Directory => format!("directory {mode:o} {mtime:?}"),
            What::File(content) => {
                let hash = crate::content::hash::Hash::of(content);
                format!("file of {} bytes {hash:.8} {mode:o} {mtime:?}", content.len())
            }
            What::Link(target) => format!("link to {target:?} {mtime:?}"),
        },
    };
    paths
        .into_iter()
        .filter(|path| expected.get(path) != actual.get(path))
        .map(|path| format!("{path}: {} != {}", describe(expected.get(path)), describe(actual.get(path))))
        .collect()
}
