//! Speed of single components, and its growth with the input size.
//!
//! Run `cargo bench --bench kernels`, with a name to select some of them.
//!
//! A failed preparation ends the bench with a panic.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

#[path = "data/mod.rs"]
mod data;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

fn main() {
    divan::main();
}

const MIB: usize = 1 << 20;

/// Text like that of source files.
fn text(length: usize) -> Vec<u8> {
    let mut text = Vec::new();
    data::text::Author::new(1).write(&mut text, length);
    text
}

/// Returns `bytes` with one changed byte in the middle and ten inserted in front.
fn edited(bytes: &[u8]) -> Vec<u8> {
    let mut edited = [&[0; 10], bytes].concat();
    let middle = edited.len() / 2;
    edited[middle] ^= 1;
    edited
}

mod scan {
    use std::fs;

    use ksync::disk::root::Root;
    use ksync::disk::scan::{Away, ScanOptions, Subject, scan};

    use super::{Bencher, ItemsCount};

    /// Scan of 20,000 files in the kernel's cache; it should take microseconds per entry.
    #[divan::bench(sample_count = 10)]
    fn names(bencher: Bencher) {
        measure(bencher, ScanOptions { cross_mounts: true, ..ScanOptions::default() });
    }

    /// Scan with hashes of small files.
    #[divan::bench(sample_count = 5)]
    fn names_and_hashes(bencher: Bencher) {
        measure(bencher, ScanOptions { hash: true, cross_mounts: true, ..ScanOptions::default() });
    }

    fn measure(bencher: Bencher, options: ScanOptions) {
        let folder = tempfile::tempdir().expect("a folder");
        for directory in 0..1000 {
            let directory = folder.path().join(format!("part-{directory}"));
            fs::create_dir(&directory).expect("a directory");
            for file in 0..20 {
                fs::write(directory.join(format!("file-{file}")), "some text\n").expect("a file");
            }
        }
        let root = Root::open(folder.path()).expect("a root");
        bencher.counter(ItemsCount::new(21_000_usize)).bench(|| {
            let scanned = scan(&root, &Subject::Whole, &options, None, &mut Away).expect("a scan");
            assert_eq!(scanned.manifest.len(), 21_000);
            scanned
        });
    }
}

mod manifest {
    use ksync::tree::compare::{Rules, compare};
    use ksync::tree::entry::{Entry, Kind, Time};
    use ksync::tree::manifest::{Builder, Manifest};
    use ksync::tree::path::TreePath;

    use super::{Bencher, ItemsCount, data};

    /// Twice the Linux source, and the size of the largest real trees.
    const ENTRIES: [usize; 2] = [100_000, 1_000_000];

    /// Check of a scan's result; it should take at most microseconds per entry.
    #[divan::bench(args = ENTRIES, sample_count = 10)]
    fn build(bencher: Bencher, count: usize) {
        let entries = entries(count);
        bencher
            .counter(ItemsCount::new(count))
            .with_inputs(|| entries.clone())
            .bench_values(|entries| Manifest::new(entries).expect("a manifest"));
    }

    /// Encoding; it should be faster than a link.
    #[divan::bench(args = ENTRIES, sample_count = 10)]
    fn encode(bencher: Bencher, count: usize) {
        let manifest = Manifest::new(entries(count)).expect("a manifest");
        bencher
            .counter(ItemsCount::new(count))
            .bench(|| manifest.blocks().map(|block| block.len()).sum::<usize>());
    }

    /// Decoding and checking; it should be as fast as encoding.
    #[divan::bench(args = ENTRIES, sample_count = 10)]
    fn decode(bencher: Bencher, count: usize) {
        let manifest = Manifest::new(entries(count)).expect("a manifest");
        let blocks: Vec<_> = manifest.blocks().collect();
        bencher.counter(ItemsCount::new(count)).bench(|| {
            let mut builder = Builder::default();
            for block in &blocks {
                builder.push(block).expect("a block");
            }
            builder.finish()
        });
    }

    /// Comparison of two equal manifests.
    #[divan::bench(args = ENTRIES, sample_count = 10)]
    fn compare_equal(bencher: Bencher, count: usize) {
        let manifest = Manifest::new(entries(count)).expect("a manifest");
        measure_compare(bencher, &manifest, &manifest, 0);
    }

    /// Comparison of two manifests in which one file in a hundred differs.
    #[divan::bench(args = ENTRIES, sample_count = 10)]
    fn compare_changed(bencher: Bencher, count: usize) {
        let present = entries(count);
        let mut wanted = present.clone();
        for entry in wanted.iter_mut().skip(1).step_by(100) {
            entry.mtime = Time::new(entry.mtime.seconds() + 1, 0).expect("a time");
        }
        let [wanted, present] = [wanted, present].map(|entries| Manifest::new(entries).expect("a manifest"));
        measure_compare(bencher, &wanted, &present, count / 100);
    }

    fn measure_compare(bencher: Bencher, wanted: &Manifest, present: &Manifest, changes: usize) {
        let rules = Rules { delete: true, mode_mask: 0o7777, ..Rules::default() };
        bencher.counter(ItemsCount::new(wanted.len())).bench(|| {
            let found = compare(wanted, present, rules, |_| false);
            assert_eq!(found.len(), changes);
            found
        });
    }

