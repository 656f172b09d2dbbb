//! Different runtimes: without I/O, without timers, several at the same time, and runtimes that shut down.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_lockfile::LockFile;

use crate::kinds::FILE_KINDS;
use crate::other_program::{OtherProgram, descriptors, until, waiter_is_asleep};
use crate::support::{HANG, Kind, each_file_kind, in_own_process, poll_once, take};

#[test]
fn a_runtime_without_io_polls() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let program = OtherProgram::holding(&lock);
        assert!(lock.obtain_timeout(Duration::from_millis(20)).await.is_err());
        let releaser = std::thread::spawn(move || program.release());
        drop(lock.obtain().await.unwrap());
        releaser.join().unwrap();
    }));
}

#[test]
fn two_runtimes_wait_side_by_side() {
    let new_runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (new_runtime(), new_runtime());
    let dir = TempDir::new().unwrap();
    let [a, b] = ["a", "b"].map(|name| LockFile::flock(dir.path().join(name)).unwrap());
    let holders = [OtherProgram::holding(&a), OtherProgram::holding(&b)];
    let wait = |runtime: &Runtime, lock: &LockFile| {
        let lock = lock.clone();
        runtime.spawn(async move { lock.obtain().await.unwrap() })
    };
    let gone = wait(&first, &a);
    let served = [wait(&second, &a), wait(&second, &b)];
    // The first runtime's task that reads events ends with its runtime. This must not affect waits in the second one.
    drop(first);
    holders.into_iter().for_each(OtherProgram::release);
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
        let program = OtherProgram::holding(&lock);
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (errors, reported) = std::sync::mpsc::channel();
        for _ in 0..10 {
            let (lock, errors) = (lock.clone(), errors.clone());
            runtime.spawn(async move {
                if let Err(error) = lock.obtain().await {
                    errors.send(error.to_string()).unwrap();
                }
            });
        }
        // The lock is not released before this call returns.
        let began = Instant::now();
        runtime.shutdown_timeout(HANG);
        assert!(began.elapsed() < HANG, "hangs");
        // A service would log such an error.
        assert_eq!(reported.try_iter().next(), None, "a task that is about to be dropped gets an error");
        let path = lock.path().unwrap().to_owned();
        program.release();
        assert!(OtherProgram::is_free(&path, lock.kind()), "the lock is not free, although no task holds it");
    }
}

/// One worker thread shuts the runtime down while the other polls the wait. The task that reads events is gone then.
#[test]
fn a_wait_that_is_polled_during_the_shutdown_of_its_runtime_does_not_block_it() {
    // In its own process, because the runtime of another test would go on reading the events.
    if !in_own_process("runtimes::a_wait_that_is_polled_during_the_shutdown_of_its_runtime_does_not_block_it") {
        return;
    }
    async fn until_shutdown() {
        loop {
            let ran = Arc::new(AtomicBool::new(false));
            let sees = Arc::clone(&ran);
            let task = tokio::spawn(async move { sees.store(true, Ordering::Relaxed) });
            while !task.is_finished() {
                std::thread::yield_now();
            }
            if !ran.load(Ordering::Relaxed) {
                return;
            }
        }
    }
    let dir = TempDir::new().unwrap();
    let lock = LockFile::flock(dir.path().join("x.lock")).unwrap();
    let _program = OtherProgram::holding(&lock);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (waits, has_begun) = std::sync::mpsc::channel();
    let (sender, is_over) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let mut wait = Box::pin(lock.obtain());
        for _ in 0..10 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        waits.send(()).unwrap();
        until_shutdown().await;
        assert!(!poll_once(wait.as_mut()).await);
    });
    std::thread::spawn(move || {
        has_begun.recv().unwrap();
        drop(runtime);
        sender.send(()).unwrap();
    });
    is_over.recv_timeout(HANG).expect("hangs");
}

