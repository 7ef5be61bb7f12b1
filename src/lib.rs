//! ksync: incremental directory sync to and from cloud browser VMs, with one binary and nothing to
//! install on either side.
//!
//! ```text
//!  this machine                                           VM
//!  ┌────────────────────── ksync ──────────────────────┐   ┌─ sshd ─ ksync-agent ─────────┐
//!  │ bin/ksync → sync → remote: websocket → ssh → exec ╞═══╡ stdin/stdout → exchange::run │
//!  │   └── exchange::run(reader, writer, engine, disk) │   │ engine + disk (other role)   │
//!  └───────────────────────────────────────────────────┘   └──────────────────────────────┘
//! ```
//!
//! Where a VM has no WebSocket bridge before its sshd and cannot download one, `kernel` brings
//! `ksync-bridge`, a program of its own that ksync carries along with the agent.
//!
//! Two axes. *Role*: the sender has the files, the receiver wants them. *Side*: the client runs
//! where a person typed `ksync`, the agent runs on the other machine. Upload and download are the
//! same exchange with the roles swapped; a local copy runs both roles in one process.
//!
//! # Layers
//! Each imports only what stands above it. The layers up to `rendezvous` are the crate `ksync-core`
//! in `src/core`, `sandbox` and `ssh` are the crates `ksync-sandbox` and `ksync-ssh`, and the other
//! ones are the crate `ksync-client`. Between crates the compiler keeps the order, within one
//! `tests/tidy.rs`. This crate puts them together, and adds the programs that ksync carries.
//!
//! | layer | what it is | what it does not know |
//! |---|---|---|
//! | [`log`] | the diagnostic log | what it says, and to whom |
//! | [`content`] | hashes, chunks, samples, deltas, compression, encoding | files, peers |
//! | [`tree`] | paths, entries, manifests, changes, comparison, filters | the disk, peers |
//! | [`monitor`] | what happens, as events | the terminal |
//! | [`wire`] | messages, frames, the hello; the protocol in prose | who speaks |
//! | [`engine`] | decides what is said and done | files, sockets, clocks, threads, random numbers |
//! | [`disk`] | a root that nothing climbs out of, scanning, staging, baselines | engine, wire |
//! | [`watch`] | what is touched in a tree, a moment after it was | engine, wire |
//! | [`exchange`] | one engine, one disk, a stream or lanes each way | how the bytes travel |
//! | `rendezvous` | how the processes of lanes meet their agent; on Linux | what lanes carry |
//! | `ssh` | an SSH client without sockets and clocks, and its driver | ksync |
//! | `private` | small files for nobody but us | what is in them |
//! | `remote` | WebSocket, SSH, host keys, putting the agent there | engine, disk |
//! | `kernel` | the platform's API: sessions, what runs in them | engine, disk |
//! | `sandbox` | emulators of a VM and of the platform; no shared code, no shared mistake | the rest |
//! | `sync` | a job from end to end | the terminal |
//!
//! # Glossary
//! - **manifest**: the entries of a tree in order, with kind, mode, time, size and maybe a hash.
//! - **entry**: a file, directory or link of a manifest. Its position is its id in messages.
//! - **baseline**: the last manifest that both sides agreed on. The next run sends changes to it.
//! - **want**: the receiver's request for one file, with what it has of it already.
//! - **basis**: a file of the receiver that a new content is made from (rsync's word).
//! - **block**: an aligned part of a content, named by a node of the tree of its hash.
//! - **chunk**: a part of a content whose ends follow from the content (FastCDC).
//! - **signature**, **delta**: rsync's: the hashes of a basis, and the way from it to a content.
//! - **shift map**: how a basis is shown with a gap inserted or a range removed.
//! - **pre-copy**: a copy of the basis that is made early, and patched.
//! - **stage**: to write a file aside, in `.ksync/`, until it is complete and verified.
//! - **part**: a staged file of an interrupted run. The next run verifies it and goes on behind it.
//! - **hole**: zeros of a file that take no space, at least 32 KiB of them.
//! - **round**: one exchange of a watch: *full* or, about touched paths only, *incremental*.
//! - **scope**: the paths that an incremental round is about.
//! - **keeper**: a process on this machine that keeps a connection and lends it to the next runs.
//! - **lane**: one of several SSH channels that carry one exchange.
//! - **kept agent**: an agent that serves one run after another, and keeps scans in between.
//! - **snapshot**: a scan that is kept; it holds with the changes that inotify told since.
//! - **hello**: the first message of each side: version, role, path and options.
//! - **first flight**: the bytes that the client sends without waiting for an answer.
//! - **marker**: the change time from which on a directory's files may be lost with the power.
//! - **brake**: the decision that deletions wait for consent (exit code 25).
//! - **twins**: two names that the destination's filesystem takes for one.
//!
//! # What holds throughout
//! - A name from a peer is a [`tree::path::TreePath`] or an error. No other type of path crosses
//!   the wire.
//! - Every length that a peer gives is compared with a limit before memory is taken for it.
//! - No path of a destination ever holds a content that did not verify: the receiver writes files
//!   aside, hashes them by BLAKE3 and renames them.
//! - Only [`disk::root::Root`], which follows no link, reaches anything below a destination.
//! - Baselines save bytes and decide nothing. A baseline counts only if both sides have it to the
//!   last bit, and the receiver lists the destination each time. A kept agent may list it by a
//!   snapshot and the changes since; any doubt means a scan.
//! - The receiver deletes nothing that the plan did not list, and nothing before everything else is
//!   in place or after an incomplete scan.

use std::borrow::Cow;

use bytes::Bytes;

pub use ksync_client::{kernel, remote, sync};
#[cfg(target_os = "linux")]
pub use ksync_core::rendezvous;
pub use ksync_core::{content, disk, engine, exchange, log, monitor, tree, watch, wire};
#[cfg(feature = "sandbox")]
pub use ksync_sandbox as sandbox;

/// The agent that this client carries. Both come from the same source, so their protocols match.
#[must_use]
pub fn agent() -> remote::AgentImage {
    let (sha256, gzip) = (ksync_embedded::AGENT_SHA256, ksync_embedded::AGENT_GZIP);
    remote::AgentImage { sha256: Cow::Borrowed(sha256), gzip: Bytes::from_static(gzip) }
}

/// The bridge that this client carries: a static x86-64 Linux program.
#[must_use]
pub const fn bridge() -> kernel::BridgeImage {
    kernel::BridgeImage { sha256: ksync_embedded::BRIDGE_SHA256, gzip: ksync_embedded::BRIDGE_GZIP }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carried_agent_can_be_read_in_whole_blocks() {
        let image = agent();
        assert_eq!(image.gzip.len() % remote::BLOCK_BYTES, 0);
        assert!(image.gzip.starts_with(&[0x1f, 0x8b]));
        assert!(image.sha256.len() == 64 && image.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
