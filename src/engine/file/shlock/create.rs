//! Creating a lock file privately, and giving it the name if that is free.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::directory::Directory;
use super::held::Held;
use super::probe::Probe;
use crate::engine::file::outcome;
use crate::engine::file::record::{self, Mark};
use crate::sys::process::Owner;
use crate::sys::{self, Dir};
use crate::words::error::LockError;

/// A blank file, or one with unexplained links, may still be in work until it is this old (INN's rule).
const GRACE: Duration = Duration::from_secs(30);

/// The modification time of every lock file of ours: 18 January 2038, 00:00:00 UTC.
///
/// It is in the inode before the inode has a name, so it survives a crash of the machine with the name, also where the
/// record does not. And no program that removes files or locks by their age takes a lock that is held: systemd-tmpfiles(8),
/// dotlockfile(1), lockfile(1). When the lock was taken is the time of the last status change.
const OURS: Duration = Duration::from_secs(2_147_385_600);

/// When the lock was taken, since the Unix epoch.
pub(super) fn since(stat: &sys::Stat) -> Duration {
    if stat.modified == OURS { stat.changed } else { stat.modified }
}

pub(super) enum Created {
    Held(Held),
    Changed,
    Unclear,
    /// The file has no name, and could not be given one.
    NotLinked,
}

/// How a file is kept private until it is the lock.
#[derive(Clone, Copy)]
enum Naming {
    /// Without a name where that is possible, else under a private one.
    Unnamed,
    Private,
}

pub(super) enum Cleared {
    Gone,
    InUse,
}

/// A file of ours that is locked and is not the lock yet. Its private name is removed before the file is closed, while
/// its flock still protects it.
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

