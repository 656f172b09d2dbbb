//! What one try of a protocol answers, and what the protocols share.
//!
//! What the errors of system calls mean. All errors that are not in the table are errors of the try: being unable to look
//! proves nothing. "This machine" means memory and local disks, see [`FileSystem`](sys::FileSystem).
//!
//! | Call | Error | Where | Meaning |
//! |---|---|---|---|
//! | flock | EWOULDBLOCK | everywhere | held, or look again if the other lock need not be a holder's |
//! | | EACCES | SMB | held: its locks are mandatory (flock(2)) |
//! | | EACCES, EPERM | elsewhere | error: a security policy denies it, and others may still lock |
//! | | EOPNOTSUPP, 524, ENOSYS, EINVAL | everywhere | unsupported: no such locks. 524 is the kernel's ENOTSUPP |
//! | | ENOLCK | this machine | error: no memory for one more lock, which passes |
//! | | ENOLCK | elsewhere | unsupported: the server has no service for locks |
//! | | EBADF | NFS | open the file for writing and look again; an error if that is not permitted |
//! | | ESTALE | NFS | look again: the file was removed on the server |
//! | open | ENOENT | everywhere | free. If the directory is missing, an error |
//! | | EAGAIN | everywhere | held: somebody has a lease on the file, so has it open |
//! | | ELOOP, EISDIR, ENXIO, EOPNOTSUPP | everywhere | not a lock file |
//! | | EEXIST, with O_EXCL | everywhere | look again: somebody was first |
//! | open, for writing | every error | everywhere | open it for reading. The record is left out then |
//! | open, O_TMPFILE | ENOENT, EISDIR, EOPNOTSUPP, 524, ENOSYS, EINVAL | everywhere | create it with a private name |
//! | read | EACCES | SMB | a record that cannot be read, of whoever has the lock |
//! | stat | ENOENT, ENOTDIR | everywhere | no file there |
//! | linkat | EEXIST | everywhere | look again: somebody was first. On NFS two links mean that it was we |
//! | | ENOENT | everywhere | look again: the file is gone; or create it with a private name, if it had none |
//! | | EPERM, EACCES, EXDEV, EMLINK, EOPNOTSUPP, 524, ENOSYS | everywhere | unsupported for a new file: no hard links. An error for a stale one: it is immutable, or another user's (proc_sys_fs(5), protected_hardlinks) |
//! | unlinkat | ENOENT | everywhere | done: somebody else has removed it |
//! | pidfd_open | ESRCH, EINVAL, ENOENT | everywhere | no such process. Every other error: ask kill |
//! | kill | ESRCH | everywhere | no such process. Every other error: it is alive |
//! | all | EINTR | everywhere | call again |

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::execution;
use crate::sys::process::Owner;
use crate::sys::{self, OpenFile};
use crate::words::error::{LockError, LostReason, OPEN_FILE};
use crate::words::target::Target;

/// The thread on which a try runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    /// A few system calls on memory, no more.
    Executor,
    Pool,
}

/// What one try has found.
#[derive(Debug)]
pub(super) enum Outcome<Held> {
    Acquired {
        held: Held,
        /// The dead holder from whom the lock was taken; `Some(0)` if its record was blank.
        taken_over: Option<u32>,
    },
    /// Somebody holds the lock.
    Busy(Contended),
    /// Somebody is in the way who need not be a holder, such as another process's try. The caller looks again after a
    /// moment.
    Unclear(Contended),
    /// The way on is too slow for the executor. The caller tries on the blocking pool.
    Slow,
}

impl<Held> Outcome<Held> {
    pub(super) fn map<Other>(self, into: impl FnOnce(Held) -> Other) -> Outcome<Other> {
        match self {
            Self::Acquired { held, taken_over } => Outcome::Acquired { held: into(held), taken_over },
            Self::Busy(contended) => Outcome::Busy(contended),
            Self::Unclear(contended) => Outcome::Unclear(contended),
            Self::Slow => Outcome::Slow,
        }
    }
}

/// What a try that did not get the lock leaves for the next try.
#[derive(Debug, Default)]
pub(super) struct Contended {
    /// The file that the try has opened. The next try uses the same descriptor: opening and closing the file again would
    /// wake everybody who watches it.
    kept: Option<(Arc<OpenFile>, Owner)>,
    /// The PID in a record whose holder keeps no lock on the file. Only the end of that process tells that the lock is
    /// free.
    pub(super) foreign: Option<u32>,
    /// When a dead holder's file last changed whose links the last try could not explain. Until it changes again, or is old,
    /// a search through the directory finds nothing new.
    #[cfg_attr(windows, expect(dead_code, reason = "a shlock's file has links"))]
    pub(super) unexplained: Option<Duration>,
    /// The file, if this try has made it for the lock for certain, and the lock was taken back from it.
    pub(super) ours: Option<Box<FileIdentity>>,
    /// Whether the try is part of a wait. Then it need not find out who is in the way: whoever it is, his end wakes the
    /// waiter.
    pub(super) is_awaited: bool,
}

impl Contended {
    pub(super) fn by_lock(file: Arc<OpenFile>) -> Self {
        Self { kept: Some((file, Owner::this_process())), ..Self::default() }
    }

