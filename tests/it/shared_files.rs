//! Shared locks on files: other processes, other libraries, the lock file itself.
#![expect(clippy::incompatible_msrv, reason = "only the library supports the oldest Rust version")]

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::support::{Holder, each_shared_file_kind, poll_once, take};

#[tokio::test]
async fn processes_read_together_and_write_alone() {
    each_shared_file_kind(|modes, path| async move {
        let (writer, reader) = ((modes.writer)(&path), (modes.reader)(&path));
        let other = Holder::holding(&reader);
        let guard = take(&reader).await;
        assert!(writer.attempt().await.unwrap().is_none());
        drop(guard);
        assert!(writer.attempt().await.unwrap().is_none());
        assert!(!writer.locked(), "locked() is about this process only");
        other.release();
        let guard = take(&writer).await;
        let mut waiting = Holder::start(&reader);
        guard.release().await.unwrap();
        waiting.has_it();
        waiting.release();
        let other = Holder::holding(&writer);
        assert!(reader.attempt().await.unwrap().is_none());
        other.release();
        drop(take(&reader).await);
    })
    .await;
}

#[tokio::test]
async fn a_writer_waits_for_the_readers_of_all_processes() {
    each_shared_file_kind(|modes, path| async move {
        let (writer, reader) = ((modes.writer)(&path), (modes.reader)(&path));
        let [first, second] = [Holder::holding(&reader), Holder::holding(&reader)];
        let mut write = Box::pin(writer.obtain());
        assert!(!poll_once(write.as_mut()).await);
        first.release();
        assert!(!poll_once(write.as_mut()).await);
        second.kill();
        assert!(write.await.unwrap().is_held());
    })
    .await;
}

/// The first reader tries for all of them. If it goes away, the next one does.
#[tokio::test]
async fn readers_wait_together_for_a_writer_of_another_process() {
    each_shared_file_kind(|modes, path| async move {
        let reader = (modes.reader)(&path);
        let other = Holder::holding(&(modes.writer)(&path));
        let mut waits = Vec::new();
        for _ in 0..4 {
            let mut wait = Box::pin(reader.obtain());
            assert!(!poll_once(wait.as_mut()).await);
            waits.push(wait);
        }
        assert!(reader.attempt().await.unwrap().is_none());
        drop(waits.remove(0));
        drop(waits.remove(1));
        other.release();
        let mut guards = Vec::new();
        for wait in waits {
            guards.push(wait.await.unwrap());
        }
        assert!(guards.iter().all(|guard| guard.is_held()));
    })
    .await;
}

#[tokio::test]
async fn the_lock_of_a_killed_reader_is_free_at_once() {
    each_shared_file_kind(|modes, path| async move {
        Holder::holding(&(modes.reader)(&path)).kill();
        take(&(modes.writer)(&path)).await.release().await.unwrap();
    })
    .await;
}

