//! File systems that are not known to keep flock(2) to what it promises: FUSE, where waits poll. fuse-overlayfs(1) does
//! keep it, and has no files without names; bindfs(1) takes each name of a file for a file of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio_lockfile::{LockError, LockFile};

use crate::faults::attempt_by;
use crate::identity::{KINDS, env, holder, url};
use crate::{succeeds, take};

/// Mounted until it is dropped.
struct Mount {
    root: PathBuf,
    _dir: TempDir,
}

impl Mount {
    fn new(mount: impl FnOnce(&Path, &Path) -> Command) -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["root", "lower", "upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = dir.path().join("root");
        assert!(succeeds(&mut mount(dir.path(), &root)));
        Self { root, _dir: dir }
    }

    fn by_fuse_overlayfs() -> Self {
        Self::new(|dir, root| {
            let mut command = Command::new("fuse-overlayfs");
            let dir = dir.display();
            command.arg("-o").arg(format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work")).arg(root);
            command
        })
    }

    fn by_bindfs() -> Self {
        Self::new(|dir, root| {
            let mut command = Command::new("bindfs");
            command.arg(dir.join("upper")).arg(root);
            command
        })
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("x.lock")
    }

    fn names(&self) -> usize {
        std::fs::read_dir(&self.root).unwrap().count()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg("--lazy").arg(&self.root));
    }
}

/// Both ways, by a try and by a wait.
async fn exclude(scheme: &str, mount: &Mount) {
    let url = url(scheme, &mount.lock_path());
    let lock = LockFile::open(&url).unwrap();
    let guard = take(&lock).await;
    assert_eq!(attempt_by(&mut env(), &url), "busy", "{scheme}");
    guard.release().await.unwrap();

    let peer = holder(&mut env(), "wait", &url);
    assert!(lock.attempt().await.unwrap().is_none());
    let waiter = tokio::spawn(async move { lock.obtain().await });
    peer.finish();
    waiter.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn locks_exclude_and_wait_where_flock_is_kept() {
    let mount = Mount::by_fuse_overlayfs();
    for scheme in KINDS {
        exclude(scheme, &mount).await;
    }
    assert_eq!(mount.names(), 1, "only the flock file stays");
}

#[tokio::test]
async fn what_looks_stale_is_an_error_unless_we_were_told_to_break_it() {
    let mount = Mount::by_fuse_overlayfs();
    let path = mount.lock_path();
    let url = url("shlockfile", &path);
    let victim = holder(&mut env(), "wait", &url);
    let dead = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    victim.kill();
    let record = std::fs::read(&path).unwrap();

    let error = LockFile::open(&url).unwrap().attempt().await.unwrap_err();
    let LockError::Stale { path: named, pid, .. } = &error else { panic!("{error:?}") };
    assert_eq!((named, *pid), (&path, dead));
    for part in [path.to_str().unwrap(), &pid.to_string(), "FUSE", "break_stale_anywhere"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), record, "and the file stays as it was");

    let bold = LockFile::builder().break_stale_anywhere(true).shlock(&path).unwrap();
    take(&bold).await.release().await.unwrap();
    assert_eq!(mount.names(), 0);
}

#[tokio::test]
async fn a_lock_that_nobody_else_would_see_is_not_had() {
    let mount = Mount::by_bindfs();
    exclude("flockfile", &mount).await;
    let path = mount.root.join("y.lock");
    let error = LockFile::shlock(&path).unwrap().attempt().await.unwrap_err();
    assert!(matches!(error, LockError::Unsupported { .. }), "{error:?}");
    for part in [path.to_str().unwrap(), "FUSE", "use the flock kind"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(mount.names(), 1, "and nothing is left of it");
}
