//! The system calls that all Unix systems share. `linux` and `other` hold the calls that differ. Both have functions
//! with the same names.
//!
//! # Why no other user can misuse a call
//!
//! Another user may be able to write to the directory of a lock, and may exchange what is in it between any two calls.
//! These are all calls of the library that open, make, name or change a file of a lock. Others are not made outside this
//! folder, which `.ci/file-calls` checks. Every descriptor is close-on-exec.
//!
//! | Function | Call | Why |
//! |---|---|---|
//! | [`open_existing`], [`Dir::open_file`] | openat, `O_RDONLY`, *guarded* | A link is an error. Nothing is read before fstat(2) has shown a regular file. |
//! | [`open_for_writing`], [`Dir::open_writable`] | openat, `O_RDWR`, *guarded* | The same. Nothing is written before the file is locked and its content is known for a record. |
//! | [`reopen_for_writing`] | open, `/proc/self/fd/N`, `O_RDWR` | It opens the file that is open, whatever its path leads to now. Without /proc it is as the line above, and fstat(2) must show the same file. |
//! | [`create`], [`Dir::create_new`] | openat, `O_RDWR`, `O_CREAT`, `O_EXCL`, *guarded* | What is there already is not opened. |
//! | `Dir::create_unnamed` | openat, `.`, `O_RDWR`, `O_TMPFILE` | The file has no name. |
//! | `create` of an exact mode, `set_mode` | fchmod | By descriptor, of a file that the same try has just created. |
//! | [`Dir::open`] | open, `O_PATH` (not on Linux: `O_RDONLY`), `O_DIRECTORY` | It opens nothing but a directory, where the path leads any program. |
//! | [`Dir::open_safely`], [`create_directories`] | openat, mkdirat 0755; `O_PATH`, `O_DIRECTORY`, `O_NOFOLLOW` for each step | No link of another user is followed, see [`parents`]. |
//! | `read_link` | openat, `O_PATH`, `O_NOFOLLOW`, then readlinkat of the descriptor | The owner and the target are of one link. |
//! | [`Dir::link`] | linkat, `AT_EMPTY_PATH`, or of `/proc/self/fd/N` | It names the file that is open, and replaces nothing. Where a name must do, the caller looks which file has got the new name. |
//! | [`Dir::unlink`] | unlinkat | In the open directory, of a file that is locked and was compared a moment ago. Who exchanges it in between may also remove it. In a sticky directory, nobody else may do either. |
//! | `set_modified`, [`write_at`], [`truncate`] | futimens, pwrite, ftruncate | By descriptor, under the lock, of a file that this try has created or that holds a record. |
//! | [`stat_path`], `Dir::stat`, [`Dir::leads_to`], [`Dir::refresh`] | fstatat, statx | It opens nothing. Only the last one follows a link, and tells no more than which file that is. |
//! | [`Dir::names`] | openat, `.`, `O_RDONLY`, `O_DIRECTORY` | The open directory. |
//!
//! *Guarded* is `O_NOFOLLOW`, `O_NONBLOCK` and `O_NOCTTY`: an open follows no link, waits for nobody, and gives no terminal
//! to the process. No file is renamed. The paths in /proc are the kernel's.
//!
//! An open for reading can still meet a FIFO or a device, and lets it go at once. Whoever waits to write to that FIFO goes
//! on then. Only who may write to the directory can put a FIFO there. A device can be put there only by root, or by the
//! owner of a directory in which root has made one: users cannot make devices, nor link root's
//! (`fs.protected_hardlinks`). So there is nobody to protect, and no look with `O_PATH` before: it would be two calls more
//! for each lock, and need /proc.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno, retry_on_intr};

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[path = "linux.rs"]
mod imp;
#[cfg(not(all(target_os = "linux", not(tokio_lockfile_test_portable))))]
#[path = "other.rs"]
mod imp;

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
pub(crate) use imp::{
    describe_process, find_flock_holders, has_event_poll, is_listed, list_of_locks, listed_flock_holders,
    process_descriptor,
};
mod descriptors;
mod fork;
#[cfg(tokio_lockfile_fuzz)]
pub(crate) mod fuzz;
#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
mod mounts;
#[cfg(not(all(target_os = "linux", not(tokio_lockfile_test_portable))))]
#[path = "mounts_by_name.rs"]
mod mounts;
mod open_file;
mod parents;
mod stat;

