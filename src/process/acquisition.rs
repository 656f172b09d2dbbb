//! One task's hold on the lock, and the way back: to the next task of this process, or to the system.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::oneshot;

use super::hold::{Grip, Hold};
use super::lock::Lock;
use super::registry::{Releasing, Turn};
use super::report::Wait;
use crate::engine::contract::{Contention, Grant};
use crate::sys::offer::Release;
use crate::words::error::{LockError, LostReason};
use crate::words::mode::Mode;
use crate::words::target::Target;
use crate::words::trace;

#[derive(Debug)]
pub(crate) struct Acquisition {
    target: Arc<Target>,
    since: Instant,
    // In this order, also where a subscriber panics: the lock is released before the turn is free.
    hold: Grip,
    turn: Turn<Hold>,
    /// Whether the loss of the lock has been logged.
    is_loss_logged: AtomicBool,
    /// Whether the task has asked for the locked file. It may have moved the position in it, which the next task would not
    /// expect.
    is_file_used: AtomicBool,
}

impl Acquisition {
    /// For the task that calls this.
    pub(super) fn new(lock: &Lock, grant: Grant<Turn<Hold>>, wait: Wait) -> Self {
        match grant.taken_over {
            Some(pid) => trace::taken_over(&lock.target, pid, wait.started),
            None => wait.log_acquired(&lock.target),
        }
        let turn = grant.turn;
        let now = Instant::now();
        if let Some(mut slice) = turn.time_slice() {
            match grant.contention {
                Contention::None => {}
                Contention::Waited => slice.end(false),
                Contention::LostRaces => slice.end(true),
            }
            slice.gain(now);
        }
        let hold = Hold::new(grant.held, Arc::clone(&lock.target), now);
        let grip = match turn.mode() {
            Mode::Exclusive => Grip::Alone(hold),
            Mode::Shared => {
                let hold = Arc::new(hold);
                turn.share(&hold, now);
                Grip::Together(hold)
            }
        };
        Self::begin(lock, turn, grip, now)
    }

    /// Shares what other readers of this process hold, with one more. Returns the turn if nobody reads, or if their lock
    /// has been lost.
    pub(super) fn join(lock: &Lock, turn: Turn<Hold>, wait: Wait, now: Instant) -> Result<Self, Turn<Hold>> {
        let held = turn.slot().readers().held();
        match held.filter(|hold| hold.verify_to_share(&lock.target, now)) {
            Some(hold) => {
                wait.log_acquired(&lock.target);
                Ok(Self::begin(lock, turn, Grip::Together(hold), now))
            }
            None => Err(turn),
        }
    }

    /// Accepts what another task of this process has offered. Returns the turn if the lock has been lost.
    pub(super) fn accept(lock: &Lock, turn: Turn<Hold>, hold: Hold, wait: Wait) -> Result<Self, Turn<Hold>> {
        if !hold.verify_for(&lock.target, wait.started.into_std()) {
            hold.release(());
            return Err(turn);
        }
        wait.log_acquired(&lock.target);
        Ok(Self::begin(lock, turn, Grip::Alone(hold), Instant::now()))
    }

    fn begin(lock: &Lock, mut turn: Turn<Hold>, hold: Grip, now: Instant) -> Self {
        turn.set_held(now);
        Self {
            target: Arc::clone(&lock.target),
            turn,
            since: now,
            hold,
            is_loss_logged: AtomicBool::new(false),
            is_file_used: AtomicBool::new(false),
        }
    }

    pub(crate) fn target(&self) -> &Arc<Target> {
        &self.target
    }

    pub(crate) fn mode(&self) -> Mode {
        self.turn.mode()
    }

    /// Whether the lock is ours at this moment.
    pub(crate) fn is_held(&self) -> bool {
        self.hold.held.is_of_this_process() && self.hold.check(&self.target).is_ok()
    }

    /// Resolves when the lock is lost; never otherwise.
    pub(crate) async fn lost(&self) -> LostReason {
        let reason = self.hold.held.lost(&self.target).await;
        if !self.is_loss_logged.swap(true, Ordering::Relaxed) {
            trace::lost(&self.target, reason, Some(self.since.elapsed()));
        }
        reason
    }

    /// The locked file, if the lock is the kernel's own on that file.
    pub(crate) fn file(&self) -> Option<&File> {
        self.is_file_used.store(true, Ordering::Relaxed);
        self.hold.held.file()
    }

    /// The engine's fencing token, if it has one.
    pub(crate) fn token(&self) -> Option<u64> {
        self.hold.held.token()
    }

