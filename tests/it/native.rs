//! The native kind: the kernel's own lock on a file.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use tokio_lockfile::{LockFile, LockKind, LockUrl};

use crate::support::{FILE_KINDS, poll_once, take};

const NATIVE: LockKind = if cfg!(windows) { LockKind::WinFlock } else { LockKind::Flock };

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    (dir, path)
}

#[tokio::test]
async fn the_native_kind_has_one_name_on_every_platform() {
    let (_dir, path) = place();
    let lock = LockFile::native(&path).unwrap();
    let scheme = if cfg!(windows) { "winflockfile:" } else { "flockfile:" };
    assert_eq!(lock.kind(), NATIVE);
    assert!(lock.url().to_string().starts_with(scheme), "{}", lock.url());
    let url = lock.url().to_string().replacen(scheme, "nativelockfile:", 1);
    assert_eq!(url.parse::<LockUrl>().unwrap().to_string(), url);
    let _guard = take(&lock).await;
    for same in [LockFile::open(&url).unwrap(), LockFile::builder().native(&path).unwrap()] {
        assert_eq!((same.kind(), same.url()), (NATIVE, lock.url()));
        assert!(same.locked() && same.attempt().await.unwrap().is_none());
    }
}

fn data(path: &Path) -> LockFile {
    LockFile::builder().record(false).native(path).unwrap()
}

/// Reads a number, and writes the next one in its place.
fn count(mut file: &File) -> u32 {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let next = if text.is_empty() { 1 } else { text.parse::<u32>().unwrap() + 1 };
    file.set_len(0).unwrap();
    file.rewind().unwrap();
    write!(file, "{next}").unwrap();
    next
}

#[tokio::test]
async fn the_guard_gives_the_locked_file_also_on_the_first_run() {
    let (_dir, path) = place();
    for expected in 1..=12 {
        let guard = take(&data(&path)).await;
        assert_eq!(count(guard.file().unwrap()), expected);
        guard.release().await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected.to_string());
    }
}

/// The lock is handed from task to task. Each finds the position at the start of the file.
#[tokio::test]
async fn each_task_finds_the_file_at_its_start() {
    let (_dir, path) = place();
    let lock = data(&path);
    let guard = take(&lock).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move { count(lock.obtain().await.unwrap().file().unwrap()) })
        })
        .collect();
    assert!(!poll_once(Box::pin(lock.obtain()).as_mut()).await);
    assert_eq!(count(guard.file().unwrap()), 1);
    drop(guard);
    for (task, expected) in tasks.into_iter().zip(2..) {
        assert_eq!(task.await.unwrap(), expected);
    }
}

#[tokio::test]
async fn only_a_native_lock_has_a_file() {
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let guard = take(&lock).await;
        assert_eq!(guard.file().is_some(), lock.kind() == NATIVE);
        assert_eq!((guard.kind(), guard.url()), (lock.kind(), lock.url()));
    }
    assert!(take(&LockFile::null()).await.file().is_none());
}

/// The lock stays with the file that was renamed away, so it is lost.
#[cfg(unix)]
#[tokio::test]
async fn a_file_renamed_over_the_locked_one_is_a_loss() {
    let (dir, path) = place();
    let guard = take(&data(&path)).await;
    let new = dir.path().join("new");
    std::fs::write(&new, "new").unwrap();
    std::fs::rename(&new, &path).unwrap();
    assert!(!guard.is_held());
    assert!(matches!(guard.release().await, Err(tokio_lockfile::LockError::Lost { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
}

/// The permissions do not bind root, so this looks at what the file is open for.
#[cfg(unix)]
#[tokio::test]
async fn a_file_that_may_not_be_written_is_open_for_reading() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, path) = place();
    std::fs::write(&path, "data").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    let may_write = File::options().write(true).open(&path).is_ok();
    let guard = take(&data(&path)).await;
    let mut file = guard.file().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "data");
    assert_eq!(file.write(b"!").is_ok(), may_write);
}
