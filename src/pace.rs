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
        Some(Self::on(&target.filesystem().ok()?, target.kind))
    }

    fn on(filesystem: &FileSystem, kind: LockKind) -> Self {
        match (kind, filesystem) {
            (_, FileSystem::Memory) | (LockKind::Flock, FileSystem::Local) => Self::Inline,
            (_, FileSystem::Local) => Self::LookInline,
            (_, FileSystem::Other(_)) => Self::Poll,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_touch_a_disk_or_a_network_goes_to_the_blocking_pool() {
        let other = FileSystem::Other("NFS".into());
        for (filesystem, flock, shlock) in [
            (&FileSystem::Memory, Pace::Inline, Pace::Inline),
            (&FileSystem::Local, Pace::Inline, Pace::LookInline),
            (&other, Pace::Poll, Pace::Poll),
        ] {
            assert_eq!(Pace::on(filesystem, LockKind::Flock), flock, "{filesystem}");
            assert_eq!(Pace::on(filesystem, LockKind::Shlock), shlock, "{filesystem}");
        }
    }
}
