//! What every protocol does: one try, and the release. Mechanism only, synchronous; waiting is policy, and above.
//!
//! A protocol is a file here with an `attempt`, a `holder` and a held state. `attempt` never waits for a holder. What
//! it was given from the last try ([`Contended`]) is the descriptor it looked through then: looking through the same
//! one again wakes nobody who watches the file, reopening it would.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::{LockError, LostReason};
use crate::holder::Holder;
use crate::kind::LockKind;
use crate::options::Options;
use crate::sys;

pub(crate) mod flock;
mod record;
#[cfg(unix)]
pub(crate) mod shlock;

/// What a lock is about: enough to try for it on any thread.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: LockKind,
    /// Absolute; empty for a null lock.
    pub(crate) path: Arc<Path>,
    pub(crate) options: Options,
}

/// What one try found.
#[derive(Debug)]
pub(crate) enum Outcome {
    Acquired {
        held: Held,
        /// The dead holder from whom the lock was taken; `Some(0)` if its record was blank.
        taken_over: Option<u32>,
    },
    /// Somebody holds it.
    Busy(Contended),
    /// Somebody is in the way who need not be a holder, such as another process's try: look again in a moment.
    Unclear(Contended),
}

/// What a try that did not get the lock leaves for the next.
#[derive(Debug, Default)]
pub(crate) struct Contended {
    pub(crate) file: Option<Arc<File>>,
    /// The PID in a record whose holder keeps no lock on the file: only that process's end tells that it is free.
    pub(crate) foreign: Option<u32>,
}

impl Contended {
    fn by_lock(file: Arc<File>) -> Self {
        Self { file: Some(file), foreign: None }
    }
}

/// The process that took a lock. A forked child is another, and must not give its parent's lock away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner(u32);

impl Owner {
    fn this_process() -> Self {
        Self(std::process::id())
    }

    fn is_this_process(self) -> bool {
        self.0 == std::process::id()
    }
}

/// A lock that is held. Dropping it releases the lock, as a try does whose caller has gone, or the guard, which calls
/// [`release`](Self::release) where the answer matters. Dropping it in a forked child only closes the child's copies of
/// the descriptors.
#[derive(Debug)]
pub(crate) enum Held {
    Null(Owner),
    #[cfg(unix)]
    Shlock(Box<shlock::Held>),
    Flock(Box<flock::Held>),
}

impl Target {
    /// Makes a relative path absolute. Looks at nothing on the disk.
    pub(crate) fn new(kind: LockKind, path: &Path, options: Options) -> Result<Self, LockError> {
        let invalid = |reason| LockError::InvalidPath { path: path.to_owned(), reason };
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() {
            return Err(invalid("it is empty"));
        }
        if bytes.contains(&0) {
            return Err(invalid("it contains a NUL byte"));
        }
        if !kind.is_supported() {
            let reason = format!("this platform has no such kind; use {}", LockKind::PLATFORM_DEFAULT);
            return Err(LockError::unsupported(path, kind, reason));
        }
        // Path::file_name() looks past these endings, which name a directory.
        let is_separator = |&byte: &u8| std::path::is_separator(byte.into());
        let without_dot = bytes.strip_suffix(b".").filter(|before| before.last().is_none_or(is_separator));
        if bytes.last().is_some_and(is_separator) || without_dot.is_some() || path.file_name().is_none() {
            return Err(invalid("it does not end in a file name"));
        }
        let absolute = std::path::absolute(path).map_err(|error| LockError::io(path, "make absolute", error))?;
        Ok(Self { kind, path: absolute.into(), options })
    }

