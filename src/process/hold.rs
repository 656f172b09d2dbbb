//! A held lock, as this process keeps it for one task after another, or for many readers at once.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::atomic_instant::AtomicInstant;
use crate::engine::contract::Held;
use crate::sys::offer::Release;
use crate::words::error::{LockError, LostReason};
use crate::words::target::Target;
use crate::words::trace;

/// A shorter hold is too short for its holder to remove the file or to fork: nothing that its holder knows of has
/// happened to the lock.
const INSTANTLY: Duration = Duration::from_micros(2);

/// How long ago the lock may have been verified when it is handed off after so short a hold.
const RECENTLY: Duration = Duration::from_micros(20);

#[derive(Debug)]
pub(crate) struct Hold {
    pub(super) held: Box<dyn Held>,
    /// The lock as the task named it that got it from the engine.
    target: Arc<Target>,
    /// When we last saw that the lock is still ours and that we are not a forked child.
    verified: AtomicInstant,
}

/// A task's part in a held lock.
#[derive(Debug)]
pub(super) enum Grip {
    Alone(Hold),
    /// With the other readers of this process.
    Together(Arc<Hold>),
}

impl Grip {
    /// The hold, for the last task that has a part in it.
    pub(super) fn into_last(self) -> Option<Hold> {
        match self {
            Self::Alone(hold) => Some(hold),
            Self::Together(hold) => Arc::into_inner(hold),
        }
    }

    /// Whether other tasks had a part in it just now.
    pub(super) fn has_others(&self) -> bool {
        match self {
            Self::Alone(_) => false,
            Self::Together(hold) => Arc::strong_count(hold) > 1,
        }
    }
}

impl Deref for Grip {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        match self {
            Self::Alone(hold) => hold,
            Self::Together(hold) => hold,
        }
    }
}

impl Hold {
    pub(super) fn new(held: Box<dyn Held>, target: Arc<Target>, now: Instant) -> Self {
        Self { held, target, verified: AtomicInstant::at(now) }
    }

    /// Whether the lock is still the one that `target` names; if not, what has happened.
    pub(super) fn check(&self, target: &Target) -> Result<(), LostReason> {
        self.held.check(target)
    }

    /// Whether the lock may be passed on or shared, as `target` names it. The URL of a lock on a server also says what its
    /// holder wants of it, such as a lease or a fencing token.
    fn verify(&self, target: &Target) -> bool {
        let now = Instant::now();
        let is_the_one = self.target.address.server() == target.address.server();
        let is_in_order = is_the_one && self.held.is_of_this_process() && self.check(target).is_ok();
        if is_in_order {
            self.verified.set(now);
        }
        is_in_order
    }

    /// The same after a hold `since` then. Nothing can have happened in a very short one.
    pub(super) fn verify_after(&self, target: &Target, since: Instant, now: Instant) -> bool {
        let is_recent = |verified| now.saturating_duration_since(verified) < RECENTLY;
        let is_verified = now - since < INSTANTLY && self.verified.get().is_some_and(is_recent);
        is_verified || self.verify(target)
    }

    /// The same for a task that has asked for the lock at `asked` and names it `target`. It must not get a lock that was
    /// lost before it asked. Nor must it get one whose path leads elsewhere than its own by now.
    pub(super) fn verify_for(&self, target: &Target, asked: Instant) -> bool {
        let is_verified =
            self.verified.get().is_some_and(|verified| verified >= asked) && self.target.address == target.address;
        is_verified || self.verify(target)
    }

    /// The same for one more reader that asks `now`. The time since the last look may be so short that nobody can have
    /// removed the file and asked since then.
    pub(super) fn verify_to_share(&self, target: &Target, now: Instant) -> bool {
        self.verify_for(target, now.checked_sub(INSTANTLY).unwrap_or(now))
    }
}

impl Release for Hold {
    /// The guard of this hold has already reported success, and that was true then. So a failure goes to the log.
    fn release(self, kept: impl Send + 'static) {
        if !self.held.is_of_this_process() {
            return;
        }
        let target = Arc::clone(&self.target);
        let log = move |released: Result<(), LockError>| {
            released.unwrap_or_else(|error| trace::not_released(&target, &error, None));
            drop(kept);
        };
        self.held.release(&self.target, Box::new(log));
    }
}
