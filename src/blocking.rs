//! The one way to Tokio's blocking pool, and the way in from where there is no Tokio.

use std::io;

use tokio::sync::oneshot;

/// Runs `work`, which is short, on the blocking pool.
///
/// A caller that goes away does not stop work that has begun: what it returns is then dropped on the pool's thread,
/// so it must clean up after itself. Fails only if the runtime shuts down before the work begins.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    run_and_tidy_up(|| (work(), ())).await
}

/// Runs `work`, which answers with what the caller waits for and with what is left to be dropped: on the pool's thread,
/// while the caller goes on.
#[expect(clippy::disallowed_methods, reason = "this is the one file that may call spawn_blocking")]
pub(crate) async fn run_and_tidy_up<T: Send + 'static, Rest>(
    work: impl FnOnce() -> (T, Rest) + Send + 'static,
) -> io::Result<T> {
    let (sender, answer) = oneshot::channel();
    let job = tokio::task::spawn_blocking(move || {
        let (value, rest) = work();
        // If nobody waits for it any more, it is dropped here.
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

/// Runs `future` on this thread, in a runtime of its own.
///
/// # Panics
/// Inside an asynchronous context.
pub(crate) fn outside_runtime<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}
