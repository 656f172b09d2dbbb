//! A server that answers, but not as it should: it refuses, says that something failed, or sends too much.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LostReason};

use crate::access::guarded;
use crate::cluster::{Cluster, Settings};
use crate::meddler::{Answer, Meddler};
use crate::proxy::Proxy;
use crate::support::{HANG, in_own_process, take};

const TXN: &str = "/etcdserverpb.KV/Txn";

fn url(port: u16, name: &str, more: &str) -> String {
    format!("etcd://127.0.0.1:{port}/{name}?ttl=3s&connect_timeout=2s{more}")
}

/// A watch that was there goes on after the right to look is revoked. Once it has broken off, nobody would hear of the end
/// of the key.
#[tokio::test]
async fn who_may_not_look_at_his_key_any_more_has_lost_the_lock() {
    let cluster = guarded(1, Settings::default());
    let root = |arguments: &str| {
        let arguments: Vec<&str> = ["--user", "root:S3cretPw"].into_iter().chain(arguments.split(' ')).collect();
        cluster.ask(&arguments);
    };
    let proxy = Proxy::before(&cluster.endpoint(0));
    let lock = LockFile::open(&url(proxy.port, "app/x", "").replace("//", "//app:S3cretPw@")).unwrap();
    // Without the right to the key, and without the right to log in.
    for (revoke, grant) in [
        ("user revoke-role app app", &["user grant-role app app"][..]),
        ("user delete app", &["user add app:S3cretPw", "user grant-role app app"]),
    ] {
        let guard = take(&lock).await;
        root(revoke);
        proxy.cut();
        root("del --prefix app/x/");
        assert_eq!(timeout(HANG, guard.lost()).await.expect("the loss is not noticed"), LostReason::Disconnected);
        assert!(!guard.is_held());
        let before = cluster.messages();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let asked = cluster.messages() - before;
        assert!(asked <= 20, "{asked} requests in two seconds for a lock that is lost");
        assert!(matches!(guard.release().await, Err(LockError::Lost { .. })));
        grant.iter().for_each(|command| root(command));
    }
}

/// A member whose space is full has sometimes made the key when it says so. A proxy says that something failed when it
/// cannot read the answer.
#[tokio::test]
async fn a_key_that_was_made_behind_an_error_goes() {
    let cluster = Cluster::of(1);
    let meddler = Meddler::before(&cluster.endpoint(0));
    for status in [1, 2, 8, 10, 12, 13, 14, 15] {
        // It keeps the lease.
        let kept = take(&LockFile::open(&url(meddler.port, "kept", "")).unwrap()).await;
        let mut failures = 1;
        meddler.answer(move |method| match method == TXN && failures > 0 {
            true => {
                failures -= 1;
                Answer::FailedAfter(status)
            }
            false => Answer::Passed,
        });
        let lock = LockFile::open(&url(meddler.port, "x", "")).unwrap();
        match lock.attempt().await {
            Ok(guard) => drop(guard.expect("it is free").release().await),
            Err(error) => assert!(matches!(error, LockError::Engine { .. }), "{error:?}"),
        }
        let began = Instant::now();
        while !cluster.keys("x").is_empty() {
            assert!(began.elapsed() < HANG / 4, "the key of nobody stays after status {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(kept.is_held());
        kept.release().await.unwrap();
    }
}

/// As etcd's proxy, which names what is left of a lease when the renewal has failed.
#[tokio::test]
async fn a_renewal_counts_for_as_long_as_its_answer_says() {
    let cluster = Cluster::of(1);
    let meddler = Meddler::before(&cluster.endpoint(0));
    meddler.answer(|method| match method.ends_with("/LeaseKeepAlive") {
        // Field 3, the time to live: 1 s.
        true => Answer::Message(Bytes::from_static(b"\x18\x01")),
        false => Answer::Passed,
    });
    let guard = take(&LockFile::open(&url(meddler.port, "x", "")).unwrap()).await;
    let next = timeout(HANG, cluster.lock("x").obtain()).await.expect("hangs").unwrap();
    assert!(!guard.is_held(), "two holders");
    assert_eq!(timeout(HANG, guard.lost()).await.expect("the loss is not noticed"), LostReason::Expired);
    next.release().await.unwrap();
}

fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// The memory is that of this process, where the hostile server runs too.
#[test]
fn an_answer_has_the_size_that_its_question_deserves() {
    if !in_own_process("refusals::an_answer_has_the_size_that_its_question_deserves") {
        return;
    }
    let cluster = Cluster::of(1);
    let meddler = Meddler::before(&cluster.endpoint(0));
    // Empty keys of a range, keys with an empty name, and empty outcomes of a transaction.
    for (entry, size) in
        [(&b"\x12\x00"[..], 16 << 20), (b"\x12\x00", 4 << 20), (b"\x12\x02\x0a\x00", 4 << 20), (b"\x1a\x00", 16 << 20)]
    {
        let message = Bytes::from(entry.repeat((size - 4) / entry.len()));
        meddler.answer(move |method| match method.ends_with("/LeaseGrant") {
            true => Answer::Passed,
            false => Answer::Message(message.clone()),
        });
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = peak_memory();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let lock = LockFile::open(&url(meddler.port, "x", "").replace("=2s", "=30s")).unwrap();
            // The member is asked again and again.
            let _ = match entry[0] {
                0x12 => timeout(Duration::from_secs(4), lock.holders()).await.map(drop),
                _ => timeout(Duration::from_secs(4), lock.attempt()).await.map(drop),
            };
        });
        let grown = peak_memory().saturating_sub(before) >> 20;
        println!("{size} bytes of {entry:?}: {grown} MiB");
        assert!(grown < 64, "{size} bytes of {entry:?} took {grown} MiB");
    }
}
