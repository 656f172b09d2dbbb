//! What a wait reports of itself: that it goes on, and who holds the lock.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::lock::Lock;
use super::worker::Worker;
use crate::util::timer::sleep;
use crate::words::target::Target;
use crate::words::trace;

/// The time before the first report. The intervals after it double.
const FIRST: Duration = Duration::from_secs(1);

/// The longest interval.
const LAST: Duration = Duration::from_secs(600);

/// How old the knowledge of the holder may be. All waits for one lock share it.
const FRESHNESS: Duration = Duration::from_millis(500);

/// How long a task has waited for a lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) started: Instant,
    /// Whether the log tells of it.
    pub(super) is_reported: bool,
}

impl Wait {
    pub(super) fn begin(started: Instant) -> Self {
        Self { started, is_reported: false }
    }

    /// Logs that the wait has ended with the lock.
    pub(super) fn log_acquired(&self, target: &Target) {
        trace::acquired(target, self.started, self.is_reported);
    }
}

pub(super) struct Report {
    wait: Wait,
    interval: Duration,
    /// When the next report is due, since the start.
    due: Duration,
    /// The task that waits; `None` if nobody listens.
    worker: Option<Worker>,
}

impl Report {
    pub(super) fn new(started: Instant) -> Self {
        let worker = trace::warnings_are_heard().then(Worker::current);
        Self { wait: Wait::begin(started), interval: FIRST, due: FIRST, worker }
    }

    pub(super) fn wait(&self) -> Wait {
        self.wait
    }

    /// Awaits `future`, which is part of the wait, and reports meanwhile.
    pub(super) async fn during<F: Future + ?Sized>(&mut self, lock: &Lock, mut future: Pin<&mut F>) -> F::Output {
        if self.worker.is_none() {
            return future.await;
        }
        loop {
            tokio::select! {
                biased;
                done = &mut future => return done,
                () = Box::pin(self.report_when_due(lock)) => {}
            }
        }
    }

    /// Cancel safe: a report that was not made stays due.
    async fn report_when_due(&mut self, lock: &Lock) {
        sleep(self.due.saturating_sub(self.wait.started.elapsed())).await;
        if trace::waiting_is_heard() {
            // It is boxed, because the future is large and every wait has this one.
            let holder = Box::pin(lock.look_for_holder(FRESHNESS, || ())).await.ok().flatten();
            trace::waiting(lock.target(), self.wait.started.elapsed(), holder.as_ref());
            self.wait.is_reported = true;
        }
        if self.worker.is_some_and(|worker| lock.slot().is_held_by(worker)) {
            trace::waits_for_itself(lock.target(), self.wait.started.elapsed());
        }
        self.interval = (self.interval * 2).min(LAST);
        self.due = self.wait.started.elapsed() + self.interval;
    }
}