    /// Directories with fifteen files each.
    fn entries(count: usize) -> Vec<Entry> {
        let mut rng = data::Rng::new(1);
        let mut word = || data::text::WORDS[rng.below(data::text::WORDS.len())];
        let mut directory = String::new();
        let mut entries: Vec<Entry> = (0..count)
            .map(|index| {
                let is_directory = index % 16 == 0;
                if is_directory {
                    directory = format!("{}-{index}", word());
                }
                let path = match is_directory {
                    true => directory.clone(),
                    false => format!("{directory}/{}_{}-{index}.c", word(), word()),
                };
                Entry {
                    path: TreePath::new(path.into_bytes()).expect("a path"),
                    kind: match is_directory {
                        true => Kind::Directory,
                        false => Kind::File { size: index as u64, hash: None },
                    },
                    mode: 0o644,
                    mtime: Time::new(1_600_000_000 + index as i64, 0).expect("a time"),
                    attributes: None,
                }
            })
            .collect();
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        // The clone lies in memory in order, like the entries of a scan.
        entries.clone()
    }
}

mod content {
    use ksync::content::chunk::{Average, cut_range};
    use ksync::content::delta::{NEW_BYTES_MAX, Signature, apply, sign};
    use ksync::content::hash::Hash;

    use super::{Bencher, BytesCount, MIB, data, edited, text};

    /// Hashing; it should be faster than a disk reads.
    #[divan::bench]
    fn hash(bencher: Bencher) {
        let noise = data::noise(1, 16 * MIB);
        bencher.counter(BytesCount::of_slice(&noise)).bench(|| Hash::of(&noise));
    }

    /// Chunking of noise, with the chunks' ids.
    #[divan::bench(sample_count = 20)]
    fn chunks_of_noise(bencher: Bencher) {
        measure_chunks(bencher, &data::noise(1, 64 * MIB));
    }

    /// Chunking of text, with the chunks' ids.
    #[divan::bench(sample_count = 20)]
    fn chunks_of_text(bencher: Bencher) {
        measure_chunks(bencher, &text(64 * MIB));
    }

    fn measure_chunks(bencher: Bencher, bytes: &[u8]) {
        let average = Average::for_size(bytes.len() as u64).expect("an average");
        let content = |buffer: &mut [u8], offset: u64| {
            buffer.copy_from_slice(bytes.get(offset as usize..).expect("bytes").split_at(buffer.len()).0);
            Ok(())
        };
        bencher
            .counter(BytesCount::of_slice(bytes))
            .bench(|| cut_range(&content, 0..bytes.len() as u64, average).expect("chunks"));
    }

    /// Signature of a gap.
    #[divan::bench]
    fn signature(bencher: Bencher) {
        let old = data::noise(1, MIB);
        bencher.counter(BytesCount::of_slice(&old)).bench(|| sign(&old).expect("a signature"));
    }

    /// Delta of an edited gap.
    #[divan::bench]
    fn diff_of_an_edit(bencher: Bencher) {
        let old = data::noise(1, NEW_BYTES_MAX - 10);
        measure_diff(bencher, &old, &edited(&old));
    }

    /// Delta of an unrelated gap, where nothing matches and every byte is tried.
    #[divan::bench(sample_count = 20)]
    fn diff_of_a_stranger(bencher: Bencher) {
        measure_diff(bencher, &data::noise(1, NEW_BYTES_MAX), &data::noise(2, NEW_BYTES_MAX));
    }

    fn measure_diff(bencher: Bencher, old: &[u8], new: &[u8]) {
        let entries = sign(old).expect("a signature");
        bencher.counter(BytesCount::of_slice(new)).bench(|| {
            let signature = Signature::check(&entries, old.len()).expect("a signature");
            signature.diff(new).expect("a delta")
        });
    }

    /// Application of a delta; it should be faster than a link.
    #[divan::bench]
    fn patch(bencher: Bencher) {
        let old = data::noise(1, NEW_BYTES_MAX - 10);
        let new = edited(&old);
        let signature = Signature::check(&sign(&old).expect("a signature"), old.len()).expect("a signature");
        let delta = signature.diff(&new).expect("a delta").expect("a short one");
        bencher
            .counter(BytesCount::of_slice(&new))
            .bench(|| apply(&old, &delta, new.len()).expect("the new content"));
    }
}

mod frames {
    use ksync::wire::frame::{FrameReader, FrameWriter};

    use super::{Bencher, BytesCount, MIB, data, text};

    /// Compression of text; it should exceed a gigabit per second (125 MB/s).
    #[divan::bench]
    fn write_text(bencher: Bencher) {
        measure_write(bencher, &text(MIB));
    }

    /// Compression of noise; the back-off should start soon.
    #[divan::bench]
    fn write_noise(bencher: Bencher) {
        measure_write(bencher, &data::noise(1, MIB));
    }

    /// Overhead of the codec for a small message.
    #[divan::bench]
    fn write_small(bencher: Bencher) {
        measure_write(bencher, &text(100));
    }

    fn measure_write(bencher: Bencher, raw: &[u8]) {
        let mut writer = FrameWriter::new(std::io::sink(), true);
        bencher.counter(BytesCount::of_slice(raw)).bench_local(|| writer.write(raw).expect("a frame"));
    }

    /// Decompression of text.
    #[divan::bench]
    fn read_text(bencher: Bencher) {
        let raw = text(MIB);
        let mut stored = Vec::new();
        FrameWriter::new(&mut stored, true).write(&raw).expect("a frame");
        bencher
            .counter(BytesCount::of_slice(&raw))
            .bench(|| FrameReader::new(stored.as_slice()).read().expect("a frame"));
    }
}
