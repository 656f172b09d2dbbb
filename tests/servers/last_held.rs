//! Until when a lock was held, for the tests with every server.

use std::time::Duration;

use tokio_lockfile::LockGuard;

/// The last moment at which the lock was ours. It is read from the clock before the lock is asked, so a slow machine makes
/// it too early and never too late.
pub(crate) async fn last_held(guard: &LockGuard, now: fn() -> Duration) -> Duration {
    let mut last = now();
    loop {
        let asked = now();
        if !guard.is_held() {
            return last;
        }
        last = asked;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
