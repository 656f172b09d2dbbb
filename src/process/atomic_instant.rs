//! A moment that threads share.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment before this process got its first lock.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since [`EPOCH`]; 0 for no moment.
#[derive(Debug, Default)]
pub(super) struct AtomicInstant(AtomicU64);

impl AtomicInstant {
    pub(super) fn at(moment: Instant) -> Self {
        let new = Self::default();
        new.set(moment);
        new
    }

    pub(super) fn set(&self, moment: Instant) {
        let nanoseconds = u64::try_from((moment - *EPOCH).as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanoseconds.max(1), Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    pub(super) fn get(&self) -> Option<Instant> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            nanoseconds => Some(*EPOCH + Duration::from_nanos(nanoseconds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives() {
        let moment = AtomicInstant::default();
        assert_eq!((moment.get(), moment.is_set()), (None, false));
        let now = *EPOCH + Duration::from_secs(1);
        moment.set(now);
        assert_eq!((moment.get(), moment.is_set()), (Some(now), true));
        moment.clear();
        assert_eq!((moment.get(), moment.is_set()), (None, false));
    }

    #[test]
    fn a_moment_before_the_first_lock_is_set_too() {
        assert!(AtomicInstant::at(*EPOCH).is_set());
    }
}
