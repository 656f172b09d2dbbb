//! Passing a held lock from one task of this process to the next, without a system call in between.
//!
//! A task that releases the lock while others wait offers the held lock, and gives up its turn. The task that gets the
//! turn accepts the offer. No offer stays behind: the last waiter that goes away withdraws it, the task that made it looks
//! once more after giving up its turn, and the watchdog withdraws an offer that nobody accepts in time.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[cfg(loom)]
use loom::sync::atomic;
#[cfg(not(loom))]
use std::sync::atomic;

use atomic::AtomicUsize;
use atomic::Ordering::SeqCst;

use crate::sys::offer::{Offer, Release, STANDS};

/// The hand-off of one lock. `T` is the held lock.
///
/// One side gives up the turn, then looks whether anybody waits. The other side ceases to wait, then tries for the turn.
/// One of the two sees the other, so somebody withdraws the offer.
#[derive(Debug)]
pub(super) struct HandOff<T> {
    waiting: AtomicUsize,
    /// Most locks are never handed off.
    offer: OnceLock<Arc<Offer<T>>>,
}

impl<T: Release> HandOff<T> {
    pub(super) fn new() -> Self {
        Self { waiting: AtomicUsize::new(0), offer: OnceLock::new() }
    }

    /// A task begins to wait for the turn.
    pub(super) fn begin_wait(&self) {
        self.waiting.fetch_add(1, SeqCst);
    }

    /// A waiting task has got the turn.
    pub(super) fn end_wait(&self) {
        self.waiting.fetch_sub(1, SeqCst);
    }

    /// A waiting task goes away without the turn. The caller releases what this returns.
    pub(super) fn cancel_wait<Turn>(&self, try_turn: impl FnOnce() -> Option<Turn>) -> Option<(T, Turn)> {
        if self.waiting.fetch_sub(1, SeqCst) > 1 {
            return None;
        }
        self.withdraw(try_turn)
    }

    pub(super) fn somebody_waits(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// Offers the held lock, and gives up the turn. Returns both if nobody is left to accept the offer, or if the system
    /// starts no thread to watch it: the caller releases them.
    pub(super) fn offer<Turn>(
        &self,
        held: T,
        turn: Turn,
        now: Instant,
        try_turn: impl FnOnce() -> Option<Turn>,
    ) -> Option<(T, Turn)> {
        let offer = self.offer.get_or_init(Offer::new);
        let is_watched = offer.make(held, now + STANDS) || offer.watch();
        if !is_watched {
            return Some((offer.take()?, turn));
        }
        drop(turn);
        match self.somebody_waits() {
            true => None,
            false => self.withdraw(try_turn),
        }
    }

    /// The held lock that is offered, for the task that has the turn.
    pub(super) fn accept(&self) -> Option<T> {
        self.offer.get()?.take()
    }

    fn withdraw<Turn>(&self, try_turn: impl FnOnce() -> Option<Turn>) -> Option<(T, Turn)> {
        // If the turn is taken, the task that has it accepts the offer.
        let turn = try_turn()?;
        Some((self.accept()?, turn))
    }
}

#[cfg(all(test, loom))]
mod tests {
    use loom::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
    use loom::thread;

    use super::{AtomicUsize, HandOff, Instant, SeqCst};

    /// The lock in the system counts how often it is held. The turn is a mutex, as the exclusive turn of a slot.
    struct Lock {
        turn: Mutex<()>,
        hand_off: HandOff<()>,
        held: AtomicUsize,
    }

    impl Lock {
        /// One lock, its first holder, and a waiting task.
        fn new() -> Arc<Self> {
            let lock = Self { turn: Mutex::new(()), hand_off: HandOff::new(), held: AtomicUsize::new(1) };
            lock.hand_off.begin_wait();
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

        /// What a guard does when it ends.
        fn end(&self, turn: MutexGuard<'_, ()>) {
            let left = match self.hand_off.somebody_waits() {
                true => self.hand_off.offer((), turn, Instant::now(), || self.try_turn()),
                false => Some(((), turn)),
            };
            self.release(left);
        }

        /// What a task does when it gets the turn.
        fn begin(&self) -> MutexGuard<'_, ()> {
            let turn = self.turn.lock().unwrap();
            self.hand_off.end_wait();
            if self.hand_off.accept().is_none() {
                assert_eq!(self.held.fetch_add(1, SeqCst), 0, "two holders");
            }
            turn
        }
    }

