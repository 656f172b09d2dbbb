//! Leases of other programs on the lock file (fcntl(2), F_SETLEASE). File servers have them, for example.

use std::io::Write;
use std::path::Path;

use tokio_lockfile::LockFile;

use crate::{Peer, take};

/// A program that opens the file with `flags` and has a `lease` on it. `on_request` is what it does when the kernel asks it
/// to give the lease back.
fn leaseholder(path: &Path, flags: &str, lease: &str, on_request: &str) -> Peer {
    let program = format!(
        "
import fcntl, os, signal, sys
f = os.open(sys.argv[1], os.{flags})
signal.signal(signal.SIGIO, {on_request})
fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.{lease})
print('held', flush=True)
sys.stdin.read()
"
    );
    Peer::python(&program, path)
}

/// Whoever opens a file for writing breaks the leases of those who read it (fcntl(2), F_SETLEASE).
#[tokio::test]
async fn a_lease_of_a_reader_is_not_broken() {
    let (_dir, path) = crate::place();
    std::fs::write(&path, "data").unwrap();
    let peer = leaseholder(&path, "O_RDONLY", "F_RDLCK", "lambda *_: os._exit(1)");
    let lock = LockFile::flock(&path).unwrap();
    for lock in [lock.shared().unwrap(), lock] {
        let guard = take(&lock).await;
        assert!(lock.holder().await.unwrap().is_some());
        guard.release().await.unwrap();
    }
    peer.finish();
}

/// The kernel asks the reader to give its lease back, which takes a moment (fcntl(2), F_SETLEASE). Until then it refuses an
/// open for writing.
#[tokio::test]
async fn the_guards_file_can_be_written_when_a_reader_has_given_its_lease_back() {
    let (_dir, path) = crate::place();
    std::fs::write(&path, "data").unwrap();
    let give_back = "lambda *_: fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)";
    let peer = leaseholder(&path, "O_RDONLY", "F_RDLCK", give_back);
    let guard = take(&LockFile::flock(&path).unwrap()).await;
    guard.file().unwrap().write_all(b"DA").unwrap();
    guard.release().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"DAta");
    peer.finish();
}

/// A lease that is not given back keeps nobody waiting for long, and a later question gets the answer of that time.
#[tokio::test]
async fn the_guards_file_is_asked_for_again_after_a_lease() {
    let (_dir, path) = crate::place();
    std::fs::write(&path, "data").unwrap();
    let peer = leaseholder(&path, "O_RDONLY", "F_RDLCK", "signal.SIG_IGN");
    let guard = take(&LockFile::flock(&path).unwrap()).await;
    let error = guard.file().unwrap().write_all(b"DA").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    peer.finish();
    guard.file().unwrap().write_all(b"DA").unwrap();
    guard.release().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"DAta");
}

/// A lease of fcntl(2), F_SETLEASE: while it is held, other processes cannot open the file.
#[tokio::test]
async fn a_lease_on_the_file_is_waited_out() {
    for scheme in ["shlockfile", "flockfile"] {
        let (_dir, path) = crate::place();
        std::fs::write(&path, "   4194305\t \t\n").unwrap();
        let lock = LockFile::open(&format!("{scheme}:{}", path.display())).unwrap();
        let peer = leaseholder(&path, "O_RDWR", "F_WRLCK", "signal.SIG_IGN");
        assert!(lock.attempt().await.unwrap().is_none(), "{scheme}");
        let waiting = tokio::spawn(async move { lock.obtain().await });
        peer.finish();
        waiting.await.unwrap().unwrap().release().await.unwrap();
    }
}
