//! The guard of a held lock.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::task::unconstrained;

use crate::process::acquire;
use crate::process::acquisition::Acquisition;
use crate::url::LockUrl;
use crate::words::error::{LockError, LostReason};
use crate::words::kind::LockKind;
use crate::words::mode::Mode;

/// A held lock. Dropping it releases the lock.
///
/// Bind the guard to a name. `let _ = lock.obtain().await?;` releases the lock at once. `let _guard = …` releases it at
/// the end of the scope. The guard may be dropped anywhere, also outside a runtime and on another thread. A drop in a
/// forked child closes the child's descriptor and does not release the parent's lock.
#[must_use = "the lock is released as soon as the guard is dropped"]
#[clippy::has_significant_drop]
pub struct LockGuard {
    /// `None` only between the release of the lock and the end of the guard.
    acquisition: Option<Acquisition>,
}

impl LockGuard {
    pub(crate) fn new(acquisition: Acquisition) -> Self {
        Self { acquisition: Some(acquisition) }
    }

    /// Releases the lock and returns the errors that a drop could only log.
    ///
    /// # Errors
    /// - [`LockError::Lost`] if the lock was lost while it was held, see [`LostReason`]. If another file is at the path
    ///   now, that file is not changed.
    /// - [`LockError::Io`] if a system call failed.
    /// - [`LockError::Engine`] if the server of the lock does not answer as it should.
    ///
    /// After each of these errors this guard no longer holds the lock. After [`LockError::Engine`], the server may keep
    /// the lock until the lease ends.
    ///
    /// # Cancel safety
    /// After the first poll, the lock is released even if the future is dropped. Dropping the future before the first
    /// poll drops the guard, and that also releases the lock.
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
    pub async fn release(self) -> Result<(), LockError> {
        self.begin_release().await
    }

    /// Ends the guard before anything is awaited: else the future of each caller would keep room for it beside the rest.
    fn begin_release(mut self) -> impl Future<Output = Result<(), LockError>> {
        match self.acquisition.take() {
            Some(acquisition) => acquisition.release(),
            None => unreachable!("only this and drop take it, and both end the guard"),
        }
    }

