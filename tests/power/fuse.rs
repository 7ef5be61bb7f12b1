//! A filesystem with quirks, in memory: speaks the FUSE protocol over `/dev/fuse` by hand.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const ENOSYS: i32 = 38;
const ENOTEMPTY: i32 = 39;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// RENAME_NOREPLACE and RENAME_EXCHANGE.
const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

/// Bytes of a file that the filesystem keeps.
pub(crate) const KEPT_BYTES: usize = 5000;

/// Counts calls of `fsync` for files longer than [`KEPT_BYTES`], and bytes written to any file.
#[derive(Default)]
pub(crate) struct Syncs {
    /// Number of further calls to refuse.
    pub(crate) refused: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
}

/// Deviations from an ordinary filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Quirks {
    /// Keeps only the first [`KEPT_BYTES`] of a file, and reports that only when the file is
    /// closed.
    pub(crate) cuts: bool,
    /// Names that differ only in case are one name, listed as it was created: as on APFS.
    pub(crate) folds_case: bool,
    /// Names are decomposed: as on HFS+.
    pub(crate) decomposes: bool,
}

/// A mounted filesystem with quirks.
pub(crate) struct Quirky(pub(crate) PathBuf);

impl Quirky {
    /// Mounts the filesystem, or returns the reason why it cannot.
    fn mount(place: &Path, quirks: Quirks, syncs: Option<Arc<Syncs>>) -> Result<Self, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|e| format!("/dev/fuse: {e}"))?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("quirky", place, "fuse", MountFlags::empty(), Some(&*options))
            .map_err(|e| format!("mount: {e}"))?;
        thread::spawn(move || serve(&device, quirks, syncs));
        Ok(Self(place.to_owned()))
    }

    /// Mounts the filesystem. Skips the test if that fails.
    pub(crate) fn mounted(place: &Path, quirks: Quirks) -> Option<Self> {
        Self::or_skip(Self::mount(place, quirks, None))
    }

    /// Mounts a filesystem whose only quirk is that it refuses `fsync` of long files.
    pub(crate) fn refusing(place: &Path, syncs: &Arc<Syncs>) -> Option<Self> {
        Self::or_skip(Self::mount(place, Quirks::default(), Some(Arc::clone(syncs))))
    }

    fn or_skip(mounted: Result<Self, String>) -> Option<Self> {
        mounted.map_err(crate::skip::skip).ok()
    }
}

impl Drop for Quirky {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

struct Node {
    mode: u32,
    owner: (u32, u32),
    mtime: (u64, u32),
    data: Vec<u8>,
    children: BTreeMap<Vec<u8>, u64>,
    is_cut: bool,
}

impl Node {
    fn new(mode: u32) -> Self {
        let children = BTreeMap::new();
        Self { mode, owner: (0, 0), mtime: (1, 0), data: Vec::new(), children, is_cut: false }
    }
}

struct Server {
    quirks: Quirks,
    /// Set if `fsync` may be refused.
    syncs: Option<Arc<Syncs>>,
    nodes: BTreeMap<u64, Node>,
    next: u64,
    /// Nanoseconds since the mount, as its files report them.
    clock: u32,
}

/// A name in the form of HFS+, for the letters that tests use.
fn decomposed(name: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(name) else { return name.to_vec() };
    let letters =
        [('\u{e9}', "e\u{301}"), ('\u{c9}', "E\u{301}"), ('\u{fc}', "u\u{308}"), ('\u{dc}', "U\u{308}")];
    let decomposed = letters.iter().fold(text.to_owned(), |text, (letter, form)| text.replace(*letter, form));
    decomposed.into_bytes()
}

/// Reads the numbers and names of a request in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(count);
        self.0 = rest;
        now
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.bytes(8).try_into().unwrap())
    }

    fn name(&mut self) -> Vec<u8> {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap();
        let name = self.bytes(end).to_vec();
        self.bytes(1);
        name
    }
}

/// Writes the numbers of an answer in order.
#[derive(Default)]
struct Answer(Vec<u8>);

impl Answer {
    fn u64(mut self, numbers: &[u64]) -> Self {
        numbers.iter().for_each(|number| self.0.extend(number.to_ne_bytes()));
        self
    }

    fn u32(mut self, numbers: &[u32]) -> Self {
        numbers.iter().for_each(|number| self.0.extend(number.to_ne_bytes()));
        self
    }
}

fn serve(mut device: &File, quirks: Quirks, syncs: Option<Arc<Syncs>>) {
    let nodes = BTreeMap::from([(1, Node::new(DIRECTORY | 0o755))]);
    let mut server = Server { quirks, syncs, nodes, next: 2, clock: 0 };
    let mut buffer = vec![0; 1 << 20];
    // The unmount ends this loop.
    while let Ok(length) = device.read(&mut buffer) {
        let mut fields = Fields(&buffer[..length]);
        let (_, opcode, unique, node) = (fields.u32(), fields.u32(), fields.u64(), fields.u64());
        fields.bytes(16);
        // FORGET, INTERRUPT and BATCH_FORGET expect no answer.
        if matches!(opcode, 2 | 36 | 42) {
            continue;
        }
        let (error, body) = match server.answer(opcode, node, &mut fields) {
            Ok(body) => (0, body.0),
            Err(error) => (-error, Vec::new()),
        };
        let head = Answer::default().u32(&[16 + body.len() as u32, error as u32]).u64(&[unique]);
        let _ = device.write(&[head.0, body].concat());
    }
}

