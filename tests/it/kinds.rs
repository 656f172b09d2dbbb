//! The kinds of lock with which the tests run.

use tokio_lockfile::{LockFile, LockKind};

use crate::support::{Kind, Modes};

/// The kinds of this platform that are tied to a file.
#[cfg(unix)]
pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::shlock(path).unwrap(), |path| LockFile::flock(path).unwrap()];
#[cfg(windows)]
pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::winflock(path).unwrap()];

/// Those of them that can be shared.
#[cfg(unix)]
pub(crate) const SHARED_KINDS: &[Modes] = &[Modes {
    writer: |path| LockFile::flock(path).unwrap(),
    reader: |path| LockFile::flock(path).unwrap().shared().unwrap(),
}];
#[cfg(windows)]
pub(crate) const SHARED_KINDS: &[Modes] = &[Modes {
    writer: |path| LockFile::winflock(path).unwrap(),
    reader: |path| LockFile::winflock(path).unwrap().shared().unwrap(),
}];

/// Whether the lock file stays when the lock is released.
pub(crate) fn leaves_its_file(lock: &LockFile) -> bool {
    lock.kind() != LockKind::Shlock
}
