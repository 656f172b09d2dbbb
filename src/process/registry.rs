//! What this process knows of its own locks: one slot for each lock, with its queue and its holder in this process.
//!
//! Correctness between processes does not depend on this. Two slots for one lock would only make `locked()` imprecise.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::atomic_instant::AtomicInstant;
use super::hand_off::HandOff;
use super::queue::Queue;
use super::readers::{Lead, Readers};
use super::time_slice::TimeSlice;
use super::worker::Worker;
use crate::sys::offer::Release;
use crate::sys::process::Owner;
use crate::util::timer::sleep;
use crate::words::holder::Holder;
use crate::words::kind::LockKind;
use crate::words::mode::Mode;
use crate::words::trace;

/// The slots of one process. An entry goes with the last handle on its lock. `T` is a held lock.
#[derive(Debug)]
pub(super) struct Registry<T: Release + Sync> {
    slots: Mutex<HashMap<Key, Weak<Slot<T>>>>,
}

/// The kind of a lock and its identity, as its engine tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(LockKind, Arc<OsStr>);

/// When somebody looked who holds a lock, and whom he found.
#[derive(Debug)]
struct Look {
    at: tokio::time::Instant,
    holder: Option<Holder>,
}

/// One lock in this process.
#[derive(Debug)]
pub(super) struct Slot<T: Release + Sync> {
    queue: Queue,
    /// Only who has the exclusive turn looks at it or changes it.
    time_slice: Mutex<TimeSlice>,
    /// When a task of this process got the lock that it holds exclusively.
    held_since: AtomicInstant,
    /// Those who share the lock. Most locks are never shared.
    readers: OnceLock<Arc<Readers<T>>>,
    /// How many releases are under way although their tasks have gone on.
    releasing: AtomicUsize,
    /// One of them has ended.
    has_released: Notify,
    /// The task that got the lock exclusively. Not kept if nobody would hear a warning.
    held_by: Mutex<Option<Worker>>,
    /// The last look. It is boxed, because nobody looks at most locks.
    last_look: Mutex<Option<Box<Look>>>,
    /// Where this slot is registered; `None` for a lock without a name.
    entry: Option<(Key, &'static Registry<T>)>,
    /// The process that made the slot.
    owner: Owner,
    hand_off: HandOff<T>,
}

/// The turn of one task. While an exclusive turn lasts, no other task of this process tries for the lock. Of the tasks with
/// a shared turn, the one with the lead tries.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn<T: Release + Sync> {
    mode: Mode,
    lead: Option<Box<Lead<T>>>,
    slot: Arc<Slot<T>>,
    /// The reader that holds the lock with this turn. Not kept if nobody would hear a warning.
    reader: Option<Worker>,
}

impl<T: Release + Sync> Registry<T> {
    pub(super) fn new() -> Self {
        Self { slots: Mutex::default() }
    }

    /// The slot of the lock with this identity.
    pub(super) fn slot(&'static self, kind: LockKind, identity: Arc<OsStr>) -> Arc<Slot<T>> {
        let key = Key(kind, identity);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot::new(Some((key.clone(), self))));
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots.lock().unwrap().len()
    }
}

