//! The state of a session's screen, which the session keeps.

/// Mouse and clipboard of a screen that nobody sees.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// Position of the mouse, in pixels from the top left corner.
    pub(super) mouse: (u32, u32),
    pub(super) is_cursor_hidden: bool,
    pub(super) clipboard: String,
}
