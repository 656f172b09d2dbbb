//! Waits for a holder outside this process: every kind of release wakes them, and a cancelled wait leaves nothing.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_lockfile::{LockFile, LockKind};

use crate::other_program::{OtherProgram, descriptors, is_watched, threads, until, waiter_is_asleep};
use crate::support::{FILE_KINDS, HANG, Holder, Kind, each_file_kind, in_own_process, poll_once, take};

/// A way in which a lock becomes free, and for which kinds it makes an event.
type Release = (fn(OtherProgram), fn(LockKind) -> bool);

fn releases() -> [Release; 6] {
    let unlock_and_close: fn(OtherProgram) = OtherProgram::release;
    let close = |program: OtherProgram| {
        if program.kind == LockKind::Shlock {
            std::fs::remove_file(&program.path).unwrap();
        }
    };
    let remove = |program: OtherProgram| {
        std::fs::remove_file(&program.path).unwrap();
        std::mem::forget(program);
    };
    let rename_away = |program: OtherProgram| {
        std::fs::rename(&program.path, program.path.with_extension("away")).unwrap();
        std::mem::forget(program);
    };
    let unlock_without_close = |program: OtherProgram| {
        if program.kind == LockKind::Shlock {
            std::fs::remove_file(&program.path).unwrap();
        }
        flock(&program.file, FlockOperation::Unlock).unwrap();
        std::mem::forget(program);
    };
    let crash = |program: OtherProgram| drop(program.file);
    [
        (unlock_and_close, |_| true),
        (close, |_| true),
        (remove, |_| true),
        (rename_away, |_| true),
        (unlock_without_close, |kind| kind == LockKind::Shlock),
        (crash, |_| true),
    ]
}

#[tokio::test]
async fn every_way_to_release_wakes_a_waiter() {
    for (release, _) in releases() {
        each_file_kind(|kind, path| async move {
            let lock = kind(&path);
            let program = OtherProgram::holding(&lock);
            let waiter = tokio::spawn(async move { lock.obtain().await.unwrap() });
            tokio::task::yield_now().await;
            let releaser = std::thread::spawn(move || release(program));
            drop(waiter.await.unwrap());
            releaser.join().unwrap();
        })
        .await;
    }
}

/// The clock moves only when this test says so. Without an event, a wait looks after 250 ms at the earliest. On a file
/// system in memory each try runs inline, so a poll is enough for it.
#[tokio::test(start_paused = true)]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
async fn an_event_wakes_a_waiter_wherever_the_release_makes_one() {
    // The drivers of other tests look too.
    if !in_own_process("waiting::an_event_wakes_a_waiter_wherever_the_release_makes_one") {
        return;
    }
    // The clock does not go on by itself while this runs.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let busy = tokio::runtime::Handle::current().spawn_blocking(move || ended.recv());
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for (number, (release, makes_an_event)) in releases().into_iter().enumerate() {
        for kind in FILE_KINDS {
            let lock = kind(&dir.path().join(number.to_string()));
            let program = OtherProgram::holding(&lock);
            let file = File::open(&program.path).unwrap();
            let mut wait = Box::pin(lock.obtain());
            // It watches first, and then tries once more.
            while !is_watched(&file) {
                assert!(!poll_once(wait.as_mut()).await);
            }
            assert!(!poll_once(wait.as_mut()).await);
            release(program);
            let mut served_after = None;
            for millisecond in 0..300 {
                for _ in 0..20 {
                    if served_after.is_none() && poll_once(wait.as_mut()).await {
                        served_after = Some(millisecond);
                    }
                }
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            let (kind, served_after) = (lock.kind(), served_after.expect("it is not served"));
            let by_event = served_after < 200;
            assert_eq!(by_event, makes_an_event(kind), "release {number} of {kind}: served after {served_after} ms");
            let _ = std::fs::remove_file(lock.path().unwrap());
        }
    }
    drop(end);
    let _ = busy.await.unwrap();
}

#[tokio::test]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
async fn the_end_of_a_foreign_holder_wakes_a_waiter() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.lock");
    // A PID file without our mark, as shlock(1) creates it: its creator keeps no flock on it.
    let mut holder = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    std::fs::write(&path, format!("{}\n", holder.id())).unwrap();
    let lock = LockFile::shlock(&path).unwrap();
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.obtain().await.unwrap() }
    });
    until(waiter_is_asleep).await;
    assert!(!waiter.is_finished());
    drop(holder.stdin.take());
    drop(timeout(HANG, waiter).await.expect("hangs").unwrap());
    holder.wait().unwrap();
}

