//! Advisory locks of sessions in a PostgreSQL database.
//!
//! Each lock that is held has a server session of its own (`session.rs`), and all that this process waits for at a server
//! have one session together (`watch.rs`). The driver's thread keeps them alive. If the server does not hear of a
//! session for the time of the lease, it ends the session and frees its lock. `held.rs` counts the same time and gives
//! the lock up earlier. `sql.rs` has the statements. `connect.rs` sees to TLS and to the login, which is in `startup.rs`.

mod application;
mod attempt;
mod config;
mod connect;
#[cfg(feature = "postgres-tls")]
mod end_point;
mod environment;
mod failure;
#[cfg(tokio_lockfile_fuzz)]
pub(crate) mod fuzz;
#[cfg(feature = "postgres-tls")]
mod handshake;
mod held;
mod holders;
mod key;
mod login;
mod passfile;
mod probe;
mod queue;
mod scram;
mod server;
mod session;
mod sql;
mod startup;
mod tls;
mod token;
mod watch;
mod wire;

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::sync::Arc;

use self::attempt::Request;
use self::config::{Lock, Settings};
use super::contract::{Answer, Attempt, BoxFuture, Engine};
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::Target;

#[derive(Debug)]
pub(super) struct Postgres(Arc<Lock>);

impl Postgres {
    pub(super) fn new(target: &Arc<Target>) -> Result<Self, LockError> {
        let lock = Lock::read(target, &environment::variable)?;
        if lock.settings.tls.is_demanded() && !cfg!(feature = "postgres-tls") {
            let reason =
                "its sslmode needs TLS, which is not built in; enable the feature \"postgres-tls\" of tokio-lockfile";
            return Err(target.unsupported(reason));
        }
        Ok(Self(Arc::new(lock)))
    }
}

impl<Turn: Debug + Send + 'static> Engine<Turn> for Postgres {
    /// The number of the lock in its database. Credentials and times are no part of it.
    fn identity(&self) -> Option<Arc<OsStr>> {
        let Lock { settings: Settings { hosts, database, .. }, number, .. } = &*self.0;
        Some(OsString::from(format!("{hosts:?}/{database}/{}", number.key)).into())
    }

    fn attempt(&self, mode: Mode, turn: Turn) -> Answer<Result<Attempt<Turn>, LockError>> {
        let request = Request { lock: Arc::clone(&self.0), mode, waits: false };
        Answer::Later(Box::pin(request.get(turn)))
    }

    fn holders(&self) -> BoxFuture<'static, Result<Vec<Holder>, LockError>> {
        Box::pin(holders::of(Arc::clone(&self.0)))
    }
}
