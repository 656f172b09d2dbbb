//! One holder at a time among processes, and who comes next.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LockGuard};

use crate::server::{Server, key, sessions, until, value, waiters};
use crate::support::{HANG, Holder, poll_once, take};

fn lock(name: &str) -> LockFile {
    Server::shared().lock(&format!("lock={name}&ttl=3s"))
}

async fn waiting(lock: &LockFile, name: &str) -> JoinHandle<Result<LockGuard, LockError>> {
    Server::shared().waiting(lock, name).await
}

async fn got(wait: JoinHandle<Result<LockGuard, LockError>>) -> LockGuard {
    timeout(HANG, wait).await.expect("the lock does not come").unwrap().unwrap()
}

#[tokio::test]
async fn processes_exclude_each_other_and_the_next_one_gets_the_lock() {
    let (lock, client) = (lock("exclusion"), Server::shared().client().await);
    let first = Holder::holding(&lock);
    assert!(lock.attempt().await.unwrap().is_none());
    let holder = lock.holder().await.unwrap().unwrap();
    assert_eq!(holder.pid(), first.pid());
    assert!(holder.name().is_some() && holder.host().is_some() && holder.since().is_some(), "{holder:?}");
    let wait = waiting(&lock, "exclusion").await;
    first.release();
    let guard = got(wait).await;
    assert!(guard.is_held() && guard.fencing_token().is_some());
    guard.release().await.unwrap();
    assert_eq!(value(&client, &sessions("exclusion", true)).await, "0");
}

#[tokio::test]
async fn a_killed_holder_frees_the_lock() {
    let lock = lock("sigkill");
    for _ in 0..5 {
        let holder = Holder::holding(&lock);
        let wait = waiting(&lock, "sigkill").await;
        holder.kill();
        let killed = std::time::Instant::now();
        got(wait).await.release().await.unwrap();
        println!("next holder {:?} after SIGKILL", killed.elapsed());
    }
}

#[tokio::test]
async fn a_token_grows_with_every_holder_and_fence_off_has_none() {
    let lock = lock("tokens");
    let mut last = 0;
    for _ in 0..20 {
        let guard = take(&lock).await;
        let token = guard.fencing_token().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
        guard.release().await.unwrap();
    }
    let lock = Server::shared().lock("lock=tokens&fence=off");
    assert_eq!(take(&lock).await.fencing_token(), None);
}

/// Cancelled at any moment, a wait leaves nothing at the server, and the lock is not taken later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hundred_cancelled_waits_leave_nothing() {
    let (lock, client) = (lock("cancelled"), Server::shared().client().await);
    let holder = Holder::holding(&lock);
    let mut waits = tokio::task::JoinSet::new();
    for number in 0..400 {
        let lock = lock.clone();
        waits.spawn(async move { timeout(Duration::from_millis(number / 4), lock.obtain()).await.is_err() });
    }
    while let Some(is_cancelled) = waits.join_next().await {
        assert!(is_cancelled.unwrap());
    }
    // The last one is out of the queue, too.
    until(&client, &waiters("cancelled"), "0").await;
    holder.release();
    timeout(HANG, lock.obtain()).await.unwrap().unwrap().release().await.unwrap();
    until(&client, &sessions("cancelled", true), "0").await;
}

#[tokio::test]
async fn a_cancelled_wait_is_out_of_the_queue_at_once() {
    let server = Server::shared();
    let (lock, client) = (server.lock("lock=queue&ttl=10m&connect_timeout=1h"), server.client().await);
    let holder = Holder::holding(&lock);
    let wait = waiting(&lock, "queue").await;
    wait.abort();
    let dropped = std::time::Instant::now();
    until(&client, &waiters("queue"), "0").await;
    println!("out of the queue after {:?}", dropped.elapsed());
    assert!(dropped.elapsed() < Duration::from_secs(4));
    holder.release();
}

