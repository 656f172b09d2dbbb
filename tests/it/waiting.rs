//! Waiting for somebody outside: woken by every kind of release, cancelled without a trace.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_lockfile::{LockFile, LockKind};

use crate::support::{HANG, Holder, Kind, each_file_kind, in_own_process, poll_once, take};

/// A holder that this process's registry does not know: it takes the lock by the raw calls of the protocol.
struct Outsider {
    file: File,
    path: PathBuf,
    kind: LockKind,
}

impl Outsider {
    fn holding(lock: &LockFile) -> Self {
        let (path, kind) = (lock.path().unwrap().to_owned(), lock.kind());
        let mut file = File::options().create(true).write(true).truncate(false).open(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        if kind == LockKind::Shlock {
            file.write_all(format!("{:>10}\t \t\n", std::process::id()).as_bytes()).unwrap();
        }
        Self { file, path, kind }
    }

    fn is_free(path: &Path, kind: LockKind) -> bool {
        match kind {
            LockKind::Shlock => !path.exists(),
            _ => flock(File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok(),
        }
    }

    fn release(self) {
        if self.kind == LockKind::Shlock {
            std::fs::remove_file(&self.path).unwrap();
        }
        flock(&self.file, FlockOperation::Unlock).unwrap();
    }
}

#[tokio::test]
async fn every_way_to_release_wakes_a_waiter() {
    let unlock_and_close: fn(Outsider) = Outsider::release;
    let close = |outsider: Outsider| {
        if outsider.kind == LockKind::Shlock {
            std::fs::remove_file(&outsider.path).unwrap();
        }
    };
    let remove = |outsider: Outsider| {
        std::fs::remove_file(&outsider.path).unwrap();
        std::mem::forget(outsider);
    };
    let rename_away = |outsider: Outsider| {
        std::fs::rename(&outsider.path, outsider.path.with_extension("away")).unwrap();
        std::mem::forget(outsider);
    };
    let unlock_without_close = |outsider: Outsider| {
        if outsider.kind == LockKind::Shlock {
            std::fs::remove_file(&outsider.path).unwrap();
        }
        flock(&outsider.file, FlockOperation::Unlock).unwrap();
        std::mem::forget(outsider);
    };
    let crash = |outsider: Outsider| drop(outsider.file);
    let releases: [fn(Outsider); 6] = [unlock_and_close, close, remove, rename_away, unlock_without_close, crash];
    for release in releases {
        each_file_kind(|kind, path| async move {
            let lock = kind(&path);
            let outsider = Outsider::holding(&lock);
            let waiter = tokio::spawn(async move { lock.obtain().await.unwrap() });
            tokio::task::yield_now().await;
            let releaser = std::thread::spawn(move || release(outsider));
            drop(waiter.await.unwrap());
            releaser.join().unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn the_end_of_a_foreign_holder_wakes_a_waiter() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.lock");
    // A PID file without our mark, as shlock(1) makes it: its maker keeps no lock on it.
    let mut holder = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::fs::write(&path, format!("{}\n", holder.id())).unwrap();
    let lock = LockFile::shlock(&path).unwrap();
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.obtain().await.unwrap() }
    });
    while !waiter_is_asleep() {
        assert!(!waiter.is_finished());
        tokio::task::yield_now().await;
    }
    drop(holder.stdin.take());
    drop(timeout(HANG, waiter).await.expect("hangs").unwrap());
    holder.wait().unwrap();
}

/// Whether this process watches any file.
fn waiter_is_asleep() -> bool {
    std::fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .any(|info| info.contains("inotify wd:"))
}

#[tokio::test]
async fn polling_alone_serves_too() {
    let kinds: [Kind; 2] = [
        |path| LockFile::builder().poll_only(true).shlock(path).unwrap(),
        |path| LockFile::builder().poll_only(true).flock(path).unwrap(),
    ];
    for kind in kinds {
        let dir = TempDir::new().unwrap();
        let lock = kind(&dir.path().join("x.lock"));
        let outsider = Outsider::holding(&lock);
        let waiter = tokio::spawn(async move { lock.obtain().await.unwrap() });
        tokio::task::yield_now().await;
        outsider.release();
        drop(timeout(HANG, waiter).await.expect("hangs").unwrap());
    }
}

#[test]
fn a_runtime_without_io_polls() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let outsider = Outsider::holding(&lock);
        assert!(lock.obtain_timeout(Duration::from_millis(20)).await.is_err());
        let releaser = std::thread::spawn(move || outsider.release());
        drop(lock.obtain().await.unwrap());
        releaser.join().unwrap();
    }));
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
            let outsider = Outsider::holding(&lock);
            assert!(lock.obtain_timeout(Duration::from_millis(1)).await.is_err());
            let before = descriptors();
            for batch in 0..100 {
                let waits: Vec<_> = (0..100)
                    .map(|number| {
                        // Some wait in the queue, some each for a file of its own.
                        let lock = match number % 2 {
                            0 => lock.clone(),
                            _ => kind(&path.with_extension(format!("{number}"))),
                        };
                        let other = (number % 2 == 1).then(|| Outsider::holding(&lock));
                        tokio::spawn(async move {
                            let limit = Duration::from_micros(50 * (batch + number));
                            assert!(timeout(limit, lock.obtain()).await.is_err());
                            other.map(Outsider::release)
                        })
                    })
                    .collect();
                for wait in waits {
                    wait.await.unwrap();
                }
            }
            let path = lock.path().unwrap().to_owned();
            outsider.release();
            assert!(Outsider::is_free(&path, lock.kind()), "a phantom has the lock");
            while descriptors() > before {
                tokio::task::yield_now().await;
            }
            // Not at once: a cancelled try may still be ahead on the blocking pool.
            lock.obtain().await.unwrap().release().await.unwrap();
        })
        .await;
    });
    // The blocking pool's threads end after ten idle seconds of their own accord; nothing else may be there.
    drop(runtime);
    assert_eq!(threads(), threads_before);
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
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

