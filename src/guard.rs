//! The guard: the lock as long as it lives.

use std::future::{Future, pending};
use std::mem;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{LockError, LostReason};
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
}

/// The lock as the process holds it, for one task after another.
#[derive(Debug)]
struct Tenure {
    held: Held,
    /// When we last saw that the file is in its place and that we are not a forked child.
    verified: Instant,
    process: u32,
}

/// A held lock on its way to the next task of this process.
#[derive(Debug)]
pub(crate) struct Parcel {
    lock: LockFile,
    tenure: Tenure,
    left_at: Instant,
}

/// Removing a file, or forking, takes longer: what was true so long ago is true of every earlier event.
const INSTANTLY: Duration = Duration::from_micros(2);

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
        turn.set_held();
        let now = Instant::now();
        turn.spell().gain(now);
        let tenure = Tenure { held, verified: now, process: std::process::id() };
        Self { inner: Some(Inner { lock, turn, since: now, tenure }) }
    }

    /// Takes over what another task of this process has left.
    pub(crate) fn received(lock: LockFile, turn: Turn, parcel: Parcel, started: tokio::time::Instant) -> Self {
        trace::acquired(lock.target(), started);
        turn.set_held();
        Self { inner: Some(Inner { lock, turn, since: Instant::now(), tenure: parcel.tenure }) }
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
    pub async fn lost(&self) -> LostReason {
        let Inner { lock, tenure, .. } = self.inner();
        match tenure.held.file() {
            Some((file, identity)) => wait::lost(lock, file, identity).await,
            None => pending().await,
        }
    }

    /// Whether the lock is ours at this moment: one look at the path, no wait.
    pub fn is_held(&self) -> bool {
        !self.inner().is_lost()
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
        if self.turn.spell().is_spent(now) {
            return Err(self);
        }
        if now - self.tenure.verified >= INSTANTLY {
            if !self.tenure.is_ours() || self.is_lost() {
                return Err(self);
            }
            self.tenure.verified = now;
        }
        let slot = Arc::clone(slot);
        let Self { lock, turn, since, tenure } = self;
        turn.set_free();
        trace::released(lock.target(), since);
        if let Some((parcel, turn)) = slot.pass(Parcel { lock, tenure, left_at: now }, turn) {
            parcel.release();
            drop(turn);
        }
        Ok(())
    }

    fn is_lost(&self) -> bool {
        self.tenure.held.file().is_some_and(|(_, identity)| identity.check(&self.lock.target().path).is_err())
    }

    /// Releases the lock in the system.
    fn give_back(self, listener: Listener) -> Result<(), LockError> {
        let Self { lock, mut turn, since, tenure } = self;
        if !tenure.is_ours() {
            tenure.held.abandon();
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
            Err(LockError::Lost { reason, .. }) => trace::lost(target, *reason),
            Err(error) => trace::release_failed(target, error),
        }
        result
    }
}

impl Tenure {
    /// Not a forked child's copy.
    fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Parcel {
    /// When it was left for the next task.
    pub(crate) fn left_at(&self) -> Instant {
        self.left_at
    }

    /// Releases the lock in the system, as nobody takes it. Its guard has been told that all is well, and it was.
    pub(crate) fn release(self) {
        if !self.tenure.is_ours() {
            return self.tenure.held.abandon();
        }
        match self.tenure.held.release(self.lock.target()) {
            Ok(()) => {}
            Err(LockError::Lost { reason, .. }) => trace::lost(self.lock.target(), reason),
            Err(error) => trace::release_failed(self.lock.target(), &error),
        }
    }
}
