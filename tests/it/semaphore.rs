//! At most N holders, on N locks of any kind.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LockGuard, Semaphore};

use crate::support::{FILE_KINDS, HANG, Holder, poll_once, this_program};

/// Sets of locks: each kind alone, null locks, and all together.
fn sets(dir: &Path, permits: usize) -> Vec<Vec<LockFile>> {
    let of_kind = |number: usize| {
        (0..permits).map(|permit| FILE_KINDS[number](&dir.join(format!("{number}.{permit}")))).collect::<Vec<_>>()
    };
    let mut sets: Vec<_> = (0..FILE_KINDS.len()).map(of_kind).collect();
    sets.push((0..permits).map(|_| LockFile::null()).collect());
    let mixed = (0..permits).map(|permit| match permit % (FILE_KINDS.len() + 1) {
        number if number < FILE_KINDS.len() => FILE_KINDS[number](&dir.join(format!("mixed.{permit}"))),
        _ => LockFile::null(),
    });
    sets.push(mixed.collect());
    sets
}

async fn all(semaphore: &Semaphore) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for _ in 0..semaphore.permits() {
        guards.push(timeout(HANG, semaphore.obtain()).await.expect("a permit is missing").unwrap());
    }
    guards
}

#[tokio::test]
async fn there_are_as_many_permits_as_locks() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 4) {
        let semaphore = Semaphore::new(locks.iter().cloned().chain([locks[0].clone()]));
        assert_eq!(semaphore.permits(), 4, "a lock given twice counts once");
        let mut guards = all(&semaphore).await;
        assert!(semaphore.attempt().await.unwrap().is_none());
        assert!(locks.iter().all(LockFile::locked));
        let freed = guards.remove(2);
        let url = freed.url();
        freed.release().await.unwrap();
        let guard = semaphore.attempt().await.unwrap().expect("one is free");
        assert_eq!(guard.url(), url);
        let error = semaphore.clone().obtain_timeout(Duration::from_secs(1)).await.unwrap_err();
        let LockError::TimedOut { holder: Some(ref holder), .. } = error else { panic!("{error:?}") };
        assert_eq!(holder.pid(), std::process::id());
        assert!(matches!(semaphore.obtain_timeout(Duration::ZERO).await, Err(LockError::TimedOut { .. })));
        drop((guards, guard));
        drop(all(&semaphore).await);
        assert!(!locks.iter().any(LockFile::locked));
    }
}

#[tokio::test(start_paused = true)]
async fn without_locks_there_is_no_permit() {
    let none = Semaphore::new([]);
    assert_eq!(none.permits(), 0);
    assert!(none.attempt().await.unwrap().is_none());
    assert!(timeout(Duration::from_secs(3600), none.obtain()).await.is_err());
    assert!(matches!(none.obtain_timeout(Duration::from_secs(1)).await, Err(LockError::TimedOut { .. })));
}

#[tokio::test]
async fn numbered_permits_are_files_beside_each_other() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("jobs.lock");
    let (two, three) = (Semaphore::numbered(&path, 2).unwrap(), Semaphore::numbered(&path, 3).unwrap());
    let guards = all(&three).await;
    assert!((0..3).all(|number| dir.path().join(format!("jobs.lock.{number}")).exists()));
    assert!(two.attempt().await.unwrap().is_none());
    drop(guards);
    let guards = all(&two).await;
    assert!(two.attempt().await.unwrap().is_none());
    assert!(three.attempt().await.unwrap().is_some());
    drop(guards);
    assert!(matches!(Semaphore::numbered("", 2), Err(LockError::InvalidPath { .. })));
}

#[cfg(unix)]
#[tokio::test]
async fn numbered_permits_may_have_options() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let permits = LockFile::builder().mode(0o600).numbered(dir.path().join("jobs"), 2);
    let permits = permits.unwrap();
    let guards = all(&permits).await;
    for lock in permits.locks() {
        let metadata = std::fs::metadata(lock.path().unwrap()).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
    drop(guards);
}

