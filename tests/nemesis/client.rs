//! A client: a process that takes locks in every way and writes down what it sees.
#![expect(unsafe_code, reason = "fork(2) is an unsafe call")]

use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, getppid};
use tokio::time::{sleep, timeout};
use tokio_lockfile::{LockError, LockFile, LockGuard, Semaphore, Singleton};

use crate::history::{CLIENT, Entry, Journal, LEADER, LOCKS, ONCE, Outcome, PERMITS, QUIET, Turn, Way, now};
use crate::setting::is_quiet;

/// Between two looks at a lock.
const TICK: Duration = Duration::from_millis(5);

/// For how long a loss may be untold. It is the time that a busy machine may need.
const TELLING: Duration = Duration::from_secs(5);

/// The file that tells the clients to end.
pub(crate) const OVER: &str = "over";

/// The file that tells them that nothing is broken any more.
pub(crate) const CALM: &str = "calm";

/// Whether a client has to end: it is told so, or the process that has started it is gone.
pub(crate) fn is_over(dir: &Path, parent: Option<Pid>) -> bool {
    dir.join(OVER).exists() || getppid() != parent
}

struct Client {
    dir: PathBuf,
    parent: Option<Pid>,
    journal: Journal,
    lease: Duration,
    /// Of each: the writer's handle and the reader's.
    locks: Vec<[LockFile; 2]>,
    url: String,
    semaphore: Semaphore,
    leader: LockFile,
    is_quiet: bool,
}

impl Client {
    /// `url` has `{}` in the place of the name, and names the lease in seconds.
    fn new(journal: &Path, url: &str) -> Self {
        let lock = |number: usize| LockFile::open(&url.replace("{}", LOCKS[number])).unwrap();
        Self {
            dir: journal.parent().unwrap().to_owned(),
            parent: getppid(),
            journal: Journal::create(journal),
            lease: lease_of(url),
            url: url.to_owned(),
            locks: (0..LOCKS.len()).map(|number| [lock(number), lock(number).shared().unwrap()]).collect(),
            semaphore: Semaphore::new(PERMITS.map(lock)),
            leader: lock(LEADER),
            is_quiet: is_quiet(CLIENT.get().copied().expect("each client has a number")),
        }
    }

    fn is_over(&self) -> bool {
        is_over(&self.dir, self.parent)
    }

    fn begin(&self, lock: usize, is_shared: bool, way: Way) -> Entry {
        self.journal.begin(Turn::begin(lock, is_shared, way, self.lease))
    }
}

