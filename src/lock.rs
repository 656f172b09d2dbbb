//! The handle.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use crate::guard::LockGuard;
use crate::process::acquire;
use crate::process::lock::Lock;
use crate::util::blocking;
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::kind::LockKind;
use crate::words::options::Options;
use crate::words::target::Target;
use crate::words::trace;
use crate::words::url::LockUrl;

/// A lock that processes, and tasks within one, agree on by the name of a file.
///
/// A handle is cheap to clone and holds nothing: no file is touched before a try, and no descriptor is kept between
/// tries. All handles of one process on the same file and of the same kind share one queue.
///
/// Constructors make a relative path absolute, and look once at the directory it leads to and at its file system (this
/// follows symbolic links, and so may block on a network file system that hangs).
#[derive(Clone)]
pub struct LockFile(Arc<Lock>);

impl LockFile {
    /// A lock of the platform's default kind: [`Shlock`](LockKind::Shlock) on Unix,
    /// [`WinFlock`](LockKind::WinFlock) on Windows.
    ///
    /// # Errors
    /// [`LockError::InvalidPath`] if the path is empty, contains a NUL byte or does not end in a file name.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::PLATFORM_DEFAULT, path.as_ref(), Options::default())
    }

    /// A PID file made with link(2). Unix.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`LockError::Unsupported`] on other platforms.
    pub fn shlock(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::Shlock, path.as_ref(), Options::default())
    }

    /// flock(2) on a file that stays. Unix.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`LockError::Unsupported`] on other platforms.
    pub fn flock(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::Flock, path.as_ref(), Options::default())
    }

    /// `LockFileEx` on a file that stays. Windows.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`LockError::Unsupported`] on other platforms.
    pub fn winflock(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::WinFlock, path.as_ref(), Options::default())
    }

    /// A fresh lock for tasks of this process; its clones are the same lock.
    pub fn null() -> Self {
        Self::null_with(Path::new(""), Options::default())
    }

    /// The lock that a URL names; see [`LockUrl`] for the forms.
    ///
    /// # Errors
    /// [`LockError::InvalidUrl`], and what the constructor of that kind answers.
    pub fn open(url: &str) -> Result<Self, LockError> {
        Self::from_url(&url.parse()?, Options::default())
    }

    pub(crate) fn with(kind: LockKind, path: &Path, options: Options) -> Result<Self, LockError> {
        Ok(Self(Arc::new(Lock::new(Target::file(kind, path, options)?))))
    }

    fn null_with(name: &Path, options: Options) -> Self {
        Self(Arc::new(Lock::new(Target::null(name, options))))
    }

    pub(crate) fn from_url(url: &LockUrl, options: Options) -> Result<Self, LockError> {
        match url.kind() {
            LockKind::Null => Ok(Self::null_with(url.path(), options)),
            kind => Self::with(kind, url.path(), options),
        }
    }

    /// Tries once. `None`: another process or task holds the lock, or another task of this process waits for it.
    ///
    /// # Errors
    /// Anything that is not an answer: see [`LockError`]. A lock that is merely held is never an error.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing: a try that has begun on the blocking pool ends there and gives back what it
    /// got.
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
    /// match LockFile::new(&path)?.attempt().await? {
    ///     Some(guard) => guard.run(async { /* the work */ }).await?,
    ///     None => println!("another process is at it"),
    /// }
    /// # Ok(()) }
    /// ```
    #[doc(alias = "try_lock")]
    pub async fn attempt(&self) -> Result<Option<LockGuard>, LockError> {
        Ok(acquire::attempt(&self.0).await?.map(LockGuard::new))
    }

    /// Waits for the lock. Tasks of this process are served in the order of their first poll.
    ///
    /// # Errors
    /// As [`attempt`](Self::attempt).
    ///
    /// # Cancel safety
    /// As [`attempt`](Self::attempt); the place in the queue is lost. `tokio::time::timeout(limit, lock.obtain())` is
    /// fine.
    ///
    /// # Panics
    /// As [`attempt`](Self::attempt).
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// # let shutdown = std::future::pending::<()>();
    /// let lock = LockFile::new(&path)?;
    /// let guard = tokio::select! {
    ///     guard = lock.obtain() => guard?,
    ///     () = shutdown => return Ok(()), // leaves no trace of the wait
    /// };
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    #[doc(alias = "lock_owned")]
    #[doc(alias = "acquire")]
    #[doc(alias = "lock")]
    pub async fn obtain(&self) -> Result<LockGuard, LockError> {
        let obtained = acquire::obtain(&self.0).instrument(trace::obtain_span(self.target())).await;
        obtained.map(LockGuard::new)
    }

    /// Waits for the lock for `limit` at most. A zero limit tries once; [`Duration::MAX`] waits for ever.
    ///
    /// # Errors
    /// As [`attempt`](Self::attempt), and [`LockError::TimedOut`], which names the holder.
    ///
    /// # Cancel safety
    /// As [`obtain`](Self::obtain).
    ///
    /// # Panics
    /// As [`attempt`](Self::attempt).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use tokio_lockfile::{LockError, LockFile};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// # let held = LockFile::new(&path)?.obtain().await?;
    /// let error = LockFile::new(&path)?.obtain_timeout(Duration::from_millis(10)).await.unwrap_err();
    /// assert!(matches!(error, LockError::TimedOut { .. }));
    /// // timed out after 10ms waiting for /run/nightly.lock, held by pid 4321 (backupd), for 3m 12s
    /// println!("{error}");
    /// # Ok(()) }
    /// ```
    pub async fn obtain_timeout(&self, limit: Duration) -> Result<LockGuard, LockError> {
        let obtained = if limit.is_zero() {
            self.attempt().await?
        } else {
            match Instant::now().checked_add(limit) {
                Some(deadline) => timeout_at(deadline, self.obtain()).await.ok().transpose()?,
                None => Some(self.obtain().await?),
            }
        };
        match obtained {
            Some(guard) => Ok(guard),
            None => Err(self.timed_out(limit).await),
        }
    }

    /// [`attempt`](Self::attempt) without a runtime, as in `main` before it starts.
    ///
    /// The guard may be dropped anywhere; inside a runtime it is as good as any other.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Inside an asynchronous context, as [`Handle::block_on`](tokio::runtime::Handle::block_on) does.
    /// [`spawn_blocking`](tokio::task::spawn_blocking) is none.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("service.lock");
    /// let Some(guard) = LockFile::new(&path)?.blocking_attempt()? else {
    ///     return Err("the service is already running".into());
    /// };
    /// # let serve = async {};
    /// tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve);
    /// drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn blocking_attempt(&self) -> Result<Option<LockGuard>, LockError> {
        blocking::outside_runtime(self.attempt())
            .map_err(|error| LockError::io(&self.target().path, "try for", error))?
    }

    /// [`obtain`](Self::obtain) without a runtime, as in `main` before it starts. Tasks and threads that wait for the
    /// same lock are in one queue.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Inside an asynchronous context, as [`Handle::block_on`](tokio::runtime::Handle::block_on) does.
    /// [`spawn_blocking`](tokio::task::spawn_blocking) is none.
    pub fn blocking_obtain(&self) -> Result<LockGuard, LockError> {
        blocking::outside_runtime(self.obtain())
            .map_err(|error| LockError::io(&self.target().path, "wait for", error))?
    }

    async fn timed_out(&self, limit: Duration) -> LockError {
        // The look takes a fraction of a millisecond. A file system that hangs must not hold up the bad news for ever.
        const PATIENCE: Duration = Duration::from_millis(500);
        let holder = timeout(PATIENCE, self.holder()).await;
        LockError::TimedOut {
            path: self.target().path.to_path_buf(),
            limit,
            holder: holder.ok().and_then(Result::ok).flatten().map(Box::new),
        }
    }

    /// Whether a task *of this process* holds the lock, through any handle. Never blocks.
    pub fn locked(&self) -> bool {
        self.0.is_held_here()
    }

    /// Who holds the lock, in any process; `None` if nobody does. It may have changed when the answer arrives.
    ///
    /// # Errors
    /// As [`attempt`](Self::attempt).
    ///
    /// # Cancel safety
    /// Cancel safe: it only looks.
    ///
    /// # Panics
    /// When polled outside a Tokio runtime.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// let lock = LockFile::new(&path)?;
    /// assert_eq!(lock.holder().await?, None);
    /// let guard = lock.obtain().await?;
    /// let holder = lock.holder().await?.expect("it is held");
    /// assert_eq!(holder.pid(), std::process::id());
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub async fn holder(&self) -> Result<Option<Holder>, LockError> {
        self.0.holder().await
    }

    /// The absolute path; `None` for a null lock.
    pub fn path(&self) -> Option<&Path> {
        (self.target().kind != LockKind::Null).then_some(&*self.target().path)
    }

    /// The kind.
    pub fn kind(&self) -> LockKind {
        self.target().kind
    }

    /// The URL that opens this lock, with its kind said outright.
    pub fn url(&self) -> LockUrl {
        LockUrl::new(self.target().kind, &self.target().path)
    }

    pub(crate) fn target(&self) -> &Target {
        self.0.target()
    }
}

impl fmt::Debug for LockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockFile")
            .field("kind", &self.kind())
            .field("path", &self.target().path)
            .field("locked", &self.locked())
            .finish()
    }
}
