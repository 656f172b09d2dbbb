//! The kinds of lock with which the tests run.

use tokio_lockfile::{LockFile, LockKind};

use crate::support::Kind;

/// The kinds of this platform that are tied to a file.
#[cfg(unix)]
pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::shlock(path).unwrap(), |path| LockFile::flock(path).unwrap()];
#[cfg(windows)]
pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::winflock(path).unwrap()];

/// Whether the lock file stays when the lock is released.
pub(crate) fn leaves_its_file(lock: &LockFile) -> bool {
    lock.kind() != LockKind::Shlock
}
