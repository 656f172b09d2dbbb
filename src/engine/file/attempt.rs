//! One try, inline where nothing can block the thread, else on the blocking pool.

use std::sync::Arc;
use std::time::Duration;

use super::execution::{Execution, TargetOnDisk};
use super::held::FileHeld;
use super::outcome::{Contended, Identity, Outcome, Thread};
use super::protocol;
use super::unclaimed::Unclaimed;
use super::wait::wake_up::WakeUp;
use crate::engine::contract::Answer;
use crate::util::timer::sleep;
use crate::util::{blocking, random};
use crate::words::error::LockError;
use crate::words::mode::Mode;

/// How often a try looks again at something that need not be a holder, before it takes it for one.
const SECOND_LOOKS: u32 = 12;

/// The shortest pause before such a look; the longest is twice as long.
const SECOND_LOOK: Duration = Duration::from_millis(1);

/// What came of one try.
#[derive(Debug)]
pub(super) enum Tried<Turn> {
    /// The lock is boxed, because a wait keeps room for the outcome of its next try.
    Acquired {
        turn: Turn,
        held: Box<FileHeld>,
        taken_over: Option<u32>,
    },
    Busy(Turn, Contended),
}

/// One try, on from what the `last` one has found, because of a `wake_up`.
pub(super) fn attempt<Turn: Send + 'static>(
    lock: &Arc<TargetOnDisk>,
    mode: Mode,
    turn: Turn,
    last: Contended,
    wake_up: WakeUp,
) -> Answer<Result<Tried<Turn>, LockError>> {
    let is_unchanged =
        wake_up == WakeUp::Probe && lock.is_cheap_to_look_at() && protocol::is_still_held(&lock.target, &last);
    if is_unchanged {
        return Answer::Ready(Ok(Tried::Busy(turn, last)));
    }
    // On a network file system, the file that is open may differ from what an open would find now.
    let last = if lock.is_cheap_to_look_at() { last } else { Contended::default() };
    if lock.execution() != Some(Execution::Inline) {
        return Answer::Later(Box::pin(look_again(Arc::clone(lock), mode, turn, Undecided::Slow(last))));
    }
    match try_inline(lock, mode, &last).map(|outcome| decided(lock, turn, outcome)) {
        Ok(Ok(tried)) => Answer::Ready(Ok(tried)),
        Ok(Err((turn, undecided))) => Answer::Later(Box::pin(look_again(Arc::clone(lock), mode, turn, undecided))),
        Err(error) => Answer::Ready(Err(error)),
    }
}

/// What the next look needs.
enum Undecided {
    /// A moment's pause.
    Unclear(Contended),
    /// The blocking pool.
    Slow(Contended),
}

/// The result of a try whose outcome is clear; else what the next look needs.
fn decided<Turn>(
    lock: &Arc<TargetOnDisk>,
    turn: Turn,
    outcome: Outcome<protocol::Held>,
) -> Result<Tried<Turn>, (Turn, Undecided)> {
    match outcome {
        Outcome::Acquired { held, taken_over } => {
            lock.remember_record(held.has_record());
            let held = Box::new(FileHeld::new(held, Arc::clone(lock)));
            Ok(Tried::Acquired { turn, held, taken_over })
        }
        Outcome::Busy(contended) => Ok(Tried::Busy(turn, contended)),
        Outcome::Unclear(contended) => Err((turn, Undecided::Unclear(contended))),
        Outcome::Slow => Err((turn, Undecided::Slow(Contended::default()))),
    }
}

/// Tries until the outcome is clear, a moment apart.
async fn look_again<Turn: Send + 'static>(
    lock: Arc<TargetOnDisk>,
    mode: Mode,
    mut turn: Turn,
    mut undecided: Undecided,
) -> Result<Tried<Turn>, LockError> {
    let mut looks = 0;
    loop {
        let (last, is_slow) = match undecided {
            Undecided::Slow(last) => (last, true),
            Undecided::Unclear(last) if looks == SECOND_LOOKS => return Ok(Tried::Busy(turn, last)),
            Undecided::Unclear(last) => {
                sleep(SECOND_LOOK.mul_f64(1.0 + random::fraction())).await;
                looks += 1;
                (last, false)
            }
        };
        let outcome;
        (turn, outcome) = match lock.execution() {
            Some(Execution::Inline) if !is_slow => (turn, try_inline(&lock, mode, &last)?),
            _ => match try_on_pool(&lock, mode, turn, last).await? {
                (turn, Ok(outcome)) => (turn, outcome),
                (same, Err(ours)) => {
                    // It may be free, or somebody else's by now.
                    (turn, undecided) = (same, Undecided::Slow(Contended::default().with_ours(ours)));
                    continue;
                }
            },
        };
        (turn, undecided) = match decided(&lock, turn, outcome) {
            Ok(tried) => return Ok(tried),
            Err(undecided) => undecided,
        };
    }
}

/// One try on the executor's thread.
fn try_inline(lock: &TargetOnDisk, mode: Mode, last: &Contended) -> Result<Outcome<protocol::Held>, LockError> {
    match protocol::attempt(lock, mode, last, Thread::Executor) {
        Err(error) if lock.lacks_directory(&error) => Ok(Outcome::Slow),
        tried => tried,
    }
}

/// One try that may block.
fn try_here(lock: &TargetOnDisk, mode: Mode, last: &Contended) -> Result<Outcome<protocol::Held>, LockError> {
    lock.find_execution();
    match protocol::attempt(lock, mode, last, Thread::Pool) {
        Err(error) if lock.lacks_directory(&error) => {
            lock.make_directory()?;
            protocol::attempt(lock, mode, last, Thread::Pool)
        }
        tried => tried,
    }
}

/// `Err` if the lock was obtained, but taken back because this future was not polled in time: with the file, if it was made
/// for the lock.
async fn try_on_pool<Turn: Send + 'static>(
    lock: &Arc<TargetOnDisk>,
    mode: Mode,
    turn: Turn,
    last: Contended,
) -> Result<(Turn, Result<Outcome<protocol::Held>, Option<Box<Identity>>>), LockError> {
    let path = &lock.target.path;
    let lock = Arc::clone(lock);
    // The turn goes along: if our caller goes away, no other task tries before this try has ended.
    let tried = blocking::run_and_tidy_up(move || {
        let tried = try_here(&lock, mode, &last);
        let ours = match &tried {
            Ok(Outcome::Acquired { held, .. }) => held.ours(),
            _ => None,
        };
        let (unclaimed, watch_later) = Unclaimed::new(tried);
        // In this order: if our caller has gone, the lock is released before the turn. `last` is dropped after the answer
        // is sent: whoever closes a file that was removed pays for its removal from the disk.
        ((unclaimed, ours, turn), (watch_later, last))
    });
    let (unclaimed, ours, turn) = tried.await.map_err(|error| LockError::io(path, "try for", error))?;
    Ok((turn, unclaimed.claim().transpose()?.ok_or(ours)))
}
