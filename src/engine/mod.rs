//! The engines: what makes a lock exclusive, one engine for each kind or family of kinds.
//!
//! [`contract`] says what an engine promises. [`of`] is the one place that chooses an engine.

pub(crate) mod contract;
mod file;
#[cfg(all(test, not(loom)))]
pub(crate) mod memory;
mod null;

#[cfg(unix)]
pub use file::check_lock;

use std::sync::Arc;

use crate::words::kind::LockKind;
use crate::words::target::Target;
use contract::Engine;

/// The engine of a lock. This may look at the file system, but touches no network.
pub(crate) fn of<Turn: std::fmt::Debug + Send + 'static>(target: &Arc<Target>) -> Box<dyn Engine<Turn>> {
    #[cfg(all(test, not(loom)))]
    if let Some(engine) = memory::Memory::named_by(target) {
        return Box::new(engine);
    }
    match target.kind {
        LockKind::Null => Box::new(null::Null::new(target)),
        LockKind::Shlock | LockKind::Flock | LockKind::WinFlock => Box::new(file::FileLock::new(target)),
    }
}
