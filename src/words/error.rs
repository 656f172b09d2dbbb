//! The error type of the crate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::holder::{Brief, Holder};
use super::kind::LockKind;

/// The reason why a lock could not be taken, kept or released.
///
/// Every variant contains the path or the URL that it concerns, if the lock has one. It is not an error that somebody
/// else holds the lock. In that case, and only then, [`attempt`](crate::LockFile::attempt) returns `Ok(None)`.
///
/// The text of an error includes its cause. So [`source`](std::error::Error::source) does not return this cause again, but
/// the cause of the cause, if there is one. [`io_error`](Self::io_error) returns the error of the system call.
/// [`Debug`](fmt::Debug) shows the same text, because a `main` that returns an error prints its `Debug` text.
///
/// End each pattern with `..`, because a later version may have more fields.
///
/// ```
/// # use std::time::Duration;
/// # use tokio_lockfile::{LockError, LockFile};
/// # async fn f(lock: LockFile) {
/// match lock.obtain_timeout(Duration::from_secs(5)).await {
///     Ok(guard) => drop(guard), // works
///     Err(LockError::TimedOut { holder: Some(holder), .. }) => println!("ask {holder}"),
///     Err(error) => eprintln!("{error}"),
/// }
/// # }
/// ```
#[non_exhaustive]
pub enum LockError {
    /// The text is not a lock URL.
    #[non_exhaustive]
    InvalidUrl {
        /// The given text, with `***` in the place of all that may be a part of a password. For a server this is everything
        /// but the scheme. If only the value of a parameter is wrong, this is the URL without its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The path cannot be the path of a lock file on any system.
    #[non_exhaustive]
    InvalidPath {
        /// The given path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// This platform, this file system or this server does not support the requested kind of lock, or the feature of
    /// this kind is not enabled.
    #[non_exhaustive]
    Unsupported {
        /// Path of the lock file. Empty for a lock that has none.
        path: PathBuf,
        /// URL of the lock, without its password. `None` for a lock on a file, and for a null lock without a name.
        url: Option<String>,
        /// The requested kind.
        kind: LockKind,
        /// What is missing, and what to use instead.
        reason: String,
        /// The answer of the system, if that is what shows it.
        error: Option<io::Error>,
    },

    /// The file at the path is not a lock file of this kind. It was not changed.
    #[non_exhaustive]
    NotALockFile {
        /// The path.
        path: PathBuf,
        /// The requested kind.
        kind: LockKind,
        /// What is at the path, and what to do.
        found: String,
    },

    /// The holder of the lock file seems to be dead, but nothing proves it, or nothing proves that the file is a lock
    /// of this kind. The file was not changed.
    #[non_exhaustive]
    Stale {
        /// Path of the lock file.
        path: PathBuf,
        /// The PID in its record. It is 0 if the record contains no PID.
        pid: u32,
        /// Why the lock is not taken over, and what to do.
        reason: String,
    },

    /// The lock was not free in time. With a limit of zero: it was held.
    #[non_exhaustive]
    TimedOut {
        /// Path of the lock file. Empty for a lock that has none.
        path: PathBuf,
        /// URL of the lock, without its password. `None` for a lock on a file, and for a null lock without a name.
        url: Option<String>,
        /// The given limit.
        limit: Duration,
        /// The holder of the lock at the end of the wait, if it is known.
        holder: Option<Box<Holder>>,
        /// Why the holder is not known, if the look for it failed or had no answer in time.
        trouble: Option<String>,
    },

    /// The lock was lost while it was held: somebody removed or replaced the lock file, or the server ended the session
    /// or did not answer in time. Another process may hold the lock now.
    #[non_exhaustive]
    Lost {
        /// Path of the lock file. Empty for a lock that has none.
        path: PathBuf,
        /// URL of the lock, without its password. `None` for a lock on a file, and for a null lock without a name.
        url: Option<String>,
        /// What happened to it.
        reason: LostReason,
    },

    /// A system call failed. A lock that somebody else holds never causes this error.
    #[non_exhaustive]
    Io {
        /// Path of the lock file. Empty for a null lock.
        path: PathBuf,
        /// The action that failed. It completes "cannot … PATH".
        action: &'static str,
        /// The cause.
        error: io::Error,
    },

    /// The server of the lock does not answer as it should. A lock that somebody else holds never causes this error.
    #[non_exhaustive]
    Engine {
        /// URL of the lock, without its password.
        url: String,
        /// The action that failed. It completes "cannot … URL".
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidUrl { url, reason } => write!(f, "invalid lock URL {url:?}: {reason}"),
            Self::InvalidPath { path, reason } => write!(f, "invalid lock file path {path:?}: {reason}"),
            Self::Unsupported { path, url, kind, reason, .. } => {
                let lock = Subject(path, url.as_deref());
                write!(f, "{} lock is not possible at {lock}: {reason}", kind.with_article())
            }
            Self::NotALockFile { path, kind, found } => {
                write!(f, "{path:?} is not a lock file of kind {kind}: {found}")
            }
            Self::Stale { path, pid: 0, reason } => {
                write!(f, "{path:?} looks like a lock that an unknown process left behind, but {reason}")
            }
            Self::Stale { path, pid, reason } => {
                write!(f, "{path:?} looks like a lock that pid {pid} left behind, but {reason}")
            }
            Self::TimedOut { path, url, limit, holder, trouble } => {
                let (lock, holder) = (Subject(path, url.as_deref()), holder.as_deref());
                match holder {
                    _ if !limit.is_zero() => {
                        write!(f, "timed out after {limit:?} waiting for {lock}{}", Brief(holder))?
                    }
                    Some(holder) => write!(f, "{lock} is held by {}", holder.to_a_person())?,
                    None => write!(f, "{lock} is held")?,
                }
                trouble.as_ref().map_or(Ok(()), |trouble| write!(f, ": {trouble}"))
            }
            Self::Lost { path, url, reason } => write!(f, "lost the lock {}: {reason}", Subject(path, url.as_deref())),
            Self::Io { path, action, error } => {
                write!(f, "cannot {action} {}: {error}{}", Subject(path, None), advice(action, error))
            }
            Self::Engine { url, action, source } => write!(f, "cannot {action} {url}: {source}"),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } | Self::Unsupported { error: Some(error), .. } => error.source(),
            Self::Engine { source, .. } => source.source(),
            _ => None,
        }
    }
}

