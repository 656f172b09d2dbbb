//! What may stand between a process and the cluster: every proxy for gRPC that Debian has.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_lockfile::{LockFile, LostReason};

use crate::cluster::{Cluster, Running, free_port};
use crate::nginx;
use crate::support::{HANG, Holder, poll_once, take};

/// Longer than the lease of 3 s.
const LONGER_THAN_THE_LEASE: Duration = Duration::from_secs(8);

/// A proxy in front of all members of a cluster, with the prefix that it gives to all keys.
pub(crate) struct Proxied {
    name: &'static str,
    pub(crate) port: u16,
    prefix: &'static str,
    _running: Running,
}

/// etcd's own proxy. It keeps leases and watches of its own for its clients.
fn grpc_proxy(cluster: &Cluster, name: &'static str, prefix: &'static str) -> Proxied {
    let (port, endpoints) = (free_port(), cluster.endpoints());
    let listen = format!("--listen-addr=127.0.0.1:{port}");
    let (endpoints, namespace) = (format!("--endpoints={endpoints}"), format!("--namespace={prefix}"));
    let running = Running::start(&["etcd", "grpc-proxy", "start", &endpoints, &listen, &namespace]);
    Proxied { name, port, prefix, _running: running }
}

/// At most 128 streams and 1,000 requests on each connection, as nginx has it by default.
pub(crate) fn nginx(cluster: &Cluster, dir: &Path) -> Proxied {
    let port = free_port();
    let command = nginx::command(dir, &format!("127.0.0.1:{port}"), cluster.endpoints().split(','));
    let running = Running::start(&command.each_ref().map(String::as_str));
    Proxied { name: "nginx", port, prefix: "", _running: running }
}

/// With `limits` on how long a connection may be idle.
fn haproxy(cluster: &Cluster, dir: &Path, name: &'static str, mode: &str, limits: &str) -> Proxied {
    let port = free_port();
    let protocol = if mode == "http" { "proto h2" } else { "" };
    let members = cluster.endpoints();
    let members = members.split(',').enumerate();
    let members: String = members.map(|(number, at)| format!(" server m{number} {at} {protocol}\n")).collect();
    let configuration = format!(
        "defaults\n mode {mode}\n timeout connect 2s\n timeout client {limits}\n timeout server {limits}\n\
         listen etcd\n bind 127.0.0.1:{port} {protocol}\n{members}"
    );
    let file = dir.join(format!("{name}.cfg"));
    std::fs::write(&file, configuration).unwrap();
    let running = Running::start(&["haproxy", "-db", "-f", file.to_str().unwrap()]);
    Proxied { name, port, prefix: "", _running: running }
}

impl Proxied {
    fn lock(&self, name: &str) -> LockFile {
        LockFile::open(&format!("etcd://127.0.0.1:{}/{}/{name}?ttl=3s", self.port, self.name)).unwrap()
    }
}

/// Locks are kept for longer than their lease, handed over in both directions, and lost with their keys.
#[tokio::test]
async fn a_lock_behind_a_proxy_is_like_any_other() {
    let cluster = Cluster::of(3);
    let dir = tempfile::tempdir().unwrap();
    let proxies = [
        grpc_proxy(&cluster, "grpc-proxy", ""),
        grpc_proxy(&cluster, "namespace", "app/"),
        nginx(&cluster, dir.path()),
        haproxy(&cluster, dir.path(), "tcp", "tcp", "60s"),
        haproxy(&cluster, dir.path(), "short", "tcp", "700ms"),
        haproxy(&cluster, dir.path(), "http", "http", "60s"),
    ];
    let mut rounds = Vec::new();
    for proxy in &proxies {
        rounds.push(timeout(HANG, behind(proxy, &cluster)));
    }
    for (round, proxy) in futures_of(rounds).await.into_iter().zip(&proxies) {
        round.unwrap_or_else(|_| panic!("hangs behind {}", proxy.name));
    }
}

/// Runs them side by side.
async fn futures_of<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut futures {
            if output.is_none() {
                if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                    *output = Some(ready);
                }
            }
        }
        match futures.iter().all(|(_, output)| output.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    futures.into_iter().map(|(_, output)| output.unwrap()).collect()
}

async fn behind(proxy: &Proxied, cluster: &Cluster) {
    let name = proxy.name;
    let (held, waited) = (proxy.lock("held"), proxy.lock("waited"));
    let key = |lock: &str| format!("{}{name}/{lock}", proxy.prefix);
    let guard = take(&held).await;
    let mut queued = Holder::start(&held);
    let holder = Holder::holding(&waited);
    let mut wait = Box::pin(waited.obtain());
    while cluster.keys(&key("waited")).len() < 2 || cluster.keys(&key("held")).len() < 2 {
        assert!(!poll_once(wait.as_mut()).await, "{name}: two holders");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lost = timeout(LONGER_THAN_THE_LEASE, guard.lost()).await;
    assert!(lost.is_err(), "{name}: lost, {lost:?}");
    assert!(guard.is_held(), "{name}");
    guard.release().await.unwrap();
    queued.has_it();
    queued.release();
    holder.release();
    let guard = timeout(HANG, wait).await.unwrap_or_else(|_| panic!("{name}: a wait is not served")).unwrap();
    cluster.ask(&["del", "--prefix", &key("waited/")]);
    let reason = timeout(HANG, guard.lost()).await.unwrap_or_else(|_| panic!("{name}: the loss is not noticed"));
    assert_eq!(reason, LostReason::Removed, "{name}");
}
