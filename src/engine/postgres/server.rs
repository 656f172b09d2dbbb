//! What this process knows of one server: its warm sessions, the locks that it is just giving back, and whether locks
//! exclude there.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::config::Settings;
use super::failure::Failure;
use super::probe;
use super::session::Session;
use crate::engine::server::driver;
use crate::sys::per_process::PerProcess;

/// How many sessions with one server stay warm, whatever their settings. There are not more, also when a program releases a
/// thousand locks at once.
const WARM_SESSIONS: usize = 16;

/// From so many settings on, those that nobody uses are forgotten. Each new password makes new settings.
const MOST_SETTINGS: usize = 64;

/// However long the lease is, a session without a lock does not stay open for longer.
const LONGEST_WARMTH: Duration = Duration::from_secs(10);

/// haproxy and others end a connection on which nothing has come for 50 s or a minute.
const LONGEST_BEAT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Server {
    pub(super) settings: Settings,
    warm: Mutex<Warm>,
    /// One for each session that may stay warm. All settings that lead to the same hosts have them together.
    places: Arc<Semaphore>,
    /// The numbers of the locks that are being given back. All settings that lead to one database have one such list.
    releasing: Arc<watch::Sender<Vec<i64>>>,
    is_proven: AtomicBool,
    /// Whoever proves has this. The failure of the last proof.
    proving: AsyncMutex<Option<Failure>>,
    failed_proofs: AtomicUsize,
}

#[derive(Debug, Default)]
struct Warm {
    /// Sessions that hold nothing, each in its place, the last one that was used at the end.
    sessions: Vec<(Session, OwnedSemaphorePermit)>,
    /// Whether a job ends them when their time has come.
    is_watched: bool,
}

/// The servers of this process. Some stay although nobody uses them: then a later lock needs no second proof.
static SERVERS: PerProcess<Mutex<HashMap<Settings, Arc<Server>>>> = PerProcess::new();

impl Server {
    pub(super) fn with(settings: &Settings) -> Arc<Self> {
        let mut servers = SERVERS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(settings) {
            return Arc::clone(server);
        }
        if servers.len() >= MOST_SETTINGS {
            servers.retain(|_, server| Arc::strong_count(server) > 1);
        }
        let sibling = servers.values().find(|other| other.settings.is_database_of(settings));
        let releasing = sibling.map(|sibling| Arc::clone(&sibling.releasing)).unwrap_or_default();
        let neighbour = servers.values().find(|other| other.settings.hosts == settings.hosts);
        let places = neighbour.map(|neighbour| Arc::clone(&neighbour.places));
        let places = places.unwrap_or_else(|| Arc::new(Semaphore::new(WARM_SESSIONS)));
        let server = Arc::new(Self::new(settings.clone(), places, releasing));
        servers.insert(settings.clone(), Arc::clone(&server));
        server
    }

    fn new(settings: Settings, places: Arc<Semaphore>, releasing: Arc<watch::Sender<Vec<i64>>>) -> Self {
        let (is_proven, failed_proofs) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (warm, proving) = (Mutex::default(), AsyncMutex::default());
        Self { settings, warm, places, releasing, is_proven, proving, failed_proofs }
    }

    fn warm(&self) -> MutexGuard<'_, Warm> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that holds nothing. `true` if it was warm: then it may have ended unnoticed.
    ///
    /// Cancel safe: a connection that is not complete is closed.
    pub(super) async fn session(self: &Arc<Self>) -> Result<(Session, bool), Failure> {
        self.prove().await?;
        match self.warm_session() {
            Some(session) => Ok((session, true)),
            // In a box, like the proof: otherwise each wait would have the room for it.
            None => Ok((Box::pin(Session::open(&self.settings)).await?, false)),
        }
    }

    fn warm_session(&self) -> Option<Session> {
        let sessions = &mut self.warm().sessions;
        sessions.retain(|(session, _)| session.is_usable());
        sessions.pop().map(|(session, _)| session)
    }

