//! How long a lock on a server is certainly ours.
//!
//! The server frees the lock when it has not heard of us for the time of the lease. The server counts from the arrival
//! of our last request. We count from the moment at which we sent it, so our count ends first. The clock goes on while
//! the machine is suspended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys;
use crate::util::timer;

/// A moment on the clock of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Self {
        Self(sys::time_since_boot())
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// The lease of one session. It only grows, until it is ended.
#[derive(Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    /// In nanoseconds on the clock of leases. 0 once the lease is ended.
    end: AtomicU64,
}

impl Lease {
    /// A lease of `ttl` at the server, since a request that was sent at `sent` and has been answered.
    pub(crate) fn new(ttl: Duration, sent: Moment) -> Self {
        let lease = Self { ttl, end: AtomicU64::new(1) };
        lease.renew(sent);
        lease
    }

    /// Extends the lease: the server has answered a request that was sent at `sent`. An ended lease stays ended.
    pub(crate) fn renew(&self, sent: Moment) {
        self.renew_for(self.ttl, sent);
    }

    /// The same, where the answer says how long the lease lasts. Nobody gets more than was granted.
    pub(crate) fn renew_for(&self, ttl: Duration, sent: Moment) {
        // The last tenth is a reserve, for clocks of different speed, and for the time that a task needs to stop.
        let end = nanos(sent.0 + ttl.min(self.ttl) / 10 * 9);
        let later = |old| (old != 0 && old < end).then_some(end);
        let _ = self.end.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    /// Ends the lease now: the lock is no longer ours.
    pub(crate) fn end(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// How long the lock is still ours; `None` if it is not. Reads the clock.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.end.load(Ordering::Relaxed).checked_sub(nanos(Moment::now().0))?;
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// Whether the lock is ours at this moment.
    pub(crate) fn is_alive(&self) -> bool {
        self.left().is_some()
    }

    /// Resolves when the lease has run out, in whatever runtime polls this. The timer only says when to look again: under a
    /// paused clock of Tokio, the lease lasts as long as ever.
    ///
    /// # Panics
    /// Where a runtime has no timers.
    pub(crate) async fn expired(&self) {
        // Timers stand still while the machine is suspended. So no sleep is long.
        let longest = self.ttl / 10;
        while let Some(left) = self.left() {
            timer::sleep(left.min(longest)).await;
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(100);

    fn ago(time: Duration) -> Moment {
        Moment(Moment::now().0.saturating_sub(time))
    }

    #[test]
    fn it_counts_from_the_request_and_ends_before_the_servers() {
        let lease = Lease::new(TTL, ago(Duration::from_secs(1)));
        let left = lease.left().unwrap();
        assert!(left <= Duration::from_secs(89), "{left:?}");
        lease.renew(ago(Duration::from_secs(2)));
        assert!(lease.left().unwrap() > Duration::from_secs(88), "an older answer made it shorter");
        lease.renew(Moment::now());
        assert!(lease.left().unwrap() > Duration::from_secs(89));
        lease.renew_for(TTL * 2, Moment::now());
        assert!(lease.left().unwrap() <= Duration::from_secs(90), "more than was granted");
        // What a server may say.
        assert!(Lease::new(Duration::from_secs(i64::MIN.unsigned_abs()), Moment::now()).is_alive());
    }

    #[tokio::test]
    async fn what_is_over_stays_over() {
        let lease = Lease::new(TTL, Moment::now());
        assert!(lease.is_alive());
        lease.end();
        lease.renew(Moment::now());
        assert!(!lease.is_alive());
        lease.expired().await;
        let old = Lease::new(Duration::from_nanos(1), Moment::now());
        old.expired().await;
        assert!(!old.is_alive());
    }

    #[test]
    fn a_renewal_counts_for_as_long_as_its_answer_says() {
        let lease = Lease::new(TTL, ago(TTL / 2));
        lease.renew_for(TTL / 2, Moment::now());
        let left = lease.left().unwrap();
        assert!(left > Duration::from_secs(44) && left <= Duration::from_secs(45), "{left:?}");
    }
}
