//! The readers of one lock in this process. They hold it together: the first one gets it from the engine, the others
//! share it, and the last one releases it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};

use super::atomic_instant::AtomicInstant;
use super::worker::{Worker, Workers};
use super::writers_turn;

/// `T` is the held lock.
#[derive(Debug)]
pub(super) struct Readers<T> {
    /// What the readers hold; gone with the last of them.
    held: Mutex<Weak<T>>,
    /// When a reader last got the lock from the engine.
    since: AtomicInstant,
    /// The tasks that have obtained the lock. Not kept if nobody would hear a warning.
    workers: Mutex<Workers>,
    /// Whoever has this may try for the lock, for all readers.
    lead: Arc<AsyncMutex<()>>,
    /// Whether the leader waits for another process.
    is_waiting: AtomicBool,
    began_to_wait: Notify,
    /// Whether the leader lets writers of other processes try first.
    is_pausing: AtomicBool,
}

/// The right of one reader to try for the lock. The other readers wait for the result.
#[derive(Debug)]
pub(super) struct Lead<T> {
    readers: Arc<Readers<T>>,
    _guard: OwnedMutexGuard<()>,
}

impl<T> Readers<T> {
    pub(super) fn new() -> Self {
        Self {
            held: Mutex::new(Weak::new()),
            since: AtomicInstant::default(),
            workers: Mutex::new(Workers::new()),
            lead: Arc::default(),
            is_waiting: AtomicBool::new(false),
            began_to_wait: Notify::new(),
            is_pausing: AtomicBool::new(false),
        }
    }

    fn held_or_gone(&self) -> MutexGuard<'_, Weak<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the readers hold, for one more reader.
    pub(super) fn held(&self) -> Option<Arc<T>> {
        self.held_or_gone().upgrade()
    }

    /// From now on other readers share this lock, which the engine has given at `now`.
    pub(super) fn share(&self, held: &Arc<T>, now: Instant) {
        self.since.set(now);
        *self.held_or_gone() = Arc::downgrade(held);
    }

    /// When the readers got what they hold; `None` if nobody reads.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since.get().filter(|_| self.is_reading())
    }

    pub(super) fn is_reading(&self) -> bool {
        self.held_or_gone().strong_count() > 0
    }

    /// The task has obtained the lock.
    pub(super) fn enter(&self, worker: Worker) {
        self.workers().enter(worker);
    }

    /// The task does not hold the lock any more.
    pub(super) fn leave(&self, worker: Worker) {
        self.workers().leave(worker);
    }

    pub(super) fn is_held_by(&self, worker: Worker) -> bool {
        self.workers().contains(&worker)
    }

    /// Whether the readers of this process could keep a writer of another process out for long.
    pub(super) fn read_often(&self, now: Instant) -> bool {
        let is_recent = |since: Instant| now.saturating_duration_since(since) < writers_turn::PERIOD;
        self.since.get().is_some_and(is_recent) || self.is_reading()
    }

    /// Whether a reader that came earlier lets writers of other processes try first.
    pub(super) fn is_pausing(&self) -> bool {
        self.is_pausing.load(Ordering::SeqCst)
    }

    fn lead_with(self: &Arc<Self>, guard: OwnedMutexGuard<()>) -> Lead<T> {
        Lead { readers: Arc::clone(self), _guard: guard }
    }

    /// The lead at once, if no other reader has it.
    pub(super) fn try_lead(self: &Arc<Self>) -> Option<Lead<T>> {
        Some(self.lead_with(Arc::clone(&self.lead).try_lock_owned().ok()?))
    }

    /// The lead, when the reader that has it has the lock, or has gone away.
    pub(super) async fn lead(self: &Arc<Self>) -> Lead<T> {
        self.lead_with(Arc::clone(&self.lead).lock_owned().await)
    }

    /// The same, but `None` as soon as the reader that has the lead waits for another process.
    pub(super) async fn lead_unless_waiting(self: &Arc<Self>) -> Option<Lead<T>> {
        // Before the look: what begins after it is noticed.
        let began_to_wait = self.began_to_wait.notified();
        if self.is_waiting.load(Ordering::SeqCst) {
            return None;
        }
        tokio::select! {
            biased;
            lead = self.lead() => Some(lead),
            () = began_to_wait => None,
        }
    }
}

impl<T> Lead<T> {
    /// The lock is busy, and this reader begins to wait for it.
    pub(super) fn begin_wait(&self) {
        self.readers.is_waiting.store(true, Ordering::SeqCst);
        self.readers.began_to_wait.notify_waiters();
    }

    /// This reader lets writers of other processes try first, until [`end_pause`](Self::end_pause).
    pub(super) fn begin_pause(&self) {
        self.readers.is_pausing.store(true, Ordering::SeqCst);
    }

    pub(super) fn end_pause(&self) {
        self.readers.is_pausing.store(false, Ordering::SeqCst);
    }
}

impl<T> Drop for Lead<T> {
    fn drop(&mut self) {
        self.readers.is_waiting.store(false, Ordering::SeqCst);
        self.end_pause();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::support::poll_once;

    fn readers() -> Arc<Readers<u8>> {
        Arc::new(Readers::new())
    }

    #[test]
    fn what_they_hold_goes_with_the_last_of_them() {
        let readers = readers();
        assert_eq!(readers.held(), None);
        let first = Arc::new(1);
        readers.share(&first, Instant::now());
        let second = readers.held().unwrap();
        assert_eq!(Arc::into_inner(first), None);
        let third = readers.held().unwrap();
        assert_eq!(Arc::into_inner(second), None);
        assert!(readers.is_reading());
        assert_eq!(Arc::into_inner(third), Some(1));
        assert!(readers.held().is_none() && !readers.is_reading());
    }

    #[tokio::test]
    async fn the_lead_passes_on_also_from_one_who_goes_away() {
        let readers = readers();
        let first = readers.try_lead().unwrap();
        assert!(readers.try_lead().is_none());
        let mut second = Box::pin(readers.lead());
        let mut third = pin!(readers.lead());
        assert!(!poll_once(second.as_mut()).await);
        assert!(!poll_once(third.as_mut()).await);
        drop(first);
        drop(second);
        assert!(poll_once(third.as_mut()).await);
    }

    #[tokio::test]
    async fn an_attempt_waits_for_a_try_but_not_for_a_wait() {
        let readers = readers();
        let lead = readers.try_lead().unwrap();
        let mut early = pin!(readers.lead_unless_waiting());
        assert!(!poll_once(early.as_mut()).await);
        lead.begin_wait();
        assert!(early.await.is_none());
        assert!(readers.lead_unless_waiting().await.is_none());
        drop(lead);
        let lead = readers.lead_unless_waiting().await.unwrap();
        let mut late = pin!(readers.lead_unless_waiting());
        assert!(!poll_once(late.as_mut()).await);
        drop(lead);
        assert!(late.await.is_some());
    }

    #[test]
    fn a_process_reads_often_while_it_reads_and_for_a_period_more() {
        let readers = readers();
        let now = Instant::now();
        assert!(!readers.read_often(now));
        let held = Arc::new(1);
        readers.share(&held, now);
        let later = now + writers_turn::PERIOD + Duration::from_millis(1);
        assert!(readers.read_often(later));
        drop(held);
        assert!(readers.read_often(now + writers_turn::PERIOD / 2));
        assert!(!readers.read_often(later));
    }
}
