//! What is left of a lock when a wait is dropped, a runtime ends, or a process does.

use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio_lockfile::LockFile;

use crate::cluster::Cluster;
use crate::stopped_driver;
use crate::support::{HANG, Holder, in_own_process, poll_once, take};

/// Longer than the lease of [`Cluster::url`].
const LONGER_THAN_THE_LEASE: Duration = Duration::from_millis(4_500);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < HANG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn dropped_waits_leave_no_keys_and_no_lease() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    let holder = Holder::holding(&lock);
    let held = cluster.keys("x");
    for number in 0..200 {
        let mut wait = Box::pin(lock.obtain());
        if number % 4 == 0 {
            for _ in 0..number {
                assert!(!poll_once(wait.as_mut()).await);
            }
        } else {
            let moment = Duration::from_micros(number * 40);
            assert!(tokio::time::timeout(moment, wait.as_mut()).await.is_err());
        }
    }
    let began = Instant::now();
    until("keys are left", || cluster.keys("x") == held);
    println!("200 dropped waits are out of the queue after {:?}", began.elapsed());
    assert!(lock.attempt().await.unwrap().is_none());
    holder.release();
    take(&lock).await.release().await.unwrap();
    until("leases are left", || cluster.leases().is_empty());
    assert_eq!(cluster.keys("x"), [""; 0]);
}

/// As in a blocked runtime, or beside another branch of `select!`.
#[tokio::test]
async fn a_wait_that_is_not_polled_does_not_keep_others_out() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    let first = Holder::holding(&lock);
    let mut wait = Box::pin(lock.obtain());
    while cluster.keys("x").len() < 2 {
        assert!(!poll_once(wait.as_mut()).await);
    }
    first.release();
    let second = Holder::holding(&lock);
    assert!(!poll_once(wait.as_mut()).await, "two holders");
    while cluster.keys("x").len() < 2 {
        assert!(!poll_once(wait.as_mut()).await);
    }
    second.release();
    tokio::time::timeout(HANG, wait).await.expect("hangs").unwrap().release().await.unwrap();
}

#[test]
fn a_lock_outlives_its_runtime_and_is_released_without_one() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let guard = runtime.block_on(take(&lock));
    drop(runtime);
    std::thread::sleep(LONGER_THAN_THE_LEASE);
    assert!(guard.is_held());
    assert_eq!(cluster.keys("x").len(), 1);
    drop(guard);
    // The key goes a moment later, and whoever asks right now waits for that.
    drop(lock.blocking_attempt().unwrap().expect("it meets its own leftover"));
    until("the key is left", || cluster.keys("x").is_empty());
}

/// Without a runtime, the drop does not wait for the cluster. The next try does.
#[test]
fn a_try_right_after_a_drop_does_not_meet_its_own_leftover() {
    let cluster = Cluster::of(3);
    let lock = cluster.lock("x");
    for round in 0..300 {
        drop(lock.blocking_attempt().unwrap().unwrap_or_else(|| panic!("round {round}")));
    }
}

#[test]
fn a_lock_outlives_a_blocked_runtime() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guard = take(&lock).await;
        std::thread::sleep(LONGER_THAN_THE_LEASE);
        assert!(guard.is_held());
        guard.release().await.unwrap();
    });
    assert_eq!(cluster.keys("x"), [""; 0]);
}

/// A drop is a message to a thread of this process. A process that ends before the message is sent leaves its key.
#[test]
fn a_process_that_ends_leaves_its_key_for_a_lease_at_most() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    Holder::holding(&lock).kill();
    let killed = Instant::now();
    assert_eq!(cluster.keys("x").len(), 1);
    until("the key is left", || cluster.keys("x").is_empty());
    println!("the key has gone after {:?}", killed.elapsed());
}

#[test]
fn the_driver_ends_when_nobody_needs_it() {
    if !in_own_process("lifetimes::the_driver_ends_when_nobody_needs_it") {
        return;
    }
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    drop(lock.blocking_attempt().unwrap());
    assert!(has_driver());
    until("the driver's thread is left", || !has_driver());
    assert!(cluster.leases().is_empty());
    // And it comes again.
    drop(lock.blocking_attempt().unwrap().unwrap());
}

fn has_driver() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
        .any(|name| name.trim() == "lockfile-driver")
}

#[test]
fn constructors_touch_no_network() {
    let lock = LockFile::open("etcd://nobody.invalid/x").unwrap();
    assert_eq!((lock.path(), lock.locked()), (None, false));
    assert_eq!(lock, LockFile::open("etcd://NOBODY.invalid:2379/x?ttl=3s").unwrap());
    assert_ne!(lock, LockFile::open("etcd://nobody.invalid/y").unwrap());
}

/// Names that are one path to a file system are two locks here. No lock goes from one to the other inside a process.
#[tokio::test]
async fn each_name_is_a_lock_of_its_own() {
    let cluster = Cluster::of(1);
    for (name, other) in [("x", "/x"), ("a/b", "a//b"), ("a/b", "a/./b"), ("x", "X")] {
        let (lock, other) = (cluster.lock(name), cluster.lock(other));
        assert_ne!(lock, other);
        let holder = Holder::holding(&other);
        let guard = take(&lock).await;
        let mut wait = Box::pin(other.obtain());
        assert!(!poll_once(wait.as_mut()).await);
        guard.release().await.unwrap();
        assert!(lock.holder().await.unwrap().is_none());
        assert!(tokio::time::timeout(Duration::from_millis(300), wait.as_mut()).await.is_err(), "two holders");
        drop(wait);
        holder.release();
    }
}

/// Outside a runtime, a dropped guard is released a moment later. The next attempt finds the lock free all the same, also
/// by a handle with another lease.
#[test]
fn an_attempt_right_after_a_drop_waits_for_the_release() {
    let cluster = Cluster::of(1);
    let locks =
        ["x?ttl=3s", "x?ttl=4s"].map(|lock| LockFile::open(&format!("etcd://{}/{lock}", cluster.endpoints())).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0..50 {
        let guard = runtime.block_on(take(&locks[round / 2 % 2]));
        drop(guard);
    }
}

#[test]
fn a_stopped_driver_is_a_loss_in_time() {
    if in_own_process("lifetimes::a_stopped_driver_is_a_loss_in_time") {
        let cluster = Cluster::of(1);
        let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
        let lock = |number: usize| cluster.lock(&number.to_string());
        runtime.block_on(stopped_driver::is_a_loss_in_time(Duration::from_secs(3), lock));
    }
}
