//! The wire: what two ends say to each other.
//!
//! # Participants
//! The *client* is where a person typed `ksync`; the *agent* is the process that it started on the other
//! machine. The *sender* has the files, the *receiver* wants them. The client is either one; the agent is
//! the other. In a local copy both are threads of one process.
//!
//! # Goals
//! One round trip from the first byte to the list of what has to travel, and another one where the receiver
//! has forgotten what the sender takes for known; nothing that grows with the tree waits for an answer, and a
//! run that finds nothing to do says nothing that grows with it; every length is bounded before memory is taken
//! for it; a receiver can be made to name nothing but what it was offered, and a sender to read nothing but what
//! it offered.
//!
//! # Non-goals
//! Authentication and secrecy are SSH's, but for the first bytes from the client, which travel
//! sealed in a command line: see [`flight`]. Compatibility between versions is not needed, since
//! the client puts the agent of its own build on the other machine and finds it by its hash; the
//! version in the hello only turns a mistake into a clear error.
//!
//! # The exchange
//! Each side sends [`hello::MAGIC`], a hello frame, then frames of one message each. Neither waits for the
//! other's hello.
//!
//! ```text
//!  SENDER                                     RECEIVER
//!  Subject ──────────────────────────────────► opens the destination and lists it
//!  Ignores · Entries… · Offered ─────────────► compares
//!    ◄─────────────────────────────────── Wants (what is there: blocks of a staged prefix, of an old version)
//!  Same (what is there is what is offered) ──► compares one hash for all of them
//!  Files (small ones, many at a time) ───────► whole; or they differ from the old version: then
//!    ◄────────────────────────── FileSignatures  of these, and Files with deltas
//!  CutRequest ───────────────────────────────► (where a long stretch of a larger file is not where it was)
//!    ◄────────────────────────────────── Chunks (cut on both sides at the same time)
//!  SignRequest ──────────────────────────────► (where blocks and chunks of an old version left gaps)
//!    ◄────────────────────────────── Signatures
//!  Pieces … Pieces with the hash ────────────► stages, verifies, renames
//!    ◄──────────────────────────────── Finished, when times are set and what was not wanted is removed
//! ```
//! Where both sides remember what was offered last, only what differs from that is told. The sender names it by
//! the digest of its [`record`](crate::tree::record) as early as it can, and does not wait:
//!
//! ```text
//!  Subject · Base ───────────────────────────► looks for a record with that digest
//!  Changes… · Changed ───────────────────────► makes the manifest of both, and compares the digest
//!    ◄─────────────────────────────── Forgotten, if there is no such record; then
//!  Ignores · Entries… · Offered ─────────────► as above; changes that were on their way are passed over
//! ```
//! `Ignores` before `Changes` take the place of all that are remembered. A sender may also offer everything
//! after it has named a base. Both sides remember what was offered once the receiver has taken it in, whatever
//! becomes of the run; an agent that sends remembers it before, since the client that has finished cuts it off.
//! If a run ends in between, the next one finds out.
//!
//! Of a small old version whose length is another than the wanted file's the want has the signature at once, in
//! place of the blocks: they differ, so it will be needed.
//!
//! Of large files that have changed, or may have, a few [samples](crate::content::sample) go along with the offer
//! (`Sampled`). If they show that the file became longer in one place, the want may name the blocks of the old version as
//! it was made as long by then: all that is said of it afterwards is about that. If they show that it became shorter, the
//! want may name the blocks of the old version without the piece that is probably missing, and where that begins: what is
//! said afterwards is about the old version as it is.
//!
//! Where files of the offer take less room than they are long, the sender says so before the offer
//! ends (`Holes`): the receiver refuses the run before it writes anything where the rest cannot
//! fit.
//!
//! The old version of a want is the file in its place, or, for a new file, one elsewhere that looks as if it
//! had been moved or copied from there; the sender need not know which.
//!
//! # Watching
//! Where the order says so, the exchange above is the first round of many: after `Finished` the sender offers again
//! whenever something in its tree was touched, on the same streams. Such a round is about the parts that were touched,
//! or, now and then, about everything:
//!
//! ```text
//!  Scope… · Subject ─────────────────────────► opens the destination and lists these parts of it
//!  Ignores · Entries… · Pushed · Offered ────► compares; contents of small files are there already
//!    …                                         the rest as above
//!    ◄──────────────────────────────── Finished
//! ```
//! What is not in the scope is neither compared nor changed. Nothing of it is remembered for the next run. A receiver
//! may ask for a round about everything with `Rescan`.
//!
//! The agent passes on what it observes as `Note`. A side that has to stop says why with `Abort`. A
//! side that has written nothing for a while sends a `Heartbeat`, which no engine sees: see
//! `exchange::liveness`.
//!
//! # Flow control
//! A receiver has at most [`message::WANTS_MAX`] wants without an answer, so a sender can always take in
//! what arrives; a sender stops when the channel does. A sender works on at most
//! [`message::STREAMS_MAX`] files at a time.
//!
//! # Lanes
//! SSH gives each channel a window, 2 MiB with OpenSSH, and so each channel carries at most that much in a round
//! trip. Where the way is long and much goes from the client to the agent, the client opens further channels
//! and spreads its stream over them: see [`lanes`]. What comes back stays one stream. A lane is used once the
//! agent has answered that it joined, so nobody ever waits for one that does not come; one that breaks breaks
//! the connection.

pub mod flight;
pub mod frame;
pub mod hello;
pub mod lanes;
pub mod message;
