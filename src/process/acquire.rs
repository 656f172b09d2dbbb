//! The way to the lock: the turn in this process, an offer of the task before, and then the engine.

use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::acquisition::Acquisition;
use super::hold::Hold;
use super::lock::Lock;
use super::registry::Turn;
use super::report::{Report, Wait};
use super::{time_slice, writers_turn};
use crate::engine::claim::GiveBack;
use crate::engine::contract::{Answer, Attempt};
use crate::sys::offer::Release;
use crate::sys::process::Owner;
use crate::util::blocking;
use crate::util::timer::timeout;
use crate::words::error::LockError;
use crate::words::mode::Mode;

/// Tries once. `None` if somebody holds the lock, or another task of this process waits for it.
pub(crate) async fn attempt(lock: &Lock, mode: Mode) -> Result<Option<Acquisition>, LockError> {
    attempt_in(lock, mode, false).await
}

/// The same as a part of a wait. `is_reported`: whether the log tells of that.
pub(crate) async fn attempt_in(lock: &Lock, mode: Mode, is_reported: bool) -> Result<Option<Acquisition>, LockError> {
    attempt_with(lock, mode, Caller { may_wait: true, is_reported }).await
}

/// Who tries once.
#[derive(Clone, Copy)]
struct Caller {
    may_wait: bool,
    is_reported: bool,
}

/// The same for a caller that blocks its runtime: it waits for no other task, and for a release only for a moment. `None`
/// also while a task of this process tries for the lock.
pub(crate) async fn attempt_at_once(lock: &Lock, mode: Mode) -> Result<Option<Acquisition>, LockError> {
    attempt_with(lock, mode, Caller { may_wait: false, is_reported: false }).await
}

async fn attempt_with(lock: &Lock, mode: Mode, caller: Caller) -> Result<Option<Acquisition>, LockError> {
    // Nothing below need ever wait, and a task that tries in a loop must not keep others from running.
    tokio::task::consume_budget().await;
    if let Some(acquisition) = read_along(lock, mode) {
        return Ok(Some(acquisition));
    }
    again_after_a_fork(|| attempt_here(lock, mode, caller)).await
}

/// Waits in the queue of this process, then until the engine has the lock.
pub(crate) fn obtain(lock: &Lock, mode: Mode) -> impl Future<Output = Result<Acquisition, LockError>> {
    obtain_as(lock, mode, Report::new)
}

/// The same as a part of a wait for one of several locks, which [`report::during`](super::report::during) reports.
pub(crate) fn obtain_one_of<'a>(
    lock: &'a Lock,
    mode: Mode,
    is_reported: &'a AtomicBool,
) -> impl Future<Output = Result<Acquisition, LockError>> {
    obtain_as(lock, mode, |started| Report::of_part(started, is_reported))
}

#[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice")]
fn obtain_as<'a>(
    lock: &'a Lock,
    mode: Mode,
    report: impl Fn(Instant) -> Report<'a> + Copy + 'a,
) -> impl Future<Output = Result<Acquisition, LockError>> {
    async move {
        tokio::task::consume_budget().await;
        if let Some(acquisition) = read_along(lock, mode) {
            return Ok(acquisition);
        }
        again_after_a_fork(|| obtain_here(lock, mode, report)).await
    }
}

/// The shortest way of a reader: others read already. Nothing here waits.
fn read_along(lock: &Lock, mode: Mode) -> Option<Acquisition> {
    if mode == Mode::Exclusive {
        return None;
    }
    let turn = lock.slot().try_turn(mode)?;
    let now = Instant::now();
    join(lock, turn, Wait::begin(now), now.into_std()).ok()
}

/// Shares what other readers of this process hold, unless writers of other processes are to try first.
fn join(lock: &Lock, turn: Turn<Hold>, wait: Wait, now: std::time::Instant) -> Result<Acquisition, Turn<Hold>> {
    match turn.slot().readers().is_pausing() || rest_of_writers_turn(lock, &turn, now).is_some() {
        true => Err(turn),
        false => Acquisition::join(lock, turn, wait, now),
    }
}

