//! A lock file that is removed or replaced while the lock is held. Windows does not allow that.

use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio_lockfile::{LockError, LockFile, LostReason};

use crate::support::{Holder, each_file_kind, each_file_kind_and_mode, poll_once, take};

#[tokio::test]
async fn a_removed_file_is_a_lost_lock() {
    each_file_kind_and_mode(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        std::fs::remove_file(&path).unwrap();
        assert!(!guard.is_held());
        assert_eq!(guard.lost().await, LostReason::Removed);
        assert!(matches!(guard.release().await, Err(LockError::Lost { reason: LostReason::Removed, .. })));
        take(&lock).await.release().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_replaced_file_is_left_alone() {
    each_file_kind_and_mode(|kind, path| async move {
        let guard = take(&kind(&path)).await;
        let other = path.with_extension("other");
        std::fs::write(&other, "not yours").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(guard.lost().await, LostReason::Replaced);
        assert!(matches!(guard.release().await, Err(LockError::Lost { reason: LostReason::Replaced, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"not yours");
    })
    .await;
}

#[tokio::test]
async fn run_stops_the_work_when_the_lock_is_lost() {
    each_file_kind_and_mode(|kind, path| async move {
        let lock = kind(&path);
        assert_eq!(take(&lock).await.run(async { 42 }).await.unwrap(), 42);
        let endless = async {
            std::fs::remove_file(&path).unwrap();
            std::future::pending::<()>().await;
        };
        assert!(matches!(take(&lock).await.run(endless).await, Err(LockError::Lost { .. })));
        take(&lock).await.release().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_removed_file_stops_the_work_within_fifty_milliseconds() {
    stops_the_work_soon(|path| std::fs::remove_file(path).unwrap()).await;
}

#[tokio::test]
async fn a_renamed_directory_stops_the_work_within_fifty_milliseconds() {
    stops_the_work_soon(|path| {
        let dir = path.parent().unwrap();
        let aside = dir.with_extension("aside");
        let _ = std::fs::remove_dir_all(&aside);
        std::fs::rename(dir, aside).unwrap();
        std::fs::create_dir(dir).unwrap();
    })
    .await;
}

async fn stops_the_work_soon(take_away: fn(&Path)) {
    each_file_kind_and_mode(|kind, path| async move {
        let dir = path.with_extension("d");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("x.lock");
        let lock = kind(&path);
        let mut delays = Vec::new();
        for _ in 0..11 {
            let (sender, working) = tokio::sync::oneshot::channel();
            let remover = std::thread::spawn({
                let path = path.clone();
                move || {
                    working.blocking_recv().unwrap();
                    take_away(&path);
                    Instant::now()
                }
            });
            let work = async {
                sender.send(()).unwrap();
                std::future::pending::<()>().await;
            };
            assert!(matches!(take(&lock).await.run(work).await, Err(LockError::Lost { .. })));
            delays.push(Instant::now().saturating_duration_since(remover.join().unwrap()));
        }
        delays.sort_unstable();
        assert!(delays[5] < Duration::from_millis(50), "{delays:?}");
    })
    .await;
}

/// As on a network file system. A paused clock goes on as soon as nothing is left to do.
#[tokio::test(start_paused = true)]
async fn a_holder_without_events_looks_once_a_second_at_last() {
    each_file_kind_and_mode(|kind, path| async move {
        let mut builder = LockFile::builder();
        let lock = builder.poll_only(true).open(&kind(&path).url().to_string()).unwrap();
        let guard = take(&lock).await;
        let mut lost = pin!(guard.lost());
        let mut looks = 0;
        let counting = poll_fn(|context| {
            looks += 1;
            lost.as_mut().poll(context)
        });
        assert!(tokio::time::timeout(Duration::from_secs(30), counting).await.is_err());
        assert!((30..80).contains(&looks), "{looks} looks in 30 s");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(tokio::time::timeout(Duration::from_secs(1), lost).await, Ok(LostReason::Removed));
    })
    .await;
}

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
        assert!(matches!(error, LockError::Lost { .. }), "{error}");
    })
    .await;
}
