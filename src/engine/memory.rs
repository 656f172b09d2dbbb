//! An engine for tests: a lock server in memory. It stands for engines on a network.
//!
//! Every answer comes late, from a server that works on its own: a request is carried out although nobody waits for the
//! answer any more. Tests can make the server refuse, take a lock away, or hold a lock for another process.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use tokio::sync::{oneshot, watch};

use super::contract::{Answer, Attempt, BoxFuture, Contention, End, Engine, Grant, Held, Waiter};
use crate::sys::process::{self, Owner};
use crate::words::error::{LockError, LostReason};
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::Target;

/// A lock whose file name ends like this is on the server.
pub(crate) const SUFFIX: &str = "in-memory";

#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Path>);

impl Memory {
    pub(super) fn named_by(target: &Target) -> Option<Self> {
        let path = target.address.path().filter(|path| path.to_string_lossy().ends_with(SUFFIX));
        path.map(|path| Self(path.into()))
    }
}

/// The locks of the server.
static SERVER: LazyLock<Mutex<HashMap<PathBuf, Entry>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Entry {
    sessions: Vec<Session>,
    /// Those who wait for a change.
    waiting: VecDeque<oneshot::Sender<()>>,
    is_broken: bool,
    is_silent: bool,
    next_token: u64,
}

/// One holder, as the server knows it.
#[derive(Debug)]
struct Session {
    token: u64,
    mode: Mode,
    lost: watch::Sender<bool>,
}

fn server() -> MutexGuard<'static, HashMap<PathBuf, Entry>> {
    SERVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn with_entry<T>(path: &Path, work: impl FnOnce(&mut Entry) -> T) -> T {
    work(server().entry(path.to_owned()).or_default())
}

/// What tests do to the server.
pub(crate) mod fault {
    use super::*;

    /// Takes the lock away from whoever holds it.
    pub(crate) fn take_away(path: &Path) {
        with_entry(path, |entry| {
            entry.sessions.drain(..).for_each(|session| _ = session.lost.send(true));
            entry.wake();
        });
    }

    /// From now on every request fails, or none does.
    pub(crate) fn set_broken(path: &Path, is_broken: bool) {
        with_entry(path, |entry| {
            entry.is_broken = is_broken;
            entry.wake();
        });
    }

    /// From now on no request is answered.
    pub(crate) fn silence(path: &Path) {
        with_entry(path, |entry| entry.is_silent = true);
    }

    /// How many sessions hold the lock.
    pub(crate) fn holders(path: &Path) -> usize {
        with_entry(path, |entry| entry.sessions.len())
    }

    /// How many wait for the lock.
    pub(crate) fn waiters(path: &Path) -> usize {
        with_entry(path, |entry| {
            entry.waiting.retain(|waiting| !waiting.is_closed());
            entry.waiting.len()
        })
    }
}

impl Entry {
    fn wake(&mut self) {
        self.waiting.drain(..).for_each(|waiting| _ = waiting.send(()));
    }

    fn acquire(&mut self, path: &Arc<Path>, mode: Mode) -> Result<Option<MemoryHeld>, LockError> {
        if self.is_broken {
            let refused = std::io::Error::other("the server refuses");
            return Err(LockError::Io { path: path.to_path_buf(), action: "ask the server for", error: refused });
        }
        let is_free = match mode {
            Mode::Exclusive => self.sessions.is_empty(),
            Mode::Shared => self.sessions.iter().all(|session| session.mode == Mode::Shared),
        };
        if !is_free {
            return Ok(None);
        }
        self.next_token += 1;
        let lost = watch::Sender::new(false);
        let held = MemoryHeld {
            path: Arc::clone(path),
            token: self.next_token,
            lost: lost.subscribe(),
            owner: Owner::this_process(),
        };
        self.sessions.push(Session { token: self.next_token, mode, lost });
        Ok(Some(held))
    }
}

/// Lets other tasks run, as an answer over a network does.
async fn travel() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

/// One request. The server carries it out also when the caller has gone, and then takes the lock back at once. `turn` is
/// kept until then.
async fn request<Turn: Send + 'static>(
    path: Arc<Path>,
    mode: Mode,
    turn: Turn,
) -> Result<(Option<MemoryHeld>, Turn), LockError> {
    let work = async move {
        travel().await;
        if with_entry(&path, |entry| entry.is_silent) {
            std::future::pending::<()>().await;
        }
        let held = with_entry(&path, |entry| entry.acquire(&path, mode));
        travel().await;
        // In this order: the lock is given back before the turn.
        (held, turn)
    };
    let (held, turn) = tokio::spawn(work).await.expect("the server does not panic");
    Ok((held?, turn))
}

fn granted<Turn>(held: MemoryHeld, turn: Turn, contention: Contention) -> Grant<Turn> {
    Grant { held: Box::new(held), turn, taken_over: None, contention }
}

