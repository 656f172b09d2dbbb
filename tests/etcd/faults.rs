//! What a cluster may do to a lock, and what becomes of the lock.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LockGuard, LostReason};

use crate::cluster::Cluster;
use crate::support::{HANG, Holder, poll_once, take};

/// Longer than the lease of [`Cluster::lasting_lock`].
const MORE_THAN_A_LEASE: Duration = Duration::from_secs(8);

async fn reason_of_loss(guard: &LockGuard) -> LostReason {
    timeout(HANG, guard.lost()).await.expect("the loss is not noticed")
}

async fn obtain(lock: &LockFile) -> LockGuard {
    timeout(HANG, lock.obtain()).await.expect("hangs").unwrap()
}

/// Polls the wait until its key is in the queue.
async fn queue_up<F: Future>(cluster: &Cluster, name: &str, mut wait: std::pin::Pin<&mut F>, keys: usize) {
    let began = Instant::now();
    while cluster.keys(name).len() < keys {
        assert!(!poll_once(wait.as_mut()).await, "it waits");
        assert!(began.elapsed() < HANG);
    }
}

#[tokio::test]
async fn the_key_and_the_token() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("jobs/nightly");
    let mut last = 0;
    for _ in 0..5 {
        let guard = take(&lock).await;
        let [lease] = &cluster.leases()[..] else { panic!("one lease") };
        // etcdctl prints the lease with zeros in front, Go's package makes its keys without.
        assert_eq!(cluster.keys("jobs/nightly"), [format!("jobs/nightly/{}", lease.trim_start_matches('0'))]);
        let fields = cluster.ask(&["get", "--prefix", "jobs/nightly/", "-w", "fields"]);
        let token = guard.fencing_token().unwrap();
        assert!(fields.contains(&format!("\"CreateRevision\" : {token}\n")), "{fields}");
        assert!(fields.contains(&format!("pid={}", std::process::id())), "{fields}");
        assert!(token > last);
        last = token;
        guard.release().await.unwrap();
        assert_eq!(cluster.keys("jobs/nightly"), [""; 0]);
    }
    let other = Holder::holding(&lock);
    let holder = lock.holder().await.unwrap().unwrap();
    assert_eq!(holder.pid(), other.pid());
    assert!(holder.host().is_some() && holder.name().is_some() && holder.since().is_some(), "{holder:?}");
    other.release();
    assert_eq!(lock.holder().await.unwrap(), None);
    // The lease ends a moment after the last lock.
    let began = Instant::now();
    while !cluster.leases().is_empty() {
        assert!(began.elapsed() < HANG);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(take(&lock).await.fencing_token().unwrap() > last);
}

#[tokio::test]
async fn a_deleted_key_is_a_lost_lock() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    let guard = take(&lock).await;
    cluster.ask(&["del", "--prefix", "x/"]);
    assert_eq!(reason_of_loss(&guard).await, LostReason::Removed);
    assert!(!guard.is_held());
    assert!(matches!(guard.release().await, Err(LockError::Lost { reason: LostReason::Removed, .. })));
    take(&lock).await.release().await.unwrap();
    // With the lock of another process in its place, which stays.
    let guard = take(&lock).await;
    cluster.ask(&["del", "--prefix", "x/"]);
    let other = Holder::holding(&lock);
    assert_eq!(reason_of_loss(&guard).await, LostReason::Removed);
    drop(guard);
    assert!(lock.attempt().await.unwrap().is_none());
    other.release();
}

#[tokio::test]
async fn a_revoked_lease_is_a_lost_lock_and_ends_a_wait() {
    let cluster = Cluster::of(1);
    let (lock, other) = (cluster.lock("x"), cluster.lock("other"));
    let guard = take(&lock).await;
    let holder = Holder::holding(&other);
    let mut wait = Box::pin(other.obtain());
    queue_up(&cluster, "other", wait.as_mut(), 2).await;
    let ours = cluster.keys("x")[0].split('/').next_back().unwrap().to_owned();
    cluster.ask(&["lease", "revoke", &ours]);
    reason_of_loss(&guard).await;
    assert!(!guard.is_held());
    let error = timeout(HANG, wait).await.expect("it waits for ever").unwrap_err();
    assert!(matches!(error, LockError::Engine { .. }), "{error}");
    assert!(guard.release().await.is_err());
    // With a new lease, at once.
    let guard = take(&lock).await;
    assert_ne!(cluster.keys("x"), [format!("x/{ours}")]);
    guard.release().await.unwrap();
    holder.release();
}

