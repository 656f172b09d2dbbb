//! A lock on a file that stays: flock(2), as flock(1) and PEAK's `FLockFile` use it, and on Windows `LockFileEx`.
//!
//! The record in the file is only information. A holder writes it only into a file that its own try has created for the
//! lock, or that already holds such a record. An existing empty file may be somebody's data, and so may every other
//! content: nothing is written there, and nothing is truncated. The file stays at release. Unlinking it would split the
//! lock between those who wait on the old inode and those who open the new one.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, SystemTime};

use super::execution::Access;
use super::flock_holder;
use super::outcome::{self, Contended, FileIdentity, Outcome};
use super::record::{self, Record};
use crate::sys::process::{self, Owner};
use crate::sys::{self, OpenFile, Stat};
use crate::words::error::{LockError, OPEN_FILE};
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::Target;

/// How often a try starts again when the file changes under it, before it answers that the outcome is unclear.
const ROUNDS: u32 = 16;

/// How often, and how far apart, whoever asks for the file looks whether a lease on it has gone.
const LEASE_LOOKS: u32 = 50;
const LEASE_LOOK: Duration = Duration::from_millis(1);

/// Tries once.
pub(super) fn attempt(
    target: &Target,
    mode: Mode,
    last: &Contended,
    access: Access,
) -> Result<Outcome<HeldFlock>, LockError> {
    let mut kept = last.file().cloned();
    for _ in 0..ROUNDS {
        let was_kept = kept.is_some();
        let (mut file, is_new) = match kept.take() {
            Some(file) => (file, false),
            None => match open(target, mode, access)? {
                Some((file, is_new)) => (Arc::new(file), is_new),
                None => return Ok(Outcome::Busy(Contended::default())),
            },
        };
        let mut locked = try_lock(mode, &file);
        if locked.as_ref().is_err_and(sys::is_lock_for_writers) {
            let action = "get write access, which a lock needs on this file system, to";
            file = match sys::reopen_for_writing(&file, target.path()) {
                Err(error) if sys::is_open_refused_for_now(&error) => return Ok(Outcome::Busy(Contended::default())),
                writable => Arc::new(writable.map_err(|error| target.failed(action, error))?),
            };
            locked = try_lock(mode, &file);
        }
        // A device may fail to be locked. So first the error for a file that is not a regular one.
        let stat = outcome::stat_regular(target, &file)?;
        let locked = match locked {
            Err(error) if was_kept && sys::is_file_gone(&error) => continue,
            locked => locked.map_err(|error| outcome::lock_failed(target, error))?,
        };
        // The file may have lost its name before we locked it. The lock is where the name is.
        if locked || was_kept {
            outcome::check_removed(target, &file, &stat)?;
            if FileIdentity(stat).check(target.path()).is_err() {
                continue;
            }
        }
        let is_ours = is_new || last.ours.as_ref().is_some_and(|ours| ours.is_of(&stat));
        if locked {
            let owner = Owner::this_process();
            // A record has one PID, so shared holders write none.
            let is_wanted = target.options.record && mode == Mode::Exclusive;
            let found = if is_wanted { find_record(&file, &stat, is_ours) } else { None };
            let written = found.map(|_| record::write(&file, &record::flock(owner.pid())));
            let wrote = written.is_some_and(|written| written.is_ok());
            let is_ours = is_ours || found.is_some_and(|dead| dead.is_some());
            let held = HeldFlock {
                file,
                stat,
                is_ours,
                wrote: AtomicBool::new(wrote),
                data: OnceLock::new(),
                clearing: Once::new(),
                owner: Some(owner),
            };
            // A holder blanks its record at release, where it can. So a record that is still there is that of a dead one.
            return Ok(Outcome::Acquired { held, taken_over: found.flatten().filter(|_| wrote) });
        }
        // If a shared lock is possible, no holder is exclusive. Then somebody only asks, or a program holds a shared lock;
        // the next look still finds that one.
        let is_asked = mode == Mode::Exclusive
            && !last.is_awaited
            && !outcome::is_locked(&file).map_err(|error| outcome::lock_failed(target, error))?;
        if is_asked {
            let ours = is_ours.then(|| Box::new(FileIdentity(stat)));
            return Ok(Outcome::Unclear(Contended::by_lock(file).with_ours(ours)));
        }
        return Ok(Outcome::Busy(Contended::by_lock(file)));
    }
    Ok(Outcome::Unclear(Contended::default()))
}

