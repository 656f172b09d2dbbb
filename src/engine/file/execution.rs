//! Where a try runs, and whether events can end a wait. The file system decides.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::sys::offer::{OfferTimeout, STANDS};
use crate::sys::{self, FileSystem};
use crate::words::error::{LockError, MAKE_DIRECTORY};
use crate::words::kind::LockKind;
use crate::words::mode::Mode;
use crate::words::target::Target;

/// How the tries for one lock are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Execution {
    /// On the calling thread: the system calls touch only memory.
    Inline,
    /// On the blocking pool. A look whether anything has changed runs on the calling thread.
    Pool,
    /// On the blocking pool, looks too. Other machines may change the file, and no event tells of that.
    PoolWithoutEvents,
}

impl Execution {
    /// Looks at the file system, which may block. `None` while the directory does not exist, or nothing tells what file
    /// system it is on.
    fn of(target: &Target) -> Option<Self> {
        Self::on(&filesystem(target).ok()?, target.kind)
    }

    fn on(filesystem: &FileSystem, kind: LockKind) -> Option<Self> {
        match (kind, filesystem) {
            (_, FileSystem::Memory) | (LockKind::Flock, FileSystem::Local) => Some(Self::Inline),
            (_, FileSystem::Local) => Some(Self::Pool),
            (_, FileSystem::Other(_)) => Some(Self::PoolWithoutEvents),
            (_, FileSystem::Unknown) => None,
        }
    }
}

/// The file system of the lock file.
pub(super) fn filesystem(target: &Target) -> io::Result<FileSystem> {
    sys::filesystem_at(target.path().parent().unwrap_or(target.path()))
}

/// What a lock file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Reading,
    /// And reading; only for reading where writing is refused.
    Writing,
}

/// A lock file, and how tries for it are made.
#[derive(Debug)]
pub(super) struct TargetOnDisk {
    pub(super) target: Arc<Target>,
    /// As long as it is unknown, each try looks again.
    execution: OnceLock<Execution>,
    /// Whether a record was written when this handle got the lock last. Only a hint.
    has_record: AtomicBool,
    /// For tries on the blocking pool.
    pub(super) offer_timeout: OfferTimeout,
}

impl TargetOnDisk {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self {
            target,
            execution: OnceLock::new(),
            has_record: AtomicBool::new(false),
            offer_timeout: OfferTimeout::new(STANDS),
        }
    }

    pub(super) fn execution(&self) -> Option<Execution> {
        self.execution.get().copied()
    }

    /// Finds out how tries are to be made, if that is not known yet. This may block.
    pub(super) fn find_execution(&self) {
        if self.execution().is_none() {
            // Another thread may find it first.
            Execution::of(&self.target).into_iter().for_each(|execution| _ = self.execution.set(execution));
        }
    }

    /// Whether a try failed because the directory is missing and has to be made.
    pub(super) fn lacks_directory(&self, error: &LockError) -> bool {
        // A directory that is removed during the try can cause other errors too, such as EPERM on ext4.
        let is_gone = || self.target.path().parent().is_some_and(|parent| !parent.exists());
        self.target.options.create_dirs
            && error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound || is_gone())
    }

    /// Makes the directory. This may block.
    pub(super) fn make_directory(&self) -> Result<(), LockError> {
        let path = self.target.path();
        let made = sys::create_directories(path.parent().unwrap_or(path));
        made.map_err(|error| self.target.failed(MAKE_DIRECTORY, error))?;
        self.find_execution();
        Ok(())
    }

    /// How a try first opens the file. Where its record was written, it is to be written again. Off this machine, the lock
    /// may ask for it (NFS), or bind reading and writing to the descriptor that has the lock (SMB).
    pub(super) fn first_access(&self, mode: Mode) -> Access {
        let is_remote = sys::LOCKS_MAY_NEED_WRITERS && self.execution() == Some(Execution::PoolWithoutEvents);
        let has_record = mode == Mode::Exclusive && self.has_record.load(Ordering::Relaxed);
        if is_remote || has_record { Access::Writing } else { Access::Reading }
    }

    pub(super) fn remember_record(&self, has_record: bool) {
        self.has_record.store(has_record, Ordering::Relaxed);
    }

    /// Whether a look at the file touches only memory.
    pub(super) fn is_cheap_to_look_at(&self) -> bool {
        matches!(self.execution(), Some(Execution::Inline | Execution::Pool))
    }

    /// Whether events tell that the lock file has changed.
    pub(super) fn has_events(&self) -> bool {
        self.is_cheap_to_look_at() && !self.target.options.poll_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_touch_a_disk_or_a_network_goes_to_the_blocking_pool() {
        let other = FileSystem::Other("NFS".into());
        for (filesystem, flock, shlock) in [
            (&FileSystem::Memory, Execution::Inline, Execution::Inline),
            (&FileSystem::Local, Execution::Inline, Execution::Pool),
            (&other, Execution::PoolWithoutEvents, Execution::PoolWithoutEvents),
        ] {
            assert_eq!(Execution::on(filesystem, LockKind::Flock), Some(flock), "{filesystem}");
            assert_eq!(Execution::on(filesystem, LockKind::Shlock), Some(shlock), "{filesystem}");
        }
        assert_eq!(Execution::on(&FileSystem::Unknown, LockKind::Flock), None, "it is not remembered");
    }
}
