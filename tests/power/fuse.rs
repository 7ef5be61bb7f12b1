//! A filesystem in memory, spoken by hand over `/dev/fuse`, that takes less than it says: it keeps
//! the first bytes of each file and tells so only when the file is closed, or it refuses `fsync`.

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
const ENOSYS: i32 = 38;
const ENOTEMPTY: i32 = 39;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// Bytes of a file that are kept.
pub(crate) const KEPT_BYTES: usize = 5000;

/// What it does not do as it should.
#[derive(Clone)]
pub(crate) enum Quirk {
    /// It keeps no more than [`KEPT_BYTES`] of a file, which `close` tells.
    Keeps,
    /// It refuses to bring files that are longer than [`KEPT_BYTES`] to the disk.
    Refuses(Arc<Syncs>),
}

/// Calls of `fsync` for long files, and what was written to them.
#[derive(Default)]
pub(crate) struct Syncs {
    /// So many more are refused.
    pub(crate) refused: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
}

/// It, mounted.
pub(crate) struct Quirky(pub(crate) PathBuf);

impl Quirky {
    /// Mounts it, or says why that cannot be.
    pub(crate) fn mount(place: &Path, quirk: Quirk) -> Result<Self, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|e| format!("/dev/fuse: {e}"))?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("quirky", place, "fuse", MountFlags::empty(), Some(&*options))
            .map_err(|e| format!("mount: {e}"))?;
        thread::spawn(move || serve(&device, quirk));
        Ok(Self(place.to_owned()))
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
    quirk: Quirk,
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

/// Reads numbers and names of a request, one after the other.
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

/// Writes numbers of an answer, one after the other.
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

fn serve(mut device: &File, quirk: Quirk) {
    let nodes = BTreeMap::from([(1, Node::new(DIRECTORY | 0o755))]);
    let mut server = Server { quirk, nodes, next: 2 };
    let mut buffer = vec![0; 1 << 20];
    // It ends when it is unmounted.
    while let Ok(length) = device.read(&mut buffer) {
        let mut fields = Fields(&buffer[..length]);
        let (_, opcode, unique, node) = (fields.u32(), fields.u32(), fields.u64(), fields.u64());
        fields.bytes(16);
        // FORGET, INTERRUPT and BATCH_FORGET want no answer.
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

    fn make(&mut self, parent: u64, name: Vec<u8>, mode: u32) -> Result<u64, i32> {
        let id = self.next;
        let parent = self.node(parent)?;
        if parent.children.contains_key(&name) {
            return Err(EEXIST);
        }
        parent.children.insert(name, id);
        self.nodes.insert(id, Node::new(mode));
        self.next += 1;
        Ok(id)
    }

    fn rename(&mut self, from: u64, to: u64, flags: u32, names: &mut Fields<'_>) -> Result<Answer, i32> {
        let (old, new) = (names.name(), names.name());
        if flags & 1 != 0 && self.node(to)?.children.contains_key(&new) {
            return Err(EEXIST);
        }
        let replaced = self.node(to)?.children.get(&new).copied();
        let id = self.node(from)?.children.remove(&old).ok_or(ENOENT)?;
        self.node(to)?.children.insert(new, id);
        // RENAME_EXCHANGE
        if flags & 2 != 0 {
            self.node(from)?.children.insert(old, replaced.ok_or(ENOENT)?);
        }
        Ok(Answer::default())
    }

    fn answer(&mut self, opcode: u32, id: u64, fields: &mut Fields<'_>) -> Result<Answer, i32> {
        let answer = Answer::default();
        match opcode {
            // LOOKUP
            1 => {
                let name = fields.name();
                let child = *self.node(id)?.children.get(&name).ok_or(ENOENT)?;
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
            // MKDIR
            9 => {
                let (mode, _) = (fields.u32(), fields.u32());
                let made = self.make(id, fields.name(), DIRECTORY | mode & 0o7777)?;
                self.entry(made)
            }
            // UNLINK, RMDIR
            10 | 11 => {
                let name = fields.name();
                let child = *self.node(id)?.children.get(&name).ok_or(ENOENT)?;
                let gone = self.node(child)?;
                if (gone.mode & DIRECTORY != 0) != (opcode == 11) {
                    return Err(ENOTDIR);
                }
                if !gone.children.is_empty() {
                    return Err(ENOTEMPTY);
                }
                self.node(id)?.children.remove(&name);
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
                let limit = match &self.quirk {
                    Quirk::Keeps => KEPT_BYTES,
                    Quirk::Refuses(syncs) => {
                        syncs.written_bytes.fetch_add(size.into(), Ordering::SeqCst);
                        usize::MAX
                    }
                };
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
                match &self.quirk {
                    Quirk::Refuses(syncs) if is_long => {
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
