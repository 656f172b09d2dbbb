//! A lock with several permits, made of several locks.

use std::fmt;
use std::future::poll_fn;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::guard::LockGuard;
use crate::lock::LockFile;
use crate::process::{limit, report};
use crate::sys::per_process::PerProcess;
use crate::util::timer::{sleep, timeout};
use crate::util::{blocking, random};
use crate::words::error::LockError;

/// How long a lock has for its answer before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(20);

/// How long the locks without an answer have when all have been tried.
const PATIENCE: Duration = Duration::from_secs(1);

/// At most N holders at a time, among all processes. Each of its N permits is a lock, of any kind.
///
/// All processes must use the same locks. A holder that dies gives its permit back, as it does with a single lock. Clones
/// are cheap, and their tasks are in one queue.
///
/// ```
/// use tokio_lockfile::Semaphore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("encode.lock");
/// // At most three encoders on this host: encode.lock.0, encode.lock.1 and encode.lock.2.
/// let encoders = Semaphore::numbered(&path, 3)?;
/// let guard = encoders.obtain().await?;
/// guard.run(async { /* encode */ }).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Semaphore {
    locks: Arc<[LockFile]>,
    queue: Arc<PerProcess<Queue>>,
}

/// The tasks of this process that want a permit. Only the first of them tries, so this process takes no second permit that
/// it does not need.
#[derive(Default)]
struct Queue {
    turn: Mutex<()>,
    /// How many tasks wait for the turn, or have it and wait for a permit.
    waiting: AtomicUsize,
}

struct Waiting<'a>(&'a Queue);

