//! The guard: the lock as long as it lives.

use std::future::{Future, pending};
use std::mem;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{LockError, LostReason};
use crate::kind::LockKind;
use crate::lock::LockFile;
use crate::protocol::Held;
use crate::registry::Turn;
use crate::trace;
use crate::wait;

/// A held lock. Dropping it releases the lock.
///
/// Bind it to a name: `let _ = lock.obtain().await?;` releases at once, `let _guard = …` at the end of the scope.
/// It may be dropped anywhere, also outside a runtime and on another thread. Dropping it in a forked child closes the
/// child's descriptor and leaves the parent's lock alone.
#[must_use = "the lock is released as soon as the guard is dropped"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct LockGuard {
    /// `None` only between the end of the lock and the end of the guard.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    lock: LockFile,
    turn: Turn,
    since: Instant,
    tenure: Tenure,
    /// Whether the loss of the lock has been logged.
    is_loss_told: AtomicBool,
}

/// The lock as the process holds it, for one task after another.
#[derive(Debug)]
struct Tenure {
    held: Held,
    /// When we last saw that the file is in its place and that we are not a forked child.
    verified: Instant,
}

/// A held lock on its way to the next task of this process.
#[derive(Debug)]
pub(crate) struct Parcel {
    lock: LockFile,
    tenure: Tenure,
    left_at: Instant,
}

/// Removing a file, or forking, takes longer: in so short a hold nothing has happened to the lock that its holder knows of.
const INSTANTLY: Duration = Duration::from_micros(2);

/// How long ago the lock may have been verified when it is passed on after so short a hold.
const RECENTLY: Duration = Duration::from_micros(20);

impl LockGuard {
    /// For the task that calls this; it has waited since `started`.
    pub(crate) fn new(
        lock: LockFile,
        mut turn: Turn,
        held: Held,
        taken_over: Option<u32>,
        started: tokio::time::Instant,
    ) -> Self {
        match taken_over {
            Some(pid) => trace::taken_over(lock.target(), pid, started),
            None => trace::acquired(lock.target(), started),
        }
        let now = Instant::now();
        turn.set_held(now);
        turn.spell().gain(now);
        let tenure = Tenure { held, verified: now };
        Self::with(lock, turn, now, tenure)
    }

    /// Takes over what another task of this process has left for the one that has waited since `started`. Answers the
    /// turn if the lock has been lost.
    pub(crate) fn receive(
        lock: &LockFile,
        turn: Turn,
        mut parcel: Parcel,
        started: tokio::time::Instant,
    ) -> Result<Self, Turn> {
        // Whoever removes the file and then asks for the lock must not be given the old one; nor must a handle whose path
        // has come to lead elsewhere than that of the handle through which the lock was taken.
        let is_verified =
            parcel.tenure.verified >= started.into_std() && parcel.lock.target().path == lock.target().path;
        if !is_verified && !parcel.tenure.verify(lock) {
            parcel.release();
            return Err(turn);
        }
        trace::acquired(lock.target(), started);
        let now = Instant::now();
        turn.set_held(now);
        Ok(Self::with(lock.clone(), turn, now, parcel.tenure))
    }

    fn with(lock: LockFile, turn: Turn, since: Instant, tenure: Tenure) -> Self {
        Self { inner: Some(Inner { lock, turn, since, tenure, is_loss_told: AtomicBool::new(false) }) }
    }

    /// Releases the lock and reports what a drop could only log.
    ///
    /// # Errors
    /// [`LockError::Lost`] if the lock file was removed or replaced while the lock was held; what stands there now is
    /// left alone. [`LockError::Io`] if a system call failed. Either way the lock is given up.
    ///
    /// # Cancel safety
    /// Once polled, the lock is released, whether or not the answer is awaited; dropping the future before that drops
    /// the guard, which releases too.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::{LockError, LockFile};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// let guard = LockFile::new(&path)?.obtain().await?;
    /// std::fs::remove_file(&path)?; // somebody else's doing, as a rule
    /// assert!(matches!(guard.release().await, Err(LockError::Lost { .. })));
    /// # Ok(()) }
    /// ```
    pub async fn release(mut self) -> Result<(), LockError> {
        match self.inner.take() {
            Some(inner) => inner.release(Listener::Caller),
            None => unreachable!("only this and drop take it, and both end the guard"),
        }
    }

    /// Resolves when the lock is no longer ours because its file was removed or replaced; never otherwise.
    ///
    /// The guard still has to be dropped or released then.
    ///
    /// # Cancel safety
    /// Cancel safe: it only looks.
    ///
    /// # Panics
    /// When polled outside a Tokio runtime with time enabled.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// # let mut next_job = async || Some(());
    /// # let mut left = 3;
    /// let guard = LockFile::new(&path)?.obtain().await?;
    /// loop {
    ///     tokio::select! {
    ///         Some(()) = next_job() => { /* … */ }
    ///         reason = guard.lost() => return Err(format!("stopped: {reason}").into()),
    ///     }
    ///     # left -= 1;
    ///     # if left == 0 { break }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn lost(&self) -> LostReason {
        let inner = self.inner();
        let Some((file, identity)) = inner.tenure.held.file() else {
            return pending().await;
        };
        let reason = wait::lost(&inner.lock, file, identity).await;
        inner.tell_loss(reason);
        reason
    }

    /// Whether the lock is ours at this moment: one look at the path, no wait.
    pub fn is_held(&self) -> bool {
        let Inner { lock, tenure, .. } = self.inner();
        !tenure.is_lost(lock)
    }

    /// Runs `work` under the lock, then releases the lock.
    ///
    /// If the lock is lost first, `work` is dropped where it awaits, and the answer is [`LockError::Lost`].
    ///
    /// # Errors
    /// As [`release`](Self::release): also if the loss is only found after `work` is done.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`, then releases the lock.
    ///
    /// # Panics
    /// As [`lost`](Self::lost), and when `work` panics; the lock is released then.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// let guard = LockFile::new(&path)?.obtain().await?;
    /// let rows = guard.run(async { /* migrate the database */ 42 }).await?;
    /// assert_eq!(rows, 42);
    /// # Ok(()) }
    /// ```
    pub async fn run<F: Future>(self, work: F) -> Result<F::Output, LockError> {
        let output = {
            let work = pin!(work);
            tokio::select! {
                // The work first: when it is done at once, nobody needs to watch the file.
                biased;
                output = work => Some(output),
                _ = self.lost() => None,
            }
        };
        let path = self.inner().lock.target().path.clone();
        let released = self.release().await;
        match output {
            Some(output) => released.map(|()| output),
            // If the file came back in the meantime, the work was stopped all the same.
            None => Err(released.err().unwrap_or_else(|| LockError::lost(&path, LostReason::Replaced))),
        }
    }

    /// The lock file; `None` for a null lock.
    pub fn path(&self) -> Option<&Path> {
        self.inner().lock.path()
    }

    fn inner(&self) -> &Inner {
        self.inner.as_ref().expect("present until the guard ends")
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            let _ = inner.release(Listener::Log);
        }
    }
}

