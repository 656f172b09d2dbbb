//! The kinds that the tests run over.

use tokio_lockfile::LockFile;

use crate::support::Kind;

/// The kinds of this platform that are tied to a file.
#[cfg(unix)]
pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::shlock(path).unwrap(), |path| LockFile::flock(path).unwrap()];
#[cfg(windows)]
pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::winflock(path).unwrap()];
