//! Runs a task in only one process at a time. The other processes wait, and one of them takes over.

use std::any::Any;
use std::fmt::{self, Display};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::Instant;

use crate::guard::LockGuard;
use crate::leadership::Leadership;
use crate::lock::LockFile;
use crate::process::acquire::LONGEST_RELEASE;
use crate::sys::process::Owner;
use crate::util::backoff::Backoff;
use crate::util::timer::sleep;
use crate::words::error::LockError;
use crate::words::target::Target;
use crate::words::trace;

/// What a [`Singleton`] does when its work fails or panics, or its lock fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Restart {
    /// Releases the lock so that another process can take it, pauses, and waits for the lock again.
    #[default]
    OnFailure,
    /// Ends, and passes the failure to the caller. A loss or any other error of the lock is a failure too.
    Never,
}

/// Why [`Singleton::run`] ended without a result.
///
/// Its text includes the cause. [`Debug`](fmt::Debug) shows the same text for an error of the lock. For an error of the
/// work, it shows the `Debug` text of that error. A `main` that returns an error prints its `Debug` text.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SingletonError<E> {
    /// The lock cannot work, or it failed and the restart policy is [`Restart::Never`].
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The work failed, and the restart policy is [`Restart::Never`].
    #[error("the work under the lock failed: {0:#}")]
    Work(E),
}

impl<E: fmt::Debug> fmt::Debug for SingletonError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(error) => fmt::Display::fmt(error, f),
            Self::Work(error) => write!(f, "the work under the lock failed: {error:?}"),
        }
    }
}

/// Runs a service with many replicas, of which only one works at a time. Each replica waits for the lock and works
/// while it holds the lock. When it loses the lock, or the work or the lock fails, it waits for the lock again.
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
    leadership: Leadership,
}

/// How the work under one acquisition of the lock ended.
enum Ended<T, E> {
    Done(T),
    /// With the failure of the work if it failed on the way out.
    ShutDown(Option<Failure<E>>),
    SteppedDown,
    Failed(Failure<E>),
}

impl<T, E> Ended<T, E> {
    /// The same for work that has failed in the end.
    fn but_failed(self, failure: Failure<E>) -> Self {
        match self {
            Self::ShutDown(_) => Self::ShutDown(Some(failure)),
            _ => Self::Failed(failure),
        }
    }

    /// Why this process steps down; `None` if the lock was lost, which is told already.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Done(_) => Some("the work is done"),
            Self::ShutDown(_) => Some("shutting down"),
            Self::SteppedDown => Some("asked to"),
            Self::Failed(Failure::Loss(_)) => None,
            Self::Failed(_) => Some("the work failed"),
        }
    }
}

/// Says that this process steps down, also where the future of [`Singleton::run`] is dropped.
struct Farewell<'a> {
    target: &'a Target,
    began: Instant,
    reason: Option<&'static str>,
    owner: Owner,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        // In a forked child, another thread of the parent may have had a mutex of the subscriber.
        if let Some(reason) = self.reason.filter(|_| self.owner.is_this_process()) {
            trace::stepped_down(self.target, self.began.elapsed(), reason);
        }
    }
}

/// What is passed to the caller, or makes this process pause and stand by again.
enum Failure<E> {
    /// The lock could not be obtained.
    Lock(LockError),
    /// The lock was lost. The log tells that already.
    Loss(LockError),
    Work(E),
    Panic(Box<dyn Any + Send>),
}

impl Singleton {
    /// Makes a singleton whose work runs under `lock`.
    pub fn new(lock: LockFile) -> Self {
        Self {
            lock,
            restart: Restart::default(),
            pause: (Duration::from_secs(1), Duration::from_secs(60)),
            grace: Duration::ZERO,
            leadership: Leadership::new(),
        }
    }

    /// Sets what happens when the work fails or panics, or the lock fails. The default is [`Restart::OnFailure`].
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

    /// Sets how long the work may continue after the shutdown signal or a [`step_down`](Leadership::step_down), so that it
    /// can end by itself. After that time, the work is dropped at its current `await`. The default is zero.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Makes a handle that shows whether this process leads, and that can make it step down. Clones of this singleton
    /// share their leadership.
    pub fn leadership(&self) -> Leadership {
        self.leadership.handle()
    }

