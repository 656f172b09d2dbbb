//! What this process knows of its own locks: one slot per lock, its queue, and whether a task holds it.
//!
//! Correctness between processes never rests on this: two slots for one file would only make `locked()` imprecise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedMutexGuard;

use crate::guard::Parcel;
use crate::handover::{Caretaker, Handover};
use crate::kind::LockKind;
use crate::pace::Pace;
use crate::spell::Spell;
use crate::trace;

/// The slots of one process; an entry goes when its last handle goes.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Mutex<HashMap<Key, Weak<Slot>>>,
}

/// The kind, and the path with the links in its directory resolved; for a null lock, its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(LockKind, Arc<Path>);

/// Some moment before this process got its first lock.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One lock in this process.
#[derive(Debug)]
pub(crate) struct Slot {
    queue: Arc<tokio::sync::Mutex<Spell>>,
    /// Nanoseconds since [`EPOCH`] when a task of this process got the lock; 0 while none holds it.
    held_since: AtomicU64,
    /// The task that got it; not kept if no warning would be heard.
    held_by: Mutex<Option<Worker>>,
    /// Where to strike this slot off; `None` for a lock without a name.
    entry: Option<(Key, &'static Registry)>,
    /// The process that made the slot.
    process: u32,
    /// Unknown while the directory is not there.
    pace: OnceLock<Pace>,
    handover: Handover<Parcel>,
}

/// The turn of one task: no other task of this process tries for the lock meanwhile.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn {
    slot: Arc<Slot>,
    place: OwnedMutexGuard<Spell>,
}

impl Registry {
    /// The registry of this process.
    pub(crate) fn global() -> &'static Self {
        static GLOBAL: LazyLock<Registry> = LazyLock::new(Registry::default);
        &GLOBAL
    }

    /// The slot of the lock at `path`, which is absolute.
    pub(crate) fn slot(&'static self, kind: LockKind, path: &Arc<Path>) -> Arc<Slot> {
        let identity = match kind {
            LockKind::Null => Arc::clone(path),
            _ => resolve_parent(path),
        };
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

/// `path` with the symbolic links and the `..` of its directory resolved, as far as that exists; `path` itself where
/// that changes nothing.
fn resolve_parent(path: &Arc<Path>) -> Arc<Path> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Arc::clone(path);
    };
    let mut missing = vec![name];
    let mut existing = parent;
    let resolved: PathBuf = loop {
        match (existing.canonicalize(), existing.parent(), existing.file_name()) {
            (Ok(resolved), _, _) => break resolved,
            (Err(_), Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            (Err(_), _, _) => break existing.to_owned(),
        }
    };
    let resolved = missing.iter().rev().fold(resolved, |path, name| path.join(name));
    if resolved == **path { Arc::clone(path) } else { resolved.into() }
}

impl Slot {
    fn new(entry: Option<(Key, &'static Registry)>) -> Self {
        Self {
            queue: Arc::default(),
            held_since: AtomicU64::new(0),
            held_by: Mutex::default(),
            entry,
            process: std::process::id(),
            pace: OnceLock::new(),
            handover: Handover::new(),
        }
    }

    /// A slot that no other handle can find.
    pub(crate) fn unnamed() -> Arc<Self> {
        Arc::new(Self::new(None))
    }

    /// The turn at once, unless another task has it or is queued for it.
    pub(crate) fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        let place = Arc::clone(&self.queue).try_lock_owned().ok()?;
        Some(Turn { slot: Arc::clone(self), place })
    }

    /// The turn, in the order of asking. Cancel safe: a task that goes away leaves the queue.
    pub(crate) async fn turn(self: &Arc<Self>) -> Turn {
        if let Some(turn) = self.try_turn() {
            return turn;
        }
        let waiting = Waiting::enter(self);
        // Dropped before `waiting`, if our caller goes away: it must not have the turn when that looks for one.
        let place = Arc::clone(&self.queue).lock_owned().await;
        waiting.arrive();
        Turn { slot: Arc::clone(self), place }
    }

    pub(crate) fn handover(&self) -> &Handover<Parcel> {
        &self.handover
    }

    /// Leaves a held lock to the next task and gives up the turn; see [`Handover::pass`].
    pub(crate) fn pass(self: &Arc<Self>, parcel: Parcel, turn: Turn) -> Option<(Parcel, Turn)> {
        self.handover.pass(parcel, turn, || Caretaker::watch(Arc::downgrade(self)), || self.try_turn())
    }

    /// How tries for this lock are made, once that is known.
    pub(crate) fn pace(&self) -> Option<Pace> {
        self.pace.get().copied()
    }

    pub(crate) fn set_pace(&self, pace: Pace) {
        // The first to know says it.
        let _ = self.pace.set(pace);
    }

