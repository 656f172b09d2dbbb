//! The error type of the crate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::escape::{Escaped, said};
use super::holder::{Brief, Holder};
use super::kind::LockKind;
use super::server_url::ServerUrl;

/// The reason why a lock could not be taken, kept or released.
///
/// Every variant contains the path or the URL that it concerns. It is not an error that somebody else holds the lock.
/// In that case, and only then, [`attempt`](crate::LockFile::attempt) returns `Ok(None)`.
///
/// The text of an error includes its cause. So [`source`](std::error::Error::source) does not return the cause again.
/// [`io_error`](Self::io_error) returns the error of the system call. [`Debug`](fmt::Debug) shows the same text,
/// because a `main` that returns an error prints its `Debug` text.
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
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The text is not a lock URL.
    #[error("invalid lock URL {url:?}: {reason}")]
    #[non_exhaustive]
    InvalidUrl {
        /// The given text, with `***` in the place of all that may be a part of a password. For a server this is everything
        /// but the scheme. If only the value of a parameter is wrong, this is the URL without its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The path cannot be the path of a lock file on any system.
    #[error("invalid lock file path {path:?}: {reason}")]
    #[non_exhaustive]
    InvalidPath {
        /// The given path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// This platform, this file system or this server does not support the requested kind of lock, or the feature of
    /// this kind is not enabled.
    #[error("{} lock is not possible at {path:?}: {reason}", kind.with_article())]
    #[non_exhaustive]
    Unsupported {
        /// Path of the lock file, or URL of the lock on a server.
        path: PathBuf,
        /// The requested kind.
        kind: LockKind,
        /// What is missing, and what to use instead.
        reason: String,
        /// The answer of the system, if that is what shows it.
        error: Option<io::Error>,
    },

    /// The file at the path is not a lock file of this kind. It was not changed.
    #[error("{path:?} is not a lock file of kind {kind}: {found}")]
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
    #[error("{path:?} looks like a lock that {} left behind, but {reason}", Left(*pid))]
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
    #[error("{}", Late { subject: Subject(path), limit: *limit, holder: holder.as_deref(), trouble: trouble.as_deref() })]
    #[non_exhaustive]
    TimedOut {
        /// Path of the lock file, URL of the lock on a server, or name of the null lock. The name may be empty.
        path: PathBuf,
        /// The given limit.
        limit: Duration,
        /// The holder of the lock at the end of the wait, if it is known.
        holder: Option<Box<Holder>>,
        /// Why the holder is not known, if the look for it failed or had no answer in time.
        trouble: Option<String>,
    },

    /// The lock was lost while it was held: somebody removed or replaced the lock file, or the server ended the session
    /// or did not answer in time. Another process may hold the lock now.
    #[error("lost the lock {path:?}: {reason}")]
    #[non_exhaustive]
    Lost {
        /// Path of the lock file, or URL of the lock on a server.
        path: PathBuf,
        /// What happened to it.
        reason: LostReason,
    },

    /// A system call failed. A lock that somebody else holds never causes this error.
    #[error("cannot {action} {path:?}: {error}{}", advice(action, error))]
    #[non_exhaustive]
    Io {
        /// Path of the lock file, or URL of the lock on a server.
        path: PathBuf,
        /// The action that failed. It completes "cannot … PATH".
        action: &'static str,
        /// The cause.
        error: io::Error,
    },

    /// The server of the lock does not answer as it should. A lock that somebody else holds never causes this error.
    #[error("cannot {action} {url}: {source}")]
    #[non_exhaustive]
    Engine {
        /// URL of the lock, without its password.
        url: String,
        /// The action that failed. It completes "cannot … URL".
        action: &'static str,
        /// The cause.
        // The raw name tells thiserror that the text of this error says the cause.
        r#source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The lock, as an error message names it.
struct Subject<'a>(&'a Path);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_str() {
            _ if self.0.is_absolute() => write!(f, "{:?}", self.0),
            Some("") => f.write_str("a null lock"),
            Some(url) if is_url(url) => Escaped(url).fmt(f),
            _ => write!(f, "the null lock {:?}", self.0),
        }
    }
}

/// That a lock was not free in time.
struct Late<'a> {
    subject: Subject<'a>,
    limit: Duration,
    holder: Option<&'a Holder>,
    trouble: Option<&'a str>,
}

impl fmt::Display for Late<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, limit, holder, trouble } = self;
        match holder {
            _ if !limit.is_zero() => write!(f, "timed out after {limit:?} waiting for {subject}{}", Brief(*holder))?,
            Some(holder) => write!(f, "{subject} is held by {}", holder.to_a_person())?,
            None => write!(f, "{subject} is held")?,
        }
        trouble.map_or(Ok(()), |trouble| write!(f, ": {trouble}"))
    }
}

