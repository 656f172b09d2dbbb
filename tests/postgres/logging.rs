//! What is logged and shown never contains a password.

use tokio_lockfile::LockFile;

use crate::server::{Server, key};
use crate::support::{in_own_process, take};
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
