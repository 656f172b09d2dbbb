//! What a service may do around its locks: it forks while it waits or holds, its runtimes end, it removes its own lock file.
#![expect(unsafe_code, reason = "fork(2) is an unsafe call")]

use std::time::Duration;

use tokio_lockfile::{LockFile, LockGuard};

use crate::arena::{Arena, Instance};
use crate::worker::{runtime, take_a_turn};

/// One turn of a worker, in a random way that is more than taking and releasing the lock.
pub(crate) async fn take_a_strange_turn(lock: &LockFile, instance: &Instance) {
    match fastrand::u8(..8) {
        0 => fork_while_waiting(lock, instance).await,
        1 => fork_while_holding(lock, instance).await,
        2 => {
            if let Some(guard) = from_a_runtime_that_ends(lock) {
                hold(guard, instance).await;
            }
        }
        3 => wait_in_a_runtime_that_ends(lock),
        4 => remove_the_own_file(lock, instance).await,
        _ => take_a_turn(lock, instance).await,
    }
}

async fn hold(guard: LockGuard, instance: &Instance) {
    instance.section().await;
    if !guard.is_held() || guard.release().await.is_err() {
        instance.violation();
    }
}

/// The guard of a lock that a runtime has obtained which does not exist any more.
fn from_a_runtime_that_ends(lock: &LockFile) -> Option<LockGuard> {
    in_another_thread(|| runtime().block_on(a_short_wait(lock.clone())))
}

/// A wait whose runtime ends in the middle.
fn wait_in_a_runtime_that_ends(lock: &LockFile) {
    let lock = lock.clone();
    in_another_thread(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for _ in 0..3 {
            runtime.spawn(a_short_wait(lock.clone()));
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(..1_000)));
    });
}

async fn a_short_wait(lock: LockFile) -> Option<LockGuard> {
    let moment = Duration::from_micros(fastrand::u64(..5_000));
    tokio::time::timeout(moment, lock.obtain()).await.ok().map(Result::unwrap)
}

/// The others cannot know that the lock is lost on purpose, so this is after the critical section.
async fn remove_the_own_file(lock: &LockFile, instance: &Instance) {
    let guard = lock.obtain().await.unwrap();
    instance.section().await;
    std::fs::remove_file(lock.path().unwrap()).unwrap();
    if guard.is_held() || guard.release().await.is_ok() {
        instance.violation();
    }
}

async fn fork_while_waiting(lock: &LockFile, instance: &Instance) {
    let mut waiting = Box::pin(lock.obtain());
    let polled = tokio::time::timeout(Duration::from_micros(fastrand::u64(..2_000)), waiting.as_mut()).await;
    if let Ok(guard) = polled {
        return hold(guard.unwrap(), instance).await;
    }
    fork(instance, |child| {
        // The child goes on with the copy of the wait, or drops it.
        if fastrand::bool() {
            drop(waiting);
            return work_as_a_child(lock, child);
        }
        in_another_thread(|| {
            runtime().block_on(async { hold(waiting.as_mut().await.unwrap(), child).await });
        });
    });
    hold(lock.obtain().await.unwrap(), instance).await;
}

async fn fork_while_holding(lock: &LockFile, instance: &Instance) {
    let guard = lock.obtain().await.unwrap();
    let mut copy = Some(guard);
    fork(instance, |child| {
        if copy.as_ref().is_some_and(LockGuard::is_held) {
            child.violation();
        }
        drop(copy.take());
        work_as_a_child(lock, child);
    });
    hold(copy.expect("only the child has dropped it"), instance).await;
}

fn work_as_a_child(lock: &LockFile, child: &Instance) {
    in_another_thread(|| {
        runtime().block_on(async {
            for _ in 0..fastrand::u8(1..4) {
                take_a_turn(lock, child).await;
            }
        });
    });
}

/// Runs `work` on a thread that is in no runtime.
fn in_another_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Forks. The child is an instance of its own, and ends after `work`.
fn fork(instance: &Instance, work: impl FnOnce(&Instance)) {
    reap(rustix::process::WaitOptions::NOHANG);
    let Some(number) = instance.next_child() else { return };
    // SAFETY: the test is about what the child does with the library. It never returns from here.
    if unsafe { libc::fork() } != 0 {
        return;
    }
    fastrand::seed(number);
    let child = Instance { arena: Arena::open(instance.arena.dir()), number, children: Default::default() };
    child.begin();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&child)));
    if ended.is_err() {
        child.violation();
    }
    // SAFETY: `_exit` ends the process at once.
    unsafe { libc::_exit(0) }
}

/// Waits for the children of this process.
pub(crate) fn reap(options: rustix::process::WaitOptions) {
    while let Ok(Some(_)) = rustix::process::wait(options) {}
}