/// The server has ended the lease while no lock used it. Nobody has told us.
#[tokio::test]
async fn a_lease_that_the_server_does_not_know_is_replaced() {
    let cluster = Cluster::of(1);
    let lock = cluster.lock("x");
    take(&lock).await.release().await.unwrap();
    for lease in cluster.leases() {
        cluster.ask(&["lease", "revoke", &lease]);
    }
    take(&lock).await.release().await.unwrap();
}

#[tokio::test]
async fn a_killed_holder_is_followed_within_its_lease() {
    let cluster = Cluster::of(3);
    let lock = cluster.lock("x");
    let holder = Holder::holding(&lock);
    let mut wait = Box::pin(lock.obtain());
    queue_up(&cluster, "x", wait.as_mut(), 2).await;
    holder.kill();
    let killed = Instant::now();
    let guard = timeout(HANG, wait).await.expect("hangs").unwrap();
    println!("from SIGKILL to the next holder: {:?}", killed.elapsed());
    assert!(guard.is_held());
}

#[tokio::test]
async fn one_dead_member_is_no_error() {
    let mut cluster = Cluster::of(3);
    for member in 0..3 {
        cluster.kill(member);
        for number in 0..5 {
            let lock = cluster.lock(&format!("{member}/{number}"));
            let guard = lock.obtain_timeout(HANG).await.unwrap();
            assert!(guard.is_held());
            guard.release().await.unwrap();
        }
        cluster.start(member);
        // A restarted member has no leader for a moment, and the next one dies only then.
        cluster.wait_until_all_are_healthy();
    }
}

#[tokio::test]
async fn a_held_lock_and_a_wait_outlive_the_leader() {
    let mut cluster = Cluster::of(3);
    let (held, waited) = (cluster.lasting_lock("held"), cluster.lasting_lock("waited"));
    let guard = take(&held).await;
    let holder = Holder::holding(&waited);
    let mut wait = Box::pin(waited.obtain());
    queue_up(&cluster, "waited", wait.as_mut(), 2).await;
    let (token, leader) = (guard.fencing_token(), cluster.leader());
    cluster.kill(leader);
    assert!(timeout(MORE_THAN_A_LEASE, guard.lost()).await.is_err(), "lost with the leader");
    assert!(guard.is_held());
    guard.release().await.unwrap();
    holder.release();
    let next = timeout(HANG, wait).await.expect("the wait has lost its watch").unwrap();
    assert!(next.fencing_token() > token);
}