/// The lock, as an error message names it: by its path or its URL.
struct Subject<'a>(&'a Path, Option<&'a str>);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(_, Some(url)) => f.write_str(url),
            Self(path, None) if path.as_os_str().is_empty() => f.write_str("a null lock"),
            Self(path, None) => write!(f, "{path:?}"),
        }
    }
}

/// What to do about a failed call. The first two actions create the lock file, so it is the directory that is missing.
fn advice(action: &str, error: &io::Error) -> &'static str {
    match action {
        OPEN_DIRECTORY | OPEN_FILE if error.kind() == io::ErrorKind::NotFound => {
            "; its directory has to exist, unless LockFileBuilder::create_dirs makes it"
        }
        OPEN_DIRECTORY if error.kind() == io::ErrorKind::PermissionDenied => {
            "; this user needs the right to read and to search the directory, and to search those above it"
        }
        CREATE_FILE if error.kind() == io::ErrorKind::PermissionDenied => {
            "; this user needs the right to write in the directory"
        }
        OPEN_FILE if error.kind() == io::ErrorKind::PermissionDenied => {
            "; this user needs the right to search its directories, and to read the file, or if there is none, to write in its \
             directory"
        }
        MAKE_DIRECTORY if error.kind() == io::ErrorKind::PermissionDenied => {
            "; this user needs the right to write in the last of its directories that exists"
        }
        CREATE_FILE | OPEN_FILE if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            "; put it where this user may write, such as /run or /var/lock"
        }
        _ => "",
    }
}

impl fmt::Debug for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Actions that have an advice.
pub(crate) const OPEN_DIRECTORY: &str = "open the directory of lock file";
pub(crate) const OPEN_FILE: &str = "open lock file";
pub(crate) const MAKE_DIRECTORY: &str = "make the directory of lock file";
pub(crate) const CREATE_FILE: &str = "create lock file";

