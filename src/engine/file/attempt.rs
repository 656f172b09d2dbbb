//! One try, inline where nothing can block the thread, else on the blocking pool.

use std::sync::Arc;
use std::time::Duration;

use super::execution::{Execution, TargetOnDisk};
use super::held::FileHeld;
use super::outcome::{Contended, FileIdentity, Outcome, Thread};
use super::protocol;
use super::wait::wake_up::WakeUp;
use crate::engine::claim::Claim;
use crate::engine::contract::{Answer, Contention, Grant};
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
    Acquired(Grant<Turn, FileHeld>),
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
type Decided<Turn> = Result<Tried<Turn>, (Turn, Undecided)>;

fn decided<Turn>(lock: &Arc<TargetOnDisk>, turn: Turn, outcome: Outcome<protocol::HeldFile>) -> Decided<Turn> {
    match outcome {
        Outcome::Acquired { held, taken_over } => {
            lock.remember_record(held.has_record());
            let held = Box::new(FileHeld::new(held, Arc::clone(lock)));
            Ok(Tried::Acquired(Grant { held, turn, taken_over, contention: Contention::None }))
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
        let decided = match lock.execution() {
            Some(Execution::Inline) if !is_slow => decided(&lock, turn, try_inline(&lock, mode, &last)?),
            _ => try_on_pool(&lock, mode, turn, last).await?,
        };
        (turn, undecided) = match decided {
            Ok(tried) => return Ok(tried),
            Err(undecided) => undecided,
        };
    }
}

/// One try on the executor's thread.
fn try_inline(lock: &TargetOnDisk, mode: Mode, last: &Contended) -> Result<Outcome<protocol::HeldFile>, LockError> {
    match protocol::attempt(lock, mode, last, Thread::Executor) {
        Err(error) if lock.lacks_directory(&error) => Ok(Outcome::Slow),
        tried => tried,
    }
}

/// One try that may block.
fn try_here(lock: &TargetOnDisk, mode: Mode, last: &Contended) -> Result<Outcome<protocol::HeldFile>, LockError> {
    lock.find_execution();
    match protocol::attempt(lock, mode, last, Thread::Pool) {
        Err(error) if lock.lacks_directory(&error) => {
            lock.make_directory()?;
            protocol::attempt(lock, mode, last, Thread::Pool)
        }
        tried => tried,
    }
}

/// What comes from the blocking pool.
enum FromPool<Turn: Send + 'static> {
    /// With its file, if it was made for the lock.
    Lock(Claim<Turn, FileHeld>, Option<Box<FileIdentity>>),
    NoLock(Decided<Turn>),
}

async fn try_on_pool<Turn: Send + 'static>(
    lock: &Arc<TargetOnDisk>,
    mode: Mode,
    turn: Turn,
    last: Contended,
) -> Result<Decided<Turn>, LockError> {
    let failed = |error| lock.target.failed("try for", error);
    let on_pool = Arc::clone(lock);
    // The turn goes along: if our caller goes away, no other task tries before this try has ended. `last` is dropped after
    // the answer is sent: whoever closes a file that was removed pays for its removal from the disk.
    let tried = blocking::run_and_tidy_up(move || {
        let (answer, watch) = match try_here(&on_pool, mode, &last).map(|outcome| decided(&on_pool, turn, outcome)) {
            Ok(Ok(Tried::Acquired(grant))) => {
                let ours = grant.held.ours();
                let (claim, watch) = Claim::new(grant, &on_pool.target, &on_pool.offer_timeout);
                (Ok(FromPool::Lock(claim, ours)), Some(watch))
            }
            tried => (tried.map(FromPool::NoLock), None),
        };
        (answer, move || {
            watch.into_iter().for_each(|watch| watch());
            drop(last);
        })
    });
    match tried.await.map_err(failed)?? {
        FromPool::NoLock(decided) => Ok(decided),
        FromPool::Lock(claim, ours) => Ok(match claim.take(&lock.offer_timeout).await {
            Ok(grant) => Ok(Tried::Acquired(grant)),
            // It may still be free, or somebody else's by now.
            Err(turn) => Err((turn, Undecided::Slow(Contended::default().with_ours(ours)))),
        }),
    }
}
