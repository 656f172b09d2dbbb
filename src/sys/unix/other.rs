//! Unix systems other than Linux. They have no files without names, no links by descriptor and no process descriptors.
//!
//! With `--cfg tokio_lockfile_test_portable` this module is used on Linux too, so that its tests can run there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::open_file::OpenFile;
use super::stat::Stat;
use crate::sys::types::Existence;
use crate::words::mode::Mode;

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY;

pub(super) fn create_unnamed(_dir: impl AsFd, _mode: u32) -> io::Result<OpenFile> {
    Err(Errno::OPNOTSUPP.into())
}

pub(super) fn link_open_file(_dir: impl AsFd, _file: &File, _to: &OsStr) -> rustix::io::Result<()> {
    Err(Errno::NOENT)
}

/// Whether this program has more rights than its caller: set-uid or set-gid.
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) fn is_set_uid() -> bool {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    getuid() != geteuid() || getgid() != getegid()
}

pub(super) fn reopen(_file: &File, _flags: OFlags) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOENT)
}

/// The owner of the symbolic link with this name, and where it leads; `None` if it is no link.
pub(super) fn read_link(dir: impl AsFd, name: &OsStr) -> rustix::io::Result<Option<(u32, PathBuf)>> {
    let look = || rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
    let found = look()?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(&dir, name, Vec::new())?;
    // Somebody may have put another link there between the two calls.
    let again = look()?;
    let is_same = (found.st_dev, found.st_ino, found.st_ctime, found.st_ctime_nsec)
        == (again.st_dev, again.st_ino, again.st_ctime, again.st_ctime_nsec);
    if !is_same {
        return Err(Errno::AGAIN);
    }
    Ok(Some((found.st_uid, OsString::from_vec(target.into_bytes()).into())))
}

/// The flags of chflags(2) are not looked at.
pub(super) fn keeps_its_names(_dir: impl AsFd) -> bool {
    false
}

/// These systems have no such call.
pub(super) fn refresh(_dir: impl AsFd) {}

pub(crate) fn process_existence(pid: u32) -> Existence {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Existence::Gone;
    };
    match test_kill_process(pid) {
        Err(Errno::SRCH) => Existence::Gone,
        _ => Existence::AliveOrZombie,
    }
}

/// These systems have no PID namespaces, so a living process is believed.
pub(crate) fn has_flock(pid: u32, _stat: &Stat, _mode: Mode) -> Option<bool> {
    Some(process_existence(pid) != Existence::Gone)
}
