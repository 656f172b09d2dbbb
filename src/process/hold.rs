//! A held lock, as this process keeps it for one task after another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Release;
use crate::engine::contract::Held;
use crate::words::error::LockError;
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
    verified: Instant,
}

impl Hold {
    pub(super) fn new(held: Box<dyn Held>, target: Arc<Target>, now: Instant) -> Self {
        Self { held, target, verified: now }
    }

    /// Whether the lock may be passed on, as `target` names it.
    pub(super) fn verify(&mut self, target: &Target) -> bool {
        let now = Instant::now();
        let is_in_order = self.held.is_of_this_process() && self.held.check(target).is_ok();
        if is_in_order {
            self.verified = now;
        }
        is_in_order
    }

    /// The same after a hold `since` then. Nothing can have happened in a very short one.
    pub(super) fn verify_after(&mut self, target: &Target, since: Instant, now: Instant) -> bool {
        let is_verified = now - since < INSTANTLY && now - self.verified < RECENTLY;
        is_verified || self.verify(target)
    }

    /// The same for a task that has asked for the lock at `asked` and names it `target`. It must not get a lock that was
    /// lost before it asked. Nor must it get one whose path leads elsewhere than its own by now.
    pub(super) fn verify_for(&mut self, target: &Target, asked: Instant) -> bool {
        let is_verified = self.verified >= asked && self.target.path == target.path;
        is_verified || self.verify(target)
    }
}

impl Release for Hold {
    /// The guard of this hold has already reported success, and that was true then. So a failure goes to the log.
    fn release(self) {
        if !self.held.is_of_this_process() {
            return;
        }
        match self.held.release_now(&self.target) {
            Ok(()) => {}
            Err(LockError::Lost { reason, .. }) => trace::lost(&self.target, reason),
            Err(error) => trace::release_failed(&self.target, &error),
        }
    }
}
