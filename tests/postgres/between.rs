//! Proxies, balancers and names between a holder and its server.

use std::process::Command;
use std::time::Duration;

use tokio::time::timeout;

use crate::pools::{Haproxy, PgBouncer, Pgpool};
use crate::server::{Server, free_port, until};
use crate::support::{HANG, Holder, take, this_program};

/// A proxy ends a connection on which nothing comes. A third of this lease is longer than its limit.
#[tokio::test]
async fn a_proxy_hears_of_a_holder_more_often_than_its_limit() {
    let server = Server::start("");
    let haproxy = Haproxy::start(&server, "20s");
    let guard = take(&haproxy.lock("lock=x&ttl=10m")).await;
    let lost = timeout(Duration::from_secs(24), guard.lost()).await;
    assert!(lost.is_err(), "lost behind the proxy: {lost:?}");
    guard.release().await.unwrap();
}

/// PgBouncer 1.18 ends, and every session with it, if a client asks it to cancel a statement and does not wait for its
/// answer.
#[tokio::test]
async fn a_pool_outlives_waits_that_are_dropped() {
    let server = Server::start("");
    let bouncer = PgBouncer::start(&server, "session", "default_pool_size = 20");
    let held = take(&bouncer.lock("lock=held&ttl=3s")).await;
    let guard = take(&server.lock("lock=x")).await;
    for moment in 0..20 {
        let lock = bouncer.lock("lock=x&ttl=3s");
        let wait = timeout(Duration::from_millis(20 + moment), lock.obtain()).await;
        assert!(wait.is_err(), "{wait:?}");
    }
    guard.release().await.unwrap();
    // The last wait may just be leaving the queue.
    let next = timeout(HANG, bouncer.lock("lock=x").obtain()).await.expect("hangs");
    next.unwrap().release().await.unwrap();
    assert!(held.is_held());
    held.release().await.unwrap();
}

/// pgpool-II sends statements that only read to a standby. Every statement of a lock has to reach the primary.
#[tokio::test]
async fn a_balancer_of_reads_moves_no_statement() {
    let primary = Server::start("wal_keep_size = 64");
    let standby = primary.standby();
    let pgpool = Pgpool::start(&primary, &standby);
    // It takes a moment to know that the standby is one.
    until(&pgpool.client().await, "SELECT inet_server_port()", &standby.port.to_string()).await;
    let other = primary.lock("lock=x");
    for ttl in [1, 2, 3] {
        let lock = pgpool.lock(&format!("lock=x&ttl={ttl}s"));
        let guard = take(&lock).await;
        assert!(other.attempt().await.unwrap().is_none());
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
        let lost = timeout(Duration::from_secs(2 * ttl), guard.lost()).await;
        assert!(lost.is_err(), "{lost:?} {}", pgpool.log());
        guard.release().await.unwrap();
        let holder = Holder::holding(&other);
        let (wait, ()) = tokio::join!(timeout(HANG, lock.obtain()), async {
            until(&primary.client().await, &crate::server::waiters("x"), "1").await;
            holder.release();
        });
        wait.expect("hangs").unwrap().release().await.unwrap();
    }
}

/// A name with several addresses, of which one is a standby and one is nobody's.
#[tokio::test]
async fn the_primary_is_found_behind_any_address_of_a_name() {
    let port = free_port();
    let mut primary = Server::prepare("127.0.0.3");
    primary.configure("wal_keep_size = 64");
    primary.port = port;
    primary.run();
    // The names of a machine are sorted by their likeness to its own address, so this one comes first.
    let _standby = primary.standby_at("127.0.0.1", port);
    let hosts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hosts.path(), "127.0.0.1 db\n127.0.0.2 db\n127.0.0.3 db\n").unwrap();
    let url = format!("postgres://postgres@db:{port}/postgres?lock=x&connect_timeout=5s");
    let lock = tokio_lockfile::LockFile::open(&url).unwrap();
    let program = this_program();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]).arg(hosts.path());
    command.arg(program.get_program()).args(["support::hold_for_parent", "--exact", "--nocapture"]);
    let mut holder = Holder::spawn(&mut command, "TOKIO_LOCKFILE_TEST_HOLD", &lock);
    holder.has_it();
    assert!(primary.lock("lock=x").attempt().await.unwrap().is_none());
    holder.release();
}
