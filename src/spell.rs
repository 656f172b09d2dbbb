//! How long this process has had a lock to itself, so that other processes get it too.
//!
//! Whoever has just released a lock can have it again long before anybody else has woken up. So a process has its
//! spell, through however many tasks and releases, and then steps aside for as long as others need to wake up and try.

use std::time::{Duration, Instant};

/// After this long the next to obtain the lock lets other processes try first.
const LONGEST: Duration = Duration::from_millis(10);

/// The same when the lock had to be waited for: others want it.
const LONGEST_CONTENDED: Duration = Duration::from_millis(1);

/// How long others are let try. Waking up takes another process some 50 µs.
pub(crate) const PAUSE: Duration = Duration::from_micros(200);

/// The current spell of this process with one lock, or the last.
#[derive(Debug, Default)]
pub(crate) struct Spell {
    began: Option<Instant>,
    /// When the lock was last given back to the system.
    left: Option<Instant>,
    was_waited_for: bool,
    /// Whether others got the lock while this process waited for it.
    had_rivals: bool,
}

impl Spell {
    /// The process gets the lock from the system: a new spell, if others could have got it before.
    pub(crate) fn gain(&mut self, now: Instant) {
        if !self.goes_on(now) {
            self.was_waited_for &= self.began.is_none();
            self.began = Some(now);
        }
    }

    /// The lock is back in the system.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.left = Some(now);
    }

    /// Another process has the lock; if it is one that was faster than us, we have rivals.
    pub(crate) fn end(&mut self, lost_race: bool) {
        let had_rivals = self.had_rivals || lost_race;
        *self = Self { began: None, left: None, was_waited_for: true, had_rivals };
    }

    /// A new wait begins. Whether there were rivals in the last one.
    pub(crate) fn forget_rivals(&mut self) -> bool {
        std::mem::take(&mut self.had_rivals)
    }

    /// Whether the spell has lasted as long as it may.
    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        let longest = if self.was_waited_for { LONGEST_CONTENDED } else { LONGEST };
        self.began.is_some_and(|began| now - began >= longest)
    }

    /// Whether it would be unfair to take the lock again at once.
    pub(crate) fn is_unfair(&self, now: Instant) -> bool {
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
    fn a_spell_ends_by_its_length_a_pause_or_another_process() {
        let start = Instant::now();
        let at = |time: Duration| start + time;
        let mut spell = Spell::default();
        assert!(!spell.is_unfair(start));

        // Again and again, with less than a pause in between.
        for tenth in 0..10 {
            let now = at(LONGEST / 10 * tenth);
            assert!(!spell.is_unfair(now), "{tenth}");
            spell.gain(now);
            spell.leave(at(LONGEST / 10 * (tenth + 1)) - PAUSE / 2);
        }
        assert!(spell.is_unfair(at(LONGEST)));
        assert!(!spell.is_unfair(at(LONGEST + PAUSE)));

        spell.gain(at(LONGEST + PAUSE));
        assert!(!spell.is_spent(at(LONGEST + PAUSE)));
        assert!(spell.is_spent(at(LONGEST * 2 + PAUSE)));

        spell.end(false);
        assert!(!spell.is_spent(at(LONGEST * 3)));
        spell.gain(at(LONGEST * 3));
        assert!(spell.is_spent(at(LONGEST * 3 + LONGEST_CONTENDED)));
        spell.leave(at(LONGEST * 4));
        spell.gain(at(LONGEST * 5));
        assert!(!spell.is_spent(at(LONGEST * 5 + LONGEST_CONTENDED)));
    }
}
