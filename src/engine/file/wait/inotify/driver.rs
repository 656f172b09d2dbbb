//! The task of one runtime that reads the events.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::runtime::Id;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::watches::Watches;
use crate::sys::process::Owner;
use crate::util::blocking;
use crate::util::timer::sleep;

/// How often a driver maintains the watches.
const TICK: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Driver {
    /// `None` only after the driver has ended.
    inotify: Option<AsyncFd<Arc<OwnedFd>>>,
    tick: Tick,
    runtime: Id,
    owner: Owner,
}

impl Driver {
    /// # Panics
    /// In a runtime without timers. So the caller panics and not the driver.
    pub(super) fn new(inotify: AsyncFd<Arc<OwnedFd>>, runtime: Id) -> Self {
        let (tick, owner) = (Tick::new(), Owner::this_process());
        Self { inotify: Some(inotify), tick, runtime, owner }
    }

    pub(super) async fn drive(mut self) {
        loop {
            let Some(inotify) = self.inotify.as_ref().filter(|_| self.owner.is_this_process()) else { return };
            tokio::select! {
                ready = inotify.readable() => {
                    let Ok(mut ready) = ready else { return };
                    // Clear first. An event that arrives during the read then makes the descriptor ready again.
                    ready.clear_ready();
                    self.read().await;
                }
                () = self.tick.next() => if !self.tend().await { return },
            }
        }
    }

    async fn read(&mut self) {
        let due = Watches::get().dispatch();
        let pause = due.pause;
        due.wake();
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }

    /// The work of every tick. Returns `false` when nobody waits any more.
    async fn tend(&mut self) -> bool {
        let (idle, due) = {
            let mut watches = Watches::get();
            // One critical section covers both steps, so that no new wait relies on a driver that is about to end.
            match watches.is_idle() {
                true => (true, watches.leave(self.runtime)),
                false => (false, watches.probe()),
            }
        };
        due.wake();
        if idle {
            // The close takes some milliseconds, because the kernel removes the watches first.
            let inotify = self.inotify.take();
            let _ = blocking::run(move || drop(inotify.map(AsyncFd::into_inner))).await;
            return false;
        }
        while Watches::get().clear() {
            tokio::task::yield_now().await;
        }
        true
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.inotify.is_some() && self.owner.is_this_process() {
            let due = Watches::get().leave(self.runtime);
            due.wake();
        }
    }
}

/// The ticks of a driver. They end where the clock of the runtime is paused (`tokio::time::pause`): there, every timer that
/// nothing else precedes fires at once, and the ticks would keep a core busy.
#[derive(Debug)]
struct Tick {
    interval: Interval,
    last: Instant,
    is_clock_paused: bool,
}

impl Tick {
    fn new() -> Self {
        let mut interval = interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval.reset();
        Self { interval, last: Instant::now(), is_clock_paused: false }
    }

    /// Cancel safe.
    async fn next(&mut self) {
        if self.is_clock_paused {
            return std::future::pending().await;
        }
        self.interval.tick().await;
        let now = Instant::now();
        // Timers are never early by more than a millisecond.
        self.is_clock_paused = now - self.last < TICK / 2;
        self.last = now;
    }
}
