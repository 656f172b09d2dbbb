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
use crate::builder::Options;

#[cfg(unix)]
pub(crate) mod flock;
#[cfg(unix)]
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
    pub(crate) file: Option<File>,
}

/// A lock that is held. Dropping it releases the lock, as a try does whose caller has gone; the guard calls
/// [`release`](Self::release) for its answer, or [`abandon`](Self::abandon).
#[derive(Debug)]
pub(crate) enum Held {
    Null,
    #[cfg(unix)]
    Shlock(shlock::Held),
    #[cfg(unix)]
    Flock(flock::Held),
}

impl Target {
    /// Tries once.
    pub(crate) fn attempt(&self, last: Contended) -> Result<Outcome, LockError> {
        match self.kind {
            #[cfg(unix)]
            LockKind::Shlock => shlock::attempt(self, last),
            #[cfg(unix)]
            LockKind::Flock => flock::attempt(self, last),
            _ => {
                drop(last);
                Ok(Outcome::Acquired { held: Held::Null, taken_over: None })
            }
        }
    }

    /// Who holds the lock, in any process.
    pub(crate) fn holder(&self) -> Result<Option<Holder>, LockError> {
        match self.kind {
            #[cfg(unix)]
            LockKind::Shlock => shlock::holder(self),
            #[cfg(unix)]
            LockKind::Flock => flock::holder(self),
            _ => Ok(None),
        }
    }
}

impl Held {
    /// Whether the path still leads to what we hold; if not, what happened.
    pub(crate) fn check(&self, target: &Target) -> Result<(), LostReason> {
        match self {
            Self::Null => {
                let _ = target;
                Ok(())
            }
            #[cfg(unix)]
            Self::Shlock(held) => held.check(&target.path),
            #[cfg(unix)]
            Self::Flock(held) => held.check(&target.path),
        }
    }

    /// Releases the lock and says whether it was ours to the end.
    pub(crate) fn release(self, target: &Target) -> Result<(), LockError> {
        match self {
            Self::Null => {
                let _ = target;
                Ok(())
            }
            #[cfg(unix)]
            Self::Shlock(held) => held.release(&target.path),
            #[cfg(unix)]
            Self::Flock(held) => held.release(&target.path),
        }
    }

    /// Lets go in a process that did not take the lock, a forked child: closes the descriptors, nothing else.
    pub(crate) fn abandon(self) {
        match self {
            Self::Null => {}
            #[cfg(unix)]
            Self::Shlock(held) => held.abandon(),
            #[cfg(unix)]
            Self::Flock(held) => held.abandon(),
        }
    }
}

/// Compares the file at `path` with the one that is held.
#[cfg(unix)]
fn check_path(path: &Path, held: &crate::sys::Stat) -> Result<(), LostReason> {
    match crate::sys::stat_path(path) {
        Ok(Some(found)) if found.is_same_file(held) => Ok(()),
        Ok(Some(_)) => Err(LostReason::Replaced),
        Ok(None) => Err(LostReason::Removed),
        // Not being able to look is no proof of a loss.
        Err(_) => Ok(()),
    }
}