    /// Releases the lock and reports how that went. The release is under way when this returns, so the caller may go away.
    pub(crate) fn release(self) -> impl Future<Output = Result<(), LockError>> {
        let target = Arc::clone(&self.target);
        let (report, released) = oneshot::channel();
        self.begin_release(|| true, |result| drop(report.send(result)));
        async move {
            let interrupted = || target.failed("release", io::Error::other("it was interrupted"));
            released.await.unwrap_or_else(|_| Err(interrupted()))
        }
    }

    /// Releases the lock for a caller that cannot await. The log tells what is to be told.
    pub(crate) fn release_now(self) {
        self.begin_release(trace::warnings_are_heard, drop);
    }

    /// `is_heard`: whether somebody hears that the lock was lost. If not, nobody looks. `report` is called where the release
    /// ends.
    fn begin_release(
        self,
        is_heard: impl FnOnce() -> bool,
        report: impl FnOnce(Result<(), LockError>) + Send + 'static,
    ) {
        let Err(acquisition) = self.hand_off() else { return report(Ok(())) };
        let Some((ending, grip)) = acquisition.into_parts() else { return report(Ok(())) };
        let is_heard = is_heard();
        let checked = if is_heard && grip.has_others() { grip.check(&ending.target) } else { Ok(()) };
        let Some(hold) = grip.into_last() else { return report(ending.end_beside_others(checked)) };
        let ending = match hold.held.is_slow_to_release() {
            true => ending.later(),
            false if is_heard => ending,
            false => {
                drop(hold);
                return report(ending.end(Ok(())));
            }
        };
        let target = Arc::clone(&ending.target);
        hold.held.release(&target, Box::new(move |result| report(ending.end(result))));
    }

    /// Offers the lock to the next task of this process, if there is one, the lock is in order, and this process still
    /// has its time slice.
    fn hand_off(mut self) -> Result<(), Self> {
        // Whoever waits while others read waits for a lock of another mode.
        let is_shared = matches!(self.hold, Grip::Together(_));
        if is_shared || !self.turn.slot().somebody_waits() || *self.is_file_used.get_mut() {
            return Err(self);
        }
        let now = Instant::now();
        let is_spent = self.turn.time_slice().is_some_and(|slice| slice.is_spent(now));
        // A null lock keeps no other process waiting.
        if is_spent && self.target.kind.is_between_processes() {
            return Err(self);
        }
        if !self.hold.verify_after(&self.target, self.since, now) {
            return Err(self);
        }
        let slot = Arc::clone(self.turn.slot());
        let Self { target, mut turn, since, hold: grip, .. } = self;
        let Some(hold) = grip.into_last() else { unreachable!("nobody shares an exclusive lock") };
        turn.set_free();
        trace::released(&target, since);
        if let Some((hold, turn)) = slot.offer(hold, turn, now) {
            hold.release(turn);
        }
        Ok(())
    }

    /// The held lock, and what is to be done once it is released; `None` in a forked child, which has nothing to release.
    fn into_parts(self) -> Option<(Ending, Grip)> {
        let Self { target, turn, since, hold, is_loss_logged, .. } = self;
        if !hold.held.is_of_this_process() {
            // Another thread of the parent may have had any mutex at the fork. So nothing that takes one may run here.
            mem::forget((target, turn));
            return None;
        }
        let is_loss_logged = is_loss_logged.into_inner();
        Some((Ending { target, turn, since, is_loss_logged, releasing: None }, hold))
    }
}

/// What is left of an acquisition while its lock is released in the system.
struct Ending {
    target: Arc<Target>,
    turn: Turn<Hold>,
    since: Instant,
    is_loss_logged: bool,
    /// While this is there, the task that held the lock goes on, and the lock is being released. It goes after the turn:
    /// who waits for it then finds the turn free.
    releasing: Option<Releasing<Hold>>,
}

impl Ending {
    /// The task does not hold the lock any more, but the turn is not free yet.
    fn later(mut self) -> Self {
        self.turn.set_free();
        self.releasing = Some(self.turn.begin_release());
        self
    }

    /// For a reader whose lock other readers still hold, or have just released.
    fn end_beside_others(self, checked: Result<(), LostReason>) -> Result<(), LockError> {
        let result = checked.map_err(|reason| self.target.lost(reason));
        self.end(result)
    }

    fn end(mut self, result: Result<(), LockError>) -> Result<(), LockError> {
        if let Some(mut slice) = self.turn.time_slice() {
            slice.leave(Instant::now());
        }
        self.turn.set_free();
        match &result {
            Ok(()) => trace::released(&self.target, self.since),
            Err(LockError::Lost { .. }) if self.is_loss_logged => {}
            Err(error) => trace::not_released(&self.target, error, Some(self.since.elapsed())),
        }
        result
    }
}
