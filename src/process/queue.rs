//! The queue of one lock in this process: first in, first out, for readers and writers.
//!
//! A writer needs all permits of a semaphore, and a reader one of them, as in Tokio's `RwLock`. Tokio's semaphore is fair:
//! a reader that comes after a waiting writer waits behind it.

use tokio::sync::Semaphore;

use crate::words::mode::Mode;

/// As many readers at once as Tokio's `RwLock` lets in.
const ALL: u32 = u32::MAX >> 3;

/// A task that has entered must [`leave`](Self::leave) in the same mode.
#[derive(Debug)]
pub(super) struct Queue(Semaphore);

impl Queue {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(ALL as usize))
    }

    /// Enters at once, unless another task excludes this one, or waits for the same. Returns whether it has entered.
    pub(super) fn try_enter(&self, mode: Mode) -> bool {
        self.0.try_acquire_many(permits(mode)).map(|permits| permits.forget()).is_ok()
    }

    /// Enters in the order of asking. Cancel safe: a task that goes away leaves the queue.
    pub(super) async fn enter(&self, mode: Mode) {
        self.0.acquire_many(permits(mode)).await.expect("nobody closes it").forget();
    }

    pub(super) fn leave(&self, mode: Mode) {
        self.0.add_permits(permits(mode) as usize);
    }
}

fn permits(mode: Mode) -> u32 {
    match mode {
        Mode::Exclusive => ALL,
        Mode::Shared => 1,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::pin::pin;

    use super::*;

    /// Whether the future is ready when it is polled once.
    async fn is_ready<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        let mut future = future;
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn readers_go_side_by_side_and_a_writer_alone() {
        let queue = Queue::new();
        assert!(queue.try_enter(Mode::Shared) && queue.try_enter(Mode::Shared));
        assert!(!queue.try_enter(Mode::Exclusive));
        queue.leave(Mode::Shared);
        assert!(!queue.try_enter(Mode::Exclusive));
        queue.leave(Mode::Shared);
        assert!(queue.try_enter(Mode::Exclusive));
        assert!(!queue.try_enter(Mode::Shared) && !queue.try_enter(Mode::Exclusive));
    }

    #[tokio::test]
    async fn a_reader_waits_behind_a_waiting_writer() {
        let queue = Queue::new();
        queue.enter(Mode::Shared).await;
        let mut writer = pin!(queue.enter(Mode::Exclusive));
        assert!(!is_ready(writer.as_mut()).await);
        assert!(!queue.try_enter(Mode::Shared));
        let mut late_reader = pin!(queue.enter(Mode::Shared));
        assert!(!is_ready(late_reader.as_mut()).await);
        queue.leave(Mode::Shared);
        writer.await;
        assert!(!is_ready(late_reader.as_mut()).await, "a reader beside a writer");
        queue.leave(Mode::Exclusive);
        late_reader.await;
    }
}