/// The holder releases in the instant in which the wait times out.
#[tokio::test]
async fn a_release_at_the_instant_of_a_timeout_loses_no_lock() {
    let server = Server::shared();
    let (lock, client) = (lock("instant"), server.client().await);
    let (lock_it, unlock_it) = (
        format!("SELECT pg_advisory_lock({})", key("instant")),
        format!("SELECT pg_advisory_unlock({})", key("instant")),
    );
    let mut got = 0;
    for round in 0..100_u64 {
        client.simple_query(&lock_it).await.unwrap();
        let wait = tokio::spawn({
            let lock = lock.clone();
            async move { lock.obtain_timeout(Duration::from_millis(15)).await }
        });
        tokio::time::sleep(Duration::from_micros(13_000 + round * 40)).await;
        client.simple_query(&unlock_it).await.unwrap();
        match wait.await.unwrap() {
            Ok(guard) => {
                got += 1;
                guard.release().await.unwrap();
            }
            Err(LockError::TimedOut { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        // Free for everybody, whatever it was.
        until(&client, &sessions("instant", true), "0").await;
    }
    println!("{got} of 100 got the lock");
}

#[tokio::test]
async fn psql_takes_part() {
    let server = Server::shared();
    let (lock, client) = (lock("psql"), server.client().await);
    client
        .simple_query(&format!("SET application_name = 'psql'; SELECT pg_advisory_lock({})", key("psql")))
        .await
        .unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    let holder = lock.holder().await.unwrap().unwrap();
    assert_eq!((holder.name(), holder.host()), (Some("psql"), None));
    assert_eq!(holder.pid().to_string(), value(&client, "SELECT pg_backend_pid()").await);
    let wait = waiting(&lock, "psql").await;
    client.simple_query(&format!("SELECT pg_advisory_unlock({})", key("psql"))).await.unwrap();
    let guard = got(wait).await;
    let tried = value(&client, &format!("SELECT pg_try_advisory_lock({})", key("psql"))).await;
    assert_eq!(tried, "f");
    guard.release().await.unwrap();
    // A number names the same lock for programs that have numbers.
    let number = value(&client, &format!("SELECT {}", key("psql"))).await;
    let by_number = server.lock(&format!("key={number}"));
    let _guard = take(&by_number).await;
    assert!(lock.attempt().await.unwrap().is_none());
}

#[tokio::test]
async fn readers_of_many_processes_share_and_all_are_named() {
    let lock = lock("readers");
    let reader = lock.shared().unwrap();
    let processes = [Holder::holding(&reader), Holder::holding(&reader)];
    let ours = take(&reader).await;
    assert!(lock.attempt().await.unwrap().is_none());
    let holders: BTreeSet<u32> = lock.holders().await.unwrap().iter().map(|holder| holder.pid()).collect();
    let expected = processes.iter().map(Holder::pid).chain([std::process::id()]);
    assert_eq!(holders, expected.collect());
    ours.release().await.unwrap();
    let wait = waiting(&lock, "readers").await;
    processes.into_iter().for_each(Holder::release);
    let writer = got(wait).await;
    assert!(reader.attempt().await.unwrap().is_none());
    drop(writer);
}

/// One task leaves the lock to the next, and readers share it. But who has asked for a token, or for another lease, gets it.
#[tokio::test]
async fn handles_with_other_parameters_do_not_share_what_they_hold() {
    let [without, with] = ["fence=off", "ttl=3s"].map(|more| Server::shared().lock(&format!("lock=parameters&{more}")));
    let guard = take(&without).await;
    let mut next = Box::pin(with.obtain());
    assert!(!poll_once(next.as_mut()).await);
    drop(guard);
    let guard = timeout(HANG, next).await.expect("hangs").unwrap();
    assert!(guard.fencing_token().is_some());
    drop(guard);

    let reader = take(&without.shared().unwrap()).await;
    let other = timeout(HANG, with.shared().unwrap().obtain()).await.expect("hangs").unwrap();
    assert!(reader.fencing_token().is_none() && other.fencing_token().is_some());
}
