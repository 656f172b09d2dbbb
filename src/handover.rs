//! The lock on its way from one task of this process to the next, without a system call in between.
//!
//! Whoever releases while tasks wait leaves the held lock on the shelf and gives up the turn; whoever gets the turn
//! takes it from there. Nothing stays on the shelf: the last waiter who goes away clears it, the releaser looks once
//! more after giving up the turn, and [`Caretaker`] clears it of what a task does not come for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Weak;
use std::time::Duration;

use crate::guard::Parcel;
use crate::registry::Slot;

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard, atomic};

use atomic::AtomicUsize;
use atomic::Ordering::SeqCst;

/// How long the lock may lie on the shelf.
const LONGEST: Duration = Duration::from_millis(10);

/// After so many looks in vain the caretaker stays away: half a second.
const IDLE_LOOKS: u32 = 50;

/// The shelf of one lock.
///
/// Giving up the turn, then looking whether anybody waits, on the one side; ceasing to wait, then trying for the turn,
/// on the other: one of the two sees the other, so somebody clears the shelf.
#[derive(Debug)]
pub(crate) struct Handover<T> {
    waiting: AtomicUsize,
    shelf: Mutex<Shelf<T>>,
}

#[derive(Debug)]
struct Shelf<T> {
    parcel: Option<T>,
    /// Whether the caretaker looks after this shelf.
    is_watched: bool,
    /// How often the caretaker has looked since anything was left here.
    idle_looks: u32,
}