    /// Resolves when this guard has lost the lock: somebody has removed or replaced the file, or the server has ended
    /// the session or does not answer in time. It never resolves otherwise.
    ///
    /// A lock on a server is lost at the latest when its lease ends. The task that awaits this reads a clock for that. So
    /// only its own runtime can delay the news.
    ///
    /// The loss of a file is noticed within milliseconds on Linux and a local file system, and within a second
    /// elsewhere, see [the guide](crate::guide#releasing-and-losing).
    ///
    /// The caller must still drop or release the guard after that.
    ///
    /// # Cancel safety
    /// This is cancel safe, because it only reads.
    ///
    /// # Panics
    /// This panics if it is polled outside a Tokio runtime with time enabled.
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
        // Beside work that uses up the budget of its task, the loss must be seen all the same.
        unconstrained(self.acquisition().lost()).await
    }

    /// Whether this guard holds the lock at this moment. It does not wait. For a lock on a file it looks at the path
    /// once. For a lock on a server it reads the clock, which shows whether the lease has ended.
    pub fn is_held(&self) -> bool {
        self.acquisition().is_held()
    }

    /// Whether other readers may hold the lock too. See [`LockFile::shared`](crate::LockFile::shared).
    pub fn is_shared(&self) -> bool {
        self.acquisition().mode() == Mode::Shared
    }

    /// A number that grows with every change of the holder. A storage that receives this number with each write can
    /// refuse the late write of a former holder, see [the page on servers](crate::beyond#fencing-tokens). `None` for
    /// locks on files, for null locks, and with `fence=off` in the URL.
    pub fn fencing_token(&self) -> Option<u64> {
        self.acquisition().token()
    }

    /// Runs `work` under the lock, and then releases the lock.
    ///
    /// If the lock is lost first, `work` is dropped at its current `await`, and the error is [`LockError::Lost`].
    ///
    /// # Errors
    /// The errors are the same as for [`release`](Self::release). They also occur if the loss is found only after
    /// `work` is done.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work` and then releases the lock.
    ///
    /// # Panics
    /// This panics under the same condition as [`lost`](Self::lost), and when `work` panics. The lock is released in
    /// both cases.
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
        let output = self.while_held(pin!(work)).await;
        let target = Arc::clone(self.acquisition().target());
        let released = self.release().await;
        match output {
            Ok(output) => released.map(|()| output),
            // Somebody may have put the file back in the meantime. We still report the loss, because the work was
            // stopped.
            Err(reason) => Err(released.err().unwrap_or_else(|| target.lost(reason))),
        }
    }

    /// The output of `work`, unless the lock is lost before.
    pub(crate) async fn while_held<F: Future>(&self, mut work: Pin<&mut F>) -> Result<F::Output, LostReason> {
        let mut lost = pin!(self.lost());
        poll_fn(|context| {
            // A process may stand still for longer than a lease. Then the work must not go on until a timer fires.
            let is_over = self.acquisition().target().is_on_server() && !self.is_held();
            // The work comes first. If it is done at once, we do not need to watch the file.
            if !is_over {
                if let Poll::Ready(output) = work.as_mut().poll(context) {
                    return Poll::Ready(Ok(output));
                }
            }
            lost.as_mut().poll(context).map(Err)
        })
        .await
    }

    /// The locked file itself, for the native kinds. It is open for reading. It is also open for writing if its
    /// permissions allow that. `None` for the other kinds, and in a forked child.
    ///
    /// The lock alone does not open an existing file for writing. The first call of this does. When that file is closed,
    /// programs that watch it are told that it was written. If the library has written its record into the file, this call
    /// removes the record. So a new file is empty. The lock may be on another descriptor than the one of this file. So do
    /// not lock or unlock this file.
    ///
    /// Use this file and do not open the path again: the path may lead to another file by now. The position is at the
    /// start of the file, and belongs to this guard alone. But the readers of one process have one file together: if the
    /// lock is shared, read at an offset, and do not move the position.
    ///
    /// Another process, such as a file server, may have a lease on the file (fcntl(2), `F_SETLEASE`). Then the kernel
    /// does not open the file for writing, and asks that process to give the lease back. This call waits up to 50 ms
    /// for that. If it takes longer, the file is open only for reading until this is called again.
    ///
    /// Change the file in place, with [`set_len`](File::set_len). Do not rename another file over it: the lock stays
    /// with the old file, and the guard reports it as [lost](Self::lost).
    ///
    /// With [`record(false)`](crate::LockFileBuilder::record) the holder writes no record into the file, not even before
    /// this is called.
    ///
    /// # Examples
    /// ```
    /// use std::io::{Read, Seek, Write};
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("counter");
    /// let guard = LockFile::builder().record(false).native(&path)?.obtain().await?;
    /// let mut file = guard.file().expect("a native lock has a file");
    /// let mut text = String::new();
    /// file.read_to_string(&mut text)?;
    /// let count = text.parse().unwrap_or(0) + 1;
    /// file.set_len(0)?;
    /// file.rewind()?;
    /// write!(file, "{count}")?;
    /// guard.release().await?;
    /// # assert_eq!(std::fs::read_to_string(&path)?, "1");
    /// # Ok(()) }
    /// ```
    #[doc(alias = "with_file")]
    pub fn file(&self) -> Option<&File> {
        self.acquisition().file()
    }

    /// The absolute path of the lock file. `None` for a null lock, and for a lock on a server.
    pub fn path(&self) -> Option<&Path> {
        let target = self.acquisition().target();
        target.address.path()
    }

    /// The kind of the lock.
    pub fn kind(&self) -> LockKind {
        self.acquisition().target().kind
    }

    /// The URL that opens this lock, as [`LockFile::url`](crate::LockFile::url).
    pub fn url(&self) -> LockUrl {
        let target = self.acquisition().target();
        LockUrl::new(target, self.acquisition().mode())
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

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("kind", &self.kind())
            .field("path", &self.acquisition().target().address)
            .field("shared", &self.is_shared())
            .finish_non_exhaustive()
    }
}

// For the same reason as LockFile.
impl UnwindSafe for LockGuard {}
impl RefUnwindSafe for LockGuard {}
