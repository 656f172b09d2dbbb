//! A lock file that is itself bind-mounted, as `docker run -v FILE:FILE` and `subPath` do. Its path goes on leading to it
//! after it was removed or replaced outside.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio_lockfile::{LockError, LockFile, LostReason};

use crate::{succeeds, take};

/// Mounted until it is dropped: the file `outside` is also the file `inside`.
struct BindMount {
    outside: PathBuf,
    inside: PathBuf,
    _dir: TempDir,
}

impl BindMount {
    fn new(content: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let [outside, inside] = ["host", "container"].map(|name| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            dir.path().join(name).join("x.lock")
        });
        std::fs::write(&outside, content).unwrap();
        std::fs::write(&inside, "").unwrap();
        assert!(succeeds(Command::new("mount").arg("--bind").arg(&outside).arg(&inside)));
        Self { outside, inside, _dir: dir }
    }

    fn remove(&self) {
        std::fs::remove_file(&self.outside).unwrap();
    }

    fn replace(&self) {
        let new = self.outside.with_extension("new");
        std::fs::write(&new, "").unwrap();
        std::fs::rename(&new, &self.outside).unwrap();
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg("--lazy").arg(&self.inside));
    }
}

fn assert_refused(result: Result<Option<tokio_lockfile::LockGuard>, LockError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, LockError::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("mount its directory"), "{error}");
}

#[tokio::test]
async fn a_lock_whose_file_was_removed_or_replaced_outside_is_lost() {
    for (is_shared, take_away) in [false, true].into_iter().flat_map(|is_shared| {
        [BindMount::remove as fn(&BindMount), BindMount::replace].map(|take_away| (is_shared, take_away))
    }) {
        let mount = BindMount::new("");
        let mut lock = LockFile::flock(&mount.inside).unwrap();
        if is_shared {
            lock = lock.shared().unwrap();
        }
        let guard = take(&lock).await;
        assert!(guard.is_held());
        let next = tokio::spawn({
            let writer = LockFile::flock(&mount.inside).unwrap();
            async move { writer.obtain().await.map(Some) }
        });
        let (sender, is_watched) = tokio::sync::oneshot::channel();
        let work = async {
            sender.send(()).unwrap();
            std::future::pending::<()>().await
        };
        let stopped = tokio::spawn(guard.run(work));
        is_watched.await.unwrap();
        take_away(&mount);
        let outside = take(&LockFile::flock(&mount.outside).unwrap()).await;
        let stopped = tokio::time::timeout(Duration::from_secs(60), stopped).await.expect("hangs").unwrap();
        assert!(matches!(stopped, Err(LockError::Lost { reason: LostReason::Removed, .. })), "{stopped:?}");
        // The lost lock is not handed on, and what is left at the path excludes nobody outside.
        assert_refused(next.await.unwrap());
        assert_refused(lock.attempt().await);
        assert!(outside.is_held());
        outside.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_guard_that_looks_only_at_the_end_sees_the_loss() {
    let mount = BindMount::new("");
    let guard = take(&LockFile::flock(&mount.inside).unwrap()).await;
    mount.remove();
    assert!(!guard.is_held());
    assert!(matches!(guard.release().await, Err(LockError::Lost { reason: LostReason::Removed, .. })));
}

#[tokio::test]
async fn a_shlock_that_was_left_behind_a_bind_mount_is_not_held_for_ever() {
    let mount = BindMount::new("   4194305\t \t\n");
    mount.remove();
    assert_refused(LockFile::shlock(&mount.inside).unwrap().attempt().await);
}
