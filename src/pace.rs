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
    /// Looks at the file system, which may block; `None` while the directory is not there.
    pub(crate) fn of(target: &Target) -> Option<Self> {
        if target.kind == LockKind::Null {
            return Some(Self::Inline);
        }
        Some(match (target.kind, target.filesystem().ok()?) {
            (_, FileSystem::Memory) | (LockKind::Flock, FileSystem::Local) => Self::Inline,
            (_, FileSystem::Local) => Self::LookInline,
            _ => Self::Poll,
        })
    }
}