/// What to do about a failed call. Both actions create the lock file, so it is the directory that is missing.
fn advice(action: &str, error: &io::Error) -> &'static str {
    match action {
        OPEN_DIRECTORY | OPEN_FILE if error.kind() == io::ErrorKind::NotFound => {
            "; its directory has to exist, unless LockFileBuilder::create_dirs makes it"
        }
        _ => "",
    }
}

/// The process that left a lock behind, as an error message names it.
struct Left(u32);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("an unknown process"),
            pid => write!(f, "pid {pid}"),
        }
    }
}

impl fmt::Debug for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Actions that have an advice.
pub(crate) const OPEN_DIRECTORY: &str = "open the directory of lock file";
pub(crate) const OPEN_FILE: &str = "open lock file";

impl LockError {
    /// The path that this error concerns. `None` for [`InvalidUrl`](Self::InvalidUrl), for null locks, and for locks on a
    /// server.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::InvalidUrl { .. } | Self::Engine { .. } => None,
            // As it was given.
            Self::InvalidPath { path, .. } | Self::NotALockFile { path, .. } | Self::Stale { path, .. } => Some(path),
            // The name of a null lock, or a URL, is no path.
            Self::Unsupported { path, .. } | Self::Io { path, .. } if path.to_str().is_some_and(is_url) => None,
            Self::Unsupported { path, .. } | Self::Io { path, .. } => Some(path),
            Self::TimedOut { path, .. } | Self::Lost { path, .. } => path.is_absolute().then_some(path),
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

    pub(crate) fn io(path: &Path, action: &'static str, error: impl Into<io::Error>) -> Self {
        Self::Io { path: path.to_owned(), action, error: error.into() }
    }

    pub(crate) fn not_a_lock_file(path: &Path, kind: LockKind, found: impl Into<String>) -> Self {
        Self::NotALockFile { path: path.to_owned(), kind, found: found.into() }
    }

    pub(crate) fn unsupported(path: &Path, kind: LockKind, reason: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), kind, reason: reason.into(), error: None }
    }

    /// The same where a system call has shown it.
    pub(crate) fn unsupported_by(path: &Path, kind: LockKind, reason: String, error: io::Error) -> Self {
        Self::Unsupported { path: path.to_owned(), kind, reason, error: Some(error) }
    }

    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn invalid_url(url: &ServerUrl, reason: impl Into<String>) -> Self {
        Self::InvalidUrl { url: url.to_string(), reason: reason.into() }
    }

    /// The text of the cause may be that of a server. It is made safe to show here, for all engines.
    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn engine(
        url: &ServerUrl,
        action: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let text = source.to_string();
        let said = said(&text);
        let source = match source.downcast_ref::<io::Error>() {
            _ if said == text => source,
            Some(error) => io::Error::new(error.kind(), said).into(),
            None => said.into(),
        };
        Self::Engine { url: url.to_string(), action, source }
    }

    pub(crate) fn lost(path: &Path, reason: LostReason) -> Self {
        Self::Lost { path: path.to_owned(), reason }
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

    #[test]
    fn an_engines_error_says_its_cause_once() {
        let cause_of_io = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let cause = cause_of_io();
        let said = cause.to_string();
        let url = "postgres://db/app?lock=x".into();
        let error = LockError::Engine { url, action: "connect to", source: cause.into() };
        assert_eq!(error.to_string(), format!("cannot connect to postgres://db/app?lock=x: {said}"));
        assert!(error.source().is_none());
        assert_eq!(error.path(), None);
        let path_of = |path: &str| LockError::io(Path::new(path), "try for", cause_of_io()).path().map(Path::to_owned);
        assert_eq!(path_of("postgres://db/app?lock=x"), None);
        assert_eq!(path_of("/run/app://x"), Some("/run/app://x".into()));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn the_article_fits() {
        let said = |kind| LockError::unsupported(Path::new("x"), kind, "no").to_string();
        assert!(said(LockKind::Etcd).starts_with("an etcd lock "), "{}", said(LockKind::Etcd));
        assert!(said(LockKind::Shlock).starts_with("a shlock lock "), "{}", said(LockKind::Shlock));
    }

    #[test]
    fn words_from_outside_are_made_safe() {
        let url: crate::LockUrl = "etcd://db/x".parse().unwrap();
        let url = url.server().unwrap();
        let error = LockError::engine(url, "try for", "no\n\u{202e}");
        assert_eq!(error.to_string(), r"cannot try for etcd://db/x: no\n\u{202e}");
        let error = LockError::engine(url, "try for", io::Error::new(io::ErrorKind::TimedOut, "no\n"));
        assert_eq!(error.to_string(), r"cannot try for etcd://db/x: no\n");
        assert_eq!(error.io_error().unwrap().kind(), io::ErrorKind::TimedOut);
        let system = LockError::engine(url, "try for", io::Error::from_raw_os_error(2));
        assert_eq!(system.io_error().unwrap().raw_os_error(), Some(2));
        for name in ["a\n", "a://\n"] {
            let error = LockError::TimedOut { path: name.into(), limit: Duration::ZERO, holder: None, trouble: None };
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
