//! What this process knows of one server: its warm sessions, the locks that it is just giving back, and whether locks
//! exclude there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, watch};

use super::config::Settings;
use super::failure::Failure;
use super::probe;
use super::session::Session;
use crate::engine::server::driver;
use crate::sys::per_process::PerProcess;

/// How many sessions stay warm. A program that gives a thousand locks back at once needs no thousand of them.
const WARM_SESSIONS: usize = 16;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) settings: Settings,
    /// Sessions that hold nothing, the last one that was used at the end.
    warm: Mutex<Vec<Session>>,
    /// The numbers of the locks that are being given back.
    releasing: watch::Sender<Vec<i64>>,
    is_proven: OnceCell<()>,
}

/// The servers of this process. They stay: there are few, and a later lock finds them proven.
static SERVERS: PerProcess<Mutex<HashMap<Settings, Arc<Server>>>> = PerProcess::new();

impl Server {
    pub(super) fn with(settings: &Settings) -> Arc<Self> {
        let mut servers = SERVERS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(servers.entry(settings.clone()).or_insert_with(|| Arc::new(Self::new(settings.clone()))))
    }

    fn new(settings: Settings) -> Self {
        Self { settings, warm: Mutex::default(), releasing: watch::Sender::default(), is_proven: OnceCell::new() }
    }

    fn warm(&self) -> MutexGuard<'_, Vec<Session>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that holds nothing. `true` if it was warm: then it may have ended unnoticed.
    ///
    /// Cancel safe: a connection that is not complete is closed.
    pub(super) async fn session(self: &Arc<Self>) -> Result<(Session, bool), Failure> {
        self.prove().await?;
        match self.warm_session() {
            Some(session) => Ok((session, true)),
            None => Ok((Session::open(&self.settings).await?, false)),
        }
    }

    fn warm_session(&self) -> Option<Session> {
        let mut warm = self.warm();
        warm.retain(|session| !session.has_ended());
        warm.pop()
    }

    /// One proof for all that ask at the same time. Nobody connects for himself before that, so that the proof finds free
    /// connections.
    async fn prove(self: &Arc<Self>) -> Result<(), Failure> {
        let proof = || async {
            // In a box, because every try would have room for it.
            let session = Box::pin(probe::prove(&self.settings)).await?;
            self.keep_warm(session);
            Ok(())
        };
        self.is_proven.get_or_try_init(proof).await.copied()
    }

    /// Keeps a session that holds nothing for a moment.
    pub(super) fn keep_warm(self: &Arc<Self>, session: Session) {
        let mut warm = self.warm();
        if warm.len() >= WARM_SESSIONS || session.has_ended() {
            return;
        }
        warm.push(session);
        drop(warm);
        let server = Arc::clone(self);
        // A job, because the driver's thread ends without one, and the session with it.
        let _ = driver::spawn(async move {
            let warmth = server.settings.warmth();
            tokio::time::sleep(warmth).await;
            server.warm().retain(|session| session.sent().elapsed() < warmth);
        });
    }

    /// From here on, [`released`](Self::released) waits for [`end_release`](Self::end_release). On any thread.
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

    /// Waits until this process is not giving the lock back.
    pub(super) async fn released(&self, key: i64) {
        let _ = self.releasing.subscribe().wait_for(|releasing| !releasing.contains(&key)).await;
    }
}

impl Settings {
    /// How long a session without a lock stays open.
    fn warmth(&self) -> Duration {
        self.ttl / 3
    }

    /// How often a session shows that its holder lives.
    pub(super) fn beat(&self) -> Duration {
        self.ttl / 3
    }

    /// How long one statement of a wait waits. Its answer also shows each side that the other one is there.
    pub(super) fn slice(&self) -> Duration {
        (self.ttl / 3).min(Duration::from_secs(5)).min(self.connect_timeout / 2)
    }
}
