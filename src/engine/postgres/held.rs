//! A held lock: a session that a job of the driver keeps alive, until the lock is released or lost.

use std::mem;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::config::LockNumber;
use super::failure::Failure;
use super::server::Server;
use super::session::Session;
use super::token;
use crate::engine::contract::{Answer, BoxFuture, Held};
use crate::engine::server::driver;
use crate::engine::server::lease::Lease;
use crate::sys::process::Owner;
use crate::words::error::{LockError, LostReason};
use crate::words::mode::Mode;
use crate::words::target::Target;

#[derive(Debug)]
pub(super) struct PostgresHeld {
    /// `None` once the release has begun.
    parts: Option<Parts>,
    token: Option<u64>,
    lease: Arc<Lease>,
    owner: Owner,
}

#[derive(Debug)]
struct Parts {
    server: Arc<Server>,
    key: i64,
    lost: watch::Receiver<Option<LostReason>>,
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
            Self::Lost(reason) => LockError::lost(&target.path, reason),
            Self::Failed(failure) => failure.into_error(target, "release"),
        }
    }
}

impl PostgresHeld {
    /// To be called on the driver. `session` has just got the lock, with `grant`.
    pub(super) fn new(server: &Arc<Server>, session: Session, lock: LockNumber, mode: Mode, grant: &str) -> Self {
        let lease = Arc::new(Lease::new(server.settings.ttl, session.sent()));
        let (order, ordered) = oneshot::channel();
        let (is_lost, lost) = watch::channel(None);
        let server = Arc::clone(server);
        let keeper = Keeper { server: Arc::clone(&server), session, lock, mode, lease: Arc::clone(&lease), is_lost };
        let parts = Parts { server, key: lock.key, lost, order };
        // On the driver's own thread, this cannot fail. If it failed, the keeper would be dropped: a lost lock.
        let _ = driver::spawn(keeper.keep(ordered));
        Self { parts: Some(parts), token: token::parse(grant), lease, owner: Owner::this_process() }
    }

    /// Sends the order to release before this returns.
    fn begin_release(&mut self) -> impl Future<Output = Result<(), Unreleased>> + Send + use<> {
        let parts = self.parts.take().map(|Parts { server, key, lost, order }| {
            server.begin_release(key);
            let (released, answer) = oneshot::channel();
            // A keeper that has lost the lock has ended, and the order is dropped.
            drop(order.send(Order { released, _releasing: Releasing { server, key } }));
            (answer, lost)
        });
        async move {
            let (answer, lost) = parts.expect("a lock is released once");
            let reason = move || lost.borrow().unwrap_or(LostReason::Disconnected);
            answer.await.unwrap_or_else(|_| Err(Unreleased::Lost(reason())))
        }
    }

    fn why_lost(&self) -> Option<LostReason> {
        let lost = self.parts.as_ref().and_then(|parts| *parts.lost.borrow());
        lost.or_else(|| (!self.lease.is_alive()).then_some(LostReason::Expired))
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
        self.why_lost().map_or(Ok(()), Err)
    }

    fn lost<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, LostReason> {
        let lost = self.parts.as_ref().map(|parts| parts.lost.clone());
        Box::pin(async move {
            let Some(mut lost) = lost else { return std::future::pending().await };
            match lost.wait_for(Option::is_some).await.map(|reason| *reason) {
                Ok(reason) => reason.expect("it was waited for"),
                // The keeper has panicked.
                Err(_) => LostReason::Disconnected,
            }
        })
    }

    fn is_of_this_process(&self) -> bool {
        self.owner.is_this_process()
    }

    fn is_slow_to_release(&self) -> bool {
        true
    }

    fn release(mut self: Box<Self>, target: &Target) -> Answer<Result<(), LockError>> {
        let releasing = self.begin_release();
        let target = target.clone();
        Answer::Later(Box::pin(async move { releasing.await.map_err(|unreleased| unreleased.into_error(&target)) }))
    }

    /// This can only send the order. It does not hear of a failure of the keeper.
    fn release_now(mut self: Box<Self>, target: &Target) -> Result<(), LockError> {
        let lost = self.why_lost();
        drop(self.begin_release());
        lost.map_or(Ok(()), |reason| Err(LockError::lost(&target.path, reason)))
    }

    fn token(&self) -> Option<u64> {
        self.token
    }
}

/// The job that has the session of a held lock.
#[derive(Debug)]
struct Keeper {
    server: Arc<Server>,
    session: Session,
    lock: LockNumber,
    mode: Mode,
    lease: Arc<Lease>,
    is_lost: watch::Sender<Option<LostReason>>,
}

impl Keeper {
    async fn keep(mut self, mut ordered: oneshot::Receiver<Order>) {
        let lease = Arc::clone(&self.lease);
        loop {
            let until_beat = self.server.settings.beat().saturating_sub(self.session.sent().elapsed());
            let kept = tokio::select! {
                biased;
                () = lease.expired() => Err(LostReason::Expired),
                () = self.session.ended() => Err(LostReason::Disconnected),
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
                self.lease.end();
                self.is_lost.send_replace(Some(reason));
                return;
            }
        }
    }

    async fn beat(&mut self) -> Result<(), LostReason> {
        let left = self.lease.left().ok_or(LostReason::Expired)?;
        match self.session.beat(left).await {
            Ok(()) => self.lease.renew(self.session.sent()),
            // The next beat follows at once.
            Err(failure) if failure.is_canceled() => {}
            Err(Failure::NoAnswer(_)) => return Err(LostReason::Expired),
            Err(_) => return Err(LostReason::Disconnected),
        }
        Ok(())
    }

    async fn release(mut self, order: Option<Order>) {
        let released = self.unlock().await;
        self.lease.end();
        if matches!(released, Ok(())) {
            self.server.keep_warm(self.session);
        }
        if let Some(Order { released: answer, _releasing }) = order {
            drop(_releasing);
            drop(answer.send(released));
        }
    }

    async fn unlock(&mut self) -> Result<(), Unreleased> {
        loop {
            let left = self.lease.left().ok_or(Unreleased::Lost(LostReason::Expired))?;
            let limit = left.min(self.server.settings.connect_timeout);
            return match self.session.unlock(self.lock, self.mode, limit).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Unreleased::Lost(LostReason::Disconnected)),
                Err(failure) if failure.is_canceled() => continue,
                Err(failure) if failure.is_end_of_session() => Err(Unreleased::Lost(LostReason::Disconnected)),
                Err(failure) => Err(Unreleased::Failed(failure)),
            };
        }
    }
}
