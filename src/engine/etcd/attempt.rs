//! One try or one wait, as a job of the driver.

use std::fmt::Debug;
use std::sync::Arc;

use super::failure::Failure;
use super::held::EtcdHeld;
use super::place::{Lock, Place, Reservation};
use crate::engine::contract::{BoxFuture, Contention, Grant, Waiter};
use crate::engine::server::reply::{self, Attempted, Reply};
use crate::words::error::LockError;
use crate::words::mode::Mode;

/// How many leases a try may use, one after another: the server may have ended the last one without our knowledge.
const LEASES: u32 = 3;

/// What asks a cluster for a lock, again and again if it has to.
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
        asked.unwrap_or_else(|error| Err(self.failed(Failure::not_sent(error))))
    }

    fn failed(&self, failure: Failure) -> LockError {
        failure.into_error(&self.lock.target, if self.waits { "wait for" } else { "try for" })
    }

    async fn run<Turn: Debug + Send + 'static>(self, mut reply: Reply<Turn>) {
        let place = match self.place(&mut reply).await {
            // The task has gone. The end of this function gives the turn back.
            None => return,
            Some(Err(failure)) => return reply.fail(self.failed(failure)),
            Some(Ok(None)) => return reply.refuse(Box::new(Self { waits: true, ..self })),
            Some(Ok(Some(place))) => place,
        };
        if self.waits {
            match reply.while_wanted(place.reach_front()).await {
                Some(Ok(())) => {}
                Some(Err(failure)) => {
                    reply.fail(self.failed(failure));
                    return place.delete_at_last().await;
                }
                // The turn is given back when nothing is left of the key.
                None => return place.delete_at_last().await,
            }
        }
        let contention = if self.waits { Contention::Waited } else { Contention::None };
        match EtcdHeld::new(place, self.waits) {
            Ok(held) => reply.give(Box::new(held), contention, &self.lock.target, &self.lock.offer_timeout),
            Err(failure) => reply.fail(self.failed(failure)),
        }
    }

    /// A place in the queue. A request that does not wait wants only the first place; if somebody has it, there is none.
    /// `None` if the task goes away before the place is made.
    async fn place<T: Send + 'static>(&self, reply: &mut Reply<T>) -> Option<Result<Option<Place>, Failure>> {
        let mut leases = 0;
        loop {
            let reservation = match reply.while_wanted(Reservation::new(&self.lock, self.mode)).await? {
                Ok(reservation) => reservation,
                Err(failure) => return Some(Err(failure)),
            };
            leases += 1;
            let made = match self.waits {
                true => reservation.queue_up().await.map(Some),
                false => reservation.make_if_free().await,
            };
            match made {
                Err(failure) if failure.is_lease_gone() && leases < LEASES => {}
                made => return Some(made),
            }
        }
    }
}

impl<Turn: Debug + Send + 'static> Waiter<Turn> for Request {
    fn wait(self: Box<Self>, turn: Turn, _had_rivals: bool) -> BoxFuture<'static, Result<Grant<Turn>, LockError>> {
        Box::pin(async move { reply::granted(self.get(turn).await) })
    }
}