#[test]
fn many_runtimes_end_while_their_waits_are_polled() {
    if !in_own_process("runtimes::many_runtimes_end_while_their_waits_are_polled") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let lock = LockFile::flock(dir.path().join("x.lock")).unwrap();
    let _program = OtherProgram::holding(&lock);
    for _ in 0..100 {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sender, is_over) = std::sync::mpsc::channel();
        for _ in 0..20 {
            let lock = lock.clone();
            runtime.spawn(async move { lock.obtain().await.map(drop) });
        }
        std::thread::spawn(move || {
            drop(runtime);
            sender.send(()).unwrap();
        });
        is_over.recv_timeout(HANG).expect("hangs");
    }
}

#[test]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
fn a_runtime_that_has_ended_leaves_no_descriptor_open() {
    if !in_own_process("runtimes::a_runtime_that_has_ended_leaves_no_descriptor_open") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let locks: Vec<_> = (0..20).map(|number| LockFile::flock(dir.path().join(number.to_string())).unwrap()).collect();
    let _programs: Vec<_> = locks.iter().map(OtherProgram::holding).collect();
    // The first runtime creates the descriptors that Tokio keeps for the whole process.
    drop(Builder::new_current_thread().enable_all().build().unwrap());
    let before = descriptors();
    for round in 0..20 {
        let runtime = Builder::new_multi_thread().worker_threads(1 + round % 2).enable_all().build().unwrap();
        for lock in locks.clone() {
            runtime.spawn(async move { lock.obtain().await.map(drop) });
        }
        runtime.block_on(until(waiter_is_asleep));
        drop(runtime);
        assert_eq!(descriptors(), before, "round {round}");
    }
}

/// No task reads the first runtime's events any more: the runtime has ended, or it still exists but runs no task.
#[test]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
fn a_wait_goes_on_in_another_runtime() {
    for is_gone in [true, false] {
        let new_runtime = || Builder::new_current_thread().enable_all().build().unwrap();
        let dir = TempDir::new().unwrap();
        let lock = LockFile::flock(dir.path().join("x.lock")).unwrap();
        let program = OtherProgram::holding(&lock);
        let mut wait = Box::pin(lock.obtain());
        let (first, second) = (new_runtime(), new_runtime());
        first.block_on(async {
            for _ in 0..10 {
                assert!(!poll_once(wait.as_mut()).await);
            }
        });
        let _stands_still = (!is_gone).then_some(first);
        second.block_on(async {
            for _ in 0..10 {
                assert!(!poll_once(wait.as_mut()).await);
            }
            program.release();
            drop(timeout(HANG, wait).await.expect("hangs").unwrap());
        });
    }
}

/// How often a future is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    /// Polls the future once, so that its next wake-up is counted here.
    fn poll<F: Future + ?Sized>(self: &Arc<Self>, future: Pin<&mut F>) {
        let waker = Waker::from(Arc::clone(self));
        assert!(future.poll(&mut Context::from_waker(&waker)).is_pending());
    }
}