    /// Proves once that locks exclude at the server, for all that ask at the same time. They share a failure too: otherwise,
    /// at a silent server, the last of them would wait for the time-outs of all. Nobody else connects before that, so that
    /// the proof finds free connections.
    async fn prove(self: &Arc<Self>) -> Result<(), Failure> {
        if self.is_proven() {
            return Ok(());
        }
        let failed_before = self.failed_proofs.load(Ordering::Relaxed);
        let mut last_failure = self.proving.lock().await;
        match &*last_failure {
            _ if self.is_proven() => return Ok(()),
            Some(failure) if self.failed_proofs.load(Ordering::Relaxed) > failed_before => return Err(failure.clone()),
            _ => {}
        }
        // In a box, because otherwise the future of every try would be as large as that of the proof.
        match Box::pin(probe::prove(&self.settings)).await {
            Ok(session) => {
                self.is_proven.store(true, Ordering::Relaxed);
                self.keep_warm(session);
                Ok(())
            }
            Err(failure) => {
                self.failed_proofs.fetch_add(1, Ordering::Relaxed);
                Err(last_failure.insert(failure).clone())
            }
        }
    }

    fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }

    /// Keeps a session that holds nothing for a moment.
    pub(super) fn keep_warm(self: &Arc<Self>, session: Session) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        if !session.is_usable() {
            return;
        }
        let mut warm = self.warm();
        warm.sessions.push((session, place));
        // A job, because the driver's thread ends without one, and the session with it.
        if !mem::replace(&mut warm.is_watched, true) {
            let _ = driver::spawn(Arc::clone(self).end_warm_sessions());
        }
    }

    /// Ends each warm session when its time has come, until there is none.
    async fn end_warm_sessions(self: Arc<Self>) {
        let warmth = self.settings.warmth();
        while let Some(rest) = self.end_old_sessions(warmth) {
            tokio::time::sleep(rest).await;
        }
    }

    /// How long the next one has; `None` if there is none, and then nobody watches them any more.
    fn end_old_sessions(&self, warmth: Duration) -> Option<Duration> {
        let mut warm = self.warm();
        warm.sessions.retain(|(session, _)| session.sent().elapsed() < warmth);
        let rests = warm.sessions.iter().map(|(session, _)| warmth.saturating_sub(session.sent().elapsed()));
        let next = rests.min();
        warm.is_watched = next.is_some();
        next
    }

    /// After this call, [`released`](Self::released) waits for [`end_release`](Self::end_release). Any thread may call
    /// this.
    pub(super) fn begin_release(&self, key: i64) {
        self.releasing.send_modify(|releasing| releasing.push(key));
    }

    pub(super) fn end_release(&self, key: i64) {
        self.releasing.send_modify(|releasing| {
            if let Some(place) = releasing.iter().position(|&other| other == key) {
                releasing.swap_remove(place);
            }
        });
    }

    /// Waits until this process is not giving the lock back, or the lease ends, as it does where a thread is stuck.
    pub(super) async fn released(&self, key: i64) {
        let mut releasing = self.releasing.subscribe();
        let _ = timeout(self.settings.ttl, releasing.wait_for(|releasing| !releasing.contains(&key))).await;
    }
}

impl Settings {
    /// How long a session without a lock stays open.
    pub(super) fn warmth(&self) -> Duration {
        (self.ttl / 3).min(LONGEST_WARMTH)
    }

    /// Whether these lead to the same database as `other`.
    fn is_database_of(&self, other: &Self) -> bool {
        self.hosts == other.hosts && self.database == other.database
    }

    /// How often a session shows that its holder lives, also to proxies that end silent connections.
    pub(super) fn beat(&self) -> Duration {
        (self.ttl / 3).min(LONGEST_BEAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::postgres::config::Host;

    #[test]
    fn settings_that_nobody_uses_do_not_pile_up() {
        let settings = |number: usize| {
            let hosts = vec![Host { name: "settings-pile-up".into(), port: 5432 }];
            Settings { hosts, password: Some(number.to_string()), ..Settings::of_example() }
        };
        let used = Server::with(&settings(0));
        for number in 1..3 * MOST_SETTINGS {
            Server::with(&settings(number));
        }
        assert!(Arc::ptr_eq(&used, &Server::with(&settings(0))), "it is in use");
        let servers = SERVERS.get_or_init(Mutex::default).lock().unwrap();
        let ours = servers.keys().filter(|known| known.hosts == used.settings.hosts);
        assert!(ours.count() <= MOST_SETTINGS);
    }
}