/// Its connection stays open, and nothing comes through it.
#[tokio::test]
async fn a_stopped_member_is_passed_over() {
    let mut cluster = Cluster::of(3);
    let lock = cluster.lasting_lock("x");
    let guard = take(&lock).await;
    for member in 0..3 {
        cluster.signal(member, Signal::STOP);
        assert!(timeout(MORE_THAN_A_LEASE, guard.lost()).await.is_err(), "lost with member {member}");
        let other = cluster.lock(&format!("other/{member}"));
        obtain(&other).await.release().await.unwrap();
        // A leader that continued would first end the leases that its successor has renewed (issue 12528 of etcd).
        cluster.kill(member);
        cluster.start(member);
        cluster.wait_until_all_are_healthy();
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

/// Its successor ends the lease, of which it hears nothing. The old one goes on to keep it.
#[tokio::test]
async fn a_leader_whose_disk_hangs_is_not_trusted() {
    let cluster = Cluster::of(3);
    let leader = cluster.leader();
    let through = |members: &[usize]| {
        let endpoints: Vec<String> = members.iter().map(|&member| cluster.endpoint(member)).collect();
        LockFile::open(&format!("etcd://{}/x?ttl=3s", endpoints.join(","))).unwrap()
    };
    let others: Vec<usize> = (0..3).filter(|&member| member != leader).collect();
    let guard = take(&through(&[leader])).await;
    let _hang = cluster.let_disk_hang(leader);
    let next = timeout(HANG, through(&others).obtain()).await.expect("hangs").unwrap();
    assert!(!guard.is_held(), "two holders");
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_watch_outlives_compaction() {
    let cluster = Cluster::of(3);
    let (held, waited) = (cluster.lasting_lock("held"), cluster.lasting_lock("waited"));
    let guard = take(&held).await;
    let holder = Holder::holding(&waited);
    let mut wait = Box::pin(waited.obtain());
    queue_up(&cluster, "waited", wait.as_mut(), 2).await;
    for number in 0..20 {
        cluster.ask(&["put", "filler", &number.to_string()]);
    }
    let fields = cluster.ask(&["get", "filler", "-w", "fields"]);
    let revision = fields.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    cluster.ask(&["compact", revision]);
    // All watches begin anew, at revisions that are not there any more.
    let leader = cluster.leader();
    for member in 0..3 {
        cluster.signal(member, Signal::STOP);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        cluster.signal(member, Signal::CONT);
        if member == leader {
            cluster.wait_until_all_are_healthy();
        }
    }
    assert!(guard.is_held());
    holder.release();
    drop(timeout(HANG, wait).await.expect("the wait has lost its watch").unwrap());
    cluster.ask(&["del", "--prefix", "held/"]);
    assert_eq!(reason_of_loss(&guard).await, LostReason::Removed);
}

#[tokio::test]
async fn all_members_are_restarted() {
    let mut cluster = Cluster::of(3);
    let lock = cluster.lock("x");
    let guard = take(&lock).await;
    let token = guard.fencing_token().unwrap();
    for member in 0..3 {
        cluster.kill(member);
    }
    for member in 0..3 {
        cluster.start(member);
    }
    cluster.wait_until_all_are_healthy();
    // The data of a cluster outlive it. Whether the lease does depends on how long the restart took.
    match guard.is_held() {
        true => guard.release().await.unwrap(),
        false => assert!(matches!(guard.release().await, Err(LockError::Lost { .. }))),
    }
    assert!(obtain(&lock).await.fencing_token().unwrap() > token);
}

#[tokio::test]
async fn without_a_quorum_there_is_an_error_in_time() {
    let mut cluster = Cluster::of(3);
    let lock = cluster.lock("x");
    let guard = take(&lock).await;
    let waited = cluster.lock("waited");
    let holder = Holder::holding(&waited);
    let mut wait = Box::pin(waited.obtain());
    queue_up(&cluster, "waited", wait.as_mut(), 2).await;
    cluster.kill(0);
    cluster.kill(1);
    let began = Instant::now();
    assert_eq!(reason_of_loss(&guard).await, LostReason::Expired);
    let error = timeout(HANG, wait).await.expect("hangs").unwrap_err();
    println!("{error} (after {:?})", began.elapsed());
    assert!(matches!(error, LockError::Engine { .. }), "{error:?}");
    for error in [
        lock.holder().await.unwrap_err(),
        guard.release().await.unwrap_err(),
        LockFile::open(&cluster.url("y", "&connect_timeout=1s")).unwrap().attempt().await.unwrap_err(),
        LockFile::open(&cluster.url("y", "&connect_timeout=1s")).unwrap().obtain().await.unwrap_err(),
    ] {
        println!("{error} (after {:?})", began.elapsed());
    }
    // The one that is left says why, instead of trying for as long as we let it.
    let left = format!("etcd://{}/y?connect_timeout=1s", cluster.endpoint(2));
    let error = LockFile::open(&left).unwrap().attempt().await.unwrap_err();
    assert!(error.to_string().contains("no leader"), "{error}");
    assert!(began.elapsed() < HANG);
    holder.kill();
    cluster.start(0);
    cluster.start(1);
    cluster.wait_until_all_are_healthy();
    obtain(&lock).await.release().await.unwrap();
}

/// Then nothing is left to release, and the next try of this process does not wait for it.
#[tokio::test]
async fn a_release_ends_with_the_lease() {
    let cluster = Cluster::of(1);
    let guard = take(&LockFile::open(&cluster.url("x", "&connect_timeout=30s")).unwrap()).await;
    cluster.signal(0, Signal::STOP);
    let released = timeout(HANG, guard.release()).await.expect("hangs");
    assert!(matches!(released, Err(LockError::Lost { reason: LostReason::Expired, .. })), "{released:?}");
    let next = LockFile::open(&cluster.url("x", "&connect_timeout=1s")).unwrap();
    let error = next.attempt().await.unwrap_err().to_string();
    cluster.signal(0, Signal::CONT);
    assert!(error.contains("no answer in time"), "{error}");
}

#[tokio::test]
async fn nobody_at_the_address() {
    for (host, limit) in [("127.0.0.1:1", "300ms"), ("127.0.0.1:1,127.0.0.1:2", "300ms")] {
        let lock = LockFile::open(&format!("etcd://{host}/x?connect_timeout={limit}")).unwrap();
        let error = lock.attempt().await.unwrap_err();
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with(&format!("cannot try for etcd://{host}/x")), "{error}");
        assert!(lock.holder().await.is_err() && lock.obtain().await.is_err());
    }
}
