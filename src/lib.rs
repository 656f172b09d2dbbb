//! Lock files for inter-process communication, for Tokio.
//!
//! A [`LockFile`] is the handle of a lock. [`attempt`](LockFile::attempt) tries once, and [`obtain`](LockFile::obtain)
//! waits. Both return an owned [`LockGuard`]. The guard releases the lock when it is dropped.
//! [`release`](LockGuard::release) releases the lock and returns errors.
//!
//! ```
//! use std::time::Duration;
//! use tokio_lockfile::LockFile;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("nightly.lock");
//! let lock = LockFile::new(&path)?;
//! let guard = lock.obtain_timeout(Duration::from_secs(5)).await?;
//! assert!(lock.locked());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! [`guide`] explains how to choose a kind, wait, shut down, run a singleton, and share locks with containers and other
//! users. [`guarantees`] lists what the crate guarantees on which platform, and which test checks each guarantee.
//!
//! # From PEAK's `peak.running.lockfiles`
//!
//! | PEAK | here |
//! |---|---|
//! | `LockFile` | [`LockFile::new`] |
//! | `SHLockFile` | [`LockFile::shlock`] |
//! | `FLockFile` | [`LockFile::flock`] |
//! | `WinFLockFile` | [`LockFile::winflock`] |
//! | `NullLockFile` | [`LockFile::null`] |
//! | `lockfileURL` | [`LockFile::open`], [`LockUrl`] |
//! | `check_lock` | [`check_lock`] |
//! | `pid_exists` | [`pid_exists`] |
//! | `make_tempfile` | not public: the crate makes a shlock record without a name, or under a private name |
//!
//! # What is logged
//!
//! Events and spans of [`tracing`] have the target `tokio_lockfile`.
//!
//! | Message | Level | Fields besides `path` and `kind` |
//! |---|---|---|
//! | acquired | DEBUG; INFO if the log has reported the wait | `waited_ms` |
//! | acquired by takeover: the last holder died with the lock | WARN | `waited_ms`, `holder.pid` |
//! | waiting for the lock: after 1 s, 3 s, 7 s, … | INFO | `waited_ms`, `holder.pid`, `holder.name` |
//! | this very task has obtained the lock it waits for | WARN | `waited_ms` |
//! | another process has a record lock (fcntl) on the lock file | WARN | `holder.pid` |
//! | released | DEBUG | `held_ms` |
//! | lost the lock while it was held | WARN | `reason` |
//! | the lock could not be released properly | WARN | `error` |
//! | a [`Singleton`] stands by | INFO | |
//! | leads | INFO | `waited_ms` |
//! | stepped down | INFO | `held_ms`, `reason` |
//! | the work under the lock failed; standing by again | WARN | `held_ms`, `error` |
//! | the lock failed; standing by again | WARN | `error` |
//!
//! Times are whole milliseconds. The span `obtain` (DEBUG; `path`, `kind`) covers a wait. An event inside that span does not
//! repeat the fields of the span. The crate looks up a holder for an event only if a subscriber is interested in that
//! event.
//!
//! # Features
//!
//! No feature is on by default. `serde` makes a [`LockUrl`] a string in a configuration file.
//!
//! # Platforms
//!
//! Linux is the main platform. The crate also runs on Windows, and it is written for other Unix systems too. See
//! [`guarantees`](guarantees#platforms). It needs a Tokio runtime with timers (`enable_time`). On Linux it waits for
//! events instead of polling if the runtime has the I/O driver (`enable_io`).

#![warn(clippy::print_stdout, clippy::print_stderr)]

// What users call.
mod builder;
mod guard;
mod leadership;
mod lock;
mod semaphore;
mod singleton;

// The storeys below. Imports go only downwards; see docs/architecture.md.
mod engine;
mod process;
mod sys;
mod util;
mod words;

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}
#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}
/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub mod readme {}

pub use builder::LockFileBuilder;
#[cfg(unix)]
pub use engine::check_lock;
pub use guard::LockGuard;
pub use leadership::Leadership;
pub use lock::LockFile;
pub use semaphore::Semaphore;
pub use singleton::{Restart, Singleton, SingletonError};
pub use sys::process::pid_exists;
pub use words::error::{LockError, LostReason};
pub use words::holder::Holder;
pub use words::kind::{LockKind, UnknownLockKind};
pub use words::url::LockUrl;

// The tests of the behaviour that all kinds share, here over the engine in memory.
#[cfg(all(test, not(loom)))]
#[path = "../tests/it/behaviour.rs"]
mod behaviour;
#[cfg(all(test, not(loom)))]
#[path = "../tests/it/shared.rs"]
mod shared;
#[cfg(all(test, not(loom)))]
extern crate self as tokio_lockfile;
#[cfg(all(test, not(loom)))]
mod kinds {
    use crate::LockFile;
    use crate::engine::memory;
    use crate::support::{Kind, Modes};

    pub(crate) const FILE_KINDS: &[Kind] = &[|path| LockFile::new(path.with_extension(memory::SUFFIX)).unwrap()];

    pub(crate) const SHARED_KINDS: &[Modes] =
        &[Modes { writer: |path| native(path), reader: |path| native(path).shared().unwrap() }];

    /// The server can share any lock, but the default kind of Unix cannot be shared.
    fn native(path: &std::path::Path) -> LockFile {
        let path = path.with_extension(memory::SUFFIX);
        if cfg!(windows) { LockFile::winflock(path) } else { LockFile::flock(path) }.unwrap()
    }

    pub(crate) fn leaves_its_file(_lock: &LockFile) -> bool {
        false
    }
}
#[cfg(all(test, not(loom)))]
#[allow(dead_code, clippy::print_stdout, reason = "a test's tool; other processes cannot reach a server in this one")]
#[path = "../tests/it/support.rs"]
mod support;
