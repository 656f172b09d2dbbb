//! The way of a lock from a job of the driver to the task that has asked for it.
//!
//! The task may have gone. Or it may do something else, for example in another branch of `select!`, or its runtime may be
//! blocked. It does not know yet that it has the lock. So the lock must not keep other processes out for long.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::driver;
use crate::engine::contract::{Attempt, Contention, Grant, Held, Waiter};
use crate::words::error::LockError;
use crate::words::target::Target;

/// How long a lock waits for its task. This is longer than for a file: a server needs some milliseconds to give the lock to
/// another process, and the task then begins anew at the end of the queue.
const LONGEST: Duration = Duration::from_millis(100);

pub(crate) type Outcome<Turn> = Result<Attempt<Turn>, LockError>;

/// The lock that a request has got which waits for it.
pub(crate) fn granted<Turn>(outcome: Outcome<Turn>) -> Result<Grant<Turn>, LockError> {
    match outcome? {
        Attempt::Acquired(grant) => Ok(grant),
        Attempt::Busy(..) => unreachable!("a request that waits is not refused"),
    }
}

/// What the task has asked for. Whoever of the two comes first takes the outcome.
type Place<Turn> = Arc<Mutex<Option<Outcome<Turn>>>>;

/// The end of the job. It has the turn of the task.
#[derive(Debug)]
pub(crate) struct Offer<Turn> {
    turn: Turn,
    outcome: oneshot::Sender<Place<Turn>>,
    /// Resolves when the task has looked, or has gone.
    looked: oneshot::Receiver<()>,
    back: oneshot::Sender<Turn>,
}

/// The end of the task.
#[derive(Debug)]
struct Claim<Turn> {
    outcome: oneshot::Receiver<Place<Turn>>,
    _looks: oneshot::Sender<()>,
    back: oneshot::Receiver<Turn>,
}

/// Runs `job` on the driver, and again whenever its lock was taken back because the task was not polled. Fails if the system
/// starts no thread, or if the job panics.
///
/// Dropping this future ends the job. The job keeps the turn until nothing of it is left at the server.
pub(crate) async fn ask<Turn, Job>(mut turn: Turn, job: impl Fn(Offer<Turn>) -> Job) -> io::Result<Outcome<Turn>>
where
    Turn: Send + 'static,
    Job: Future<Output = ()> + Send + 'static,
{
    loop {
        let (offer, claim) = channel(turn);
        driver::spawn(job(offer))?;
        match claim.outcome().await? {
            Ok(outcome) => return Ok(outcome),
            Err(back) => turn = back,
        }
    }
}

fn channel<Turn>(turn: Turn) -> (Offer<Turn>, Claim<Turn>) {
    let (sender, outcome) = oneshot::channel();
    let (_looks, looked) = oneshot::channel();
    let (back, returned) = oneshot::channel();
    (Offer { turn, outcome: sender, looked, back }, Claim { outcome, _looks, back: returned })
}

fn take<Turn>(place: &Mutex<Option<Outcome<Turn>>>) -> Option<Outcome<Turn>> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl<Turn> Offer<Turn> {
    /// The output of `work`. `None` if the task goes away before.
    pub(crate) async fn while_wanted<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            output = work => Some(output),
            () = self.outcome.closed() => None,
        }
    }

    /// The turn goes first, so that the task can try again as soon as it hears of the error.
    pub(crate) fn fail(self, error: LockError) {
        drop(self.turn);
        tell(self.outcome, Err(error));
    }

    /// Somebody else holds the lock. The task can wait with `waiter`.
    pub(crate) fn refuse(self, waiter: Box<dyn Waiter<Turn>>) {
        tell(self.outcome, Ok(Attempt::Busy(self.turn, waiter)));
    }

    /// Gives the lock to the task. If the task has gone, or does not take the lock in time, the lock is released, and then
    /// the turn goes back.
    pub(crate) async fn give(self, held: Box<dyn Held>, contention: Contention, target: &Target) {
        let grant = Grant { held, turn: self.turn, taken_over: None, contention };
        let place = Arc::new(Mutex::new(Some(Ok(Attempt::Acquired(grant)))));
        if self.outcome.send(Arc::clone(&place)).is_ok() {
            let _ = timeout(LONGEST, self.looked).await;
        }
        if let Some(Ok(Attempt::Acquired(Grant { held, turn, .. }))) = take(&place) {
            let _ = held.release(target).get().await;
            let _ = self.back.send(turn);
        }
    }
}

/// Tells the task something that keeps nobody out. It can look at any time.
fn tell<Turn>(to: oneshot::Sender<Place<Turn>>, outcome: Outcome<Turn>) {
    let _ = to.send(Arc::new(Mutex::new(Some(outcome))));
}

