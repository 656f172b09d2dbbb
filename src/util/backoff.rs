//! Pauses between two tries where no event ends them.

use std::time::Duration;

use super::random;

/// Growing pauses. Each has jitter, so that waiters do not wake up in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new((shortest, longest): (Duration, Duration)) -> Self {
        Self { next: shortest, longest }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        let half = pause / 2;
        half + half.mul_f64(random::fraction())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_vary() {
        let (shortest, longest) = (Duration::from_millis(1), Duration::from_millis(100));
        let mut backoff = Backoff::new((shortest, longest));
        let pauses: Vec<_> = (0..50).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= shortest);
        assert!(pauses.iter().all(|&pause| pause >= shortest / 2 && pause <= longest));
        assert!(pauses[10..].iter().all(|&pause| pause >= longest / 2));
        assert!(pauses[10..].windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn no_pause_is_too_long_to_be_doubled() {
        let mut backoff = Backoff::new((Duration::MAX, Duration::MAX));
        assert!((0..1_000).all(|_| backoff.next() >= Duration::MAX / 2));
    }
}
