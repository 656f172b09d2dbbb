//! Decides whether the file with the lock's name belongs to a living holder or to a dead holder, or whether this is not
//! clear yet.

use std::fs::File;
use std::sync::Arc;

use super::directory::Directory;
use crate::engine::file::outcome::{self, Contended};
use crate::engine::file::record::{Form, Mark, Record};
use crate::sys::process::pid_exists;
use crate::sys::{self, OpenFile};
use crate::words::error::LockError;

/// The state of the lock's name.
pub(super) enum Found {
    Nothing,
    Changed,
    Busy(Contended),
    Unclear(Arc<OpenFile>),
    Stale(Stale),
}

/// The file of a dead holder.
pub(super) struct Stale {
    pub(super) file: Arc<OpenFile>,
    pub(super) pid: u32,
}

impl Directory<'_> {
    /// Looks at the file with the lock's name, and decides whether its holder is alive.
    pub(super) fn contend(&self, kept: Option<Arc<OpenFile>>) -> Result<Found, LockError> {
        let file = match kept {
            Some(file) if !self.names(self.name, &self.stat(&file)?)? => return Ok(Found::Changed),
            Some(file) => file,
            None => match self.open_lock() {
                Ok(Some(file)) => Arc::new(file),
                Ok(None) => return Ok(Found::Nothing),
                // Another process has a lease on the file, so it has the file open.
                Err(error) if error.io_error().is_some_and(sys::is_open_refused_for_now) => {
                    return Ok(Found::Busy(Contended::default()));
                }
                Err(error) => return Err(error),
            },
        };
        // If nobody has an exclusive flock, no holder that keeps one lives, and none will: it comes before the name.
        let is_locked = outcome::is_locked(&file).map_err(|error| self.lock_failed(error))?;
        if !is_locked {
            let stat = self.stat(&file)?;
            outcome::check_removed(self.target, &file, &stat)?;
            if !self.names(self.name, &stat)? {
                return Ok(Found::Changed);
            }
        }
        let record = self.read(&file)?;
        if is_locked { self.judge_locked(file) } else { self.judge(file, record) }
    }

    /// Judges a file on which somebody has an exclusive flock: the holder or a breaker.
    fn judge_locked(&self, file: Arc<OpenFile>) -> Result<Found, LockError> {
        let stat = self.stat(&file)?;
        // First this name: a breaker removes it last.
        if self.names(&self.breaking(), &stat)? {
            return Ok(Found::Unclear(file));
        }
        Ok(match self.names(self.name, &stat)? {
            true => Found::Busy(Contended::by_lock(file)),
            false => Found::Changed,
        })
    }

    /// Judges a file on which nobody has had an exclusive flock.
    fn judge(&self, file: Arc<OpenFile>, record: Record) -> Result<Found, LockError> {
        let filesystem = sys::filesystem(&**file).map_err(|error| self.failed("find the file system of", error))?;
        let has_proof = filesystem.flock_is_proof();
        let pid = record.pid().unwrap_or(0);
        let is_breakable = match record {
            Record::Shlock(_, Mark::Proof) => has_proof,
            Record::Blank if self.is_our_blank(&file)? => has_proof,
            Record::Shlock(pid, Mark::NoProof) | Record::Foreign(pid, _) if self.is_alive(pid) => {
                return Ok(Found::Busy(Contended::by_foreign(file, Some(pid))));
            }
            Record::Shlock(_, Mark::NoProof) => false,
            Record::Foreign(_, Form::Shlock) => has_proof,
            Record::Foreign(_, Form::Other) => {
                let reason = "its record has the form of another program: let that program remove it";
                return Err(self.stale(pid, reason));
            }
            Record::Blank if self.is_older_than_grace(&file)? => {
                let locked = match sys::record_lock_holder(&file) {
                    Some(pid) => format!(", and pid {pid} has a record lock (fcntl) on it"),
                    None => String::new(),
                };
                let reason = "it is empty and was not made by this library";
                let advice =
                    "if programs lock it with flock(2), open it as flock; find out whose it is before you remove it";
                return Err(self.stale(0, format!("{reason}{locked}: {advice}")));
            }
            Record::Blank | Record::Unknown => {
                return Ok(Found::Busy(Contended::by_foreign(file, None)));
            }
            Record::Flock(_) | Record::Garbage => unreachable!("read() refuses these"),
        };
        if !has_proof && !self.is_still_there(&file) {
            return Ok(Found::Changed);
        }
        if !is_breakable && !self.target.options.break_stale_anywhere {
            let reason = match has_proof {
                false => format!("on {filesystem} nothing proves that its holder is dead"),
                true => "it was made where nothing proves that its holder is dead, such as on another machine".into(),
            };
            let advice = "remove the file by hand once you are sure, or see LockFileBuilder::break_stale_anywhere";
            return Err(self.stale(pid, format!("{reason}: {advice}")));
        }
        Ok(Found::Stale(Stale { file, pid }))
    }

    /// Whether the PID of a record belongs to a living holder, if no flock proves it. Our own records always have a
    /// mark. So a foreign record with our PID is from an earlier process with this PID, or from the program that
    /// started us.
    pub(super) fn is_alive(&self, pid: u32) -> bool {
        pid != sys::current_pid() && pid_exists(pid)
    }

    /// Whether the name still belongs to the file. A network file system may answer from its cache, where the file of a
    /// holder that has released the lock and ended looks stale. A change of the directory makes it ask the server.
    fn is_still_there(&self, file: &File) -> bool {
        let _changes_the_directory = self.create_private();
        let still_named = || self.names(self.name, &self.stat(file)?);
        still_named().unwrap_or(false)
    }

    fn stale(&self, pid: u32, reason: impl Into<String>) -> LockError {
        LockError::Stale { path: self.target.path().to_path_buf(), pid, reason: reason.into() }
    }
}
