//! The hand-off of the lock from one task of this process to the next. The next task may never take it.

use crate::support::{Holder, each_file_kind, poll_once, take};

#[tokio::test]
async fn a_cancelled_task_gives_back_the_lock_that_was_handed_off_to_it() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let mut next = Box::pin(lock.obtain());
        assert!(!poll_once(next.as_mut()).await);
        drop(guard);
        drop(next);
        Holder::holding(&lock).release();
        drop(take(&lock).await);
    })
    .await;
}

/// As in a blocked runtime: no task is polled while the other process waits.
#[tokio::test]
async fn a_task_that_is_not_polled_does_not_keep_other_processes_out() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let mut next = Box::pin(lock.obtain());
        assert!(!poll_once(next.as_mut()).await);
        drop(guard);
        let other = Holder::holding(&lock);
        assert!(!poll_once(next.as_mut()).await, "two holders");
        other.release();
        drop(next.await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_queue_of_tasks_is_served_while_some_of_them_are_cancelled() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let mut queue = Vec::new();
        for _ in 0..12 {
            let mut wait = Box::pin(lock.obtain());
            assert!(!poll_once(wait.as_mut()).await);
            queue.push(wait);
        }
        drop(guard);
        for (place, wait) in queue.into_iter().enumerate() {
            match place % 3 {
                0 => drop(wait),
                _ => wait.await.unwrap().release().await.unwrap(),
            }
        }
        assert!(!lock.locked());
        Holder::holding(&lock).release();
    })
    .await;
}
