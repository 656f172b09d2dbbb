//! The identity and the state of files, from stat(2).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::{Errno, retry_on_intr};

/// The identity and the state of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    device: u64,
    inode: u64,
    pub(crate) links: u64,
    pub(crate) size: u64,
    /// The time of the last change of the inode. It is a time of the file system's clock, since the epoch of that
    /// clock.
    pub(crate) changed: Duration,
    /// The time of the last change of the content, since the Unix epoch.
    pub(crate) modified: Duration,
    /// The user ID.
    pub(crate) owner: u32,
    kind: FileType,
}

impl Stat {
    #[expect(clippy::unnecessary_cast, reason = "the types differ between platforms")]
    fn from_raw(raw: &rustix::fs::Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| {
            Duration::from_secs(seconds.max(0) as u64) + Duration::from_nanos(nanoseconds)
        };
        Self {
            device: raw.st_dev as u64,
            inode: raw.st_ino as u64,
            links: raw.st_nlink as u64,
            size: raw.st_size as u64,
            changed: time(raw.st_ctime as i64, raw.st_ctime_nsec as u64),
            modified: time(raw.st_mtime as i64, raw.st_mtime_nsec as u64),
            owner: raw.st_uid,
            kind: FileType::from_raw_mode(raw.st_mode as _),
        }
    }

    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether the file has lost its last name since `earlier`. Some file systems always answer that a file has none.
    pub(crate) fn has_lost_its_name_since(&self, earlier: &Self) -> bool {
        self.links == 0 && earlier.links > 0
    }

    /// Whether the owner of the file is not the effective user of this process.
    pub(crate) fn is_another_users(&self) -> bool {
        self.owner != rustix::process::geteuid().as_raw()
    }

    /// The type of the file, as error messages name it. `None` for a regular file.
    pub(crate) fn irregular(&self) -> Option<&'static str> {
        match self.kind {
            FileType::RegularFile => None,
            FileType::Directory => Some("a directory"),
            FileType::Symlink => Some("a symbolic link"),
            FileType::Fifo => Some("a FIFO"),
            FileType::Socket => Some("a socket"),
            FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
            FileType::Unknown => Some("a file of an unknown type"),
        }
    }

    #[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
    pub(crate) fn device_and_inode(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

pub(crate) fn stat(file: &File) -> io::Result<Stat> {
    Ok(Stat::from_raw(&retry_on_intr(|| rustix::fs::fstat(file))?))
}

/// The state of the file at a path. `None` if there is no file. This does not follow a symbolic link at the end of the
/// path.
pub(crate) fn stat_path(path: &Path) -> io::Result<Option<Stat>> {
    stat_at(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn stat_at(dir: impl AsFd, name: impl rustix::path::Arg + Copy, flags: AtFlags) -> io::Result<Option<Stat>> {
    match retry_on_intr(|| rustix::fs::statat(&dir, name, flags)) {
        Ok(raw) => Ok(Some(Stat::from_raw(&raw))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