/// With a paused clock, every timer fires as soon as all tasks wait. A timer of ours would keep a core busy.
#[tokio::test(start_paused = true)]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
async fn a_day_of_a_paused_clock_wakes_nobody() {
    // The clocks of other tests go on, and their drivers wake all waits in turn.
    if !in_own_process("runtimes::a_day_of_a_paused_clock_wakes_nobody") {
        return;
    }
    for kind in FILE_KINDS {
        let dir = TempDir::new().unwrap();
        let guard = take(&kind(&dir.path().join("held"))).await;
        let other = kind(&dir.path().join("other"));
        let _program = OtherProgram::holding(&other);
        let (mut lost, mut wait) = (Box::pin(guard.lost()), Box::pin(other.obtain()));
        let woken = Arc::<Woken>::default();
        for hour in 0..24 {
            for _ in 0..100 {
                woken.poll(lost.as_mut());
                woken.poll(wait.as_mut());
                tokio::task::yield_now().await;
            }
            woken.0.store(0, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            assert!(hour == 0 || woken.0.load(Ordering::Relaxed) == 0, "hour {hour}");
        }
    }
}

/// Anybody who may read a lock file can open and close it all the time.
#[tokio::test]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
async fn a_file_that_is_opened_in_a_loop_does_not_keep_the_waits_busy() {
    const LOOPS: usize = 50_000;
    // The other tests' waits end all the time, and other files change.
    if !in_own_process("runtimes::a_file_that_is_opened_in_a_loop_does_not_keep_the_waits_busy") {
        return;
    }
    let dir = TempDir::new().unwrap();
    // Each of these runtimes reads the events too.
    let beside = |number: usize| {
        let lock = LockFile::flock(dir.path().join(number.to_string())).unwrap();
        let program = OtherProgram::holding(&lock);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, is_waiting) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let mut wait = Box::pin(lock.obtain());
            for _ in 0..10 {
                assert!(!poll_once(wait.as_mut()).await);
            }
            sender.send(()).unwrap();
            wait.await
        });
        is_waiting.recv_timeout(HANG).unwrap();
        (runtime, program)
    };
    let others: Vec<_> = (0..4).map(beside).collect();
    let lock = LockFile::flock(dir.path().join("x.lock")).unwrap();
    let program = OtherProgram::holding(&lock);
    let mut wait = Box::pin(lock.obtain());
    for _ in 0..10 {
        assert!(!poll_once(wait.as_mut()).await);
    }
    let path = program.path.clone();
    let opener = std::thread::spawn(move || {
        for _ in 0..LOOPS {
            drop(std::fs::File::open(&path).unwrap());
        }
    });
    let (woken, began) = (Arc::<Woken>::default(), Instant::now());
    while !opener.is_finished() {
        woken.poll(wait.as_mut());
        tokio::task::yield_now().await;
    }
    opener.join().unwrap();
    // A first burst, then one wake-up a millisecond, however long a busy machine takes for the loop.
    let (woken, allowed) = (woken.0.load(Ordering::Relaxed), 100 + 2 * began.elapsed().as_millis());
    assert!((woken as u128) < allowed, "woken {woken} times, where {allowed} are allowed");
    program.release();
    drop(timeout(HANG, wait).await.expect("hangs").unwrap());
    others.into_iter().for_each(|(runtime, _)| runtime.shutdown_background());
}

/// Every thread of the blocking pool waits for the lock. So no thread is left for the work of the waits themselves.
#[test]
fn waits_that_fill_the_blocking_pool_are_served_where_tries_are_inline() {
    let dir = TempDir::new().unwrap();
    for lock in [LockFile::flock(dir.path().join("x.lock")).unwrap(), LockFile::null()] {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
        let (sender, is_over) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let (lock, handle, sender) = (lock.clone(), runtime.handle().clone(), sender.clone());
            runtime.spawn_blocking(move || {
                // Long enough that this process sometimes lets other processes go first.
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(50) {
                    drop(handle.block_on(lock.obtain()).unwrap());
                }
                sender.send(()).unwrap();
            });
        }
        for _ in 0..2 {
            is_over.recv_timeout(HANG).expect("hangs");
        }
    }
}

