//! What the clients and the nemesis have done, on one clock.
//!
//! Each process of a client has a file with a row for each of its turns. A turn writes its row again and again, so that the
//! row is true up to the moment at which the process is killed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::schedule::Fault;
use crate::setting::CLIENT_HOSTS;

/// A moment on the clock that all processes of this machine share. It is the clock of leases.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The locks of a campaign. Two of them are the permits of a semaphore, and one is that of a singleton.
pub(crate) const LOCKS: [&str; 7] = ["alpha", "beta", "permit0", "permit1", "leader", "gamma", "delta"];
/// Those that the quiet clients want beside the first two, and mostly have for long.
pub(crate) const QUIET: [usize; 2] = [5, 6];
pub(crate) const PERMITS: [usize; 2] = [2, 3];
pub(crate) const LEADER: usize = 4;

/// How the names of locks begin that somebody takes only once: nobody else would take over what is left of one.
pub(crate) const ONCE: &str = "once-";

/// The number of the client that this process is.
pub(crate) static CLIENT: OnceLock<usize> = OnceLock::new();

/// How a turn began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Attempt,
    Obtain,
    ObtainTimeout,
    DroppedWait,
    Permit,
    Lead,
    InChild,
    /// A program that is not ours.
    Other,
}

/// What a turn has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// It waits, or its process was killed while it did.
    Waiting,
    Busy,
    TimedOut,
    GivenUp,
    Failed,
    /// It holds the lock, or its process was killed while it did.
    Held,
    Released,
    ReleaseFailed,
    Lost,
    /// `lost` does not resolve although `is_held` is false.
    Untold,
    /// `lost` has resolved although `is_held` is true.
    Unlost,
}

const WAYS: [Way; 8] =
    [Way::Attempt, Way::Obtain, Way::ObtainTimeout, Way::DroppedWait, Way::Permit, Way::Lead, Way::InChild, Way::Other];

const OUTCOMES: [Outcome; 11] = [
    Outcome::Waiting,
    Outcome::Busy,
    Outcome::TimedOut,
    Outcome::GivenUp,
    Outcome::Failed,
    Outcome::Held,
    Outcome::Released,
    Outcome::ReleaseFailed,
    Outcome::Lost,
    Outcome::Untold,
    Outcome::Unlost,
];

#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) process: u32,
    /// The number of its client.
    pub(crate) client: usize,
    pub(crate) lock: usize,
    pub(crate) is_shared: bool,
    pub(crate) way: Way,
    pub(crate) outcome: Outcome,
    /// 0 without one.
    pub(crate) token: u64,
    pub(crate) lease: Duration,
    pub(crate) called: Duration,
    /// After `is_held` was true for the first time; zero before.
    pub(crate) first: Duration,
    /// Before `is_held` was true for the last time.
    pub(crate) last: Duration,
    /// Zero as long as it goes on.
    pub(crate) ended: Duration,
}

const WORDS: usize = 8;
const ROW: usize = WORDS * 8;

impl Turn {
    pub(crate) fn begin(lock: usize, is_shared: bool, way: Way, lease: Duration) -> Self {
        Self {
            process: std::process::id(),
            client: CLIENT.get().copied().expect("each client has a number"),
            lock,
            is_shared,
            way,
            outcome: Outcome::Waiting,
            token: 0,
            lease,
            called: now(),
            first: Duration::ZERO,
            last: Duration::ZERO,
            ended: Duration::ZERO,
        }
    }

    /// Whether `is_held` was true at some time.
    pub(crate) fn has_held(&self) -> bool {
        !self.first.is_zero()
    }

    fn to_bytes(self) -> Vec<u8> {
        let kind =
            self.lock as u64 | u64::from(self.is_shared) << 8 | (self.way as u64) << 16 | (self.outcome as u64) << 24;
        let times = [self.lease, self.called, self.first, self.last, self.ended].map(|time| time.as_nanos() as u64);
        let words = [&[kind, self.token, u64::from(self.process) | (self.client as u64) << 32][..], &times].concat();
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn from_bytes(row: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(row[at * 8..][..8].try_into().unwrap());
        let (byte, time) = (|at: u32| (word(0) >> at & 0xff) as usize, |at| Duration::from_nanos(word(at)));
        Self {
            process: word(2) as u32,
            client: (word(2) >> 32) as usize,
            lock: byte(0),
            is_shared: byte(8) == 1,
            way: WAYS[byte(16)],
            outcome: OUTCOMES[byte(24)],
            token: word(1),
            lease: time(3),
            called: time(4),
            first: time(5),
            last: time(6),
            ended: time(7),
        }
    }
}

/// The rows of one process.
#[derive(Clone)]
pub(crate) struct Journal {
    file: Arc<File>,
    rows: Arc<AtomicU64>,
}

impl Journal {
    pub(crate) fn create(path: &Path) -> Self {
        Self { file: Arc::new(File::create(path).unwrap()), rows: Arc::default() }
    }

    pub(crate) fn begin(&self, turn: Turn) -> Entry {
        let entry = Entry { journal: self.clone(), row: self.rows.fetch_add(1, Ordering::Relaxed), turn };
        entry.write();
        entry
    }
}

/// The row of a turn that goes on.
pub(crate) struct Entry {
    journal: Journal,
    row: u64,
    pub(crate) turn: Turn,
}

impl Entry {
    fn write(&self) {
        self.journal.file.write_all_at(&self.turn.to_bytes(), self.row * ROW as u64).unwrap();
    }

    /// Notes that `is_held` was true when it was asked at `asked`.
    pub(crate) fn held(&mut self, asked: Duration) {
        self.turn.outcome = Outcome::Held;
        if !self.turn.has_held() {
            self.turn.first = now();
        }
        self.turn.last = asked;
        self.write();
    }

    pub(crate) fn end(mut self, outcome: Outcome) {
        self.turn.outcome = outcome;
        self.turn.ended = now();
        self.write();
    }
}

/// All turns in the files of a folder.
pub(crate) fn read(dir: &Path) -> Vec<Turn> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "turns"));
    files
        .flat_map(|file| std::fs::read(file).unwrap().chunks_exact(ROW).map(Turn::from_bytes).collect::<Vec<_>>())
        .collect()
}

/// What a fault has hit.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) what: String,
    pub(crate) reach: Reach,
}

/// Between whom and the servers a fault delays what is said, or nobody hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Nobody,
    Everybody,
    /// The clients on one of their hosts.
    Host(usize),
    Client(usize),
}

impl Reach {
    pub(crate) fn concerns(self, client: usize) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Host(host) => client % CLIENT_HOSTS == host,
            Self::Client(number) => number == client,
        }
    }
}

/// A fault that the nemesis has made.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) fault: Fault,
    pub(crate) hit: Hit,
    pub(crate) began: Duration,
    /// When it was there.
    pub(crate) done: Duration,
    /// When everything was as before.
    pub(crate) ended: Duration,
}
