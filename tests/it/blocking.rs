//! The calls that block a thread: inside a runtime, and without one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_lockfile::{LockError, LockFile};

use crate::support::{FILE_KINDS, Holder, each_kind, in_own_process, take};

fn runtimes() -> [Runtime; 3] {
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        // The lock needs timers, but not those of the caller.
        Builder::new_current_thread().build().unwrap(),
        Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).enable_all().build().unwrap(),
    ]
}

fn locks(dir: &tempfile::TempDir) -> Vec<LockFile> {
    let of_kind = |(number, kind): (usize, &crate::support::Kind)| kind(&dir.path().join(number.to_string()));
    FILE_KINDS.iter().enumerate().map(of_kind).chain([LockFile::null()]).collect()
}

#[test]
fn an_attempt_works_inside_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    for lock in locks(&dir) {
        for runtime in runtimes() {
            let task = {
                let lock = lock.clone();
                async move {
                    let guard = lock.blocking_attempt().unwrap().unwrap();
                    assert!(guard.is_held() && lock.locked());
                    assert!(lock.blocking_attempt().unwrap().is_none());
                    assert_eq!(lock.blocking_holder().unwrap().unwrap().pid(), std::process::id());
                    guard
                }
            };
            let guard = runtime.block_on(async { tokio::spawn(task).await.unwrap() });
            drop(runtime);
            drop(guard);
            assert!(!lock.locked());
        }
    }
}

#[test]
fn a_release_works_inside_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    for lock in locks(&dir) {
        for runtime in runtimes() {
            runtime.block_on(async {
                lock.blocking_attempt().unwrap().unwrap().release().await.unwrap();
                // After a drop, a server would hear of it a moment later.
                assert_eq!(lock.blocking_holder().unwrap(), None);
                drop(lock.blocking_attempt().unwrap().unwrap());
            });
        }
    }
}

/// Another process holds the lock, or another task waits for it.
#[tokio::test]
async fn an_attempt_inside_a_runtime_does_not_wait() {
    each_kind(|a, b| async move {
        let held = take(&a).await;
        let waiter = tokio::spawn(async move { b.obtain().await.unwrap() });
        tokio::task::yield_now().await;
        assert!(a.blocking_attempt().unwrap().is_none());
        drop(held);
        assert!(a.blocking_attempt().unwrap().is_none(), "it overtakes a waiting task");
        drop(waiter.await.unwrap());
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    for lock in locks(&dir).into_iter().filter(|lock| lock.path().is_some()) {
        let holder = Holder::holding(&lock);
        assert!(lock.blocking_attempt().unwrap().is_none());
        holder.release();
        drop(lock.blocking_attempt().unwrap().unwrap());
    }
}

#[test]
fn a_blocking_wait_with_a_limit_names_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    for lock in locks(&dir) {
        let guard = lock.blocking_obtain_timeout(Duration::MAX).unwrap();
        let error = lock.blocking_obtain_timeout(Duration::from_secs(1)).unwrap_err();
        let LockError::TimedOut { holder: Some(holder), .. } = error else { panic!("{error:?}") };
        assert_eq!(holder.pid(), std::process::id());
        drop(guard);
    }
}

/// The panic names the line of the caller, not one of the library.
#[test]
fn a_panic_names_the_caller() {
    if !in_own_process("blocking::a_panic_names_the_caller") {
        return;
    }
    let places = Arc::new(Mutex::new(Vec::new()));
    std::panic::set_hook(Box::new({
        let places = Arc::clone(&places);
        move |panic| places.lock().unwrap().push(panic.location().unwrap().file().to_owned())
    }));
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let lock = LockFile::null();
        let calls: [&dyn Fn(); 2] =
            [&|| _ = lock.blocking_obtain(), &|| _ = lock.blocking_obtain_timeout(Duration::ZERO)];
        for call in calls {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_err();
        }
    });
    drop(std::panic::take_hook());
    let places = places.lock().unwrap();
    assert_eq!(places.len(), 2);
    assert!(places.iter().all(|place| place.ends_with("blocking.rs") && place.contains("tests")), "{places:?}");
}
