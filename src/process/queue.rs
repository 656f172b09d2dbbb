//! The queue of one lock in this process: first in, first out, for readers and writers.
//!
//! Tokio's `RwLock` is fair: a reader that comes after a waiting writer waits behind it.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::time_slice::TimeSlice;
use crate::words::mode::Mode;

#[derive(Debug, Default)]
pub(super) struct Queue(Arc<RwLock<TimeSlice>>);

/// The right to try for the lock. An exclusive permit is the only one; shared permits exist side by side.
#[derive(Debug)]
#[must_use]
pub(super) enum Permit {
    Exclusive(OwnedRwLockWriteGuard<TimeSlice>),
    Shared(#[expect(dead_code, reason = "it is only kept")] OwnedRwLockReadGuard<TimeSlice>),
}

impl Queue {
    /// A permit at once, unless another task has one that excludes it, or waits for one.
    pub(super) fn try_enter(&self, mode: Mode) -> Option<Permit> {
        let lock = Arc::clone(&self.0);
        match mode {
            Mode::Exclusive => lock.try_write_owned().ok().map(Permit::Exclusive),
            Mode::Shared => lock.try_read_owned().ok().map(Permit::Shared),
        }
    }

    /// A permit, in the order of asking. Cancel safe: a task that goes away leaves the queue.
    pub(super) async fn enter(&self, mode: Mode) -> Permit {
        let lock = Arc::clone(&self.0);
        match mode {
            Mode::Exclusive => Permit::Exclusive(lock.write_owned().await),
            Mode::Shared => Permit::Shared(lock.read_owned().await),
        }
    }
}

impl Permit {
    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Exclusive(_) => Mode::Exclusive,
            Self::Shared(_) => Mode::Shared,
        }
    }

    /// The time slice of this process, for the one who may change it.
    pub(super) fn time_slice(&mut self) -> Option<&mut TimeSlice> {
        match self {
            Self::Exclusive(time_slice) => Some(time_slice),
            Self::Shared(_) => None,
        }
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
        let queue = Queue::default();
        let first = queue.try_enter(Mode::Shared).unwrap();
        let second = queue.try_enter(Mode::Shared).unwrap();
        assert!(queue.try_enter(Mode::Exclusive).is_none());
        drop((first, second));
        let _writer = queue.try_enter(Mode::Exclusive).unwrap();
        assert!(queue.try_enter(Mode::Shared).is_none());
    }

    #[tokio::test]
    async fn a_reader_waits_behind_a_waiting_writer() {
        let queue = Queue::default();
        let reader = queue.enter(Mode::Shared).await;
        let mut writer = pin!(queue.enter(Mode::Exclusive));
        assert!(!is_ready(writer.as_mut()).await);
        assert!(queue.try_enter(Mode::Shared).is_none());
        let mut late_reader = pin!(queue.enter(Mode::Shared));
        assert!(!is_ready(late_reader.as_mut()).await);
        drop(reader);
        let permit = writer.await;
        assert!(!is_ready(late_reader.as_mut()).await, "a reader beside a writer");
        drop(permit);
        assert_eq!(late_reader.await.mode(), Mode::Shared);
    }
}