impl Server {
    fn node(&mut self, id: u64) -> Result<&mut Node, i32> {
        self.nodes.get_mut(&id).ok_or(ENOENT)
    }

    fn attributes(&mut self, id: u64, answer: Answer) -> Result<Answer, i32> {
        let node = self.node(id)?;
        let (length, (seconds, nanos), (user, group)) = (node.data.len() as u64, node.mtime, node.owner);
        Ok(answer
            .u64(&[id, length, length.div_ceil(512), seconds, seconds, seconds])
            .u32(&[nanos, nanos, nanos, node.mode, 1, user, group, 0, 4096, 0]))
    }

    fn entry(&mut self, id: u64) -> Result<Answer, i32> {
        let answer = Answer::default().u64(&[id, 0, 0, 0]).u32(&[0, 0]);
        self.attributes(id, answer)
    }

    /// The stored name, and the node that it leads to.
    fn find(&mut self, parent: u64, name: &[u8]) -> Result<Option<(Vec<u8>, u64)>, i32> {
        let Quirks { folds_case, decomposes, .. } = self.quirks;
        let name = if decomposes { decomposed(name) } else { name.to_vec() };
        let is_it = |stored: &[u8]| {
            let fold = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase();
            stored == name || folds_case && fold(stored) == fold(&name)
        };
        let mut children = self.node(parent)?.children.iter();
        Ok(children.find(|(stored, _)| is_it(stored)).map(|(stored, id)| (stored.clone(), *id)))
    }

    /// Gives a node a free name.
    fn link(&mut self, parent: u64, name: Vec<u8>, id: u64) -> Result<(), i32> {
        let name = if self.quirks.decomposes { decomposed(&name) } else { name };
        self.node(parent)?.children.insert(name, id);
        self.touch(parent)
    }

    /// A change in a directory advances its time.
    fn touch(&mut self, directory: u64) -> Result<(), i32> {
        self.clock += 1;
        let clock = self.clock;
        self.node(directory)?.mtime = (2, clock);
        Ok(())
    }

    fn make(&mut self, parent: u64, name: Vec<u8>, mode: u32) -> Result<u64, i32> {
        if self.find(parent, &name)?.is_some() {
            return Err(EEXIST);
        }
        let id = self.next;
        self.nodes.insert(id, Node::new(mode));
        self.next += 1;
        self.link(parent, name, id)?;
        Ok(id)
    }

    fn rename(&mut self, from: u64, to: u64, flags: u32, names: &mut Fields<'_>) -> Result<Answer, i32> {
        let (old, new) = (names.name(), names.name());
        let (stored, id) = self.find(from, &old)?.ok_or(ENOENT)?;
        let there = self.find(to, &new)?;
        match there {
            Some(_) if flags & NOREPLACE != 0 => return Err(EEXIST),
            Some((there, other)) if flags & EXCHANGE != 0 => {
                self.node(from)?.children.insert(stored, other);
                self.node(to)?.children.insert(there, id);
            }
            None if flags & EXCHANGE != 0 => return Err(ENOENT),
            // The entry keeps the name under which it is listed.
            Some((there, other)) if other != id => {
                if self.node(other)?.mode >> 12 == DIRECTORY >> 12 {
                    return Err(EISDIR);
                }
                self.node(from)?.children.remove(&stored);
                self.node(to)?.children.insert(there, id);
            }
            Some(_) | None => {
                self.node(from)?.children.remove(&stored);
                self.link(to, new, id)?;
            }
        }
        self.touch(from)?;
        self.touch(to)?;
        Ok(Answer::default())
    }

