//! The builder for locks with options.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lock::LockFile;
use crate::semaphore::Semaphore;
use crate::url::LockUrl;
use crate::words::error::LockError;
use crate::words::kind::LockKind;
use crate::words::options::Options;

/// Makes a [`LockFile`] with options. The last call has the name of a constructor of [`LockFile`], or is
/// [`build`](Self::build).
///
/// All options concern lock files. They have no effect on a null lock, or on a lock on a server.
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
///
/// To keep a builder for several locks, clone it at the end of the chain:
///
/// ```
/// # use tokio_lockfile::LockFile;
/// # fn main() -> Result<(), tokio_lockfile::LockError> {
/// let builder = LockFile::builder().mode(0o600).create_dirs(true).clone();
/// let (first, second) = (builder.build("/run/app/1.lock")?, builder.build("/run/app/2.lock")?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LockFileBuilder {
    options: Options,
}

impl LockFile {
    /// Makes a builder for a lock with options.
    pub fn builder() -> LockFileBuilder {
        LockFileBuilder::default()
    }
}

impl LockFileBuilder {
    /// Sets the permission bits of a new lock file. The system removes the bits of the umask from them. The default is
    /// 0644 for shlock and 0666 for flock. A file that already exists keeps its permission bits. This has no effect on
    /// Windows.
    ///
    /// If several users share a shlock, use 0664 or more, and a umask that permits it. Then each user can take over the
    /// lock file of another user's dead process. On Linux a user must have permission to write to a file to link it
    /// (`fs.protected_hardlinks`).
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        (self.options.mode, self.options.is_mode_exact) = (Some(mode & 0o777), false);
        self
    }

    /// Does the same as [`mode`](Self::mode), but the umask changes nothing: a new lock file gets exactly these
    /// permission bits. Use 0666 for a lock that all users share.
    ///
    /// The file first gets the bits less the umask, and then fchmod(2) adds the others. This happens only to a file that
    /// the same try has created. Where the file system refuses the fchmod(2), the file stays as it is, and the lock works.
    ///
    /// The file is not created where another user's symbolic link leads, see [`create_dirs`](Self::create_dirs).
    pub fn exact_mode(&mut self, mode: u32) -> &mut Self {
        (self.options.mode, self.options.is_mode_exact) = (Some(mode & 0o777), true);
        self
    }

    /// Sets the shortest and the longest pause between two tries while another process holds the lock. Each pause is
    /// reduced at random by up to one half, so that the waiters do not all try at the same time. The defaults are 1 ms
    /// and 100 ms. If `longest` is below `shortest`, `shortest` is used for both. If `shortest` is below 100 µs, 100 µs
    /// is used.
    pub fn backoff(&mut self, shortest: Duration, longest: Duration) -> &mut Self {
        let shortest = shortest.max(Duration::from_micros(100));
        self.options.backoff = (shortest, longest.max(shortest));
        self
    }

    /// Sets whether a try takes over a lock that looks stale (left behind by a dead holder) on every file system. The
    /// default is `false`: a try takes over such a lock only on local file systems, where a free flock(2) proves that
    /// the holder is dead. On other file systems, [`LockError::Stale`] reports it.
    ///
    /// On a network file system whose `flock` does not exclude other machines, this option makes two holders possible.
    pub fn break_stale_anywhere(&mut self, yes: bool) -> &mut Self {
        self.options.break_stale_anywhere = yes;
        self
    }

    /// Sets whether waits only poll, even if the system can report changes of the lock file. The default is `false`. Use
    /// this for file systems whose events are not reliable. A guard then notices a loss only within a second.
    pub fn poll_only(&mut self, yes: bool) -> &mut Self {
        self.options.poll_only = yes;
        self
    }

    /// Sets whether the holder of a native lock writes its PID into the lock file. The default is `true`. Even with
    /// `true`, the holder writes only into a file that it has created for the lock, or into a file that already
    /// contains such a record. With `false`, the holder writes into no file. Use this for a data file that another
    /// program creates. This has no effect on shlocks, because their record is the lock.
    pub fn record(&mut self, yes: bool) -> &mut Self {
        self.options.record = yes;
        self
    }

    /// Sets whether a try makes the directory of the lock file if it is missing, with its missing parents. The mode of a
    /// new directory is 0755 less the umask. The default is `false`: then a missing directory is an error.
    ///
    /// The first try makes the directory, and so does each later try that finds it missing. With `true`, nobody holds a
    /// lock whose directory is missing.
    ///
    /// No directory is made where another user's symbolic link leads. A try follows a link among the parent directories
    /// only if the link and its directory belong to root or to the effective user of this process. Otherwise the try fails.
    pub fn create_dirs(&mut self, yes: bool) -> &mut Self {
        self.options.create_dirs = yes;
        self
    }

    /// Makes a lock as [`LockFile::new`] does.
    ///
    /// # Errors
    /// The errors of [`LockFile::new`].
    pub fn build(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::PLATFORM_DEFAULT, path.as_ref(), self.options)
    }

    /// Makes a lock as [`LockFile::native`] does.
    ///
    /// # Errors
    /// The errors of [`LockFile::native`].
    pub fn native(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::NATIVE, path.as_ref(), self.options)
    }

    /// Makes a lock as [`LockFile::shlock`] does.
    ///
    /// # Errors
    /// The errors of [`LockFile::shlock`].
    pub fn shlock(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::Shlock, path.as_ref(), self.options)
    }

    /// Makes a lock as [`LockFile::flock`] does.
    ///
    /// # Errors
    /// The errors of [`LockFile::flock`].
    pub fn flock(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::Flock, path.as_ref(), self.options)
    }

    /// Makes a lock as [`LockFile::winflock`] does.
    ///
    /// # Errors
    /// The errors of [`LockFile::winflock`].
    pub fn winflock(&self, path: impl AsRef<Path>) -> Result<LockFile, LockError> {
        LockFile::with(LockKind::WinFlock, path.as_ref(), self.options)
    }

    /// Makes a [`Semaphore`] with this number of permits, as [`Semaphore::numbered`] does, with these options.
    ///
    /// # Errors
    /// The errors of [`LockFile::new`].
    pub fn numbered(&self, path: impl AsRef<Path>, permits: usize) -> Result<Semaphore, LockError> {
        let name = |number: usize| {
            let mut name = OsString::from(path.as_ref());
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        // Without a name there is no lock file, whatever is behind it.
        self.build(&path)?;
        let locks: Result<Vec<_>, _> = (0..permits).map(|number| self.build(name(number))).collect();
        Ok(Semaphore::new(locks?))
    }

    /// Makes a lock as [`LockFile::open`] does.
    ///
    /// # Errors
    /// The errors of [`LockFile::open`].
    pub fn open(&self, url: &str) -> Result<LockFile, LockError> {
        self.open_url(&url.parse()?)
    }

    /// Does the same as [`open`](Self::open) for a parsed URL, for example from a configuration. A [`LockUrl`] keeps its
    /// password, but its text does not show the password.
    ///
    /// # Errors
    /// The errors of [`LockFile::open`].
    ///
    /// # Examples
    /// ```
    /// use tokio_lockfile::{LockFile, LockUrl};
    ///
    /// # fn main() -> Result<(), tokio_lockfile::LockError> {
    /// let configured: LockUrl = "lockfile:/run/app/nightly.lock".parse()?;
    /// let lock = LockFile::builder().create_dirs(true).open_url(&configured)?;
    /// # Ok(()) }
    /// ```
    pub fn open_url(&self, url: &LockUrl) -> Result<LockFile, LockError> {
        LockFile::from_url(url, self.options)
    }
}