impl<Turn> Claim<Turn> {
    /// The outcome, or the turn if the lock was taken back.
    async fn outcome(self) -> io::Result<Result<Outcome<Turn>, Turn>> {
        let place = self.outcome.await.map_err(|_| driver::panicked())?;
        match take(&place) {
            Some(outcome) => Ok(Ok(outcome)),
            None => self.back.await.map(Err).map_err(|_| driver::panicked()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::OnceCell;
    use std::path::Path;
    use std::rc::Rc;

    use tokio::sync::Semaphore;
    use tokio::sync::oneshot::error::TryRecvError;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::engine;
    use crate::engine::memory::{SUFFIX, fault};
    use crate::support::{HANG, poll_once};
    use crate::words::kind::LockKind;
    use crate::words::mode::Mode;
    use crate::words::options::Options;

    /// Closes its channel when it goes.
    type Turn = oneshot::Sender<()>;

    /// A lock that a job has got. The release of a lock in memory takes a while.
    async fn held(name: &str) -> (Target, Box<dyn Held>) {
        let path = std::env::temp_dir().join(format!("{name}.{SUFFIX}"));
        let target = Arc::new(Target::file(LockKind::PLATFORM_DEFAULT, &path, Options::default()).unwrap());
        let engine = engine::of::<()>(&target).unwrap();
        match engine.attempt(Mode::Exclusive, ()).get().await.unwrap() {
            Attempt::Acquired(grant) => ((*target).clone(), grant.held),
            Attempt::Busy(..) => panic!("the lock is not free"),
        }
    }

    fn is_held(target: &Target) -> bool {
        fault::holders(&target.path) > 0
    }

    fn an_error() -> LockError {
        LockError::io(Path::new("x"), "try for", io::Error::other("refused"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_looks_has_the_lock() {
        let (target, held) = held("offer_is_taken").await;
        let (turn, mut gone) = oneshot::channel();
        let (offer, claim) = channel::<Turn>(turn);
        let ((), outcome) = tokio::join!(offer.give(held, Contention::Waited, &target), claim.outcome());
        let Ok(Ok(Ok(Attempt::Acquired(grant)))) = outcome else { panic!("{outcome:?}") };
        sleep(LONGEST * 2).await;
        assert!(is_held(&target));
        assert_eq!((grant.contention, gone.try_recv()), (Contention::Waited, Err(TryRecvError::Empty)));
        drop(grant);
        assert!(!is_held(&target));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_nobody_takes_is_released_and_then_the_turn_goes_back() {
        let (target, held) = held("offer_is_not_taken").await;
        let (turn, _gone) = oneshot::channel();
        let (offer, mut claim) = channel::<Turn>(turn);
        let began = Instant::now();
        let giving = offer.give(held, Contention::None, &target);
        let back = async {
            timeout(HANG, &mut claim.back).await.expect("hangs").unwrap();
            assert!(!is_held(&target), "the turn came first");
            assert!(began.elapsed() >= LONGEST);
        };
        tokio::join!(giving, back);
        assert!(take(&claim.outcome.await.unwrap()).is_none(), "two holders");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_goes_gives_its_lock_back_at_once() {
        for is_early in [true, false] {
            let (target, held) = held("offer_is_dropped").await;
            let (turn, gone) = oneshot::channel();
            let (offer, claim) = channel::<Turn>(turn);
            let began = Instant::now();
            let mut claim = Some(claim).filter(|_| !is_early);
            let going = async {
                tokio::task::yield_now().await;
                drop(claim.take());
                let _ = timeout(HANG, gone).await.expect("hangs");
                assert!(!is_held(&target), "the turn came first");
            };
            tokio::join!(offer.give(held, Contention::None, &target), going);
            assert_eq!(began.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_keeps_nobody_out_can_be_looked_at_at_any_time() {
        let (offer, claim) = channel(());
        offer.fail(an_error());
        sleep(LONGEST * 2).await;
        assert!(matches!(claim.outcome().await, Ok(Ok(Err(LockError::Io { .. })))));
    }

    /// A turn that looks around when it goes.
    struct LastLook(Box<dyn Fn()>);

    impl Drop for LastLook {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    #[test]
    fn the_turn_goes_before_the_task_hears_of_an_error() {
        let (task, seen) = (Rc::new(OnceCell::<Claim<LastLook>>::new()), Rc::new(OnceCell::new()));
        let look = {
            let (task, seen) = (Rc::clone(&task), Rc::clone(&seen));
            move || seen.set(task.get().unwrap().outcome.is_empty()).unwrap()
        };
        let (offer, claim) = channel(LastLook(Box::new(look)));
        assert!(task.set(claim).is_ok());
        offer.fail(an_error());
        assert_eq!(seen.get(), Some(&true));
        assert!(!task.get().unwrap().outcome.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_ends_with_its_task() {
        let (mut offer, claim) = channel(());
        assert_eq!(offer.while_wanted(async { 1 }).await, Some(1));
        drop(claim);
        let work = std::future::pending::<()>();
        assert_eq!(timeout(HANG, offer.while_wanted(work)).await.expect("hangs"), None);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error() {
        let asked = ask((), |_offer| async { panic!("a test's panic") }).await;
        assert!(asked.unwrap_err().to_string().contains("panicked"));
    }

    /// This task is not polled while the first job has a lock for it.
    #[tokio::test]
    async fn a_task_whose_lock_was_taken_back_asks_again() {
        let (jobs, polled) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (released, is_released) = std::sync::mpsc::channel();
        let job = |offer: Offer<()>| {
            let (jobs, polled, released) = (Arc::clone(&jobs), Arc::clone(&polled), released.clone());
            async move {
                jobs.add_permits(1);
                drop(polled.acquire().await);
                let (target, held) = held("offer_comes_again").await;
                offer.give(held, Contention::None, &target).await;
                let _ = released.send(());
            }
        };
        let mut asking = Box::pin(ask((), job));
        assert!(!poll_once(asking.as_mut()).await);
        polled.add_permits(1);
        is_released.recv_timeout(HANG).unwrap();
        let Ok(Ok(Attempt::Acquired(_))) = asking.await else { panic!("the lock is free") };
        assert!(jobs.available_permits() > 1);
    }
}