#[test]
fn two_runtimes_wait_side_by_side() {
    let new_runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (new_runtime(), new_runtime());
    let dir = TempDir::new().unwrap();
    let [a, b] = ["a", "b"].map(|name| LockFile::flock(dir.path().join(name)).unwrap());
    let holders = [Outsider::holding(&a), Outsider::holding(&b)];
    let wait = |runtime: &Runtime, lock: &LockFile| {
        let lock = lock.clone();
        runtime.spawn(async move { lock.obtain().await.unwrap() })
    };
    let gone = wait(&first, &a);
    let served = [wait(&second, &a), wait(&second, &b)];
    // The first runtime's task for events ends with it; the second's waits must not notice.
    drop(first);
    holders.into_iter().for_each(Outsider::release);
    second.block_on(async {
        assert!(gone.await.is_err());
        for wait in served {
            drop(timeout(HANG, wait).await.expect("hangs").unwrap());
        }
    });
}

#[test]
fn a_runtime_shuts_down_at_once_under_contention() {
    let dir = TempDir::new().unwrap();
    for number in 0..50 {
        let kind: Kind = match number % 2 {
            0 => |path| LockFile::shlock(path).unwrap(),
            _ => |path| LockFile::flock(path).unwrap(),
        };
        let lock = kind(&dir.path().join(number.to_string()));
        let outsider = Outsider::holding(&lock);
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        for _ in 0..10 {
            let lock = lock.clone();
            runtime.spawn(async move { lock.obtain().await.map(drop) });
        }
        // Nobody releases before this returns.
        runtime.shutdown_timeout(HANG);
        let path = lock.path().unwrap().to_owned();
        outsider.release();
        assert!(Outsider::is_free(&path, lock.kind()), "a phantom has the lock");
    }
}

#[test]
fn a_runtime_that_is_gone_has_left_no_descriptor() {
    if !in_own_process("waiting::a_runtime_that_is_gone_has_left_no_descriptor") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let locks: Vec<_> = (0..20).map(|number| LockFile::flock(dir.path().join(number.to_string())).unwrap()).collect();
    let _outsiders: Vec<_> = locks.iter().map(Outsider::holding).collect();
    // The first runtime makes what Tokio keeps for the whole process.
    drop(Builder::new_current_thread().enable_all().build().unwrap());
    let before = descriptors();
    for round in 0..20 {
        let runtime = Builder::new_multi_thread().worker_threads(1 + round % 2).enable_all().build().unwrap();
        for lock in locks.clone() {
            runtime.spawn(async move { lock.obtain().await.map(drop) });
        }
        while !waiter_is_asleep() {
            std::thread::yield_now();
        }
        drop(runtime);
        assert_eq!(descriptors(), before, "round {round}");
    }
}

#[test]
fn a_wait_goes_on_in_another_runtime_when_its_first_is_gone() {
    let new_runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let dir = TempDir::new().unwrap();
    let lock = LockFile::flock(dir.path().join("x.lock")).unwrap();
    let outsider = Outsider::holding(&lock);
    let mut wait = Box::pin(lock.obtain());
    new_runtime().block_on(async {
        for _ in 0..10 {
            assert!(!poll_once(wait.as_mut()).await);
        }
    });
    let second = new_runtime();
    second.block_on(async {
        for _ in 0..10 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        outsider.release();
        drop(timeout(HANG, wait).await.expect("hangs").unwrap());
    });
}

#[test]
fn many_waits_in_one_current_thread_runtime_are_all_served() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(each_file_kind(|kind, path| async move {
        let locks: Vec<_> = (0..300).map(|number| kind(&path.with_extension(number.to_string()))).collect();
        let outsiders: Vec<_> = locks.iter().map(Outsider::holding).collect();
        let waits: Vec<_> =
            locks.into_iter().map(|lock| tokio::spawn(async move { lock.obtain().await.map(drop) })).collect();
        tokio::task::yield_now().await;
        let releaser = std::thread::spawn(move || outsiders.into_iter().for_each(Outsider::release));
        for wait in waits {
            wait.await.unwrap().unwrap();
        }
        releaser.join().unwrap();
    }));
}

#[tokio::test]
async fn waiting_processes_are_all_served() {
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let first = Holder::holding(&lock);
        let mut waiting: Vec<_> = (0..4).map(|_| Holder::start(&lock)).collect();
        first.kill();
        // Whoever has it dies with it, until nobody is left.
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
