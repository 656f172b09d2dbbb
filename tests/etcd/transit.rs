//! Requests whose answer does not come, and which are carried out later.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LostReason};

use crate::cluster::Cluster;
use crate::proxy::Proxy;
use crate::support::{HANG, Holder, take};

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < HANG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What has happened to the keys of a lock since the beginning, and what happens.
struct Events {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Events {
    fn of(cluster: &Cluster, name: &str) -> Self {
        let mut command = cluster.etcdctl_command(&["watch", "--rev", "1", "--prefix", &format!("{name}/")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn next(&mut self, kind: &str) {
        let mut line = String::new();
        while line.trim() != kind {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the watch has ended");
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lock `name`, behind the proxy first, then straight.
fn behind(proxy: &Proxy, cluster: &Cluster, name: &str) -> LockFile {
    let url = format!("etcd://127.0.0.1:{},{}/{name}?ttl=6s&connect_timeout=3s", proxy.port, cluster.endpoint(0));
    LockFile::open(&url).unwrap()
}

/// The try goes on with another member, and its first request arrives when the lock is long released. The lease has another
/// lock, so it does not end.
#[tokio::test]
async fn a_late_request_for_a_key_leaves_no_key() {
    let cluster = Cluster::of(1);
    let proxy = Proxy::before(&cluster.endpoint(0));
    let (kept, lock) = (behind(&proxy, &cluster, "kept"), behind(&proxy, &cluster, "x"));
    let kept = take(&kept).await;
    let mut events = Events::of(&cluster, "x");
    proxy.stop_requests();
    let guard = take(&lock).await;
    events.next("PUT");
    guard.release().await.unwrap();
    events.next("DELETE");
    proxy.go_on();
    // The late one.
    events.next("PUT");
    until("the key of nobody stays", || cluster.keys("x").is_empty());
    // Meanwhile the process has a lease that is in order.
    let guard = take(&lock).await;
    assert_ne!(lease_of(&cluster, "x"), lease_of(&cluster, "kept"));
    guard.release().await.unwrap();
    assert!(kept.is_held());
    kept.release().await.unwrap();
}

fn lease_of(cluster: &Cluster, name: &str) -> String {
    cluster.keys(name)[0].split('/').next_back().unwrap().to_owned()
}

/// The lock has been taken again by then, with the same key.
#[tokio::test]
async fn a_late_release_spares_the_next_hold() {
    let cluster = Cluster::of(1);
    let proxy = Proxy::before(&cluster.endpoint(0));
    let (kept, lock) = (behind(&proxy, &cluster, "kept"), behind(&proxy, &cluster, "x"));
    let kept = take(&kept).await;
    let guard = take(&lock).await;
    proxy.stop_requests();
    guard.release().await.unwrap();
    let guard = take(&lock).await;
    assert_eq!(lease_of(&cluster, "x"), lease_of(&cluster, "kept"), "it would be another key");
    let answered = proxy.answered();
    proxy.go_on();
    until("the late request is not answered", || proxy.answered() > answered);
    assert_eq!(cluster.keys("x").len(), 1);
    assert!(guard.is_held());
    guard.release().await.unwrap();
    kept.release().await.unwrap();
}

/// Members that take a request and say nothing do not use up the lease, for the next ones are asked beside them.
#[tokio::test]
async fn a_lock_outlives_six_silent_members() {
    let cluster = Cluster::of(1);
    let proxies: Vec<Proxy> = (0..6).map(|_| Proxy::before(&cluster.endpoint(0))).collect();
    let members: String = proxies.iter().map(|proxy| format!("127.0.0.1:{},", proxy.port)).collect();
    let url = format!("etcd://{members}{}/x?ttl=6s", cluster.endpoint(0));
    let guard = take(&LockFile::open(&url).unwrap()).await;
    proxies.iter().for_each(Proxy::stop_requests);
    assert!(timeout(Duration::from_secs(8), guard.lost()).await.is_err(), "lost");
    guard.release().await.unwrap();
}

/// There is no other member. The key is there, and the caller knows only that there was no answer.
#[tokio::test]
async fn a_try_without_an_answer_leaves_no_key() {
    let cluster = Cluster::of(1);
    let proxy = Proxy::before(&cluster.endpoint(0));
    let url = |name: &str| format!("etcd://127.0.0.1:{}/{name}?ttl=30s&connect_timeout=2s", proxy.port);
    let (kept, lock) = (LockFile::open(&url("kept")).unwrap(), LockFile::open(&url("x")).unwrap());
    let kept = take(&kept).await;
    let mut events = Events::of(&cluster, "x");
    proxy.stop_answers();
    let error = lock.attempt().await.unwrap_err();
    assert!(matches!(error, LockError::Engine { .. }), "{error:?}");
    events.next("PUT");
    assert!(lock.attempt().await.is_err(), "our own leftover counts as a holder");
    proxy.go_on();
    // The first thing that this process does is to delete what may be there.
    take(&lock).await.release().await.unwrap();
    Holder::holding(&cluster.lock("x")).release();
    assert!(kept.is_held());
}

/// A release that nobody answers is an error, and the key goes as soon as it can. Who tries again does not get that key.
#[tokio::test]
async fn a_release_without_an_answer_is_reported_and_done_later() {
    let cluster = Cluster::of(1);
    let proxy = Proxy::before(&cluster.endpoint(0));
    let url = format!("etcd://127.0.0.1:{}/x?ttl=30s&connect_timeout=2s", proxy.port);
    let lock = LockFile::open(&url).unwrap();
    let guard = take(&lock).await;
    let token = guard.fencing_token();
    proxy.stop_requests();
    let error = guard.release().await.unwrap_err();
    assert!(error.to_string().starts_with("cannot release etcd://"), "{error}");
    assert_eq!(cluster.keys("x").len(), 1);
    proxy.go_on();
    let guard = take(&lock).await;
    assert!(guard.fencing_token() > token, "it has the key that is about to go");
    cluster.ask(&["del", "--prefix", "x/"]);
    assert_eq!(timeout(HANG, guard.lost()).await.unwrap(), LostReason::Removed);
}

/// The cluster counts from the request. So an answer that comes late says little about what is left of the lease. Nobody
/// else can be asked meanwhile.
#[tokio::test]
async fn a_late_answer_makes_the_lease_no_longer() {
    const BEAT: Duration = Duration::from_secs(5);
    let cluster = Cluster::of(1);
    let proxy = Proxy::before(&cluster.endpoint(0));
    let guard = take(&LockFile::open(&format!("etcd://127.0.0.1:{}/late?ttl=15s", proxy.port)).unwrap()).await;
    let granted = Instant::now();
    let at = |time: Duration| tokio::time::sleep(time.saturating_sub(granted.elapsed()));
    proxy.refuse();
    proxy.stop_answers();
    // The answer to the first beat waits for more than a beat.
    at(BEAT * 2 + BEAT / 5).await;
    proxy.go_on();
    at(BEAT * 2 + BEAT / 3).await;
    // Nothing else comes, not even the end of the lease.
    proxy.stop();
    // The lease of the grant is over.
    at(BEAT * 3).await;
    assert!(guard.is_held());
    let lost = timeout((BEAT * 4 + BEAT / 4).saturating_sub(granted.elapsed()), guard.lost()).await;
    assert_eq!(lost.expect("the lease counts from the answer"), LostReason::Expired);
}
