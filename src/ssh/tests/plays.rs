//! The fuzz target's property, on stable: see `play.rs` and `fuzz/`.

use proptest::prelude::*;

use crate::play::{play, seeds};

/// The corpus of the fuzz target, in the order of [`seeds`].
const CORPUS: [&[u8]; 12] = [
    include_bytes!("../../../fuzz/corpus/client/safe"),
    include_bytes!("../../../fuzz/corpus/client/safe-chacha"),
    include_bytes!("../../../fuzz/corpus/client/safe-ctr"),
    include_bytes!("../../../fuzz/corpus/client/safe-not-strict"),
    include_bytes!("../../../fuzz/corpus/client/safe-mlkem"),
    include_bytes!("../../../fuzz/corpus/client/safe-nist"),
    include_bytes!("../../../fuzz/corpus/client/fast"),
    include_bytes!("../../../fuzz/corpus/client/fast-chacha-mlkem"),
    include_bytes!("../../../fuzz/corpus/client/rekeyed"),
    include_bytes!("../../../fuzz/corpus/client/rekeyed-by-the-client"),
    include_bytes!("../../../fuzz/corpus/client/hostile"),
    include_bytes!("../../../fuzz/corpus/client/lying"),
];

#[test]
fn the_seeds_of_the_fuzz_target_are_the_corpus() {
    assert_eq!(seeds().len(), CORPUS.len());
    for ((name, bytes), file) in seeds().into_iter().zip(CORPUS) {
        // The octal form is what printf writes.
        let octal: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
        assert!(bytes == file, "write it anew: printf '{octal}' > fuzz/corpus/client/{name}");
        assert_eq!(play(&bytes), !["hostile", "lying"].contains(&name), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_play_makes_the_client_panic_or_talk_too_early(
        seed in 0..CORPUS.len(),
        traits: u8,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 0..12),
    ) {
        let mut bytes = CORPUS[seed].to_vec();
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
