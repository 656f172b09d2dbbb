//! A try for the lock as a job of the driver, and what becomes of it when its caller goes away.

use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::failure::Failure;
use super::held::EtcdHeld;
use super::place::{Claim, Lock, Place};
use crate::engine::server::driver;
use crate::words::mode::Mode;

/// How many leases a try may use, one after another: the server may have ended the last one without our knowledge.
const LEASES: u32 = 3;

/// What a try has got.
pub(super) enum Claimed<Turn> {
    Held(EtcdHeld, Turn),
    /// Somebody else has the lock.
    Busy(Turn),
}

type Answer<Turn> = Result<Unclaimed<Turn>, Failure>;

/// Tries once.
pub(super) async fn attempt<Turn: Send + 'static>(
    lock: &Arc<Lock>,
    mode: Mode,
    turn: Turn,
) -> Result<Claimed<Turn>, Failure> {
    repeat(turn, |turn| {
        let (job, outcome) = Job::new(lock, mode, turn);
        driver::spawn(job.attempt()).map(|()| outcome)
    })
    .await
}

/// Waits for the lock.
pub(super) async fn wait<Turn: Send + 'static>(
    lock: &Arc<Lock>,
    mode: Mode,
    turn: Turn,
) -> Result<Claimed<Turn>, Failure> {
    repeat(turn, |turn| {
        let (job, outcome) = Job::new(lock, mode, turn);
        driver::spawn(job.wait()).map(|()| outcome)
    })
    .await
}

/// Begins a job, and again whenever its lock was taken back before its caller was polled. If the caller goes away, the job
/// ends, releases what it got, and then gives the turn back.
async fn repeat<Turn: Send + 'static>(
    mut turn: Turn,
    begin: impl Fn(Turn) -> io::Result<oneshot::Receiver<Answer<Turn>>>,
) -> Result<Claimed<Turn>, Failure> {
    loop {
        let answer = begin(turn).map_err(Failure::not_sent)?.await;
        let answer =
            answer.map_err(|_| Failure::not_sent(io::Error::other("an internal task for the server panicked")))?;
        match answer?.claim() {
            Claimed::Held(held, back) if !held.claim() => {
                let _ = held.begin_release().await;
                turn = back;
            }
            claimed => return Ok(claimed),
        }
    }
}

struct Job<Turn: Send + 'static> {
    lock: Arc<Lock>,
    mode: Mode,
    turn: Turn,
    caller: oneshot::Sender<Answer<Turn>>,
}

impl<Turn: Send + 'static> Job<Turn> {
    fn new(lock: &Arc<Lock>, mode: Mode, turn: Turn) -> (Self, oneshot::Receiver<Answer<Turn>>) {
        let (caller, outcome) = oneshot::channel();
        (Self { lock: Arc::clone(lock), mode, turn, caller }, outcome)
    }

    async fn attempt(mut self) {
        match self.make(Claim::make_if_free).await {
            Some(Ok(Some(place))) => self.hold(place, false),
            Some(Ok(None)) => drop(self.caller.send(Ok(Unclaimed::new(Claimed::Busy(self.turn))))),
            Some(Err(failure)) => self.fail(failure),
            None => {}
        }
    }

    async fn wait(mut self) {
        let place = match self.make(Claim::queue_up).await {
            Some(Ok(place)) => place,
            Some(Err(failure)) => return self.fail(failure),
            None => return,
        };
        let reached = tokio::select! {
            reached = place.reach_front() => Some(reached),
            () = self.caller.closed() => None,
        };
        match reached {
            Some(Ok(())) => return self.hold(place, true),
            Some(Err(failure)) => self.fail(failure),
            // The turn is given back when nothing is left of the key.
            None => return place.delete_at_last().await,
        }
        place.delete_at_last().await;
    }

    /// Makes a claim and calls `make` with it. `None` if the caller goes away before that.
    async fn make<T, F>(&mut self, make: impl Fn(Claim) -> F) -> Option<Result<T, Failure>>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut leases = 0;
        loop {
            let claim = tokio::select! {
                claim = Claim::new(&self.lock, self.mode) => claim,
                () = self.caller.closed() => return None,
            };
            leases += 1;
            match claim.map(&make) {
                Err(failure) => return Some(Err(failure)),
                Ok(making) => match making.await {
                    Err(failure) if failure.is_lease_gone() && leases < LEASES => {}
                    made => return Some(made),
                },
            }
        }
    }

    fn hold(self, place: Place, tells_since: bool) {
        match EtcdHeld::new(place, tells_since) {
            Ok(held) => drop(self.caller.send(Ok(Unclaimed::new(Claimed::Held(held, self.turn))))),
            Err(failure) => self.fail(failure),
        }
    }

    fn fail(self, failure: Failure) {
        drop(self.turn);
        drop(self.caller.send(Err(failure)));
    }
}

/// What a try has got, on its way to the caller.
struct Unclaimed<Turn: Send + 'static>(Option<Claimed<Turn>>);

impl<Turn: Send + 'static> Unclaimed<Turn> {
    fn new(claimed: Claimed<Turn>) -> Self {
        Self(Some(claimed))
    }

    fn claim(mut self) -> Claimed<Turn> {
        self.0.take().expect("only this takes it")
    }
}

impl<Turn: Send + 'static> Drop for Unclaimed<Turn> {
    fn drop(&mut self) {
        if let Some(Claimed::Held(held, turn)) = self.0.take() {
            let releasing = async move {
                let _ = held.begin_release().await;
                drop(turn);
            };
            // Where no thread can be started, the job is dropped, and the drop of `held` asks for the release too.
            let _ = driver::spawn(releasing);
        }
    }
}
