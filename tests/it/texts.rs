//! What a person reads: each text says what has happened and what to do.

use std::time::Duration;

use tokio_lockfile::{LockFile, Restart, Singleton, SingletonError};

use crate::support::{Holder, each_file_kind, each_kind, take};

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_limit_of_zero_does_not_speak_of_a_time() {
    each_file_kind(|kind, path| async move {
        let holder = Holder::holding(&kind(&path));
        let error = kind(&path).obtain_timeout(Duration::ZERO).await.unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("{path:?} is held by pid {}", holder.pid())), "{said}");
        holder.release();
    })
    .await;
}

#[tokio::test]
async fn a_timeout_behind_oneself_says_so() {
    each_kind(|lock, other| async move {
        let guard = take(&lock).await;
        for (limit, start) in [(Duration::ZERO, "is held by this process"), (SHORT, "held by this process")] {
            let said = other.obtain_timeout(limit).await.unwrap_err().to_string();
            assert!(said.contains(start) && said.contains(&format!("pid {}", std::process::id())), "{said}");
        }
        drop(guard);
    })
    .await;
}

/// As `?` in `main` prints them.
#[tokio::test]
async fn the_debug_text_of_an_error_is_its_text() {
    let lock = LockFile::null();
    let guard = take(&lock).await;
    let error = lock.obtain_timeout(SHORT).await.unwrap_err();
    assert_eq!(format!("{error:?}"), error.to_string());
    let said = format!("{:?}", SingletonError::<String>::from(error));
    assert!(said.starts_with("timed out after 300ms waiting for a null lock"), "{said}");
    drop(guard);
    let leader = Singleton::new(lock).restart(Restart::Never);
    let failed = leader.run(|| async { Err::<(), _>("no disk") }, std::future::pending::<()>()).await;
    assert_eq!(format!("{:?}", failed.unwrap_err()), "the work under the lock failed: \"no disk\"");
}

/// As anyhow prints an error with its causes.
struct WithCauses;

impl std::fmt::Display for WithCauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if f.alternate() { "cannot ask the server: connection refused" } else { "cannot ask the server" })
    }
}

#[tokio::test]
async fn a_failure_of_the_work_is_shown_with_its_causes() {
    let leader = Singleton::new(LockFile::null()).restart(Restart::Never);
    let failed = leader.run(|| async { Err::<(), _>(WithCauses) }, std::future::pending::<()>()).await;
    let SingletonError::Work(error) = failed.unwrap_err() else { panic!("the lock failed") };
    let said = SingletonError::Work(error).to_string();
    assert_eq!(said, "the work under the lock failed: cannot ask the server: connection refused");
}

#[tokio::test]
async fn the_debug_text_of_a_guard_is_short() {
    each_file_kind(|kind, path| async move {
        let guard = take(&kind(&path)).await;
        let said = format!("{guard:?}");
        assert!(said.len() < 200 && said.contains("x.lock") && said.contains("LockGuard"), "{said}");
        drop(guard);
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_is_no_lock_file_is_told_with_the_kind_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes");
    std::fs::write(&path, "my notes").unwrap();
    let said = LockFile::shlock(&path).unwrap().attempt().await.unwrap_err().to_string();
    assert!(said.contains("is not a lock file of kind shlock: "), "{said}");
    assert!(said.contains("flock kind") && said.contains("another path"), "{said}");
    let said = LockFile::flock(dir.path()).unwrap().attempt().await.unwrap_err().to_string();
    assert!(said.contains("is not a lock file of kind flock: it is a directory"), "{said}");
}

#[tokio::test]
async fn a_missing_directory_is_told_with_the_option_that_makes_it() {
    each_file_kind(|kind, path| async move {
        let said = kind(&path.join("x")).attempt().await.unwrap_err().to_string();
        assert!(said.contains("create_dirs"), "{said}");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_shared_shlock_is_refused_with_the_kind_that_can_be_shared() {
    let said = LockFile::open("shlockfile:/run/x.lock?shared").unwrap_err().to_string();
    assert!(said.contains("flockfile:"), "{said}");
}

/// A port at which nobody listens, and one where somebody accepts and says nothing.
#[cfg(feature = "etcd")]
#[tokio::test]
async fn a_timeout_says_that_the_server_has_not_answered_and_the_last_failure() {
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = port(&std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    for (port, cause) in [(port(&silent), ""), (closed, ": Connection refused")] {
        let lock = LockFile::open(&format!("etcd://127.0.0.1:{port}/x")).unwrap();
        let error = lock.obtain_timeout(Duration::from_millis(600)).await.unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("timed out after 600ms waiting for etcd://127.0.0.1:{port}/x: ")), "{said}");
        assert!(said.contains("the server does not answer") && said.contains(cause), "{said}");
    }
}
