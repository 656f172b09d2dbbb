//! What this process has in a cluster: a connection, a lease, and its keys.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout_at};

use super::cluster::Cluster;
use super::config::Config;
use super::failure::Failure;
use super::looks::Looks;
use super::session::Sessions;
use super::value::Signature;
use super::watches::Watches;
use crate::engine::server::driver;
use crate::sys::per_process::PerProcess;
use crate::words::escape::said;

/// How long a connection stays when nobody uses it.
const IDLE: Duration = Duration::from_secs(10);

/// The clusters that this process uses.
static CLIENTS: PerProcess<Mutex<HashMap<Config, Arc<Client>>>> = PerProcess::new();

pub(super) struct Client {
    pub(super) cluster: Arc<Cluster>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) watches: Watches,
    pub(super) looks: Arc<Looks>,
    /// What this process writes into its keys.
    pub(super) signature: Signature,
    names: Arc<Names>,
}

/// One mutex for each lock for which this process has, or may have, a key. All clients of one cluster have the same: so an
/// attempt by a handle with another lease or another user also waits until nothing is left of the last key.
type Names = Mutex<HashMap<String, Weak<AsyncMutex<()>>>>;

impl Client {
    /// The client with this configuration. To be called by jobs of the driver only: so all that a client has is dropped on
    /// the driver's thread, and never in a forked child.
    pub(super) fn of(config: &Config) -> io::Result<Arc<Self>> {
        let mut clients = clients();
        if let Some(client) = clients.get(config) {
            return Ok(Arc::clone(client));
        }
        driver::spawn(leave_when_idle(config.clone()))?;
        let cluster = Arc::new(Cluster::new(config.clone()));
        let sessions = Arc::new(Sessions::new(Arc::clone(&cluster)));
        let watches = Watches::new(Arc::clone(&cluster));
        let looks = Arc::new(Looks::new(Arc::clone(&cluster)));
        let sibling = clients.values().find(|other| other.cluster.config.endpoints == config.endpoints);
        let names = sibling.map(|sibling| Arc::clone(&sibling.names)).unwrap_or_default();
        let client = Arc::new(Self { cluster, sessions, watches, looks, signature: Signature::this_process(), names });
        clients.insert(config.clone(), Arc::clone(&client));
        Ok(client)
    }

    /// Why the cluster cannot be reached, as far as the present tries have shown. For any thread: it keeps no client.
    pub(super) fn last_failure(config: &Config) -> Option<String> {
        let clients = clients();
        let failure = clients.get(config)?.cluster.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failure.map(|failure| said(&failure.to_string()))
    }

    /// The right to have a key for the lock of this name. It is kept until nothing is left of the key.
    pub(super) async fn name(&self, name: &str, deadline: Instant) -> Result<OwnedMutexGuard<()>, Failure> {
        let lock = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.retain(|_, lock| lock.strong_count() > 0);
            let known = names.get(name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                names.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        timeout_at(deadline, lock.lock_owned()).await.map_err(|_| {
            let unanswered = "an earlier request for the same lock has no answer yet";
            Failure::not_sent(io::Error::new(io::ErrorKind::TimedOut, unanswered))
        })
    }

    /// Whether only the map has this client. Under the map's mutex nobody else gets it.
    fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.sessions) == 1
    }
}

fn clients() -> MutexGuard<'static, HashMap<Config, Arc<Client>>> {
    CLIENTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes the connection of a client that nobody uses.
async fn leave_when_idle(config: Config) {
    loop {
        sleep(IDLE).await;
        let mut clients = clients();
        if clients.get(&config).is_none_or(Client::is_idle) {
            clients.remove(&config);
            return;
        }
    }
}
