//! What is logged and shown never contains a password, nor the token that the server gives for it.

use std::time::Duration;

use tokio_lockfile::LockFile;

use crate::access::{url, with_short_tokens};
use crate::support::{in_own_process, take};
use crate::whole_log::WholeLog;

/// The second one belongs to nobody. Each part of a token begins with an encoded brace.
const SECRETS: [&str; 3] = ["S3cretPw", "wr0ngPw", "eyJ"];

fn secret_in(text: &str) -> Option<&str> {
    text.lines().find(|line| SECRETS.iter().any(|secret| line.contains(secret)))
}

#[test]
fn no_password_and_no_token_is_logged_or_shown() {
    if !in_own_process("logs::no_password_and_no_token_is_logged_or_shown") {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let cluster = with_short_tokens(keys.path());
    let log = WholeLog::begin();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let lock = LockFile::open(&url(&cluster, "app:S3cretPw", "app/x")).unwrap();
        let guard = take(&lock).await;
        let holder = lock.holder().await.unwrap();
        // The token ends meanwhile.
        let timed_out = lock.obtain_timeout(Duration::from_secs(3)).await.unwrap_err();
        cluster.ask(&["--user", "root:S3cretPw", "del", "--prefix", "app/x/"]);
        guard.lost().await;
        let wrong = LockFile::open(&url(&cluster, "app:wr0ngPw", "app/y")).unwrap();
        let refused = wrong.attempt().await.unwrap_err();
        let shown = format!("{lock:?} {wrong:?} {guard:?} {holder:?} {timed_out} {timed_out:?} {refused} {refused:?}");
        let lost = guard.release().await.unwrap_err();
        let shown = format!("{shown} {lost} {lost:?} {} {:?}", lock.url(), lock.url());
        assert_eq!(secret_in(&shown), None);
    });
    let log = log.text();
    assert!(log.contains("tokio_lockfile\n") && log.contains("app/x"), "{log}");
    assert!(log.contains("h2::"), "the libraries log too");
    // For two users, who have logged in several times.
    assert_eq!(log.matches("the password goes to etcd without encryption").count(), 1, "{log}");
    assert_eq!(secret_in(&log), None);
}
