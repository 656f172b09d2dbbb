//! The one wait, for every kind: try, pause, try again. No thread is parked meanwhile.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::blocking;
use crate::error::LockError;
use crate::guard::LockGuard;
use crate::lock::LockFile;
use crate::protocol::{Contended, Outcome};
use crate::registry::Turn;
use crate::trace;

/// How often a try looks again at something that need not be a holder, a moment apart, before it takes it for one.
const SECOND_LOOKS: u32 = 5;

/// What came of one try.
#[expect(clippy::large_enum_variant, reason = "it is taken apart as soon as it is made")]
enum Tried {
    Acquired(LockGuard),
    Busy(Turn, Contended),
}

/// Tries once.
pub(crate) async fn attempt(lock: &LockFile, turn: Turn) -> Result<Option<LockGuard>, LockError> {
    Ok(match attempt_from(lock, turn, Contended::default()).await? {
        Tried::Acquired(guard) => Some(guard),
        Tried::Busy(..) => None,
    })
}

/// Tries until it is ours.
pub(crate) async fn obtain(lock: &LockFile, mut turn: Turn) -> Result<LockGuard, LockError> {
    let mut backoff = Backoff::new(lock.target().options.backoff);
    let mut report = Report::new();
    let mut last = Contended::default();
    loop {
        match attempt_from(lock, turn, last).await? {
            Tried::Acquired(guard) => return Ok(guard),
            Tried::Busy(back, contended) => (turn, last) = (back, contended),
        }
        report.when_due(lock).await;
        pause(&mut backoff).await;
    }
}

/// Waits for a sign that the lock may be free. This is where an event is to replace the sleep.
async fn pause(backoff: &mut Backoff) {
    sleep(backoff.next()).await;
}

async fn attempt_from(lock: &LockFile, mut turn: Turn, mut last: Contended) -> Result<Tried, LockError> {
    for look in 0.. {
        let target = lock.target().clone();
        // The turn goes along: if our caller goes away, no other task tries before this try has ended.
        let (back, outcome) = blocking::run(move || (turn, target.attempt(last)))
            .await
            .map_err(|error| LockError::io(&lock.target().path, "try for", error))?;
        turn = back;
        match outcome? {
            Outcome::Acquired { held, taken_over } => {
                return Ok(Tried::Acquired(LockGuard::new(lock.clone(), turn, held, taken_over)));
            }
            Outcome::Unclear(contended) if look < SECOND_LOOKS => last = contended,
            Outcome::Unclear(contended) | Outcome::Busy(contended) => return Ok(Tried::Busy(turn, contended)),
        }
        sleep(Duration::from_micros(fastrand::u64(1_000..2_000))).await;
    }
    unreachable!("the last look returns")
}

/// Growing pauses, each with jitter so that waiters do not march in step.
struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    fn new((shortest, longest): (Duration, Duration)) -> Self {
        Self { next: shortest, longest }
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Says who is waited for: first after a second, then at growing intervals.
struct Report {
    started: Instant,
    interval: Duration,
    due: Instant,
}

impl Report {
    fn new() -> Self {
        let started = Instant::now();
        let interval = Duration::from_secs(1);
        Self { started, interval, due: started + interval }
    }

    async fn when_due(&mut self, lock: &LockFile) {
        let now = Instant::now();
        if now < self.due || !trace::waiting_is_heard() {
            return;
        }
        self.interval = (self.interval * 2).min(Duration::from_secs(600));
        self.due = now + self.interval;
        let holder = lock.holder().await.ok().flatten();
        trace::waiting(lock.target(), now - self.started, holder.as_ref());
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
}
