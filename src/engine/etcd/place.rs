//! A place in the queue of a lock: a key that this process has made, until it is deleted.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::cluster::Cluster;
use super::config::Config;
use super::failure::Failure;
use super::proto::{DeleteRangeRequest, Outcome, PutRequest, RangeResponse, TxnRequest, TxnResponse};
use super::session::Session;
use super::{keys, value};
use crate::engine::server::driver;
use crate::sys::offer::OfferTimeout;
use crate::words::error::LostReason;
use crate::words::mode::Mode;
use crate::words::target::Target;

/// The pause before a request that has failed is made again.
const PAUSE: Duration = Duration::from_millis(50);

/// One lock in one cluster.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) target: Arc<Target>,
    pub(super) config: Config,
    pub(super) name: String,
    pub(super) offer_timeout: OfferTimeout,
}

/// The right to make the one key that this process may have for a lock.
pub(super) struct Reservation {
    client: Arc<Client>,
    session: Arc<Session>,
    lock: Arc<Lock>,
    mode: Mode,
    key: Vec<u8>,
    /// Kept until nothing is left of the key.
    _name: OwnedMutexGuard<()>,
}

/// A key that is there.
pub(super) struct Place {
    reservation: Reservation,
    /// At which revision of the cluster's data it was made.
    revision: i64,
}

impl Reservation {
    /// Cancel safe: nothing is left at the server but a lease, which ends by itself.
    pub(super) async fn new(lock: &Arc<Lock>, mode: Mode) -> Result<Self, Failure> {
        let client = Client::of(&lock.config).map_err(Failure::not_sent)?;
        let deadline = client.cluster.deadline();
        let name = client.name(&lock.name, deadline).await?;
        let session = client.sessions.current(&lock.name, deadline).await?;
        let key = keys::key(&lock.name, session.id);
        session.keys().insert(key.clone());
        Ok(Self { client, session, lock: Arc::clone(lock), mode, key, _name: name })
    }

    /// The place in front of the queue, if the lock is free.
    pub(super) async fn make_if_free(self) -> Result<Option<Place>, Failure> {
        let seen = match self.mode {
            Mode::Exclusive => 0,
            Mode::Shared => {
                let looked = self.cluster().call(&keys::queue(&self.lock.name), self.cluster().deadline()).await?.value;
                if !looked.kvs.iter().all(|key| value::is_shared(&key.value)) {
                    return Ok(None);
                }
                revision(&looked)
            }
        };
        let put = self.put(Some(SystemTime::now()));
        let request = keys::make_if_none_after(&self.lock.name, seen, put);
        self.make(request).await
    }

    /// The last place in the queue.
    pub(super) async fn queue_up(self) -> Result<Place, Failure> {
        let request = keys::make(self.put(None));
        let made = self.make(request).await?;
        made.ok_or_else(|| Failure::broken(io::Error::other("the server has neither made the key nor found it")))
    }

    /// Once this is polled, it must not be dropped: the server may make the key all the same.
    async fn make(self, request: TxnRequest) -> Result<Option<Place>, Failure> {
        let made = self.cluster().call(&request, self.cluster().deadline()).await;
        let is_in_doubt = match &made {
            Ok(answered) => answered.is_in_doubt,
            Err(failure) => failure.is_in_doubt(),
        };
        if is_in_doubt {
            self.session.set_in_doubt();
        }
        match made {
            Ok(answered) => Ok(self.made_at(&answered.value).map(|revision| Place { reservation: self, revision })),
            Err(failure) => {
                if failure.is_lease_gone() {
                    self.session.lease.end();
                }
                if is_in_doubt {
                    driver::spawn(self.unmake()).map_err(Failure::not_sent)?;
                }
                Err(failure)
            }
        }
    }

    /// The revision of the key, if it is there. A key that was there before is that of an earlier try of the same call.
    fn made_at(&self, answer: &TxnResponse) -> Option<i64> {
        if answer.succeeded {
            return answer.header.as_ref().map(|header| header.revision);
        }
        let Some(Outcome::Range(existing)) = answer.responses.first()?.response.as_ref() else { return None };
        existing.kvs.first().map(|key| key.create_revision)
    }

    /// Deletes a key of which nobody knows whether it is there.
    async fn unmake(self) {
        let request = DeleteRangeRequest { key: self.key.clone() };
        while let Err(failure) = self.cluster().call(&request, self.cluster().deadline()).await {
            if !failure.is_passing() || !self.session.lease.is_alive() {
                break;
            }
            sleep(PAUSE).await;
        }
    }

