//! The lease of this process in a cluster, under which all its keys are.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::cluster::Cluster;
use super::failure::Failure;
use super::grpc::Channel;
use super::keys;
use super::proto::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};
use crate::engine::server::driver;
use crate::engine::server::lease::{Lease, Moment};

/// The leases that this process has in a cluster. One of them takes new locks.
pub(super) struct Sessions {
    cluster: Arc<Cluster>,
    current: AsyncMutex<Option<Arc<Session>>>,
}

/// A lease, and the task that keeps it.
pub(super) struct Session {
    pub(super) id: i64,
    pub(super) lease: Arc<Lease>,
    /// Closed when the lease is over. So one timer is enough for all locks.
    over: Arc<Semaphore>,
    /// A key that this process may read. It need not be there.
    key: Vec<u8>,
    /// Between two beats.
    interval: Duration,
    /// Whether somebody has asked for a key since the last beat.
    is_in_use: AtomicBool,
    /// Whether a request for a key has had no answer, so that the server may make that key at any time. Then the session
    /// takes no new locks, and its task deletes what nobody here owns.
    is_in_doubt: AtomicBool,
    /// The keys that somebody here has, or tries to get.
    keys: Mutex<HashSet<Vec<u8>>>,
}

impl Sessions {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, current: AsyncMutex::default() }
    }

    /// The session for a new key of the lock `name`. If there is none, the first caller gets a lease from the server.
    pub(super) async fn current(self: &Arc<Self>, name: &str, deadline: Instant) -> Result<Arc<Session>, Failure> {
        let current = timeout_at(deadline, self.current.lock()).await;
        let mut current = current.map_err(|_| Failure::no_connection())?;
        if let Some(session) = current.as_ref().filter(|session| session.takes_locks()) {
            session.is_in_use.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(session));
        }
        let session = Session::begin(&self.cluster, name, deadline).await?;
        driver::spawn(Arc::clone(&session).keep(Arc::clone(self))).map_err(Failure::not_sent)?;
        let (lease, over) = (Arc::clone(&session.lease), Arc::clone(&session.over));
        let closing = async move {
            lease.expired().await;
            over.close();
        };
        driver::spawn(closing).map_err(Failure::not_sent)?;
        Ok(Arc::clone(current.insert(session)))
    }
}

impl Session {
    async fn begin(cluster: &Cluster, name: &str, deadline: Instant) -> Result<Arc<Self>, Failure> {
        let ttl = i64::try_from(cluster.config.ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = cluster.call(&LeaseGrantRequest { ttl }, deadline).await?;
        // The server may grant more than was asked for: its shortest lease depends on its election timeout.
        let ttl = Duration::from_secs(granted.value.ttl.unsigned_abs());
        Ok(Arc::new(Self {
            id: granted.value.id,
            lease: Arc::new(Lease::new(ttl, granted.sent)),
            over: Arc::new(Semaphore::new(0)),
            key: keys::key(name, granted.value.id),
            interval: ttl / 3,
            is_in_use: AtomicBool::new(true),
            is_in_doubt: AtomicBool::new(false),
            keys: Mutex::default(),
        }))
    }

    fn takes_locks(&self) -> bool {
        self.lease.is_alive() && !self.is_in_doubt.load(Ordering::Relaxed)
    }

    /// Resolves when the lease has run out.
    pub(super) async fn expired(&self) {
        let closed = self.over.acquire().await;
        debug_assert!(closed.is_err(), "nobody gives a permit");
    }

    pub(super) fn set_in_doubt(&self) {
        self.is_in_doubt.store(true, Ordering::Relaxed);
    }

    pub(super) fn keys(&self) -> MutexGuard<'_, HashSet<Vec<u8>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the lease while a lock needs it. A lease without locks ends at the second beat.
    async fn keep(self: Arc<Self>, sessions: Arc<Sessions>) {
        let cluster = &sessions.cluster;
        loop {
            sleep(self.interval).await;
            if self.end_if_idle(&sessions) || !self.renew(cluster).await {
                break;
            }
            if self.is_in_doubt.load(Ordering::Relaxed) {
                self.delete_unowned(cluster).await;
            }
        }
        self.lease.end();
        self.over.close();
        // Keys that are left under the lease would keep others waiting until its end.
        let _ = cluster.call(&LeaseRevokeRequest { id: self.id }, cluster.deadline()).await;
    }

    /// Whether nobody has used the lease since the last beat. From then on nobody gets it.
    fn end_if_idle(self: &Arc<Self>, sessions: &Sessions) -> bool {
        // Somebody who has the mutex is getting a new lease. So nobody gets this one.
        let Ok(mut current) = sessions.current.try_lock() else { return false };
        let is_current = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, self));
        let others = Arc::strong_count(self) - 1 - usize::from(is_current);
        let is_idle = others == 0 && !self.is_in_use.swap(false, Ordering::Relaxed);
        if is_idle && is_current {
            *current = None;
        }
        is_idle
    }

    /// Asks the server to keep the lease, until it answers or the lease has run out.
    async fn renew(&self, cluster: &Cluster) -> bool {
        // A member asks its leader, and does not answer while the leader does not. Once there is another leader, it
        // answers a new request.
        let patience = self.interval / 5;
        while let Some(left) = self.lease.left() {
            let (id, key) = (self.id, self.key.clone());
            let ask = move |channel| keep_alive(channel, id, key.clone());
            match cluster.ask_beside(ask, patience, Instant::now() + left).await {
                Ok((ttl, sent)) if !ttl.is_zero() => {
                    self.lease.renew_for(ttl, sent);
                    return self.lease.is_alive();
                }
                Ok(_) => return false,
                Err(failure) if failure.is_lease_gone() => return false,
                Err(_) => sleep(patience).await,
            }
        }
        false
    }

    /// Deletes the keys of this lease that nobody here has or tries to get. No new ones come, for the session takes no new
    /// locks.
    async fn delete_unowned(&self, cluster: &Cluster) {
        let request = LeaseTimeToLiveRequest { id: self.id, keys: true };
        let Ok(answered) = cluster.call(&request, cluster.deadline()).await else { return };
        for key in answered.value.keys {
            if !self.keys().contains(&key) {
                let _ = cluster.call(&DeleteRangeRequest { key }, cluster.deadline()).await;
            }
        }
    }
}

/// Asks a member to keep the lease. Returns how long it keeps it, and from which moment that counts. It is no time if the
/// member knows no such lease.
///
/// A leader whose disk hangs may have a successor, and keeps leases all the same (issue 15247 of etcd). So the member first
/// reads a key, for which the leader needs the other members. A leader that was replaced later than that counts: each new
/// one gives every lease its whole time.
async fn keep_alive(channel: Channel, id: i64, key: Vec<u8>) -> Result<(Duration, Moment), Failure> {
    let began = Moment::now();
    match channel.call(&keys::get(&key)).await {
        Err(failure) if failure.is_passing() => return Err(failure),
        // The leader is asked before the member looks whether we may read the key.
        Ok(_) | Err(_) => {}
    }
    // `etcd grpc-proxy` drops the request if its stream ends with it. It also answers with what is left of a lease, if the
    // renewal failed.
    let mut stream = channel.stream().await?;
    stream.send(&LeaseKeepAliveRequest { id }, false)?;
    let answer = stream.answer().await?;
    Ok((Duration::from_secs(answer.ttl.max(0).unsigned_abs()), began))
}
