//! Where a try may run, and whether its wait can be woken: by what the lock file lives on.

use crate::kind::LockKind;
use crate::protocol::Target;
use crate::sys::FileSystem;

/// How tries for one lock are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// On the calling thread: the calls touch nothing but memory.
    Inline,
    /// On the blocking pool, but a look whether anything has changed on the calling thread.
    LookInline,
    /// On the blocking pool; other machines may change the file, of which no event tells.
    Poll,
}

impl Pace {
    /// Looks at the file system, so only for the blocking pool.
    pub(crate) fn of(target: &Target) -> Self {
        match (target.kind, target.filesystem()) {
            (LockKind::Null, _) | (_, Ok(FileSystem::Memory)) | (LockKind::Flock, Ok(FileSystem::Local)) => {
                Self::Inline
            }
            (_, Ok(FileSystem::Local)) => Self::LookInline,
            _ => Self::Poll,
        }
    }
}