impl Directory<'_> {
    /// Creates the lock file privately and gives it the name, if that is free.
    pub(super) fn acquire(&self) -> Result<Created, LockError> {
        match self.acquire_by(Naming::Unnamed)? {
            // The file has no name, so the directory is gone, or nothing links a file without a name: that needs a
            // capability before Linux 6.10, else /proc.
            Created::NotLinked => self.acquire_by(Naming::Private),
            created => Ok(created),
        }
    }

    fn acquire_by(&self, naming: Naming) -> Result<Created, LockError> {
        let Some(private) = self.create_by(naming)? else {
            return Ok(Created::Unclear);
        };
        let owner = Owner::this_process();
        let filesystem = self.filesystem_of(&private.file)?;
        let mark = if filesystem.flock_is_proof() { Mark::Proof } else { Mark::NoProof };
        let record = record::shlock(owner.pid(), mark);
        let written = record::write(&private.file, &record);
        written.map_err(|error| self.failed("write lock file", error))?;
        sys::set_modified(&private.file, OURS).map_err(|error| self.failed("set the times of lock file", error))?;
        let stat = self.stat(&private.file)?;
        let from = private.name.as_ref().map(|private| private.name.as_os_str());
        match self.dir.link(&private.file, from, self.name) {
            Ok(()) => {}
            // The answer of a server can get lost, and the client then asks again. The number of links tells (NFS).
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_linked = mark == Mark::NoProof && from.is_some() && self.stat(&private.file)?.links == 2;
                if !is_linked {
                    return Ok(Created::Changed);
                }
            }
            // Somebody has removed the private name or the directory. The next round finds out.
            Err(error) if error.kind() == io::ErrorKind::NotFound && from.is_some() => return Ok(Created::Changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Created::NotLinked),
            Err(error) => return Err(self.link_failed(error)),
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
            return match self.take_back(&record)? {
                true => Err(self.splits_names()),
                false => Ok(Created::Changed),
            };
        }
        if !filesystem.flock_is_proof() && !self.shows_lock()? {
            return Err(self.splits_names());
        }
        // A breaker that died between its two unlinks left this name, and nobody else looks for it. If it cannot be
        // removed, the lock is ours all the same, and the next process that needs the name reports it.
        let _ = self.clear(&self.breaking());
        Ok(Created::Held(held))
    }

    /// After a link, the name shows another inode. Some file systems (sshfs, SMB without `serverino`) and emulators give
    /// each name of a file an inode of its own. Then the name is ours, and is removed. Returns whether it was.
    fn take_back(&self, record: &[u8]) -> Result<bool, LockError> {
        let file = match self.dir.open_file(self.name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // What proot makes of a link: a symbolic link to our file.
            Err(error) if sys::irregular_from_open(&error).is_some() => {
                let is_ours = self.dir.follow(self.name).is_ok_and(|file| record::starts_with(&file, record));
                if is_ours {
                    self.dir.unlink(self.name).map_err(|error| self.failed("take back", error))?;
                }
                return Ok(is_ours);
            }
            Err(error) => return Err(self.failed("open lock file", error)),
        };
        // Another holder has its flock on its file.
        let is_ours = record::starts_with(&file, record)
            && sys::try_lock_exclusive(&file).map_err(|error| self.lock_failed(error))?;
        if is_ours {
            let _probe = Probe::new(Arc::new(file));
            self.dir.unlink(self.name).map_err(|error| self.failed("take back", error))?;
        }
        Ok(is_ours)
    }

    fn splits_names(&self) -> LockError {
        let place = outcome::filesystem_name(self.target);
        let reason = format!("{place} loses the lock on a file that gets another name; use the flock kind");
        LockError::unsupported(&self.target.path, self.target.kind, reason)
    }

    /// Whether others see our flock when they open the lock's name. Some FUSE file systems treat each name of a file as
    /// another file.
    fn shows_lock(&self) -> Result<bool, LockError> {
        match self.open_lock()? {
            Some(named) => outcome::is_locked(&named).map_err(|error| self.lock_failed(error)),
            None => Ok(false),
        }
    }

    fn filesystem_of(&self, file: &File) -> Result<sys::FileSystem, LockError> {
        sys::filesystem(file).map_err(|error| self.failed("find the file system of", error))
    }

    /// Whether a blank file is certainly one of ours: its name was given to it by [`acquire`](Self::acquire), but its
    /// content did not survive a crash of the machine.
    pub(super) fn is_our_blank(&self, file: &File) -> Result<bool, LockError> {
        Ok(self.stat(file)?.modified == OURS)
    }

    /// An empty file with our flock on it, under no name or a private one. `None` if another process is creating one.
    pub(super) fn create(&self) -> Result<Option<Private<'_>>, LockError> {
        self.create_by(Naming::Unnamed)
    }

    fn create_by(&self, naming: Naming) -> Result<Option<Private<'_>>, LockError> {
        let mode = self.target.options.mode.unwrap_or(0o644);
        let unnamed = match naming {
            Naming::Unnamed => match self.dir.create_unnamed(mode) {
                Err(error) if cannot_be_unnamed(&error) => None,
                created => Some(created),
            },
            Naming::Private => None,
        };
        let (file, name) = match unnamed {
            Some(created) => (created.map_err(|error| self.failed("create lock file", error))?, None),
            None => match self.create_named(mode)? {
                Some((file, name)) => (file, Some(name)),
                None => return Ok(None),
            },
        };
        let mut private = Private { name, file };
        let locked = sys::try_lock_exclusive(&private.file).map_err(|error| self.lock_failed(error))?;
        if let Some(named) = &mut private.name {
            // Between our open and our flock, somebody may have taken the file for one of a dead process and removed it.
            if !locked || !self.names(&named.name, &self.stat(&private.file)?)? {
                named.ours = false;
                return Ok(None);
            }
        }
        Ok(Some(private))
    }

    /// A file under a private name; `None` if another process is creating one.
    fn create_named(&self, mode: u32) -> Result<Option<(File, PrivateName<'_>)>, LockError> {
        let is_shared = sys::filesystem(&*self.dir).is_ok_and(|filesystem| filesystem.flock_is_proof());
        let name = if is_shared { self.creating() } else { self.creating_alone() };
        match self.dir.create_new(&name, mode) {
            Ok(file) => Ok(Some((file, PrivateName { dir: &self.dir, name, ours: true }))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.clear(&name)?;
                Ok(None)
            }
            Err(error) => Err(self.failed("create lock file", error)),
        }
    }

    /// Compares the age of the file with that of a file made just now, so that no wall clock decides.
    pub(super) fn is_older_than_grace(&self, file: &File) -> Result<bool, LockError> {
        let Some(fresh) = self.create()? else {
            return Ok(false);
        };
        let now = self.stat(&fresh.file)?.changed;
        Ok(now.checked_sub(self.stat(file)?.changed).is_some_and(|age| age >= GRACE))
    }

    /// Removes a private name if the process that created it is dead.
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
            Some((file, true)) => Probe::new(file),
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
    // Kernels before 3.11 and some file systems answer O_TMPFILE with EISDIR (open(2)).
    sys::is_lock_unsupported(error)
        || sys::irregular_from_open(error).is_some()
        || error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::kind::LockKind;
    use crate::words::target::Target;

    /// As Termux's proot makes a symbolic link of a hard link.
    #[test]
    fn a_link_that_became_symbolic_is_taken_back_if_it_leads_to_our_record() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::file(LockKind::Shlock, &dir.path().join("x.lock"), Default::default()).unwrap();
        let directory = Directory::open(&target).unwrap();
        let record = record::shlock(4_194_305, Mark::Proof);
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &target.path).unwrap();
        for (content, is_ours) in [(&b"somebody's notes"[..], false), (&record, true)] {
            std::fs::write(&elsewhere, content).unwrap();
            assert_eq!(directory.take_back(&record).unwrap(), is_ours);
            assert_eq!(target.path.is_symlink(), !is_ours);
            assert_eq!(std::fs::read(&elsewhere).unwrap(), content);
        }
    }
}
