//! The flock protocol, seen from the file system.

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio_lockfile::LockFile;

use crate::support::{poll_once, take};

fn place() -> (tempfile::TempDir, PathBuf, LockFile) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let lock = LockFile::flock(&path).unwrap();
    (dir, path, lock)
}

#[tokio::test]
async fn the_record_is_sixteen_bytes_and_blanked_at_release() {
    let (_dir, path, lock) = place();
    let guard = take(&lock).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{:>10}\t\t \t\t\n", std::process::id()));
    guard.release().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 16]);
}

#[tokio::test]
async fn data_that_was_there_before_is_not_touched() {
    let (_dir, path, lock) = place();
    for content in [&b"42\n"[..], b"sixteen bytes ..", &[0; 15], b"      4321\t \t\n"] {
        std::fs::write(&path, content).unwrap();
        let guard = take(&lock).await;
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
        guard.release().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

/// The file may be a log, or its mere existence may mean something. The kernel's list of locks names the holder.
#[tokio::test]
async fn an_empty_file_that_was_there_before_stays_empty() {
    let (_dir, path, lock) = place();
    std::fs::write(&path, "").unwrap();
    let guard = take(&lock).await;
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
    guard.release().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

#[tokio::test]
async fn without_a_record_nothing_is_ever_written() {
    let (_dir, path, _) = place();
    let lock = LockFile::builder().record(false).flock(&path).unwrap();
    for content in [&b""[..], &[0; 16], b"   4194305\t\t \t\t\n"] {
        if !content.is_empty() {
            std::fs::write(&path, content).unwrap();
        }
        let guard = take(&lock).await;
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
        guard.release().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

/// The file was new, so it contains our record. Then its owner writes the data that the lock protects.
#[tokio::test]
async fn data_written_under_the_lock_is_not_touched() {
    for content in [&b""[..], b"42\n", b"sixteen bytes ..", b"{\"important\": \"much more than a record\"}"] {
        let (_dir, path, lock) = place();
        let guard = take(&lock).await;
        std::fs::write(&path, content).unwrap();
        guard.release().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
        let guard = take(&lock).await;
        std::fs::write(&path, content).unwrap();
        drop(guard);
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

/// Who takes the lock again and again must let other processes try first, also with `attempt`.
#[tokio::test]
async fn an_attempt_steps_aside_when_the_time_slice_is_over() {
    let (_dir, _path, lock) = place();
    let mut has_stepped_aside = false;
    // If this thread is off the CPU for long after the drop, others could have tried, and nobody steps aside.
    for _ in 0..20 {
        let guard = take(&lock).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(11) {
            std::hint::spin_loop();
        }
        drop(guard);
        let mut attempt = pin!(lock.attempt());
        has_stepped_aside |= !poll_once(attempt.as_mut()).await;
    }
    assert!(has_stepped_aside);
}