pub(crate) fn lease_of(url: &str) -> Duration {
    let seconds = url.split_once("ttl=").unwrap().1.trim_end_matches('s');
    Duration::from_secs(seconds.parse().unwrap())
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn work(journal: &Path, url: &str, seed: u64) {
    fastrand::seed(seed);
    let client = Rc::new(Client::new(journal, url));
    let local = tokio::task::LocalSet::new();
    let tasks = if client.is_quiet { 3..4 } else { 0..5 };
    for number in tasks {
        let client = Rc::clone(&client);
        local.spawn_local(async move {
            while !client.is_over() {
                match number {
                    0 => client.lead().await,
                    1 => client.take_a_lock_once().await,
                    2 => client.take_a_lock(Way::Attempt).await,
                    _ => client.take_a_turn().await,
                }
                sleep(Duration::from_millis(fastrand::u64(..80))).await;
            }
        });
    }
    runtime().block_on(local);
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
}

impl Client {
    async fn take_a_turn(&self) {
        match fastrand::u8(..16) {
            0 => self.fork_while_holding().await,
            1..5 => self.take_a_permit().await,
            _ => {
                const WAYS: [Way; 6] =
                    [Way::Attempt, Way::Attempt, Way::Obtain, Way::Obtain, Way::ObtainTimeout, Way::DroppedWait];
                self.take_a_lock(WAYS[fastrand::usize(..WAYS.len())]).await;
            }
        }
    }

    async fn take_a_lock(&self, way: Way) {
        let is_shared = fastrand::u8(..5) < 2;
        // Those that only try see at once that a lock of the quiet ones is free.
        let wants_all = way == Way::Attempt || self.is_quiet;
        let number = if wants_all && fastrand::bool() { QUIET[fastrand::usize(..2)] } else { fastrand::usize(..2) };
        let lock = &self.locks[number][usize::from(is_shared)];
        let moment = Duration::from_millis(fastrand::u64(..3_000));
        let entry = self.begin(number, is_shared, way);
        let got = match way {
            Way::Attempt => lock.attempt().await,
            Way::ObtainTimeout => lock.obtain_timeout(moment).await.map(Some),
            Way::DroppedWait => match timeout(moment, lock.obtain()).await {
                Ok(got) => got.map(Some),
                Err(_) => return entry.end(Outcome::GivenUp),
            },
            _ => lock.obtain().await.map(Some),
        };
        self.go_on(entry, got).await;
    }

    async fn take_a_lock_once(&self) {
        let name = format!("{ONCE}{}-{}", std::process::id(), now().as_nanos());
        let guard = LockFile::open(&self.url.replace("{}", &name)).unwrap().attempt().await;
        drop(guard);
        sleep(Duration::from_millis(fastrand::u64(..500))).await;
    }

    async fn take_a_permit(&self) {
        let entry = self.begin(PERMITS[0], false, Way::Permit);
        let got = match fastrand::bool() {
            true => self.semaphore.attempt().await,
            false => self.semaphore.obtain().await.map(Some),
        };
        self.go_on(entry, got).await;
    }

    async fn go_on(&self, mut entry: Entry, got: Result<Option<LockGuard>, LockError>) {
        match got {
            Ok(Some(guard)) => {
                let url = guard.url().to_string();
                entry.turn.lock = LOCKS.iter().position(|name| url.contains(name)).expect("it has a name");
                self.hold(entry, guard).await;
            }
            Ok(None) => entry.end(Outcome::Busy),
            Err(LockError::TimedOut { .. }) => entry.end(Outcome::TimedOut),
            Err(error) => {
                eprintln!("{:?} {:?} {:?}: {error}", now(), entry.turn.way, LOCKS[entry.turn.lock]);
                entry.end(Outcome::Failed);
                sleep(Duration::from_millis(fastrand::u64(50..300))).await;
            }
        }
    }

    async fn hold(&self, mut entry: Entry, guard: LockGuard) {
        entry.turn.token = guard.fencing_token().unwrap_or(0);
        let is_long = self.is_quiet && fastrand::u8(..3) == 0;
        let length = if is_long { Duration::from_secs(fastrand::u64(5..25)) } else { how_long(self.lease) };
        let until = now() + length;
        let is_told = {
            let mut lost = pin!(guard.lost());
            let mut is_told = false;
            loop {
                let asked = now();
                if !guard.is_held() {
                    is_told = is_told || timeout(TELLING, lost.as_mut()).await.is_ok();
                    break Some(is_told);
                }
                if is_told {
                    return entry.end(Outcome::Unlost);
                }
                entry.held(asked);
                if now() > until || self.is_over() || is_long && self.dir.join(CALM).exists() {
                    break None;
                }
                is_told = timeout(TICK, lost.as_mut()).await.is_ok();
            }
        };
        match is_told {
            Some(true) => entry.end(Outcome::Lost),
            Some(false) => entry.end(Outcome::Untold),
            // A child ends at once, and its lock with it only if the server knows.
            None if entry.turn.way != Way::InChild && fastrand::bool() => {
                drop(guard);
                entry.end(Outcome::Released);
            }
            None => match guard.release().await {
                Ok(()) => entry.end(Outcome::Released),
                Err(LockError::Lost { .. }) => entry.end(Outcome::Lost),
                Err(error) => {
                    eprintln!("{:?} release of {:?}: {error}", now(), LOCKS[entry.turn.lock]);
                    entry.end(Outcome::ReleaseFailed);
                }
            },
        }
    }

    /// One run of a singleton, which may lead several times.
    async fn lead(&self) {
        let singleton =
            Singleton::new(self.leader.clone()).pause(Duration::from_millis(50), Duration::from_millis(500));
        let leadership = singleton.leadership();
        let shutdown = async {
            while !self.is_over() {
                sleep(TICK * 10).await;
            }
        };
        let work = || async {
            let mut entry = self.begin(LEADER, false, Way::Lead);
            entry.turn.token = leadership.fencing_token().unwrap_or(0);
            let until = now() + how_long(self.lease);
            while now() < until && !self.is_over() {
                let asked = now();
                if !leadership.is_leader() {
                    // The work is about to be dropped.
                    pending::<()>().await;
                }
                entry.held(asked);
                sleep(TICK).await;
            }
            entry.end(Outcome::Released);
            Ok::<_, LockError>(())
        };
        if let Err(error) = singleton.run(work, shutdown).await {
            eprintln!("{:?} singleton: {error}", now());
        }
    }

    /// The child has a copy of the guard, which holds nothing. It takes a turn of its own.
    async fn fork_while_holding(&self) {
        let entry = self.begin(0, false, Way::Obtain);
        let guard = match self.locks[0][0].obtain().await {
            Ok(guard) => guard,
            Err(error) => return self.go_on(entry, Err(error)).await,
        };
        // SAFETY: what the child does with the library is a part of the test. It never returns from here.
        if unsafe { libc::fork() } == 0 {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work_as_a_child(&guard)));
            // SAFETY: `_exit` ends the process at once.
            unsafe { libc::_exit(i32::from(ended.is_err())) }
        }
        self.hold(entry, guard).await;
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
    }

    fn work_as_a_child(&self, copy: &LockGuard) {
        let journal = Journal::create(&self.dir.join(format!("child-{}.turns", std::process::id())));
        if copy.is_held() {
            journal.begin(Turn::begin(0, false, Way::InChild, self.lease)).end(Outcome::Unlost);
        }
        let work = || {
            runtime().block_on(async {
                let entry = journal.begin(Turn::begin(1, false, Way::InChild, self.lease));
                let got = self.locks[1][0].obtain().await.map(Some);
                self.go_on(entry, got).await;
            });
        };
        // This thread is in the parent's runtime.
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    }
}

/// Mostly a moment, and sometimes longer than a lease.
pub(crate) fn how_long(lease: Duration) -> Duration {
    match fastrand::u8(..40) {
        0..3 => lease * fastrand::u32(5..15) / 10,
        3..6 => Duration::from_millis(fastrand::u64(..500)),
        _ => Duration::from_millis(fastrand::u64(..60)),
    }
}
