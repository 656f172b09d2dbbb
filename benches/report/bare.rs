//! The raw system calls of each protocol, and the simplest possible waits.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use tokio::io::unix::AsyncFd;

pub(crate) fn open(path: &Path) -> File {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).unwrap().into()
}

pub(crate) fn try_flock(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// The flock protocol.
pub(crate) fn flock(path: &Path) {
    let file = open(path);
    assert!(try_flock(&file));
    rustix::fs::fstat(&file).unwrap();
    rustix::fs::lstat(path).unwrap();
    file.write_all_at(b"      4321\t\t \t\t\n", 0).unwrap();
    file.write_all_at(&[0; 16], 0).unwrap();
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
}

/// The shlock protocol: takes the lock and releases it.
pub(crate) fn shlock(path: &Path) {
    let file = publish_shlock(path);
    rustix::fs::lstat(path).unwrap();
    rustix::fs::unlink(path).unwrap();
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
}

pub(crate) fn publish_shlock(path: &Path) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let dir = path.parent().unwrap();
    let file: File = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o644)).unwrap().into();
    assert!(try_flock(&file));
    file.write_all_at(b"      4321\t \t\n", 0).unwrap();
    rustix::fs::fstat(&file).unwrap();
    rustix::fs::linkat(&file, "", CWD, path, AtFlags::EMPTY_PATH).unwrap();
    rustix::fs::lstat(path).unwrap();
    file
}

/// Breaks a stale shlock, whose inode is already open and locked.
pub(crate) fn break_shlock(file: &File, path: &Path) {
    let private = path.with_extension("break");
    rustix::fs::fstat(file).unwrap();
    rustix::fs::linkat(file, "", CWD, &private, AtFlags::EMPTY_PATH).unwrap();
    rustix::fs::lstat(path).unwrap();
    rustix::fs::unlink(path).unwrap();
    rustix::fs::unlink(&private).unwrap();
}

/// An inotify instance that watches one file.
pub(crate) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    #[allow(deprecated, reason = "the successor is unsafe")]
    pub(crate) fn new(file: &File) -> Self {
        let instance = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let events = WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE | WatchFlags::ATTRIB;
        inotify::add_watch(&instance, format!("/proc/self/fd/{}", file.as_raw_fd()), events).unwrap();
        Self(AsyncFd::new(instance).unwrap())
    }

    pub(crate) async fn event(&self) {
        loop {
            let mut ready = self.0.readable().await.unwrap();
            let mut buffer = [MaybeUninit::uninit(); 1024];
            if Reader::new(self.0.get_ref(), &mut buffer).next().is_ok() {
                return;
            }
            ready.clear_ready();
        }
    }
}
