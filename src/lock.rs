//! The handle of a lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::Instrument;

use crate::guard::LockGuard;
use crate::process::acquire;
use crate::process::limit;
use crate::process::lock::Lock;
use crate::url::LockUrl;
use crate::util::blocking;
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::kind::LockKind;
use crate::words::mode::Mode;
use crate::words::options::Options;
use crate::words::target::Target;
use crate::words::trace;

/// The handle of a lock, usually a lock on a file. The lock is for processes, and for the tasks within one process.
///
/// A handle is cheap to clone and keeps no resources open. It opens no file before a try, and it keeps no descriptor
/// between tries. All handles of one process on the same lock share one queue. For files, the same lock means the same
/// kind and the same file.
///
/// The constructors make a relative path absolute. They look once at the directory of the path and at its file system.
/// This follows symbolic links, so it may block on a network file system that hangs.
///
/// Two handles are equal if they take the same lock in the same mode. It does not matter by which path or URL they name
/// it. A null lock without a name is equal only to its clones.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LockFile {
    lock: Arc<Lock>,
    mode: Mode,
}

impl LockFile {
    /// Makes a lock of the platform's default kind. This is [`Shlock`](LockKind::Shlock) on Unix and
    /// [`WinFlock`](LockKind::WinFlock) on Windows.
    ///
    /// # Errors
    /// - [`LockError::InvalidPath`] if the path is empty, contains a NUL byte or does not end in a file name.
    /// - [`LockError::Io`] if the path is relative and the current directory cannot be found.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::PLATFORM_DEFAULT, path.as_ref(), Options::default())
    }

    /// Makes a lock that the kernel itself keeps on a file. This is [`Flock`](LockKind::Flock) on Unix and
    /// [`WinFlock`](LockKind::WinFlock) on Windows. The file is not removed.
    ///
    /// Use this for a data file that the lock protects, see [`LockGuard::file`].
    ///
    /// # Errors
    /// The errors of [`new`](Self::new).
    pub fn native(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::NATIVE, path.as_ref(), Options::default())
    }

    /// Makes a lock that is a PID file made with link(2). Unix only.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and [`LockError::Unsupported`] on other platforms.
    pub fn shlock(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::Shlock, path.as_ref(), Options::default())
    }

    /// Makes a lock that is an flock(2) on a file. The file is not removed. Unix only.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and [`LockError::Unsupported`] on other platforms.
    pub fn flock(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::Flock, path.as_ref(), Options::default())
    }

    /// Makes a lock that uses `LockFileEx` on a file. The file is not removed. Windows only.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and [`LockError::Unsupported`] on other platforms.
    pub fn winflock(path: impl AsRef<Path>) -> Result<Self, LockError> {
        Self::with(LockKind::WinFlock, path.as_ref(), Options::default())
    }

    /// Makes a new lock for the tasks of this process. Clones of the handle are the same lock.
    pub fn null() -> Self {
        let target = Target::null("".as_ref(), Options::default());
        Self::exclusive(target).expect("nothing can be wrong with a null lock")
    }

    /// Makes the lock that a URL names. See [`LockUrl`] for the forms of a URL. This does not use the network.
    ///
    /// # Errors
    /// - [`LockError::InvalidUrl`] if the text is not the URL of a lock.
    /// - [`LockError::Unsupported`] if this platform does not have the kind of lock, if the URL asks for a shared
    ///   handle of a kind that cannot be shared, or if the feature for the kind or for its TLS is not enabled.
    /// - For a lock on a file, also the errors of the constructor of that kind.
    pub fn open(url: &str) -> Result<Self, LockError> {
        Self::from_url(&url.parse()?, Options::default())
    }

    pub(crate) fn with(kind: LockKind, path: &Path, options: Options) -> Result<Self, LockError> {
        Self::exclusive(Target::file(kind, path, options)?)
    }

    fn exclusive(target: Target) -> Result<Self, LockError> {
        Ok(Self { lock: Arc::new(Lock::new(target)?), mode: Mode::Exclusive })
    }

    pub(crate) fn from_url(url: &LockUrl, options: Options) -> Result<Self, LockError> {
        let lock = Self::exclusive(url.target(options)?)?;
        match url.mode() {
            Mode::Exclusive => Ok(lock),
            Mode::Shared => lock.shared(),
        }
    }

    /// Makes a handle on the same lock that takes it shared. Any number of readers hold a shared lock at once, in any
    /// processes, but none beside the holder of an exclusive lock.
    ///
    /// Every method of the handle works as that of an exclusive one. The tasks of this process get the lock in the order
    /// in which they came: a reader that comes after a waiting writer waits behind it. A lock cannot change from shared to
    /// exclusive or back while it is held, see the [guide](crate::guide#readers-and-writers).
    ///
    /// # Errors
    /// [`LockError::Unsupported`] for a lock of kind [`Shlock`](LockKind::Shlock), whose file names one holder.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache = LockFile::null(); // or LockFile::flock("/var/cache/app/lock")?
    /// let readers = cache.shared()?;
    /// let one = readers.obtain().await?;
    /// let another = readers.obtain().await?;
    /// assert!(cache.attempt().await?.is_none());
    /// drop((one, another));
    /// let writer = cache.obtain().await?;
    /// # drop(writer);
    /// # Ok(()) }
    /// ```
    #[doc(alias = "lock_shared")]
    #[doc(alias = "read")]
    pub fn shared(&self) -> Result<Self, LockError> {
        let target = self.target();
        if !target.kind.can_be_shared() {
            let reason = "readers cannot share it, because its file names one holder; use the flock kind (flockfile:)";
            return Err(target.unsupported(reason));
        }
        Ok(Self { lock: Arc::clone(&self.lock), mode: Mode::Shared })
    }

    /// Whether this handle takes the lock shared.
    pub fn is_shared(&self) -> bool {
        self.mode == Mode::Shared
    }

    /// Tries once. `None` means that another process or task holds the lock, or that another task of this process waits
    /// for it.
    ///
    /// # Errors
    /// Any failure that leaves it unknown whether the lock is free, see [`LockError`]. It is never an error that
    /// somebody else holds the lock.
    ///
    /// # Cancel safety
    /// This is cancel safe. If the future is dropped, a try that has begun on the blocking pool or at a server ends
    /// there. If that try gets the lock, it releases it.
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
    /// match LockFile::new(&path)?.attempt().await? {
    ///     Some(guard) => guard.run(async { /* the work */ }).await?,
    ///     None => println!("another process is at it"),
    /// }
    /// # Ok(()) }
    /// ```
    #[doc(alias = "try_lock")]
    #[must_use = "the guard in it is the lock; without it, the lock is released at once"]
    pub async fn attempt(&self) -> Result<Option<LockGuard>, LockError> {
        Ok(acquire::attempt(&self.lock, self.mode).await?.map(LockGuard::new))
    }

    /// Waits for the lock. Tasks of this process are served in the order of their first poll.
    ///
    /// # Errors
    /// The errors are the same as for [`attempt`](Self::attempt).
    ///
    /// # Cancel safety
    /// This is cancel safe in the same way as [`attempt`](Self::attempt). The task loses its place in the queue.
    /// `tokio::time::timeout(limit, lock.obtain())` works as expected.
    ///
    /// # Panics
    /// This panics under the same condition as [`attempt`](Self::attempt).
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
        let obtained = acquire::obtain(&self.lock, self.mode).instrument(trace::obtain_span(self.target())).await;
        obtained.map(LockGuard::new)
    }

    /// Tries once for this lock as one of several.
    pub(crate) async fn attempt_one_of(&self, is_reported: &AtomicBool) -> Result<Option<LockGuard>, LockError> {
        let is_reported = is_reported.load(Ordering::Relaxed);
        Ok(acquire::attempt_in(&self.lock, self.mode, is_reported).await?.map(LockGuard::new))
    }

    /// Waits for this lock as one of several. [`report::during`](crate::process::report::during) reports the wait for all of
    /// them.
    pub(crate) async fn obtain_one_of(&self, is_reported: &AtomicBool) -> Result<LockGuard, LockError> {
        let obtaining = acquire::obtain_one_of(&self.lock, self.mode, is_reported);
        obtaining.instrument(trace::obtain_span(self.target())).await.map(LockGuard::new)
    }

    /// Does the same as [`obtain`](Self::obtain), for a program that talks to a person. If the lock is not free at once,
    /// this calls `held` once with the holder, and then waits. `None` means that nothing tells who holds the lock.
    ///
    /// If the lock becomes free before the holder is found, this does not call `held`.
    ///
    /// # Errors
    /// The errors are the same as for [`obtain`](Self::obtain).
    ///
    /// # Cancel safety
    /// This is cancel safe in the same way as [`obtain`](Self::obtain). `held` may have been called then.
    ///
    /// # Panics
    /// This panics under the same condition as [`attempt`](Self::attempt), and if `held` panics.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("build.lock");
    /// let held = |holder: Option<&tokio_lockfile::Holder>| match holder {
    ///     Some(holder) => eprintln!("waiting for {holder} ..."), // waiting for pid 4321 (cargo) for 12s ...
    ///     None => eprintln!("waiting for another process ..."),
    /// };
    /// let guard = LockFile::new(&path)?.obtain_with(held).await?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub async fn obtain_with<F: FnOnce(Option<&Holder>)>(&self, held: F) -> Result<LockGuard, LockError> {
        if let Some(guard) = self.attempt().await? {
            return Ok(guard);
        }
        // The wait begins first, so that the look at the holder costs no place in the queue.
        let mut wait = Box::pin(self.obtain());
        let holder = tokio::select! {
            biased;
            obtained = &mut wait => return obtained,
            holder = limit::describe_holder(&self.lock) => holder,
        };
        held(holder.as_ref().filter(|holder| holder.pid() != 0));
        wait.await
    }

    /// Waits for the lock for at most `limit`. With a zero limit, this tries once. With [`Duration::MAX`], it waits for
    /// ever.
    ///
    /// # Errors
    /// The errors of [`attempt`](Self::attempt), and [`LockError::TimedOut`], which names the holder. If the holder is not
    /// found in time, because a file system hangs or a server does not answer, the error says so instead.
    ///
    /// # Cancel safety
    /// This is cancel safe in the same way as [`obtain`](Self::obtain).
    ///
    /// # Panics
    /// This panics under the same condition as [`attempt`](Self::attempt).
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
    /// // timed out after 10ms waiting for /run/nightly.lock, held by pid 4321 (backupd) for 3m 12s
    /// println!("{error}");
    /// # Ok(()) }
    /// ```
    pub async fn obtain_timeout(&self, limit: Duration) -> Result<LockGuard, LockError> {
        match limit.is_zero() {
            true => match self.attempt().await? {
                Some(guard) => Ok(guard),
                None => Err(Box::pin(limit::held(&self.lock)).await),
            },
            false => limit::within(limit, &self.lock, pin!(self.obtain())).await,
        }
    }

    /// Does the same as [`attempt`](Self::attempt) without an `await`, for example in `main` before the runtime starts, or
    /// in a destructor.
    ///
    /// This works everywhere. It blocks the thread for a few system calls, or until a server has answered. It never
    /// waits for a holder. Inside a runtime it starts a thread for that, so there `attempt` costs less. If this process
    /// still releases the lock on a server, on a file system that is not local, or on Windows, it waits for that: inside a
    /// runtime for at most half a second, and then it is `None`.
    ///
    /// # Errors
    /// The errors are the same as for [`attempt`](Self::attempt).
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
    #[must_use = "the guard in it is the lock; without it, the lock is released at once"]
    pub fn blocking_attempt(&self) -> Result<Option<LockGuard>, LockError> {
        let attempted = match blocking::is_inside_runtime() {
            true => blocking::inside_runtime(pin!(acquire::attempt_at_once(&self.lock, self.mode))),
            false => blocking::outside_runtime(pin!(acquire::attempt(&self.lock, self.mode))),
        };
        let attempted = attempted.map_err(|error| self.target().failed("try for", error))?;
        Ok(attempted?.map(LockGuard::new))
    }

    /// Does the same as [`obtain`](Self::obtain) without a runtime, for example in `main` before the runtime starts.
    /// Tasks and threads that wait for the same lock are in one queue.
    ///
    /// # Errors
    /// The errors are the same as for [`obtain`](Self::obtain).
    ///
    /// # Panics
    /// This panics inside an asynchronous context, as [`Handle::block_on`](tokio::runtime::Handle::block_on) does.
    /// [`spawn_blocking`](tokio::task::spawn_blocking) is not an asynchronous context.
    #[track_caller]
    pub fn blocking_obtain(&self) -> Result<LockGuard, LockError> {
        let obtained = blocking::outside_runtime(pin!(self.obtain()));
        obtained.map_err(|error| self.target().failed("wait for", error))?
    }

    /// Does the same as [`obtain_timeout`](Self::obtain_timeout) without a runtime.
    ///
    /// # Errors
    /// The errors are the same as for [`obtain_timeout`](Self::obtain_timeout).
    ///
    /// # Panics
    /// This panics under the same condition as [`blocking_obtain`](Self::blocking_obtain).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use tokio_lockfile::LockFile;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("nightly.lock");
    /// let guard = LockFile::new(&path)?.blocking_obtain_timeout(Duration::from_secs(5))?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn blocking_obtain_timeout(&self, limit: Duration) -> Result<LockGuard, LockError> {
        let obtained = blocking::outside_runtime(pin!(self.obtain_timeout(limit)));
        obtained.map_err(|error| self.target().failed("wait for", error))?
    }

    /// Whether a task *of this process* holds the lock, exclusively or shared, through any handle. This never blocks.
    pub fn locked(&self) -> bool {
        self.lock.is_held_here()
    }

    /// Finds the holder of the lock in any process. `None` if nobody holds the lock. When the answer arrives, the
    /// holder may be another one already. If several processes share the lock, this is one of them;
    /// [`holders`](Self::holders) finds all.
    ///
    /// # Errors
    /// The errors are the same as for [`attempt`](Self::attempt).
    ///
    /// # Cancel safety
    /// This is cancel safe, because it only reads.
    ///
    /// # Panics
    /// This panics if it is polled outside a Tokio runtime.
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
        Ok(self.holders().await?.into_iter().next())
    }

    /// Does the same as [`holder`](Self::holder) without an `await`. This works everywhere, as
    /// [`blocking_attempt`](Self::blocking_attempt) does: it blocks the thread for a few system calls, or until a server has
    /// answered.
    ///
    /// # Errors
    /// The errors are the same as for [`holder`](Self::holder).
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("service.lock");
    /// let lock = LockFile::new(&path)?;
    /// if let Some(holder) = lock.blocking_holder()? {
    ///     println!("{holder} is at it");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn blocking_holder(&self) -> Result<Option<Holder>, LockError> {
        let look = pin!(self.holder());
        let looked = match blocking::is_inside_runtime() {
            true => blocking::inside_runtime(look),
            false => blocking::outside_runtime(look),
        };
        looked.map_err(|error| self.target().failed("look at", error))?
    }

    /// Finds all holders of the lock in any process. The list is empty if nobody holds the lock. It has more than one
    /// entry only if the lock is [shared](Self::shared): one for each process, however many of its tasks read.
    ///
    /// Linux and the servers tell who shares a lock. On other systems, a shared lock of another process on a file is not
    /// seen.
    ///
    /// # Errors
    /// The errors are the same as for [`attempt`](Self::attempt).
    ///
    /// # Cancel safety
    /// This is cancel safe, because it only reads.
    ///
    /// # Panics
    /// This panics if it is polled outside a Tokio runtime.
    ///
    /// # Examples
    /// ```
    /// # use tokio_lockfile::LockFile;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let lock = LockFile::null();
    /// let reader = lock.shared()?.obtain().await?;
    /// for holder in lock.holders().await? {
    ///     println!("read by {holder}"); // read by pid 4321 (backupd) for 3m 12s
    /// }
    /// # drop(reader);
    /// # Ok(()) }
    /// ```
    pub async fn holders(&self) -> Result<Vec<Holder>, LockError> {
        self.lock.holders().await
    }

    /// The absolute path of the lock file. `None` for a null lock, and for a lock on a server.
    pub fn path(&self) -> Option<&Path> {
        self.target().address.path()
    }

    /// The kind of the lock.
    pub fn kind(&self) -> LockKind {
        self.target().kind
    }

    /// The URL that opens this lock. Its scheme names the kind of the lock, and `?shared` a shared handle. The URL keeps the
    /// password of a server, but never shows it.
    pub fn url(&self) -> LockUrl {
        LockUrl::new(self.target(), self.mode)
    }

    pub(crate) fn lock(&self) -> &Lock {
        &self.lock
    }

    pub(crate) fn target(&self) -> &Target {
        self.lock.target()
    }
}

/// Parses a URL and opens it, as [`LockFile::open`] does.
impl FromStr for LockFile {
    type Err = LockError;

    fn from_str(url: &str) -> Result<Self, LockError> {
        Self::open(url)
    }
}

/// Opens the URL, as [`LockFile::open`] does with its text.
impl TryFrom<&LockUrl> for LockFile {
    type Error = LockError;

    fn try_from(url: &LockUrl) -> Result<Self, LockError> {
        Self::from_url(url, Options::default())
    }
}

/// Opens the URL, as [`LockFile::open`] does with its text.
impl TryFrom<LockUrl> for LockFile {
    type Error = LockError;

    fn try_from(url: LockUrl) -> Result<Self, LockError> {
        Self::try_from(&url)
    }
}

impl fmt::Debug for LockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockFile")
            .field("kind", &self.kind())
            .field("path", &self.target().address)
            .field("shared", &self.is_shared())
            .field("locked", &self.locked())
            .finish()
    }
}

// A panic leaves nothing half done that another task could see: the crate ignores poisoned mutexes for this reason.
impl UnwindSafe for LockFile {}
impl RefUnwindSafe for LockFile {}
