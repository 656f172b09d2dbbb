//! A singleton: one instance works, the others stand by.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};
use tokio_lockfile::{LockError, LockFile, Restart, Singleton, SingletonError};

use crate::support::take;

/// Dropped when the work ends; the lock must still be held then.
struct Witness(LockFile, Arc<AtomicUsize>);

impl Drop for Witness {
    fn drop(&mut self) {
        assert!(self.0.locked(), "released before the work has stopped");
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(unix)]
struct AtEnd<F: Fn()>(F);

#[cfg(unix)]
impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        self.0();
    }
}

fn singleton(lock: &LockFile) -> Singleton {
    Singleton::new(lock.clone()).pause(Duration::from_secs(5), Duration::from_secs(5))
}

#[tokio::test]
async fn the_result_of_the_work_ends_the_singleton() {
    let lock = LockFile::null();
    let done = singleton(&lock).run(|| async { Ok::<_, String>(42) }, pending::<()>()).await;
    assert_eq!(done.unwrap(), Some(42));
    assert!(!lock.locked());
}

#[tokio::test(start_paused = true)]
async fn failed_work_is_restarted_after_a_pause_in_which_others_can_take_the_lock() {
    let lock = LockFile::null();
    let terms = Arc::new(AtomicUsize::new(0));
    let task = tokio::spawn({
        let (singleton, terms) = (singleton(&lock), Arc::clone(&terms));
        async move {
            let work = || async {
                match terms.fetch_add(1, Ordering::SeqCst) {
                    0 => Err("first"),
                    1 => panic!("second"),
                    _ => Ok("third"),
                }
            };
            singleton.run(work, pending::<()>()).await
        }
    });
    for term in 1..=2 {
        while terms.load(Ordering::SeqCst) < term || lock.locked() {
            tokio::task::yield_now().await;
        }
        take(&lock).await.release().await.unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
    }
    assert_eq!(task.await.unwrap().unwrap(), Some("third"));
}

