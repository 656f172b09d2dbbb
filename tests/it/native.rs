//! The native kind: the kernel's own lock on a file.

use std::path::PathBuf;

use tokio_lockfile::{LockFile, LockKind, LockUrl};

use crate::support::take;

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
