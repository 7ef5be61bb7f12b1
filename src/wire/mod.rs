//! The wire: messages, frames and the hello. Does not know who speaks.

pub mod hello;