pub(crate) use fork::current_pid;
pub(crate) use mounts::{filesystem, filesystem_at};
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) use open_file::NotForChildren;
pub(crate) use open_file::OpenFile;
use parents::Missing;
use stat::stat_at;
pub(crate) use stat::{Stat, stat, stat_path};

#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) use imp::is_set_uid;
pub(crate) use imp::{has_flock, process_existence};

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Dir {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = imp::DIRECTORY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?))
    }

    /// Opens the directory without following a link that another user could change (see [`parents`]).
    pub(crate) fn open_safely(path: &Path) -> io::Result<Self> {
        parents::walk(path, Missing::Error).map(Self)
    }

    /// Opens an existing file for reading.
    pub(crate) fn open_file(&self, name: &OsStr) -> io::Result<OpenFile> {
        Ok(open(&self.0, name, OFlags::RDONLY, 0)?.into())
    }

    /// Opens an existing file for reading and writing.
    pub(crate) fn open_writable(&self, name: &OsStr) -> io::Result<OpenFile> {
        Ok(open(&self.0, name, OFlags::RDWR, 0)?.into())
    }

    /// Creates a file. It is an error if the name already exists.
    pub(crate) fn create_new(&self, name: &OsStr, mode: u32) -> io::Result<OpenFile> {
        Ok(open(&self.0, name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode)?.into())
    }

    /// Creates a file that has no name. It is an error if the system does not support this.
    pub(crate) fn create_unnamed(&self, mode: u32) -> io::Result<OpenFile> {
        imp::create_unnamed(&self.0, mode)
    }

    /// The state of the file with this name. `None` if there is no such file.
    pub(crate) fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        stat_at(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Asks the server of a network file system for the state of the directory, so that the next look at a name is not
    /// one at old knowledge (statx(2), `AT_STATX_FORCE_SYNC`).
    pub(crate) fn refresh(&self) {
        imp::refresh(&self.0);
    }

    /// Whether the name leads to the file, also through a symbolic link. This only looks: it opens nothing on the way.
    pub(crate) fn leads_to(&self, name: &OsStr, file: &Stat) -> io::Result<bool> {
        match stat_at(&self.0, name, AtFlags::empty()) {
            // A link that leads round in a circle.
            Err(error) if irregular_from_open(&error).is_some() => Ok(false),
            found => Ok(found?.is_some_and(|found| found.is_same_file(file))),
        }
    }

    /// Gives the open `file` one more name. `from` is a name that the file already has. Platforms that cannot link an
    /// open file link `from` instead. Then the caller must check which file got the new name. The error is `NotFound`
    /// if somebody has removed the last name of the file.
    pub(crate) fn link(&self, file: &File, from: Option<&OsStr>, to: &OsStr) -> io::Result<()> {
        match (retry_on_intr(|| imp::link_open_file(&self.0, file, to)), from) {
            (Err(Errno::NOENT), Some(from)) if stat(file)?.links > 0 => {
                Ok(retry_on_intr(|| rustix::fs::linkat(&self.0, from, &self.0, to, AtFlags::empty()))?)
            }
            (result, _) => Ok(result?),
        }
    }

    /// Removes a name. It is no error if the name does not exist: somebody else may have removed it.
    pub(crate) fn unlink(&self, name: &OsStr) -> io::Result<()> {
        match retry_on_intr(|| rustix::fs::unlinkat(&self.0, name, AtFlags::empty())) {
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Whether we may remove the file's name, provided that we may write to the directory. In a sticky directory only
    /// the owner of the file or of the directory may do so (unlink(2)).
    pub(crate) fn lets_us_unlink(&self, file: &Stat) -> io::Result<bool> {
        let dir = retry_on_intr(|| rustix::fs::fstat(&self.0))?;
        let is_sticky = Mode::from_raw_mode(dir.st_mode).contains(Mode::SVTX);
        Ok(!is_sticky || !file.is_another_users())
    }

    /// Whether nobody can remove a name from the directory, because of chattr(1).
    pub(crate) fn keeps_its_names(&self) -> bool {
        imp::keeps_its_names(&self.0)
    }

    /// The names in the directory, at most `limit` of them.
    pub(crate) fn names(&self, limit: usize) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        // `self` may be open with O_PATH, and then it cannot be listed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = retry_on_intr(|| rustix::fs::openat(&self.0, ".", flags, Mode::empty()))?;
        for entry in rustix::fs::Dir::new(readable)?.take(limit) {
            names.push(OsString::from_vec(entry?.file_name().to_bytes().to_owned()));
        }
        Ok(names)
    }
}

fn open(dir: impl AsFd, path: impl rustix::path::Arg + Copy, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    retry_on_intr(|| rustix::fs::openat(&dir, path, flags, Mode::from_raw_mode(mode as _)))
}

/// Opens the file at `path` for reading and writing.
pub(crate) fn open_for_writing(path: &Path) -> io::Result<OpenFile> {
    Ok(open(CWD, path, OFlags::RDWR, 0)?.into())
}

/// Opens the file once more, for reading and writing. `path` may be another file's by now.
pub(crate) fn reopen_for_writing(file: &File, path: &Path) -> io::Result<OpenFile> {
    let reopened: OpenFile = match imp::reopen(file, OFlags::RDWR) {
        Err(Errno::NOENT) => open(CWD, path, OFlags::RDWR, 0)?.into(),
        reopened => reopened?.into(),
    };
    match stat(&reopened)?.is_same_file(&stat(file)?) {
        true => Ok(reopened),
        false => Err(Errno::STALE.into()),
    }
}

pub(crate) fn is_open_for_writing(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::RDWR))
}