#[test]
fn threads_without_a_runtime_get_permits() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 2) {
        let permits = Semaphore::new(locks);
        let (first, second) = (permits.blocking_obtain().unwrap(), permits.blocking_attempt().unwrap().unwrap());
        assert!(permits.blocking_attempt().unwrap().is_none());
        let late = permits.blocking_obtain_timeout(Duration::from_millis(50));
        assert!(matches!(late, Err(LockError::TimedOut { .. })), "{late:?}");
        let waits = std::thread::spawn({
            let permits = permits.clone();
            move || drop(permits.blocking_obtain().unwrap())
        });
        drop(first);
        waits.join().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        drop(runtime.block_on(async { permits.blocking_attempt() }).unwrap().expect("one is free"));
        drop(second);
    }
}

#[tokio::test]
async fn tasks_are_served_in_order_and_attempts_do_not_overtake_them() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 3) {
        let semaphore = Semaphore::new(locks);
        let mut guards = all(&semaphore).await;
        let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..7 {
            let (semaphore, sender) = (semaphore.clone(), sender.clone());
            tokio::spawn(async move {
                let guard = semaphore.obtain().await.unwrap();
                sender.send((number, guard)).unwrap();
            });
            yield_now().await;
        }
        for number in 0..7 {
            assert!(semaphore.attempt().await.unwrap().is_none(), "it overtakes a waiting task");
            guards.swap_remove(number % guards.len()).release().await.unwrap();
            let (served, guard) = timeout(HANG, served.recv()).await.expect("hangs").unwrap();
            assert_eq!(served, number);
            guards.push(guard);
        }
    }
}

/// A permit is free, and it is the turn of a task that has not been polled since.
#[tokio::test]
async fn an_attempt_does_not_overtake_the_task_whose_turn_has_come() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 2) {
        let semaphore = Semaphore::new(locks);
        let guards = all(&semaphore).await;
        let (mut first, mut second) = (Box::pin(semaphore.obtain()), Box::pin(semaphore.obtain()));
        assert!(!poll_once(first.as_mut()).await && !poll_once(second.as_mut()).await);
        drop(guards);
        let first = timeout(HANG, first).await.expect("hangs").unwrap();
        assert!(semaphore.attempt().await.unwrap().is_none());
        let second = timeout(HANG, second).await.expect("hangs").unwrap();
        drop((first, second));
        drop(all(&semaphore).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_tasks_than_permits() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 3) {
        let semaphore = Semaphore::new(locks.clone());
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..9)
            .map(|number| {
                // Some have a semaphore of their own on the same locks.
                let semaphore = if number < 6 { semaphore.clone() } else { Semaphore::new(locks.clone()) };
                let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let guard = semaphore.obtain().await.unwrap();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(guard);
                    }
                })
            })
            .collect();
        for task in tasks {
            timeout(HANG, task).await.expect("hangs").unwrap();
        }
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?} holders");
        drop(all(&semaphore).await);
    }
}

/// While permits are free, while all are taken, and while one becomes free.
#[tokio::test]
async fn a_wait_dropped_at_any_poll_leaves_all_permits_free() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 3) {
        for taken in 0..=3 {
            for polls in 0..16 {
                let semaphore = Semaphore::new(locks.clone());
                let mut guards = all(&semaphore).await;
                guards.truncate(taken);
                let mut wait = Box::pin(semaphore.obtain());
                for poll in 0..polls {
                    if poll == polls / 2 {
                        guards.pop();
                    }
                    if poll_once(wait.as_mut()).await {
                        break;
                    }
                }
                drop(wait);
                drop(guards);
                drop(all(&semaphore).await);
                assert!(!locks.iter().any(LockFile::locked));
            }
        }
    }
}

/// All permits become free at the same moment. One waiter takes one of them, and gives back what it got besides.
#[tokio::test]
async fn a_waiter_keeps_one_of_several_that_become_free() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 4) {
        let semaphore = Semaphore::new(locks.clone());
        for _ in 0..20 {
            let guards = all(&semaphore).await;
            let mut wait = pin!(semaphore.obtain());
            for _ in 0..3 {
                assert!(!poll_once(wait.as_mut()).await);
            }
            drop(guards);
            let guard = timeout(HANG, wait).await.expect("hangs").unwrap();
            assert_eq!(locks.iter().filter(|lock| lock.locked()).count(), 1);
            let mut others = Vec::new();
            for _ in 0..3 {
                others.push(timeout(HANG, semaphore.obtain()).await.expect("a permit is missing").unwrap());
            }
            drop((guard, others));
        }
    }
}

