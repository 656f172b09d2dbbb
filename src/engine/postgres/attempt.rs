//! One try or one wait, as a job of the driver.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::time::{Instant, timeout};

use super::config::Lock;
use super::failure::Failure;
use super::held::PostgresHeld;
use super::server::Server;
use super::session::{Candidate, Session, Tried};
use super::watch::{Turn, Waiting};
use crate::engine::contract::{BoxFuture, Contention, Grant, Waiter};
use crate::engine::server::reply::{self, Attempted, Reply};
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
    pub(super) async fn get<Turn: Debug + Send + 'static>(self, turn: Turn) -> Attempted<Turn> {
        let asked = reply::ask(turn, &self.lock.offer_timeout, |reply| self.clone().run(reply)).await;
        asked.unwrap_or_else(|error| Err(self.failed(error.into())))
    }

    fn failed(&self, failure: Failure) -> LockError {
        failure.into_error(&self.lock.target, if self.waits { "wait for" } else { "try for" })
    }

    async fn run<Turn: Debug + Send + 'static>(self, mut reply: Reply<Turn>) {
        let server = Server::with(&self.lock.settings);
        match self.ask(&server, &mut reply).await {
            // The task has gone. The end of this function gives the turn back.
            None => {}
            Some(Err(failure)) => reply.fail(self.failed(failure)),
            Some(Ok((session, Tried::Busy))) => {
                server.keep_warm(session);
                reply.refuse(Box::new(Self { waits: true, ..self }));
            }
            Some(Ok((session, Tried::Granted(grant)))) => {
                let held = Box::new(PostgresHeld::new(&server, session, self.lock.number, self.mode, &grant));
                let contention = if self.waits { Contention::Waited } else { Contention::None };
                reply.give(held, contention, &self.lock.target, &self.lock.offer_timeout);
            }
        }
    }

    /// `None` if the task has gone. Then nothing is left at the server.
    async fn ask<T: Send + 'static>(
        &self,
        server: &Arc<Server>,
        reply: &mut Reply<T>,
    ) -> Option<Result<(Session, Tried), Failure>> {
        match self.waits {
            false => self.try_once(server, reply).await,
            true => {
                let mut waiting = Waiting::begin(server, self.lock.number, self.mode);
                let got = self.wait(server, &mut waiting, reply).await;
                match got {
                    // The lease runs.
                    Some(Ok(_)) => drop(timeout(self.lock.settings.beat(), waiting.end()).await),
                    _ => waiting.end().await,
                }
                got
            }
        }
    }

    /// Tries whenever it is the turn of this wait, until the lock is there.
    async fn wait<T: Send + 'static>(
        &self,
        server: &Arc<Server>,
        waiting: &mut Waiting,
        reply: &mut Reply<T>,
    ) -> Option<Result<(Session, Tried), Failure>> {
        let mut failing = None;
        loop {
            match reply.while_wanted(waiting.turn()).await? {
                Turn::Try => {}
                Turn::Granted(session, grant) => return Some(Ok((*session, Tried::Granted(grant)))),
                Turn::Failed(failure) => return Some(Err(failure)),
            }
            let began = Instant::now();
            match self.try_once(server, reply).await? {
                Ok((session, Tried::Busy)) => {
                    failing = None;
                    server.keep_warm(session);
                }
                // It may be about to restart. Then its holders have lost the lock, too.
                Err(_) if failing.get_or_insert(began).elapsed() < self.lock.settings.connect_timeout => {}
                tried => return Some(tried),
            }
        }
    }

    async fn try_once<T: Send + 'static>(
        &self,
        server: &Arc<Server>,
        reply: &mut Reply<T>,
    ) -> Option<Result<(Session, Tried), Failure>> {
        loop {
            let session = async {
                server.released(self.lock.number.key).await;
                server.session().await
            };
            let (mut session, is_warm) = match reply.while_wanted(session).await? {
                Ok(session) => session,
                Err(failure) => return Some(Err(failure)),
            };
            let candidate = if self.waits { Candidate::First } else { Candidate::New };
            match session.try_lock(self.lock.number, self.mode, candidate).await {
                Ok(tried) => return Some(Ok((session, tried))),
                Err(failure) if failure.is_end_of_session() && is_warm => {}
                Err(failure) => {
                    session.give_up().await;
                    return Some(Err(failure));
                }
            }
        }
    }
}

impl<Turn: Debug + Send + 'static> Waiter<Turn> for Request {
    fn wait(self: Box<Self>, turn: Turn, _had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>> {
        Box::pin(async move { reply::granted(self.get(turn).await) })
    }
}
