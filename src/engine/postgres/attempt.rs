//! One try or one wait, as a job of the driver.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::claim::{self, Offer};
use super::config::Lock;
use super::failure::Failure;
use super::held::PostgresHeld;
use super::server::Server;
use super::session::{Session, Tried};
use crate::engine::contract::{Attempt, BoxFuture, Contention, Grant, Waiter};
use crate::engine::server::driver;
use crate::words::error::LockError;
use crate::words::mode::Mode;

/// What asks a server for a lock, again and again if it has to.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) lock: Arc<Lock>,
    pub(super) mode: Mode,
    /// Whether it waits for the holder.
    pub(super) waits: bool,
}

type Outcome<Turn> = Result<Attempt<Turn>, LockError>;

impl Request {
    /// Dropping this future ends the request. The driver keeps the turn until nothing of it is left.
    pub(super) async fn get<Turn: std::fmt::Debug + Send + 'static>(self, mut turn: Turn) -> Outcome<Turn> {
        loop {
            let (offer, claim) = claim::channel();
            let (back, returned) = oneshot::channel();
            driver::spawn(self.clone().run(turn, offer, back)).map_err(|error| self.failed(error.into()))?;
            if let Some(outcome) = claim.value().await {
                return outcome;
            }
            // The lock came while this task was not polled, and has been given back.
            turn = returned
                .await
                .map_err(|_| self.failed(std::io::Error::other("an internal task for the server panicked").into()))?;
        }
    }

    fn failed(&self, failure: Failure) -> LockError {
        failure.into_error(&self.lock.target, if self.waits { "wait for" } else { "try for" })
    }

    async fn run<Turn: std::fmt::Debug + Send + 'static>(
        self,
        turn: Turn,
        mut offer: Offer<Outcome<Turn>>,
        back: oneshot::Sender<Turn>,
    ) {
        let server = Server::with(&self.lock.settings);
        match self.ask(&server, &mut offer).await {
            // The task has gone. The end of this function gives the turn back.
            None => {}
            Some(Err(failure)) => {
                // The turn goes first, so that the task can try again as soon as it hears of the failure.
                drop(turn);
                offer.tell(Err(self.failed(failure)));
            }
            Some(Ok((session, Tried::Busy))) => {
                server.keep_warm(session);
                let waiter: Box<dyn Waiter<Turn>> = Box::new(Self { waits: true, ..self });
                offer.tell(Ok(Attempt::Busy(turn, waiter)));
            }
            Some(Ok((session, Tried::Granted(grant)))) => {
                let held = Box::new(PostgresHeld::new(&server, session, self.lock.number, self.mode, &grant));
                let contention = if self.waits { Contention::Waited } else { Contention::None };
                let grant = Grant { held, turn, taken_over: None, contention };
                if let Err(Ok(Attempt::Acquired(Grant { held, turn, .. }))) =
                    offer.give(Ok(Attempt::Acquired(grant))).await
                {
                    let _ = held.release(&self.lock.target).get().await;
                    let _ = back.send(turn);
                }
            }
        }
    }

    /// `None` if the task has gone. Then nothing is left at the server.
    async fn ask<T>(&self, server: &Arc<Server>, offer: &mut Offer<T>) -> Option<Result<(Session, Tried), Failure>> {
        loop {
            let session = async {
                server.released(self.lock.number.key).await;
                server.session().await
            };
            let (mut session, is_warm) = tokio::select! {
                () = offer.abandoned() => return None,
                session = session => match session {
                    Ok(session) => session,
                    Err(failure) => return Some(Err(failure)),
                },
            };
            let tried = match self.waits {
                true => self.wait(&mut session, offer).await,
                false => Some(session.try_lock(self.lock.number, self.mode).await),
            };
            match tried {
                Some(Ok(tried)) => return Some(Ok((session, tried))),
                Some(Err(failure)) if failure.is_end_of_session() && is_warm => {}
                Some(Err(failure)) => {
                    session.give_up().await;
                    return Some(Err(failure));
                }
                None => {
                    session.give_up().await;
                    return None;
                }
            }
        }
    }

    /// Waits for one slice of time after another, until the lock is there. `None` if the task has gone.
    async fn wait<T>(&self, session: &mut Session, offer: &mut Offer<T>) -> Option<Result<Tried, Failure>> {
        loop {
            match self.wait_for_slice(session, offer).await? {
                Ok(Tried::Busy) => {}
                Ok(Tried::Granted(grant)) => return Some(self.confirm(session).await.map(|()| Tried::Granted(grant))),
                Err(failure) => return Some(Err(failure)),
            }
        }
    }

    async fn wait_for_slice<T>(&self, session: &mut Session, offer: &mut Offer<T>) -> Option<Result<Tried, Failure>> {
        let canceler = session.canceler();
        let mut slice = std::pin::pin!(session.wait(self.lock.number, self.mode));
        tokio::select! {
            tried = &mut slice => Some(tried),
            () = offer.abandoned() => {
                // If the server cannot be asked to end the slice, the slice ends by itself.
                let _ = canceler.cancel().await;
                let _ = slice.await;
                None
            }
        }
    }

    /// Makes the lease long enough: it counts from the beginning of the slice, which may be long ago.
    async fn confirm(&self, session: &mut Session) -> Result<(), Failure> {
        match session.sent().elapsed() < self.lock.settings.beat() / 2 {
            true => Ok(()),
            false => session.beat(self.lock.settings.connect_timeout).await,
        }
    }
}

impl<Turn: std::fmt::Debug + Send + 'static> Waiter<Turn> for Request {
    fn wait(self: Box<Self>, turn: Turn, _had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>> {
        Box::pin(async move {
            match self.get(turn).await? {
                Attempt::Acquired(grant) => Ok(grant),
                Attempt::Busy(..) => unreachable!("a request that waits is not refused"),
            }
        })
    }
}
