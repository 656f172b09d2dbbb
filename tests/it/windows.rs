//! Behaviour that is specific to Windows.

use std::fs::File;
use std::path::Path;

use tempfile::TempDir;
use tokio_lockfile::{LockError, LockFile, LockUrl};

use crate::support::{Holder, take};

fn place() -> (TempDir, std::path::PathBuf, LockFile) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.lock");
    let lock = LockFile::new(&path).unwrap();
    (dir, path, lock)
}

#[tokio::test]
async fn our_locks_and_locks_of_a_whole_file_exclude_each_other() {
    let (_dir, path, lock) = place();
    let guard = take(&lock).await;
    let other = File::options().read(true).write(true).open(&path).unwrap();
    assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    guard.release().await.unwrap();
    other.try_lock().unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    drop(other);
    take(&lock).await.release().await.unwrap();
}

#[tokio::test]
async fn the_record_can_be_read_while_the_lock_is_held() {
    let (_dir, path, lock) = place();
    let holder = Holder::holding(&lock);
    assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), holder.pid().to_string());
    holder.release();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 16]);
}

#[tokio::test]
async fn a_held_file_can_be_neither_removed_nor_replaced() {
    let (_dir, path, lock) = place();
    let guard = take(&lock).await;
    let other = path.with_extension("other");
    std::fs::write(&other, "other").unwrap();
    assert!(std::fs::remove_file(&path).is_err());
    assert!(std::fs::rename(&other, &path).is_err());
    assert!(std::fs::rename(&path, path.with_extension("away")).is_err());
    assert!(guard.is_held());
    guard.release().await.unwrap();
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn other_content_is_left_alone() {
    let (_dir, path, lock) = place();
    std::fs::write(&path, "sixteen bytes ..").unwrap();
    take(&lock).await.release().await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "sixteen bytes ..");
}

#[tokio::test]
async fn directories_and_devices_are_refused() {
    let (dir, ..) = place();
    for path in [dir.path(), Path::new("NUL")] {
        let error = LockFile::winflock(path).unwrap().attempt().await.unwrap_err();
        assert!(matches!(error, LockError::NotALockFile { .. }), "{path:?}: {error:?}");
    }
    let missing = LockFile::new(dir.path().join("missing").join("x")).unwrap();
    assert_eq!(missing.attempt().await.unwrap_err().io_error().unwrap().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(missing.holder().await.unwrap_err().io_error().unwrap().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn kinds_of_unix_are_unsupported() {
    for lock in [LockFile::shlock("x"), LockFile::flock("x"), LockFile::open("shlockfile:x")] {
        let error = lock.unwrap_err();
        assert!(matches!(error, LockError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("use winflock"), "{error}");
    }
}

#[test]
fn paths_and_urls() {
    for (path, url) in [
        (r"C:\run\my app.lock", "winflockfile:///C:/run/my%20app.lock"),
        (r"\\server\share\x.lock", "winflockfile:////server/share/x.lock"),
        (r"\\?\C:\run\x.lock", "winflockfile:///C:/run/x.lock"),
        (r"\\?\UNC\server\share\x.lock", "winflockfile:////server/share/x.lock"),
    ] {
        let lock = LockFile::winflock(path).unwrap();
        assert_eq!(lock.path(), Some(Path::new(path)));
        assert_eq!(lock.url().to_string(), url);
        let parsed: LockUrl = url.parse().unwrap();
        assert_eq!(parsed.to_string(), url);
    }
    let lock = LockFile::open("lockfile:///C:/run/x.lock").unwrap();
    assert_eq!(lock.path(), Some(Path::new(r"C:\run\x.lock")));
    let lock = LockFile::open("lockfile:////server/share/x.lock").unwrap();
    assert_eq!(lock.path(), Some(Path::new(r"\\server\share\x.lock")));
    for path in ["", r"C:\", r"C:\run\", r"C:\run\.", r"C:\run\..", r"C:\run/", r"\\.\NUL"] {
        assert!(matches!(LockFile::new(path), Err(LockError::InvalidPath { .. })), "{path:?}");
    }
}
