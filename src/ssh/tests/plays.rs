//! The fuzz target's property, on stable: see `play.rs` and `fuzz/`.

use std::path::Path;

use proptest::prelude::*;

use crate::play::{play, seeds};

#[test]
fn the_seeds_of_the_fuzz_target_are_the_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/client");
    for (name, bytes) in seeds() {
        let path = folder.join(name);
        if std::env::var_os("KSYNC_WRITE_FIXTURES").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}");
        play(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_play_makes_the_client_panic_or_talk_too_early(
        seed in 0_usize..12,
        traits: u8,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 0..12),
    ) {
        let mut bytes = seeds()[seed].1.clone();
        bytes[0] = traits;
        for (at, byte, change) in changes {
            let at = at.index(bytes.len());
            match change {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        play(&bytes);
    }
}