/// Runs `work`. If the process forks meanwhile, the child begins again: the turn, the watch and the open file that the
/// work has so far are its parent's.
async fn again_after_a_fork<F: Future>(work: impl Fn() -> F) -> F::Output {
    loop {
        let mut working = OfThisProcess { owner: Owner::this_process(), future: Some(Box::pin(work())) };
        let done = poll_fn(|context| match (working.owner.is_this_process(), &mut working.future) {
            (true, Some(future)) => future.as_mut().poll(context).map(Some),
            _ => Poll::Ready(None),
        });
        if let Some(output) = done.await {
            return output;
        }
    }
}

/// A future that is not dropped in a forked child: that would take mutexes which another thread of the parent may have had
/// at the fork.
struct OfThisProcess<F> {
    owner: Owner,
    future: Option<Pin<Box<F>>>,
}

impl<F> Drop for OfThisProcess<F> {
    fn drop(&mut self) {
        if !self.owner.is_this_process() {
            mem::forget(self.future.take());
        }
    }
}

/// How long an attempt, or the end of a singleton, waits for a release of this process. The file system may hang.
pub(crate) const LONGEST_RELEASE: Duration = Duration::from_secs(5);

/// The same for a caller that blocks its runtime. The release may need a thread that this caller has.
const LONGEST_BLOCKED_RELEASE: Duration = Duration::from_millis(500);

/// How long an attempt waits for the try of another reader of this process, whose task may not be polled. A try for a file
/// seldom takes a millisecond, but a server has to be connected to.
fn patience(lock: &Lock) -> Duration {
    if lock.target.is_on_server() { Duration::from_secs(5) } else { Duration::from_millis(50) }
}

async fn attempt_here(lock: &Lock, mode: Mode, caller: Caller) -> Result<Option<Acquisition>, LockError> {
    let Caller { may_wait, is_reported } = caller;
    let mut turn = lock.slot().try_turn(mode);
    if turn.is_none() {
        let limit = if may_wait { LONGEST_RELEASE } else { LONGEST_BLOCKED_RELEASE };
        let _ = timeout(limit, pin!(lock.slot().released())).await;
        turn = lock.slot().try_turn(mode);
    }
    let Some(turn) = turn else { return Ok(None) };
    let wait = Wait { started: begin(), is_reported };
    let mut turn = match find_here(lock, turn, wait).await {
        Found::Lock(acquisition) => return Ok(Some(acquisition)),
        Found::Turn(turn) => turn,
    };
    if mode == Mode::Shared {
        // The reader that has the lead may not be polled.
        let leads = turn.try_lead()
            || (may_wait && timeout(patience(lock), pin!(turn.take_lead_unless_waiting())).await.unwrap_or(false));
        if !leads {
            return Ok(None);
        }
        turn = match lead(lock, turn, wait).await {
            Found::Lock(acquisition) => return Ok(Some(acquisition)),
            Found::Turn(turn) => turn,
        };
    }
    match lock.engine.attempt(mode, turn).get().await? {
        Attempt::Acquired(grant) => Ok(Some(Acquisition::new(lock, grant, wait))),
        Attempt::Busy(..) => Ok(None),
    }
}

/// Many waits are in here at the same time. So what few of them need is boxed, and no value is kept that has gone on.
async fn obtain_here<'a>(
    lock: &Lock,
    mode: Mode,
    report: impl Fn(Instant) -> Report<'a>,
) -> Result<Acquisition, LockError> {
    let mut report = report(begin());
    let turn = if let Some(turn) = lock.slot().try_turn(mode) {
        turn
    } else {
        report.during(lock, Box::pin(lock.slot().turn(mode)).as_mut()).await
    };
    let turn = match find_here(lock, turn, report.wait()).await {
        Found::Lock(acquisition) => return Ok(acquisition),
        Found::Turn(turn) => turn,
    };
    let turn = match mode {
        Mode::Exclusive => turn,
        Mode::Shared => match Box::pin(wait_for_lead(lock, turn, &mut report)).await {
            Found::Lock(acquisition) => return Ok(acquisition),
            Found::Turn(turn) => turn,
        },
    };
    let (had_rivals, attempt) = forget_rivals_and_attempt(lock, turn);
    let mut waiting = match attempt.get().await? {
        Attempt::Acquired(grant) => return Ok(Acquisition::new(lock, grant, report.wait())),
        Attempt::Busy(turn, waiter) => {
            turn.begin_wait();
            waiter.wait(turn, had_rivals)
        }
    };
    let grant = report.during(lock, waiting.as_mut()).await?;
    Ok(Acquisition::new(lock, grant, report.wait()))
}

