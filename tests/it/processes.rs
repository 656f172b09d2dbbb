//! Locks between two real processes.

use std::time::{Duration, Instant};

use tokio_lockfile::pid_exists;

use crate::support::{Holder, each_file_kind, take};

#[tokio::test]
async fn processes_exclude_each_other() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let holder = Holder::holding(&lock);
        assert!(lock.attempt().await.unwrap().is_none());
        assert!(!lock.locked(), "locked() is about this process only");
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), holder.pid());
        loop {
            let (began, limit) = (Instant::now(), Duration::from_millis(500));
            let error = lock.obtain_timeout(limit).await.unwrap_err().to_string();
            assert!((limit..limit + Duration::from_secs(5)).contains(&began.elapsed()), "the timeout is not on time");
            if error.contains(&format!("held by pid {} (", holder.pid())) {
                break;
            }
            // The look for the name was too slow for the limit: this machine is busy.
            assert!(error.contains("does not answer"), "{error}");
        }
        holder.release();
        take(&lock).await.release().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_waiter_is_served_after_a_release() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let mut waiter = Holder::start(&lock);
        drop(guard);
        waiter.has_it();
        waiter.release();
    })
    .await;
}

#[tokio::test]
async fn a_killed_holders_lock_is_free_at_once() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        Holder::holding(&lock).kill();
        take(&lock).await.release().await.unwrap();
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_zombie_holds_nothing() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let mut zombie = Holder::holding(&lock).kill_to_zombie();
        assert!(!pid_exists(zombie.id()));
        take(&lock).await.release().await.unwrap();
        assert!(!zombie.wait().unwrap().success());
    })
    .await;
}

#[tokio::test]
async fn a_waiter_takes_over_from_a_killed_holder() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let holder = Holder::holding(&lock);
        let waiter = tokio::spawn({
            let lock = lock.clone();
            async move { lock.obtain().await.unwrap().release().await }
        });
        tokio::task::yield_now().await;
        holder.kill();
        waiter.await.unwrap().unwrap();
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn check_lock_says_whether_the_holder_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    assert!(!tokio_lockfile::check_lock(&path).unwrap());
    let lock = tokio_lockfile::LockFile::shlock(&path).unwrap();
    let holder = Holder::holding(&lock);
    assert!(tokio_lockfile::check_lock(&path).unwrap());
    holder.kill();
    assert!(!tokio_lockfile::check_lock(&path).unwrap());
    std::fs::write(&path, "garbage").unwrap();
    assert!(matches!(tokio_lockfile::check_lock(&path), Err(tokio_lockfile::LockError::NotALockFile { .. })));
}

#[test]
fn processes_that_exist_and_that_do_not() {
    assert!(pid_exists(std::process::id()));
    assert!(!pid_exists(0) && !pid_exists(u32::MAX) && !pid_exists(i32::MAX as u32));
}
