//! Whose is the file at the lock's name: a living holder's, a dead one's, or nobody can tell yet.

use std::fs::File;
use std::sync::Arc;

use super::directory::Directory;
use super::probe::Probe;
use crate::engine::file::outcome::{self, Contended};
use crate::engine::file::record::Record;
use crate::sys;
use crate::sys::process::pid_exists;
use crate::words::error::LockError;

/// What is at the name of the lock.
pub(super) enum Found {
    Nothing,
    Changed,
    Busy(Contended),
    Unclear(Arc<File>),
    Stale(Stale),
}

/// A file whose holder is dead, with our exclusive flock on it.
pub(super) struct Stale {
    pub(super) file: Probe,
    pub(super) pid: u32,
}

impl Directory<'_> {
    /// Looks at the file at the lock's name, and judges whose it is.
    pub(super) fn contend(&self, kept: Option<Arc<File>>) -> Result<Found, LockError> {
        let file = match kept {
            Some(file) if !self.names(self.name, &self.stat(&file)?)? => return Ok(Found::Changed),
            Some(file) => file,
            None => match self.open_lock()? {
                Some(file) => Arc::new(file),
                None => return Ok(Found::Nothing),
            },
        };
        // Lock before reading. Then nobody else judges the file at the same time.
        let Some((file, locked)) = self.try_lock(self.name, file)? else {
            return Ok(Found::Changed);
        };
        if locked {
            let file = Probe::new(file);
            if !self.names(self.name, &self.stat(&file)?)? {
                return Ok(Found::Changed);
            }
            let record = self.read(&file)?;
            return self.judge(file, record);
        }
        let record = self.read(&file)?;
        self.judge_locked(file, record)
    }

    /// Somebody else has a lock on the file: the holder, another try, or somebody who only asks.
    fn judge_locked(&self, file: Arc<File>, record: Record) -> Result<Found, LockError> {
        let alive = record.pid().is_some_and(pid_exists);
        if !alive {
            return Ok(Found::Unclear(file));
        }
        // If a shared flock is possible, no holder has an exclusive one. Then somebody only asks.
        match outcome::is_locked(&file).map_err(|error| self.lock_failed(error))? {
            true => Ok(Found::Busy(Contended::by_lock(file))),
            false => Ok(Found::Unclear(file)),
        }
    }

    /// Nobody but us has a lock on the file.
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
}
