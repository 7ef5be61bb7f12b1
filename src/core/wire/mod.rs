//! The wire protocol: the messages that the two sides of an exchange send each other.
//!
//! # Participants
//! The *client* is the process a person started as `ksync`. The *agent* is the process that the
//! client started on the other machine. The *sender* has the files, the *receiver* wants them. The
//! client has one of these roles and the agent the other. In a local copy both are threads of one
//! process.
//!
//! # Goals
//! The receiver learns the list of files to transfer one round trip after the first byte. One more
//! round trip is needed where the receiver has lost the baseline that the sender relies on. No
//! message that grows with the tree waits for an answer. A run without changes sends no message
//! that grows with the tree. Every length is checked against a limit before memory is allocated for
//! it. A peer can make the receiver name, and the sender read, only entries of the offer.
//!
//! # Non-goals
//! SSH provides authentication and secrecy. The exception is the client's first bytes, which travel
//! sealed in a command line: see [`flight`]. Versions need not be compatible: the client installs
//! the agent of its own build on the other machine and finds it by its hash. The version in the
//! hello only turns a mistake into a clear error.
//!
//! # The exchange
//! Each side sends [`hello::MAGIC`], a hello frame, then frames of one message each. Neither side
//! waits for the other's hello.
//!
//! ```text
//!  SENDER                                     RECEIVER
//!  Subject ──────────────────────────────────► opens the destination and lists it
//!  Ignores · Entries… · Offered ─────────────► compares
//!    ◄─────────────────────────────────── Wants (with blocks of a staged prefix, of a basis)
//!  Same (the basis equals the offer) ─────────► compares one hash for all of them
//!  Answers, by file:
//!   Steps … Steps with the hash ─────────────► stages, verifies, renames
//!   Sign (gaps that resemble the basis) ─────►
//!    ◄──────────────────────────── Signatures
//!   Cut (a long range moved) ────────────────► both sides cut at the same time
//!    ◄──────────────────────────────── Chunks
//!    ◄──────────────────────────────── Finished, after the times and the deletions
//! ```
//! With a baseline on both sides, the sender offers only the changes to it. The sender names the
//! baseline by the digest of its [`record`](crate::tree::record) as early as possible, and does not
//! wait for an answer:
//!
//! ```text
//!  Subject · Baseline ───────────────────────► looks for a record with that digest
//!  Changes… · Changed ───────────────────────► builds the new manifest, and compares the digest
//!    ◄───────────────────────── BaselineMissing, if there is no such record; then
//!  Ignores · Entries… · Offered ─────────────► as above; skips changes still in flight
//! ```
//! `Ignores` sent before `Changes` replace all ignore files of the baseline. A sender that has
//! named a baseline may still offer the full manifest. Both sides store the offer as the new
//! baseline once the receiver has taken it in, however the run ends. An agent that sends stores it
//! earlier, because the client cuts the agent off when it has finished. If the run breaks in
//! between, the next run notices.
//!
//! The first steps of a small file are its last ones. Where its basis differs, the sender asks for
//! the signature of all of it and sends one delta. One message carries the answers for many files.
//!
//! A basis that is small and differs in length from the wanted file is certain to differ in
//! content. So the want carries the basis's signature at once, instead of its blocks.
//!
//! For large files that changed, or may have, the sender adds a few
//! [samples](crate::content::sample) to the offer (`Sampled`). They may show that the file grew in
//! one place. The want may then advertise the basis with a gap inserted there; every later message
//! refers to the basis in that shape. Or the samples may show that the file shrank. The want may
//! then name the blocks of the basis without the range that was probably removed, and the start of
//! that range. Later messages then refer to the unchanged basis.
//!
//! The sender announces the size of holes in offered files before the offer ends (`Holes`). The
//! receiver then refuses a run whose data cannot fit before it writes anything.
//!
//! The basis of a want is the file in its place. For a new file it is a file elsewhere that the new
//! one was probably moved or copied from. The sender need not know which.
//!
//! # Watching
//! If the request says so, the exchange above is the first round of many. After `Finished` the
//! sender offers again, on the same streams, whenever something in its tree was touched. Such a
//! round is incremental, about the touched parts; now and then it is full:
//!
//! ```text
//!  Scope… · Subject ─────────────────────────► opens the destination and lists these parts of it
//!  Ignores · Entries… · Pushed · Offered ────► compares; contents of small files have arrived
//!    …                                         the rest as above
//!    ◄──────────────────────────────── Finished
//! ```
//! The receiver neither compares nor changes entries outside the scope. Neither side stores
//! anything of an incremental round for the next run. A receiver may ask for a full round with
//! `Rescan`.
//!
//! The agent forwards its events as `Note`. A side that has to stop says why with `Abort`. A side
//! that has written nothing for a while sends a `Heartbeat`, which the engine never sees: see
//! `exchange::liveness`.
//!
//! # Flow control
//! A receiver has at most [`message::WANTS_MAX`] unanswered wants, so a sender can always accept
//! the messages that arrive. A sender stops writing when its channel is full. A sender works on at
//! most [`message::STREAMS_MAX`] files at a time.
//!
//! # Lanes
//! SSH limits each channel by a window, 2 MiB with OpenSSH, so a channel carries at most that much
//! in a round trip. If the round trip is long and the client sends much to the agent, the client
//! opens further channels, and further connections where lost packets limit a single one. It then
//! spreads its stream over them: see [`lanes`]. The agent's answers stay in one stream. The client
//! uses a lane only after the agent has answered that it joined, so nobody waits for a lane that
//! never comes. A lane that breaks breaks the connection.
//!
//! # Kept agents
//! An agent may serve one run after another. The streams of its runs then follow each other on one
//! channel, cut into records: see [`keep`].

pub mod flight;
pub mod frame;
pub mod hello;
pub mod keep;
pub mod lanes;
pub mod message;
mod want;
