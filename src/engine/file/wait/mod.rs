//! The wait for a lock file: watch, try, sleep until something wakes it, try again. No thread is parked meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::{Tried, attempt};
use super::execution::TargetOnDisk;
use super::outcome::Contended;
use crate::engine::contract::{BoxFuture, Contention, Grant, Waiter};
use crate::util::{blocking, random};
use crate::words::error::LockError;
use crate::words::mode::Mode;
use pause::Pause;
use wake_up::WakeUp;

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[path = "inotify/mod.rs"]
mod events;
#[cfg(not(all(target_os = "linux", not(tokio_lockfile_test_portable))))]
#[path = "no_events.rs"]
mod events;
pub(super) mod loss;
mod pause;
pub(super) mod wake_up;

/// Whoever has lost so many races for the lock since its wait began lets nobody go first any more.
const RACES_WAIVED: f64 = 4.0;

/// How long a waiter lets others go first. It takes another process some 50 µs to wake up.
const STEP_ASIDE: Duration = Duration::from_micros(100);

/// A waiter for a lock that another process holds.
#[derive(Debug)]
pub(super) struct FileWaiter {
    lock: Arc<TargetOnDisk>,
    mode: Mode,
    last: Contended,
}

impl FileWaiter {
    pub(super) fn new(lock: Arc<TargetOnDisk>, mode: Mode, last: Contended) -> Self {
        Self { lock, mode, last }
    }

    /// This is a block and no `async fn`, which would keep its arguments twice.
    fn run<Turn: Send + 'static>(
        self,
        mut turn: Turn,
        had_rivals: bool,
    ) -> impl Future<Output = Result<Grant<Turn>, LockError>> {
        let Self { lock, mode, mut last } = self;
        async move {
            let mut pause = Pause::new(&lock);
            let mut lost_races = 0;
            loop {
                let contention = if lost_races > 0 { Contention::LostRaces } else { Contention::Waited };
                let wake_up = pause.next(&lock, &last).await;
                if wake_up == WakeUp::Event {
                    // Events reach processes always in the same order, so the first would win every race if it never waived
                    // one.
                    let is_patient =
                        (had_rivals || lost_races > 0) && lost_races <= (random::fraction() * RACES_WAIVED) as u32;
                    if is_patient {
                        Box::pin(blocking::short_pause(STEP_ASIDE)).await;
                    }
                    lost_races += 1;
                }
                last.is_awaited = true;
                match attempt(&lock, mode, turn, last, wake_up).get().await? {
                    Tried::Acquired(grant) => return Ok(grant.boxed(contention)),
                    Tried::Busy(back, contended) => (turn, last) = (back, contended),
                }
            }
        }
    }
}

impl<Turn: Send + 'static> Waiter<Turn> for FileWaiter {
    fn wait(self: Box<Self>, turn: Turn, had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>> {
        Box::pin((*self).run(turn, had_rivals))
    }
}