    /// Obtains the lock and runs the future that `work` returns. It repeats this until the work succeeds. `Some` is the
    /// result of the work. `None` means that `shutdown` resolved first. `shutdown` may have any output, so
    /// `tokio::signal::ctrl_c()` fits.
    ///
    /// The work runs in this task. When the lock is lost, or when the time of [`grace`](Self::grace) after the shutdown
    /// signal is over, the work is dropped at its current `await`. Only then the lock is released. The destructors of
    /// the work must stop everything that the work has spawned as another task or with `spawn_blocking`. A file
    /// system may hang, and the release with it. Then this ends 5 s after the shutdown signal, or 5 s after the work has
    /// ended if that is later, and the release goes on by itself.
    ///
    /// The lock may fail for a time: its directory is missing, the disk is full, a server is away. The log says so, and
    /// after a [`pause`](Self::pause) this process stands by again, as after a failure of the work. The work runs again
    /// also if it succeeded but the lock was lost before it was released. Any other failure of the release is only logged.
    ///
    /// # Errors
    /// - [`SingletonError::Lock`] if the lock cannot work: [`InvalidUrl`](LockError::InvalidUrl),
    ///   [`InvalidPath`](LockError::InvalidPath), [`Unsupported`](LockError::Unsupported) and
    ///   [`NotALockFile`](LockError::NotALockFile). If the lock has worked before in this run, these errors do not end
    ///   the run, because the lock may work again, for example after a failover. With [`Restart::Never`], every error
    ///   of the lock and its loss end the run.
    /// - [`SingletonError::Work`] if the work fails and the restart policy is [`Restart::Never`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and then releases the lock.
    ///
    /// # Panics
    /// This panics if it is polled outside a Tokio runtime with time enabled. With [`Restart::Never`], it also panics
    /// when the work panics, after it has released the lock.
    ///
    /// # Examples
    /// ```no_run
    /// # use tokio_lockfile::{LockFile, Singleton};
    /// # async fn lead() -> Result<(), std::io::Error> { Ok(()) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let leader = Singleton::new(LockFile::new("/run/app/leader.lock")?);
    /// leader.run(lead, tokio::signal::ctrl_c()).await?;
    /// # Ok(()) }
    /// ```
    pub async fn run<W, F, T, E>(&self, mut work: W, shutdown: impl Future) -> Result<Option<T>, SingletonError<E>>
    where
        W: FnMut() -> F,
        F: Future<Output = Result<T, E>>,
        E: Display,
    {
        let mut shutdown = pin!(repeatedly(shutdown));
        let mut backoff = Backoff::new(self.pause);
        let mut has_worked = false;
        loop {
            let mut began = Instant::now();
            let obtained = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(None),
                obtained = self.stand_by(&mut has_worked) => obtained,
            };
            let ended = match obtained {
                Ok(guard) => {
                    began = Instant::now();
                    self.lead(guard, async { work().await }, shutdown.as_mut()).await
                }
                Err(error) => {
                    self.leadership.note(Err(&error));
                    Ended::Failed(Failure::Lock(error))
                }
            };
            let is_fresh = match ended {
                Ended::Done(result) => return Ok(Some(result)),
                Ended::ShutDown(failure) => {
                    failure.map_or(Ok(()), |failure| self.endure(failure, began.elapsed(), has_worked, false))?;
                    return Ok(None);
                }
                Ended::SteppedDown => true,
                Ended::Failed(failure) => {
                    self.endure(failure, began.elapsed(), has_worked, true)?;
                    began.elapsed() >= self.pause.1
                }
            };
            if is_fresh {
                backoff = Backoff::new(self.pause);
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(None),
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// Obtains the lock, however long that takes. `has_worked` becomes true when the lock has answered once, held or free.
    async fn stand_by(&self, has_worked: &mut bool) -> Result<LockGuard, LockError> {
        let began = Instant::now();
        let attempted = self.lock.attempt().await?;
        *has_worked = true;
        self.leadership.note(Ok(()));
        let guard = match attempted {
            Some(guard) => guard,
            None => {
                trace::stands_by(self.lock.target());
                self.lock.obtain().await?
            }
        };
        trace::leads(self.lock.target(), began.elapsed());
        Ok(guard)
    }

    /// Runs the work until it ends or must end, and releases the lock.
    async fn lead<T, E>(
        &self,
        guard: LockGuard,
        work: impl Future<Output = Result<T, E>>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Ended<T, E> {
        // Dropped last: it speaks when the lock is released.
        let mut farewell = Farewell {
            target: self.lock.target(),
            began: Instant::now(),
            reason: Some("its future was dropped"),
            owner: Owner::this_process(),
        };
        let ended = {
            let mut work = pin!(Some(catch_panic(work)));
            let ended = self.supervise(work.as_mut().as_pin_mut().expect("just made"), &guard, shutdown.as_mut());
            let ended = ended.await;
            // The destructors of the work may panic too.
            match catch_unwind(AssertUnwindSafe(|| work.set(None))) {
                Ok(()) => ended,
                Err(panic) => ended.but_failed(Failure::Panic(panic)),
            }
        };
        let ended = match (self.release(guard, shutdown).await, ended) {
            // A result counts only if we held the lock to the end. Any other failure of the release is only logged.
            (Err(error @ LockError::Lost { .. }), Ended::Done(_)) => Ended::Failed(Failure::Loss(error)),
            (_, ended) => ended,
        };
        farewell.reason = ended.reason();
        ended
    }

    /// Releases the lock. After the shutdown signal, this returns soon also where the file system hangs. Then the release
    /// goes on by itself.
    async fn release(&self, guard: LockGuard, shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<(), LockError> {
        let hangs = async {
            shutdown.await;
            sleep(LONGEST_RELEASE).await;
        };
        tokio::select! {
            biased;
            released = guard.release() => released,
            () = hangs => {
                let error = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
                let error = self.lock.target().failed("release", error);
                trace::not_released(self.lock.target(), &error, None);
                Err(error)
            }
        }
    }

    /// Polls the work until it ends or must end. This process leads meanwhile.
    async fn supervise<T, E>(
        &self,
        work: Pin<&mut impl Future<Output = Result<Result<T, E>, Box<dyn Any + Send>>>>,
        guard: &LockGuard,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Ended<T, E> {
        let term = self.leadership.begin(guard.fencing_token());
        // Work that is always busy uses up the budget of this task. The signals must reach it all the same.
        let is_shutting_down = AtomicBool::new(false);
        let told_to_end = unconstrained(async {
            let ended = tokio::select! {
                biased;
                () = shutdown => Ended::ShutDown(None),
                () = term.asked_to_step_down() => Ended::SteppedDown,
            };
            is_shutting_down.store(matches!(ended, Ended::ShutDown(_)), Ordering::Relaxed);
            sleep(self.grace).await;
            ended
        });
        let failed = |failure| match is_shutting_down.load(Ordering::Relaxed) {
            true => Ended::ShutDown(Some(failure)),
            false => Ended::Failed(failure),
        };
        tokio::select! {
            biased;
            done = guard.while_held(work) => match done {
                Ok(Ok(Ok(result))) => Ended::Done(result),
                Ok(Ok(Err(_))) if term.is_asked_to_step_down() => Ended::SteppedDown,
                Ok(Ok(Err(error))) => failed(Failure::Work(error)),
                Ok(Err(panic)) => failed(Failure::Panic(panic)),
                Err(reason) => Ended::Failed(Failure::Loss(self.lock.target().lost(reason))),
            },
            ended = told_to_end => ended,
        }
    }

    /// Logs a failure, unless it ends the singleton. `lasted`: how long the work had run. `has_worked`: whether the lock
    /// has answered before. `goes_on`: whether this process will stand by again.
    fn endure<E: Display>(
        &self,
        failure: Failure<E>,
        lasted: Duration,
        has_worked: bool,
        goes_on: bool,
    ) -> Result<(), SingletonError<E>> {
        let (target, ends) = (self.lock.target(), self.restart == Restart::Never);
        match failure {
            Failure::Lock(error) | Failure::Loss(error) if ends || !(has_worked || can_pass(&error)) => {
                return Err(error.into());
            }
            Failure::Work(error) if ends => return Err(SingletonError::Work(error)),
            Failure::Panic(panic) if ends => resume_unwind(panic),
            Failure::Lock(error) => trace::lock_failed(target, &error),
            Failure::Loss(_) => {}
            Failure::Work(error) => trace::work_failed(target, lasted, &error, goes_on),
            Failure::Panic(_) => trace::work_failed(target, lasted, &"it panicked", goes_on),
        }
        Ok(())
    }
}

/// Whether a lock that has never worked may work later.
fn can_pass(error: &LockError) -> bool {
    let is_permanent = matches!(
        error,
        LockError::InvalidUrl { .. }
            | LockError::InvalidPath { .. }
            | LockError::Unsupported { .. }
            | LockError::NotALockFile { .. }
    );
    !is_permanent
}

/// Returns a future for the same signal that may be awaited again after the signal has arrived.
fn repeatedly(signal: impl Future) -> impl Future<Output = ()> {
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
