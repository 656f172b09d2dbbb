//! One task in one process at a time: stand by, work, and stand by again.

use std::any::Any;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::guard::LockGuard;
use crate::lock::LockFile;
use crate::util::backoff::Backoff;
use crate::words::error::LockError;
use crate::words::trace;

/// What a [`Singleton`] does when its work fails or panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Restart {
    /// Gives the lock to whoever waits for it, and stands by again after a pause.
    #[default]
    OnFailure,
    /// Ends, and hands the failure on.
    Never,
}

/// Why [`Singleton::run`] ended without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SingletonError<E> {
    /// The lock could not be obtained, or its loss was found only when the work was done.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The work failed, and was not to be restarted.
    #[error("the work under the lock failed: {0}")]
    Work(E),
}

/// A service with many replicas, of which one works. Each replica waits for the lock, works while it holds the lock, and
/// stands by again when the lock is lost or the work has failed.
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
    /// Works under `lock`.
    pub fn new(lock: LockFile) -> Self {
        Self {
            lock,
            restart: Restart::default(),
            pause: (Duration::from_secs(1), Duration::from_secs(60)),
            grace: Duration::ZERO,
        }
    }

    /// What to do when the work fails or panics; [`Restart::OnFailure`] if not given.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// The shortest and the longest pause before it stands by again after a failure or a loss; they double, with
    /// jitter, until the work has gone well for as long as the longest. 1 s and 60 s if not given.
    pub fn pause(mut self, shortest: Duration, longest: Duration) -> Self {
        self.pause = (shortest, longest.max(shortest));
        self
    }

    /// How long the work may go on after the shutdown signal, to come to an end of its own; then it is dropped where it
    /// awaits. Zero if not given.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Obtains the lock and runs what `work` makes, as often as it takes. `Some` is the work's result, `None` means that
    /// `shutdown` resolved first.
    ///
    /// The work runs in this task. When the lock is lost, or the shutdown's grace is over, the work is dropped where it
    /// awaits, and only then the lock is released. What the work has spawned elsewhere, or runs in `spawn_blocking`,
    /// must be stopped by the work's own destructors.
    ///
    /// # Errors
    /// [`SingletonError::Lock`] if the lock cannot be obtained for another reason than that it is held, or if its loss is
    /// found only at the end of the work; [`SingletonError::Work`] if the work fails, with
    /// [`Restart::Never`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the work, then releases the lock.
    ///
    /// # Panics
    /// When polled outside a Tokio runtime with time enabled, and, with [`Restart::Never`], when the work panics; the
    /// lock is released then.
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
        // A result counts only if the lock was ours to the end. Other failures of the release are in the log.
        match (guard.release().await, &ended) {
            (Err(error), Ended::Done(_)) => Err(error),
            _ => Ok(ended),
        }
    }
}

/// The same signal. It may be awaited again after it has come.
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
