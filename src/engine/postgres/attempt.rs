//! One try or one wait, as a job of the driver.

use std::fmt::Debug;
use std::sync::Arc;

use super::config::Lock;
use super::failure::Failure;
use super::held::PostgresHeld;
use super::server::Server;
use super::session::{Session, Tried};
use crate::engine::contract::{BoxFuture, Contention, Grant, Waiter};
use crate::engine::server::offer::{self, Offer, Outcome};
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

impl Request {
    /// Dropping this future ends the request. The driver keeps the turn until nothing of it is left.
    pub(super) async fn get<Turn: Debug + Send + 'static>(self, turn: Turn) -> Outcome<Turn> {
        let asked = offer::ask(turn, |offer| self.clone().run(offer)).await;
        asked.unwrap_or_else(|error| Err(self.failed(error.into())))
    }

    fn failed(&self, failure: Failure) -> LockError {
        failure.into_error(&self.lock.target, if self.waits { "wait for" } else { "try for" })
    }

    async fn run<Turn: Debug + Send + 'static>(self, mut offer: Offer<Turn>) {
        let server = Server::with(&self.lock.settings);
        match self.ask(&server, &mut offer).await {
            // The task has gone. The end of this function gives the turn back.
            None => {}
            Some(Err(failure)) => offer.fail(self.failed(failure)),
            Some(Ok((session, Tried::Busy))) => {
                server.keep_warm(session);
                offer.refuse(Box::new(Self { waits: true, ..self }));
            }
            Some(Ok((session, Tried::Granted(grant)))) => {
                let held = Box::new(PostgresHeld::new(&server, session, self.lock.number, self.mode, &grant));
                let contention = if self.waits { Contention::Waited } else { Contention::None };
                offer.give(held, contention, &self.lock.target).await;
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
            let (mut session, is_warm) = match offer.while_wanted(session).await? {
                Ok(session) => session,
                Err(failure) => return Some(Err(failure)),
            };
            let tried = match self.waits {
                true => self.wait(&mut session, offer).await,
                false => Some(session.try_lock(self.lock.number, self.mode).await),
            };
            let nothing = match tried {
                Some(Ok(tried)) => return Some(Ok((session, tried))),
                Some(Err(failure)) if failure.is_end_of_session() && is_warm => continue,
                Some(Err(failure)) => Some(Err(failure)),
                None => None,
            };
            session.give_up().await;
            return nothing;
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
        let tried = offer.while_wanted(&mut slice).await;
        if tried.is_none() {
            // If the server cannot be asked to end the slice, the slice ends by itself.
            let _ = canceler.cancel().await;
            let _ = slice.await;
        }
        tried
    }

    /// Makes the lease long enough: it counts from the beginning of the slice, which may be long ago.
    async fn confirm(&self, session: &mut Session) -> Result<(), Failure> {
        match session.sent().elapsed() < self.lock.settings.beat() / 2 {
            true => Ok(()),
            false => session.beat(self.lock.settings.connect_timeout).await,
        }
    }
}

impl<Turn: Debug + Send + 'static> Waiter<Turn> for Request {
    fn wait(self: Box<Self>, turn: Turn, _had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>> {
        Box::pin(async move { offer::granted(self.get(turn).await) })
    }
}
