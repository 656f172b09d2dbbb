//! A PID file made with link(2): HoneyDanBer UUCP's lock, as shlock(1) of INN and NetBSD and PEAK's `SHLockFile` use it.
//!
//! When the name appears, its record is complete and the holder has its inode locked with flock(2). The holder unlinks the
//! name *before* it unlocks. So the kernel tells whether the holder of a marked record is alive, and the PID is only
//! information. [`judge`] decides whose a file is. [`break_stale`] removes the file of a dead holder, and [`create`] makes
//! a new one. Each lock has two private names, `Directory::breaking` and `Directory::creating`. They are removed only under
//! an flock on their inode, so nobody removes a name that a living process works on.

mod break_stale;
mod create;
mod directory;
mod held;
mod judge;
mod private_name;
mod probe;

use std::path::Path;

use super::flock_holder;
use super::outcome::{self, Contended, Identity, Outcome};
use super::record::{Mark, Record};
use crate::sys;
use crate::sys::process::{self, pid_exists};
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::kind::LockKind;
use crate::words::target::Target;
use break_stale::Broken;
use create::Created;
use directory::Directory;
pub(super) use held::Held;
use judge::Found;

/// How often a try starts again when the file changes under it, before it answers that the outcome is unclear.
const ROUNDS: u32 = 16;

/// Tries once.
pub(super) fn attempt(target: &Target, last: &Contended) -> Result<Outcome<Held>, LockError> {
    let directory = Directory::open(target)?;
    let mut kept = last.file.clone();
    let mut taken_over = None;
    for _ in 0..ROUNDS {
        match directory.contend(kept.take())? {
            Found::Nothing => {}
            Found::Changed => continue,
            Found::Busy(contended) => return Ok(Outcome::Busy(contended)),
            Found::Unclear(file) => return Ok(Outcome::Unclear(Contended::by_lock(file))),
            Found::Stale(stale) => match directory.break_stale(stale)? {
                Broken::Done(pid) => taken_over = Some(pid),
                Broken::Changed => continue,
                Broken::Unclear => return Ok(Outcome::Unclear(Contended::default())),
                Broken::Busy => return Ok(Outcome::Busy(Contended::default())),
            },
        }
        match directory.acquire()? {
            Created::Held(held) => {
                return Ok(Outcome::Acquired { held, taken_over });
            }
            Created::Changed | Created::NotLinked => {}
            Created::Unclear => return Ok(Outcome::Unclear(Contended::default())),
        }
    }
    Ok(Outcome::Unclear(Contended::default()))
}

/// Whether the file of the last try is still that of the lock, and its holder is alive.
pub(super) fn is_still_held(target: &Target, last: &Contended) -> bool {
    let Some(file) = &last.file else { return false };
    let Ok(stat) = sys::stat(file) else { return false };
    Identity(stat).check(&target.path).is_ok()
        && match last.foreign {
            // Its program may have rewritten the file.
            Some(pid) => Record::of(file).is_ok_and(|record| record.pid() == Some(pid)) && pid_exists(pid),
            None => outcome::is_locked(file).unwrap_or(false),
        }
}

/// Who holds the lock. This looks with a shared flock, which a try can tell from the flock of a holder.
pub(super) fn holder(target: &Target) -> Result<Option<Holder>, LockError> {
    let directory = Directory::open(target)?;
    let Some(file) = directory.open_lock()? else {
        return Ok(None);
    };
    let record = directory.read(&file)?;
    let stat = directory.stat(&file)?;
    let recorded = record.pid().unwrap_or(0);
    let pid = match record {
        Record::Foreign(pid, _) => directory.is_alive(pid).then_some(pid),
        // A holder in a container has another PID here than its record tells.
        _ if outcome::is_locked(&file).map_err(|error| directory.lock_failed(error))? => {
            flock_holder::find(&stat, record.pid(), true).map(|pid| if pid == 0 { recorded } else { pid })
        }
        Record::Shlock(pid, Mark::NoProof) => directory.is_alive(pid).then_some(pid),
        // Judged as a try does it. Where no file can be made to compare, it counts as held.
        Record::Blank if directory.is_our_blank(&file)? => None,
        Record::Blank => (!directory.is_older_than_grace(&file).unwrap_or(false)).then_some(recorded),
        Record::Unknown => Some(recorded),
        _ => None,
    };
    let since = std::time::SystemTime::UNIX_EPOCH + create::since(&stat);
    Ok(pid.map(|pid| process::holder(pid, Some(since))))
}

/// Does the PID in this lock file name a live process? PEAK's `check_lock`. Unix.
///
/// `false` if there is no such file, or if it is empty. For a lock file made by this crate the flock(2) that its holder
/// keeps decides, which a recycled PID or a PID of another container does not deceive. Blocks on the file system.
///
/// # Errors
/// [`LockError::NotALockFile`] if the file holds anything but a lock record; [`LockError::Io`] if it cannot be read.
pub fn check_lock(path: impl AsRef<Path>) -> Result<bool, LockError> {
    let target = Target::file(LockKind::Shlock, path.as_ref(), Default::default())?;
    Ok(holder(&target)?.is_some_and(|holder| holder.pid() != 0))
}