    fn answer(&mut self, opcode: u32, id: u64, fields: &mut Fields<'_>) -> Result<Answer, i32> {
        let answer = Answer::default();
        match opcode {
            // LOOKUP
            1 => {
                let (_, child) = self.find(id, &fields.name())?.ok_or(ENOENT)?;
                self.entry(child)
            }
            // GETATTR
            3 => self.attributes(id, answer.u64(&[0]).u32(&[0, 0])),
            // SETATTR
            4 => {
                let valid = fields.u32();
                fields.bytes(12);
                let size = fields.u64();
                fields.bytes(16);
                let mtime = fields.u64();
                fields.bytes(12);
                let nanos = fields.u32();
                fields.bytes(4);
                let mode = fields.u32();
                fields.bytes(4);
                let owner = (fields.u32(), fields.u32());
                let node = self.node(id)?;
                if valid & 1 != 0 {
                    node.mode = node.mode & !0o7777 | mode & 0o7777;
                }
                if valid & 2 != 0 {
                    node.owner.0 = owner.0;
                }
                if valid & 4 != 0 {
                    node.owner.1 = owner.1;
                }
                if valid & 8 != 0 {
                    node.data.resize(size as usize, 0);
                }
                if valid & 32 != 0 {
                    node.mtime = (mtime, nanos);
                }
                self.attributes(id, answer.u64(&[0]).u32(&[0, 0]))
            }
            // READLINK
            5 => Ok(Answer(self.node(id)?.data.clone())),
            // SYMLINK
            6 => {
                let (name, target) = (fields.name(), fields.name());
                let made = self.make(id, name, SYMLINK | 0o777)?;
                self.node(made)?.data = target;
                self.entry(made)
            }
            // MKDIR
            9 => {
                let (mode, _) = (fields.u32(), fields.u32());
                let made = self.make(id, fields.name(), DIRECTORY | mode & 0o7777)?;
                self.entry(made)
            }
            // UNLINK, RMDIR
            10 | 11 => {
                let (name, child) = self.find(id, &fields.name())?.ok_or(ENOENT)?;
                let gone = self.node(child)?;
                if (gone.mode >> 12 == DIRECTORY >> 12) != (opcode == 11) {
                    return Err(ENOTDIR);
                }
                if !gone.children.is_empty() {
                    return Err(ENOTEMPTY);
                }
                self.node(id)?.children.remove(&name);
                self.touch(id)?;
                Ok(answer)
            }
            // RENAME, RENAME2
            12 => {
                let to = fields.u64();
                self.rename(id, to, 0, fields)
            }
            45 => {
                let (to, flags, _) = (fields.u64(), fields.u32(), fields.u32());
                self.rename(id, to, flags, fields)
            }
            // OPEN, OPENDIR
            14 | 27 => {
                self.node(id)?;
                Ok(answer.u64(&[0]).u32(&[0, 0]))
            }
            // READ
            15 => {
                let (_, offset, size) = (fields.u64(), fields.u64() as usize, fields.u32() as usize);
                let data = &self.node(id)?.data;
                let end = data.len().min(offset + size);
                Ok(Answer(data.get(offset.min(end)..end).unwrap_or_default().to_vec()))
            }
            // WRITE
            16 => {
                let (_, offset, size) = (fields.u64(), fields.u64() as usize, fields.u32());
                fields.bytes(20);
                let end = offset + size as usize;
                if let Some(syncs) = &self.syncs {
                    syncs.written_bytes.fetch_add(size.into(), Ordering::SeqCst);
                }
                let limit = if self.quirks.cuts { KEPT_BYTES } else { usize::MAX };
                let node = self.node(id)?;
                node.is_cut |= end > limit;
                let kept = end.min(limit).saturating_sub(offset);
                node.data.resize(node.data.len().max(end), 0);
                node.data[offset..offset + kept].copy_from_slice(&fields.0[..kept]);
                Ok(answer.u32(&[size, 0]))
            }
            // STATFS
            17 => Ok(answer
                .u64(&[1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20])
                .u32(&[4096, 255, 4096, 0])
                .u32(&[0; 6])),
            // FSYNC
            20 => {
                let is_long = self.node(id)?.data.len() > KEPT_BYTES;
                match &self.syncs {
                    Some(syncs) if is_long => {
                        syncs.calls.fetch_add(1, Ordering::SeqCst);
                        let less = |refused: u64| refused.checked_sub(1);
                        let refuses = syncs.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
                        if refuses.is_ok() { Err(EIO) } else { Ok(answer) }
                    }
                    _ => Ok(answer),
                }
            }
            // RELEASE, RELEASEDIR, FSYNCDIR, DESTROY
            18 | 29 | 30 | 38 => Ok(answer),
            // FLUSH
            25 => {
                if self.node(id)?.is_cut {
                    Err(EIO)
                } else {
                    Ok(answer)
                }
            }
            // INIT
            26 => {
                let (major, minor, ahead) = (fields.u32(), fields.u32(), fields.u32());
                let _ = (major, minor);
                Ok(answer.u32(&[7, 31, ahead, 0, 0, 128 << 10, 1, 0]).u32(&[0; 8]))
            }
            // READDIR
            28 => {
                let (_, offset, size) = (fields.u64(), fields.u64(), fields.u32());
                let children: Vec<_> =
                    self.node(id)?.children.iter().map(|(n, id)| (n.clone(), *id)).collect();
                let mut entries = answer;
                for (at, (name, child)) in children.into_iter().enumerate().skip(offset as usize) {
                    let kind = self.node(child)?.mode >> 12;
                    let one = Answer::default().u64(&[child, at as u64 + 1]).u32(&[name.len() as u32, kind]);
                    let padding = vec![0; name.len().next_multiple_of(8) - name.len()];
                    let one = [one.0, name, padding].concat();
                    if entries.0.len() + one.len() > size as usize {
                        break;
                    }
                    entries.0.extend(one);
                }
                Ok(entries)
            }
            // CREATE
            35 => {
                let (_, mode) = (fields.u32(), fields.u32());
                fields.bytes(8);
                let made = self.make(id, fields.name(), REGULAR | mode & 0o7777)?;
                Ok(self.entry(made)?.u64(&[0]).u32(&[0, 0]))
            }
            _ => Err(ENOSYS),
        }
    }
}