impl<'a> Waiting<'a> {
    fn begin(queue: &'a Queue) -> Self {
        queue.waiting.fetch_add(1, Ordering::AcqRel);
        Self(queue)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Semaphore {
    /// Makes a semaphore. Each of the locks is one permit. A lock that is given twice counts once.
    ///
    /// Without any lock there is no permit: [`attempt`](Self::attempt) is always `None`, and [`obtain`](Self::obtain)
    /// waits for ever.
    pub fn new(locks: impl IntoIterator<Item = LockFile>) -> Self {
        let mut different = Vec::new();
        for lock in locks {
            if !different.contains(&lock) {
                different.push(lock);
            }
        }
        Self { locks: different.into(), queue: Arc::new(PerProcess::new()) }
    }

    /// Makes a semaphore with this number of permits. They are locks of the platform's default kind, at `path` with `.0`,
    /// `.1` and so on behind it.
    ///
    /// A process with a smaller number uses only the first ones. So a change of the number needs no restart of the
    /// other processes. Until then, the larger number is the limit.
    ///
    /// [`LockFileBuilder::numbered`](crate::LockFileBuilder::numbered) does the same with options. Locks of another kind go
    /// to [`new`](Self::new).
    ///
    /// # Errors
    /// The errors of [`LockFile::new`].
    pub fn numbered(path: impl AsRef<Path>, permits: usize) -> Result<Self, LockError> {
        LockFile::builder().numbered(path, permits)
    }

    /// The number of permits. It is the number of different locks, whoever holds them.
    pub fn permits(&self) -> usize {
        self.locks.len()
    }

    /// The locks. Each of them can tell who [holds](LockFile::holder) it.
    pub fn locks(&self) -> &[LockFile] {
        &self.locks
    }

    /// Tries once. `None` means that all permits are taken, or that another task of this process waits for one.
    ///
    /// # Errors
    /// The errors of [`LockFile::attempt`]. If one lock fails and the permit of another one is free, this returns that
    /// permit. It returns the error only if no permit is free. A lock that does not answer within a second counts as
    /// not free.
    ///
    /// [`LockError::Unsupported`] if one of the locks is [shared](LockFile::shared): it would let any number of holders in.
    ///
    /// # Cancel safety
    /// This is cancel safe, as [`LockFile::attempt`] is.
    ///
    /// # Panics
    /// This panics if it is polled outside a Tokio runtime with time enabled.
    #[doc(alias = "try_acquire")]
    #[must_use = "the guard in it is the permit; without it, the permit is given back at once"]
    pub async fn attempt(&self) -> Result<Option<LockGuard>, LockError> {
        self.refuse_shared()?;
        match self.queue().waiting.load(Ordering::Acquire) {
            0 => self.try_each(&AtomicBool::new(false)).await,
            _ => Ok(None),
        }
    }

    /// Waits for a permit. Tasks that use clones of this semaphore are served in the order of their first poll.
    ///
    /// # Errors
    /// The errors are the same as for [`attempt`](Self::attempt). One lock that fails ends the wait, unless a permit is
    /// free at once.
    ///
    /// # Cancel safety
    /// This is cancel safe. The task loses its place in the queue, and nothing stays taken.
    ///
    /// # Panics
    /// This panics under the same condition as [`attempt`](Self::attempt).
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio_lockfile::{LockFile, Semaphore};
    ///
    /// let permits = Semaphore::new([LockFile::null(), LockFile::null()]);
    /// let (first, second) = (permits.obtain().await?, permits.obtain().await?);
    /// assert!(permits.attempt().await?.is_none());
    /// drop(first);
    /// let third = permits.obtain().await?;
    /// # drop((second, third));
    /// # Ok(()) }
    /// ```
    #[doc(alias = "acquire")]
    pub async fn obtain(&self) -> Result<LockGuard, LockError> {
        self.refuse_shared()?;
        let is_reported = AtomicBool::new(false);
        let mut wait = Box::pin(self.obtain_in_turn(&is_reported));
        match self.locks.first() {
            Some(first) => report::during(first.lock(), &is_reported, wait.as_mut()).await,
            None => wait.await,
        }
    }

    async fn obtain_in_turn(&self, is_reported: &AtomicBool) -> Result<LockGuard, LockError> {
        let queue = self.queue();
        let (_turn, _in_queue);
        match queue.turn.try_lock() {
            Ok(turn) => _turn = turn,
            Err(_) => {
                _in_queue = Waiting::begin(queue);
                _turn = queue.turn.lock().await;
            }
        }
        // First one after the other: so a task takes only one of the permits that are free.
        if let Some(guard) = self.try_each(is_reported).await? {
            return Ok(guard);
        }
        let _waiting = Waiting::begin(queue);
        self.wait_for_any(is_reported).await
    }

    /// Waits for a permit for at most `limit`. With a zero limit, this tries once. With [`Duration::MAX`], it waits for
    /// ever.
    ///
    /// # Errors
    /// The errors of [`attempt`](Self::attempt), and [`LockError::TimedOut`]. It names the first of the locks, and its
    /// holder.
    ///
    /// # Cancel safety
    /// This is cancel safe in the same way as [`obtain`](Self::obtain).
    ///
    /// # Panics
    /// This panics under the same condition as [`attempt`](Self::attempt).
    pub async fn obtain_timeout(&self, limit: Duration) -> Result<LockGuard, LockError> {
        let Some(first) = self.locks.first() else {
            sleep(limit).await;
            return Err(LockFile::null().target().timed_out(limit, None, None));
        };
        match limit.is_zero() {
            true => match self.attempt().await? {
                Some(guard) => Ok(guard),
                None => Err(Box::pin(limit::held(first.lock())).await),
            },
            false => limit::within(limit, first.lock(), pin!(self.obtain())).await,
        }
    }

    /// Does the same as [`attempt`](Self::attempt) without a runtime, and also inside one, as
    /// [`LockFile::blocking_attempt`] does. It tries the locks one after the other.
    ///
    /// # Errors
    /// The errors are the same as for [`attempt`](Self::attempt).
    #[must_use = "the guard in it is the permit; without it, the permit is given back at once"]
    pub fn blocking_attempt(&self) -> Result<Option<LockGuard>, LockError> {
        self.refuse_shared()?;
        if self.queue().waiting.load(Ordering::Acquire) > 0 {
            return Ok(None);
        }
        let mut failed = None;
        for lock in self.rotated_at_random() {
            match lock.blocking_attempt() {
                Ok(None) => {}
                Ok(obtained) => return Ok(obtained),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Does the same as [`obtain`](Self::obtain) without a runtime.
    ///
    /// # Errors
    /// The errors are the same as for [`obtain`](Self::obtain).
    ///
    /// # Panics
    /// This panics under the same condition as [`LockFile::blocking_obtain`].
    #[track_caller]
    pub fn blocking_obtain(&self) -> Result<LockGuard, LockError> {
        self.outside_runtime(pin!(self.obtain()))
    }

    /// Does the same as [`obtain_timeout`](Self::obtain_timeout) without a runtime.
    ///
    /// # Errors
    /// The errors are the same as for [`obtain_timeout`](Self::obtain_timeout).
    ///
    /// # Panics
    /// This panics under the same condition as [`LockFile::blocking_obtain`].
    #[track_caller]
    pub fn blocking_obtain_timeout(&self, limit: Duration) -> Result<LockGuard, LockError> {
        self.outside_runtime(pin!(self.obtain_timeout(limit)))
    }

    #[track_caller]
    fn outside_runtime(
        &self,
        wait: Pin<&mut dyn Future<Output = Result<LockGuard, LockError>>>,
    ) -> Result<LockGuard, LockError> {
        blocking::outside_runtime(wait).map_err(|error| {
            let lock = self.locks.first().cloned().unwrap_or_else(LockFile::null);
            lock.target().failed("wait for", error)
        })?
    }

    fn queue(&self) -> &Queue {
        self.queue.get_or_init(Queue::default)
    }

    /// All locks, from a random one on: processes that begin at different locks seldom meet.
    fn rotated_at_random(&self) -> impl Iterator<Item = &LockFile> {
        let (before, first) = self.locks.split_at((random::fraction() * self.locks.len() as f64) as usize);
        first.iter().chain(before)
    }

    /// Tries each lock once, from a random one on. A lock that does not answer, because its file system or its server hangs,
    /// does not keep the others from being tried.
    async fn try_each(&self, is_reported: &AtomicBool) -> Result<Option<LockGuard>, LockError> {
        let mut next = self.rotated_at_random();
        let (mut trying, mut failed) = (Vec::new(), None);
        loop {
            let patience = match next.next() {
                Some(lock) => {
                    trying.push(Box::pin(lock.attempt_one_of(is_reported)));
                    STAGGER
                }
                None if trying.is_empty() => return failed.map_or(Ok(None), Err),
                None => PATIENCE,
            };
            let is_last = patience == PATIENCE;
            match timeout(patience, pin!(first_of(&mut trying))).await {
                Some(Ok(Some(guard))) => return Ok(Some(guard)),
                Some(Ok(None)) => {}
                Some(Err(error)) => failed = failed.or(Some(error)),
                // What has not answered is not free.
                None if is_last => return failed.map_or(Ok(None), Err),
                None => {}
            }
        }
    }

    /// Waits for all locks at once, until one of them is obtained. The waits for the others are dropped then. If one of
    /// them has just got its lock, its drop gives the lock back.
    async fn wait_for_any(&self, is_reported: &AtomicBool) -> Result<LockGuard, LockError> {
        first_of(&mut self.locks.iter().map(|lock| Box::pin(lock.obtain_one_of(is_reported))).collect()).await
    }

    /// A shared lock lets any number of holders in.
    fn refuse_shared(&self) -> Result<(), LockError> {
        let shared = self.locks.iter().find(|lock| lock.is_shared());
        shared.map_or(Ok(()), |lock| {
            let reason = "a shared lock limits nobody, so it is no permit of a semaphore; give it the exclusive handle";
            Err(lock.target().unsupported(reason))
        })
    }
}

/// The output of the first of the futures that is ready, which is taken out. Waits for ever if there is none.
async fn first_of<F: Future>(futures: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|context| {
        for at in 0..futures.len() {
            if let Poll::Ready(output) = futures[at].as_mut().poll(context) {
                drop(futures.swap_remove(at));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("locks", &self.locks).finish_non_exhaustive()
    }
}

// For the same reason as LockFile.
impl UnwindSafe for Semaphore {}
impl RefUnwindSafe for Semaphore {}