impl<Turn: std::fmt::Debug + Send + 'static> Engine<Turn> for Memory {
    fn identity(&self) -> Option<Arc<OsStr>> {
        Some(self.0.as_os_str().into())
    }

    fn attempt(&self, mode: Mode, turn: Turn) -> Answer<Result<Attempt<Turn>, LockError>> {
        let path = Arc::clone(&self.0);
        Answer::Later(Box::pin(async move {
            Ok(match request(Arc::clone(&path), mode, turn).await? {
                (Some(held), turn) => Attempt::Acquired(granted(held, turn, Contention::None)),
                (None, turn) => Attempt::Busy(turn, Box::new(MemoryWaiter { path, mode })),
            })
        }))
    }

    fn holders(&self) -> BoxFuture<'static, Result<Vec<Holder>, LockError>> {
        let path = Arc::clone(&self.0);
        Box::pin(async move {
            travel().await;
            if with_entry(&path, |entry| entry.is_silent) {
                std::future::pending::<()>().await;
            }
            Ok((0..fault::holders(&path)).map(|_| process::holder(0, None)).collect())
        })
    }
}

#[derive(Debug)]
struct MemoryWaiter {
    path: Arc<Path>,
    mode: Mode,
}

impl<Turn: Send + 'static> Waiter<Turn> for MemoryWaiter {
    fn wait(self: Box<Self>, turn: Turn, _had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>> {
        Box::pin(async move {
            let mut turn = turn;
            loop {
                let (sender, changed) = oneshot::channel();
                with_entry(&self.path, |entry| entry.waiting.push_back(sender));
                // Asked after the watch is there, so that no release falls between the two.
                match request(Arc::clone(&self.path), self.mode, turn).await? {
                    (Some(held), turn) => return Ok(granted(held, turn, Contention::Waited)),
                    (None, back) => turn = back,
                }
                let _ = changed.await;
            }
        })
    }
}

#[derive(Debug)]
struct MemoryHeld {
    path: Arc<Path>,
    token: u64,
    lost: watch::Receiver<bool>,
    owner: Owner,
}

impl MemoryHeld {
    /// Whether the server still knew this holder.
    fn give_back(&mut self) -> bool {
        with_entry(&self.path, |entry| {
            let before = entry.sessions.len();
            entry.sessions.retain(|session| session.token != self.token);
            entry.wake();
            entry.sessions.len() < before
        })
    }
}

impl Drop for MemoryHeld {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Held for MemoryHeld {
    fn check(&self, _target: &Target) -> Result<(), LostReason> {
        if *self.lost.borrow() { Err(LostReason::Removed) } else { Ok(()) }
    }

    fn lost<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, LostReason> {
        let mut lost = self.lost.clone();
        Box::pin(async move {
            let is_lost = lost.wait_for(|&is_lost| is_lost).await.is_ok();
            match is_lost {
                true => LostReason::Removed,
                false => std::future::pending().await,
            }
        })
    }

    fn is_of_this_process(&self) -> bool {
        self.owner.is_this_process()
    }

    fn is_slow_to_release(&self) -> bool {
        true
    }

    fn release(mut self: Box<Self>, target: &Target, end: End) {
        let target = target.clone();
        let release = move || {
            let lost = self.check(&target);
            self.give_back();
            end(lost.map_err(|reason| target.lost(reason)));
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async {
                travel().await;
                release()
            })),
            Err(_) => release(),
        }
    }

    fn token(&self) -> Option<u64> {
        Some(self.token)
    }
}

