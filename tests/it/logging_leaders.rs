//! What a singleton logs. Each test runs in its own process, for the reason in `logging`.

use std::time::Duration;

use tokio_lockfile::{LockFile, Restart, Singleton};
use tracing::Level;

use crate::logging::Recorder;
use crate::support::{each_file_kind, in_own_process, take};

#[tokio::test(start_paused = true)]
async fn a_singletons_failed_work_is_a_warning() {
    if !in_own_process("logging_leaders::a_singletons_failed_work_is_a_warning") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let mut failures = ["no disk"].into_iter();
    let work = || std::future::ready(failures.next().map_or(Ok(()), Err));
    let done = Singleton::new(LockFile::null()).run(work, std::future::pending::<()>()).await;
    assert!(matches!(done, Ok(Some(()))));
    let failed = recorder.only("the work under the lock failed");
    assert_eq!((failed.level, failed.fields["error"].as_str()), (Level::WARN, "no disk"));
    assert!(failed.numbers.contains_key("held_ms"));
}

/// Work that fails on its way out, or cannot be stopped without a panic, and a singleton whose future is dropped.
#[tokio::test(start_paused = true)]
async fn however_a_leader_ends_the_log_says_that_it_steps_down() {
    struct PanicsAtDrop;
    impl Drop for PanicsAtDrop {
        fn drop(&mut self) {
            panic!("on the way out");
        }
    }
    if !in_own_process("logging_leaders::however_a_leader_ends_the_log_says_that_it_steps_down") {
        return;
    }
    let second = Duration::from_secs(1);
    let (recorder, _listening) = Recorder::listen();
    let told = |reason: &str, failure: Option<&str>| {
        assert_eq!(recorder.only("stepped down").fields["reason"], reason);
        let failed = recorder.about("the work under the lock failed");
        assert_eq!(failed.len(), usize::from(failure.is_some()), "{failed:?}");
        assert!(failed.iter().zip(failure).all(|(said, end)| said.fields["message"].ends_with(end)), "{failed:?}");
        recorder.events.lock().unwrap().clear();
    };
    for restart in [Restart::OnFailure, Restart::Never] {
        let leader = Singleton::new(LockFile::null()).grace(5 * second).restart(restart);
        let fails = || async {
            tokio::time::sleep(3 * second).await;
            Err::<(), _>("no disk")
        };
        let ended = leader.run(fails, tokio::time::sleep(second)).await;
        let is_told = restart == Restart::OnFailure;
        assert_eq!(ended.is_ok(), is_told, "the caller hears of it");
        told("shutting down", is_told.then_some("shutting down"));
    }
    let leader = Singleton::new(LockFile::null());
    let panics = || async {
        let _panics = PanicsAtDrop;
        std::future::pending::<Result<(), String>>().await
    };
    assert_eq!(leader.run(panics, tokio::time::sleep(second)).await.unwrap(), None);
    told("shutting down", Some("shutting down"));
    let works = || std::future::pending::<Result<(), String>>();
    let run = leader.run(works, std::future::pending::<()>());
    assert!(tokio::time::timeout(second, run).await.is_err());
    told("its future was dropped", None);
    let never = leader.restart(Restart::Never);
    assert!(never.run(|| async { Err::<(), _>("no disk") }, std::future::pending::<()>()).await.is_err());
    told("the work failed", None);
}

#[tokio::test(start_paused = true)]
async fn a_singletons_failed_lock_is_a_warning() {
    if !in_own_process("logging_leaders::a_singletons_failed_lock_is_a_warning") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let dir = tempfile::tempdir().unwrap();
    let lock = LockFile::native(dir.path().join("missing").join("x.lock")).unwrap();
    let work = || std::future::ready(Ok::<_, String>(()));
    let leader = Singleton::new(lock).pause(Duration::from_secs(60), Duration::from_secs(60));
    let done = leader.run(work, tokio::time::sleep(Duration::from_secs(10))).await;
    assert!(matches!(done, Ok(None)));
    let failed = recorder.only("the lock failed");
    assert_eq!(failed.level, Level::WARN);
    assert!(failed.fields["error"].contains("missing"), "{failed:?}");
}

/// The path is the URL there.
#[cfg(feature = "etcd")]
#[tokio::test]
async fn the_line_of_a_failed_lock_on_a_server_has_its_url_once() {
    if !in_own_process("logging_leaders::the_line_of_a_failed_lock_on_a_server_has_its_url_once") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("etcd://127.0.0.1:{port}/x?connect_timeout=300ms");
    let leader = Singleton::new(LockFile::open(&url).unwrap());
    let has_failed = async {
        while recorder.about("the lock failed").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let work = || std::future::ready(Ok::<_, String>(()));
    assert!(matches!(leader.run(work, has_failed).await, Ok(None)));
    let failed = recorder.only("the lock failed");
    assert!(failed.fields["path"] == url && !failed.fields["error"].contains(&url), "{failed:?}");
    assert!(failed.fields["error"].contains("Connection refused"), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_singleton_says_when_it_leads_and_for_how_long() {
    if !in_own_process("logging_leaders::a_singleton_says_when_it_leads_and_for_how_long") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let (recorder, _listening) = Recorder::listen();
        let leader = Singleton::new(lock);
        let leadership = leader.leadership();
        let work = || async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            leadership.step_down();
            std::future::pending::<Result<(), String>>().await
        };
        // It leads from 5 s on, steps down at 12 s, and leads again a second later.
        let others = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            guard.release().await.unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
        };
        assert_eq!(leader.run(work, others).await.unwrap(), None);

        recorder.only("stands by");
        let [first, _second] = &recorder.about("leads")[..] else { panic!("{recorder:?}") };
        assert!(first.numbers["waited_ms"] >= 5_000, "{first:?}");
        let [asked, shut_down] = &recorder.about("stepped down")[..] else { panic!("{recorder:?}") };
        assert!(asked.numbers["held_ms"] >= 7_000 && shut_down.numbers["held_ms"] >= 1_000, "{recorder:?}");
        assert_eq!((&*asked.fields["reason"], &*shut_down.fields["reason"]), ("asked to", "shutting down"));
        let said = [&recorder.only("stands by"), first, asked, shut_down];
        assert!(
            said.iter().all(|entry| entry.level == Level::INFO && entry.fields["path"] == path.display().to_string())
        );
        assert!(recorder.about("").iter().all(|entry| entry.level != Level::WARN), "{recorder:?}");
    })
    .await;
}
