//! The one way to Tokio's blocking pool, and the way in from where there is no Tokio.

use std::io;

/// Runs `work`, which is short, on the blocking pool.
///
/// A caller that goes away does not stop work that has begun: what it returns is then dropped on the pool's thread,
/// so it must clean up after itself. Fails only if the runtime shuts down before the work begins.
#[expect(clippy::disallowed_methods, reason = "this is the one file that may call spawn_blocking")]
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Ok(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(io::Error::other("the Tokio runtime is shutting down")),
        },
    }
}

/// Runs `future` on this thread, in a runtime of its own.
///
/// # Panics
/// Inside an asynchronous context.
pub(crate) fn outside_runtime<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}
