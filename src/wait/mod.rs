//! The one wait for a lock, for every kind: try, watch, try again, sleep until there is a sign. No thread is parked meanwhile.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::blocking;
use crate::error::LockError;
use crate::guard::LockGuard;
use crate::kind::LockKind;
use crate::lock::LockFile;
use crate::pace::Pace;
use crate::protocol::{Contended, Outcome};
use crate::registry::Turn;
use crate::spell;

mod backoff;
#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[path = "inotify.rs"]
mod events;
#[cfg(not(all(target_os = "linux", not(tokio_lockfile_test_portable))))]
#[path = "no_events.rs"]
mod events;
mod loss;
mod report;

pub(crate) use backoff::Backoff;
use events::Watch;
pub(crate) use loss::lost;
use report::Report;

/// Why a watch woke its wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// Something happened to the file, or to the process that holds it.
    Event,
    /// Nothing that is known of: a look for safety's sake.
    Probe,
}

/// How often a try looks again at something that need not be a holder, a moment apart, before it takes it for one.
const SECOND_LOOKS: u32 = 5;

/// When to look again after an event that found the lock still taken: a dying holder's files are closed, which is the
/// event, a moment before its locks go.
const AFTER_EVENT: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(20)];

/// Whoever has lost so many races for the lock since it began to wait lets nobody go first any more.
const RACES_WAIVED: u32 = 4;

/// What came of one try.
enum Tried {
    Acquired(LockGuard),
    Busy(Turn, Contended),
}

/// Tries once.
pub(crate) async fn attempt(lock: &LockFile, turn: Turn) -> Result<Option<LockGuard>, LockError> {
    let started = begin();
    let turn = match receive(lock, turn, started) {
        Ok(guard) => return Ok(Some(guard)),
        Err(turn) => turn,
    };
    Ok(match attempt_from(lock, turn, Contended::default(), Sign::Event, started).await? {
        Tried::Acquired(guard) => Some(guard),
        Tried::Busy(..) => None,
    })
}

/// Queues behind the other tasks of this process, then tries until it is ours.
pub(crate) async fn obtain(lock: &LockFile) -> Result<LockGuard, LockError> {
    let mut report = Report::new(begin());
    tokio::task::consume_budget().await;
    let turn = report.during(lock, pin!(lock.slot().turn())).await;
    let mut turn = match receive(lock, turn, report.started()) {
        Ok(guard) => return Ok(guard),
        Err(turn) => turn,
    };
    if lock.kind() != LockKind::Null && turn.spell().is_unfair(std::time::Instant::now()) {
        Box::pin(step_aside(lock, spell::PAUSE)).await?;
    }
    let had_rivals = turn.spell().forget_rivals();
    let mut lookout = Lookout::new(lock);
    let mut last = Contended::default();
    let mut sign = Sign::Event;
    let mut lost_races = 0;
    loop {
        match attempt_from(lock, turn, last, sign, report.started()).await? {
            Tried::Acquired(guard) => return Ok(guard),
            Tried::Busy(back, contended) => (turn, last) = (back, contended),
        }
        turn.spell().end(lost_races > 0);
        sign = report.during(lock, pin!(lookout.pause(&last))).await;
        if sign == Sign::Event {
            // Events reach processes always in the same order, so the first would win every race if nobody waived one.
            let is_patient = (had_rivals || lost_races > 0) && lost_races <= fastrand::u32(0..RACES_WAIVED);
            if is_patient {
                Box::pin(step_aside(lock, spell::PAUSE / 2)).await?;
            }
            lost_races += 1;
        }
    }
}

/// What another task of this process has left for the one that has the turn; else the turn, to try with.
fn receive(lock: &LockFile, turn: Turn, started: Instant) -> Result<LockGuard, Turn> {
    match turn.take_parcel() {
        Some(parcel) => LockGuard::receive(lock, turn, parcel, started),
        None => Err(turn),
    }
}

/// Lets other processes try first.
async fn step_aside(lock: &LockFile, pause: Duration) -> Result<(), LockError> {
    // On the pool, because Tokio's timers count in milliseconds; but all of its threads may be waiting for this lock.
    let aside = timeout(Duration::from_millis(1), blocking::run(move || std::thread::sleep(pause))).await;
    aside.unwrap_or(Ok(())).map_err(|error| LockError::io(&lock.target().path, "wait for", error))
}