#[tokio::test]
async fn a_killed_process_gives_its_permit_back() {
    let dir = TempDir::new().unwrap();
    for locks in sets(dir.path(), 2) {
        if locks.iter().any(|lock| lock.path().is_none()) {
            continue;
        }
        let semaphore = Semaphore::new(locks.clone());
        let mut holders: Vec<_> = locks.iter().map(Holder::holding).collect();
        assert!(semaphore.attempt().await.unwrap().is_none());
        let mut wait = Box::pin(semaphore.obtain());
        for _ in 0..3 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        holders.pop().unwrap().kill();
        let guard = timeout(HANG, wait).await.expect("hangs").unwrap();
        assert_eq!(guard.url(), locks[1].url());
        assert!(semaphore.attempt().await.unwrap().is_none());
        holders.pop().unwrap().release();
        // The dropped wait for this lock may still have a try on the blocking pool.
        timeout(HANG, locks[0].obtain()).await.expect("hangs").unwrap().release().await.unwrap();
    }
}

/// It would have as many holders as come.
#[tokio::test]
async fn a_shared_lock_is_no_permit() {
    let lock = LockFile::null();
    for locks in [vec![lock.shared().unwrap()], vec![lock.clone(), LockFile::open("nulllockfile:x?shared").unwrap()]] {
        let semaphore = Semaphore::new(locks);
        for refused in [semaphore.attempt().await.map(drop), semaphore.obtain().await.map(drop)] {
            assert!(matches!(refused, Err(LockError::Unsupported { .. })), "{refused:?}");
        }
    }
}

const WORK: &str = "TOKIO_LOCKFILE_TEST_WORK";

/// Each holder has a file in one directory while it holds its permit. Nobody may see more files than there are permits.
#[test]
fn never_more_processes_than_permits() {
    const PERMITS: usize = 3;
    let dir = TempDir::new().unwrap();
    for (number, locks) in sets(dir.path(), PERMITS).into_iter().enumerate() {
        // A null lock is for the tasks of one process.
        let locks: Vec<_> = locks.into_iter().filter(|lock| lock.path().is_some()).collect();
        if locks.is_empty() {
            continue;
        }
        let inside = dir.path().join(format!("inside{number}"));
        std::fs::create_dir(&inside).unwrap();
        let urls: Vec<_> = locks.iter().map(|lock| lock.url().to_string()).collect();
        let work = format!("{} {}", inside.display(), urls.join(" "));
        let start = |_| {
            let mut command = this_program();
            command.args(["semaphore::work_for_parent", "--exact", "--test-threads=1"]).env(WORK, &work);
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        };
        let workers: Vec<_> = (0..PERMITS + 4).map(start).collect();
        for mut worker in workers {
            assert!(worker.wait().unwrap().success(), "too many holders, or an error");
        }
        assert!(locks.iter().all(|lock| lock.blocking_attempt().unwrap().is_some()));
    }
}

/// Not a real test: the processes of the test above run this. In an ordinary test run it passes at once.
#[tokio::test]
async fn work_for_parent() {
    let Ok(work) = std::env::var(WORK) else { return };
    let mut words = work.split(' ');
    let inside = Path::new(words.next().unwrap());
    let semaphore = Semaphore::new(words.map(|url| LockFile::open(url).unwrap()));
    let witness = inside.join(std::process::id().to_string());
    for _ in 0..30 {
        let guard = timeout(HANG, semaphore.obtain()).await.expect("hangs").unwrap();
        std::fs::write(&witness, "").unwrap();
        yield_now().await;
        let holders = std::fs::read_dir(inside).unwrap().count();
        assert!(holders <= semaphore.permits(), "{holders} holders");
        std::fs::remove_file(&witness).unwrap();
        guard.release().await.unwrap();
    }
}