/// Creates a file. `None` if there is one. With `is_exact` the umask does not limit the permission bits. Then the way to
/// the file is walked as [`Dir::open_safely`] does it.
pub(crate) fn create(path: &Path, mode: u32, is_exact: bool) -> io::Result<Option<OpenFile>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let created = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if is_exact => open(Dir::open_safely(parent)?, name, flags, mode),
        _ => open(CWD, path, flags, mode),
    };
    let file: OpenFile = match created {
        Err(Errno::EXIST) => return Ok(None),
        created => created?.into(),
    };
    if is_exact {
        set_mode(&file, mode);
    }
    Ok(Some(file))
}

/// Opens the file at `path` for reading. `None` if its directory exists and the file does not.
pub(crate) fn open_existing(path: &Path) -> io::Result<Option<OpenFile>> {
    match open(CWD, path, OFlags::RDONLY, 0) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) if path.parent().is_none_or(Path::exists) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory and its missing parents. It is no error if the directory exists.
pub(crate) fn create_directories(path: &Path) -> io::Result<()> {
    parents::walk(path, Missing::Make).map(drop)
}

pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, offset)
}

pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, offset)
}

/// Makes the file empty.
pub(crate) fn truncate(file: &File) -> io::Result<()> {
    Ok(retry_on_intr(|| rustix::fs::ftruncate(file, 0))?)
}

/// Whether the file at `path` has no name any more, on a file system where this can be told: then the path is a mount point,
/// see mount(8) on `--bind`.
pub(crate) fn is_removed(file: &File, stat: &Stat, path: &Path) -> bool {
    if stat.links > 0 || !filesystem(file).is_ok_and(|place| place.is_of_this_machine()) {
        return false;
    }
    // The kernel counts a name down a moment before it takes it away. Whoever reads the directory waits for that.
    let _ = path.parent().map(|parent| Dir::open(parent)?.names(1));
    stat_path(path).is_ok_and(|found| found.is_some_and(|found| found.is_same_file(stat)))
}

