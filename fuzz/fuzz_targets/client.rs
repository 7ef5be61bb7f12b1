//! The SSH client against a server that means harm, in both orders:
//!
//! ```sh
//! cargo +nightly fuzz run client --sanitizer none -- -max_len=4096 -max_total_time=600
//! ```
//!
//! The crate itself reads the input as a play of server, network and caller: see
//! `src/ssh/play.rs`. The corpus has one whole connection in each order, one with a change of keys,
//! and one with packets of every number.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ksync_ssh::play::play(bytes);
});
