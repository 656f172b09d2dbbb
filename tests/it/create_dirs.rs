//! Locks whose directory is made when it is missing.

use std::io::ErrorKind;
use std::path::Path;

use tokio_lockfile::{LockError, LockFile, LockGuard};

use crate::support::{Kind, each_file_kind, take};

/// A lock of this kind that makes its directory.
fn making(kind: Kind, path: &Path) -> LockFile {
    LockFile::builder().create_dirs(true).open_url(&kind(path).url()).unwrap()
}

fn assert_missing(result: Result<Option<LockGuard>, LockError>) {
    let error = result.unwrap_err();
    assert_eq!(error.io_error().map(std::io::Error::kind), Some(ErrorKind::NotFound), "{error}");
}

#[tokio::test]
async fn a_try_makes_the_missing_directories_and_makes_them_again() {
    each_file_kind(|kind, path| async move {
        let top = path.with_file_name("a");
        let path = top.join("b/c/x.lock");
        assert_missing(kind(&path).attempt().await);
        assert!(!top.exists());
        let lock = making(kind, &path);
        assert!(!top.exists(), "the handle alone makes nothing");
        assert_eq!(lock.holder().await.unwrap(), None);
        for _ in 0..3 {
            let guard = take(&lock).await;
            assert!(path.exists() && guard.is_held());
            guard.release().await.unwrap();
            std::fs::remove_dir_all(&top).unwrap();
        }
        lock.obtain().await.unwrap().release().await.unwrap();
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn others_may_enter_a_new_directory_but_not_write_to_it() {
    use std::os::unix::fs::MetadataExt;
    each_file_kind(|kind, path| async move {
        let path = path.with_file_name("a").join("x.lock");
        drop(take(&making(kind, &path)).await);
        let mode = path.parent().unwrap().metadata().unwrap().mode() & 0o777;
        assert_eq!(mode & !0o755, 0, "{mode:o}");
        assert_eq!(mode & 0o700, 0o700, "{mode:o}");
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error() {
    each_file_kind(|kind, path| async move {
        let file = path.with_file_name("file");
        std::fs::write(&file, "data").unwrap();
        let error = making(kind, &file.join("a/x.lock")).attempt().await.unwrap_err();
        assert!(matches!(error, LockError::Io { .. }), "{error:?}");
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    })
    .await;
}

/// As systemd does when it stops a unit whose `RuntimeDirectory=` two units share.
#[cfg(unix)]
#[tokio::test]
async fn a_directory_removed_under_a_wait_is_made_again() {
    use crate::support::{Holder, poll_once};
    each_file_kind(|kind, path| async move {
        let path = path.with_file_name("run").join("x.lock");
        let lock = making(kind, &path);
        drop(take(&lock).await);
        let holder = Holder::holding(&lock);
        let mut wait = Box::pin(lock.obtain());
        assert!(!poll_once(wait.as_mut()).await);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let guard = wait.await.unwrap();
        assert!(guard.is_held() && path.exists());
        holder.kill();
        assert!(guard.is_held());
    })
    .await;
}
