//! A held lock on its way to a task. The task may have gone, or it may do something else for long: it waits in another
//! branch of `select!`, or its whole runtime is blocked. It does not know yet that it has the lock. So the lock must not
//! keep others out for long.
//!
//! An offer that no task takes in time is released. The time doubles after each offer that was made in vain. So a task
//! that is always polled late gets the lock in the end, and keeps others out at most about twice as long as it is late.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use super::watchdog::{self, Watched};

/// How long an offer stands at first.
pub(crate) const STANDS: Duration = Duration::from_millis(10);

/// After so many looks without a new offer the watchdog stops looking: half a second.
const IDLE_LOOKS: u32 = 50;

/// What can be offered.
pub(crate) trait Release: Send + 'static {
    /// Releases the lock in the system, because no task takes it. This does not block. `kept` is dropped when nothing of
    /// the lock is left.
    fn release(self, kept: impl Send + 'static);
}

/// How long the offers for one lock stand.
#[derive(Debug)]
pub(crate) struct OfferTimeout {
    /// In milliseconds: each handle has one.
    first: u32,
    /// How many offers in a row were made in vain.
    missed: AtomicU32,
}

impl OfferTimeout {
    pub(crate) const fn new(first: Duration) -> Self {
        Self { first: first.as_millis() as u32, missed: AtomicU32::new(0) }
    }

    pub(crate) fn get(&self) -> Duration {
        let doubled = 2u32.saturating_pow(self.missed.load(Ordering::Relaxed));
        Duration::from_millis(self.first.into()).saturating_mul(doubled)
    }

    pub(crate) fn missed(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn taken(&self) {
        self.missed.store(0, Ordering::Relaxed);
    }
}

/// The place for one offer after another.
#[derive(Debug)]
pub(crate) struct Offer<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    /// What is offered, and until when.
    held: Option<(T, Instant)>,
    is_watched: bool,
    /// How often the watchdog has looked since the last offer.
    idle_looks: u32,
}

impl<T: Release> Offer<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { held: None, is_watched: false, idle_looks: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers the lock. From [`watch`](Self::watch) on, it is released when it is `due`. Returns whether the watchdog
    /// watches it already, because of an earlier offer.
    pub(crate) fn make(&self, held: T, due: Instant) -> bool {
        let mut state = self.state();
        state.idle_looks = 0;
        state.held = Some((held, due));
        state.is_watched
    }

    /// Has the offer watched, if there still is one. `false` if the system starts no thread for that.
    pub(crate) fn watch(self: &Arc<Self>) -> bool {
        let mut state = self.state();
        if state.held.is_some() && !state.is_watched {
            let offer: Weak<Self> = Arc::downgrade(self);
            // Loom knows no other threads than its own.
            state.is_watched = cfg!(loom) || watchdog::watch(offer, STANDS);
            return state.is_watched;
        }
        true
    }

    /// What is offered. `None` if there is no offer any more.
    pub(crate) fn take(&self) -> Option<T> {
        self.state().held.take().map(|(held, _)| held)
    }
}

impl<T: Release> Watched for Offer<T> {
    fn look(&self) -> bool {
        let (overdue, again) = {
            let mut state = self.state();
            let now = Instant::now();
            let overdue = state.held.take_if(|(_, due)| now >= *due);
            state.idle_looks += 1;
            state.is_watched = state.held.is_some() || state.idle_looks < IDLE_LOOKS;
            (overdue, state.is_watched)
        };
        if let Some((held, _)) = overdue {
            // A release logs, and a subscriber that panics must not end the watchdog.
            let _ = catch_unwind(AssertUnwindSafe(|| held.release(())));
        }
        again
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Held(mpsc::Sender<Instant>);

    impl Release for Held {
        fn release(self, _kept: impl Send + 'static) {
            let _ = self.0.send(Instant::now());
        }
    }

    #[test]
    fn an_offer_that_nobody_takes_is_released_when_it_is_due() {
        let (sender, released) = mpsc::channel();
        let offer = Offer::new();
        let due = Instant::now() + STANDS;
        offer.make(Held(sender), due);
        assert!(offer.watch());
        assert!(released.recv().unwrap() >= due);
        assert!(offer.take().is_none(), "two holders");
    }

    #[test]
    fn an_offer_that_is_taken_is_not_released() {
        let (sender, released) = mpsc::channel();
        let offer = Offer::new();
        offer.make(Held(sender), Instant::now());
        let held = offer.take().unwrap();
        assert!(offer.watch() && !offer.look_again_soon());
        assert!(released.try_recv().is_err());
        drop(held);
    }

    impl<T: Release> Offer<T> {
        fn look_again_soon(&self) -> bool {
            self.state().is_watched
        }
    }

    #[test]
    fn an_offer_timeout_doubles_after_each_miss() {
        let offer_timeout = OfferTimeout::new(STANDS);
        for times in [1, 2, 4, 8] {
            assert_eq!(offer_timeout.get(), STANDS * times);
            offer_timeout.missed();
        }
        (0..100).for_each(|_| offer_timeout.missed());
        assert!(offer_timeout.get() > Duration::from_secs(3_600));
        offer_timeout.taken();
        assert_eq!(offer_timeout.get(), STANDS);
    }
}
