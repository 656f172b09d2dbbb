//! The engines: what makes a lock exclusive, one engine for each kind or family of kinds.
//!
//! [`contract`] says what an engine promises. [`of`] is the one place that chooses an engine.

pub(crate) mod claim;
pub(crate) mod contract;
#[cfg(feature = "etcd")]
mod etcd;
#[path = "etcd/parameters.rs"]
mod etcd_parameters;
mod file;
#[cfg(all(test, not(loom)))]
pub(crate) mod memory;
mod null;
#[cfg(feature = "postgres")]
mod postgres;
#[path = "postgres/parameters.rs"]
mod postgres_parameters;
#[cfg(any(feature = "postgres", feature = "etcd"))]
#[cfg_attr(not(all(feature = "postgres", feature = "etcd")), allow(dead_code, reason = "each engine uses a part"))]
mod server;

#[cfg(unix)]
pub use file::check_lock;

#[cfg(tokio_lockfile_fuzz)]
pub(crate) mod fuzz {
    pub(crate) use super::{etcd::fuzz as etcd, file::fuzz as file, postgres::fuzz as postgres};
}

use std::fmt::Debug;
use std::sync::Arc;

use crate::words::error::LockError;
use crate::words::kind::LockKind;
use crate::words::target::{Address, Target};
use contract::Engine;

/// The names of the parameters that a URL of this kind may have.
pub(crate) fn url_parameters(kind: LockKind) -> &'static [&'static str] {
    match kind {
        LockKind::Postgres => postgres_parameters::NAMES,
        LockKind::Etcd => etcd_parameters::NAMES,
        _ => &[],
    }
}

/// The engine of a lock. This may look at the file system, but touches no network. Fails if the engine finds a mistake in
/// the URL.
pub(crate) fn of<Turn: Debug + Send + 'static>(target: &Arc<Target>) -> Result<Box<dyn Engine<Turn>>, LockError> {
    #[cfg(all(test, not(loom)))]
    if let Some(engine) = memory::Memory::named_by(target) {
        return Ok(Box::new(engine));
    }
    Ok(match &target.address {
        Address::Null(name) => Box::new(null::Null { name: Arc::clone(name) }),
        Address::File(_) => Box::new(file::FileLock::new(target)),
        Address::Server(_) => match target.kind {
            #[cfg(feature = "etcd")]
            LockKind::Etcd => Box::new(etcd::Etcd::new(target)?),
            #[cfg(feature = "postgres")]
            LockKind::Postgres => Box::new(postgres::Postgres::new(target)?),
            _ => unreachable!("Target::server() refuses a kind that is not built in"),
        },
    })
}