/// A waker may run any code. Here it drops the wait that it wakes.
#[test]
fn a_waker_that_drops_its_wait_does_not_affect_other_waits() {
    type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;
    struct Dropper(Mutex<Option<Wait>>);
    impl Wake for Dropper {
        fn wake(self: Arc<Self>) {
            let wait = self.0.lock().unwrap().take();
            drop(wait);
        }
    }
    let dir = TempDir::new().unwrap();
    let [lock, other] = ["a", "b"].map(|name| LockFile::flock(dir.path().join(name)).unwrap());
    let [holder, others_holder] = [&lock, &other].map(OtherProgram::holding);
    // Never dropped: if this test fails, the runtime's worker thread never ends.
    let runtime = Box::leak(Box::new(Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()));
    let _entered = runtime.enter();
    let dropper = Arc::new(Dropper(Mutex::new(None)));
    let mut wait: Wait = Box::pin(async move { drop(lock.obtain().await) });
    for _ in 0..10 {
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let waker = Waker::from(Arc::clone(&dropper));
    assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *dropper.0.lock().unwrap() = Some(wait);
    holder.release();
    while dropper.0.lock().unwrap().is_some() {
        std::thread::yield_now();
    }
    let (sender, is_over) = std::sync::mpsc::channel();
    runtime.spawn(async move { sender.send(other.obtain().await.map(drop)).unwrap() });
    others_holder.release();
    is_over.recv_timeout(HANG).expect("hangs").unwrap();
}

#[test]
fn many_waits_in_one_current_thread_runtime_are_all_served() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(each_file_kind(|kind, path| async move {
        let locks: Vec<_> = (0..300).map(|number| kind(&path.with_extension(number.to_string()))).collect();
        let programs: Vec<_> = locks.iter().map(OtherProgram::holding).collect();
        let waits: Vec<_> =
            locks.into_iter().map(|lock| tokio::spawn(async move { lock.obtain().await.map(drop) })).collect();
        tokio::task::yield_now().await;
        let releaser = std::thread::spawn(move || programs.into_iter().for_each(OtherProgram::release));
        for wait in waits {
            wait.await.unwrap().unwrap();
        }
        releaser.join().unwrap();
    }));
}

#[test]
#[cfg_attr(tokio_lockfile_test_portable, ignore = "it is about events")]
fn a_runtime_without_io_is_asked_for_it_only_if_another_has_it_and_only_once() {
    if !in_own_process("runtimes::a_runtime_without_io_is_asked_for_it_only_if_another_has_it_and_only_once") {
        return;
    }
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let dir = TempDir::new().unwrap();
    let locks = [LockFile::shlock(dir.path().join("a")).unwrap(), LockFile::flock(dir.path().join("b")).unwrap()];
    let _programs = locks.each_ref().map(OtherProgram::holding);
    std::panic::set_hook(Box::new(|_| _ = PANICS.fetch_add(1, Ordering::Relaxed)));
    let wait_without_io = || {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            for lock in &locks {
                assert!(lock.obtain_timeout(Duration::from_secs(10)).await.is_err());
            }
        });
        // Tokio answers with a panic. The library catches it, but the panic hook sees it.
        PANICS.load(Ordering::Relaxed)
    };
    assert_eq!(wait_without_io(), 0);
    let _has_io = Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(wait_without_io(), 1);
}

#[test]
fn without_timers_every_wait_panics_at_once() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap();
    let complaint = |call: Pin<Box<dyn Future<Output = ()> + Send>>| {
        let (sender, complaint) = std::sync::mpsc::channel();
        let call = runtime.spawn(call);
        runtime.spawn(async move { sender.send(call.await.unwrap_err().into_panic()) });
        let panic = complaint.recv_timeout(HANG).expect("hangs");
        panic.downcast_ref::<&str>().map(ToString::to_string).or(panic.downcast_ref().cloned()).unwrap()
    };
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.lock");
    for lock in [LockFile::shlock(&path).unwrap(), LockFile::flock(&path).unwrap()] {
        let (to_attempt, to_obtain, to_wait) = (lock.clone(), lock.clone(), lock.clone());
        let guard = lock.blocking_attempt().unwrap().unwrap();
        let lost = complaint(Box::pin(async move { _ = guard.lost().await }));
        let attempt = complaint(Box::pin(async move { _ = to_attempt.attempt().await }));
        let obtain = complaint(Box::pin(async move { _ = to_obtain.obtain().await }));
        let guard = lock.blocking_attempt().unwrap().expect("the lock is free after the panic");
        let wait = complaint(Box::pin(async move { _ = to_wait.obtain().await }));
        for complaint in [lost, attempt, obtain, wait] {
            assert!(complaint.contains("timers are disabled"), "{complaint}");
        }
        drop(guard);
    }
}
