//! When the readers of this process let writers of other processes go first.
//!
//! A shared lock keeps writers out as long as one reader is left, and readers of several processes can overlap for ever.
//! So all processes of a machine pause their reading at the same moments, which the clock of the machine tells them.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::sys;

/// The moments are so far apart. A process that has not read for so long need not pause.
pub(super) const PERIOD: Duration = Duration::from_millis(50);

/// For so long no reader begins. Readers that began before come to their end, a writer wakes up and tries.
const PAUSE: Duration = Duration::from_millis(1);

/// A moment, and what the clock of the machine showed then.
static CLOCK: LazyLock<(Instant, Duration)> = LazyLock::new(|| (Instant::now(), sys::uptime()));

/// For how long it is the turn of the writers; `None` while it is not.
pub(super) fn rest(now: Instant) -> Option<Duration> {
    let (then, uptime) = *CLOCK;
    rest_at(uptime + now.saturating_duration_since(then))
}

fn rest_at(uptime: Duration) -> Option<Duration> {
    let since = uptime.as_nanos() as u64 % PERIOD.as_nanos() as u64;
    PAUSE.checked_sub(Duration::from_nanos(since)).filter(|rest| !rest.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_millisecond_of_each_period_is_the_writers() {
        let period = PERIOD * 1_000;
        assert_eq!(rest_at(period), Some(PAUSE));
        assert_eq!(rest_at(period + PAUSE / 4), Some(PAUSE / 4 * 3));
        assert_eq!(rest_at(period + PAUSE), None);
        assert_eq!(rest_at(period + PERIOD - Duration::from_nanos(1)), None);
        assert_eq!(rest_at(period + PERIOD), Some(PAUSE));
    }
}
