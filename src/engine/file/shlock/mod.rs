//! A PID file made with link(2). HoneyDanBer UUCP introduced this lock. shlock(1) of INN and NetBSD and the
//! `SHLockFile` of PEAK use it.
//!
//! When the name appears, the record is complete, and the holder has locked the inode with flock(2), exclusively. The
//! holder unlinks the name *before* it unlocks the file. So the kernel tells whether the holder of a marked record is
//! alive, and the PID is only information. Whoever looks at a file takes a shared flock for a moment, and so nobody takes
//! a look for a holder. [`judge`] decides whether the holder of a file is alive. [`break_stale`] removes the
//! file of a dead holder, and [`create`] makes a new file. Each lock has two private names, `Directory::breaking` and
//! `Directory::creating`. A process removes such a name only while it has an exclusive flock on the inode. So nobody
//! removes a name on which a living process relies. A breaker gives the file the first of these names before it locks the
//! file exclusively, and then looks whether the name is still there. So its flock is not taken for a holder's.

mod break_stale;
mod create;
mod directory;
mod held;
mod judge;
mod private_name;
mod probe;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::flock_holder;
use super::outcome::{self, Contended, FileIdentity, Outcome, Thread};
use super::record::{Mark, Record};
use crate::sys::process::{self, pid_exists};
use crate::sys::{self, OpenFile};
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::kind::LockKind;
use crate::words::target::Target;
use break_stale::Broken;
use create::Created;
use directory::Directory;
pub(super) use held::HeldShlock;
use judge::Found;

/// The number of times that a try starts again because the file has changed. After that, the outcome is unclear.
const ROUNDS: u32 = 16;

/// Tries once.
pub(super) fn attempt(target: &Target, last: &Contended, thread: Thread) -> Result<Outcome<HeldShlock>, LockError> {
    let directory = Directory::open(target)?;
    let mut kept = last.file().cloned();
    let mut taken_over = None;
    for _ in 0..ROUNDS {
        match round(&directory, kept.take(), last.unexplained, &mut taken_over, thread) {
            Ok(Some(outcome)) => return Ok(outcome),
            Ok(None) => {}
            // NFS: somebody has removed a file between two of our calls.
            Err(error) if error.io_error().is_some_and(sys::is_file_gone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::Unclear(Contended::default()))
}

/// One round of a try. `None` if the file has changed meanwhile.
fn round(
    directory: &Directory,
    kept: Option<Arc<OpenFile>>,
    unexplained: Option<Duration>,
    taken_over: &mut Option<u32>,
    thread: Thread,
) -> Result<Option<Outcome<HeldShlock>>, LockError> {
    match directory.contend(kept)? {
        Found::Nothing => {}
        Found::Changed => return Ok(None),
        Found::Busy(contended) => return Ok(Some(Outcome::Busy(contended))),
        Found::Unclear(file) => return Ok(Some(Outcome::Unclear(Contended::by_lock(file)))),
        Found::Stale(stale) => match directory.break_stale(stale, unexplained, thread)? {
            Broken::Done(pid) => *taken_over = Some(pid),
            Broken::Changed => return Ok(None),
            Broken::Unclear => return Ok(Some(Outcome::Unclear(Contended::default()))),
            Broken::Slow => return Ok(Some(Outcome::Slow)),
            Broken::Busy(changed) => return Ok(Some(Outcome::Busy(Contended::by_links(changed)))),
        },
    }
    Ok(match directory.acquire()? {
        Created::Held(held) => Some(Outcome::Acquired { held, taken_over: *taken_over }),
        Created::Changed | Created::NotLinked => None,
        Created::Unclear => Some(Outcome::Unclear(Contended::default())),
    })
}

/// Whether the file of the last try still has the lock's name, and its holder is alive.
pub(super) fn is_still_held(target: &Target, last: &Contended) -> bool {
    let Some(file) = last.file() else { return false };
    let Ok(stat) = sys::stat(file) else { return false };
    FileIdentity(stat).check(target.path()).is_ok()
        && !sys::is_removed(file, &stat, target.path())
        && match last.foreign {
            // The other program may have rewritten the file.
            Some(pid) => Record::of(file).is_ok_and(|record| record.pid() == Some(pid)) && pid_exists(pid),
            None => outcome::is_locked(file).unwrap_or(false),
        }
}

/// Finds the holder of the lock. This takes a shared flock. A try can distinguish it from the exclusive flock of a
/// holder.
pub(super) fn holder(target: &Target) -> Result<Option<Holder>, LockError> {
    Ok(look(target)?.map(|(holder, _is_alive)| holder))
}

/// The holder of the lock, and whether it is known to be alive: a living holder in another container has no PID here.
fn look(target: &Target) -> Result<Option<(Holder, bool)>, LockError> {
    let directory = Directory::open(target)?;
    let Some(file) = directory.open_lock()? else {
        return Ok(None);
    };
    let record = directory.read(&file)?;
    let stat = directory.stat(&file)?;
    let recorded = record.pid().unwrap_or(0);
    let mut is_flocked = false;
    let pid = match record {
        Record::Foreign(pid, _) => directory.is_alive(pid).then_some(pid),
        _ if outcome::is_locked(&file).map_err(|error| directory.lock_failed(error))? => {
            // With the breakers' name this is the lock of a process that takes over, and not of a holder.
            is_flocked = !directory.names(&directory.breaking(), &stat)?;
            Some(if is_flocked { flock_holder::find_exclusive(&stat, record.pid()) } else { 0 })
        }
        Record::Shlock(pid, Mark::NoProof) => directory.is_alive(pid).then_some(pid),
        // A try decides in the same way. If we cannot create a file to compare the ages, the lock counts as held.
        Record::Blank if directory.is_our_blank(&file)? => None,
        Record::Blank => (!directory.is_older_than_grace(&file).unwrap_or(false)).then_some(recorded),
        Record::Unknown => Some(recorded),
        _ => None,
    };
    let since = std::time::SystemTime::UNIX_EPOCH + create::since(&stat);
    Ok(pid.map(|pid| (process::holder(pid, Some(since)), is_flocked || pid != 0)))
}

/// Whether the PID in this lock file belongs to a live process. This is the `check_lock` of PEAK. Unix only.
///
/// The result is `false` if there is no such file, or if it is empty. For a lock file of this crate, the flock(2) of
/// the holder decides. So a reused PID or a PID of another container does not give a wrong result. This function blocks
/// on the file system.
///
/// # Errors
/// - [`LockError::NotALockFile`] if the file contains anything other than a lock record.
/// - [`LockError::Io`] if the file cannot be read.
pub fn check_lock(path: impl AsRef<Path>) -> Result<bool, LockError> {
    let target = Target::file(LockKind::Shlock, path.as_ref(), Default::default())?;
    Ok(look(&target)?.is_some_and(|(_holder, is_alive)| is_alive))
}
