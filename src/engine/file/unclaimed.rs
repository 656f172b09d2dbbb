//! What a try on the blocking pool has got, until the task that wants it is polled.
//!
//! A task may do something else meanwhile, for example in another branch of `select!`. It does not know yet that it has the
//! lock, so the lock must not keep other processes out for long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::outcome::Outcome;
use super::protocol::Held;
use crate::sys::watchdog::{self, Watched};
use crate::words::error::LockError;

/// How long a lock stays unclaimed before it is released.
const LONGEST: Duration = Duration::from_millis(10);

type Tried = Result<Outcome<Held>, LockError>;

/// The outcome of a try. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct Unclaimed(Arc<Place>);

#[derive(Debug)]
struct Place {
    tried: Mutex<Option<Tried>>,
    since: Instant,
}

/// Begins to watch the lock when it is dropped. The task gets its answer first.
#[derive(Debug)]
pub(super) struct WatchLater(Weak<Place>);

impl Unclaimed {
    pub(super) fn new(tried: Tried) -> (Self, WatchLater) {
        let is_lock = matches!(tried, Ok(Outcome::Acquired { .. }));
        let unclaimed = Self(Arc::new(Place { tried: Mutex::new(Some(tried)), since: Instant::now() }));
        let watch = if is_lock { Arc::downgrade(&unclaimed.0) } else { Weak::new() };
        (unclaimed, WatchLater(watch))
    }

    /// The outcome; `None` if the lock has been released meanwhile.
    pub(super) fn claim(self) -> Option<Tried> {
        self.0.tried().take()
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        *self.0.tried() = None;
    }
}

impl Place {
    fn tried(&self) -> MutexGuard<'_, Option<Tried>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched for Place {
    fn look(&self) -> bool {
        let mut tried = self.tried();
        if tried.is_some() && self.since.elapsed() < LONGEST {
            return true;
        }
        // The release is over before the mutex is free: so nobody meets a leftover of this try.
        let _ = catch_unwind(AssertUnwindSafe(|| *tried = None));
        false
    }
}

impl Drop for WatchLater {
    fn drop(&mut self) {
        if self.0.upgrade().is_some_and(|place| place.tried().is_some()) {
            let place: Weak<Place> = Weak::clone(&self.0);
            watchdog::watch(place, LONGEST);
        }
    }
}
