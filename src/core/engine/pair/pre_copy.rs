//! Pre-copies of contents in memory.

use std::io;
use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::disk::{JarDraft, JarTarget};
use super::source::JarFile;
use crate::content::blocks::{BlockSize, Content, outline_of};
use crate::content::chunk::{Average, cut_range};
use crate::content::hash::Hash;
use crate::content::shift_map::{Mapped, ShiftMap};
use crate::content::testing::reader;
use crate::engine::error::WorkError;
use crate::engine::transfer::pre_copy::{Cancelled, PreCopy};
use crate::monitor::ProblemKind;
use crate::wire::message::{AbortKind, BasisReport, Blocks, Op};

const SIZE: usize = 3_000_001;

type JarPreCopy = PreCopy<JarFile, JarDraft>;

fn pre_copy(content: &[u8]) -> JarPreCopy {
    pre_copy_as(content, ShiftMap::same(content.len() as u64))
}

fn pre_copy_as(content: &[u8], shift_map: ShiftMap) -> JarPreCopy {
    pre_copy_in(JarDraft::empty(), content, shift_map).unwrap()
}

fn pre_copy_in(draft: JarDraft, content: &[u8], shift_map: ShiftMap) -> Option<JarPreCopy> {
    PreCopy::of(draft, basis(content), shift_map, &Cancelled::default())
}

/// A draft and its destination.
fn draft() -> (JarDraft, JarTarget) {
    let draft = JarDraft::empty();
    let target = draft.target();
    (draft, target)
}

fn basis(content: &[u8]) -> JarFile {
    JarFile::new(Arc::new(content.to_vec()))
}

/// The basis as a pre-copy advertised it.
fn advertised(pre_copy: &JarPreCopy, content: &[u8]) -> Mapped<JarFile> {
    Mapped { basis: basis(content), shift_map: pre_copy.advertised() }
}

fn blocks(report: &BasisReport) -> &Blocks {
    match report {
        BasisReport::Blocks(blocks) | BasisReport::RangeRemoved { blocks, .. } => blocks,
        BasisReport::Signed { .. } => panic!("a pre-copy is not signed"),
    }
}

fn made(finished: (JarDraft, JarFile)) -> Vec<u8> {
    finished.0.content().clone()
}

fn read(content: &impl Content, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    content.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn content() -> Vec<u8> {
    (0..SIZE as u32).flat_map(|n| (n / 1000).wrapping_mul(0x9e37_79b9).to_le_bytes()).take(SIZE).collect()
}

/// A content, a range inserted into it at 950,000, and the result.
fn insertion() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (basis, inserted) = (content(), vec![7; 70_000]);
    let new = [&basis[..950_000], &inserted, &basis[950_000..]].concat();
    (basis, inserted, new)
}

#[test]
fn patched_ranges_are_hashed_as_written() {
    let basis_content = content();
    let mut pre_copy = pre_copy(&basis_content);
    let outline = pre_copy.outline().unwrap();
    assert_eq!(outline.hash, Hash::of(&basis_content));
    let data = |length| Op::Data(ByteBuf::from(vec![7; length]));
    let copy = |offset, length| Op::Copy { offset, length };
    // In place; overwritten, twice in a row; copied from elsewhere; in place to the end.
    let steps = [copy(0, 100_000), data(5), data(10), copy(1_000_000, 99_985), copy(200_000, 2_800_001)];
    for step in steps {
        pre_copy.apply(step).unwrap();
    }
    let mut new = basis_content.clone();
    new[100_000..100_015].fill(7);
    new[100_015..200_000].copy_from_slice(&basis_content[1_000_000..1_099_985]);
    assert!(made(pre_copy.finish(Hash::of(&new)).unwrap()) == new);
}

#[test]
fn pre_copy_with_a_gap_is_patched_in_the_new_place() {
    let (basis_content, inserted, new) = insertion();
    let (size, split) = (new.len() as u64, 1_100_000);
    let shift_map = ShiftMap::new(SIZE as u64, size, split).unwrap();
    let mut pre_copy = pre_copy_as(&basis_content, shift_map);
    let basis = advertised(&pre_copy, &basis_content);
    let widened =
        [&basis_content[..split as usize], &basis_content[split as usize - inserted.len()..]].concat();
    let (report, hash) = pre_copy.report().unwrap();
    assert_eq!((blocks(&report).length, hash), (size, Some(Hash::of(&widened))));
    // Windows and chunks of the basis show exactly this shape.
    let (offset, length) = (split - 50_000, 100_000);
    let due = &widened[offset as usize..offset as usize + length];
    assert!(read(&basis, offset, length).unwrap() == due);
    let average = Average::for_size(length as u64).unwrap();
    let chunks = cut_range(&basis, offset..offset + length as u64, average).unwrap();
    assert_eq!(chunks, cut_range(&reader(due), 0..length as u64, average).unwrap());
    assert!(read(&basis, size - 5, 6).is_err());
    assert!(cut_range(&basis, size - 5..size + 1, average).is_err());

    let copy = |offset, length| Op::Copy { offset, length };
    let data = Op::Data(ByteBuf::from(inserted));
    let steps = [copy(0, 950_000), data, copy(950_000, 80_000), copy(split, size - split)];
    for step in steps {
        pre_copy.apply(step).unwrap();
    }
    assert!(made(pre_copy.finish(Hash::of(&new)).unwrap()) == new);
}

