//! The grace period of thirty seconds. No program can set a file's ctime, so these tests wait for that time. They run
//! in parallel.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use tokio_lockfile::{LockError, LockFile};

use crate::{place, take};

const GRACE: Duration = Duration::from_secs(31);

fn dead_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

fn link(path: &Path, name: &str) {
    std::fs::hard_link(path, path.with_file_name(name)).unwrap();
}

#[tokio::test]
async fn a_blank_file_that_is_not_ours_is_reported_after_the_grace_period_and_stays() {
    let (_dir, path) = place();
    std::fs::write(&path, "").unwrap();
    let lock = LockFile::shlock(&path).unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    tokio::time::sleep(GRACE).await;
    let error = lock.attempt().await.unwrap_err();
    assert!(matches!(error, LockError::Stale { pid: 0, .. }), "{error:?}");
    for part in ["an unknown process", "flock(2)", "open it as flock", "whose it is"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_eq!(lock.holder().await.unwrap(), None);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

#[tokio::test]
async fn links_of_no_known_program_do_not_matter_after_the_grace_period_and_stay() {
    let (_dir, path) = place();
    std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
    link(&path, "precious");
    let lock = LockFile::shlock(&path).unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    tokio::time::sleep(GRACE).await;
    take(&lock).await.release().await.unwrap();
    assert!(path.with_file_name("precious").exists());
}

/// The model found this case: INN is restarted with an old PID, removes one link and adds another. The number of links
/// is then the same as before.
#[tokio::test]
async fn a_living_breaker_is_not_overtaken_after_the_grace_period() {
    struct Alive(Child);
    impl Drop for Alive {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let scene = |suffix| {
        let (dir, path) = place();
        std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
        let breaker = Alive(Command::new("sleep").arg("600").spawn().unwrap());
        link(&path, &format!("shlock{}{suffix}", breaker.0.id()));
        (dir, path, breaker)
    };
    let scenes = ["x", "-2"].map(scene);
    tokio::time::sleep(GRACE).await;
    for (_dir, path, breaker) in scenes {
        let lock = LockFile::shlock(&path).unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        assert!(path.exists());
        drop(breaker);
        take(&lock).await.release().await.unwrap();
    }
}
