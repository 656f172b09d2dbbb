//! Work that behaves badly under a lock.

use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_lockfile::{LockFile, Singleton};

use crate::support::HANG;

/// Work that always has something to do. It uses up the budget that Tokio gives a task for one poll.
async fn busy() -> Result<(), String> {
    loop {
        tokio::task::consume_budget().await;
    }
}

#[tokio::test]
async fn a_shutdown_reaches_work_that_is_always_busy() {
    let (leader, shutdown) = (Singleton::new(LockFile::null()), Notify::new());
    let work = || {
        shutdown.notify_one();
        busy()
    };
    let ended = tokio::time::timeout(HANG, leader.run(work, shutdown.notified())).await.expect("hangs");
    assert_eq!(ended.unwrap(), None);
}

#[tokio::test]
async fn work_that_is_always_busy_can_step_down() {
    let leader = Singleton::new(LockFile::null()).grace(Duration::from_millis(1));
    let (leadership, terms) = (leader.leadership(), AtomicUsize::new(0));
    let leader = leader.pause(Duration::ZERO, Duration::ZERO);
    let work = || async {
        if terms.fetch_add(1, Ordering::SeqCst) == 0 {
            assert!(leadership.step_down());
            busy().await
        } else {
            Ok(())
        }
    };
    let ended = tokio::time::timeout(HANG, leader.run(work, pending::<()>())).await.expect("hangs");
    assert_eq!(ended.unwrap(), Some(()));
}

#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_stops_work_that_is_always_busy() {
    crate::support::each_file_kind_and_mode(|kind, path| async move {
        // Somebody watches the lock by then.
        let lose_it_later = async {
            for _ in 0..10_000 {
                tokio::task::consume_budget().await;
            }
            std::fs::remove_file(&path).unwrap();
            busy().await
        };
        let guard = crate::support::take(&kind(&path)).await;
        guard.run(lose_it_later).await.expect_err("the lock is lost");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_stops_work_that_is_always_busy_also_without_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let lock = LockFile::builder().poll_only(true).native(&path).unwrap();
    let lose_it_later = async {
        // The holder looks every now and then, and has found the file so far.
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::remove_file(&path).unwrap();
        busy().await
    };
    let guard = crate::support::take(&lock).await;
    let ended = tokio::time::timeout(HANG, guard.run(lose_it_later)).await.expect("hangs");
    ended.expect_err("the lock is lost");
}

/// Also on the way out, when it is stopped.
#[cfg(unix)]
#[tokio::test]
async fn work_that_panics_when_it_is_stopped_has_failed() {
    struct PanicsAtDrop;

    impl Drop for PanicsAtDrop {
        fn drop(&mut self) {
            panic!("on the way out");
        }
    }

    crate::support::each_file_kind(|kind, path| async move {
        let (lock, terms) = (kind(&path), AtomicUsize::new(0));
        let quick = Singleton::new(lock.clone()).pause(Duration::ZERO, Duration::ZERO);
        let leadership = quick.leadership();
        let work = || async {
            let term = terms.fetch_add(1, Ordering::SeqCst);
            if term == 2 {
                return Ok::<_, String>("served");
            }
            let _panics = PanicsAtDrop;
            match term {
                0 => std::fs::remove_file(&path).unwrap(),
                _ => assert!(leadership.step_down()),
            }
            pending().await
        };
        assert_eq!(quick.run(work, pending::<()>()).await.unwrap(), Some("served"));

        let shutdown = Notify::new();
        let work = || async {
            let _panics = PanicsAtDrop;
            shutdown.notify_one();
            pending::<Result<(), String>>().await
        };
        assert_eq!(quick.run(work, shutdown.notified()).await.unwrap(), None);
        assert!(!lock.locked() && !leadership.is_leader());
    })
    .await;
}

/// A signal that comes when it is looked at for the `last`th time.
async fn at_poll(last: usize) {
    let mut polls = 0;
    poll_fn(|context| {
        polls += 1;
        if polls > last {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Leads for some polls, fails, pauses, and leads again.
async fn fickle(is_working: &AtomicBool) -> Result<(), String> {
    struct Works<'a>(&'a AtomicBool);

    impl Drop for Works<'_> {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }

    assert!(!is_working.swap(true, Ordering::SeqCst), "two work at once");
    let _works = Works(is_working);
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    Err("fails".into())
}

#[tokio::test]
async fn a_singleton_ends_cleanly_wherever_it_is() {
    crate::support::each_kind(|lock, other| async move {
        for polls in 0..60 {
            for is_held in [false, true] {
                let leader = Singleton::new(lock.clone()).pause(Duration::from_millis(1), Duration::from_millis(1));
                let holder = if is_held { other.attempt().await.unwrap() } else { None };
                let is_working = AtomicBool::new(false);
                let is_free = || !is_working.load(Ordering::SeqCst) && !leader.leadership().is_leader();

                // Two at once, of which one is dropped and one is shut down.
                let (first, second) = (leader.clone(), leader.clone());
                let work = || fickle(&is_working);
                let release = async {
                    at_poll(polls / 2).await;
                    drop(holder);
                };
                let dropped = async {
                    tokio::select! {
                        biased;
                        _ = first.run(work, pending::<()>()) => unreachable!("it always fails"),
                        () = at_poll(polls) => {}
                    }
                };
                let shut_down = second.run(work, at_poll(polls + 3));
                let ((), (), ended) = tokio::join!(dropped, release, shut_down);
                assert_eq!(ended.unwrap(), None);
                assert!(is_free());
                // A try that was dropped may still be on its way.
                other.obtain().await.unwrap().release().await.unwrap();
            }
        }
    })
    .await;
}
