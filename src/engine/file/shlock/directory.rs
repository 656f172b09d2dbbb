//! The open directory of a lock file, and the names in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::private_name::private_name;
use crate::engine::file::outcome;
use crate::engine::file::record::Record;
use crate::sys::{self, Dir, OpenFile, Stat};
use crate::util::random;
use crate::words::error::{LockError, OPEN_DIRECTORY};
use crate::words::target::Target;

/// The open directory of one lock file.
pub(super) struct Directory<'a> {
    pub(super) target: &'a Target,
    pub(super) dir: Arc<Dir>,
    /// The name of the lock file.
    pub(super) name: &'a OsStr,
}

impl<'a> Directory<'a> {
    pub(super) fn open(target: &'a Target) -> Result<Self, LockError> {
        let (parent, name) = target.parent_and_name();
        let opened = match target.options.is_mode_exact {
            true => Dir::open_safely(parent),
            false => Dir::open(parent),
        };
        let dir = opened.map_err(|error| target.failed(OPEN_DIRECTORY, error))?;
        Ok(Self { target, dir: Arc::new(dir), name })
    }

    /// The private name that a breaker gives the stale file.
    pub(super) fn breaking(&self) -> OsString {
        private_name(self.name, "break")
    }

    /// The private name of a file that we create. It is used where files without a name are not available.
    pub(super) fn creating(&self) -> OsString {
        private_name(self.name, "new")
    }

    /// A private name like [`creating`](Self::creating) that no other process uses. On a network file system, our view
    /// of a shared name can be out of date. Then a link by that name could be a link to another process's file.
    pub(super) fn creating_alone(&self) -> OsString {
        let random = (random::fraction() * f64::from(u32::MAX)) as u32;
        private_name(self.name, &format!("{}-{random:08x}.new", std::process::id()))
    }

    /// Opens the file with the lock's name. `None` if there is no such file. It is an error if the file cannot be a
    /// lock file.
    pub(super) fn open_lock(&self) -> Result<Option<OpenFile>, LockError> {
        let file = match self.dir.open_file(self.name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(outcome::open_failed(self.target, error)),
        };
        outcome::stat_regular(self.target, &file)?;
        Ok(Some(file))
    }

    pub(super) fn read(&self, file: &File) -> Result<Record, LockError> {
        let found = match Record::of_lock(file).map_err(|error| self.failed("read lock file", error))? {
            Record::Garbage => {
                "its content is no lock record; choose another path, or the flock kind to lock a file of data"
            }
            Record::Flock(_) => "it is the file of an flock lock; open it as that kind, or choose another path",
            record => return Ok(record),
        };
        Err(self.target.not_a_lock_file(found))
    }

    /// Whether `name` is a name of this file.
    pub(super) fn names(&self, name: &OsStr, file: &Stat) -> Result<bool, LockError> {
        let found = self.dir.stat(name).map_err(|error| self.failed("look at", error))?;
        Ok(found.is_some_and(|found| found.is_same_file(file)))
    }

    pub(super) fn stat(&self, file: &File) -> Result<Stat, LockError> {
        sys::stat(file).map_err(|error| self.failed("look at", error))
    }

    pub(super) fn failed(&self, action: &'static str, error: io::Error) -> LockError {
        self.target.failed(action, error)
    }

    pub(super) fn lock_failed(&self, error: io::Error) -> LockError {
        outcome::lock_failed(self.target, error)
    }

    /// The error when the system could not give our file the lock's name.
    pub(super) fn link_failed(&self, error: io::Error) -> LockError {
        if !sys::is_link_unsupported(&error) {
            return self.failed("link lock file", error);
        }
        let place = outcome::filesystem_name(self.target);
        let reason = format!("{place} does not let us make hard links ({error}); use the flock kind");
        self.target.unsupported_by(reason, error)
    }

    /// Tries to lock the file exclusively. If the file system locks only files that are open for writing, this opens
    /// the file at `name` again. `None` if that name is gone. The caller must check that the name still belongs to the
    /// same file.
    pub(super) fn try_lock(
        &self,
        name: &OsStr,
        file: Arc<OpenFile>,
    ) -> Result<Option<(Arc<OpenFile>, bool)>, LockError> {
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
            Err(error) => {
                return Err(self.failed("get write access, which a lock needs on this file system, to", error));
            }
        };
        let locked = sys::try_lock_exclusive(&file).map_err(|error| self.lock_failed(error))?;
        Ok(Some((file, locked)))
    }
}