type Attempted = Result<Attempt<Turn<Hold>>, LockError>;

/// Begins to try. Also returns whether other processes wanted the lock in the last time slice.
fn forget_rivals_and_attempt(lock: &Lock, turn: Turn<Hold>) -> (bool, Answer<Attempted>) {
    let had_rivals = turn.time_slice().is_some_and(|mut slice| slice.forget_rivals());
    (had_rivals, lock.engine.attempt(turn.mode(), turn))
}

/// The moment at which a wait begins. Panics where Tokio has no timers: at the first try, not when another process first
/// holds the lock, which may be years later.
pub(crate) fn begin() -> Instant {
    tokio::time::sleep(Duration::ZERO).deadline()
}

/// What a task with the turn finds in this process.
enum Found {
    Lock(Acquisition),
    /// Nothing. So the task tries in the system, with the turn.
    Turn(Turn<Hold>),
}

impl From<Result<Acquisition, Turn<Hold>>> for Found {
    fn from(result: Result<Acquisition, Turn<Hold>>) -> Self {
        result.map_or_else(Self::Turn, Self::Lock)
    }
}

/// What other readers of this process share, or what another task of this process has offered. If it is the turn of other
/// processes, they try first.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice")]
fn find_here(lock: &Lock, mut turn: Turn<Hold>, wait: Wait) -> impl Future<Output = Found> {
    async move {
        match turn.mode() {
            Mode::Shared => join(lock, turn, wait, std::time::Instant::now()).into(),
            Mode::Exclusive => {
                if let Some(hold) = turn.accept() {
                    match Acquisition::accept(lock, turn, hold, wait) {
                        Ok(acquisition) => return Found::Lock(acquisition),
                        Err(back) => turn = back,
                    }
                }
                step_aside_if_due(lock, &turn).await;
                Found::Turn(turn)
            }
        }
    }
}

/// For how long a reader lets writers of other processes try first.
fn rest_of_writers_turn(lock: &Lock, turn: &Turn<Hold>, now: std::time::Instant) -> Option<Duration> {
    let rest = writers_turn::rest(now)?;
    let is_due = lock.target.kind.is_between_processes() && turn.slot().readers().read_often(now);
    is_due.then_some(rest)
}

/// Waits for the lead among the readers. Then it does the same as [`lead`].
async fn wait_for_lead(lock: &Lock, mut turn: Turn<Hold>, report: &mut Report<'_>) -> Found {
    report.during(lock, pin!(turn.take_lead())).await;
    lead(lock, turn, report.wait()).await
}

/// The same as [`find_here`] for the reader that has just got the lead.
async fn lead(lock: &Lock, turn: Turn<Hold>, wait: Wait) -> Found {
    let mut now = std::time::Instant::now();
    if let Some(rest) = rest_of_writers_turn(lock, &turn, now) {
        turn.pause(rest).await;
        now = std::time::Instant::now();
    }
    let turn = match Acquisition::join(lock, turn, wait, now) {
        Ok(acquisition) => return Found::Lock(acquisition),
        Err(turn) => turn,
    };
    match turn.accept() {
        // The task before has offered an exclusive lock, and no lock changes its mode.
        Some(hold) => Found::Turn(release_offered(turn, hold).await),
        None => Found::Turn(turn),
    }
}

/// Releases an offered lock. The turn is kept until then, also if the caller goes away.
async fn release_offered(turn: Turn<Hold>, hold: Hold) -> Turn<Hold> {
    let (to, back) = oneshot::channel();
    hold.release(GiveBack::new(turn, to));
    back.await.expect("the turn comes back wherever the release ends")
}

/// Lets other processes try first if this one has used up its time slice.
async fn step_aside_if_due(lock: &Lock, turn: &Turn<Hold>) {
    let is_due = turn.time_slice().is_some_and(|slice| slice.is_unfair(std::time::Instant::now()));
    if is_due && lock.target.kind.is_between_processes() {
        Box::pin(blocking::short_pause(time_slice::PAUSE)).await;
    }
}