impl<T> Handover<T> {
    pub(crate) fn new() -> Self {
        let shelf = Shelf { parcel: None, is_watched: false, idle_looks: 0 };
        Self { waiting: AtomicUsize::new(0), shelf: Mutex::new(shelf) }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<T>> {
        self.shelf.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Says that a task waits for the turn.
    pub(crate) fn enter(&self) {
        self.waiting.fetch_add(1, SeqCst);
    }

    /// A waiting task has the turn.
    pub(crate) fn arrive(&self) {
        self.waiting.fetch_sub(1, SeqCst);
    }

    /// A waiting task goes away without the turn. What this answers is to be released.
    pub(crate) fn leave<Turn>(&self, try_turn: impl FnOnce() -> Option<Turn>) -> Option<(T, Turn)> {
        if self.waiting.fetch_sub(1, SeqCst) > 1 {
            return None;
        }
        self.clear(try_turn)
    }

    pub(crate) fn somebody_waits(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// Leaves the parcel and gives up the turn. Answers them if nobody is there any more to take them: to be released.
    pub(crate) fn pass<Turn>(
        &self,
        parcel: T,
        turn: Turn,
        watch: impl FnOnce() -> bool,
        try_turn: impl FnOnce() -> Option<Turn>,
    ) -> Option<(T, Turn)> {
        {
            let mut shelf = self.shelf();
            shelf.is_watched = shelf.is_watched || watch();
            if !shelf.is_watched {
                return Some((parcel, turn));
            }
            shelf.idle_looks = 0;
            shelf.parcel = Some(parcel);
        }
        drop(turn);
        match self.somebody_waits() {
            true => None,
            false => self.clear(try_turn),
        }
    }

    /// What lies on the shelf, for whoever has the turn.
    pub(crate) fn take(&self) -> Option<T> {
        self.shelf().parcel.take()
    }

    fn clear<Turn>(&self, try_turn: impl FnOnce() -> Option<Turn>) -> Option<(T, Turn)> {
        // Without the turn there is somebody else who takes it.
        let turn = try_turn()?;
        Some((self.take()?, turn))
    }
}

impl Handover<Parcel> {
    /// The caretaker's look: what has lain here for too long, and whether to come again.
    fn inspect(&self) -> (Option<Parcel>, bool) {
        let mut shelf = self.shelf();
        let overdue = shelf.parcel.as_ref().is_some_and(|parcel| parcel.left_at().elapsed() >= LONGEST);
        let parcel = if overdue { shelf.parcel.take() } else { None };
        shelf.idle_looks += 1;
        shelf.is_watched = shelf.idle_looks < IDLE_LOOKS || shelf.parcel.is_some();
        (parcel, shelf.is_watched)
    }
}

/// A thread that gives back to the system what a task does not come for, because it is not polled: the runtime may
/// stand still, so no task could do this. It lives only while locks are passed on.
pub(crate) struct Caretaker {
    slots: Vec<Weak<Slot>>,
    is_here: bool,
}

static CARETAKER: std::sync::Mutex<Caretaker> = std::sync::Mutex::new(Caretaker { slots: Vec::new(), is_here: false });

impl Caretaker {
    fn get() -> std::sync::MutexGuard<'static, Self> {
        CARETAKER.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Looks after the shelf of `slot` from now on; `false` if there can be no such thread.
    pub(crate) fn watch(slot: Weak<Slot>) -> bool {
        let mut caretaker = Self::get();
        if !caretaker.is_here {
            let thread = std::thread::Builder::new().name("lockfile-handover".into()).stack_size(128 * 1024);
            caretaker.is_here = thread.spawn(Self::work).is_ok();
        }
        if caretaker.is_here {
            caretaker.slots.push(slot);
        }
        caretaker.is_here
    }

    fn work() {
        loop {
            std::thread::sleep(LONGEST);
            let slots = std::mem::take(&mut Self::get().slots);
            let mut kept = Vec::with_capacity(slots.len());
            for weak in slots {
                let Some(slot) = weak.upgrade() else { continue };
                let (parcel, again) = slot.handover().inspect();
                if again {
                    kept.push(weak);
                }
                // Releasing logs, so nothing is locked here, and a subscriber that panics must not end this thread.
                if let Some(parcel) = parcel {
                    let _ = catch_unwind(AssertUnwindSafe(|| parcel.release()));
                }
            }
            let mut caretaker = Self::get();
            caretaker.slots.append(&mut kept);
            if caretaker.slots.is_empty() {
                caretaker.is_here = false;
                return;
            }
        }
    }
}

#[cfg(all(test, loom))]
mod tests {
    use loom::sync::{Arc, MutexGuard};
    use loom::thread;

    use super::*;

    /// The lock in the system: how often it is held. The turn is a mutex, as in the slot.
    struct Lock {
        turn: Mutex<()>,
        handover: Handover<()>,
        held: AtomicUsize,
    }

    impl Lock {
        /// One lock, its first holder, and a waiting task.
        fn new() -> Arc<Self> {
            let lock = Self { turn: Mutex::new(()), handover: Handover::new(), held: AtomicUsize::new(1) };
            lock.handover.enter();
            Arc::new(lock)
        }

        fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
            self.turn.try_lock().ok()
        }

        fn release(&self, left: Option<((), MutexGuard<'_, ()>)>) {
            if let Some(((), turn)) = left {
                assert_eq!(self.held.fetch_sub(1, SeqCst), 1);
                drop(turn);
            }
        }

        /// What a guard does at its end.
        fn end(&self, turn: MutexGuard<'_, ()>) {
            let left = match self.handover.somebody_waits() {
                true => self.handover.pass((), turn, || true, || self.try_turn()),
                false => Some(((), turn)),
            };
            self.release(left);
        }

        /// What a task does that gets the turn.
        fn begin(&self) -> MutexGuard<'_, ()> {
            let turn = self.turn.lock().unwrap();
            self.handover.arrive();
            if self.handover.take().is_none() {
                assert_eq!(self.held.fetch_add(1, SeqCst), 0, "two holders");
            }
            turn
        }
    }

    #[test]
    fn a_waiter_that_goes_away_leaves_nothing_on_the_shelf() {
        loom::model(|| {
            let lock = Lock::new();
            let turn = lock.turn.lock().unwrap();
            let waiter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.release(lock.handover.leave(|| lock.try_turn()))
            });
            lock.end(turn);
            waiter.join().unwrap();
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }

    #[test]
    fn one_waiter_takes_it_while_another_goes_away() {
        loom::model(|| {
            let lock = Lock::new();
            lock.handover.enter();
            let turn = lock.turn.lock().unwrap();
            let waiter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.end(lock.begin())
            });
            let quitter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.release(lock.handover.leave(|| lock.try_turn()))
            });
            lock.end(turn);
            waiter.join().unwrap();
            quitter.join().unwrap();
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }

    #[test]
    fn the_caretaker_and_a_waiter_do_not_both_take_it() {
        loom::model(|| {
            let lock = Lock::new();
            let turn = lock.turn.lock().unwrap();
            let waiter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || {
                    let turn = lock.turn.lock().unwrap();
                    lock.handover.arrive();
                    // Without a parcel it would try in the system, and wait there for the caretaker's release.
                    let taken = lock.handover.take();
                    lock.release(taken.map(|()| ((), turn)));
                }
            });
            lock.end(turn);
            if lock.handover.take().is_some() {
                assert_eq!(lock.held.fetch_sub(1, SeqCst), 1);
            }
            waiter.join().unwrap();
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }
}
