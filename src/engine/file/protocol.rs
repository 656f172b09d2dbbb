//! The switch between the protocols. Each one has an `attempt`, a look at its holders and a held state.

use std::path::Path;
use std::sync::Arc;

use super::execution::TargetOnDisk;
use super::flock;
use super::outcome::{Contended, FileIdentity, Outcome, Thread};
#[cfg(unix)]
use super::shlock;
use crate::sys::OpenFile;
use crate::sys::process::Owner;
use crate::words::error::LockError;
use crate::words::holder::Holder;
#[cfg(unix)]
use crate::words::kind::LockKind;
use crate::words::mode::Mode;
use crate::words::target::Target;

/// Tries once, on from what the `last` try has found.
pub(super) fn attempt(
    lock: &TargetOnDisk,
    mode: Mode,
    last: &Contended,
    thread: Thread,
) -> Result<Outcome<HeldFile>, LockError> {
    let target = &lock.target;
    match target.kind {
        #[cfg(unix)]
        LockKind::Shlock => match mode {
            Mode::Exclusive => Ok(shlock::attempt(target, last, thread)?.map(HeldFile::Shlock)),
            Mode::Shared => {
                let reason = "readers cannot share it, because its file names one holder; use the flock kind";
                Err(target.unsupported(reason))
            }
        },
        _ => {
            let _ = thread;
            Ok(flock::attempt(target, mode, last, lock.first_access(mode))?.map(HeldFile::Flock))
        }
    }
}

/// Whether nothing has changed since the last try found the lock held. `false` if in doubt. On a local file system this
/// touches only memory.
pub(super) fn is_still_held(target: &Target, last: &Contended) -> bool {
    match target.kind {
        #[cfg(unix)]
        LockKind::Shlock => shlock::is_still_held(target, last),
        _ => {
            let _ = last;
            false
        }
    }
}

/// Who holds the lock, in any process.
pub(super) fn holders(target: &Target) -> Result<Vec<Holder>, LockError> {
    match target.kind {
        #[cfg(unix)]
        LockKind::Shlock => Ok(shlock::holder(target)?.into_iter().collect()),
        _ => flock::holders(target),
    }
}

/// A lock file that is held. Dropping it releases the lock. Dropping it in a forked child only closes the child's copies
/// of the descriptors.
#[derive(Debug)]
pub(super) enum HeldFile {
    #[cfg(unix)]
    Shlock(shlock::HeldShlock),
    Flock(flock::HeldFlock),
}

impl HeldFile {
    /// The lock file.
    pub(super) fn file(&self) -> &Arc<OpenFile> {
        match self {
            #[cfg(unix)]
            Self::Shlock(held) => held.file(),
            Self::Flock(held) => held.file(),
        }
    }

    /// The lock file, where its content is free for others to use.
    pub(super) fn data_file(&self, path: &Path) -> Option<&OpenFile> {
        match self {
            #[cfg(unix)]
            Self::Shlock(_) => None,
            Self::Flock(held) => Some(held.data_file(path)),
        }
    }

    /// Whether a record was written over one that the file held, or into a new file.
    pub(super) fn has_record(&self) -> bool {
        match self {
            #[cfg(unix)]
            Self::Shlock(_) => false,
            Self::Flock(held) => held.has_record(),
        }
    }

    /// The file, if it was made for this lock for certain and stays when the lock is released.
    pub(super) fn ours(&self) -> Option<Box<FileIdentity>> {
        match self {
            #[cfg(unix)]
            Self::Shlock(_) => None,
            Self::Flock(held) => held.ours(),
        }
    }

    /// What the path must lead to as long as the lock is ours.
    pub(super) fn identity(&self) -> FileIdentity {
        match self {
            #[cfg(unix)]
            Self::Shlock(held) => held.identity(),
            Self::Flock(held) => held.identity(),
        }
    }

    /// The process that took the lock; `None` once it is released.
    pub(super) fn owner(&self) -> Option<Owner> {
        match self {
            #[cfg(unix)]
            Self::Shlock(held) => held.owner(),
            Self::Flock(held) => held.owner(),
        }
    }

    /// Releases the lock, and says whether it was ours to the end.
    pub(super) fn release(self, target: &Target) -> Result<(), LockError> {
        match self {
            #[cfg(unix)]
            Self::Shlock(held) => held.release(target),
            Self::Flock(held) => held.release(target),
        }
    }
}
