//! A holder that is not in the registry of this process. Also: the descriptors and threads of this process.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock};
use tokio_lockfile::{LockFile, LockKind};

use crate::support::HANG;

/// A holder that the registry of this process does not know: it takes the lock by the system calls of the protocol.
pub(crate) struct OtherProgram {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) kind: LockKind,
}

impl OtherProgram {
    pub(crate) fn holding(lock: &LockFile) -> Self {
        let (path, kind) = (lock.path().unwrap().to_owned(), lock.kind());
        let mut file: File = match kind {
            // Created as the protocol does it. After an unlink, the kernel ends all watches when the creator closes it.
            LockKind::Shlock => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open(path.parent().unwrap(), flags, Mode::from_raw_mode(0o644)).unwrap().into()
            }
            _ => File::options().create(true).write(true).truncate(false).open(&path).unwrap(),
        };
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        if kind == LockKind::Shlock {
            file.write_all(format!("{:>10}\t \t\n", std::process::id()).as_bytes()).unwrap();
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW).unwrap();
        }
        Self { file, path, kind }
    }

    pub(crate) fn is_free(path: &Path, kind: LockKind) -> bool {
        match kind {
            LockKind::Shlock => !path.exists(),
            _ => flock(File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok(),
        }
    }

    pub(crate) fn release(self) {
        if self.kind == LockKind::Shlock {
            std::fs::remove_file(&self.path).unwrap();
        }
        flock(&self.file, FlockOperation::Unlock).unwrap();
    }
}

/// Whether this process watches any file, or did so a moment ago.
pub(crate) fn waiter_is_asleep() -> bool {
    watches(|_| true)
}

/// Whether this process watches this file, or did so a moment ago.
pub(crate) fn is_watched(file: &File) -> bool {
    let inode = format!(" ino:{:x} ", rustix::fs::fstat(file).unwrap().st_ino);
    watches(|watch| watch.contains(&inode))
}

/// Lets the other tasks run until the condition is true.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < HANG, "hangs");
        tokio::task::yield_now().await;
    }
}

fn watches(is_meant: impl Fn(&str) -> bool) -> bool {
    std::fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .any(|info| info.lines().any(|line| line.starts_with("inotify wd:") && is_meant(line)))
}

pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
