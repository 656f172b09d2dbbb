//! A thread that takes back what no task accepts, because the task is not polled. The whole runtime may stand still, so a
//! task cannot do this. The thread lives only while there is something to watch.
//!
//! It watches for all locks. So it must not wait for one of them: its own runtime has a pool for what may hang.

use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::per_process::PerProcess;

/// What the watchdog looks at.
pub(crate) trait Watched: Send + Sync {
    /// Takes back what has stood for too long. Returns whether the watchdog must come again. Neither panics nor blocks.
    fn look(&self) -> bool;
}

struct Watchdog {
    watched: Vec<Weak<dyn Watched>>,
    is_running: bool,
}

static WATCHDOG: PerProcess<Mutex<Watchdog>> = PerProcess::new();

/// Looks at `watched` every `interval` from now on. `false` if the thread cannot be started.
pub(crate) fn watch(watched: Weak<dyn Watched>, interval: Duration) -> bool {
    let mut watchdog = Watchdog::get();
    if !watchdog.is_running {
        // With the stack of any other thread: a look may log, and so run somebody's subscriber.
        let thread = std::thread::Builder::new().name("lockfile-watchdog".into());
        watchdog.is_running = thread.spawn(move || Watchdog::run(interval)).is_ok();
    }
    if watchdog.is_running {
        watchdog.watched.push(watched);
    }
    watchdog.is_running
}

impl Watchdog {
    fn get() -> MutexGuard<'static, Self> {
        let watchdog = WATCHDOG.get_or_init(|| Mutex::new(Watchdog { watched: Vec::new(), is_running: false }));
        watchdog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(interval: Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("without I/O it needs nothing of the system");
        let watching: Pin<&mut dyn Future<Output = ()>> = pin!(Self::watch(interval));
        runtime.block_on(watching);
        // A drop would wait for the pool.
        runtime.shutdown_background();
    }

    async fn watch(interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let mut watched = std::mem::take(&mut Self::get().watched);
            // A look may release a lock and log that, so nothing is locked meanwhile.
            watched.retain(|weak| weak.upgrade().is_some_and(|watched| watched.look()));
            let mut watchdog = Self::get();
            watchdog.watched.append(&mut watched);
            if watchdog.watched.is_empty() {
                watchdog.is_running = false;
                return;
            }
        }
    }
}