fn try_lock(mode: Mode, file: &File) -> io::Result<bool> {
    match mode {
        Mode::Exclusive => sys::try_lock_exclusive(file),
        Mode::Shared => sys::try_lock_shared(file),
    }
}

/// Who holds the lock: one process, or all that share it.
pub(super) fn holders(target: &Target) -> Result<Vec<Holder>, LockError> {
    let Some(file) = sys::open_existing(target.path()).map_err(|error| open_failed(target, error))? else {
        return Ok(Vec::new());
    };
    let stat = outcome::stat_regular(target, &file)?;
    let record = Record::of_lock(&file).map_err(|error| target.failed("read lock file", error))?;
    let recorded = match record {
        Record::Flock(pid) => pid,
        _ => None,
    };
    let is_locked = outcome::is_locked(&file).map_err(|error| outcome::lock_failed(target, error))?;
    let found = match is_locked {
        true => vec![flock_holder::find_exclusive(&stat, recorded)],
        false => flock_holder::find_shared(&stat),
    };
    // The time of the record is that of its writer, who holds the lock alone.
    let since = |pid| (is_locked && recorded == Some(pid)).then(|| SystemTime::UNIX_EPOCH + stat.modified);
    Ok(found.into_iter().map(|pid| process::holder(pid, since(pid))).collect())
}

/// The lock file, and whether this call has created it. `None` if somebody keeps it from being opened for now.
fn open(target: &Target, mode: Mode, access: Access) -> Result<Option<(OpenFile, bool)>, LockError> {
    let permissions = target.options.mode.unwrap_or(0o666);
    loop {
        let opened = match open_existing(target, mode, access) {
            Ok(None) => {
                sys::create(target.path(), permissions, target.options.is_mode_exact).map(|new| Some((new?, true)))
            }
            opened => opened.map(|file| Some((file?, false))),
        };
        match opened {
            // Somebody else has just created it.
            Ok(None) => {}
            Err(error) if sys::is_open_refused_for_now(&error) => return Ok(None),
            opened => return opened.map_err(|error| open_failed(target, error)),
        }
    }
}

/// A lock is not a write. An open for writing fails for a program that runs, and for a file that chattr(1) has made
/// immutable or append-only; it breaks the leases of other processes (fcntl(2), F_SETLEASE); and its close tells everybody
/// who watches the file that it was saved. So the file is opened for writing only where a record is to be written.
fn open_existing(target: &Target, mode: Mode, access: Access) -> io::Result<Option<OpenFile>> {
    if access == Access::Writing {
        if let Ok(file) = sys::open_for_writing(target.path()) {
            return Ok(Some(file));
        }
    }
    let Some(file) = sys::open_existing(target.path())? else { return Ok(None) };
    let has_record = || {
        let stat = sys::stat(&file).ok().filter(|stat| stat.irregular().is_none());
        stat.and_then(|stat| find_record(&file, &stat, false)).is_some()
    };
    let writable = match target.options.record && mode == Mode::Exclusive && has_record() {
        true => sys::reopen_for_writing(&file, target.path()).ok(),
        false => None,
    };
    Ok(Some(writable.unwrap_or(file)))
}

fn open_failed(target: &Target, error: io::Error) -> LockError {
    // The error may be about the directory.
    let is_there = !matches!(sys::stat_path(target.path()), Ok(None) | Err(_));
    if is_there { outcome::open_failed(target, error) } else { target.failed(OPEN_FILE, error) }
}

/// Where a record may be written: the PID in the present record, if there is one. `None` where a record would harm other
/// content.
fn find_record(file: &File, stat: &Stat, is_ours: bool) -> Option<Option<u32>> {
    match stat.size {
        0 => is_ours.then_some(None),
        size if size == record::FLOCK_LEN as u64 => match Record::of_flock(file) {
            Ok(Record::Flock(pid)) => Some(pid),
            _ => None,
        },
        _ => None,
    }
}

