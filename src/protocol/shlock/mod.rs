//! A PID file made with link(2): HoneyDanBer UUCP's lock, as shlock(1) of INN and NetBSD and PEAK's `SHLockFile` use it.
//!
//! The name appears with its record complete and its inode locked with flock(2) by the holder, who unlinks the name
//! *before* he unlocks. So the kernel tells whether the holder of a marked record lives, and the PID is only news.
//! A stale file is unlinked in INN's discipline: link it to a private name, look whether the count went up by one, and
//! only then unlink. Two private names per lock, [`Place::breaking`] and [`Place::making`], are removed only under an
//! flock on their inode, so nobody removes the name that somebody alive is working on.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::record::{self, Record};
use super::{Contended, Identity, Outcome, Owner, Target};
use crate::error::LockError;
use crate::holder::Holder;
use crate::kind::LockKind;
use crate::process::pid_exists;
use crate::sys::{self, Dir, Stat};
use breaking::Broken;
use making::Made;

mod breaking;
mod making;

/// Until a blank file or one with unexplained links is this old, its maker may still be at work (INN's rule).
const GRACE: Duration = Duration::from_secs(30);

/// How often a try starts again when the file changes under it, before it answers that this is unclear.
const ROUNDS: u32 = 16;

/// Tries once; as the module's header says.
pub(super) fn attempt(target: &Target, last: &Contended) -> Result<Outcome, LockError> {
    let place = Place::open(target)?;
    let mut kept = last.file.clone();
    let mut taken_over = None;
    for _ in 0..ROUNDS {
        match place.contend(kept.take())? {
            Found::Nothing => {}
            Found::Changed => continue,
            Found::Busy(contended) => return Ok(Outcome::Busy(contended)),
            Found::Unclear(file) => return Ok(Outcome::Unclear(Contended::by_lock(file))),
            Found::Stale(stale) => match place.break_stale(stale)? {
                Broken::Done(pid) => taken_over = Some(pid),
                Broken::Changed => continue,
                Broken::Unclear => return Ok(Outcome::Unclear(Contended::default())),
                Broken::Busy => return Ok(Outcome::Busy(Contended::default())),
            },
        }
        match place.acquire()? {
            Made::Held(held) => {
                return Ok(Outcome::Acquired { held: super::Held::Shlock(Box::new(held)), taken_over });
            }
            Made::Changed => {}
            Made::Unclear => return Ok(Outcome::Unclear(Contended::default())),
        }
    }
    Ok(Outcome::Unclear(Contended::default()))
}

/// Whether the file of the last try is still the lock's, and its holder there.
pub(super) fn is_still_held(target: &Target, last: &Contended) -> bool {
    let Some(file) = &last.file else { return false };
    let Ok(stat) = sys::stat(file) else { return false };
    Identity(stat).check(&target.path).is_ok()
        && match last.foreign {
            // The file may have been rewritten in place.
            Some(pid) => Record::of(file).is_ok_and(|record| record == Record::Foreign(pid)) && pid_exists(pid),
            None => super::is_locked(file).unwrap_or(false),
        }
}

/// Who holds the lock. Looks with a shared flock, which no try mistakes for a holder's.
pub(super) fn holder(target: &Target) -> Result<Option<Holder>, LockError> {
    let place = Place::open(target)?;
    let Some(file) = place.open_lock()? else {
        return Ok(None);
    };
    let record = place.read(&file)?;
    let stat = place.stat(&file)?;
    let recorded = record.pid().unwrap_or(0);
    let pid = match record {
        Record::Foreign(pid) => pid_exists(pid).then_some(pid),
        // In a container the holder has another PID than here, which the record does not tell.
        _ if super::is_locked(&file).map_err(|error| place.lock_failed(error))? => {
            Some(sys::flock_holder(&stat).unwrap_or(recorded))
        }
        // As a try judges it; where none could be made, nobody knows better.
        Record::Blank => (!place.is_older_than_grace(&file).unwrap_or(false)).then_some(recorded),
        _ => None,
    };
    let since = std::time::SystemTime::UNIX_EPOCH + stat.modified;
    Ok(pid.map(|pid| Holder::look_up(pid, Some(since))))
}

/// Does the PID in this lock file name a live process? PEAK's `check_lock`. Unix.
///
/// `false` if there is no such file, or if it is empty. For a lock file made by this crate the flock(2) that its holder
/// keeps decides, which a recycled PID or a PID of another container does not deceive. Blocks on the file system.
///
/// # Errors
/// [`LockError::NotALockFile`] if the file holds anything but a lock record; [`LockError::Io`] if it cannot be read.
pub fn check_lock(path: impl AsRef<Path>) -> Result<bool, LockError> {
    let target = Target::new(LockKind::Shlock, path.as_ref(), Default::default())?;
    Ok(holder(&target)?.is_some_and(|holder| holder.pid() != 0))
}

