//! The behaviour of every kind within one process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_lockfile::{Holder, LockError, LockFile, LockKind, Semaphore};

use crate::kinds::leaves_its_file;
use crate::support::{FILE_KINDS, HANG, each_file_kind_and_mode, each_kind, each_pair, poll_once, take};

#[tokio::test]
async fn one_holder_at_a_time() {
    each_pair(|a, b| async move {
        let guard = take(&a).await;
        assert!(a.locked() && b.locked() && guard.is_held());
        assert!(b.attempt().await.unwrap().is_none());
        guard.release().await.unwrap();
        assert!(!a.locked() && !b.locked());
        drop(take(&b).await);
        take(&a).await.release().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_exclude_each_other() {
    each_kind(|a, b| async move {
        let (inside, entered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let lock = if number % 2 == 0 { a.clone() } else { b.clone() };
                let (inside, entered) = (Arc::clone(&inside), Arc::clone(&entered));
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let guard = lock.obtain().await.unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
                        tokio::task::yield_now().await;
                        inside.store(false, Ordering::SeqCst);
                        entered.fetch_add(1, Ordering::SeqCst);
                        drop(guard);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(entered.load(Ordering::SeqCst), 80);
    })
    .await;
}

#[tokio::test]
async fn waiters_are_served_in_order() {
    each_pair(|a, b| async move {
        let guard = take(&a).await;
        let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (lock, sender) = (b.clone(), sender.clone());
            tokio::spawn(async move {
                let _guard = lock.obtain().await.unwrap();
                sender.send(number).unwrap();
            });
            tokio::task::yield_now().await;
        }
        assert!(a.attempt().await.unwrap().is_none());
        drop(guard);
        for number in 0..5 {
            assert_eq!(served.recv().await, Some(number));
        }
    })
    .await;
}

/// A task may call `attempt` in a loop. In a runtime with one thread, the holder's task must still get to run.
#[tokio::test]
async fn a_loop_of_attempts_lets_other_tasks_run() {
    each_pair(|a, b| async move {
        let guard = take(&a).await;
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(guard);
        });
        let began = Instant::now();
        while b.attempt().await.unwrap().is_none() {
            assert!(began.elapsed() < HANG, "the holder does not get to run");
        }
        let has_run = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let has_run = Arc::clone(&has_run);
            async move { has_run.store(true, Ordering::SeqCst) }
        });
        while !has_run.load(Ordering::SeqCst) {
            assert!(began.elapsed() < HANG, "another task does not get to run");
            drop(b.obtain().await.unwrap());
        }
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_wait_leaves_nothing() {
    each_pair(|a, b| async move {
        let guard = take(&a).await;
        for _ in 0..20 {
            assert!(timeout(Duration::from_millis(1), b.obtain()).await.is_err());
        }
        drop(guard);
        take(&b).await.release().await.unwrap();
        assert!(!a.locked());
    })
    .await;
}

#[tokio::test]
async fn a_future_dropped_at_any_poll_leaves_the_lock_free() {
    each_file_kind_and_mode(|kind, path| async move {
        for polls in 0..20 {
            let lock = kind(&path);
            let mut attempt = Box::pin(lock.obtain());
            for _ in 0..polls {
                if poll_once(attempt.as_mut()).await {
                    break;
                }
            }
            drop(attempt);
            lock.obtain().await.unwrap().release().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_timeout_names_the_holder() {
    each_pair(|a, b| async move {
        let _guard = take(&a).await;
        for limit in [Duration::ZERO, Duration::from_secs(1)] {
            let error = b.obtain_timeout(limit).await.unwrap_err();
            let LockError::TimedOut { holder: Some(ref holder), .. } = error else { panic!("{error:?}") };
            assert_eq!(holder.pid(), std::process::id());
            assert!(error.to_string().contains("held by this process"), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn endless_and_zero_limits() {
    each_pair(|a, b| async move {
        a.obtain_timeout(Duration::MAX).await.unwrap().release().await.unwrap();
        b.obtain_timeout(Duration::ZERO).await.unwrap().release().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_holder_is_reported() {
    each_pair(|a, b| async move {
        assert_eq!(b.holder().await.unwrap(), None);
        let guard = take(&a).await;
        let holder = b.holder().await.unwrap().unwrap();
        assert_eq!(holder.pid(), std::process::id());
        assert!(holder.name().is_some() && holder.since().is_some(), "{holder:?}");
        guard.release().await.unwrap();
        assert_eq!(b.holder().await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_in_the_directory() {
    each_file_kind_and_mode(|kind, path| async move {
        let lock = kind(&path);
        drop(take(&lock).await);
        let left: BTreeSet<_> =
            std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let expected = if leaves_its_file(&lock) { vec![path] } else { vec![] };
        assert_eq!(left, BTreeSet::from_iter(expected));
    })
    .await;
}

#[test]
fn a_guard_may_be_dropped_outside_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let guard = runtime.block_on(take(&lock));
        drop(runtime);
        std::thread::spawn(move || drop(guard)).join().unwrap();
        assert!(!lock.locked());
    }
}

#[tokio::test]
async fn a_handle_reports_its_path_its_kind_and_its_url() {
    let lock = LockFile::new("relative.lock").unwrap();
    let path = std::env::current_dir().unwrap().join("relative.lock");
    assert_eq!(lock.path(), Some(path.as_path()));
    assert_eq!(lock.kind(), if cfg!(windows) { LockKind::WinFlock } else { LockKind::Shlock });
    let same = LockFile::open(&lock.url().to_string()).unwrap();
    assert_eq!((same.path(), same.kind(), same.url()), (lock.path(), lock.kind(), lock.url()));
    assert_eq!(LockFile::null().path(), None);
    assert_eq!(LockFile::null().url().to_string(), "nulllockfile:");
    let fresh = take(&LockFile::open("nulllockfile:").unwrap()).await;
    take(&LockFile::open("nulllockfile:").unwrap()).await.release().await.unwrap();
    drop(fresh);
}

#[test]
fn types_are_send_sync_and_static_as_services_need() {
    fn holds<T: Send + Sync + std::fmt::Debug + 'static>() {}
    fn sends<T: Send>(_: T) {}
    holds::<tokio_lockfile::LockFile>();
    holds::<tokio_lockfile::LockGuard>();
    holds::<tokio_lockfile::LockError>();
    holds::<tokio_lockfile::Holder>();
    let lock = LockFile::null();
    sends(lock.attempt());
    sends(lock.obtain());
    sends(lock.obtain_timeout(Duration::ZERO));
    sends(lock.holder());
}

/// Each waiting task has room for the largest future that it awaits at any time. The limits leave a quarter for other
/// compilers and platforms.
#[tokio::test]
async fn futures_are_small_because_programs_have_thousands_of_them() {
    let lock = LockFile::null();
    let semaphore = Semaphore::new([lock.clone()]);
    let (released, running) = (take(&LockFile::null()).await, take(&LockFile::null()).await);
    let sizes = [
        ("LockFile::obtain", size_of_val(&lock.obtain()), 192),
        ("LockFile::attempt", size_of_val(&lock.attempt()), 192),
        ("LockFile::obtain_timeout", size_of_val(&lock.obtain_timeout(Duration::ZERO)), 448),
        ("Semaphore::obtain", size_of_val(&semaphore.obtain()), 384),
        ("Semaphore::attempt", size_of_val(&semaphore.attempt()), 352),
        ("Semaphore::obtain_timeout", size_of_val(&semaphore.obtain_timeout(Duration::ZERO)), 800),
        ("LockGuard::release", size_of_val(&released.release()), 256),
        ("LockGuard::run, of nothing", size_of_val(&running.run(async {})), 592),
    ];
    for (name, size, limit) in sizes {
        assert!(size <= limit, "the future of {name} takes {size} bytes, and may take {limit}");
    }
}

#[test]
fn threads_without_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let file_locks = FILE_KINDS.iter().enumerate().map(|(number, kind)| kind(&dir.path().join(number.to_string())));
    for lock in file_locks.chain([LockFile::null()]) {
        let guard = lock.blocking_attempt().unwrap().unwrap();
        assert!(lock.blocking_attempt().unwrap().is_none());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = lock.clone();
                std::thread::spawn(move || drop(lock.blocking_obtain().unwrap()))
            })
            .collect();
        drop(guard);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!lock.locked());
    }
}

#[tokio::test]
#[should_panic(expected = "from within a runtime")]
async fn a_blocking_wait_inside_a_runtime_panics() {
    let _ = LockFile::null().blocking_obtain();
}

#[tokio::test]
async fn a_wait_can_tell_who_holds_the_lock() {
    each_pair(|a, b| async move {
        let never = |_: Option<&Holder>| panic!("the lock is free");
        let guard = a.obtain_with(never).await.unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let wait = b.obtain_with(|holder| tell.send(holder.cloned()).unwrap());
        let (obtained, holder) = tokio::join!(wait, async {
            let holder = told.await.expect("it does not tell");
            drop(guard);
            holder
        });
        drop(obtained.unwrap());
        assert_eq!(holder.expect("it is known").pid(), std::process::id());
    })
    .await;
}
