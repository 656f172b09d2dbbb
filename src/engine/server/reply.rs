//! The way of an answer from a job of the driver to the task that has asked for a lock. The task may have gone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::driver;
use crate::engine::claim::Claim;
use crate::engine::contract::{Attempt, Contention, Grant, Held, Waiter};
use crate::sys::offer::OfferTimeout;
use crate::words::error::LockError;
use crate::words::target::Target;

pub(crate) type Attempted<Turn> = Result<Attempt<Turn>, LockError>;

/// A lock on a server waits longer for its task than one on a file: a server needs some milliseconds to give the lock to
/// another process, and the task then begins anew at the end of the queue.
pub(crate) fn offer_timeout() -> OfferTimeout {
    OfferTimeout::new(Duration::from_millis(100))
}

/// The lock that a request has got which waits for it.
pub(crate) fn granted<Turn>(outcome: Attempted<Turn>) -> Result<Grant<Turn>, LockError> {
    match outcome? {
        Attempt::Acquired(grant) => Ok(grant),
        Attempt::Busy(..) => unreachable!("a request that waits is not refused"),
    }
}

/// The end of the job. It has the turn of the task.
#[derive(Debug)]
pub(crate) struct Reply<Turn: Send + 'static> {
    turn: Turn,
    to: oneshot::Sender<Message<Turn>>,
}

#[derive(Debug)]
enum Message<Turn: Send + 'static> {
    Lock(Claim<Turn>),
    NoLock(Attempted<Turn>),
}

/// Runs `job` on the driver, and again whenever its lock was released because the task was not polled. Fails if the system
/// starts no thread, or if the job panics.
///
/// Dropping this future ends the job. The job keeps the turn until nothing of it is left at the server.
pub(crate) async fn ask<Turn, Job>(
    mut turn: Turn,
    offer_timeout: &OfferTimeout,
    job: impl Fn(Reply<Turn>) -> Job,
) -> io::Result<Attempted<Turn>>
where
    Turn: Send + 'static,
    Job: Future<Output = ()> + Send + 'static,
{
    loop {
        let (to, message) = oneshot::channel();
        driver::spawn(job(Reply { turn, to }))?;
        let claim = match message.await.map_err(|_| driver::panicked())? {
            Message::Lock(claim) => claim,
            Message::NoLock(outcome) => return Ok(outcome),
        };
        match claim.take(offer_timeout).await {
            Ok(grant) => return Ok(Ok(Attempt::Acquired(grant))),
            Err(back) => turn = back,
        }
    }
}

impl<Turn: Send + 'static> Reply<Turn> {
    /// The output of `work`. `None` if the task goes away before.
    pub(crate) async fn while_wanted<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            output = work => Some(output),
            () = self.to.closed() => None,
        }
    }

    /// The turn goes first, so that the task can try again as soon as it hears of the error.
    pub(crate) fn fail(self, error: LockError) {
        drop(self.turn);
        let _ = self.to.send(Message::NoLock(Err(error)));
    }

    /// Somebody else holds the lock. The task can wait with `waiter`.
    pub(crate) fn refuse(self, waiter: Box<dyn Waiter<Turn>>) {
        let _ = self.to.send(Message::NoLock(Ok(Attempt::Busy(self.turn, waiter))));
    }

    /// Gives the lock to the task. If the task has gone, or does not take the lock in time, the lock is released, and then
    /// the turn goes back.
    pub(crate) fn give(
        self,
        held: Box<dyn Held>,
        contention: Contention,
        target: &Arc<Target>,
        offer_timeout: &OfferTimeout,
    ) {
        let grant = Grant { held, turn: self.turn, taken_over: None, contention };
        let (claim, watch) = Claim::new(grant, target, offer_timeout);
        let _ = self.to.send(Message::Lock(claim));
        watch();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock};

    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;
    use crate::engine;
    use crate::engine::memory::{SUFFIX, fault};
    use crate::support::{HANG, poll_once};
    use crate::words::kind::LockKind;
    use crate::words::mode::Mode;
    use crate::words::options::Options;

    type Answered<Turn> = oneshot::Receiver<Message<Turn>>;

    fn channel<Turn: Send + 'static>(turn: Turn) -> (Reply<Turn>, Answered<Turn>) {
        let (to, message) = oneshot::channel();
        (Reply { turn, to }, message)
    }

    fn an_error() -> LockError {
        Target::null("x".as_ref(), Options::default()).failed("try for", io::Error::other("refused"))
    }

    /// A turn that looks around when it goes.
    struct LastLook(Box<dyn Fn() + Send>);

    impl Drop for LastLook {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    #[test]
    fn the_turn_goes_before_the_task_hears_of_an_error() {
        let (task, seen) = (Arc::new(Mutex::new(None::<Answered<LastLook>>)), Arc::new(OnceLock::new()));
        let look = {
            let (task, seen) = (Arc::clone(&task), Arc::clone(&seen));
            move || seen.set(task.lock().unwrap().as_ref().unwrap().is_empty()).unwrap()
        };
        let (reply, message) = channel(LastLook(Box::new(look)));
        *task.lock().unwrap() = Some(message);
        reply.fail(an_error());
        assert_eq!(seen.get(), Some(&true));
        let message = task.lock().unwrap().take().unwrap().try_recv();
        assert!(matches!(message, Ok(Message::NoLock(Err(LockError::Io { .. })))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_ends_with_its_task() {
        let (mut reply, message) = channel(());
        assert_eq!(reply.while_wanted(async { 1 }).await, Some(1));
        drop(message);
        let work = std::future::pending::<()>();
        assert_eq!(timeout(HANG, reply.while_wanted(work)).await.expect("hangs"), None);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error() {
        let asked = ask((), &offer_timeout(), |_reply| async { panic!("a test's panic") }).await;
        assert!(asked.unwrap_err().to_string().contains("panicked"));
    }

    /// This task is not polled while the first job has a lock for it.
    #[tokio::test]
    async fn a_task_whose_lock_was_released_asks_again() {
        let path = std::env::temp_dir().join(format!("reply_comes_again.{SUFFIX}"));
        let target = Arc::new(Target::file(LockKind::PLATFORM_DEFAULT, &path, Options::default()).unwrap());
        let (jobs, offer_timeout) = (Arc::new(AtomicUsize::new(0)), Arc::new(offer_timeout()));
        let polled = Arc::new(Semaphore::new(0));
        let job = |reply: Reply<()>| {
            let (target, jobs, offer_timeout) = (Arc::clone(&target), Arc::clone(&jobs), Arc::clone(&offer_timeout));
            let polled = Arc::clone(&polled);
            async move {
                drop(polled.acquire().await);
                let engine = engine::of::<()>(&target).unwrap();
                let Ok(Attempt::Acquired(grant)) = engine.attempt(Mode::Exclusive, ()).get().await else {
                    panic!("it came before the end of the release")
                };
                // Before it is given: the task may take it and look at once.
                jobs.fetch_add(1, Ordering::SeqCst);
                reply.give(grant.held, Contention::None, &target, &offer_timeout);
            }
        };
        let mut asking = Box::pin(ask((), &offer_timeout, job));
        assert!(!poll_once(asking.as_mut()).await);
        polled.add_permits(1);
        while jobs.load(Ordering::SeqCst) == 0 || fault::holders(target.path()) > 0 {
            std::thread::yield_now();
        }
        let Ok(Ok(Attempt::Acquired(_grant))) = asking.await else { panic!("the lock is free") };
        assert!(jobs.load(Ordering::SeqCst) > 1);
    }
}
