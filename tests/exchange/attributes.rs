//! Attributes that many entries share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync::tree::accounts::{Accounts, Owners};
use ksync::tree::attributes::Attributes;
use ksync::tree::effective::Mapping;
use ksync::tree::entry::{Entry, Kind, Time};
use ksync::tree::manifest::{Builder, Manifest};
use ksync::tree::metadata::MetadataOptions;
use ksync::tree::path::TreePath;
use serde_bytes::ByteBuf;

#[test]
fn equal_attributes_of_many_entries_are_hashed_once() {
    let xattr =
        |at: u8| (ByteBuf::from([b"user.", &[b'a' + at][..]].concat()), ByteBuf::from(vec![0; 60_000]));
    let attributes = Arc::new(Attributes { xattrs: (0..4).map(xattr).collect(), ..Attributes::default() });
    let mut offered = Builder::default();
    let begin = Instant::now();
    for number in 0..100_000 {
        let entry = Entry {
            path: TreePath::new(format!("{number:06}").into_bytes()).unwrap(),
            kind: Kind::File { size: 1, hash: None },
            mode: 0o644,
            mtime: Time::new(0, 0).unwrap(),
            attributes: Some(Arc::clone(&attributes)),
        };
        offered.add(entry.view()).unwrap();
    }
    let options = MetadataOptions { xattrs: true, ..MetadataOptions::default() };
    let accounts = Accounts { is_superuser: true, ..Accounts::default() };
    let mut mapping = Mapping::new(&options, &accounts, &Owners::default());
    mapping.tree(&offered.finish(), &Manifest::default()).unwrap();
    // 300,000 hashes of 240 kB each take more than a minute.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}
