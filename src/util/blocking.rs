//! The only way to Tokio's blocking pool, and the way into Tokio for code that runs outside a runtime.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// Runs `work`, which is short, on the blocking pool.
///
/// Work that has begun goes on when its caller goes away. Its result is then dropped on the pool's thread, so the
/// result's drop must clean up. Fails only if the runtime shuts down before the work begins.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    run_and_tidy_up(|| (work(), ())).await
}

/// As [`run`]. `work` also returns what is left to be dropped. The pool's thread drops that while the caller goes on.
#[expect(clippy::disallowed_methods, reason = "this is the one file that may call spawn_blocking")]
pub(crate) async fn run_and_tidy_up<T: Send + 'static, Rest>(
    work: impl FnOnce() -> (T, Rest) + Send + 'static,
) -> io::Result<T> {
    let (sender, answer) = oneshot::channel();
    let job = tokio::task::spawn_blocking(move || {
        let (value, rest) = work();
        // If nobody waits for the value any more, it is dropped here.
        drop(sender.send(value));
        drop(rest);
    });
    match answer.await {
        Ok(value) => Ok(value),
        Err(_) => match job.await.map_err(tokio::task::JoinError::try_into_panic) {
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            _ => Err(io::Error::other("the Tokio runtime is shutting down")),
        },
    }
}

/// A pause of less than the millisecond in which Tokio's timers count.
pub(crate) async fn short_pause(pause: Duration) -> io::Result<()> {
    // All threads of the pool may be busy for long. Then the pause ends by the timer.
    let paused = timeout(Duration::from_millis(1), run(move || std::thread::sleep(pause))).await;
    paused.unwrap_or(Ok(()))
}

/// Runs `future` on this thread, in a runtime of its own.
///
/// # Panics
/// Inside an asynchronous context.
pub(crate) fn outside_runtime<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}
