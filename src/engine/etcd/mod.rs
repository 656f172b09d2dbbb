//! Locks in an etcd cluster.
//!
//! All that talks to the cluster runs on the driver's thread. From the bottom up:
//! - [`proto`] has the messages, [`grpc`] makes calls on one connection, [`connect`] and [`tls`] make the connection.
//! - [`cluster`] makes a call to whichever member answers, and [`failure`] says what a failed call means.
//! - [`watches`] has all watches on one stream, and [`looks`] makes one request of many looks.
//! - [`session`] keeps the lease of this process, under which all its keys are. [`client`] has all that this process has in
//!   a cluster.
//! - [`keys`] and [`value`] say what the keys of a lock look like. [`place`] is one key of ours, from its making to its
//!   deletion.
//! - [`attempt`] is one try or one wait, and [`held`] is a lock that is held.
//!
//! # What may go wrong, and what is done against it
//! - The cluster may carry out a request whose answer did not come, at any time, also after we have given up. So the
//!   lease of this request takes no new locks, and keys under it that nobody in this process owns are deleted until it
//!   ends. A request to delete a key names the revision of the key, so a late one does no harm.
//! - A lease may end while its owner waits (see jepsen.io on etcd 3.4.3). So the look that finds the lock free also shows
//!   that our own key is still there. After it we ask our clock whether the lease goes on.
//! - A leader whose disk hangs keeps leases although it has a successor. So a renewal first reads through the leader.
//! - A process may lose the right to look at a key, and would not hear of its end. So a look that is refused is a loss.
//! - A member may be cut off from the others and answer all the same. So each request asks for a member that has a leader.

mod attempt;
mod client;
mod cluster;
mod config;
mod connect;
mod failure;
#[cfg(tokio_lockfile_fuzz)]
pub(crate) mod fuzz;
mod greeting;
mod grpc;
mod held;
mod keys;
mod looks;
mod place;
mod proto;
mod session;
mod tls;
mod value;
mod watches;

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::contract::{Answer, Attempt, BoxFuture, Engine};
use super::server::{driver, reply};
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::Target;
use attempt::Request;
use client::Client;
use config::Config;
use failure::Failure;
use place::Lock;

#[derive(Debug)]
pub(super) struct Etcd {
    identity: Arc<OsStr>,
    lock: Arc<Lock>,
}

impl Etcd {
    /// Touches no network.
    pub(super) fn new(target: &Arc<Target>) -> Result<Self, LockError> {
        let url = target.url();
        let (config, name) = (Config::new(url)?, url.path.clone());
        let identity = OsString::from(config.identity(&name)).into();
        Ok(Self {
            identity,
            lock: Arc::new(Lock { target: Arc::clone(target), config, name, offer_timeout: reply::offer_timeout() }),
        })
    }
}

impl<Turn: std::fmt::Debug + Send + 'static> Engine<Turn> for Etcd {
    fn identity(&self) -> Option<Arc<OsStr>> {
        Some(Arc::clone(&self.identity))
    }

    fn attempt(&self, mode: Mode, turn: Turn) -> Answer<Result<Attempt<Turn>, LockError>> {
        let request = Request { lock: Arc::clone(&self.lock), mode, waits: false };
        Answer::Later(Box::pin(request.get(turn)))
    }

    fn holders(&self) -> BoxFuture<'static, Result<Vec<Holder>, LockError>> {
        let (lock, asked) = (Arc::clone(&self.lock), Arc::clone(&self.lock));
        let looking = driver::run(async move { holders(&asked).await });
        Box::pin(async move {
            let looked = looking.await.unwrap_or_else(|error| Err(Failure::not_sent(error)));
            looked.map_err(|failure| failure.into_error(&lock.target, "look at"))
        })
    }

    fn last_failure(&self) -> Option<String> {
        Client::last_failure(&self.lock.config)
    }
}

/// The first of the queue; if it reads, all readers that no writer is in front of.
async fn holders(lock: &Lock) -> Result<Vec<Holder>, Failure> {
    let client = Client::of(&lock.config).map_err(Failure::not_sent)?;
    let cluster = &client.cluster;
    let looked = cluster.call(&keys::queue(&lock.name), cluster.deadline()).await?.value;
    let is_shared = |key: &&proto::KeyValue| value::is_shared(&key.value);
    let readers = looked.kvs.iter().take_while(is_shared).count();
    Ok(looked.kvs.iter().take(readers.max(1)).map(|key| value::holder(&key.value)).collect())
}
