//! Readers and writers of one lock within one process.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_lockfile::{LockError, LockFile};

use crate::support::{each_shared_kind, poll_once, take};

/// The first reader's try may be under way on the blocking pool or on a server. Nobody polls it.
#[tokio::test]
async fn an_attempt_does_not_wait_for_a_reader_that_is_not_polled() {
    each_shared_kind(|_writer, reader| async move {
        let mut first = Box::pin(reader.obtain());
        let _ = poll_once(first.as_mut()).await;
        let _ = reader.attempt().await.unwrap();
    })
    .await;
}

/// The clock of the machine, which tells the readers when it is the turn of the writers of other processes: the first
/// millisecond of each fifty.
#[cfg(target_os = "linux")]
fn into_the_writers_turn() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::from_nanos(now.tv_nsec as u64 % 50_000_000)
}

/// The first of two waiting readers pauses for writers of other processes. The second one must not pass it meanwhile.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_reader_that_lets_writers_go_first_keeps_its_place() {
    use std::time::Instant;

    use crate::support::HANG;

    let dir = tempfile::tempdir().unwrap();
    let writer = LockFile::native(dir.path().join("x.lock")).unwrap();
    let reader = writer.shared().unwrap();
    let began = Instant::now();
    loop {
        drop(take(&reader).await);
        let guard = take(&writer).await;
        let (mut first, mut second) = (Box::pin(reader.obtain()), Box::pin(reader.obtain()));
        assert!(!poll_once(first.as_mut()).await && !poll_once(second.as_mut()).await);
        while into_the_writers_turn() > Duration::from_micros(500) {
            std::hint::spin_loop();
        }
        drop(guard);
        if poll_once(first.as_mut()).await {
            assert!(began.elapsed() < HANG, "no reader ever pauses");
            continue;
        }
        // This task is busy, and the timer does not fire.
        while into_the_writers_turn() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert!(!poll_once(second.as_mut()).await, "the second reader is served before the first");
        drop(first.await.unwrap());
        drop(second.await.unwrap());
        return;
    }
}

#[tokio::test]
async fn readers_go_side_by_side_and_a_writer_alone() {
    each_shared_kind(|writer, reader| async move {
        let guards = [take(&reader).await, take(&reader.clone()).await, take(&writer.shared().unwrap()).await];
        assert!(guards.iter().all(|guard| guard.is_held() && guard.is_shared()));
        assert!(writer.attempt().await.unwrap().is_none());
        let [first, second, third] = guards;
        first.release().await.unwrap();
        drop(second);
        assert!(writer.locked() && reader.locked() && third.is_held());
        assert!(writer.attempt().await.unwrap().is_none());
        third.release().await.unwrap();
        assert!(!writer.locked() && !reader.locked());
        let guard = take(&writer).await;
        assert!(!guard.is_shared());
        assert!(reader.attempt().await.unwrap().is_none());
        drop(guard);
        drop(take(&reader).await);
    })
    .await;
}

