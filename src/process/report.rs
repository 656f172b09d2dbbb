//! What a wait reports of itself: that it goes on, and who holds the lock.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::lock::{Lock, keeping};
use super::worker::Worker;
use crate::sys::per_process::PerProcess;
use crate::util::timer::sleep;
use crate::words::target::Target;
use crate::words::trace;

/// The seconds before the first report. The intervals after it double.
const FIRST: u32 = 1;

/// The longest interval.
const LAST: u32 = 600;

/// How old the knowledge of the holder may be. All waits for one lock share it.
const FRESHNESS: Duration = Duration::from_millis(500);

/// Bounds the looks for the log.
static LOOKS: PerProcess<Semaphore> = PerProcess::new();

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

pub(super) struct Report<'a> {
    wait: Wait,
    /// Whether the log tells of the wait for one of several locks, of which this one is a part or the whole.
    is_reported: Option<&'a AtomicBool>,
    /// In seconds.
    interval: u32,
    /// When the next report is due, since the start.
    due: Duration,
    /// The task that waits; `None` if nobody listens.
    worker: Option<Worker>,
}

/// Awaits `future`, which waits for one of several locks, and reports meanwhile as if it waited for `lock`.
pub(crate) async fn during<F>(lock: &Lock, is_reported: &AtomicBool, future: Pin<&mut F>) -> F::Output
where
    F: Future,
{
    let mut report = Report::new(Instant::now());
    report.is_reported = Some(is_reported);
    report.during(lock, future).await
}

impl<'a> Report<'a> {
    pub(super) fn new(started: Instant) -> Self {
        let worker = trace::warnings_are_heard().then(Worker::current);
        Self {
            wait: Wait::begin(started),
            is_reported: None,
            interval: FIRST,
            due: Duration::from_secs(FIRST.into()),
            worker,
        }
    }

    /// Of a part of a wait that [`during`] reports.
    pub(super) fn of_part(started: Instant, is_reported: &'a AtomicBool) -> Self {
        Self { is_reported: Some(is_reported), worker: None, ..Self::new(started) }
    }

    pub(super) fn wait(&self) -> Wait {
        let is_reported = self.is_reported.is_some_and(|is_reported| is_reported.load(Ordering::Relaxed));
        Wait { is_reported: is_reported || self.wait.is_reported, ..self.wait }
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
            let holder = Box::pin(async {
                // One after another: whoever needs the holder for an error finds no queue.
                let turn = LOOKS.get_or_init(|| Semaphore::new(1)).acquire().await;
                keeping(turn, pin!(lock.look_for_holder(FRESHNESS, || ()))).await.ok().flatten()
            });
            let holder = holder.await;
            trace::waiting(lock.target(), self.wait.started.elapsed(), holder.as_ref());
            self.wait.is_reported = true;
            self.is_reported.into_iter().for_each(|is_reported| is_reported.store(true, Ordering::Relaxed));
        }
        // Another of several locks may still come free.
        if self.is_reported.is_none() && self.worker.is_some_and(|worker| lock.slot().is_held_by(worker)) {
            trace::waits_for_itself(lock.target(), self.wait.started.elapsed());
        }
        self.interval = (self.interval * 2).min(LAST);
        self.due = self.wait.started.elapsed() + Duration::from_secs(self.interval.into());
    }
}