/// The type of the file at the path, if open(2) failed because it is not a regular file.
pub(crate) fn irregular_from_open(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        // FreeBSD returns EMLINK instead of the ELOOP of POSIX.
        Errno::LOOP | Errno::MLINK => Some("a symbolic link"),
        Errno::ISDIR => Some("a directory"),
        Errno::NXIO | Errno::OPNOTSUPP => Some("a socket or a device without a driver"),
        _ => None,
    }
}

/// Sets the permission bits of a file that this process has just created. Where the file system refuses this, the lock works
/// without it.
pub(crate) fn set_mode(file: &File, mode: u32) {
    let _ = rustix::fs::fchmod(file, Mode::from_raw_mode(mode as _));
}

/// Sets the modification time. `time` counts from the Unix epoch.
pub(crate) fn set_modified(file: &File, time: Duration) -> io::Result<()> {
    let last_modification = Timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos().into() };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access, last_modification };
    Ok(retry_on_intr(|| rustix::fs::futimens(file, &times))?)
}

/// The process that has a record lock (fcntl(2), F_SETLK; lockf(3)) on the file. A record lock is another kind of lock
/// and does not exclude an flock. The result is 0 if the lock belongs to an open file description and not to a process.
pub(crate) fn record_lock_holder(file: &File) -> Option<u32> {
    let wanted = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
    let found = rustix::process::fcntl_getlk(file, &wanted).ok().flatten()?;
    Some(found.pid.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()).unwrap_or(0))
}

/// Whether open(2) failed only for the moment, because another process has a lease on the file (fcntl(2), F_SETLEASE).
pub(crate) fn is_open_refused_for_now(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::AGAIN)
}

/// Whether somebody has removed the file from the NFS server while it was open here.
pub(crate) fn is_file_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::STALE)
}

/// Linux's ENOTSUPP, which is for the kernel alone and has no name outside: Cray DVS, autofs and some NFS answer it.
const NOT_SUPPORTED: i32 = 524;

/// Whether the file system cannot lock files at all.
pub(crate) fn is_lock_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL))
        || error.raw_os_error() == Some(NOT_SUPPORTED)
}

/// Whether the kernel has no memory for one more lock, or a network file system has no service for locks.
pub(crate) fn is_out_of_locks(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOLCK)
}

/// Whether a lock can ask for a file that is open for writing: [`is_lock_for_writers`], on some file systems.
pub(crate) const LOCKS_MAY_NEED_WRITERS: bool = true;

/// Whether the file system can lock a file only if it is open for writing. NFS is such a file system (flock(2)).
pub(crate) fn is_lock_for_writers(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::BADF)
}

/// Whether a call failed because somebody else has the file locked. SMB answers EACCES then (flock(2)). On any other file
/// system this is the answer of a security policy.
pub(crate) fn is_denied_by_lock(file: &File, error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::ACCESS) && filesystem(file).is_ok_and(|place| place.is_smb())
}

/// Whether the file system cannot give a file a second name.
pub(crate) fn is_link_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::ACCESS | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)
    ) || error.raw_os_error() == Some(NOT_SUPPORTED)
}

pub(crate) fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    try_lock(file, FileExt::try_lock)
}

pub(crate) fn try_lock_shared(file: &File) -> io::Result<bool> {
    try_lock(file, FileExt::try_lock_shared)
}

pub(crate) fn unlock(file: &File) -> io::Result<()> {
    loop {
        match FileExt::unlock(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The time on the clock that all processes of this machine share, and that nobody sets.
pub(crate) fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The time on a clock that nobody sets and that goes on while the machine is suspended.
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) fn time_since_boot() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    // FreeBSD's goes on in suspension. That of macOS does too (clock_gettime(3)).
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The name of this host; empty if it has none.
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn try_lock(file: &File, call: impl Fn(&File) -> Result<(), TryLockError>) -> io::Result<bool> {
    loop {
        match call(file) {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) if is_denied_by_lock(file, &error) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}
