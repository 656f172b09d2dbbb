//! What is logged and shown: never a password, and nothing of what is normal.

use tokio_lockfile::LockFile;

use crate::server::{Server, key, value};
use crate::support::{HANG, Holder, in_own_process, take};
use crate::whole_log::WholeLog;

#[test]
fn no_password_is_logged_or_shown() {
    if !in_own_process("logging::no_password_is_logged_or_shown") {
        return;
    }
    let log = WholeLog::begin();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let server = Server::start("");
        let client = server.client().await;
        client.simple_query("CREATE ROLE app LOGIN PASSWORD 'S3cretPw'").await.unwrap();
        server.require_password();
        let before = log.text().len();
        let url = |password: &str| format!("postgres://app:{password}@{}/postgres?lock=x&ttl=3s", server.host());
        let lock = LockFile::open(&url("S3cretPw")).unwrap();
        let guard = take(&lock).await;
        let holder = lock.holder().await.unwrap();
        let error = lock.obtain_timeout(std::time::Duration::from_millis(1)).await.unwrap_err();
        let terminate = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
             AND (classid::bigint << 32 | objid::bigint) = {}",
            key("x")
        );
        client.simple_query(&terminate).await.unwrap();
        guard.lost().await;
        let wrong = LockFile::open(&url("S3cretPw2")).unwrap();
        let shown = format!("{lock:?} {wrong:?} {guard:?} {holder:?} {error} {error:?} {}", lock.url());
        let lost = guard.release().await.unwrap_err();
        let refused = wrong.attempt().await.unwrap_err();
        let shown = format!("{shown} {lost} {lost:?} {refused} {refused:?}");
        assert!(!shown.contains("S3cret"), "{shown}");
        assert!(refused.to_string().contains("28P01"), "{refused}");
        let log = log.text().split_off(before);
        assert!(log.contains("acquired") && log.contains("tokio_postgres"), "{log}");
        assert!(!log.contains("S3cret"), "{log}");
    });
}

/// A first attempt, a wait, heartbeats, a dropped wait and a release: neither the server nor the program has anything
/// to tell.
#[test]
fn what_is_normal_is_logged_nowhere() {
    if !in_own_process("logging::what_is_normal_is_logged_nowhere") {
        return;
    }
    let log = WholeLog::begin();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let server = Server::start("");
        let before = server.log().len();
        let lock = server.lock("lock=x&ttl=1s");
        let holder = Holder::holding(&lock);
        assert!(lock.attempt().await.unwrap().is_none());
        server.waiting(&lock, "x").await.abort();
        let wait = server.waiting(&lock, "x").await;
        holder.release();
        let guard = tokio::time::timeout(HANG, wait).await.expect("hangs").unwrap().unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        guard.release().await.unwrap();
        let (server_log, log) = (server.log().split_off(before), log.text());
        assert_eq!(server_log, "");
        let is_loud = |line: &&str| ["INFO", "WARN", "ERROR"].iter().any(|level| line.starts_with(level));
        let loud: Vec<_> = log.lines().filter(is_loud).collect();
        assert!(log.contains("DEBUG tokio_postgres") && loud.is_empty(), "{loud:#?}");
    });
}

/// Whatever the locks, the processes and the leases are called. The rows of an administrator stay.
#[tokio::test]
async fn the_statements_of_all_locks_are_the_same() {
    const ROUNDS: u64 = 6;
    let server = Server::start("shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = 'all'");
    let client = server.client().await;
    client.simple_query("CREATE EXTENSION pg_stat_statements").await.unwrap();
    let mut seen = Vec::new();
    for round in 0..ROUNDS {
        let lock = server.lock(&format!("lock={round}&ttl={}s&application_name=app{round}", round + 2));
        let holder = Holder::holding(&lock);
        let wait = server.waiting(&lock, &round.to_string()).await;
        assert_eq!(lock.holder().await.unwrap().unwrap().name(), Some(&*format!("app{round}")));
        holder.release();
        tokio::time::timeout(HANG, wait).await.expect("hangs").unwrap().unwrap().release().await.unwrap();
        let rows = "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%pg_is_in_recovery%'";
        seen.push(value(&client, rows).await.parse::<u64>().unwrap());
    }
    // Not every round needs every statement.
    assert!(seen[seen.len() - 1] < seen[0] + ROUNDS - 1, "{seen:?}");
}