    /// Whether `worker` got the lock that this process holds.
    pub(crate) fn is_held_by(&self, worker: Worker) -> bool {
        self.is_held() && *self.held_by() == Some(worker)
    }

    fn held_by(&self) -> MutexGuard<'_, Option<Worker>> {
        self.held_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task of this process holds the lock.
    pub(crate) fn is_held(&self) -> bool {
        self.held_since.load(Ordering::Acquire) != 0
    }

    /// When a task of this process got the lock it holds.
    pub(crate) fn held_since(&self) -> Option<SystemTime> {
        match self.held_since.load(Ordering::Acquire) {
            0 => None,
            nanoseconds => SystemTime::now().checked_sub((*EPOCH + Duration::from_nanos(nanoseconds)).elapsed()),
        }
    }
}

/// Who can wait for himself: a task, or a thread that blocks on a future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worker {
    Task(tokio::task::Id),
    Thread(std::thread::ThreadId),
}

impl Worker {
    pub(crate) fn current() -> Self {
        match tokio::task::try_id() {
            Some(id) => Self::Task(id),
            None => Self::Thread(std::thread::current().id()),
        }
    }
}

/// A task that is queued for the turn.
struct Waiting<'a>(Option<&'a Arc<Slot>>);

impl<'a> Waiting<'a> {
    fn enter(slot: &'a Arc<Slot>) -> Self {
        slot.handover.enter();
        Self(Some(slot))
    }

    fn arrive(mut self) {
        self.0.take().inspect(|slot| slot.handover.arrive());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let left = self.0.and_then(|slot| slot.handover.leave(|| slot.try_turn()));
        if let Some((parcel, turn)) = left {
            parcel.release();
            drop(turn);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // In a forked child another thread may have had the mutex at the fork.
        let is_ours = self.process == std::process::id();
        if let Some((key, registry)) = self.entry.as_ref().filter(|_| is_ours) {
            let mut slots = registry.slots.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have put a new slot here since the last handle of this one went.
            if slots.get(key).is_some_and(|slot| slot.strong_count() == 0) {
                slots.remove(key);
            }
        }
    }
}

impl Turn {
    pub(crate) fn spell(&mut self) -> &mut Spell {
        &mut self.place
    }

    /// The held lock, if another task of this process has left it.
    pub(crate) fn take_parcel(&self) -> Option<Parcel> {
        self.slot.handover.take()
    }

    pub(crate) fn set_held(&self, since: Instant) {
        let nanoseconds = u64::try_from((since - *EPOCH).as_nanos()).unwrap_or(u64::MAX);
        if trace::warnings_are_heard() {
            *self.slot.held_by() = Some(Worker::current());
        }
        self.slot.held_since.store(nanoseconds.max(1), Ordering::Release);
    }

    pub(crate) fn set_free(&self) {
        self.slot.held_since.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> &'static Registry {
        Box::leak(Box::default())
    }

    #[test]
    fn entries_vanish_when_unused() {
        let registry = registry();
        let path: Arc<Path> = Path::new("/tmp/a.lock").into();
        let slot = registry.slot(LockKind::Flock, &path);
        let same = registry.slot(LockKind::Flock, &path);
        let other_kind = registry.slot(LockKind::Shlock, &path);
        assert!(Arc::ptr_eq(&slot, &same));
        assert!(!Arc::ptr_eq(&slot, &other_kind));
        assert_eq!(registry.len(), 2);
        drop((slot, same, other_kind));
        assert_eq!(registry.len(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn one_file_is_one_slot_by_whatever_path() {
        let registry = registry();
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let alias = dir.path().join("alias");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &alias).unwrap();
        let slot = |path: PathBuf| registry.slot(LockKind::Flock, &path.into());
        let first = slot(real.join("x"));
        assert!(Arc::ptr_eq(&first, &slot(alias.join("x"))));
        assert!(Arc::ptr_eq(&first, &slot(real.join("../alias/x"))));
        let missing = slot(real.join("not/yet/x"));
        assert!(Arc::ptr_eq(&missing, &slot(alias.join("not/yet/x"))));
    }

    #[test]
    fn a_forked_child_takes_no_mutex_for_a_slot_of_its_parent() {
        let registry = registry();
        let mut slot = Slot::new(None);
        slot.entry = Some((Key(LockKind::Null, Path::new("x").into()), registry));
        slot.process += 1;
        let _another_thread_has_it = registry.slots.lock().unwrap();
        drop(slot);
    }

    #[tokio::test]
    async fn the_queue_is_first_in_first_out() {
        let slot = Slot::unnamed();
        let first = slot.try_turn().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let (slot, order) = (Arc::clone(&slot), Arc::clone(&order));
                tokio::spawn(async move {
                    let _turn = slot.turn().await;
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(slot.try_turn().is_none());
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
    }
}