impl<T: Release + Sync> Slot<T> {
    fn new(entry: Option<(Key, &'static Registry<T>)>) -> Self {
        Self {
            queue: Queue::new(),
            time_slice: Mutex::default(),
            held_since: AtomicInstant::default(),
            readers: OnceLock::new(),
            releasing: AtomicUsize::new(0),
            has_released: Notify::new(),
            held_by: Mutex::default(),
            last_look: Mutex::default(),
            entry,
            owner: Owner::this_process(),
            hand_off: HandOff::new(),
        }
    }

    /// A slot that no other handle can find.
    pub(super) fn unnamed() -> Arc<Self> {
        Arc::new(Self::new(None))
    }

    /// What all handles on the lock have in common; `None` for a lock without a name.
    pub(super) fn identity(&self) -> Option<&OsStr> {
        self.entry.as_ref().map(|(Key(_, identity), _)| &**identity)
    }

    /// The turn at once, unless another task has it or waits for it.
    pub(super) fn try_turn(self: &Arc<Self>, mode: Mode) -> Option<Turn<T>> {
        self.queue.try_enter(mode).then(|| Turn::new(self, mode))
    }

    /// The turn, in the order of asking. Cancel safe: a task that goes away leaves the queue.
    pub(super) async fn turn(self: &Arc<Self>, mode: Mode) -> Turn<T> {
        let waiting = Waiting::begin(self);
        // If our caller goes away, this is dropped before `waiting`: it must not have the turn when that looks for one.
        self.queue.enter(mode).await;
        waiting.end();
        Turn::new(self, mode)
    }

    /// Those who share the lock.
    pub(super) fn readers(&self) -> &Arc<Readers<T>> {
        self.readers.get_or_init(|| Arc::new(Readers::new()))
    }

    /// Whether a task of this process waits for its turn.
    pub(super) fn somebody_waits(&self) -> bool {
        self.hand_off.somebody_waits()
    }

    /// Waits while only a release, whose task has gone on, has the turn. Who has just dropped a guard can have the lock at
    /// once.
    pub(super) async fn released(&self) {
        loop {
            // Before the look: an end after it is noticed.
            let has_released = self.has_released.notified();
            let is_releasing = self.releasing.load(Ordering::SeqCst) > 0;
            if !is_releasing || self.is_held() || self.somebody_waits() {
                return;
            }
            has_released.await;
        }
    }

    /// Offers a held lock to the next task, and gives up the turn; see [`HandOff::offer`].
    pub(super) fn offer(self: &Arc<Self>, held: T, turn: Turn<T>, now: Instant) -> Option<(T, Turn<T>)> {
        self.hand_off.offer(held, turn, now, || self.try_turn(Mode::Exclusive))
    }

    /// Whether `worker` has obtained the lock that this process holds.
    pub(super) fn is_held_by(&self, worker: Worker) -> bool {
        let is_writer = self.held_since.is_set() && *self.held_by() == Some(worker);
        is_writer || self.readers.get().is_some_and(|readers| readers.is_held_by(worker))
    }

    fn held_by(&self) -> MutexGuard<'_, Option<Worker>> {
        self.held_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task of this process holds the lock.
    pub(super) fn is_held(&self) -> bool {
        self.held_since.is_set() || self.readers.get().is_some_and(|readers| readers.is_reading())
    }

    /// The holder that a look within `freshness` from now has found; `None` if there was no such look.
    pub(super) fn last_look(&self, freshness: Duration) -> Option<Option<Holder>> {
        let last = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        let look = last.as_deref().filter(|look| look.at.elapsed() <= freshness)?;
        Some(look.holder.clone())
    }

    pub(super) fn remember_look(&self, holder: Option<Holder>) {
        let look = Box::new(Look { at: tokio::time::Instant::now(), holder });
        *self.last_look.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }

    /// When this process got the lock that it holds.
    pub(super) fn held_since(&self) -> Option<SystemTime> {
        let since = self.held_since.get().or_else(|| self.readers.get()?.since())?;
        SystemTime::now().checked_sub(since.elapsed())
    }
}

/// A task that waits for its turn.
struct Waiting<'a, T: Release + Sync>(Option<&'a Arc<Slot<T>>>);

impl<'a, T: Release + Sync> Waiting<'a, T> {
    fn begin(slot: &'a Arc<Slot<T>>) -> Self {
        slot.hand_off.begin_wait();
        Self(Some(slot))
    }

    fn end(mut self) {
        self.0.take().inspect(|slot| slot.hand_off.end_wait());
    }
}

impl<T: Release + Sync> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        let left = self.0.and_then(|slot| slot.hand_off.cancel_wait(|| slot.try_turn(Mode::Exclusive)));
        if let Some((held, turn)) = left {
            held.release(turn);
        }
    }
}

impl<T: Release + Sync> Drop for Slot<T> {
    fn drop(&mut self) {
        // In a forked child, another thread of the parent may have had the mutex at the fork.
        if let Some((key, registry)) = self.entry.as_ref().filter(|_| self.owner.is_this_process()) {
            let mut slots = registry.slots.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have made a new slot since the last handle on this one went.
            if slots.get(key).is_some_and(|slot| slot.strong_count() == 0) {
                slots.remove(key);
            }
        }
    }
}

impl<T: Release + Sync> Turn<T> {
    /// For a task that has entered the queue.
    fn new(slot: &Arc<Slot<T>>, mode: Mode) -> Self {
        Self { mode, lead: None, slot: Arc::clone(slot), reader: None }
    }

    pub(super) fn slot(&self) -> &Arc<Slot<T>> {
        &self.slot
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// The time slice of this process; `None` for a shared turn, which has none.
    pub(super) fn time_slice(&self) -> Option<MutexGuard<'_, TimeSlice>> {
        let slice = || self.slot.time_slice.lock().unwrap_or_else(PoisonError::into_inner);
        (self.mode == Mode::Exclusive).then(slice)
    }

    /// The held lock, if another task of this process has offered it.
    pub(super) fn accept(&self) -> Option<T> {
        self.slot.hand_off.accept()
    }

    /// Gets the lead, so that this task may try for the lock that the readers share. `false` if another reader has it.
    pub(super) fn try_lead(&mut self) -> bool {
        self.lead = self.slot.readers().try_lead().map(Box::new);
        self.lead.is_some()
    }

