//! The guard: the lock as long as it lives.

use std::path::Path;
use std::pin::pin;

use crate::process::acquire;
use crate::process::acquisition::Acquisition;
use crate::words::error::{LockError, LostReason};
use crate::words::kind::LockKind;

/// A held lock. Dropping it releases the lock.
///
/// Bind it to a name: `let _ = lock.obtain().await?;` releases at once, `let _guard = …` at the end of the scope.
/// It may be dropped anywhere, also outside a runtime and on another thread. Dropping it in a forked child closes the
/// child's descriptor and leaves the parent's lock alone.
#[must_use = "the lock is released as soon as the guard is dropped"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct LockGuard {
    /// `None` only between the release of the lock and the end of the guard.
    acquisition: Option<Acquisition>,
}

impl LockGuard {
    pub(crate) fn new(acquisition: Acquisition) -> Self {
        Self { acquisition: Some(acquisition) }
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
        match self.acquisition.take() {
            Some(acquisition) => acquisition.release().await,
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
        acquire::begin();
        self.acquisition().lost().await
    }

    /// Whether the lock is ours at this moment: one look at the path, no wait.
    pub fn is_held(&self) -> bool {
        self.acquisition().is_held()
    }

    /// A number that grows with every change of the holder. A server that sees it can reject a former holder that writes
    /// too late. `None` for locks on files, which have no such number.
    pub fn fencing_token(&self) -> Option<u64> {
        self.acquisition().token()
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
        let path = self.acquisition().target().path.clone();
        let released = self.release().await;
        match output {
            Some(output) => released.map(|()| output),
            // If the file came back in the meantime, the work was stopped all the same.
            None => Err(released.err().unwrap_or_else(|| LockError::lost(&path, LostReason::Replaced))),
        }
    }

    /// The lock file; `None` for a null lock.
    pub fn path(&self) -> Option<&Path> {
        let target = self.acquisition().target();
        (target.kind != LockKind::Null).then_some(&*target.path)
    }

    fn acquisition(&self) -> &Acquisition {
        self.acquisition.as_ref().expect("present until the guard ends")
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(acquisition) = self.acquisition.take() {
            acquisition.release_now();
        }
    }
}
