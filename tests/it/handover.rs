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

#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_is_not_handed_off() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let mut next = Box::pin(lock.obtain());
        assert!(!poll_once(next.as_mut()).await);
        std::fs::remove_file(&path).unwrap();
        drop(guard);
        let next = next.await.unwrap();
        assert!(next.is_held() && path.exists());
        next.release().await.unwrap();
    })
    .await;
}

/// Two handles are in one queue. Then a symbolic link changes, and the path of one of them leads to another file.
#[cfg(unix)]
#[tokio::test]
async fn a_lock_is_not_handed_off_to_a_handle_on_another_file() {
    each_file_kind(|kind, path| async move {
        let dir = path.parent().unwrap();
        let [first, second, link] = ["first", "second", "link"].map(|name| dir.join(name));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        let point_to = |target| {
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link).unwrap();
        };
        point_to(&first);
        let led_away = kind(&link.join("x"));
        point_to(&second);
        let steady = kind(&first.join("x"));
        let holder = Holder::holding(&steady);
        let guard = take(&led_away).await;
        let mut brief = Box::pin(led_away.obtain());
        let mut next = Box::pin(steady.obtain());
        assert!(!poll_once(brief.as_mut()).await);
        assert!(!poll_once(next.as_mut()).await);
        // The lock is verified when the brief holder obtains it, so it is not verified again at its release.
        drop(guard);
        drop(brief.await.unwrap());
        assert!(!poll_once(next.as_mut()).await, "two holders");
        holder.release();
        assert!(next.await.unwrap().is_held());
    })
    .await;
}

/// The lock is lost after the hand-off: the holder at that time gets the error.
#[cfg(unix)]
#[tokio::test]
async fn a_lock_lost_after_a_hand_off_is_reported_to_its_last_holder() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let mut next = Box::pin(lock.obtain());
        assert!(!poll_once(next.as_mut()).await);
        drop(guard);
        let next = next.await.unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!next.is_held());
        let error = next.release().await.unwrap_err();
        assert!(matches!(error, tokio_lockfile::LockError::Lost { .. }), "{error}");
    })
    .await;
}