    /// Held by the process with this PID, which keeps no lock on the file.
    #[cfg(unix)]
    pub(super) fn by_foreign(file: Arc<OpenFile>, pid: Option<u32>) -> Self {
        Self { foreign: pid, ..Self::by_lock(file) }
    }

    /// By a dead holder's file with links that nothing explains, which last changed at this time.
    #[cfg(unix)]
    pub(super) fn by_links(changed: Duration) -> Self {
        Self { unexplained: Some(changed), ..Self::default() }
    }

    /// Also with the file that this try has made for the lock.
    pub(super) fn with_ours(self, ours: Option<Box<FileIdentity>>) -> Self {
        Self { ours, ..self }
    }

    /// The open file of the last try; `None` in a forked child, which shares it with its parent: a lock on it would be
    /// the parent's too.
    pub(super) fn file(&self) -> Option<&Arc<OpenFile>> {
        self.kept.as_ref().filter(|(_, owner)| owner.is_this_process()).map(|(file, _)| file)
    }
}

/// Which file is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileIdentity(pub(super) sys::Stat);

impl FileIdentity {
    pub(super) fn is_of(&self, stat: &sys::Stat) -> bool {
        self.0.is_same_file(stat)
    }

    /// Whether `path` leads to the file; if not, what has happened.
    pub(super) fn check(&self, path: &Path) -> Result<(), LostReason> {
        match sys::stat_path(path) {
            // A file that is itself bind-mounted stays at its path when somebody removes or replaces it elsewhere. Who
            // takes the lock there locks another file.
            Ok(Some(found)) if found.is_same_file(&self.0) && found.has_lost_its_name_since(&self.0) => {
                Err(LostReason::Removed)
            }
            Ok(Some(found)) if found.is_same_file(&self.0) => Ok(()),
            // After a chroot(2) the path leads elsewhere, and nothing tells what has happened to the file.
            Ok(_) if root_has_changed() => Ok(()),
            Ok(Some(_)) => Err(LostReason::Replaced),
            Ok(None) => Err(LostReason::Removed),
            // Being unable to look is no proof of a loss.
            Err(_) => Ok(()),
        }
    }
}

/// The root directory of this process when it made its first handle.
static ROOT: OnceLock<Option<sys::Stat>> = OnceLock::new();

fn root() -> Option<sys::Stat> {
    sys::stat_path(Path::new("/")).ok().flatten()
}

/// Remembers the root directory, so that a look at an absolute path can be judged later.
pub(super) fn remember_root() {
    ROOT.get_or_init(root);
}

fn root_has_changed() -> bool {
    let (Some(Some(then)), Some(now)) = (ROOT.get(), root()) else { return false };
    !then.is_same_file(&now)
}

/// Whether somebody else has an exclusive flock on the file. This only asks, with a shared flock: so a try that meets it
/// can tell it from the flock of a holder.
pub(super) fn is_locked(file: &File) -> std::io::Result<bool> {
    let free = sys::try_lock_shared(file)?;
    if free {
        sys::unlock(file)?;
    }
    Ok(!free)
}

/// The state of an open file; an error if it is not a regular one.
pub(super) fn stat_regular(target: &Target, file: &File) -> Result<sys::Stat, LockError> {
    let stat = sys::stat(file).map_err(|error| target.failed("look at lock file", error))?;
    stat.irregular().map_or(Ok(stat), |what| Err(irregular(target, what)))
}

/// The error when a file could not be opened.
pub(super) fn open_failed(target: &Target, error: std::io::Error) -> LockError {
    match sys::irregular_from_open(&error) {
        Some(what) => irregular(target, what),
        None => target.failed(OPEN_FILE, error),
    }
}

fn irregular(target: &Target, what: &str) -> LockError {
    target.not_a_lock_file(format!("it is {what}"))
}

/// The error when a file could not be locked. The advice fits the place.
pub(super) fn lock_failed(target: &Target, error: std::io::Error) -> LockError {
    const DENIED: &str = "use flock(2) (a security policy may deny it: AppArmor without k, SELinux without lock) on";
    let place = execution::filesystem(target).ok().filter(|place| !place.is_of_this_machine());
    let is_unsupported = sys::is_lock_unsupported(&error) || place.is_some() && sys::is_out_of_locks(&error);
    let reason = match place {
        _ if error.kind() == std::io::ErrorKind::PermissionDenied => return target.failed(DENIED, error),
        _ if !is_unsupported => return target.failed("lock", error),
        Some(place) => format!("files cannot be locked on {place} ({error}); use a local file system"),
        None => format!("no file can be locked here ({error}); a sandbox or an emulator may lack flock(2)"),
    };
    target.unsupported_by(reason, error)
}

/// The error when the path leads to a file that was removed: a lock on it would exclude only those who see it too.
pub(super) fn check_removed(target: &Target, file: &File, stat: &sys::Stat) -> Result<(), LockError> {
    if !sys::is_removed(file, stat, target.path()) {
        return Ok(());
    }
    let reason =
        "the file itself is a bind mount, and somebody removed or replaced it outside; mount its directory instead";
    Err(target.unsupported(reason))
}

/// What an error calls the file system of the lock file.
#[cfg(unix)]
pub(super) fn filesystem_name(target: &Target) -> String {
    match execution::filesystem(target) {
        Ok(filesystem) => filesystem.to_string(),
        Err(_) => "this file system".into(),
    }
}
