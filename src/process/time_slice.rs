//! How long this process has had a lock to itself, so that other processes get it too.
//!
//! A task that has just released a lock can take it again long before any other process has woken up. So a process has a
//! time slice, over any number of tasks and releases. Then it steps aside for as long as others need to wake up and try.

use std::time::{Duration, Instant};

/// After this long the next to obtain the lock lets other processes try first.
const LONGEST: Duration = Duration::from_millis(10);

/// The same when the lock had to be waited for: others want it.
const LONGEST_CONTENDED: Duration = Duration::from_millis(1);

/// How long the process steps aside. It takes another process some 50 µs to wake up.
pub(super) const PAUSE: Duration = Duration::from_micros(200);

/// The current time slice of this process with one lock, or the last one.
#[derive(Debug, Default)]
pub(super) struct TimeSlice {
    began: Option<Instant>,
    /// When the lock was last given back to the system.
    left: Option<Instant>,
    was_waited_for: bool,
    /// Whether others got the lock while this process waited for it.
    had_rivals: bool,
}

impl TimeSlice {
    /// The process gets the lock from the system. This begins a new time slice, if others could have got the lock before.
    pub(super) fn gain(&mut self, now: Instant) {
        if !self.goes_on(now) {
            self.was_waited_for &= self.began.is_none();
            self.began = Some(now);
        }
    }

    /// The lock is back in the system.
    pub(super) fn leave(&mut self, now: Instant) {
        self.left = Some(now);
    }

    /// Another process has had the lock. If it was faster than this one (`lost_race`), this process has rivals.
    pub(super) fn end(&mut self, lost_race: bool) {
        let had_rivals = self.had_rivals || lost_race;
        *self = Self { began: None, left: None, was_waited_for: true, had_rivals };
    }

    /// A new wait begins. Returns whether there were rivals in the last one.
    pub(super) fn forget_rivals(&mut self) -> bool {
        std::mem::take(&mut self.had_rivals)
    }

    /// Whether the time slice has lasted as long as it may.
    pub(super) fn is_spent(&self, now: Instant) -> bool {
        let longest = if self.was_waited_for { LONGEST_CONTENDED } else { LONGEST };
        self.began.is_some_and(|began| now - began >= longest)
    }

    /// Whether it would be unfair to take the lock again at once.
    pub(super) fn is_unfair(&self, now: Instant) -> bool {
        self.is_spent(now) && self.goes_on(now)
    }

    fn goes_on(&self, now: Instant) -> bool {
        self.left.is_some_and(|left| now - left < PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_slice_ends_by_its_length_a_pause_or_another_process() {
        let start = Instant::now();
        let at = |time: Duration| start + time;
        let mut slice = TimeSlice::default();
        assert!(!slice.is_unfair(start));

        // Again and again, with less than a pause in between.
        for tenth in 0..10 {
            let now = at(LONGEST / 10 * tenth);
            assert!(!slice.is_unfair(now), "{tenth}");
            slice.gain(now);
            slice.leave(at(LONGEST / 10 * (tenth + 1)) - PAUSE / 2);
        }
        assert!(slice.is_unfair(at(LONGEST)));
        assert!(!slice.is_unfair(at(LONGEST + PAUSE)));

        slice.gain(at(LONGEST + PAUSE));
        assert!(!slice.is_spent(at(LONGEST + PAUSE)));
        assert!(slice.is_spent(at(LONGEST * 2 + PAUSE)));

        slice.end(false);
        assert!(!slice.is_spent(at(LONGEST * 3)));
        slice.gain(at(LONGEST * 3));
        assert!(slice.is_spent(at(LONGEST * 3 + LONGEST_CONTENDED)));
        slice.leave(at(LONGEST * 4));
        slice.gain(at(LONGEST * 5));
        assert!(!slice.is_spent(at(LONGEST * 5 + LONGEST_CONTENDED)));
    }
}