/// Who wants to know how a release went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Caller,
    Log,
}

impl Inner {
    fn release(self, listener: Listener) -> Result<(), LockError> {
        match self.hand_over() {
            Ok(()) => Ok(()),
            Err(inner) => inner.give_back(listener),
        }
    }

    /// Leaves the lock to the next task of this process, if there is one, the lock is in order, and other processes
    /// have had their chance lately.
    fn hand_over(mut self) -> Result<(), Self> {
        let slot = self.lock.slot();
        if !slot.handover().somebody_waits() {
            return Err(self);
        }
        let now = Instant::now();
        // A null lock keeps no other process waiting.
        if self.lock.kind() != LockKind::Null && self.turn.spell().is_spent(now) {
            return Err(self);
        }
        let is_verified = now - self.since < INSTANTLY && now - self.tenure.verified < RECENTLY;
        if !is_verified && !self.tenure.verify(&self.lock) {
            return Err(self);
        }
        let slot = Arc::clone(slot);
        let Self { lock, turn, since, tenure, .. } = self;
        turn.set_free();
        trace::released(lock.target(), since);
        if let Some((parcel, turn)) = slot.pass(Parcel { lock, tenure, left_at: now }, turn) {
            parcel.release();
            drop(turn);
        }
        Ok(())
    }

    /// Logs the loss, unless that has been done.
    fn tell_loss(&self, reason: LostReason) {
        if !self.is_loss_told.swap(true, Ordering::Relaxed) {
            trace::lost(self.lock.target(), reason);
        }
    }

    /// Releases the lock in the system.
    fn give_back(self, listener: Listener) -> Result<(), LockError> {
        let Self { lock, mut turn, since, tenure, is_loss_told } = self;
        if !tenure.held.is_ours() {
            // Another thread of the parent may have had any mutex at the fork, so nothing that takes one may run here.
            mem::forget((lock, turn));
            return Ok(());
        }
        let target = lock.target();
        let result = match listener == Listener::Caller || trace::warnings_are_heard() {
            true => tenure.held.release(target),
            // The look whether it was lost would be for nobody.
            false => {
                drop(tenure);
                Ok(())
            }
        };
        turn.spell().leave(Instant::now());
        turn.set_free();
        match &result {
            Ok(()) => trace::released(target, since),
            Err(LockError::Lost { .. }) if is_loss_told.into_inner() => {}
            Err(LockError::Lost { reason, .. }) => trace::lost(target, *reason),
            Err(error) => trace::release_failed(target, error),
        }
        result
    }
}

impl Tenure {
    fn is_lost(&self, lock: &LockFile) -> bool {
        self.held.file().is_some_and(|(_, identity)| identity.check(&lock.target().path).is_err())
    }

    /// Whether the lock may be passed on.
    fn verify(&mut self, lock: &LockFile) -> bool {
        let now = Instant::now();
        let is_in_order = self.held.is_ours() && !self.is_lost(lock);
        if is_in_order {
            self.verified = now;
        }
        is_in_order
    }
}

impl Parcel {
    /// When it was left for the next task.
    pub(crate) fn left_at(&self) -> Instant {
        self.left_at
    }

    /// Releases the lock in the system, as nobody takes it. Its guard has been told that all is well, and it was.
    pub(crate) fn release(self) {
        if !self.tenure.held.is_ours() {
            return;
        }
        match self.tenure.held.release(self.lock.target()) {
            Ok(()) => {}
            Err(LockError::Lost { reason, .. }) => trace::lost(self.lock.target(), reason),
            Err(error) => trace::release_failed(self.lock.target(), &error),
        }
    }
}

#[cfg(all(test, unix, not(loom)))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_that_was_lost_before_it_was_asked_for_is_not_received() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let lock = LockFile::flock(&path).unwrap();
        let pass = |mut guard: LockGuard| {
            let Inner { lock, turn, tenure, .. } = guard.inner.take().unwrap();
            (turn, Parcel { lock, tenure, left_at: Instant::now() })
        };
        let (turn, parcel) = pass(lock.obtain().await.unwrap());
        let asked_at = tokio::time::Instant::now();
        let (turn, parcel) = pass(LockGuard::receive(&lock, turn, parcel, asked_at).expect("it is in order"));
        std::fs::remove_file(&path).unwrap();
        let asked_at = tokio::time::Instant::now();
        assert!(LockGuard::receive(&lock, turn, parcel, asked_at).is_err());
    }
}
