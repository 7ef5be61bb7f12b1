//! `Fetch`: one missing content, and the file that it may be made from.

/// A file whose content is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) id: u32,
    /// The basis, as a position in the present manifest. It is the file in its place, or a file
    /// elsewhere that the new one was probably moved or copied from.
    pub(super) at: Option<u32>,
    /// True if the basis lies elsewhere.
    pub(super) elsewhere: bool,
    /// True if the basis is the wanted file, unless a power cut damaged it.
    pub(super) is_doubted: bool,
}
