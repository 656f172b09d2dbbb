//! What two programs do with their lock files, written with this crate: everything that they need is there.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::Deref;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};

use tokio_lockfile::{LockFile, LockGuard};

use crate::support::{Holder, poll_once};

/// The lock of a Pixi environment. The locked file says as JSON how far the installation has come.
struct PrefixGuard {
    guard: LockGuard,
    is_ready: bool,
}

impl PrefixGuard {
    async fn write(prefix: &Path) -> io::Result<Self> {
        let lock = LockFile::builder().create_dirs(true).record(false).native(prefix.join(".guard"))?;
        let guard = lock.obtain().await?;
        let mut text = String::new();
        guard.file().expect("it is native").read_to_string(&mut text)?;
        // The file is empty on the first run.
        let is_ready = serde_json::from_str::<String>(&text).is_ok_and(|state| state == "ready");
        Ok(Self { guard, is_ready })
    }

    fn begin(&self) -> io::Result<()> {
        self.set("installing")
    }

    async fn finish(self) -> io::Result<()> {
        self.set("ready")?;
        Ok(self.guard.release().await?)
    }

    fn set(&self, state: &str) -> io::Result<()> {
        let mut file = self.guard.file().expect("it is native");
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", serde_json::to_string(state)?)
    }
}

#[tokio::test]
async fn pixis_prefix_guard() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("envs").join("default");
    let text = || std::fs::read_to_string(prefix.join(".guard")).unwrap();
    let first = PrefixGuard::write(&prefix).await.unwrap();
    assert!(!first.is_ready);
    first.begin().unwrap();
    assert_eq!(text(), r#""installing""#);
    drop(first); // as if the process were killed

    let second = PrefixGuard::write(&prefix).await.unwrap();
    assert!(!second.is_ready, "the installation was not finished");
    second.begin().unwrap();
    let mut third = pin!(PrefixGuard::write(&prefix));
    assert!(!poll_once(third.as_mut()).await);
    second.finish().await.unwrap();
    assert!(third.await.unwrap().is_ready);
    assert_eq!(text(), r#""ready""#);
}

/// A lock of Scarb. All parts of one process share it, and a wait for another process is announced.
struct AdvisoryLock {
    lock: LockFile,
    description: &'static str,
    guard: tokio::sync::Mutex<Weak<FileGuard>>,
    printed: Mutex<Vec<String>>,
}

struct FileGuard(LockGuard);

impl Deref for FileGuard {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.file().expect("it is native")
    }
}

impl AdvisoryLock {
    fn new(path: &Path, description: &'static str) -> io::Result<Self> {
        let lock = LockFile::builder().create_dirs(true).record(false).native(path)?;
        Ok(Self { lock, description, guard: Default::default(), printed: Default::default() })
    }

    async fn acquire(&self) -> io::Result<Arc<FileGuard>> {
        let mut slot = self.guard.lock().await;
        if let Some(guard) = slot.upgrade() {
            return Ok(guard);
        }
        let guard = match self.lock.attempt().await? {
            Some(guard) => guard,
            None => {
                self.printed.lock().unwrap().push(format!("Blocking waiting for file lock on {}", self.description));
                self.lock.obtain().await?
            }
        };
        let guard = Arc::new(FileGuard(guard));
        *slot = Arc::downgrade(&guard);
        Ok(guard)
    }
}

#[tokio::test]
async fn scarbs_advisory_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache").join(".package-cache.lock");
    let cache = AdvisoryLock::new(&path, "package cache").unwrap();
    let guard = cache.acquire().await.unwrap();
    let again = cache.acquire().await.unwrap();
    assert_eq!(guard.metadata().unwrap().len(), 0);
    drop(guard);
    assert!(cache.lock.locked(), "one part still uses it");
    drop(again);
    assert!(!cache.lock.locked());
    assert!(cache.printed.lock().unwrap().is_empty());

    let other = Holder::holding(&cache.lock);
    let mut waiting = pin!(cache.acquire());
    assert!(!poll_once(waiting.as_mut()).await);
    while cache.printed.lock().unwrap().is_empty() {
        assert!(!poll_once(waiting.as_mut()).await);
    }
    other.release();
    drop(waiting.await.unwrap());
    assert_eq!(*cache.printed.lock().unwrap(), ["Blocking waiting for file lock on package cache"]);
}
