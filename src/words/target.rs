//! Which lock a handle means.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::error::{LockError, LostReason};
use super::escape::Escaped;
use super::holder::Holder;
use super::kind::LockKind;
use super::options::Options;
use super::percent;
use super::server_url::{self, ServerUrl};

/// The kind and the address of a lock, and the options of the handle. An engine needs no more to try for the lock.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: LockKind,
    pub(crate) address: Address,
    pub(crate) options: Options,
}

/// What tells one lock of a kind from another.
#[derive(Clone, PartialEq)]
pub(crate) enum Address {
    /// The absolute path of the lock file. Two paths are compared byte by byte.
    File(Arc<OsStr>),
    /// The name of a null lock, which may be empty.
    Null(Arc<OsStr>),
    Server(Arc<ServerUrl>),
}

impl Target {
    /// A lock on a file. Makes a relative path absolute, and does not touch the disk.
    pub(crate) fn file(kind: LockKind, path: &Path, options: Options) -> Result<Self, LockError> {
        let invalid = |reason| LockError::InvalidPath { path: path.to_owned(), reason };
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() {
            return Err(invalid("it is empty"));
        }
        if bytes.contains(&0) {
            return Err(invalid("it contains a NUL byte"));
        }
        // Otherwise the error would show its password.
        let scheme = path.to_str().and_then(|path| server_url::scheme(path.split_once("://")?.0));
        if let Some((scheme, _)) = scheme {
            let reason = "it is a URL and not a path; open it with LockFile::open".into();
            return Err(LockError::InvalidUrl { url: format!("{scheme}:***"), reason });
        }
        let given = Self { kind, address: Address::File(path.as_os_str().into()), options };
        if !kind.is_supported() {
            return Err(
                given.unsupported(format!("this platform has no such kind; use {}", LockKind::PLATFORM_DEFAULT))
            );
        }
        // Path::file_name() ignores these endings, which name a directory.
        let is_separator = |&byte: &u8| std::path::is_separator(byte.into());
        let without_dot = bytes.strip_suffix(b".").filter(|before| before.last().is_none_or(is_separator));
        if bytes.last().is_some_and(is_separator) || without_dot.is_some() || path.file_name().is_none() {
            return Err(invalid("it does not end in a file name"));
        }
        let absolute = std::path::absolute(path).map_err(|error| given.failed("make absolute", error))?;
        Ok(Self { address: Address::File(absolute.into_os_string().into()), ..given })
    }

    /// A null lock. Each null lock without a name is a lock of its own.
    pub(crate) fn null(name: &OsStr, options: Options) -> Self {
        Self { kind: LockKind::Null, address: Address::Null(name.into()), options }
    }

    /// A lock on a server. Touches no network.
    pub(crate) fn server(url: &Arc<ServerUrl>, options: Options) -> Result<Self, LockError> {
        let target = Self { kind: url.kind, address: Address::Server(Arc::clone(url)), options };
        match url.kind.missing_feature() {
            None => Ok(target),
            Some(feature) => {
                let reason = format!("this kind is not built in; enable the feature {feature:?} of tokio-lockfile");
                Err(target.unsupported(reason))
            }
        }
    }

    /// The path, for the engine of locks on files.
    pub(crate) fn path(&self) -> &Path {
        self.address.path().expect("the lock is on a file")
    }

    /// The URL, for the engines on servers.
    #[allow(dead_code, reason = "for the engines, which are features")]
    pub(crate) fn url(&self) -> &Arc<ServerUrl> {
        self.address.server().expect("the lock is on a server")
    }

    pub(crate) fn is_on_server(&self) -> bool {
        self.address.server().is_some()
    }

    /// The directory and the file name of the path.
    #[cfg(unix)]
    pub(crate) fn parent_and_name(&self) -> (&Path, &OsStr) {
        match (self.path().parent(), self.path().file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => unreachable!("Target::file() refuses paths without a file name"),
        }
    }
}

impl Address {
    /// The path of the lock file, if there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(Path::new(path)),
            Self::Null(_) | Self::Server(_) => None,
        }
    }

    pub(crate) fn server(&self) -> Option<&Arc<ServerUrl>> {
        match self {
            Self::Server(url) => Some(url),
            Self::File(_) | Self::Null(_) => None,
        }
    }

    /// As an error has it: the path of a file, else a URL.
    fn for_error(&self) -> (PathBuf, Option<String>) {
        match self {
            Self::File(path) => (path.into(), None),
            Self::Null(name) if name.is_empty() => (PathBuf::new(), None),
            Self::Null(name) => (PathBuf::new(), Some(percent::url("nulllockfile", name))),
            Self::Server(url) => (PathBuf::new(), Some(url.to_string())),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) | Self::Null(name) => name.fmt(f),
            Self::Server(url) => write!(f, "{:?}", url.to_string()),
        }
    }
}

/// As the log shows it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) | Self::Null(name) => Escaped(Path::new(name)).fmt(f),
            Self::Server(url) => url.fmt(f),
        }
    }
}

/// The errors of this lock.
impl Target {
    /// A system call has failed. `action` completes "cannot … PATH".
    pub(crate) fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> LockError {
        match &self.address {
            Address::Server(url) => url.failed(action, error.into()),
            address => LockError::Io { path: address.for_error().0, action, error: error.into() },
        }
    }

    pub(crate) fn not_a_lock_file(&self, found: impl Into<String>) -> LockError {
        LockError::NotALockFile { path: self.path().to_owned(), kind: self.kind, found: found.into() }
    }

    pub(crate) fn unsupported(&self, reason: impl Into<String>) -> LockError {
        let (path, url) = self.address.for_error();
        LockError::Unsupported { path, url, kind: self.kind, reason: reason.into(), error: None }
    }

    /// The same where a system call has shown it.
    pub(crate) fn unsupported_by(&self, reason: String, error: io::Error) -> LockError {
        let (path, url) = self.address.for_error();
        LockError::Unsupported { path, url, kind: self.kind, reason, error: Some(error) }
    }

    pub(crate) fn lost(&self, reason: LostReason) -> LockError {
        let (path, url) = self.address.for_error();
        LockError::Lost { path, url, reason }
    }

    pub(crate) fn timed_out(&self, limit: Duration, holder: Option<Holder>, trouble: Option<String>) -> LockError {
        let (path, url) = self.address.for_error();
        LockError::TimedOut { path, url, limit, holder: holder.map(Box::new), trouble }
    }
}
