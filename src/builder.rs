//! The builder.

use std::path::Path;
use std::time::Duration;

use crate::lock::LockFile;
use crate::words::error::LockError;
use crate::words::kind::LockKind;
use crate::words::options::Options;

/// Makes a [`LockFile`] with options. Its last call has the name of a constructor of [`LockFile`].
///
/// ```
/// use std::time::Duration;
/// use tokio_lockfile::LockFile;
///
/// # fn main() -> Result<(), tokio_lockfile::LockError> {
/// let lock = LockFile::builder()
///     .mode(0o600)
///     .backoff(Duration::from_millis(5), Duration::from_millis(50))
///     .build("/run/app.lock")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LockFileBuilder {
    options: Options,
}

impl LockFile {
    /// A builder for a lock with options.
    pub fn builder() -> LockFileBuilder {
        LockFileBuilder::default()
    }
}

impl LockFileBuilder {
    /// Permission bits of a lock file that is made, less the umask. 0644 for shlock and 0666 for flock if not given.
    /// A file that is there already keeps its own. No effect on Windows.
    ///
    /// Where several users share a shlock, 0664 or more lets each of them take over what another's dead process has left,
    /// if the umask permits as much: Linux lets only who may write to a file link it (`fs.protected_hardlinks`).
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.options.mode = Some(mode & 0o777);
        self
    }

    /// The shortest and the longest pause between two tries while the lock is held elsewhere, less up to a half by
    /// chance, so that waiters do not march in step. 1 ms and 100 ms if not given. A `longest` below `shortest` counts as
    /// `shortest`, and a `shortest` below 100 µs as that.
    pub fn backoff(&mut self, shortest: Duration, longest: Duration) -> &mut Self {
        let shortest = shortest.max(Duration::from_micros(100));
        self.options.backoff = (shortest, longest.max(shortest));
        self
    }

    /// Breaks locks that look stale on every file system. If not given, only where a free flock(2) proves that the
    /// holder is dead, which is on local ones; elsewhere [`LockError::Stale`] reports them.
    ///
    /// On a network file system whose `flock` does not reach other machines, this makes two holders possible.
    pub fn break_stale_anywhere(&mut self, yes: bool) -> &mut Self {
        self.options.break_stale_anywhere = yes;
        self
    }

    /// Waits by polling alone, also where the system can tell that the lock file changed. For file systems whose events
    /// cannot be trusted.
    pub fn poll_only(&mut self, yes: bool) -> &mut Self {
        self.options.poll_only = yes;
        self
    }

    /// Whether the holder of a native lock writes its PID into the lock file; `true` if not given. Even then it writes
    /// only into a file that it has created for the lock, or that already holds such a record. `false` writes into no
    /// file, for a data file that another program creates. No effect on shlocks, whose record is the lock.
    pub fn record(&mut self, yes: bool) -> &mut Self {
        self.options.record = yes;
        self
    }

    /// As [`LockFile::new`].
    ///
    /// # Errors
    /// Those of [`LockFile::new`].
    pub fn build(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::PLATFORM_DEFAULT, path.as_ref(), self.options)
    }

    /// As [`LockFile::shlock`].
    ///
    /// # Errors
    /// Those of [`LockFile::shlock`].
    pub fn shlock(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::Shlock, path.as_ref(), self.options)
    }

    /// As [`LockFile::flock`].
    ///
    /// # Errors
    /// Those of [`LockFile::flock`].
    pub fn flock(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::Flock, path.as_ref(), self.options)
    }

    /// As [`LockFile::winflock`].
    ///
    /// # Errors
    /// Those of [`LockFile::winflock`].
    pub fn winflock(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::WinFlock, path.as_ref(), self.options)
    }

    /// As [`LockFile::open`].
    ///
    /// # Errors
    /// Those of [`LockFile::open`].
    pub fn open(&self, url: &str) -> Result<LockFile, LockError> {
        LockFile::from_url(&url.parse()?, self.options)
    }
}
