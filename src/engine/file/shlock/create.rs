//! Creates a lock file privately, and then gives it the lock's name if that name is free.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::directory::Directory;
use super::held::HeldShlock;
use super::probe::Probe;
use crate::engine::file::outcome;
use crate::engine::file::record::{self, Mark};
use crate::sys::process::Owner;
use crate::sys::{self, Dir, OpenFile};
use crate::words::error::{CREATE_FILE, LockError, OPEN_FILE};
use crate::words::target::{Address, Target};

/// Another process may still work on a blank file or on a file with unexplained links until the file is this old. This
/// is the rule of INN.
const GRACE: Duration = Duration::from_secs(30);

/// How often a new holder looks whether a breaker is done, which takes it some microseconds.
const LOOKS: u32 = 64;

/// The modification time of all our lock files: 18 January 2038, 00:00:00 UTC.
///
/// The inode gets this time before it gets a name. So if the name survives a crash of the machine, the time survives
/// too, even if the record does not. The time also protects a held lock from programs that remove old files or old
/// locks, such as systemd-tmpfiles(8), dotlockfile(1) and lockfile(1). The time of the last status change tells when
/// the lock was taken.
const OURS: Duration = Duration::from_secs(2_147_385_600);

/// The time when the lock was taken, since the Unix epoch.
pub(super) fn since(stat: &sys::Stat) -> Duration {
    if stat.modified == OURS { stat.changed } else { stat.modified }
}

pub(super) enum Created {
    Held(HeldShlock),
    Changed,
    Unclear,
    /// The file has no name, and the system could not give it one.
    NotLinked,
}

/// How a file stays private until it is the lock.
#[derive(Clone, Copy)]
enum Naming {
    /// The file has no name if that is possible. Otherwise it has a private name.
    Unnamed,
    Private,
}

enum Cleared {
    Gone,
    InUse,
    /// Nobody uses it, but we may not remove it: it is another user's, in a sticky directory.
    Abandoned(io::Error),
}

/// A file that we have created and locked, and that is not the lock yet. The field order matters: the private name must
/// be removed before the file is closed, while the flock still protects the name.
pub(super) struct Private<'a> {
    name: Option<PrivateName<'a>>,
    pub(super) file: OpenFile,
}

