//! A runtime may be blocked or dropped: neither is a reason to lose a lock, or to keep one.

use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::server::{Server, sessions, until, waiters};
use crate::stopped_driver;
use crate::support::{HANG, Holder, in_own_process, take};

/// Longer than the lease of these locks.
const LONG: Duration = Duration::from_secs(5);

#[test]
fn a_blocked_runtime_keeps_its_lock() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lock = Server::shared().lock("lock=blocked&ttl=4s");
    runtime.block_on(async {
        let guard = take(&lock).await;
        std::thread::sleep(LONG);
        assert!(guard.is_held());
        guard.release().await.unwrap();
    });
}

#[test]
fn a_guard_outlives_its_runtime() {
    let server = Server::shared();
    let lock = server.lock("lock=outlives&ttl=4s");
    let runtime = Runtime::new().unwrap();
    let guard = runtime.block_on(take(&lock));
    drop(runtime);
    std::thread::sleep(LONG);
    assert!(guard.is_held());
    drop(guard);
    // The unlock is under way; the next try of this process waits for it.
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async { take(&lock).await.release().await.unwrap() });
}

/// The runtime of the guard runs no task any more.
#[test]
fn a_release_ends_although_its_runtime_stands_still() {
    let lock = Server::shared().lock("lock=stands_still");
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let idle = runtime();
    idle.block_on(async { drop(take(&lock).await) });
    runtime().block_on(async { take(&lock).await.release().await.unwrap() });
}

/// The runtime ends while a task waits.
#[test]
fn a_dropped_runtime_leaves_no_wait_behind() {
    let server = Server::shared();
    let lock = server.lock("lock=ends&ttl=10m&connect_timeout=1h");
    let holder = Holder::holding(&lock);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async { drop(server.waiting(&lock, "ends").await) });
    drop(runtime);
    Runtime::new().unwrap().block_on(async {
        until(&server.client().await, &waiters("ends"), "0").await;
        holder.release();
        lock.obtain().await.unwrap().release().await.unwrap();
    });
}

/// The lock comes while the runtime of its task is blocked. Others do not wait for that.
#[test]
fn a_lock_that_its_task_does_not_take_goes_to_others() {
    let server = Server::shared();
    let lock = server.lock("lock=unclaimed&ttl=10m");
    let holder = Holder::holding(&lock);
    let (blocked, is_blocked) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let task = std::thread::spawn({
        let lock = lock.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let wait = server.waiting(&lock, "unclaimed").await;
                blocked.send(()).unwrap();
                goes_on.recv_timeout(HANG).unwrap();
                // Its turn has come and gone. It waits again.
                tokio::time::timeout(HANG, wait).await.unwrap().unwrap().unwrap().release().await.unwrap();
            });
        }
    });
    is_blocked.recv_timeout(HANG).unwrap();
    holder.release();
    let mut next = Holder::start(&lock);
    next.has_it();
    go_on.send(()).unwrap();
    next.release();
    task.join().unwrap();
}

/// Nobody waits for a release, and the next attempt still finds the lock free. It may come by another handle.
#[test]
fn an_attempt_right_after_a_drop_waits_for_the_unlock() {
    let server = Server::shared();
    let locks = [server.lock("lock=right_after"), server.lock("lock=right_after&ttl=20s")];
    let [lock, _] = &locks;
    let runtime = Runtime::new().unwrap();
    for round in 0..50 {
        let guard = runtime.block_on(take(&locks[usize::div_ceil(round, 2) % 2]));
        match round % 2 {
            0 => drop(guard),
            _ => runtime.block_on(async { drop(guard) }),
        }
    }
    runtime.block_on(async {
        take(lock).await.release().await.unwrap();
        until(&server.client().await, &sessions("right_after", true), "0").await;
    });
}

#[test]
fn a_stopped_driver_is_a_loss_in_time() {
    if in_own_process("runtimes::a_stopped_driver_is_a_loss_in_time") {
        let server = Server::shared();
        let lock = |number| server.lock(&format!("lock=stopped_driver_{number}&ttl=2s"));
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(stopped_driver::is_a_loss_in_time(Duration::from_secs(2), lock));
    }
}

/// There is no room for the stack of another thread.
#[test]
fn without_a_thread_there_is_an_error() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if !in_own_process("runtimes::without_a_thread_there_is_an_error") {
        return;
    }
    let url = format!("postgres://a@127.0.0.1:{}/a?lock=x", crate::server::free_port());
    let lock = tokio_lockfile::LockFile::open(&url).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = getrlimit(Resource::As);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let room = (kib << 10) + (1 << 20);
    runtime.block_on(async {
        setrlimit(Resource::As, Rlimit { current: Some(room), ..limit }).unwrap();
        let tried = [lock.attempt().await.map(drop), lock.obtain().await.map(drop), lock.holder().await.map(drop)];
        setrlimit(Resource::As, limit).unwrap();
        for error in tried.map(Result::unwrap_err) {
            assert_ne!(error.io_error().unwrap().kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        }
        let error = lock.attempt().await.unwrap_err();
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    });
}

#[test]
fn the_threads_are_one_however_many_locks_are_held() {
    let server = Server::shared();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut guards = Vec::new();
        for number in 0..20 {
            guards.push(take(&server.lock(&format!("lock=many{number}"))).await);
        }
        let drivers = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter(|task| {
                let name = task.as_ref().unwrap().path().join("comm");
                std::fs::read_to_string(name).is_ok_and(|name| name.starts_with("lockfile-driver"))
            })
            .count();
        assert_eq!(drivers, 1);
    });
}