/// Opens the file for writing, where that is permitted. An open that meets the lease of another process asks the other one
/// to give it back, which takes a moment.
fn reopen_after_leases(file: &File, path: &Path) -> io::Result<OpenFile> {
    for _ in 1..LEASE_LOOKS {
        match sys::reopen_for_writing(file, path) {
            Err(error) if sys::is_open_refused_for_now(&error) => std::thread::sleep(LEASE_LOOK),
            reopened => return reopened,
        }
    }
    sys::reopen_for_writing(file, path)
}

/// A held lock.
#[derive(Debug)]
pub(super) struct HeldFlock {
    file: Arc<OpenFile>,
    stat: Stat,
    /// Whether the file was made for this lock for certain: by this try, or with the record of a dead holder.
    is_ours: bool,
    /// Whether the owner's record is in the file, as far as we know.
    wrote: AtomicBool,
    /// The file once more, for whoever asks for it, where `file` is open only for reading and may be written.
    data: OnceLock<Option<OpenFile>>,
    /// Takes the record out for whoever asks for the file.
    clearing: Once,
    /// `None` when the lock has been released.
    owner: Option<Owner>,
}

impl HeldFlock {
    pub(super) fn file(&self) -> &Arc<OpenFile> {
        &self.file
    }

    pub(super) fn has_record(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }

    /// The file for its user: without our record. A file that was made for this lock is empty again. Any other one is as it
    /// was: sixteen bytes of NUL, which may be somebody's data.
    pub(super) fn data_file(&self, path: &Path) -> &OpenFile {
        self.clearing.call_once(|| {
            if self.wrote.swap(false, Ordering::Relaxed) && self.is_record_whole() {
                let _ = match self.is_ours {
                    true => sys::truncate(&self.file),
                    false => record::write(&self.file, &record::FLOCK_BLANK),
                };
            }
        });
        if self.data.get().is_none() {
            let data = match sys::is_open_for_writing(&self.file) {
                true => None,
                false => match reopen_after_leases(&self.file, path) {
                    // The next call asks again.
                    Err(error) if sys::is_open_refused_for_now(&error) => return &self.file,
                    reopened => reopened.ok(),
                },
            };
            // Another thread may have been first.
            let _ = self.data.set(data);
        }
        self.data.get().and_then(Option::as_ref).unwrap_or(&self.file)
    }

    /// The file, if it was made for this lock for certain.
    pub(super) fn ours(&self) -> Option<Box<FileIdentity>> {
        self.is_ours.then(|| Box::new(self.identity()))
    }

    pub(super) fn identity(&self) -> FileIdentity {
        FileIdentity(self.stat)
    }

    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(super) fn release(mut self, target: &Target) -> Result<(), LockError> {
        let blanked = self.blank();
        // After the write: a look before it would make the kernel write one more time stamp.
        let checked = self.identity().check(target.path());
        let unlocked = self.unlock().map_err(|error| target.failed("unlock", error));
        checked.map_err(|reason| target.lost(reason))?;
        unlocked?;
        blanked.map_err(|error| target.failed("blank the record in lock file", error))
    }

    /// Unlocks before the close. This frees the lock at once, also where a forked child has the descriptor too. The close
    /// that follows is the event that waiters see.
    fn unlock(&mut self) -> io::Result<()> {
        let _ = self.blank();
        self.owner = None;
        sys::unlock(&self.file)
    }

    /// Blanks the record if it is still there. The holder may have written data in its place.
    fn blank(&mut self) -> io::Result<()> {
        match std::mem::take(self.wrote.get_mut()) && self.is_record_whole() {
            true => record::write(&self.file, &record::FLOCK_BLANK),
            false => Ok(()),
        }
    }

    /// Whether the owner's record is all that the file holds.
    fn is_record_whole(&self) -> bool {
        self.owner.is_some_and(|owner| record::is_all_of(&self.file, &record::flock(owner.pid())))
    }
}

impl Drop for HeldFlock {
    fn drop(&mut self) {
        if self.owner.is_some_and(Owner::is_this_process) {
            let _ = self.unlock();
        }
    }
}