/// A lock of std is on the whole file.
fn try_std(path: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    match lock(&file) {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

/// On Unix the child of another test may have a copy of the descriptor for a moment, so the close alone might release nothing
/// yet. Wine cannot unlock while another handle of the process shares the lock.
fn give_back(theirs: File) {
    if cfg!(unix) {
        theirs.unlock().unwrap();
    }
}

#[tokio::test]
async fn locks_of_std_and_ours_exclude_each_other_in_both_modes() {
    each_shared_file_kind(|modes, path| async move {
        let (writer, reader) = ((modes.writer)(&path), (modes.reader)(&path));
        let guard = take(&reader).await;
        assert!(try_std(&path, File::try_lock).is_none());
        give_back(try_std(&path, File::try_lock_shared).unwrap());
        guard.release().await.unwrap();
        let guard = take(&writer).await;
        assert!(try_std(&path, File::try_lock_shared).is_none());
        guard.release().await.unwrap();
        let theirs = try_std(&path, File::try_lock_shared).unwrap();
        take(&reader).await.release().await.unwrap();
        assert!(writer.attempt().await.unwrap().is_none());
        give_back(theirs);
        let theirs = try_std(&path, File::try_lock).unwrap();
        assert!(reader.attempt().await.unwrap().is_none());
        give_back(theirs);
        take(&writer).await.release().await.unwrap();
    })
    .await;
}

#[cfg(unix)]
mod unix {
    use tokio_lockfile::{LockError, LockFile, LostReason};

    use super::*;

    #[tokio::test]
    async fn every_reader_hears_of_a_loss() {
        each_shared_file_kind(|modes, path| async move {
            let (writer, reader) = ((modes.writer)(&path), (modes.reader)(&path));
            let [first, second, third] = [take(&reader).await, take(&reader).await, take(&reader).await];
            let mut losses = [&first, &second].map(|guard| Box::pin(guard.lost()));
            for lost in &mut losses {
                assert!(!poll_once(lost.as_mut()).await);
            }
            std::fs::remove_file(&path).unwrap();
            for lost in losses {
                assert_eq!(lost.await, LostReason::Removed);
            }
            assert!(!first.is_held() && !second.is_held() && !third.is_held());
            // A new reader does not join those who have lost the lock.
            let fresh = take(&reader).await;
            assert!(fresh.is_held() && path.exists());
            for guard in [first, second] {
                assert!(matches!(guard.release().await, Err(LockError::Lost { .. })));
            }
            let stopped = third.run(std::future::pending::<()>()).await;
            assert!(matches!(stopped, Err(LockError::Lost { .. })));
            assert!(fresh.is_held());
            assert!(writer.attempt().await.unwrap().is_none());
            fresh.release().await.unwrap();
            take(&writer).await.release().await.unwrap();
        })
        .await;
    }

    /// Two handles are in one queue. Then a symbolic link changes, and the path of one of them leads to another file.
    #[tokio::test]
    async fn a_lock_is_not_shared_with_a_handle_on_another_file() {
        each_shared_file_kind(|modes, path| async move {
            let dir = path.parent().unwrap();
            let [first, second, link] = ["first", "second", "link"].map(|name| dir.join(name));
            std::fs::create_dir(&first).unwrap();
            std::fs::create_dir(&second).unwrap();
            std::os::unix::fs::symlink(&first, &link).unwrap();
            let led_away = (modes.reader)(&link.join("x"));
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(&second, &link).unwrap();
            let steady = (modes.reader)(&first.join("x"));
            let holder = Holder::holding(&(modes.writer)(&first.join("x")));
            let elsewhere = take(&led_away).await;
            assert!(steady.attempt().await.unwrap().is_none(), "a reader beside a writer");
            holder.release();
            let here = take(&steady).await;
            assert!(here.is_held() && elsewhere.is_held());
        })
        .await;
    }

    #[tokio::test]
    async fn a_reader_writes_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let lock = LockFile::flock(dir.path().join("x")).unwrap();
        let reader = lock.shared().unwrap();
        let content = || std::fs::read(lock.path().unwrap()).unwrap();
        drop(take(&reader).await);
        assert_eq!(content(), b"");
        // The record of a holder that has died is left alone too, and it names nobody.
        std::fs::write(lock.path().unwrap(), "   4194305\t\t \t\t\n").unwrap();
        let guard = take(&reader).await;
        assert_eq!(content(), b"   4194305\t\t \t\t\n");
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
        guard.release().await.unwrap();
        assert_eq!(content(), b"   4194305\t\t \t\t\n");
    }
}

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
mod linux {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio_lockfile::LockFile;

    use super::*;
    use crate::support::in_own_process;

    /// How many descriptors of this process lead to the file.
    fn descriptors(path: &Path) -> usize {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == path)).count()
    }

    #[tokio::test]
    async fn a_hundred_readers_have_one_lock() {
        each_shared_file_kind(|modes, path| async move {
            let reader = (modes.reader)(&path);
            let mut guards = Vec::new();
            for _ in 0..100 {
                guards.push(reader.obtain().await.unwrap());
            }
            assert_eq!(descriptors(&path), 1);
            guards.truncate(1);
            assert_eq!(descriptors(&path), 1);
            assert!(guards[0].is_held());
            drop(guards);
            assert_eq!(descriptors(&path), 0);
        })
        .await;
    }

    /// It does not matter who was first.
    #[tokio::test]
    async fn readers_come_and_go_on_one_lock() {
        each_shared_file_kind(|modes, path| async move {
            let reader = (modes.reader)(&path);
            let mut guard = take(&reader).await;
            for _ in 0..100 {
                let next = take(&reader).await;
                guard = next;
                assert_eq!(descriptors(&path), 1);
            }
            guard.release().await.unwrap();
            assert_eq!(descriptors(&path), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn all_processes_that_read_are_named() {
        each_shared_file_kind(|modes, path| async move {
            let (writer, reader) = ((modes.writer)(&path), (modes.reader)(&path));
            let others = [Holder::holding(&reader), Holder::holding(&reader)];
            let guard = take(&reader).await;
            let holders = writer.holders().await.unwrap();
            let found: BTreeSet<u32> = holders.iter().map(|holder| holder.pid()).collect();
            assert_eq!(found, BTreeSet::from([others[0].pid(), others[1].pid(), std::process::id()]));
            assert_eq!(holders.len(), 3);
            assert!(holders.iter().all(|holder| holder.name().is_some()));
            drop(guard);
            others.into_iter().for_each(Holder::release);
            assert_eq!(writer.holders().await.unwrap(), []);
        })
        .await;
    }

    #[tokio::test]
    async fn a_timeout_names_a_reader_of_another_process() {
        each_shared_file_kind(|modes, path| async move {
            let other = Holder::holding(&(modes.reader)(&path));
            let writer = (modes.writer)(&path);
            loop {
                let error = writer.obtain_timeout(std::time::Duration::from_secs(1)).await.unwrap_err().to_string();
                if error.contains(&format!("held by pid {} (", other.pid())) {
                    break;
                }
                // The look for the name was too slow for the limit: this machine is busy.
                assert!(error.contains("does not answer"), "{error}");
            }
            other.release();
        })
        .await;
    }

    /// Reads without a break until its stdin ends: one of its tasks always has the lock.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn read_for_parent() {
        let Ok(url) = std::env::var(STREAM) else { return };
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = LockFile::open(&url).unwrap();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (reader, is_over) = (reader.clone(), Arc::clone(&is_over));
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        let _guard = reader.obtain().await.unwrap();
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        println!("READS");
        tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await.unwrap();
        is_over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.unwrap();
        }
    }

    const STREAM: &str = "TOKIO_LOCKFILE_TEST_READ";

    /// The processes pause at the same moments, so that the writer gets its turn.
    #[tokio::test]
    async fn streams_of_readers_do_not_starve_a_writer() {
        if !in_own_process("shared_files::linux::streams_of_readers_do_not_starve_a_writer") {
            return;
        }
        each_shared_file_kind(|modes, path| async move {
            let reader = (modes.reader)(&path);
            let start = || Holder::run("shared_files::linux::read_for_parent", STREAM, &reader, "READS");
            let streams = [start(), start()];
            let writer = (modes.writer)(&path);
            for _ in 0..5 {
                writer.obtain().await.unwrap().release().await.unwrap();
            }
            streams.into_iter().for_each(Holder::release);
        })
        .await;
    }
}
