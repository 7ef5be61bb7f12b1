//! How much a receiver may have asked for.

use crate::wire::message::WANTS_MAX;

/// Most bytes of wants (names of blocks, mostly) without an answer: what a sender has to hold.
const WEIGHT_BYTES_MAX: usize = 4 << 20;

/// Counts wants that have no answer yet. It opens again when half of it is answered, so that wants travel
/// in batches and not one by one.
#[derive(Debug, Default)]
pub(super) struct Window {
    open_count: usize,
    open_bytes: usize,
    waiting: bool,
}

impl Window {
    /// Whether another want may be sent, when so many are being prepared already.
    pub(super) fn has_room(&mut self, prepared: usize) -> bool {
        let (count_max, bytes_max) =
            if self.waiting { (WANTS_MAX / 2, WEIGHT_BYTES_MAX / 2) } else { (WANTS_MAX, WEIGHT_BYTES_MAX) };
        self.waiting = self.open_count + prepared >= count_max || self.open_bytes >= bytes_max;
        !self.waiting
    }

    /// A want of this weight is sent.
    pub(super) fn open(&mut self, weight: usize) {
        self.open_count += 1;
        self.open_bytes += weight;
    }

    /// A want of this weight is answered.
    pub(super) fn close(&mut self, weight: usize) {
        self.open_count = self.open_count.saturating_sub(1);
        self.open_bytes = self.open_bytes.saturating_sub(weight);
    }

    /// Whether every want is answered.
    pub(super) fn is_empty(&self) -> bool {
        self.open_count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_opens_again_when_half_is_answered() {
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
    fn what_is_being_prepared_counts() {
        let mut window = Window::default();
        for _ in 0..WANTS_MAX - 4 {
            window.open(1);
        }
        assert!(window.has_room(3));
        assert!(!window.has_room(4));
    }

    #[test]
    fn one_heavy_want_fills_the_window_but_is_let_in() {
        let mut window = Window::default();
        assert!(window.has_room(0));
        window.open(usize::MAX / 2);
        assert!(!window.has_room(0));
        window.close(usize::MAX / 2);
        assert!(window.has_room(0) && window.is_empty());
    }
}
