//! A sparse file is copied in the time of its data, and its copy is sparse.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::world::skip::needs;
use crate::world::{World, noise};

/// Reading or hashing this many bytes takes minutes.
const LENGTH: u64 = 1 << 40;

const MIB: u64 = 1 << 20;

/// Data as `(offset, bytes)`. One piece contains a run of zeros with unaligned edges.
fn data() -> [(u64, Vec<u8>); 4] {
    let with_zeros = [noise(1, 100_003), vec![0; 300_000], noise(2, 5_001)].concat();
    [
        (0, noise(3, 70_000)),
        (37 * MIB + 11, with_zeros),
        (700 << 30, noise(4, 3 << 20)),
        (LENGTH - 9, noise(5, 9)),
    ]
}

/// The length of a file, and its blocks of data that are not all zeros.
fn parts(path: &Path) -> (u64, Vec<(u64, Vec<u8>)>) {
    let file = File::open(path).unwrap();
    let (mut parts, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        // A copy may have other holes, so blocks of zeros are ignored.
        for (index, block) in
            bytes.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|&b| b != 0))
        {
            parts.push((start + 4096 * index as u64, block.to_vec()));
        }
    }
    (file.metadata().unwrap().len(), parts)
}

fn assert_same(world: &World, when: &str) {
    let (source, copy) = (world.path("src/image"), world.path("dst/image"));
    assert!(parts(&source) == parts(&copy), "{when}: the copy differs");
    let taken = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    assert!(taken(&copy) <= taken(&source) + 16 * MIB, "{when}: {} bytes", taken(&copy));
}

#[test]
fn a_sparse_file_of_a_tebibyte_is_copied_in_the_time_of_its_data() {
    for direction in ["local", "up", "down"] {
        let world = World::new();
        drop(world.tree("src"));
        let image = File::create(world.path("src/image")).unwrap();
        if !needs(image.set_len(LENGTH).is_ok(), "this filesystem has no file of a tebibyte") {
            return;
        }
        for (offset, bytes) in data() {
            image.write_all_at(&bytes, offset).unwrap();
        }
        let sync = |when: &str, options: &[&str]| {
            let (source, destination): (OsString, OsString) = match direction {
                "up" => ("src".into(), world.far("dst")),
                "down" => (world.far("src"), "dst".into()),
                _ => ("src".into(), "dst".into()),
            };
            let stats = world.sync_with(options, source, destination);
            assert_same(&world, &format!("{when}, {direction}"));
            stats
        };
        let first = sync("first copy", &[]);
        assert!(first.sent_bytes < 8 * MIB, "{first:?}");
        // All hashes are computed again, without reading a hole.
        let again = sync("compared by hash", &["--checksum"]);
        assert_eq!(again.sent_bytes, 0, "{again:?}");

        image.write_all_at(b"edited", 700 << 30).unwrap();
        image.write_all_at(&noise(6, 50_000), 300 << 30).unwrap();
        let edited = sync("edited in place", &[]);
        assert!(edited.sent_bytes < 2 * MIB, "{edited:?}");

        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&image, flags, 37 * MIB, MIB).unwrap();
        let punched = sync("a hole instead of data", &[]);
        assert!(punched.sent_bytes < 2 * MIB, "{punched:?}");

        image.set_len(LENGTH + (100 << 30) + 5).unwrap();
        image.write_all_at(b"end", LENGTH + (100 << 30)).unwrap();
        let grown = sync("grown", &[]);
        assert!(grown.sent_bytes < 8 * MIB, "{grown:?}");

        image.set_len(LENGTH / 2 + 77).unwrap();
        let cut = sync("cut", &[]);
        assert!(cut.sent_bytes < 8 * MIB, "{cut:?}");
    }
}