/// One lock's names in its open directory.
struct Place<'a> {
    target: &'a Target,
    dir: Arc<Dir>,
    name: &'a OsStr,
}

enum Found {
    Nothing,
    Changed,
    Busy(Contended),
    Unclear(Arc<File>),
    Stale(Stale),
}

/// A file whose holder is dead, with our exclusive flock on it.
struct Stale {
    file: Probe,
    pid: u32,
}

/// A file on which a try has an exclusive flock. It unlocks explicitly: after a mere close, a child that another
/// thread is forking may keep the lock for a moment, and the next one to look would take us for somebody in passing.
struct Probe(Option<Arc<File>>);

impl Probe {
    fn unlock(mut self) -> Arc<File> {
        let file = self.0.take().expect("taken only here");
        let _ = sys::unlock(&file);
        file
    }
}

impl std::ops::Deref for Probe {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_deref().expect("present until the end")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            let _ = sys::unlock(file);
        }
    }
}

impl<'a> Place<'a> {
    fn open(target: &'a Target) -> Result<Self, LockError> {
        let (parent, name) = target.parent_and_name();
        let dir =
            Dir::open(parent).map_err(|error| LockError::io(&target.path, "open the directory of lock file", error))?;
        Ok(Self { target, dir: Arc::new(dir), name })
    }

    /// The private name that a breaker gives the stale file.
    fn breaking(&self) -> OsString {
        private_name(self.name, "break")
    }

    /// The private name under which a file is made where files without a name cannot be had.
    fn making(&self) -> OsString {
        private_name(self.name, "new")
    }

    /// Looks at the name: whose is it?
    fn contend(&self, kept: Option<Arc<File>>) -> Result<Found, LockError> {
        let file = match kept {
            Some(file) if !self.names(self.name, &self.stat(&file)?)? => return Ok(Found::Changed),
            Some(file) => file,
            None => match self.open_lock()? {
                Some(file) => Arc::new(file),
                None => return Ok(Found::Nothing),
            },
        };
        // Lock before reading: whoever holds this lock knows that nobody else judges the file meanwhile.
        let Some((file, locked)) = self.try_lock(self.name, file)? else {
            return Ok(Found::Changed);
        };
        if locked {
            let file = Probe(Some(file));
            if !self.names(self.name, &self.stat(&file)?)? {
                return Ok(Found::Changed);
            }
            let record = self.read(&file)?;
            return self.judge(file, record);
        }
        let record = self.read(&file)?;
        self.judge_locked(file, record)
    }

    /// Asks for our exclusive flock on the file, opened anew at its `name` where that needs writing; `None` if the name is
    /// gone. What it leads to by then is to be checked.
    fn try_lock(&self, name: &OsStr, file: Arc<File>) -> Result<Option<(Arc<File>, bool)>, LockError> {
        let error = match sys::try_lock_exclusive(&file) {
            Ok(locked) => return Ok(Some((file, locked))),
            Err(error) => error,
        };
        if !sys::is_lock_for_writers(&error) {
            return Err(self.lock_failed(error));
        }
        let file = match self.dir.open_writable(name) {
            Ok(file) => Arc::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open for writing, to lock it,", error)),
        };
        let locked = sys::try_lock_exclusive(&file).map_err(|error| self.lock_failed(error))?;
        Ok(Some((file, locked)))
    }

    /// Somebody else has a lock on the file: the holder, or another try or question in passing.
    fn judge_locked(&self, file: Arc<File>, record: Record) -> Result<Found, LockError> {
        let alive = record.pid().is_some_and(pid_exists);
        if !alive {
            return Ok(Found::Unclear(file));
        }
        // A holder's lock is exclusive. If a shared one can be had, only a question is in the way.
        match super::is_locked(&file).map_err(|error| self.lock_failed(error))? {
            true => Ok(Found::Busy(Contended::by_lock(file))),
            false => Ok(Found::Unclear(file)),
        }
    }

    /// Nobody has a lock on the file but us.
    fn judge(&self, file: Probe, record: Record) -> Result<Found, LockError> {
        let stale_pid = match record {
            Record::Shlock(pid) => Some(pid),
            Record::Foreign(pid) => (!pid_exists(pid)).then_some(pid),
            Record::Blank => self.is_older_than_grace(&file)?.then_some(0),
            Record::Flock(_) | Record::Garbage => unreachable!("read() refuses these"),
        };
        let Some(pid) = stale_pid else {
            return Ok(Found::Busy(Contended { file: Some(file.unlock()), foreign: record.pid() }));
        };
        let filesystem = sys::filesystem(&*file).map_err(|error| self.failed("find the file system of", error))?;
        if !filesystem.flock_is_proof() && !self.target.options.break_stale_anywhere {
            return Err(LockError::Stale {
                path: self.target.path.to_path_buf(),
                pid,
                filesystem: filesystem.to_string(),
            });
        }
        Ok(Found::Stale(Stale { file, pid }))
    }