impl LockError {
    /// The path that this error concerns. `None` for [`InvalidUrl`](Self::InvalidUrl), for null locks, and for locks on a
    /// server.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::InvalidUrl { .. } | Self::Engine { .. } => None,
            // As it was given, and so it may be empty.
            Self::InvalidPath { path, .. } => Some(path),
            Self::NotALockFile { path, .. }
            | Self::Stale { path, .. }
            | Self::Unsupported { path, .. }
            | Self::Io { path, .. }
            | Self::TimedOut { path, .. }
            | Self::Lost { path, .. } => (!path.as_os_str().is_empty()).then_some(path),
        }
    }

    /// The error of the failed system call. `None` unless this is [`Io`](Self::Io), or [`Unsupported`](Self::Unsupported)
    /// or [`Engine`](Self::Engine) because of such an error.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Unsupported { error, .. } => error.as_ref(),
            Self::Engine { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// The text of the cause alone, if there is one.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Engine { source, .. } => source.to_string(),
            Self::Io { error, .. } => error.to_string(),
            other => other.to_string(),
        }
    }
}

/// The text stays the same, and [`get_ref`](io::Error::get_ref) returns the `LockError`. The kind is that of the failed
/// system call, or the one that comes nearest.
impl From<LockError> for io::Error {
    fn from(error: LockError) -> Self {
        let kind = match &error {
            LockError::InvalidUrl { .. } | LockError::InvalidPath { .. } => io::ErrorKind::InvalidInput,
            LockError::Unsupported { .. } => io::ErrorKind::Unsupported,
            LockError::NotALockFile { .. } => io::ErrorKind::InvalidData,
            LockError::Stale { .. } => io::ErrorKind::ResourceBusy,
            LockError::TimedOut { .. } => io::ErrorKind::TimedOut,
            LockError::Lost { .. } => io::ErrorKind::StaleNetworkFileHandle,
            LockError::Io { error, .. } => error.kind(),
            LockError::Engine { .. } => error.io_error().map_or(io::ErrorKind::Other, io::Error::kind),
        };
        Self::new(kind, error)
    }
}

/// How a held lock was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// There is no file at the path any more: somebody removed the lock file or moved it away. In an etcd cluster: the
    /// key is gone, because somebody deleted it or revoked the lease.
    Removed,
    /// Another file is at the path.
    Replaced,
    /// The server ended the session of the holder, or took the lock away. In an etcd cluster: the holder may not look at its
    /// key any more.
    Disconnected,
    /// The server did not answer for 0.9 of the lease. When the lease ends, it may give the lock to another process.
    Expired,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "it was removed",
            Self::Replaced => "the lock file was replaced by another",
            Self::Disconnected => "the server ended the session that held it",
            Self::Expired => "the server did not answer in time",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_right_that_is_missing_is_told_with_its_place() {
        const EACCES: i32 = 13;
        const EROFS: i32 = 30;
        for (action, error, advice) in [
            (OPEN_DIRECTORY, EACCES, "search the directory"),
            (MAKE_DIRECTORY, EACCES, "last of its directories"),
            (CREATE_FILE, EACCES, "write in the directory"),
            (OPEN_FILE, EACCES, "read the file"),
            (CREATE_FILE, EROFS, "/run"),
            (OPEN_FILE, EROFS, "/run"),
        ] {
            let error = io::Error::from_raw_os_error(error);
            let said = LockError::Io { path: "/x".into(), action, error }.to_string();
            let (_, told) = said.split_once("; ").unwrap_or_else(|| panic!("no advice: {said}"));
            assert!(told.contains(advice), "{said}");
        }
    }

    #[test]
    fn an_error_says_its_cause_once_and_its_source_goes_on_behind_it() {
        let cause = || io::Error::new(io::ErrorKind::ConnectionRefused, Nested(io::Error::other("no route")));
        let (path, url) = (PathBuf::from("/run/x"), "etcd://db/x".to_owned());
        for (error, said) in [
            (LockError::Io { path: path.clone(), action: "lock", error: cause() }, "cannot lock \"/run/x\": refused"),
            (
                LockError::Engine { url, action: "try for", source: cause().into() },
                "cannot try for etcd://db/x: refused",
            ),
        ] {
            assert_eq!(error.to_string(), said);
            assert_eq!(error.source().unwrap().to_string(), "no route");
            assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionRefused);
        }
        let system = LockError::Io { path, action: "lock", error: io::Error::from_raw_os_error(2) };
        assert!(system.source().is_none());
    }

    #[derive(Debug)]
    struct Nested(io::Error);

    impl fmt::Display for Nested {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("refused")
        }
    }

    impl std::error::Error for Nested {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
}
