//! Runs a task in only one process at a time. The other processes wait, and one of them takes over.

use std::any::Any;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::guard::LockGuard;
use crate::lock::LockFile;
use crate::util::backoff::Backoff;
use crate::util::timer::sleep;
use crate::words::error::LockError;
use crate::words::trace;

/// What a [`Singleton`] does when its work fails or panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Restart {
    /// Releases the lock so that another process can take it, pauses, and waits for the lock again.
    #[default]
    OnFailure,
    /// Ends, and passes the failure to the caller.
    Never,
}

/// Why [`Singleton::run`] ended without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SingletonError<E> {
    /// The lock could not be obtained, or its loss was found only after the work was done.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The work failed, and the restart policy is [`Restart::Never`].
    #[error("the work under the lock failed: {0}")]
    Work(E),
}

/// Runs a service with many replicas, of which only one works at a time. Each replica waits for the lock and works
/// while it holds the lock. When it loses the lock or the work fails, it waits for the lock again.
///
/// ```
/// use std::time::Duration;
/// use tokio_lockfile::{LockFile, Singleton};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("leader.lock");
/// let leader = Singleton::new(LockFile::new(&path)?).pause(Duration::from_secs(1), Duration::from_secs(30));
/// let shutdown = tokio::time::sleep(Duration::from_millis(20)); // such as token.cancelled()
/// let result = leader.run(|| lead(), shutdown).await?;
/// assert_eq!(result, None); // it was shut down
/// # Ok(()) }
/// #
/// async fn lead() -> Result<(), std::io::Error> {
///     loop {
///         tokio::time::sleep(Duration::from_secs(60)).await;
///     }
/// }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens until run"]
pub struct Singleton {
    lock: LockFile,
    restart: Restart,
    pause: (Duration, Duration),
    grace: Duration,
}

/// How the work under one acquisition of the lock ended.
enum Ended<T, E> {
    Done(T),
    Failed(E),
    Panicked(Box<dyn Any + Send>),
    Lost,
    ShutDown,
}

impl Singleton {
    /// Makes a singleton whose work runs under `lock`.
    pub fn new(lock: LockFile) -> Self {
        Self {
            lock,
            restart: Restart::default(),
            pause: (Duration::from_secs(1), Duration::from_secs(60)),
            grace: Duration::ZERO,
        }
    }

    /// Sets what happens when the work fails or panics. The default is [`Restart::OnFailure`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// Sets the shortest and the longest pause after a failure or a loss of the lock. After the pause, this process
    /// waits for the lock again. The pauses double, with jitter. When the work has run for as long as the longest
    /// pause, they start again with the shortest. The defaults are 1 s and 60 s.
    pub fn pause(mut self, shortest: Duration, longest: Duration) -> Self {
        self.pause = (shortest, longest.max(shortest));
        self
    }

    /// Sets how long the work may continue after the shutdown signal, so that it can end by itself. After that time,
    /// the work is dropped at its current `await`. The default is zero.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Obtains the lock and runs the future that `work` returns. It repeats this until the work succeeds. `Some` is the
    /// result of the work. `None` means that `shutdown` resolved first.
    ///
    /// The work runs in this task. When the lock is lost, or when the time of [`grace`](Self::grace) after the shutdown
    /// signal is over, the work is dropped at its current `await`. Only then the lock is released. The destructors of
    /// the work must stop everything that the work has spawned as another task or with `spawn_blocking`.
    ///
    /// # Errors
    /// - [`SingletonError::Lock`] if the lock cannot be obtained for any reason except that it is held, or if its loss
    ///   is found only at the end of the work.
    /// - [`SingletonError::Work`] if the work fails and the restart policy is [`Restart::Never`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and then releases the lock.
    ///
    /// # Panics
    /// This panics if it is polled outside a Tokio runtime with time enabled. With [`Restart::Never`], it also panics
    /// when the work panics. Then the lock is released.
    pub async fn run<W, F, T, E>(
        &self,
        mut work: W,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Option<T>, SingletonError<E>>
    where
        W: FnMut() -> F,
        F: Future<Output = Result<T, E>>,
        E: Display,
    {
        let mut shutdown = pin!(repeatedly(shutdown));
        let mut backoff = Backoff::new(self.pause);
        loop {
            let guard = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(None),
                guard = self.lock.obtain() => guard?,
            };
            let began = Instant::now();
            match self.serve(guard, async { work().await }, shutdown.as_mut()).await? {
                Ended::Done(result) => return Ok(Some(result)),
                Ended::ShutDown => return Ok(None),
                Ended::Lost => {}
                Ended::Failed(error) if self.restart == Restart::Never => return Err(SingletonError::Work(error)),
                Ended::Panicked(panic) if self.restart == Restart::Never => resume_unwind(panic),
                Ended::Failed(error) => trace::work_failed(self.lock.target(), &error),
                Ended::Panicked(_) => trace::work_failed(self.lock.target(), &"it panicked"),
            }
            if began.elapsed() >= self.pause.1 {
                backoff = Backoff::new(self.pause);
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(None),
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// Runs the work until it ends or must end, and releases the lock.
    async fn serve<T, E>(
        &self,
        guard: LockGuard,
        work: impl Future<Output = Result<T, E>>,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Ended<T, E>, LockError> {
        let ended = {
            let work = pin!(catch_panic(work));
            let end_of_grace = async {
                shutdown.await;
                sleep(self.grace).await;
            };
            tokio::select! {
                biased;
                done = work => match done {
                    Ok(Ok(result)) => Ended::Done(result),
                    Ok(Err(error)) => Ended::Failed(error),
                    Err(panic) => Ended::Panicked(panic),
                },
                _ = guard.lost() => Ended::Lost,
                () = end_of_grace => Ended::ShutDown,
            }
        };
        // A result counts only if we held the lock to the end. After any other end, a failed release is only logged.
        match (guard.release().await, &ended) {
            (Err(error), Ended::Done(_)) => Err(error),
            _ => Ok(ended),
        }
    }
}

/// Returns a future for the same signal that may be awaited again after the signal has arrived.
fn repeatedly(signal: impl Future<Output = ()>) -> impl Future<Output = ()> {
    let mut signal = Some(Box::pin(signal));
    poll_fn(move |context| {
        let has_come = signal.as_mut().is_none_or(|signal| signal.as_mut().poll(context).is_ready());
        if has_come {
            signal = None;
            return Poll::Ready(());
        }
        Poll::Pending
    })
}

async fn catch_panic<F: Future>(work: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