/// The time from a release until the waiter has the lock: the median of several runs. Each run has its own lock.
async fn delay(kind: Kind, hold: impl Fn(&LockFile) -> Box<dyn FnOnce()>) -> Duration {
    let dir = TempDir::new().unwrap();
    let mut delays = Vec::new();
    for round in 0..7 {
        let lock = kind(&dir.path().join(round.to_string()));
        let release = hold(&lock);
        let file = File::open(lock.path().unwrap()).unwrap();
        let wait = tokio::spawn(async move {
            let guard = lock.obtain().await.unwrap();
            (Instant::now(), guard)
        });
        until(|| is_watched(&file)).await;
        release();
        let released = Instant::now();
        let (obtained, guard) = timeout(HANG, wait).await.expect("hangs").unwrap();
        delays.push(obtained.saturating_duration_since(released));
        guard.release().await.unwrap();
    }
    delays.sort();
    delays[delays.len() / 2]
}

/// Compared with a release that causes no event, which the waiter notices only by its periodic check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
async fn an_event_just_before_a_release_and_the_end_of_a_process_are_noticed_soon() {
    if !in_own_process("waiting::an_event_just_before_a_release_and_the_end_of_a_process_are_noticed_soon") {
        return;
    }
    let unlock = |program: OtherProgram| {
        flock(&program.file, FlockOperation::Unlock).unwrap();
        std::mem::forget(program);
    };
    let flock_kind: Kind = |path| LockFile::flock(path).unwrap();
    let silent = delay(flock_kind, |lock| {
        let program = OtherProgram::holding(lock);
        Box::new(move || unlock(program))
    });
    let silent = silent.await;
    // When a holder dies, the kernel first closes its file, which is the event, and releases the lock a moment later.
    // Here the lock is released after the waiter's first check.
    let after_event = delay(flock_kind, |lock| {
        let program = OtherProgram::holding(lock);
        Box::new(move || {
            drop(File::options().append(true).open(&program.path).unwrap());
            std::thread::sleep(Duration::from_millis(3));
            unlock(program);
        })
    });
    let after_event = after_event.await;
    let of_process = delay(
        |path| LockFile::shlock(path).unwrap(),
        |lock| {
            let mut holder = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            std::fs::write(lock.path().unwrap(), format!("{}\n", holder.id())).unwrap();
            Box::new(move || {
                holder.kill().unwrap();
                holder.wait().unwrap();
            })
        },
    );
    let of_process = of_process.await;
    println!("without an event {silent:?}, after an event {after_event:?}, at the end of a process {of_process:?}");
    assert!(after_event * 3 < silent, "{after_event:?} after an event, {silent:?} without an event");
    assert!(of_process * 3 < silent, "{of_process:?} at the end of a process, {silent:?} without an event");
}

#[tokio::test]
async fn a_wait_succeeds_by_polling_alone() {
    if !in_own_process("waiting::a_wait_succeeds_by_polling_alone") {
        return;
    }
    let kinds: [Kind; 2] = [
        |path| LockFile::builder().poll_only(true).shlock(path).unwrap(),
        |path| LockFile::builder().poll_only(true).flock(path).unwrap(),
    ];
    for kind in kinds {
        let dir = TempDir::new().unwrap();
        let lock = kind(&dir.path().join("x.lock"));
        let program = OtherProgram::holding(&lock);
        let error = lock.obtain_timeout(Duration::from_millis(50)).await.unwrap_err();
        assert!(!waiter_is_asleep(), "it watches the file: {error}");
        let waiter = tokio::spawn(async move { lock.obtain().await.unwrap() });
        tokio::task::yield_now().await;
        program.release();
        drop(timeout(HANG, waiter).await.expect("hangs").unwrap());
    }
}