    /// Gets the lead as soon as no other reader has it.
    pub(super) async fn take_lead(&mut self) {
        if !self.try_lead() {
            self.lead = Some(Box::new(self.slot.readers().lead().await));
        }
    }

    /// The same for a task that does not wait for other processes. `false` if the reader with the lead does.
    pub(super) async fn take_lead_unless_waiting(&mut self) -> bool {
        self.lead = self.slot.readers().lead_unless_waiting().await.map(Box::new);
        self.lead.is_some()
    }

    /// The task begins to wait for another process.
    pub(super) fn begin_wait(&self) {
        self.lead.iter().for_each(|lead| lead.begin_wait());
    }

    /// Lets writers of other processes try first. The readers that come meanwhile wait behind this one, which has the lead.
    pub(super) async fn pause(&self, pause: Duration) {
        self.lead.iter().for_each(|lead| lead.begin_pause());
        sleep(pause).await;
        self.lead.iter().for_each(|lead| lead.end_pause());
    }

    /// The readers of this process share `held` from now on.
    pub(super) fn share(&self, held: &Arc<T>, now: Instant) {
        self.slot.readers().share(held, now);
    }

    pub(super) fn set_held(&mut self, since: Instant) {
        let worker = trace::warnings_are_heard().then(Worker::current);
        match self.mode() {
            Mode::Shared => {
                worker.inspect(|&worker| self.slot.readers().enter(worker));
                self.reader = worker;
                // The others can share the lock now.
                self.lead = None;
            }
            Mode::Exclusive => {
                if worker.is_some() {
                    *self.slot.held_by() = worker;
                }
                self.slot.held_since.set(since);
            }
        }
    }

    /// The lock is being released, and the task does not wait for that.
    pub(super) fn begin_release(&self) -> Releasing<T> {
        self.slot.releasing.fetch_add(1, Ordering::SeqCst);
        Releasing(Arc::clone(&self.slot))
    }

    pub(super) fn set_free(&mut self) {
        match self.mode() {
            Mode::Shared => _ = self.reader.take().inspect(|&worker| self.slot.readers().leave(worker)),
            Mode::Exclusive => self.slot.held_since.clear(),
        }
    }
}

/// Whatever ends a turn, also a panic or the end of a runtime: the task does not hold the lock any more.
impl<T: Release + Sync> Drop for Turn<T> {
    fn drop(&mut self) {
        self.set_free();
        // The next reader leads while this one still keeps writers out.
        self.lead = None;
        self.slot.queue.leave(self.mode);
    }
}

/// A release that goes on although its task has gone on.
#[derive(Debug)]
pub(super) struct Releasing<T: Release + Sync>(Arc<Slot<T>>);

impl<T: Release + Sync> Drop for Releasing<T> {
    fn drop(&mut self) {
        self.0.releasing.fetch_sub(1, Ordering::SeqCst);
        self.0.has_released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Release for () {
        fn release(self, _kept: impl Send + 'static) {}
    }

    fn registry() -> &'static Registry<()> {
        Box::leak(Box::new(Registry::new()))
    }

    fn path(path: &str) -> Arc<OsStr> {
        OsStr::new(path).into()
    }

    #[test]
    fn entries_vanish_when_unused() {
        let registry = registry();
        let slot = registry.slot(LockKind::Flock, path("/tmp/a.lock"));
        let same = registry.slot(LockKind::Flock, path("/tmp/a.lock"));
        let other_kind = registry.slot(LockKind::Shlock, path("/tmp/a.lock"));
        assert!(Arc::ptr_eq(&slot, &same));
        assert!(!Arc::ptr_eq(&slot, &other_kind));
        assert_eq!(registry.len(), 2);
        for another_name in ["/tmp//a.lock", "/tmp/a.lock/", "/tmp/./a.lock"] {
            assert!(!Arc::ptr_eq(&slot, &registry.slot(LockKind::Flock, path(another_name))), "{another_name}");
        }
        drop((slot, same, other_kind));
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn a_forked_child_takes_no_mutex_for_a_slot_of_its_parent() {
        let registry = registry();
        let mut slot = Slot::new(None);
        slot.entry = Some((Key(LockKind::Null, path("x")), registry));
        slot.owner = Owner::another_process();
        let _another_thread_has_it = registry.slots.lock().unwrap();
        drop(slot);
    }

    #[tokio::test]
    async fn the_queue_is_first_in_first_out() {
        let slot = Slot::<()>::unnamed();
        let first = slot.try_turn(Mode::Exclusive).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let (slot, order) = (Arc::clone(&slot), Arc::clone(&order));
                tokio::spawn(async move {
                    let _turn = slot.turn(Mode::Exclusive).await;
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(slot.try_turn(Mode::Exclusive).is_none());
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
    }
}