/// A private name. The drop removes it.
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
    /// Creates the lock file privately and gives it the lock's name if that name is free.
    pub(super) fn acquire(&self) -> Result<Created, LockError> {
        match self.acquire_by(Naming::Unnamed)? {
            // Either the directory is gone, or the system cannot link a file without a name. Such a link needs /proc.
            // Before Linux 6.10, the only other way needs a capability.
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
            // On NFS the answer of the server can get lost, and the client then sends the request again. The number of
            // links shows whether the first request succeeded.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_linked = mark == Mark::NoProof && from.is_some() && self.stat(&private.file)?.links == 2;
                if !is_linked {
                    return Ok(Created::Changed);
                }
            }
            // Somebody has removed the private name or the directory. The next round finds out which.
            Err(error) if error.kind() == io::ErrorKind::NotFound && from.is_some() => return Ok(Created::Changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Created::NotLinked),
            Err(error) => return Err(self.link_failed(error)),
        }
        let Private { name, file } = private;
        drop(name);
        let mut held = HeldShlock {
            dir: Arc::clone(&self.dir),
            name: self.name.to_owned(),
            file: Arc::new(file),
            is_local: filesystem.flock_is_proof(),
            stat,
            owner: Some(owner),
        };
        // The breaker may be about to remove our file, which it takes for the stale one. So the file stays as it is: if we
        // removed it by its name, that could already be another process's name. The next try judges the file.
        match self.is_breaker_at_work() {
            Ok(false) => {}
            Ok(true) => {
                held.abandon();
                return Ok(Created::Unclear);
            }
            Err(error) => {
                held.abandon();
                return Err(error);
            }
        }
        match self.dir.stat(self.name).map_err(|error| self.failed("look at", error))? {
            // From now on it has a name, which it can lose.
            Some(named) if named.is_same_file(&held.stat) => held.stat = named,
            _ => {
                return match self.take_back(held, &record)? {
                    true => Err(self.splits_names()),
                    false => Ok(Created::Changed),
                };
            }
        }
        if !filesystem.flock_is_proof() && !self.shows_lock()? {
            return Err(self.splits_names());
        }
        Ok(Created::Held(held))
    }

    /// Whether a breaker works on a file that had the lock's name before ours.
    ///
    /// Its last look and its unlink are two calls. Between them, somebody else may have removed the stale file, and we
    /// may have created a new one. Every breaker has its private name before that look, and removes it after the unlink.
    /// So if we find no such name once our file has the lock's name, no breaker removes our file. This also removes the
    /// private name that a dead breaker left: nobody else looks for it. If that may not be removed, no breaker has locked
    /// its file all the same, and one that locks it later looks at the lock's name after that.
    fn is_breaker_at_work(&self) -> Result<bool, LockError> {
        for _ in 0..LOOKS {
            match self.clear(&self.breaking()) {
                Ok(Cleared::Gone | Cleared::Abandoned(_)) => return Ok(false),
                Ok(Cleared::InUse) => std::thread::yield_now(),
                // A breaker's file is a lock file.
                Err(LockError::NotALockFile { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Removes the lock's name if it is ours. The caller has made the link, and the name shows another inode. Some file
    /// systems (sshfs, SMB without `serverino`) and emulators give each name of a file its own inode number. Then the
    /// name is ours. Returns whether it was ours.
    fn take_back(&self, held: HeldShlock, record: &[u8]) -> Result<bool, LockError> {
        // proot makes a symbolic link to our file instead of a hard link.
        let is_link = self.dir.leads_to(self.name, &held.stat).map_err(|error| self.failed("look at", error))?;
        // On SMB nobody can read the file while it is locked, we neither.
        drop(held);
        if is_link {
            self.dir.unlink(self.name).map_err(|error| self.failed("remove our own lock file", error))?;
            return Ok(true);
        }
        let file = match self.dir.open_file(self.name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // Somebody has put something else in the place of our file.
            Err(error) if sys::irregular_from_open(&error).is_some() => return Ok(false),
            Err(error) => return Err(self.failed(OPEN_FILE, error)),
        };
        // If the file belongs to another holder, that holder has an flock on it.
        let is_ours = record::starts_with(&file, record)
            && sys::try_lock_exclusive(&file).map_err(|error| self.lock_failed(error))?;
        if is_ours {
            let _probe = Probe::new(Arc::new(file));
            self.dir.unlink(self.name).map_err(|error| self.failed("remove our own lock file", error))?;
        }
        Ok(is_ours)
    }

    fn splits_names(&self) -> LockError {
        let place = outcome::filesystem_name(self.target);
        let reason = format!("{place} loses the lock on a file that gets another name; use the flock kind");
        self.target.unsupported(reason)
    }

    /// Whether other processes see our flock when they open the lock's name. Some FUSE file systems treat each name of
    /// a file as a separate file.
    fn shows_lock(&self) -> Result<bool, LockError> {
        match self.open_lock() {
            Ok(Some(named)) => outcome::is_locked(&named).map_err(|error| self.lock_failed(error)),
            Ok(None) => Ok(false),
            // SMB does not open a file by its new name as long as it is open by its former one.
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::InvalidInput) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn filesystem_of(&self, file: &File) -> Result<sys::FileSystem, LockError> {
        sys::filesystem(file).map_err(|error| self.failed("find the file system of", error))
    }

    /// Whether a blank file is certainly ours. Then [`acquire`](Self::acquire) has given it its name, and its content
    /// did not survive a crash of the machine.
    pub(super) fn is_our_blank(&self, file: &File) -> Result<bool, LockError> {
        Ok(self.stat(file)?.modified == OURS)
    }

    /// Creates an empty file with our flock on it. It has no name or a private name. `None` if another process is
    /// creating one.
    pub(super) fn create(&self) -> Result<Option<Private<'_>>, LockError> {
        self.create_by(Naming::Unnamed)
    }

    /// As [`create`](Self::create), with a private name.
    pub(super) fn create_private(&self) -> Result<Option<Private<'_>>, LockError> {
        self.create_by(Naming::Private)
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
            Some(created) => (created.map_err(|error| self.failed(CREATE_FILE, error))?, None),
            None => match self.create_named(mode)? {
                Some((file, name)) => (file, Some(name)),
                None => return Ok(None),
            },
        };
        if self.target.options.is_mode_exact {
            sys::set_mode(&file, mode);
        }
        let mut private = Private { name, file };
        let locked = sys::try_lock_exclusive(&private.file).map_err(|error| self.lock_failed(error))?;
        let is_ours = match &mut private.name {
            // Between our open and our flock, another process may have removed the file. To that process the file
            // looked as if its creator were dead.
            Some(named) => {
                named.ours = locked && self.names(&named.name, &self.stat(&private.file)?)?;
                named.ours
            }
            None => locked,
        };
        Ok(is_ours.then_some(private))
    }

    /// Creates a file under a private name. `None` if another process is creating one.
    fn create_named(&self, mode: u32) -> Result<Option<(OpenFile, PrivateName<'_>)>, LockError> {
        let is_shared = sys::filesystem(&*self.dir).is_ok_and(|filesystem| filesystem.flock_is_proof());
        let name = if is_shared { self.creating() } else { self.creating_alone() };
        match self.dir.create_new(&name, mode) {
            Ok(file) => Ok(Some((file, PrivateName { dir: &self.dir, name, ours: true }))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.clear_to_use(&name)?;
                Ok(None)
            }
            Err(error) => Err(self.failed(CREATE_FILE, error)),
        }
    }

    /// Whether the file is older than [`GRACE`]. This compares it with a new file, so both times are from the file
    /// system's clock.
    pub(super) fn is_older_than_grace(&self, file: &File) -> Result<bool, LockError> {
        let Some(fresh) = self.create()? else {
            return Ok(false);
        };
        let now = self.stat(&fresh.file)?.changed;
        Ok(now.checked_sub(self.stat(file)?.changed).is_some_and(|age| age >= GRACE))
    }

    /// Removes a private name if the process that created it is dead.
    fn clear(&self, private: &OsStr) -> Result<Cleared, LockError> {
        let file = match self.dir.open_file(private) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cleared::Gone),
            Err(error) if sys::irregular_from_open(&error).is_some() => return Err(self.is_in_the_way(private)),
            Err(error) => return Err(self.private_failed(private, "open a private file of", error)),
        };
        let stat = self.stat(&file)?;
        let is_ours = stat.irregular().is_none()
            && record::is_record_or_begun(&file)
                .map_err(|error| self.private_failed(private, "read a private file of", error))?;
        if !is_ours {
            return Err(self.is_in_the_way(private));
        }
        let _probe = match self.try_lock(private, Arc::new(file))? {
            Some((file, true)) => Probe::new(file),
            Some((_, false)) => return Ok(Cleared::InUse),
            None => return Ok(Cleared::Gone),
        };
        if self.names(private, &stat)? {
            match self.dir.unlink(private) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Cleared::Abandoned(error)),
                Err(error) => return Err(self.private_failed(private, "remove a private file of", error)),
            }
        }
        Ok(Cleared::Gone)
    }

    /// The same for a caller that needs the name: whether it is free.
    pub(super) fn clear_to_use(&self, private: &OsStr) -> Result<bool, LockError> {
        match self.clear(private)? {
            Cleared::Gone => Ok(true),
            Cleared::InUse => Ok(false),
            Cleared::Abandoned(error) => Err(self.private_failed(private, "remove a private file of", error)),
        }
    }

    /// The error when a file with a private name was not made by us.
    fn is_in_the_way(&self, private: &OsStr) -> LockError {
        self.private(private).not_a_lock_file("it has the name of a private lock file, but is something else")
    }

    /// The error when a call for a private file failed. It names that file only if the file itself is in the way.
    fn private_failed(&self, private: &OsStr, action: &'static str, error: io::Error) -> LockError {
        match error.kind() {
            io::ErrorKind::PermissionDenied => self.private(private).failed("use the private lock file", error),
            _ => self.failed(action, error),
        }
    }

    /// The private file, as an error names it.
    fn private(&self, name: &OsStr) -> Target {
        let path = self.target.path().with_file_name(name).into_os_string();
        Target { address: Address::File(path.into()), ..self.target.clone() }
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

    /// As Termux's proot makes a symbolic link of a hard link.
    #[test]
    fn a_link_that_became_symbolic_is_taken_back_if_it_leads_to_our_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::file(LockKind::Shlock, &dir.path().join("x.lock"), Default::default()).unwrap();
        let directory = Directory::open(&target).unwrap();
        let record = record::shlock(4_194_305, Mark::Proof);
        let [elsewhere, ours] = ["elsewhere", "ours"].map(|name| dir.path().join(name));
        for (to, is_ours) in [(&elsewhere, false), (&ours, true)] {
            std::fs::write(&elsewhere, record).unwrap();
            let Created::Held(held) = directory.acquire().unwrap() else { panic!("the lock is free") };
            std::fs::rename(target.path(), &ours).unwrap();
            std::os::unix::fs::symlink(to, target.path()).unwrap();
            assert_eq!(directory.take_back(held, &record).unwrap(), is_ours);
            assert_eq!(target.path().is_symlink(), !is_ours);
            assert_eq!(std::fs::read(&elsewhere).unwrap(), record);
            let _ = std::fs::remove_file(target.path());
        }
    }
}
