//! Limits of a receiver's unanswered wants.

use crate::wire::message::WANTS_MAX;

/// Most bytes of unanswered wants (mostly block names): the sender has to hold them.
const WEIGHT_BYTES_MAX: usize = 4 << 20;

/// Counts unanswered wants. A full window opens again when half of it is answered, so that wants
/// travel in batches and not one by one.
#[derive(Debug, Default)]
pub(super) struct Window {
    open_count: usize,
    open_bytes: usize,
    waiting: bool,
}

impl Window {
    /// True if another want may be sent while `prepared` more are being prepared.
    pub(super) fn has_room(&mut self, prepared: usize) -> bool {
        let (count_max, bytes_max) =
            if self.waiting { (WANTS_MAX / 2, WEIGHT_BYTES_MAX / 2) } else { (WANTS_MAX, WEIGHT_BYTES_MAX) };
        self.waiting = self.open_count + prepared >= count_max || self.open_bytes >= bytes_max;
        !self.waiting
    }

    /// Counts a want of this weight as sent.
    pub(super) fn open(&mut self, weight: usize) {
        self.open_count += 1;
        self.open_bytes += weight;
    }

    /// Counts a want of this weight as answered.
    pub(super) fn close(&mut self, weight: usize) {
        self.open_count = self.open_count.saturating_sub(1);
        self.open_bytes = self.open_bytes.saturating_sub(weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_window_opens_again_when_half_is_answered() {
        let mut window = Window::default();
        for _ in 0..WANTS_MAX {
            assert!(window.has_room(0));
            window.open(1);
        }
        assert!(!window.has_room(0));
        for _ in 0..WANTS_MAX / 2 {
            assert!(!window.has_room(0));
            window.close(1);
        }
        window.close(1);
        assert!(window.has_room(0));
    }

    #[test]
    fn wants_in_preparation_count() {
        let mut window = Window::default();
        for _ in 0..WANTS_MAX - 4 {
            window.open(1);
        }
        assert!(window.has_room(3));
        assert!(!window.has_room(4));
    }

    #[test]
    fn heavy_want_is_let_in_and_fills_the_window() {
        let mut window = Window::default();
        assert!(window.has_room(0));
        window.open(usize::MAX / 2);
        assert!(!window.has_room(0));
        window.close(usize::MAX / 2);
        assert!(window.has_room(0));
    }
}