#[test]
fn ten_thousand_cancelled_waits_leave_nothing() {
    if !in_own_process("waiting::ten_thousand_cancelled_waits_leave_nothing") {
        return;
    }
    let threads_before = threads();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        each_file_kind(|kind, path| async move {
            let lock = kind(&path);
            let program = OtherProgram::holding(&lock);
            assert!(lock.obtain_timeout(Duration::from_millis(1)).await.is_err());
            let before = descriptors();
            for batch in 0..100 {
                let waits: Vec<_> = (0..100)
                    .map(|number| {
                        // Some tasks wait in one queue, and some each for their own file.
                        let lock = match number % 2 {
                            0 => lock.clone(),
                            // A cancelled try of the last batch may still have its file.
                            _ => kind(&path.with_extension(format!("{batch}.{number}"))),
                        };
                        let other = (number % 2 == 1).then(|| OtherProgram::holding(&lock));
                        tokio::spawn(async move {
                            let limit = Duration::from_micros(50 * (batch + number));
                            assert!(timeout(limit, lock.obtain()).await.is_err());
                            other.map(OtherProgram::release)
                        })
                    })
                    .collect();
                for wait in waits {
                    wait.await.unwrap();
                }
            }
            let path = lock.path().unwrap().to_owned();
            program.release();
            // Not at once: a cancelled attempt may still be in the queue of the blocking pool.
            lock.obtain().await.unwrap().release().await.unwrap();
            assert!(OtherProgram::is_free(&path, lock.kind()), "the lock is not free, although no task holds it");
            while descriptors() > before {
                tokio::task::yield_now().await;
            }
            let is_private = |name: &std::ffi::OsStr| name.to_string_lossy().contains("tokio-lockfile");
            let names = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
            assert_eq!(names.filter(|name| is_private(name)).count(), 0, "a file is left");
        })
        .await;
    });
    // The blocking pool ends its threads after ten idle seconds. No other thread may be left.
    drop(runtime);
    // The watchdog ends at its next look.
    let began = Instant::now();
    while threads() > threads_before {
        assert!(began.elapsed() < HANG, "a thread is left");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_process_does_not_starve_another() {
    each_file_kind(|kind, path| async move {
        let is_over = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (lock, is_over) = (kind(&path), Arc::clone(&is_over));
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        let _guard = lock.obtain().await.unwrap();
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let lock = kind(&path);
        let (sender, done) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            (0..10).for_each(|_| Holder::holding(&lock).release());
            sender.send(()).unwrap();
        });
        done.await.unwrap();
        is_over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
}

/// More events than the kernel can queue, before any of them is read. Some files still exist, others do not.
#[tokio::test]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
async fn an_overflow_of_events_loses_no_release() {
    if !in_own_process("waiting::an_overflow_of_events_loses_no_release") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let locks: Vec<_> = (0..100).map(|number| kind(&path.with_extension(number.to_string()))).collect();
        let mut programs: Vec<_> = locks.iter().map(OtherProgram::holding).collect();
        let waits: Vec<_> =
            locks.into_iter().map(|lock| tokio::spawn(async move { lock.obtain().await.map(drop) })).collect();
        while descriptors() < 200 || !waiter_is_asleep() {
            tokio::task::yield_now().await;
        }
        // A pause for attempts on the blocking pool, which do not report when they are done.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let last = programs.split_off(98);
        for program in programs {
            let _ = std::fs::remove_file(&program.path);
            drop(program.file);
        }
        let queue = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for number in 0..queue.trim().parse::<usize>().unwrap() {
            // The kernel merges two equal events in a row into one.
            drop(File::options().append(true).open(&last[number % 2].path).unwrap());
        }
        last.into_iter().for_each(OtherProgram::release);
        for wait in waits {
            wait.await.unwrap().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn waiting_processes_are_all_served() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let first = Holder::holding(&lock);
        let mut waiting: Vec<_> = (0..4).map(|_| Holder::start(&lock)).collect();
        first.kill();
        // Each holder is killed while it holds the lock, until no process is left.
        let (sender, mut has_it) = tokio::sync::mpsc::unbounded_channel();
        for mut holder in waiting.drain(..) {
            let sender = sender.clone();
            std::thread::spawn(move || {
                holder.has_it();
                sender.send(holder).unwrap();
            });
        }
        for _ in 0..4 {
            has_it.recv().await.unwrap().kill();
        }
        take(&lock).await.release().await.unwrap();
    })
    .await;
}

/// The first try ran on the blocking pool and got the lock, but the task does something else.
#[test]
fn a_lock_that_its_task_does_not_know_of_is_released_soon() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).max_blocking_threads(1).enable_all().build().unwrap();
    let pool = runtime.handle();
    runtime.block_on(each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let mut wait = Box::pin(lock.obtain());
        if poll_once(wait.as_mut()).await {
            return; // this kind is tried inline there
        }
        // The pool has one thread. So the first try has ended when this has.
        pool.spawn_blocking(|| ()).await.unwrap();
        // This blocks our task until another process has the lock.
        let other = Holder::holding(&lock);
        assert!(!poll_once(wait.as_mut()).await);
        other.release();
        drop(wait.await.unwrap());
    }));
}
