//! Which lock a handle means.

use std::path::Path;
use std::sync::Arc;

use super::error::LockError;
use super::kind::LockKind;
use super::options::Options;
use super::server_url::{self, ServerUrl};

/// The kind and the name of a lock, and the options of the handle. An engine needs no more to try for the lock.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: LockKind,
    /// The absolute path. For a null lock it is the name, which may be empty. For a lock on a server it is the URL without
    /// its password.
    pub(crate) path: Arc<Path>,
    /// Where the lock is, if it is on a server.
    pub(crate) server: Option<Arc<ServerUrl>>,
    pub(crate) options: Options,
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
        if let Some(scheme) = scheme {
            let reason = "it is a URL and not a path; open it with LockFile::open".into();
            return Err(LockError::InvalidUrl { url: format!("{scheme}:***"), reason });
        }
        if !kind.is_supported() {
            let reason = format!("this platform has no such kind; use {}", LockKind::PLATFORM_DEFAULT);
            return Err(LockError::unsupported(path, kind, reason));
        }
        // Path::file_name() ignores these endings, which name a directory.
        let is_separator = |&byte: &u8| std::path::is_separator(byte.into());
        let without_dot = bytes.strip_suffix(b".").filter(|before| before.last().is_none_or(is_separator));
        if bytes.last().is_some_and(is_separator) || without_dot.is_some() || path.file_name().is_none() {
            return Err(invalid("it does not end in a file name"));
        }
        let absolute = std::path::absolute(path).map_err(|error| LockError::io(path, "make absolute", error))?;
        Ok(Self { kind, path: absolute.into(), server: None, options })
    }

    /// A null lock. Each null lock without a name is a lock of its own.
    pub(crate) fn null(name: &Path, options: Options) -> Self {
        Self { kind: LockKind::Null, path: name.into(), server: None, options }
    }

    /// A lock on a server. Touches no network.
    pub(crate) fn server(url: &Arc<ServerUrl>, options: Options) -> Result<Self, LockError> {
        let path: Arc<Path> = Path::new(&url.to_string()).into();
        match url.kind.missing_feature() {
            None => Ok(Self { kind: url.kind, path, server: Some(Arc::clone(url)), options }),
            Some(feature) => {
                let reason = format!("this kind is not built in; enable the feature {feature:?} of tokio-lockfile");
                Err(LockError::unsupported(&path, url.kind, reason))
            }
        }
    }

    /// Whether a file is the lock.
    pub(crate) fn is_file(&self) -> bool {
        self.kind != LockKind::Null && self.server.is_none()
    }

    /// The directory and the file name of the absolute path.
    #[cfg(unix)]
    pub(crate) fn parent_and_name(&self) -> (&Path, &std::ffi::OsStr) {
        match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => unreachable!("Target::file() refuses paths without a file name"),
        }
    }
}
