//! A path that leads to something else than a lock file: the error is clear, and the file is not changed.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, Semaphore};

use crate::support::{FILE_KINDS, HANG, each_file_kind};

async fn refusal(lock: &LockFile) -> LockError {
    let error = timeout(HANG, lock.attempt()).await.expect("blocks").expect_err("is refused");
    assert_eq!(error.path(), lock.path());
    assert!(error.to_string().contains(&*lock.path().unwrap().to_string_lossy()), "{error}");
    error
}

fn make(path: &Path, what: &str) {
    let dir = path.parent().unwrap();
    match what {
        "a symbolic link" => {
            std::fs::write(dir.join("target"), "").unwrap();
            symlink(dir.join("target"), path).unwrap();
        }
        "a dangling symbolic link" => symlink(dir.join("nowhere"), path).unwrap(),
        "a directory" => std::fs::create_dir(path).unwrap(),
        "a FIFO" => assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
        "a socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "a device" => unreachable!("a separate test creates it"),
        other => unreachable!("{other}"),
    }
}

#[tokio::test]
async fn anything_but_a_regular_file_is_refused() {
    for what in ["a symbolic link", "a dangling symbolic link", "a directory", "a FIFO", "a socket"] {
        each_file_kind(|kind, path| async move {
            make(&path, what);
            let before = std::fs::symlink_metadata(&path).unwrap();
            let error = refusal(&kind(&path)).await;
            assert!(matches!(error, LockError::NotALockFile { .. }), "{what}: {error:?}");
            let after = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(
                (before.file_type(), before.modified().unwrap()),
                (after.file_type(), after.modified().unwrap())
            );
            assert!(!path.with_file_name("nowhere").exists());
        })
        .await;
    }
}

#[tokio::test]
async fn a_device_is_refused() {
    for lock in [LockFile::shlock("/dev/null"), LockFile::flock("/dev/null")] {
        assert!(matches!(refusal(&lock.unwrap()).await, LockError::NotALockFile { .. }));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_loop_of_symbolic_links_in_the_path_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
    let path = dir.path().join("loop/x.lock");
    for lock in [LockFile::shlock(&path), LockFile::flock(&path)] {
        let error = lock.unwrap().attempt().await.unwrap_err();
        assert!(error.io_error().is_some() && error.to_string().contains("loop/x.lock"), "{error:?}");
    }
}

#[tokio::test]
async fn content_that_is_no_record_is_refused_by_shlock_and_left_unchanged_by_flock() {
    let long = "lock ".repeat(1 << 18);
    for content in ["garbage", "0 0\n", "-1\n", "99999999999999999999\n", "12 34\n", "sixteen bytes ..", &long] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        std::fs::write(&path, content).unwrap();
        let error = refusal(&LockFile::shlock(&path).unwrap()).await;
        assert!(matches!(error, LockError::NotALockFile { .. }), "{error:?}");
        assert!(error.to_string().contains("choose another path") && !error.to_string().contains("remove"), "{error}");
        let flock = LockFile::flock(&path).unwrap();
        let guard = crate::support::take(&flock).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        drop(guard);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[tokio::test]
async fn each_kind_leaves_the_other_kinds_files_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let (shlock, flock) = (LockFile::shlock(&path).unwrap(), LockFile::flock(&path).unwrap());
    let guard = crate::support::take(&flock).await;
    assert!(matches!(refusal(&shlock).await, LockError::NotALockFile { .. }));
    guard.release().await.unwrap();
    let idle = refusal(&shlock).await;
    assert!(matches!(idle, LockError::NotALockFile { .. }) && idle.to_string().contains("as that kind"), "{idle}");
    std::fs::remove_file(&path).unwrap();
    let guard = crate::support::take(&shlock).await;
    assert!(flock.attempt().await.unwrap().is_none());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_missing_directory_and_a_long_name_are_io_errors() {
    each_file_kind(|kind, path| async move {
        let error = refusal(&kind(&path.join("x"))).await;
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::NotFound, "{error:?}");
        std::fs::write(&path, "").unwrap();
        let error = refusal(&kind(&path.join("x"))).await;
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::NotADirectory, "{error:?}");
        let error = refusal(&kind(&path.with_file_name("x".repeat(300)))).await;
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::InvalidFilename, "{error:?}");
    })
    .await;
}

#[test]
fn paths_that_name_no_file_are_refused_at_once() {
    for path in ["", "/", "..", "/tmp/", "/tmp/.", "/tmp/.."] {
        assert!(matches!(LockFile::new(path), Err(LockError::InvalidPath { .. })), "{path:?}");
    }
    let nul = std::ffi::OsStr::from_bytes(b"a\0b");
    let error = LockFile::flock(nul).unwrap_err();
    assert!(error.to_string().contains("NUL"), "{error}");
    let error = LockFile::winflock("/tmp/x").unwrap_err();
    assert!(matches!(error, LockError::Unsupported { .. }), "{error:?}");
    assert_eq!(error.path(), Some(Path::new("/tmp/x")));
}

#[tokio::test]
async fn limits_do_not_turn_an_error_into_a_timeout() {
    let lock = LockFile::shlock("/nonexistent/x").unwrap();
    let error = lock.obtain_timeout(Duration::from_secs(3600)).await.unwrap_err();
    assert!(matches!(error, LockError::Io { .. }), "{error:?}");
}

#[tokio::test]
async fn a_free_permit_counts_more_than_a_broken_one() {
    let dir = TempDir::new().unwrap();
    let (broken, good) = (dir.path().join("broken"), dir.path().join("good"));
    std::fs::create_dir(&broken).unwrap();
    let kind = FILE_KINDS[0];
    for locks in [[kind(&broken), kind(&good)], [kind(&good), kind(&broken)]] {
        let semaphore = Semaphore::new(locks);
        for _ in 0..4 {
            let guard = semaphore.attempt().await.unwrap().unwrap();
            // On a busy machine the broken one may answer later than within the second that it has.
            let refused = async { while semaphore.attempt().await.is_ok() {} };
            timeout(HANG, refused).await.expect("the error is hidden");
            assert!(timeout(HANG, semaphore.obtain()).await.expect("hangs").is_err());
            guard.release().await.unwrap();
            semaphore.obtain().await.unwrap().release().await.unwrap();
        }
    }
}
