//! Arbitrary messages.
