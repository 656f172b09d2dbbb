//! One try, inline where nothing can block the thread, else on the blocking pool.

use std::sync::Arc;
use std::time::Duration;

use super::execution::{Execution, TargetOnDisk};
use super::outcome::{Contended, Outcome};
use super::protocol;
use super::wait::wake_up::WakeUp;
use crate::engine::contract::Answer;
use crate::util::timer::sleep;
use crate::util::{blocking, random};
use crate::words::error::LockError;
use crate::words::mode::Mode;

/// How often a try looks again at something that need not be a holder, before it takes it for one.
const SECOND_LOOKS: u32 = 5;

/// The shortest pause before such a look; the longest is twice as long.
const SECOND_LOOK: Duration = Duration::from_millis(1);

/// What came of one try.
#[derive(Debug)]
pub(super) enum Tried<Turn> {
    Acquired { turn: Turn, held: protocol::Held, taken_over: Option<u32> },
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
    let last = if lock.execution() == Some(Execution::PoolWithoutEvents) { Contended::default() } else { last };
    if lock.execution() != Some(Execution::Inline) {
        return Answer::Later(Box::pin(look_again(Arc::clone(lock), mode, turn, last, 0)));
    }
    match protocol::attempt(&lock.target, mode, &last).map(|outcome| decided(turn, outcome)) {
        Ok(Ok(tried)) => Answer::Ready(Ok(tried)),
        Ok(Err((turn, last))) => Answer::Later(Box::pin(look_again(Arc::clone(lock), mode, turn, last, 1))),
        Err(error) => Answer::Ready(Err(error)),
    }
}

/// The result of a try whose outcome is clear; else what the next look needs.
fn decided<Turn>(turn: Turn, outcome: Outcome<protocol::Held>) -> Result<Tried<Turn>, (Turn, Contended)> {
    match outcome {
        Outcome::Acquired { held, taken_over } => Ok(Tried::Acquired { turn, held, taken_over }),
        Outcome::Busy(contended) => Ok(Tried::Busy(turn, contended)),
        Outcome::Unclear(contended) => Err((turn, contended)),
    }
}

/// Tries until the outcome is clear, a moment apart. `looks` tries have been made.
async fn look_again<Turn: Send + 'static>(
    lock: Arc<TargetOnDisk>,
    mode: Mode,
    mut turn: Turn,
    mut last: Contended,
    mut looks: u32,
) -> Result<Tried<Turn>, LockError> {
    loop {
        if looks > 0 {
            sleep(SECOND_LOOK.mul_f64(1.0 + random::fraction())).await;
        }
        let outcome;
        (turn, outcome) = match lock.execution() {
            Some(Execution::Inline) => (turn, protocol::attempt(&lock.target, mode, &last)?),
            _ => try_on_pool(&lock, mode, turn, last).await?,
        };
        match decided(turn, outcome) {
            Ok(tried) => return Ok(tried),
            Err((turn, contended)) if looks == SECOND_LOOKS => return Ok(Tried::Busy(turn, contended)),
            Err((back, contended)) => (turn, last) = (back, contended),
        }
        looks += 1;
    }
}

async fn try_on_pool<Turn: Send + 'static>(
    lock: &Arc<TargetOnDisk>,
    mode: Mode,
    turn: Turn,
    last: Contended,
) -> Result<(Turn, Outcome<protocol::Held>), LockError> {
    let path = &lock.target.path;
    let lock = Arc::clone(lock);
    // The turn goes along: if our caller goes away, no other task tries before this try has ended.
    let tried = blocking::run_and_tidy_up(move || {
        lock.find_execution();
        let outcome = protocol::attempt(&lock.target, mode, &last);
        // In this order: if our caller has gone, the lock is released before the turn. `last` is dropped after the answer
        // is sent: whoever closes a file that was removed pays for its removal from the disk.
        ((outcome, turn), last)
    });
    let (outcome, turn) = tried.await.map_err(|error| LockError::io(path, "try for", error))?;
    Ok((turn, outcome?))
}