/// The seam: what the storeys above do with an engine whose answers come late.
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::support::{HANG, in_own_process, poll_once, take};
    use crate::sys::offer::STANDS;
    use crate::{LockFile, LockGuard, Semaphore};

    /// A lock on the server that no other test uses.
    fn lock() -> (tempfile::TempDir, LockFile, Arc<Path>) {
        let dir = tempfile::tempdir().unwrap();
        let lock = LockFile::new(dir.path().join(format!("x.{SUFFIX}"))).unwrap();
        let path = lock.path().unwrap().into();
        (dir, lock, path)
    }

    fn error_of(result: Result<Option<LockGuard>, LockError>) -> String {
        result.expect_err("the server refuses").io_error().expect("it says why").to_string()
    }

    #[tokio::test]
    async fn a_loss_reaches_the_guard() {
        let (_dir, lock, path) = lock();
        let guard = take(&lock).await;
        assert!(guard.is_held());
        assert_eq!(guard.fencing_token(), Some(1));
        fault::take_away(&path);
        assert_eq!(guard.lost().await, LostReason::Removed);
        assert!(!guard.is_held());
        assert!(matches!(guard.release().await, Err(LockError::Lost { .. })));
        let guard = take(&lock).await;
        assert_eq!(guard.fencing_token(), Some(2));
        let work = async {
            fault::take_away(&path);
            std::future::pending::<()>().await
        };
        assert!(matches!(guard.run(work).await, Err(LockError::Lost { .. })));
        assert_eq!(fault::holders(&path), 0);
    }

    #[tokio::test]
    async fn a_failure_is_an_error_and_gives_the_turn_back() {
        let (_dir, lock, path) = lock();
        fault::set_broken(&path, true);
        assert_eq!(error_of(lock.attempt().await), "the server refuses");
        assert_eq!(error_of(lock.obtain().await.map(Some)), "the server refuses");
        fault::set_broken(&path, false);
        take(&lock).await.release().await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_ends_a_wait() {
        let (_dir, lock, path) = lock();
        let other_process = with_entry(&path, |entry| entry.acquire(&path, Mode::Exclusive)).unwrap();
        let mut wait = Box::pin(lock.obtain());
        while fault::waiters(&path) == 0 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        fault::set_broken(&path, true);
        assert_eq!(error_of(wait.await.map(Some)), "the server refuses");
        drop(other_process);
    }

    /// Dropped at every poll: no session stays, and the next task does not meet the leftover of the dropped one.
    #[tokio::test]
    async fn a_dropped_try_ends_before_the_next_one_begins() {
        for polls in 0..12 {
            let (_dir, lock, path) = lock();
            let mut attempt = Box::pin(lock.attempt());
            for _ in 0..polls {
                if poll_once(attempt.as_mut()).await {
                    break;
                }
            }
            drop(attempt);
            // It waits for the turn that the dropped try still has. `attempt` would answer that somebody has it.
            let guard = lock.obtain().await.unwrap();
            assert_eq!(fault::holders(&path), 1);
            assert_eq!(fault::waiters(&path), 0, "it met the leftover");
            guard.release().await.unwrap();
            assert_eq!(fault::holders(&path), 0);
        }
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_other_process_releases() {
        let (_dir, lock, path) = lock();
        let other_process = with_entry(&path, |entry| entry.acquire(&path, Mode::Exclusive)).unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), 0);
        assert!(lock.obtain_timeout(Duration::from_millis(5)).await.is_err());
        let mut wait = Box::pin(lock.obtain());
        while fault::waiters(&path) == 0 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        drop(other_process);
        wait.await.unwrap().release().await.unwrap();
        assert_eq!(fault::holders(&path), 0);
    }

    /// A release that has been polled once comes to its end, and keeps the turn until then.
    #[tokio::test]
    async fn a_dropped_release_releases() {
        let (_dir, lock, path) = lock();
        let mut release = Box::pin(take(&lock).await.release());
        assert!(!poll_once(release.as_mut()).await, "the server's answer comes late");
        drop(release);
        assert!(!poll_once(Box::pin(lock.attempt()).as_mut()).await, "it waits for the turn");
        let guard = lock.obtain().await.unwrap();
        assert_eq!(guard.fencing_token(), Some(2), "a try asked the server before the release had ended");
        guard.release().await.unwrap();
        assert_eq!(fault::holders(&path), 0);
    }

    /// The drop is a message to the server. Who asks for the lock right after it waits for that, also by `attempt`.
    #[tokio::test]
    async fn a_try_right_after_a_drop_gets_the_lock() {
        let (_dir, lock, path) = lock();
        drop(take(&lock).await);
        assert_eq!(fault::holders(&path), 1, "the server does not know of it yet");
        assert!(!lock.locked());
        take(&lock).await.release().await.unwrap();
        assert_eq!(fault::holders(&path), 0);
    }

    /// Both wait for the end of the release. Then each of them tries once.
    #[tokio::test]
    async fn of_two_attempts_at_a_release_one_gets_the_lock_and_the_other_an_answer() {
        let (_dir, lock, path) = lock();
        drop(take(&lock).await);
        assert_eq!(fault::holders(&path), 1, "the server does not know of it yet");
        let (first, second) = tokio::join!(lock.attempt(), async {
            tokio::time::timeout(HANG, lock.attempt()).await.expect("it waits for the holder")
        });
        let guards: Vec<_> = [first, second].into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(guards.len(), 1);
    }

    /// The runtime in which a guard was dropped may stand still. It keeps its turn then, and no attempt waits for that.
    #[test]
    fn a_release_in_a_runtime_that_stands_still_keeps_no_attempt_waiting() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (_dir, lock, _path) = lock();
        let idle = runtime();
        idle.block_on(async { drop(take(&lock).await) });
        let attempt = async { tokio::time::timeout(HANG, lock.attempt()).await };
        assert!(runtime().block_on(attempt).expect("it waits for the runtime").unwrap().is_none());
        drop(idle);
        runtime().block_on(async { take(&lock).await.release().await.unwrap() });
    }

    /// The task of a release goes with its runtime. What it counted goes too.
    #[test]
    fn a_release_that_ends_with_its_runtime_keeps_no_attempt_waiting() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (_dir, lock, path) = lock();
        runtime().block_on(async { drop(take(&lock).await) });
        fault::take_away(&path);
        runtime().block_on(async {
            let other_process = with_entry(&path, |entry| entry.acquire(&path, Mode::Exclusive)).unwrap();
            let mut wait = Box::pin(lock.obtain());
            while fault::waiters(&path) == 0 {
                assert!(!poll_once(wait.as_mut()).await);
            }
            let attempt = tokio::time::timeout(HANG, lock.attempt());
            assert!(attempt.await.expect("it waits behind the other task").unwrap().is_none());
            drop(other_process);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_and_the_error_says_that_nobody_has_answered() {
        if !in_own_process("engine::memory::tests::a_limit_is_kept_and_the_error_says_that_nobody_has_answered") {
            return;
        }
        let (_dir, lock, path) = lock();
        fault::silence(&path);
        let permits = Semaphore::new([lock.clone()]);
        for limit in [300, 5_000] {
            let limit = Duration::from_millis(limit);
            let began = tokio::time::Instant::now();
            let errors = tokio::join!(lock.obtain_timeout(limit), permits.obtain_timeout(limit));
            assert_eq!(began.elapsed(), limit);
            for error in [errors.0.unwrap_err(), errors.1.unwrap_err()] {
                let said = error.to_string();
                assert!(said.starts_with(&format!("timed out after {limit:?} waiting for ")), "{said}");
                assert!(said.ends_with("does not answer"), "{said}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_behind_oneself_needs_no_answer() {
        let (_dir, lock, path) = lock();
        let guard = take(&lock).await;
        fault::silence(&path);
        let said = lock.obtain_timeout(Duration::from_secs(1)).await.unwrap_err().to_string();
        assert!(said.contains(&format!("held by this process (pid {})", std::process::id())), "{said}");
        drop(guard);
    }

    /// The look for the holder of the first one has no answer.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_keeps_the_log_from_no_other_name() {
        use tracing_subscriber::layer::SubscriberExt;
        if !in_own_process("engine::memory::tests::a_server_that_hangs_keeps_the_log_from_no_other_name") {
            return;
        }
        #[derive(Clone, Default)]
        struct Waiting(Arc<Mutex<usize>>);
        impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Waiting {
            fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
                *self.0.lock().unwrap() += usize::from(event.metadata().name() == "waiting");
            }
        }
        let told = Waiting::default();
        let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(told.clone()));
        let locks: Vec<_> = (0..4).map(|_| lock()).collect();
        let mut held = Vec::new();
        for (_, lock, path) in &locks {
            held.push(with_entry(path, |entry| entry.acquire(path, Mode::Exclusive)).unwrap());
            let lock = lock.clone();
            tokio::spawn(async move { lock.obtain().await.map(drop) });
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // All but the last one.
        locks[..3].iter().for_each(|(_, _, path)| fault::silence(path));
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(*told.0.lock().unwrap() > 0, "nothing is told of the lock whose server answers");
    }

    /// Wherever it stands in the order of the tries.
    #[tokio::test(start_paused = true)]
    async fn a_permit_that_does_not_answer_keeps_nobody_from_the_others() {
        let (all, paths): (Vec<_>, Vec<_>) =
            (0..3).map(|_| lock()).map(|(dir, lock, path)| ((dir, lock), path)).unzip();
        fault::silence(&paths[1]);
        for _again in 0..20 {
            let permits = Semaphore::new(all.iter().map(|(_, lock)| lock.clone()));
            let first = permits.obtain().await.unwrap();
            let second = permits.attempt().await.unwrap().expect("it is free");
            assert!(permits.attempt().await.unwrap().is_none());
            let mut wait = Box::pin(permits.obtain());
            assert!(tokio::time::timeout(HANG, wait.as_mut()).await.is_err());
            drop(first);
            drop((wait.await.unwrap(), second));
        }
    }

    /// Tasks pass one session on among them. Only what a task takes too late goes back to the server.
    #[tokio::test]
    async fn the_lock_is_handed_off_without_the_server() {
        let (_dir, lock, _path) = lock();
        loop {
            let guard = take(&lock).await;
            let mut next = Box::pin(lock.obtain());
            assert!(!poll_once(next.as_mut()).await);
            let (token, began) = (guard.fencing_token(), Instant::now());
            drop(guard);
            let next = next.await.unwrap();
            if next.fencing_token() == token {
                return;
            }
            assert!(began.elapsed() >= STANDS, "the next task took it in time, and asked the server");
            next.release().await.unwrap();
        }
    }
}