#[test]
fn pre_copy_with_a_gap_accepts_steps_of_the_unchanged_basis() {
    let (basis_content, inserted, new) = insertion();
    let (size, split) = (new.len() as u64, 1_100_000);
    let shift_map = ShiftMap::new(SIZE as u64, size, split).unwrap();
    let pre_copy = pre_copy_as(&basis_content, shift_map);
    let mut pre_copy = pre_copy.advertised_unchanged();
    assert_eq!(pre_copy.advertised(), ShiftMap::same(SIZE as u64));
    let copy = |offset, length| Op::Copy { offset, length };
    // The inserted range is missing, and the bytes after it are in place only from the split
    // on.
    for step in [copy(0, 950_000), Op::Data(ByteBuf::from(inserted)), copy(950_000, SIZE as u64 - 950_000)] {
        pre_copy.apply(step).unwrap();
    }
    assert!(pre_copy.patched().iter().eq([&(950_000..split)]));
    assert!(made(pre_copy.finish(Hash::of(&new)).unwrap()) == new);
}

#[test]
fn appended_range_is_no_part_of_the_advertised_basis() {
    let (basis_content, appended) = (content(), vec![7; 500_000]);
    let new = [&basis_content[..], &appended].concat();
    let shift_map = ShiftMap::new(SIZE as u64, new.len() as u64, new.len() as u64).unwrap();
    let mut pre_copy = pre_copy_as(&basis_content, shift_map);
    let ids = outline_of(&basis_content, BlockSize::for_size(new.len() as u64)).ids;
    let blocks = Blocks { length: SIZE as u64, ids };
    assert_eq!(pre_copy.report().unwrap(), (BasisReport::Blocks(blocks), None));
    pre_copy.apply(Op::Copy { offset: 0, length: SIZE as u64 }).unwrap();
    pre_copy.apply(Op::Data(ByteBuf::from(appended))).unwrap();
    assert!(made(pre_copy.finish(Hash::of(&new)).unwrap()) == new);
}

#[test]
fn removed_range_is_available_where_it_was_needed_after_all() {
    let (basis_content, taken) = (content(), 70_000);
    let (place, split) = (950_000, 917_504);
    let new = [&basis_content[..place], &basis_content[place + taken..]].concat();
    let size = new.len() as u64;
    let shift_map = ShiftMap::new(SIZE as u64, size, split as u64).unwrap();
    let mut pre_copy = pre_copy_as(&basis_content, shift_map);
    let basis = advertised(&pre_copy, &basis_content);
    let range_removed = [&basis_content[..split], &basis_content[split + taken..]].concat();
    let ids = outline_of(&range_removed, BlockSize::for_size(size)).ids;
    let blocks = Blocks { length: SIZE as u64, ids };
    let due = BasisReport::RangeRemoved { blocks, split: split as u64 };
    assert_eq!(pre_copy.report().unwrap(), (due, None));
    // Windows refer to the unchanged basis.
    assert!(read(&basis, split as u64 + 5, 1000).unwrap() == basis_content[split + 5..split + 1005]);

    let copy = |offset, length: usize| Op::Copy { offset: offset as u64, length: length as u64 };
    // Across the removed range: in place, then elsewhere; after it in place again, in two
    // steps.
    let behind = place + taken;
    for step in [copy(0, place), copy(behind, 100_000), copy(behind + 100_000, SIZE - behind - 100_000)] {
        pre_copy.apply(step).unwrap();
    }
    assert!(pre_copy.patched().iter().eq([&(split as u64..place as u64)]));
    assert!(made(pre_copy.finish(Hash::of(&new)).unwrap()) == new);
}

#[test]
fn wrong_hash_or_too_few_bytes_make_no_file() {
    let hash = Hash::of(&content());
    for (length, hash) in [(SIZE as u64, Hash::of(b"")), (SIZE as u64 - 1, hash)] {
        let (draft, target) = draft();
        let mut pre_copy = pre_copy_in(draft, &content(), ShiftMap::same(SIZE as u64)).unwrap();
        pre_copy.apply(Op::Copy { offset: 0, length }).unwrap();
        assert!(matches!(pre_copy.finish(hash), Err(WorkError::Entry(ProblemKind::Corrupt, _))));
        assert_eq!(target.state().discarded, 1);
    }
}

#[test]
fn no_step_leads_beyond_the_end() {
    let draft = JarDraft::empty();
    let staged = draft.staged();
    let mut pre_copy = pre_copy_in(draft, &content(), ShiftMap::same(SIZE as u64)).unwrap();
    let too_long = SIZE as u64 + 1;
    for step in [
        Op::Copy { offset: 0, length: too_long },
        Op::Copy { offset: 0, length: u64::MAX },
        Op::Keep { length: 5 },
    ] {
        assert!(matches!(pre_copy.apply(step), Err(WorkError::Fatal(AbortKind::Protocol, _))));
    }
    pre_copy.apply(Op::Copy { offset: 0, length: SIZE as u64 - 1 }).unwrap();
    assert!(pre_copy.apply(Op::Data(ByteBuf::from(vec![7; 2]))).is_err());
    assert!(pre_copy.apply(Op::Copy { offset: u64::MAX - 1, length: 1 }).is_err());
    assert_eq!(staged.lock().unwrap().len(), SIZE);
}

#[test]
fn basis_of_another_length_makes_no_pre_copy() {
    let (draft, target) = draft();
    assert!(pre_copy_in(draft, &content(), ShiftMap::same(SIZE as u64 + 1)).is_none());
    assert_eq!(target.state().discarded, 1);
}
