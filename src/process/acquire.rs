//! The way to the lock: the turn in this process, an offer of the task before, and then the engine.

use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::time::Instant;

use super::acquisition::Acquisition;
use super::hold::Hold;
use super::lock::Lock;
use super::registry::Turn;
use super::report::Report;
use super::time_slice;
use crate::engine::contract::Attempt;
use crate::sys::process::Owner;
use crate::util::blocking;
use crate::words::error::LockError;

/// Tries once. `None` if somebody holds the lock, or another task of this process waits for it.
pub(crate) async fn attempt(lock: &Lock) -> Result<Option<Acquisition>, LockError> {
    again_after_a_fork(|| attempt_here(lock, true)).await
}

/// The same for a caller that blocks its runtime: it waits for no other task. `None` also while a task of this process
/// releases the lock.
pub(crate) async fn attempt_at_once(lock: &Lock) -> Result<Option<Acquisition>, LockError> {
    again_after_a_fork(|| attempt_here(lock, false)).await
}

/// Waits in the queue of this process, then until the engine has the lock.
pub(crate) async fn obtain(lock: &Lock) -> Result<Acquisition, LockError> {
    again_after_a_fork(|| obtain_here(lock)).await
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

async fn attempt_here(lock: &Lock, may_wait_for_release: bool) -> Result<Option<Acquisition>, LockError> {
    // Nothing below need ever wait, and a task that tries in a loop must not keep others from running.
    tokio::task::consume_budget().await;
    let turn = match lock.slot().try_turn(lock.mode) {
        Some(turn) => turn,
        // Who has just dropped a guard can have the lock at once.
        None if may_wait_for_release && lock.slot().is_being_released() => lock.slot().turn(lock.mode).await,
        None => return Ok(None),
    };
    let started = begin();
    let mut turn = match accept_offer(lock, turn, started) {
        Ok(acquisition) => return Ok(Some(acquisition)),
        Err(turn) => turn,
    };
    step_aside_if_due(lock, &mut turn).await;
    match lock.engine.attempt(lock.mode, turn).get().await? {
        Attempt::Acquired(grant) => Ok(Some(Acquisition::new(lock, grant, started))),
        Attempt::Busy(..) => Ok(None),
    }
}

async fn obtain_here(lock: &Lock) -> Result<Acquisition, LockError> {
    let mut report = Report::new(begin());
    tokio::task::consume_budget().await;
    let turn = report.during(lock, pin!(lock.slot().turn(lock.mode))).await;
    let mut turn = match accept_offer(lock, turn, report.started()) {
        Ok(acquisition) => return Ok(acquisition),
        Err(turn) => turn,
    };
    step_aside_if_due(lock, &mut turn).await;
    let had_rivals = turn.time_slice().is_some_and(|slice| slice.forget_rivals());
    let grant = match lock.engine.attempt(lock.mode, turn).get().await? {
        Attempt::Acquired(grant) => grant,
        Attempt::Busy(turn, waiter) => report.during(lock, waiter.wait(turn, had_rivals).as_mut()).await?,
    };
    Ok(Acquisition::new(lock, grant, report.started()))
}

/// The moment at which a wait begins. Panics where Tokio has no timers: at the first try, not when another process first
/// holds the lock, which may be years later.
pub(crate) fn begin() -> Instant {
    tokio::time::sleep(std::time::Duration::ZERO).deadline()
}

/// What another task of this process has offered to the one that has the turn; else the turn, to try with.
fn accept_offer(lock: &Lock, turn: Turn<Hold>, started: Instant) -> Result<Acquisition, Turn<Hold>> {
    match turn.accept() {
        Some(hold) => Acquisition::accept(lock, turn, hold, started),
        None => Err(turn),
    }
}

/// Lets other processes try first if this one has used up its time slice.
async fn step_aside_if_due(lock: &Lock, turn: &mut Turn<Hold>) {
    let is_due = turn.time_slice().is_some_and(|slice| slice.is_unfair(std::time::Instant::now()));
    if is_due && lock.target.kind.is_between_processes() {
        Box::pin(blocking::short_pause(time_slice::PAUSE)).await;
    }
}