/// One try, on from what the `last` one found, because of a `sign`. The wait for the lock began at `started`.
async fn attempt_from(
    lock: &LockFile,
    mut turn: Turn,
    mut last: Contended,
    sign: Sign,
    started: Instant,
) -> Result<Tried, LockError> {
    for look in 0.. {
        let outcome;
        (turn, outcome) = try_once(lock, turn, last, sign).await?;
        match outcome {
            Outcome::Acquired { held, taken_over } => {
                return Ok(Tried::Acquired(LockGuard::new(lock.clone(), turn, held, taken_over, started)));
            }
            Outcome::Unclear(contended) if look < SECOND_LOOKS => last = contended,
            Outcome::Unclear(contended) | Outcome::Busy(contended) => return Ok(Tried::Busy(turn, contended)),
        }
        Box::pin(sleep(Duration::from_micros(fastrand::u64(1_000..2_000)))).await;
    }
    unreachable!("the last look returns")
}

/// The moment at which a wait begins. Panics where Tokio's timers are not to be had: at the first try, not at the first
/// rival, which may come years later.
fn begin() -> Instant {
    sleep(Duration::ZERO).deadline()
}

/// Tries on this thread if nothing can block it there, else on the blocking pool.
async fn try_once(lock: &LockFile, turn: Turn, last: Contended, sign: Sign) -> Result<(Turn, Outcome), LockError> {
    let target = lock.target();
    match lock.slot().pace() {
        Some(Pace::Inline | Pace::LookInline) if sign == Sign::Probe && target.is_still_held(&last) => {
            Ok((turn, Outcome::Busy(last)))
        }
        Some(Pace::Inline) => Ok((turn, target.attempt(&last)?)),
        _ => Box::pin(try_on_pool(lock, turn, last)).await,
    }
}

async fn try_on_pool(lock: &LockFile, turn: Turn, last: Contended) -> Result<(Turn, Outcome), LockError> {
    let path = &lock.target().path;
    let lock = lock.clone();
    // The turn goes along: if our caller goes away, no other task tries before this try has ended.
    let tried = blocking::run_and_tidy_up(move || {
        lock.find_pace();
        let outcome = lock.target().attempt(&last);
        // In this order: if our caller has gone, the lock goes before the turn. And whoever closes a file that was
        // removed pays for the removal on the disk.
        ((outcome, turn), last)
    });
    let (outcome, turn) = tried.await.map_err(|error| LockError::io(path, "try for", error))?;
    Ok((turn, outcome?))
}

/// What a wait does between two tries.
///
/// Ten thousand waits are to cost little, so what a wait seldom needs is boxed: a future is as large as the largest of
/// its states.
struct Lookout<'a> {
    lock: &'a LockFile,
    watch: Option<Watch>,
    /// How many looks there were since the last event; all of [`AFTER_EVENT`] when there was none.
    looks: usize,
    backoff: Backoff,
}

impl<'a> Lookout<'a> {
    fn new(lock: &'a LockFile) -> Self {
        Self { lock, watch: None, looks: AFTER_EVENT.len(), backoff: Backoff::new(lock.target().options.backoff) }
    }

    /// Returns when the lock may be free: watch, then try, then sleep, so that no release falls between.
    async fn pause(&mut self, contended: &Contended) -> Sign {
        let Some(file) = contended.file.as_ref().filter(|_| has_events(self.lock)) else {
            self.watch = None;
            Box::pin(sleep(self.backoff.next())).await;
            return Sign::Probe;
        };
        match &mut self.watch {
            Some(watch) if watch.is_on(file, contended.foreign) => {
                let sign = match AFTER_EVENT.get(self.looks) {
                    Some(&delay) => Box::pin(timeout(delay, watch.sign())).await.ok(),
                    None => Some(watch.sign().await),
                };
                match sign {
                    Some(Sign::Event) => self.looks = 0,
                    Some(Sign::Probe) => {}
                    None => self.looks += 1,
                }
                sign.unwrap_or(Sign::Probe)
            }
            _ => {
                self.watch = Watch::for_release(self.lock.kind(), file, contended.foreign);
                match &self.watch {
                    // Look once more: it may have been released before the watch was there.
                    Some(_) => self.looks = AFTER_EVENT.len(),
                    None => Box::pin(sleep(self.backoff.next())).await,
                }
                Sign::Probe
            }
        }
    }
}

/// Whether changes of the lock file can be had as events.
fn has_events(lock: &LockFile) -> bool {
    lock.slot().pace().is_some_and(|pace| pace != Pace::Poll) && !lock.target().options.poll_only
}
