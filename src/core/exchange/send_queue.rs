//! The send queue: a few messages, in order, that wait for the writer.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most messages that wait. With a megabyte of content in each they keep a writer busy while the
/// next one is read.
const MESSAGES_MAX: usize = 4;

/// Interval of calls while a message waits for room.
const MEANWHILE: Duration = Duration::from_millis(100);

/// A message, and what comes behind it. Each packet costs both sides and every hop between them.
/// Where a relay uses Nagle's algorithm, a second packet waits until the first is acknowledged: a
/// round trip, or 40 ms if that is longer.
pub(super) type Outgoing<M> = (M, Following);

/// The message behind another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Following {
    /// It follows at once.
    AtOnce,
    /// It follows when this side's own work is done, or nothing follows.
    Soon,
    /// It depends on the peer.
    Later,
}

/// A queue with one reader, which either end can close.
#[derive(Debug)]
pub(super) struct SendQueue<M> {
    state: Mutex<State<M>>,
    /// Signals that a message was put in, or that none will follow.
    filled: Condvar,
    /// Signals that a message was taken, or that nobody takes any more.
    taken: Condvar,
}

#[derive(Debug)]
struct State<M> {
    messages: VecDeque<Outgoing<M>>,
    /// True once no message is put in any more.
    ended: bool,
}

/// Result of a take.
#[derive(Debug)]
pub(super) enum Taken<M> {
    Message(Outgoing<M>),
    /// Nothing arrived before the timeout.
    Late,
    /// Nothing is left, and nothing will follow.
    End,
}

impl<M> Default for SendQueue<M> {
    fn default() -> Self {
        let state = State { messages: VecDeque::new(), ended: false };
        Self { state: Mutex::new(state), filled: Condvar::new(), taken: Condvar::new() }
    }
}

impl<M> SendQueue<M> {
    /// Puts in a message, when there is room; `false` if nobody will take it.
    pub(super) fn put(&self, message: M, following: Following) -> bool {
        self.put_calling(message, following, || {})
    }

    /// Puts in a message as [`SendQueue::put`] does. While it waits for room, it calls `meanwhile`
    /// every tenth of a second.
    pub(super) fn put_calling(&self, message: M, following: Following, meanwhile: impl Fn()) -> bool {
        let mut state = self.lock();
        while state.messages.len() >= MESSAGES_MAX && !state.ended {
            let waited = self.taken.wait_timeout(state, MEANWHILE);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            meanwhile();
            state = self.lock();
        }
        if !state.ended {
            state.messages.push_back((message, following));
            self.filled.notify_one();
        }
        !state.ended
    }

    /// Waits for the next message, up to the timeout.
    pub(super) fn take(&self, timeout: Duration) -> Taken<M> {
        let waiting = |state: &mut State<M>| state.messages.is_empty() && !state.ended;
        let waited = self.filled.wait_timeout_while(self.lock(), timeout, waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.messages.pop_front() {
            Some(message) => {
                self.taken.notify_all();
                Taken::Message(message)
            }
            None if state.ended => Taken::End,
            None => Taken::Late,
        }
    }

    /// Takes the next message, if one is there.
    pub(super) fn try_take(&self) -> Option<Outgoing<M>> {
        let message = self.lock().messages.pop_front();
        self.taken.notify_all();
        message
    }

    /// Ends the queue. Messages that wait are still taken.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.filled.notify_all();
        self.taken.notify_all();
    }

    /// Ends the queue and drops the messages that wait.
    pub(super) fn abandon(&self) {
        self.lock().messages.clear();
        self.end();
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::FromReceiver;

    #[test]
    fn full_send_queue_waits_until_a_message_is_taken_or_nobody_takes() {
        let send_queue = &SendQueue::default();
        assert!((0..MESSAGES_MAX).all(|_| send_queue.put(FromReceiver::Rescan, Following::Later)));
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| send_queue.put(FromReceiver::BaselineMissing, Following::AtOnce));
            assert!(matches!(
                send_queue.take(Duration::MAX),
                Taken::Message((FromReceiver::Rescan, Following::Later))
            ));
            assert!(putting.join().unwrap());
            let (calling, called) = std::sync::mpsc::channel();
            let putting = scope.spawn(move || {
                send_queue.put_calling(FromReceiver::BaselineMissing, Following::AtOnce, || {
                    let _ = calling.send(());
                })
            });
            called.recv().unwrap();
            send_queue.abandon();
            assert!(!putting.join().unwrap());
        });
        assert!(matches!(send_queue.take(Duration::MAX), Taken::End));
    }

    #[test]
    fn waiting_messages_are_taken_after_the_end() {
        let send_queue = SendQueue::default();
        assert!(matches!(send_queue.take(Duration::ZERO), Taken::Late));
        assert!(send_queue.put(FromReceiver::Rescan, Following::Later));
        send_queue.end();
        assert!(!send_queue.put(FromReceiver::Rescan, Following::Later));
        assert!(matches!(send_queue.take(Duration::MAX), Taken::Message(_)));
        assert!(
            matches!(send_queue.take(Duration::from_secs(60)), Taken::End) && send_queue.try_take().is_none()
        );
    }
}
