//! What an engine promises, written once.
//!
//! An engine makes one lock exclusive among all who can reach it. It knows nothing of handles, guards or the queue of
//! this process: the process storey calls it for one task after another, and passes a held lock on among the tasks
//! without asking the engine.
//!
//! # What every engine keeps
//! - **Exclusion.** Between the moment an [`Engine::attempt`] or a [`Waiter::wait`] answers with a [`Held`] and the
//!   moment that `Held` is released, dropped or lost, no other exclusive `Held` of the same lock exists, in any process.
//!   A shared one excludes only exclusive ones.
//! - **Cancellation.** Every future may be dropped at any moment. What the engine has begun then ends by itself, and
//!   gives back what it got. The engine keeps the caller's `turn` until nothing of that try is left in the system. So the
//!   next task of this process does not meet a leftover of its own process.
//! - **Busy is not broken.** A lock that somebody holds is [`Attempt::Busy`]. Everything else that prevents an answer is
//!   an error, and an error gives the turn back.
//! - **No blocking.** Nothing here blocks a thread of the runtime for longer than a few system calls on memory. An answer
//!   that needs a disk or a network is an [`Answer::Later`].
//! - **Fork.** In a process that did not acquire a `Held`, dropping it closes descriptors and does nothing else.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use crate::words::error::{LockError, LostReason};
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::Target;

/// A boxed future.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An answer that is ready at once, or a future of it. So an engine that need not wait allocates no future.
pub(crate) enum Answer<T> {
    Ready(T),
    Later(BoxFuture<'static, T>),
}

impl<T> Answer<T> {
    /// The value, once it is there.
    pub(crate) fn get(self) -> impl Future<Output = T> {
        let mut answer = Some(self);
        poll_fn(move |context| match &mut answer {
            Some(Self::Later(future)) => future.as_mut().poll(context),
            ready => match ready.take() {
                Some(Self::Ready(value)) => Poll::Ready(value),
                _ => unreachable!("a future is not polled after its end"),
            },
        })
    }
}

/// One lock, as the engine of its kind sees it. `Turn` is what the caller wants kept while a try is under way.
pub(crate) trait Engine<Turn>: fmt::Debug + Send + Sync {
    /// What all names of this lock have in common; `None` for a lock that no other handle can name. Handles with the same
    /// identity share one queue. Correctness between processes does not depend on it.
    fn identity(&self) -> Option<Arc<OsStr>>;

    /// Tries once, and never waits for a holder.
    fn attempt(&self, mode: Mode, turn: Turn) -> Answer<Result<Attempt<Turn>, LockError>>;

    /// Who holds the lock, in any process; empty if nobody does. This only looks: it makes no try fail.
    fn holders(&self) -> BoxFuture<'static, Result<Vec<Holder>, LockError>>;

    /// What has failed last, while the engine goes on trying to reach its server. For people.
    fn last_failure(&self) -> Option<String> {
        None
    }
}

/// The outcome of one try.
#[derive(Debug)]
pub(crate) enum Attempt<Turn> {
    Acquired(Grant<Turn>),
    /// Somebody else holds the lock. The waiter goes on from what the try has found.
    Busy(Turn, Box<dyn Waiter<Turn>>),
}

/// What is to be done when a release has ended. It gets the report: whether the lock was ours to the end. If the release
/// cannot come to its end, this is dropped.
pub(crate) type End = Box<dyn FnOnce(Result<(), LockError>) + Send>;

/// A lock that an engine has just acquired.
#[derive(Debug)]
pub(crate) struct Grant<Turn, H: ?Sized = dyn Held> {
    pub(crate) held: Box<H>,
    pub(crate) turn: Turn,
    /// The dead holder from whom the lock was taken; `Some(0)` if nothing tells its PID.
    pub(crate) taken_over: Option<u32>,
    /// How the others were met on the way.
    pub(crate) contention: Contention,
}

impl<Turn, H: Held + 'static> Grant<Turn, H> {
    /// The same for those who do not know the engine.
    pub(crate) fn boxed(self, contention: Contention) -> Grant<Turn> {
        let Self { held, turn, taken_over, .. } = self;
        Grant { held, turn, taken_over, contention }
    }
}

/// Whom a try or a wait has met. The process storey decides by it how long it may keep the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contention {
    /// Nobody: the lock was free.
    None,
    /// Another process held the lock.
    Waited,
    /// Other processes got the lock while this one waited for it.
    LostRaces,
}

/// A wait for a lock that another process holds.
pub(crate) trait Waiter<Turn>: fmt::Debug + Send {
    /// Waits until the lock is acquired, however the engine learns of its release. No thread is parked meanwhile.
    /// `had_rivals`: other processes were faster in the last wait of this process.
    fn wait(self: Box<Self>, turn: Turn, had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>>;
}

/// A lock that is held. Dropping it releases the lock without a report.
///
/// `target` is the lock as the task that asks names it: its path may lead elsewhere by now than that of the task which
/// acquired the lock.
pub(crate) trait Held: fmt::Debug + Send + Sync {
    /// Whether the lock that `target` names is still this one; if not, what has happened. Cheap, and never blocks for
    /// long. Being unable to look is no loss.
    fn check(&self, target: &Target) -> Result<(), LostReason>;

    /// Resolves when the lock is lost; never otherwise.
    fn lost<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, LostReason>;

    /// Whether this process acquired the lock. `false` in a forked child.
    fn is_of_this_process(&self) -> bool;

    /// Releases the lock, and calls `end` where the release ends. Any thread may call this, also outside a runtime. The
    /// release is under way when this returns, and needs nothing of the caller's runtime any more but its blocking pool.
    fn release(self: Box<Self>, target: &Target, end: End);

    /// Whether [`release`](Self::release) ends later, on another thread, because it needs a network or a disk that may hang.
    fn is_slow_to_release(&self) -> bool;

    /// The locked file itself, where the lock is the kernel's own on that file.
    fn file(&self) -> Option<&File> {
        None
    }

    /// A number that grows with every change of holder, if the engine has one.
    fn token(&self) -> Option<u64> {
        None
    }
}
