//! The engine decides which messages and works follow, and performs none itself. It uses no file,
//! socket, clock, thread or random number generator.
//!
//! # The contract
//! 1. Give the engine one [`Input`]: a message of the peer, or the outcome of a work that the
//!    engine asked for.
//! 2. Call [`Engine::poll`] until it answers [`Output::Wait`], [`Output::WaitForWork`] or
//!    [`Output::Done`], and act on the other answers.
//! 3. Only then give it the next input. After `WaitForWork` that must be an outcome: the engine
//!    already holds as much of the peer's content as its limit allows.
//!
//! A work is a value. The engine does not depend on who performs works, on how many threads, and
//! in which order they end. It promises two things: it never has two works on the same file under
//! way, and works of [`Step`]s run one after the other. A dead connection arrives as
//! [`Input::Closed`].

mod brake;
mod contract;
mod error;
mod fetch;
mod ids;
mod limits;
pub mod lister;
mod need;
mod outbox;
mod plan;
pub mod receiver;
mod renames;
pub mod sender;
pub mod transfer;
pub mod work;

#[cfg(test)]
mod pair;
mod window;

pub use contract::{Config, Engine, Input, Output, PROBLEMS_MAX, RunError, Summary, Traffic};
pub use error::WorkError;
pub use limits::Limits;
pub use receiver::Receiver;
pub use sender::Sender;
pub use transfer::receive::{Query, ReceiveInput, ReceiveTransfer, Strategy};
pub use transfer::send::{SendInput, SendNext, SendTransfer};
pub use work::{
    Changed, Destination, Found, Opened, Planned, PushedFile, ReceiverOutcome, ReceiverWork, ReportOrder,
    Room, RootMetadata, Scanned, SenderOutcome, SenderWork, Step, Undoing,
};
