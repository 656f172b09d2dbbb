//! Making a lock file privately, and giving it the name if that is free.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use super::{Held, Owner, Place, Probe, record};
use crate::error::LockError;
use crate::sys::{self, Dir};

pub(super) enum Made {
    Held(Held),
    Changed,
    Unclear,
}

pub(super) enum Cleared {
    Gone,
    InUse,
}

/// A file of ours, locked, that is not the lock yet. The name goes before the file, while the lock still protects it.
pub(super) struct Private<'a> {
    name: Option<PrivateName<'a>>,
    pub(super) file: File,
}

/// A private name, removed when this is dropped.
struct PrivateName<'a> {
    dir: &'a Dir,
    name: OsString,
    ours: bool,
}

impl Drop for PrivateName<'_> {
    fn drop(&mut self) {
        if self.ours {
            let _ = self.dir.unlink(&self.name);
        }
    }
}

impl Place<'_> {
    /// Makes the lock file privately and gives it the name, if that is free.
    pub(super) fn acquire(&self) -> Result<Made, LockError> {
        let Some(mut private) = self.create()? else {
            return Ok(Made::Unclear);
        };
        let owner = Owner::this_process();
        let written = private.file.write_all(&record::shlock(owner.0));
        written.map_err(|error| self.failed("write lock file", error))?;
        let stat = self.stat(&private.file)?;
        let from = private.name.as_ref().map(|private| private.name.as_os_str());
        match self.dir.link(&private.file, from, self.name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Made::Changed),
            // Somebody has removed the private name, if there is one, or the directory, which the next round finds.
            Err(error) if error.kind() == io::ErrorKind::NotFound && from.is_some() => return Ok(Made::Changed),
            Err(error) => return Err(self.link_failed("link lock file", error)),
        }
        let Private { name, file } = private;
        drop(name);
        let held = Held {
            dir: Arc::clone(&self.dir),
            name: self.name.to_owned(),
            file: Arc::new(file),
            stat,
            owner: Some(owner),
        };
        if !self.names(self.name, &held.stat)? {
            return Ok(Made::Changed);
        }
        if !self.shows_lock(&held.file)? {
            let place = super::super::place_name(self.target);
            let reason = format!("{place} loses the lock on a file that gets another name; use the flock kind");
            return Err(LockError::unsupported(&self.target.path, self.target.kind, reason));
        }
        // A breaker who died between its two unlinks left this name, and nobody else looks for it. If it cannot be
        // removed, the next who needs it says so; the lock is ours all the same.
        let _ = self.clear(&self.breaking());
        Ok(Made::Held(held))
    }

    /// Whether others find the flock that we have on `file` when they open the lock's name. Some FUSE file systems take
    /// each name of a file for another file.
    fn shows_lock(&self, file: &File) -> Result<bool, LockError> {
        let filesystem = sys::filesystem(file).map_err(|error| self.failed("find the file system of", error))?;
        if filesystem.flock_is_proof() {
            return Ok(true);
        }
        match self.open_lock()? {
            Some(named) => super::super::is_locked(&named).map_err(|error| self.lock_failed(error)),
            None => Ok(false),
        }
    }

    /// An empty file with our flock on it that is not at the lock's name; `None` if another process is making one.
    pub(super) fn create(&self) -> Result<Option<Private<'_>>, LockError> {
        let mode = self.target.options.mode.unwrap_or(0o644);
        let (file, name) = match self.dir.create_unnamed(mode) {
            Ok(file) => (file, None),
            Err(error) if cannot_be_unnamed(&error) => {
                let name = self.making();
                match self.dir.create_new(&name, mode) {
                    Ok(file) => (file, Some(PrivateName { dir: &self.dir, name, ours: true })),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        self.clear(&name)?;
                        return Ok(None);
                    }
                    Err(error) => return Err(self.failed("create lock file", error)),
                }
            }
            Err(error) => return Err(self.failed("create lock file", error)),
        };
        let mut private = Private { name, file };
        let locked = sys::try_lock_exclusive(&private.file).map_err(|error| self.lock_failed(error))?;
        if let Some(named) = &mut private.name {
            // Between our open and our flock somebody may have taken the file for a dead process's, and removes it.
            if !locked || !self.names(&named.name, &self.stat(&private.file)?)? {
                named.ours = false;
                return Ok(None);
            }
        }
        Ok(Some(private))
    }

    /// Removes a private name if the process that made it is dead.
    pub(super) fn clear(&self, private: &OsStr) -> Result<Cleared, LockError> {
        let file = match self.dir.open_file(private) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cleared::Gone),
            Err(error) => return Err(self.failed("open a private file of", error)),
        };
        let stat = self.stat(&file)?;
        let is_ours = stat.irregular().is_none()
            && record::is_record_or_begun(&file).map_err(|error| self.failed("read a private file of", error))?;
        if !is_ours {
            return Err(LockError::not_a_lock_file(
                &self.target.path.with_file_name(private),
                "it is not a lock file, but has the name of a private one",
            ));
        }
        let _probe = match self.try_lock(private, Arc::new(file))? {
            Some((file, true)) => Probe(Some(file)),
            Some((_, false)) => return Ok(Cleared::InUse),
            None => return Ok(Cleared::Gone),
        };
        if self.names(private, &stat)? {
            self.dir.unlink(private).map_err(|error| self.failed("remove a private file of", error))?;
        }
        Ok(Cleared::Gone)
    }
}

fn cannot_be_unnamed(error: &io::Error) -> bool {
    // EISDIR is what kernels before 3.11 and some file systems make of O_TMPFILE (open(2)).
    sys::is_lock_unsupported(error)
        || sys::irregular_from_open(error).is_some()
        || error.kind() == io::ErrorKind::NotFound
}