    #[test]
    fn a_waiter_that_goes_away_leaves_no_offer_behind() {
        loom::model(|| {
            let lock = Lock::new();
            let turn = lock.turn.lock().unwrap();
            let waiter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.release(lock.hand_off.cancel_wait(|| lock.try_turn()))
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
            lock.hand_off.begin_wait();
            let turn = lock.turn.lock().unwrap();
            let waiter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.end(lock.begin())
            });
            let quitter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.release(lock.hand_off.cancel_wait(|| lock.try_turn()))
            });
            lock.end(turn);
            waiter.join().unwrap();
            quitter.join().unwrap();
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }

    #[test]
    fn the_watchdog_and_a_waiter_do_not_both_take_it() {
        loom::model(|| {
            let lock = Lock::new();
            let turn = lock.turn.lock().unwrap();
            let waiter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || {
                    let turn = lock.turn.lock().unwrap();
                    lock.hand_off.end_wait();
                    // Without an offer it would try in the system, and wait there for the release by the watchdog.
                    let taken = lock.hand_off.accept();
                    lock.release(taken.map(|()| ((), turn)));
                }
            });
            lock.end(turn);
            if lock.hand_off.accept().is_some() {
                assert_eq!(lock.held.fetch_sub(1, SeqCst), 1);
            }
            waiter.join().unwrap();
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }

    /// A lock with turns for readers and a writer. The first holder is a writer, and readers wait.
    struct SharedLock {
        turn: RwLock<()>,
        lead: Mutex<()>,
        hand_off: HandOff<()>,
        /// How often it is held exclusively in the system.
        held: AtomicUsize,
    }

    impl SharedLock {
        fn new(waiting: usize) -> Arc<Self> {
            let (turn, lead) = (RwLock::new(()), Mutex::new(()));
            let lock = Self { turn, lead, hand_off: HandOff::new(), held: AtomicUsize::new(1) };
            (0..waiting).for_each(|_| lock.hand_off.begin_wait());
            Arc::new(lock)
        }

        fn release<Turn>(&self, left: Option<((), Turn)>) {
            if let Some(((), turn)) = left {
                assert_eq!(self.held.fetch_sub(1, SeqCst), 1);
                drop(turn);
            }
        }

        fn end(&self, turn: RwLockWriteGuard<'_, ()>) {
            let left = match self.hand_off.somebody_waits() {
                true => self.hand_off.offer((), turn, Instant::now(), || self.turn.try_write().ok()),
                false => Some(((), turn)),
            };
            self.release(left);
        }

        /// What a reader does when it gets the turn: the one with the lead releases what is offered.
        fn read(&self) {
            let _turn = self.turn.read().unwrap();
            self.hand_off.end_wait();
            let _lead = self.lead.lock().unwrap();
            if self.hand_off.accept().is_some() {
                assert_eq!(self.held.fetch_sub(1, SeqCst), 1);
            }
            assert_eq!(self.held.load(SeqCst), 0, "a reader beside a writer");
        }

        /// A writer that waits, and goes away.
        fn quit(&self) {
            self.release(self.hand_off.cancel_wait(|| self.turn.try_write().ok()));
        }
    }

    #[test]
    fn one_of_two_readers_releases_what_a_writer_offers() {
        loom::model(|| {
            let lock = SharedLock::new(2);
            let turn = lock.turn.write().unwrap();
            let readers = [0, 1].map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || lock.read())
            });
            lock.end(turn);
            for reader in readers {
                reader.join().unwrap();
            }
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }

    #[test]
    fn a_reader_and_a_writer_that_goes_away_leave_no_offer_behind() {
        loom::model(|| {
            let lock = SharedLock::new(2);
            let turn = lock.turn.write().unwrap();
            let reader = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.read()
            });
            let quitter = thread::spawn({
                let lock = Arc::clone(&lock);
                move || lock.quit()
            });
            lock.end(turn);
            reader.join().unwrap();
            quitter.join().unwrap();
            assert_eq!(lock.held.load(SeqCst), 0, "stranded");
        });
    }
}