    /// Compares the file's age with a file made just now, so that no wall clock has a say.
    fn is_older_than_grace(&self, file: &File) -> Result<bool, LockError> {
        let Some(fresh) = self.create()? else {
            return Ok(false);
        };
        let now = self.stat(&fresh.file)?.changed;
        Ok(now.checked_sub(self.stat(file)?.changed).is_some_and(|age| age >= GRACE))
    }

    /// The file at the lock's name; an error if it is none of a lock's.
    fn open_lock(&self) -> Result<Option<File>, LockError> {
        let file = match self.dir.open_file(self.name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(match sys::irregular_from_open(&error) {
                    Some(what) => LockError::not_a_lock_file(&self.target.path, format!("it is {what}")),
                    None => self.failed("open lock file", error),
                });
            }
        };
        match self.stat(&file)?.irregular() {
            Some(what) => Err(LockError::not_a_lock_file(&self.target.path, format!("it is {what}"))),
            None => Ok(Some(file)),
        }
    }

    fn read(&self, file: &File) -> Result<Record, LockError> {
        let found = match Record::of(file).map_err(|error| self.failed("read lock file", error))? {
            Record::Garbage => "its content is no lock record; choose another path, or remove it if nobody needs it",
            Record::Flock(_) => "it is the file of an flock lock; open it as that kind, or choose another path",
            record => return Ok(record),
        };
        Err(LockError::not_a_lock_file(&self.target.path, found))
    }

    /// Whether `name` stands for this file.
    fn names(&self, name: &OsStr, file: &Stat) -> Result<bool, LockError> {
        let found = self.dir.stat(name).map_err(|error| self.failed("look at", error))?;
        Ok(found.is_some_and(|found| found.is_same_file(file)))
    }

    fn stat(&self, file: &File) -> Result<Stat, LockError> {
        sys::stat(file).map_err(|error| self.failed("look at", error))
    }

    fn failed(&self, action: &'static str, error: io::Error) -> LockError {
        LockError::io(&self.target.path, action, error)
    }

    fn lock_failed(&self, error: io::Error) -> LockError {
        super::lock_failed(self.target, error)
    }

    fn link_failed(&self, action: &'static str, error: io::Error) -> LockError {
        // On a file system that is known to have links, EPERM is about this file: it may be immutable.
        let is_about_file = error.kind() == io::ErrorKind::PermissionDenied
            && self.target.filesystem().is_ok_and(|filesystem| filesystem.flock_is_proof());
        if sys::is_link_unsupported(&error) && !is_about_file {
            return LockError::unsupported(
                &self.target.path,
                self.target.kind,
                format!("{} has no hard links for us ({error}); use the flock kind", super::place_name(self.target)),
            );
        }
        self.failed(action, error)
    }
}

/// The lock, held.
#[derive(Debug)]
pub(crate) struct Held {
    dir: Arc<Dir>,
    name: OsString,
    file: Arc<File>,
    stat: Stat,
    /// `None` when the lock has been released.
    owner: Option<Owner>,
}

impl Held {
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn identity(&self) -> Identity {
        Identity(self.stat)
    }

    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(super) fn release(mut self, path: &Path) -> Result<(), LockError> {
        let checked = self.identity().check(path);
        let removed = self.remove().map_err(|error| LockError::io(path, "remove lock file", error));
        checked.map_err(|reason| LockError::lost(path, reason))?;
        removed
    }

    /// Unlinks the name if it is still ours, then unlocks: in the other order a second holder could come between.
    fn remove(&mut self) -> io::Result<()> {
        self.owner = None;
        let ours = self.dir.stat(&self.name)?.is_some_and(|found| found.is_same_file(&self.stat));
        let unlinked = if ours { self.dir.unlink(&self.name) } else { Ok(()) };
        // Unlocking also frees the lock for descriptors that a forked child has inherited; close alone would not.
        unlinked.and(sys::unlock(&self.file))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.owner.is_some_and(Owner::is_this_process) {
            let _ = self.remove();
        }
    }
}

/// `.NAME.tokio-lockfile.PURPOSE`; the middle of a name that would be too long gives way to its hash.
fn private_name(name: &OsStr, purpose: &str) -> OsString {
    const LONGEST: usize = 200;
    let mut private = OsString::from(".");
    if name.len() <= LONGEST {
        private.push(name);
    } else {
        private.push(format!("{:016x}", fnv1a(name.as_encoded_bytes())));
    }
    private.push(".tokio-lockfile.");
    private.push(purpose);
    private
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in all versions of this crate and of Rust.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!((fnv1a(b""), fnv1a(b"foobar")), (0xcbf2_9ce4_8422_2325, 0x8594_4171_f739_67e8));
    }

    #[test]
    fn private_names_fit_where_the_lock_fits() {
        assert_eq!(private_name(OsStr::new("app.lock"), "break"), ".app.lock.tokio-lockfile.break");
        assert!(private_name(OsStr::new(&"x".repeat(255)), "break").len() <= 255);
    }
}