    /// Of the absolute path of a lock that has one.
    #[cfg(unix)]
    fn parent_and_name(&self) -> (&Path, &std::ffi::OsStr) {
        match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => unreachable!("Target::new() refuses paths without a file name"),
        }
    }

    /// Tries once.
    pub(crate) fn attempt(&self, last: &Contended) -> Result<Outcome, LockError> {
        match self.kind {
            #[cfg(unix)]
            LockKind::Shlock => shlock::attempt(self, last),
            LockKind::Flock | LockKind::WinFlock => flock::attempt(self, last),
            _ => Ok(Outcome::Acquired { held: Held::Null(Owner::this_process()), taken_over: None }),
        }
    }

    /// Whether nothing has changed since the last try found the lock held. Touches only memory on a local file system;
    /// `false` if in doubt.
    pub(crate) fn is_still_held(&self, last: &Contended) -> bool {
        match self.kind {
            #[cfg(unix)]
            LockKind::Shlock => shlock::is_still_held(self, last),
            _ => {
                let _ = last;
                false
            }
        }
    }

    /// What the lock file lives on.
    pub(crate) fn filesystem(&self) -> std::io::Result<sys::FileSystem> {
        sys::filesystem_at(self.path.parent().unwrap_or(&self.path))
    }

    /// Who holds the lock, in any process.
    pub(crate) fn holder(&self) -> Result<Option<Holder>, LockError> {
        match self.kind {
            #[cfg(unix)]
            LockKind::Shlock => shlock::holder(self),
            LockKind::Flock | LockKind::WinFlock => flock::holder(self),
            _ => Ok(None),
        }
    }
}

impl Held {
    /// The lock file, and what the path must lead to as long as the lock is ours; `None` for a lock without a file.
    pub(crate) fn file(&self) -> Option<(&Arc<File>, Identity)> {
        match self {
            Self::Null(_) => None,
            #[cfg(unix)]
            Self::Shlock(held) => Some((held.file(), held.identity())),
            Self::Flock(held) => Some((held.file(), held.identity())),
        }
    }

    /// Releases the lock and says whether it was ours to the end.
    pub(crate) fn release(self, target: &Target) -> Result<(), LockError> {
        match self {
            Self::Null(_) => {
                let _ = target;
                Ok(())
            }
            #[cfg(unix)]
            Self::Shlock(held) => held.release(&target.path),
            Self::Flock(held) => held.release(&target.path),
        }
    }

    /// Whether this process took the lock; `false` in a forked child.
    pub(crate) fn is_ours(&self) -> bool {
        let owner = match self {
            Self::Null(owner) => Some(*owner),
            #[cfg(unix)]
            Self::Shlock(held) => held.owner(),
            Self::Flock(held) => held.owner(),
        };
        owner.is_some_and(Owner::is_this_process)
    }
}

/// Which file is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity(sys::Stat);

impl Identity {
    /// Whether `path` leads to the file; if not, what happened.
    pub(crate) fn check(&self, path: &Path) -> Result<(), LostReason> {
        match sys::stat_path(path) {
            Ok(Some(found)) if found.is_same_file(&self.0) => Ok(()),
            Ok(Some(_)) => Err(LostReason::Replaced),
            Ok(None) => Err(LostReason::Removed),
            // Not being able to look is no proof of a loss.
            Err(_) => Ok(()),
        }
    }
}

/// Whether somebody else has an exclusive flock on the file. A mere question: a try that meets our shared lock tells it
/// from a holder's.
fn is_locked(file: &File) -> std::io::Result<bool> {
    let free = sys::try_lock_shared(file)?;
    if free {
        sys::unlock(file)?;
    }
    Ok(!free)
}

fn lock_failed(target: &Target, error: std::io::Error) -> LockError {
    if sys::is_lock_unsupported(&error) {
        let reason = format!("files cannot be locked on {} ({error}); use a local file system", place_name(target));
        return LockError::unsupported(&target.path, target.kind, reason);
    }
    LockError::io(&target.path, "lock", error)
}

/// What the lock file lives on, for an error.
fn place_name(target: &Target) -> String {
    match target.filesystem() {
        Ok(filesystem) => filesystem.to_string(),
        Err(_) => "this file system".into(),
    }
}