    fn cluster(&self) -> &Cluster {
        &self.client.cluster
    }

    fn put(&self, since: Option<SystemTime>) -> PutRequest {
        let value = self.client.signature.value(self.mode, since);
        PutRequest { key: self.key.clone(), value, lease: self.session.id }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.session.keys().remove(&self.key);
    }
}

impl Place {
    /// A number that grows with every change of holder.
    pub(super) fn token(&self) -> u64 {
        self.revision.unsigned_abs()
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.reservation.session
    }

    /// Waits until the lock is ours. Cancel safe.
    pub(super) async fn reach_front(&self) -> Result<(), Failure> {
        let Reservation { client, session, lock, mode, key, .. } = &self.reservation;
        // Ours, and the one in front of it. A reader looks for a writer among all that are in front.
        let queue = match *mode {
            Mode::Exclusive => keys::last_two_up_to(&lock.name, self.revision),
            Mode::Shared => keys::queue_up_to(&lock.name, self.revision),
        };
        loop {
            // This look also shows that our lease has not ended while we waited: our key would be gone.
            let looked = client.looks.look(queue.clone()).await?;
            let now = revision(&looked);
            let mut found = looked.kvs.into_iter();
            if found.next().is_none_or(|first| first.key != *key || !session.lease.is_alive()) {
                return Err(Failure::place_lost());
            }
            let blocks = |value: &[u8]| *mode == Mode::Exclusive || !value::is_shared(value);
            let Some(ahead) = found.find(|ahead| blocks(&ahead.value)) else { return Ok(()) };
            let watched: [&[u8]; 2] = [&ahead.key, key];
            tokio::select! {
                is_deleted = client.watches.deletion(&watched, now.saturating_add(1)) => if !is_deleted {
                    client.watches.pause().await;
                },
                () = session.expired() => return Err(Failure::place_lost()),
            }
        }
    }

    /// Writes into the value of the key since when the lock is held.
    pub(super) async fn tell_since(&self, since: SystemTime) {
        let request = keys::rewrite(self.revision, self.reservation.put(Some(since)));
        // Only people read it.
        let _ = self.reservation.cluster().call(&request, self.reservation.cluster().deadline()).await;
    }

    /// Resolves when the key is gone or can no longer be seen, or when the lease may have ended and the key with it.
    pub(super) async fn lost(&self) -> LostReason {
        tokio::select! {
            reason = self.gone() => reason,
            () = self.reservation.session.expired() => LostReason::Expired,
        }
    }

    async fn gone(&self) -> LostReason {
        let Reservation { client, key, .. } = &self.reservation;
        let mut from = self.revision.saturating_add(1);
        while !client.watches.deletion(&[key], from).await {
            client.watches.pause().await;
            // The next watch may not begin where the last one did: that revision may be compacted by now.
            match client.looks.look(keys::get(key)).await {
                Ok(looked) => {
                    if looked.kvs.first().is_none_or(|found| found.create_revision != self.revision) {
                        return LostReason::Removed;
                    }
                    from = revision(&looked).saturating_add(1);
                }
                // Who may not look at his key any more would not hear of its end.
                Err(failure) if failure.is_refusal() => return LostReason::Disconnected,
                Err(_) => {}
            }
        }
        LostReason::Removed
    }

    /// Deletes the key, and returns whether it was still there. This ends when the lease ends: then the server deletes the
    /// key.
    pub(super) async fn delete(&self) -> Result<bool, Failure> {
        let (cluster, key) = (self.reservation.cluster(), &self.reservation.key);
        let left = self.reservation.session.lease.left().ok_or_else(Failure::place_lost)?;
        let deadline = cluster.deadline().min(Instant::now() + left);
        let answered = cluster.call(&keys::delete(key, self.revision), deadline).await?;
        // A try whose answer did not come may have deleted it.
        Ok(answered.value.succeeded || answered.is_in_doubt)
    }

    /// Deletes the key, with as many tries as that needs, before its lease ends.
    pub(super) async fn delete_at_last(&self) {
        while let Err(failure) = self.delete().await {
            if !self.reservation.session.lease.is_alive() {
                return;
            }
            if !failure.is_passing() {
                // The task of the session deletes the key, or the lease ends.
                return self.reservation.session.set_in_doubt();
            }
            sleep(PAUSE).await;
        }
    }
}

fn revision(answer: &RangeResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}