#[tokio::test(start_paused = true)]
async fn pauses_double_until_the_work_has_gone_well_for_as_long_as_the_longest() {
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(8));
    let terms = Mutex::new(Vec::new());
    let work = || async {
        let term = {
            let mut terms = terms.lock().unwrap();
            terms.push(Instant::now());
            terms.len()
        };
        match term {
            // The fifth run is slightly too short to reset the pause. The seventh is long enough.
            5 => sleep(longest - Duration::from_millis(10)).await,
            7 => sleep(longest).await,
            _ => {}
        }
        if term < 9 { Err("fails") } else { Ok(()) }
    };
    let growing = Singleton::new(LockFile::null()).pause(shortest, longest);
    growing.run(work, pending::<()>()).await.unwrap();
    let terms = terms.into_inner().unwrap();
    let worked = [0, 0, 0, 0, 8, 0, 8, 0].map(Duration::from_secs);
    let pauses = terms.windows(2).zip(worked).map(|(pair, worked)| pair[1] - pair[0] - worked.min(pair[1] - pair[0]));
    // With jitter, a pause is at least half as long as it may be.
    let nominal = [1, 2, 4, 8, 8, 8, 1, 2].map(Duration::from_secs);
    for (number, (pause, nominal)) in pauses.zip(nominal).enumerate() {
        let slack = Duration::from_millis(15);
        assert!(pause + slack >= nominal / 2 && pause <= nominal + slack, "{number}: {pause:?} of {nominal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_end_in_the_grace_period_is_dropped_afterwards() {
    let (lock, ends) = (LockFile::null(), Arc::new(AtomicUsize::new(0)));
    let (started, grace) = (Notify::new(), Duration::from_secs(30));
    let work = || async {
        let _witness = Witness(lock.clone(), Arc::clone(&ends));
        started.notify_one();
        pending::<Result<(), String>>().await
    };
    let asked_to_end = Instant::now();
    assert_eq!(singleton(&lock).grace(grace).run(work, started.notified()).await.unwrap(), None);
    let taken = asked_to_end.elapsed();
    assert!(taken >= grace && taken < grace * 2, "{taken:?}");
    assert_eq!(ends.load(Ordering::SeqCst), 1);
    assert!(!lock.locked());
}

#[tokio::test]
async fn failed_work_that_is_not_restarted_ends_the_singleton() {
    let lock = LockFile::null();
    let never = singleton(&lock).restart(Restart::Never);
    let failed = never.run(|| async { Err::<(), _>("no") }, pending::<()>()).await;
    assert!(matches!(failed, Err(SingletonError::Work("no"))));
    let panicking =
        tokio::spawn(async move { never.run(|| async { panic!() as Result<(), String> }, pending::<()>()).await });
    assert!(panicking.await.unwrap_err().is_panic());
    assert!(!lock.locked());
}

#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_stops_the_work_and_it_stands_by_again() {
    crate::support::each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let (terms, ends) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let quick = Singleton::new(lock.clone()).pause(Duration::from_millis(1), Duration::from_millis(1));
        let leadership = quick.leadership();
        let work = || async {
            let _witness = Witness(lock.clone(), Arc::clone(&ends));
            assert!(leadership.is_leader());
            if terms.fetch_add(1, Ordering::SeqCst) == 0 {
                let _told = AtEnd(|| assert!(!leadership.is_leader(), "the other tasks are not told of the loss"));
                std::fs::remove_file(&path).unwrap();
                pending().await
            }
            Ok::<_, String>(())
        };
        assert_eq!(quick.run(work, pending::<()>()).await.unwrap(), Some(()));
        assert_eq!(ends.load(Ordering::SeqCst), 2);
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_ends_a_singleton_that_stands_by_and_one_that_works() {
    let lock = LockFile::null();
    let guard = take(&lock).await;
    let work = || async { unreachable!() as Result<(), String> };
    assert_eq!(singleton(&lock).run(work, async {}).await.unwrap(), None);
    drop(guard);

    let (ends, (started, shutdown)) = (Arc::new(AtomicUsize::new(0)), oneshot::channel());
    let mut started = Some(started);
    let work = || {
        started.take().unwrap().send(()).unwrap();
        let witness = Witness(lock.clone(), Arc::clone(&ends));
        async move {
            let _witness = witness;
            pending::<Result<(), String>>().await
        }
    };
    assert_eq!(singleton(&lock).run(work, async { shutdown.await.unwrap() }).await.unwrap(), None);
    assert_eq!(ends.load(Ordering::SeqCst), 1);
    assert!(!lock.locked());
}

#[tokio::test]
async fn work_can_succeed_in_the_grace_period() {
    let lock = LockFile::null();
    let (token, started) = (Notify::new(), Notify::new());
    let work = || async {
        started.notify_one();
        token.notified().await;
        tokio::task::yield_now().await;
        Ok::<_, String>("tidy")
    };
    let shutdown = async {
        started.notified().await;
        token.notify_one();
    };
    let patient = singleton(&lock).grace(Duration::from_secs(3600));
    assert_eq!(patient.run(work, shutdown).await.unwrap(), Some("tidy"));
}

#[tokio::test]
async fn work_that_fails_in_the_grace_period_is_not_restarted() {
    let lock = LockFile::null();
    let (token, started, terms) = (Notify::new(), Notify::new(), AtomicUsize::new(0));
    let work = || async {
        terms.fetch_add(1, Ordering::SeqCst);
        started.notify_one();
        token.notified().await;
        tokio::task::yield_now().await;
        Err::<(), _>("untidy")
    };
    let shutdown = async {
        started.notified().await;
        token.notify_one();
    };
    let patient = singleton(&lock).grace(Duration::from_secs(3600));
    assert_eq!(patient.run(work, shutdown).await.unwrap(), None);
    assert_eq!(terms.into_inner(), 1);
}

/// Virtual time passes only while nothing else is to be done. So after half a minute there have been some tries.
#[tokio::test(start_paused = true)]
async fn a_lock_that_fails_for_a_time_does_not_end_the_singleton() {
    crate::support::each_file_kind(|kind, path| async move {
        let dir = path.parent().unwrap().join("later");
        let lock = kind(&dir.join("x.lock"));
        let task = tokio::spawn(async move {
            singleton(&lock).run(|| async { Ok::<_, String>("served") }, pending::<()>()).await.unwrap()
        });
        sleep(Duration::from_secs(30)).await;
        assert!(!task.is_finished());
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(task.await.unwrap(), Some("served"));
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_fails_ends_a_singleton_that_is_not_restarted() {
    crate::support::each_file_kind(|kind, path| async move {
        let lock = kind(&path.parent().unwrap().join("missing").join("x.lock"));
        let never = singleton(&lock).restart(Restart::Never);
        let failed = never.run(|| async { Ok::<_, String>(()) }, pending::<()>()).await;
        assert!(matches!(failed, Err(SingletonError::Lock(LockError::Io { .. }))), "{failed:?}");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_lock_that_can_never_work_ends_the_singleton() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "not a lock").unwrap();
    let leader = singleton(&LockFile::shlock(&path).unwrap());
    let ended = leader.run(|| async { Ok::<_, String>(()) }, pending::<()>());
    let failed = tokio::time::timeout(crate::support::HANG, ended).await.expect("it goes on");
    assert!(matches!(failed, Err(SingletonError::Lock(LockError::NotALockFile { .. }))), "{failed:?}");
}

/// Such as a database server that is a standby for the moments of a failover, or the work of a clumsy administrator.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_lock_that_has_worked_may_work_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let lock = LockFile::shlock(&path).unwrap();
    for has_led in [true, false] {
        let holder = if has_led { None } else { lock.attempt().await.unwrap() };
        let (leader, terms) = (singleton(&lock), AtomicUsize::new(0));
        let spoil = || {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, "not a lock").unwrap();
        };
        let work = || async {
            if has_led && terms.fetch_add(1, Ordering::SeqCst) == 0 {
                spoil();
                pending().await
            }
            Ok::<_, String>("served")
        };
        let repair = async {
            if let Some(holder) = holder {
                sleep(Duration::from_secs(1)).await;
                spoil();
                drop(holder);
            }
            sleep(Duration::from_secs(60)).await;
            std::fs::remove_file(&path).unwrap();
        };
        let (served, ()) = tokio::join!(leader.run(work, pending::<()>()), repair);
        assert_eq!(served.unwrap(), Some("served"));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_ends_a_singleton_that_is_not_restarted() {
    crate::support::each_file_kind(|kind, path| async move {
        let never = singleton(&kind(&path)).restart(Restart::Never);
        let work = || async {
            std::fs::remove_file(&path).unwrap();
            pending::<Result<(), String>>().await
        };
        let failed = never.run(work, pending::<()>()).await;
        assert!(matches!(failed, Err(SingletonError::Lock(LockError::Lost { .. }))), "{failed:?}");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_result_counts_only_if_the_lock_was_held_to_the_end() {
    crate::support::each_file_kind(|kind, path| async move {
        let terms = AtomicUsize::new(0);
        let work = || async {
            let term = terms.fetch_add(1, Ordering::SeqCst);
            if term == 0 {
                std::fs::remove_file(&path).unwrap();
            }
            Ok::<_, String>(term)
        };
        assert_eq!(singleton(&kind(&path)).run(work, pending::<()>()).await.unwrap(), Some(1));
    })
    .await;
}

#[tokio::test]
async fn the_output_of_a_shutdown_signal_does_not_matter() {
    let work = || pending::<Result<(), String>>();
    let signal = async { Err::<(), _>(std::io::Error::other("no signals here")) };
    assert_eq!(singleton(&LockFile::null()).run(work, signal).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn who_steps_down_lets_another_lead_and_stands_by_again() {
    let (lock, ends) = (LockFile::null(), Arc::new(AtomicUsize::new(0)));
    let leader = singleton(&lock);
    let mut leadership = leader.leadership();
    assert!(!leadership.is_leader() && !leadership.step_down(), "nobody leads yet");
    let task = tokio::spawn({
        let (leader, lock, ends) = (leader.clone(), lock.clone(), Arc::clone(&ends));
        let work = move || {
            let witness = Witness(lock.clone(), Arc::clone(&ends));
            async move {
                let _witness = witness;
                pending::<Result<(), String>>().await
            }
        };
        async move { leader.run(work, pending::<()>()).await }
    });
    assert!(leadership.changed().await);
    assert!(leader.leadership().is_leader(), "clones share their leadership");

    let other = tokio::spawn({
        let lock = lock.clone();
        async move { lock.obtain().await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(leadership.step_down());
    assert!(!leadership.changed().await);
    let guard = other.await.unwrap();
    assert_eq!(ends.load(Ordering::SeqCst), 1, "the work goes on");
    sleep(Duration::from_secs(60)).await;
    assert!(!leadership.is_leader());
    drop(guard);
    leadership.until_leader().await;
    assert!(leadership.changed().await, "the last call showed the end of the first term");
    sleep(Duration::from_secs(60)).await;
    assert!(leadership.is_leader(), "it was asked to step down only once");
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(!leadership.changed().await);
    assert!(!lock.locked());
}

#[tokio::test(start_paused = true)]
async fn work_that_steps_down_may_end_by_itself() {
    let leader = Singleton::new(LockFile::null()).grace(Duration::from_secs(3600)).restart(Restart::Never);
    let (leadership, terms) = (leader.leadership(), AtomicUsize::new(0));
    let work = || async {
        leadership.until_leader().await;
        match terms.fetch_add(1, Ordering::SeqCst) {
            0 => {
                assert!(leadership.step_down());
                tokio::task::yield_now().await;
                Err("to let another process lead")
            }
            _ => Ok("done"),
        }
    };
    let began = Instant::now();
    assert_eq!(leader.run(work, pending::<()>()).await.unwrap(), Some("done"));
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for the end of the grace");
}

/// A caller may pass the work on, in a task of its own, and a shutdown whose output nothing else tells. So the work is an
/// `FnMut`: the future of an `AsyncFnMut` cannot be known to be `Send`.
#[tokio::test]
async fn the_work_and_the_shutdown_may_come_from_a_generic_caller() {
    fn spawn<W, F>(leader: Singleton, work: W) -> tokio::task::JoinHandle<Result<Option<u32>, SingletonError<String>>>
    where
        W: FnMut() -> F + Send + 'static,
        F: Future<Output = Result<u32, String>> + Send + 'static,
    {
        tokio::spawn(async move { leader.run(work, pending::<()>()).await })
    }
    let mut count = 0;
    let work = move || {
        count += 1;
        async move { Ok(count) }
    };
    assert_eq!(spawn(singleton(&LockFile::null()), work).await.unwrap().unwrap(), Some(1));
    let name = String::from("borrowed");
    let work = async || Ok::<_, String>(name.len());
    assert_eq!(singleton(&LockFile::null()).run(work, pending::<()>()).await.unwrap(), Some(8));
}

#[tokio::test(start_paused = true)]
async fn the_text_of_a_leadership_tells_a_standby_from_a_lock_that_does_not_work() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let lock = LockFile::native(missing.join("x.lock")).unwrap();
    let leader = singleton(&lock);
    let leadership = leader.leadership();
    assert_eq!(leadership.to_string(), "has no answer from its lock yet");
    let running = tokio::spawn(async move {
        let work = || pending::<Result<(), String>>();
        leader.run(work, pending::<()>()).await
    });
    let tells = async |text: &str| {
        while !leadership.to_string().starts_with(text) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tells("cannot get its lock: cannot open lock file ").await;
    assert!(format!("{leadership:?}").contains("missing"), "{leadership:?}");
    std::fs::create_dir(&missing).unwrap();
    let guard = take(&lock).await;
    tells("stands by").await;
    guard.release().await.unwrap();
    tells("leads").await;
    running.abort();
}
