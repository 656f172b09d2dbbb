//! A held lock: a session that a job of the driver keeps alive, until the lock is released or lost.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::config::LockNumber;
use super::failure::Failure;
use super::server::Server;
use super::session::Session;
use super::token;
use crate::engine::contract::{BoxFuture, End, Held};
use crate::engine::server::driver;
use crate::engine::server::lease::Lease;
use crate::engine::server::loss::{self, Loss, LossSender};
use crate::sys::process::Owner;
use crate::words::error::{LockError, LostReason};
use crate::words::mode::Mode;
use crate::words::target::Target;

#[derive(Debug)]
pub(super) struct PostgresHeld {
    /// `None` once the release has begun.
    parts: Option<Parts>,
    token: Option<u64>,
    owner: Owner,
}

#[derive(Debug)]
struct Parts {
    server: Arc<Server>,
    key: i64,
    loss: Loss,
    order: oneshot::Sender<Order>,
}

/// Tells the keeper to release the lock.
#[derive(Debug)]
struct Order {
    released: oneshot::Sender<Result<(), Unreleased>>,
    _releasing: Releasing,
}

/// Why a lock was not released properly.
#[derive(Debug)]
enum Unreleased {
    Lost(LostReason),
    Failed(Failure),
}

/// While this exists, the next try of this process waits.
#[derive(Debug)]
struct Releasing {
    server: Arc<Server>,
    key: i64,
}

impl Drop for Releasing {
    fn drop(&mut self) {
        self.server.end_release(self.key);
    }
}

impl Unreleased {
    fn into_error(self, target: &Target) -> LockError {
        match self {
            Self::Lost(reason) => target.lost(reason),
            Self::Failed(failure) => failure.into_error(target, "release"),
        }
    }
}

impl PostgresHeld {
    /// To be called on the driver. `session` has just got the lock, with `grant`.
    pub(super) fn new(server: &Arc<Server>, session: Session, lock: LockNumber, mode: Mode, grant: &str) -> Self {
        let lease = Arc::new(Lease::new(server.settings.ttl, session.sent()));
        let (order, ordered) = oneshot::channel();
        let (lost, loss) = loss::channel(Arc::clone(&lease));
        let server = Arc::clone(server);
        let keeper = Box::new(Keeper { lost, server: Arc::clone(&server), session, lock, mode, lease });
        let parts = Parts { server, key: lock.key, loss, order };
        // On the driver's own thread, this cannot fail. If it failed, the keeper would be dropped: a lost lock.
        let _ = driver::spawn(keeper.keep(ordered));
        Self { parts: Some(parts), token: token::parse(grant), owner: Owner::this_process() }
    }

    /// Sends the order to release before this returns.
    fn begin_release(&mut self) -> impl Future<Output = Result<(), Unreleased>> + Send + use<> {
        let Parts { server, key, loss, order } = self.parts.take().expect("a lock is released once");
        server.begin_release(key);
        let (released, answer) = oneshot::channel();
        // A keeper that has lost the lock has ended, and the order is dropped.
        drop(order.send(Order { released, _releasing: Releasing { server, key } }));
        async move { loss.before(answer).await.unwrap_or_else(|reason| Err(Unreleased::Lost(reason))) }
    }

    fn loss(&self) -> &Loss {
        &self.parts.as_ref().expect("only a release takes them").loss
    }
}

impl Drop for PostgresHeld {
    fn drop(&mut self) {
        match self.owner.is_this_process() {
            true if self.parts.is_some() => drop(self.begin_release()),
            true => {}
            // Another thread of the parent may have had a mutex of these at the fork.
            false => mem::forget(self.parts.take()),
        }
    }
}

impl Held for PostgresHeld {
    fn check(&self, _target: &Target) -> Result<(), LostReason> {
        self.loss().check()
    }

    fn lost<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, LostReason> {
        Box::pin(self.loss().wait())
    }

    fn is_of_this_process(&self) -> bool {
        self.owner.is_this_process()
    }

    fn is_slow_to_release(&self) -> bool {
        true
    }

    fn release(mut self: Box<Self>, target: &Target, end: End) {
        let lost = self.loss().check();
        let releasing = self.begin_release();
        if let Err(reason) = lost {
            return end(Err(target.lost(reason)));
        }
        let target = target.clone();
        // Without a thread, nobody hears how the release ends.
        let _ = driver::spawn(async move {
            end(releasing.await.map_err(|unreleased| unreleased.into_error(&target)));
        });
    }

    fn token(&self) -> Option<u64> {
        self.token
    }
}

/// The job that has the session of a held lock.
#[derive(Debug)]
struct Keeper {
    lost: LossSender,
    server: Arc<Server>,
    session: Session,
    lock: LockNumber,
    mode: Mode,
    lease: Arc<Lease>,
}

impl Keeper {
    async fn keep(mut self: Box<Self>, mut ordered: oneshot::Receiver<Order>) {
        let lease = Arc::clone(&self.lease);
        loop {
            let until_beat = match self.session.is_to_wake() {
                true => Duration::ZERO,
                false => self.server.settings.beat().saturating_sub(self.session.sent().elapsed()),
            };
            let kept = tokio::select! {
                biased;
                () = lease.expired() => Err(LostReason::Expired),
                _ = self.session.ended() => Err(LostReason::Disconnected),
                order = &mut ordered => return self.release(order.ok()).await,
                // The server may be silent for long.
                () = tokio::time::sleep(until_beat) => tokio::select! {
                    biased;
                    () = lease.expired() => Err(LostReason::Expired),
                    order = &mut ordered => return self.release(order.ok()).await,
                    beaten = self.beat() => beaten,
                },
            };
            if let Err(reason) = kept {
                return self.lost.send(reason);
            }
        }
    }

    async fn beat(&mut self) -> Result<(), LostReason> {
        let left = self.lease.left().ok_or(LostReason::Expired)?;
        let beaten = match self.session.is_to_wake() {
            true => self.session.wake(self.lock.queue(), left).await,
            false => self.session.beat(left).await,
        };
        match beaten {
            Ok(()) => self.lease.renew(self.session.sent()),
            // The next beat follows at once.
            Err(failure) if failure.is_canceled() => {}
            Err(Failure::NoAnswer(_)) => return Err(LostReason::Expired),
            Err(_) => return Err(LostReason::Disconnected),
        }
        Ok(())
    }

    async fn release(mut self: Box<Self>, order: Option<Order>) {
        let released = self.unlock().await;
        if matches!(released, Ok(())) {
            self.server.keep_warm(self.session);
        }
        if let Some(Order { released: answer, _releasing }) = order {
            drop(_releasing);
            drop(answer.send(released));
        }
    }

    async fn unlock(&mut self) -> Result<(), Unreleased> {
        // No rollback takes a lock of the session again. So a try that was cancelled may have released it.
        let mut was_canceled = false;
        loop {
            let left = self.lease.left().ok_or(Unreleased::Lost(LostReason::Expired))?;
            let limit = left.min(self.server.settings.connect_timeout);
            return match self.session.unlock(self.lock, self.mode, limit).await {
                Ok(had) if had || was_canceled => Ok(()),
                Ok(_) => Err(Unreleased::Lost(LostReason::Disconnected)),
                Err(failure) if failure.is_canceled() => {
                    was_canceled = true;
                    continue;
                }
                Err(failure) if failure.is_end_of_session() => Err(Unreleased::Lost(LostReason::Disconnected)),
                Err(failure) => Err(Unreleased::Failed(failure)),
            };
        }
    }
}
