//! A task that is polled late, again and again: it does something else in between, as in a busy runtime of one thread.

use std::time::Duration;

use tokio_lockfile::Semaphore;

use crate::support::{Holder, each_file_kind, each_kind, each_shared_kind, poll_once, polled_late};

/// Longer than a lock first waits for its task.
const LATE: Duration = Duration::from_millis(120);

#[tokio::test]
async fn a_free_lock_is_got() {
    each_kind(|lock, same_lock| async move {
        let guard = polled_late(LATE, lock.attempt()).await.unwrap().expect("it is free");
        guard.release().await.unwrap();
        drop(polled_late(LATE, same_lock.obtain()).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_free_lock_is_got_by_a_reader() {
    each_shared_kind(|_, reader| async move {
        let guard = polled_late(LATE, reader.attempt()).await.unwrap().expect("it is free");
        let another = polled_late(LATE, reader.obtain()).await.unwrap();
        drop((guard, another));
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_another_process_releases_is_got() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let holder = Holder::holding(&lock);
        let mut wait = Box::pin(lock.obtain());
        assert!(!poll_once(wait.as_mut()).await);
        let releaser = std::thread::spawn(|| holder.release());
        drop(polled_late(LATE, wait).await.unwrap());
        releaser.join().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_lock_is_handed_over() {
    each_kind(|lock, same_lock| async move {
        let guard = lock.obtain().await.unwrap();
        let mut next = Box::pin(same_lock.obtain());
        assert!(!poll_once(next.as_mut()).await);
        drop(guard);
        drop(polled_late(LATE, next).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_free_permit_is_got() {
    each_kind(|lock, same_lock| async move {
        let permits = Semaphore::new([lock, same_lock]);
        let permit = polled_late(LATE, permits.attempt()).await.unwrap().expect("it is free");
        permit.release().await.unwrap();
        drop(polled_late(LATE, permits.obtain()).await.unwrap());
    })
    .await;
}