/// Nobody excludes anybody, so no reader may hear that the lock is held.
#[tokio::test]
async fn attempts_of_many_readers_at_once_all_succeed() {
    each_shared_kind(|_writer, reader| async move {
        let attempts: Vec<_> = (0..20)
            .map(|_| {
                let reader = reader.clone();
                tokio::spawn(async move { take(&reader).await })
            })
            .collect();
        let mut guards = Vec::new();
        for attempt in attempts {
            guards.push(attempt.await.unwrap());
        }
        assert!(guards.iter().all(|guard| guard.is_held()));
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_comes_after_a_waiting_writer_waits_behind_it() {
    each_shared_kind(|writer, reader| async move {
        let reading = take(&reader).await;
        let mut write = Box::pin(writer.obtain());
        assert!(!poll_once(write.as_mut()).await);
        assert!(reader.attempt().await.unwrap().is_none());
        let mut read = Box::pin(reader.obtain());
        assert!(!poll_once(read.as_mut()).await);
        drop(reading);
        let writing = write.await.unwrap();
        assert!(!poll_once(read.as_mut()).await, "a reader beside a writer");
        drop(writing);
        drop(read.await.unwrap());
    })
    .await;
}

/// The writer behind which they wait may also go away.
#[tokio::test]
async fn readers_go_on_when_the_writer_before_them_is_cancelled() {
    each_shared_kind(|writer, reader| async move {
        let reading = take(&reader).await;
        let mut write = Box::pin(writer.obtain());
        assert!(!poll_once(write.as_mut()).await);
        let mut read = Box::pin(reader.obtain());
        assert!(!poll_once(read.as_mut()).await);
        drop(write);
        let also_reading = read.await.unwrap();
        assert!(reading.is_held() && also_reading.is_held());
    })
    .await;
}

#[tokio::test]
async fn readers_that_wait_for_a_writer_get_the_lock_together() {
    each_shared_kind(|writer, reader| async move {
        let writing = take(&writer).await;
        let barrier = Arc::new(tokio::sync::Barrier::new(5));
        let readers: Vec<_> = (0..5)
            .map(|_| {
                let (reader, barrier) = (reader.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    let guard = reader.obtain().await.unwrap();
                    // They all read at the same time, or none of them gets past this.
                    barrier.wait().await;
                    guard.release().await.unwrap();
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(writing);
        for reader in readers {
            reader.await.unwrap();
        }
        take(&writer).await.release().await.unwrap();
    })
    .await;
}

/// How many are inside, as the tasks themselves see it.
#[derive(Default)]
struct Witness {
    readers: AtomicUsize,
    writers: AtomicUsize,
}

impl Witness {
    async fn read(&self) {
        self.readers.fetch_add(1, Ordering::SeqCst);
        assert_eq!(self.writers.load(Ordering::SeqCst), 0, "a reader beside a writer");
        tokio::task::yield_now().await;
        assert_eq!(self.writers.load(Ordering::SeqCst), 0, "a writer beside a reader");
        self.readers.fetch_sub(1, Ordering::SeqCst);
    }

    async fn write(&self) {
        assert_eq!(self.writers.fetch_add(1, Ordering::SeqCst), 0, "two writers");
        assert_eq!(self.readers.load(Ordering::SeqCst), 0, "a writer beside a reader");
        tokio::task::yield_now().await;
        assert_eq!(self.readers.load(Ordering::SeqCst), 0, "a reader beside a writer");
        self.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_read_together_and_write_alone() {
    each_shared_kind(|writer, reader| async move {
        let witness = Arc::new(Witness::default());
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let (writer, reader, witness) = (writer.clone(), reader.clone(), Arc::clone(&witness));
                tokio::spawn(async move {
                    for round in 0..30 {
                        let is_writer = (number + round) % 4 == 0;
                        let lock = if is_writer { &writer } else { &reader };
                        let guard = lock.obtain().await.unwrap();
                        match is_writer {
                            true => witness.write().await,
                            false => witness.read().await,
                        }
                        match round % 2 {
                            0 => drop(guard),
                            _ => guard.release().await.unwrap(),
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(!writer.locked());
        take(&writer).await.release().await.unwrap();
    })
    .await;
}

/// A reader that goes away at any moment, alone, beside another reader, or while it waits for a writer.
#[tokio::test]
async fn a_reader_dropped_at_any_poll_leaves_nothing() {
    each_shared_kind(|writer, reader| async move {
        for polls in 0..20 {
            for company in [None, Some(&reader), Some(&writer)] {
                let beside = match company {
                    Some(lock) => Some(take(lock).await),
                    None => None,
                };
                let mut dropped = Box::pin(reader.obtain());
                let mut next = Box::pin(reader.obtain());
                for _ in 0..polls {
                    if poll_once(dropped.as_mut()).await {
                        break;
                    }
                }
                let is_ready = poll_once(next.as_mut()).await;
                drop(dropped);
                drop(beside);
                if !is_ready {
                    drop(next.await.unwrap());
                }
                writer.obtain().await.unwrap().release().await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_timeout_behind_readers_names_this_process() {
    each_shared_kind(|writer, reader| async move {
        let _guards = [take(&reader).await, take(&reader).await];
        for limit in [Duration::ZERO, Duration::from_secs(1)] {
            let error = writer.obtain_timeout(limit).await.unwrap_err();
            let LockError::TimedOut { holder: Some(ref holder), .. } = error else { panic!("{error:?}") };
            assert_eq!(holder.pid(), std::process::id());
        }
        take(&reader).await.release().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_process_is_one_holder_however_many_of_its_tasks_read() {
    each_shared_kind(|writer, reader| async move {
        assert_eq!(writer.holders().await.unwrap(), []);
        let first = take(&reader).await;
        let second = take(&reader).await;
        for _ in 0..2 {
            let holders = writer.holders().await.unwrap();
            let [holder] = &holders[..] else { panic!("{holders:?}") };
            assert_eq!((holder.pid(), holder.since().is_some()), (std::process::id(), true));
            assert_eq!(reader.holder().await.unwrap().unwrap().pid(), holder.pid());
        }
        drop((first, second));
        take(&writer).await.release().await.unwrap();
        assert_eq!(reader.holders().await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn work_runs_under_a_shared_lock() {
    each_shared_kind(|writer, reader| async move {
        let beside = take(&reader).await;
        let worked = take(&reader).await.run(async { writer.attempt().await.unwrap().is_none() }).await;
        assert!(worked.unwrap());
        beside.release().await.unwrap();
        assert!(take(&writer).await.is_held());
    })
    .await;
}

#[test]
fn readers_may_be_dropped_outside_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(each_shared_kind(|writer, reader| async move {
        let [first, second] = [take(&reader).await, take(&reader).await];
        std::thread::spawn(move || drop(first)).join().unwrap();
        assert!(writer.attempt().await.unwrap().is_none());
        std::thread::spawn(move || drop(second)).join().unwrap();
        assert!(!writer.locked());
        take(&writer).await.release().await.unwrap();
    }));
}

#[tokio::test]
async fn a_shared_handle_reports_its_mode_and_its_url() {
    each_shared_kind(|writer, reader| async move {
        assert!(!writer.is_shared() && reader.is_shared());
        assert!(reader.clone().is_shared() && reader.shared().unwrap().is_shared());
        assert_eq!((reader.kind(), reader.path()), (writer.kind(), writer.path()));
        let url = writer.url().to_string();
        let separator = if url.contains('?') { '&' } else { '?' };
        assert_eq!(reader.url().to_string(), format!("{url}{separator}shared"));
        assert_eq!(LockFile::open(&reader.url().to_string()).unwrap().url(), reader.url());
        assert!(format!("{reader:?}").contains("shared: true"));
    })
    .await;
}

#[tokio::test]
async fn handles_of_different_modes_are_different() {
    each_shared_kind(|writer, reader| async move {
        assert!(writer != reader && reader == writer.shared().unwrap());
        assert_eq!(HashSet::from([writer.clone(), reader.clone(), writer, reader]).len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_thread_of_the_runtime_can_try_to_read() {
    each_shared_kind(|writer, reader| async move {
        let first = reader.blocking_attempt().unwrap().unwrap();
        let second = reader.blocking_attempt().unwrap().unwrap();
        assert!(writer.blocking_attempt().unwrap().is_none());
        drop((first, second));
        let guard = writer.obtain().await.unwrap();
        assert!(reader.blocking_attempt().unwrap().is_none());
        drop(guard);
    })
    .await;
}

#[tokio::test]
async fn a_url_opens_the_shared_handle() {
    let unique = tempfile::tempdir().unwrap();
    let name = unique.path().file_name().unwrap().to_str().unwrap();
    let reader = LockFile::open(&format!("nulllockfile:{name}?shared")).unwrap();
    let guards = [take(&reader).await, take(&reader).await];
    assert!(take(&LockFile::open("nulllockfile:?shared").unwrap()).await.is_shared());
    assert!(LockFile::open(&format!("nulllockfile:{name}")).unwrap().attempt().await.unwrap().is_none());
    drop(guards);
}

#[cfg(unix)]
#[test]
fn a_shlock_cannot_be_shared() {
    let lock = LockFile::shlock("/run/x.lock").unwrap();
    let by_url = |url| LockFile::open(url).unwrap_err();
    for error in [lock.shared().unwrap_err(), by_url("shlockfile:/run/x.lock?shared"), by_url("lockfile:/x?shared")] {
        assert!(matches!(error, LockError::Unsupported { kind: tokio_lockfile::LockKind::Shlock, .. }), "{error:?}");
        assert!(error.to_string().contains("use the flock kind"), "{error}");
    }
    assert!(!lock.is_shared());
}
