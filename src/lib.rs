//! Lock files for inter-process communication, for Tokio.
//!
//! A [`LockFile`] names a lock; [`attempt`](LockFile::attempt) tries once, [`obtain`](LockFile::obtain) waits, and the
//! owned [`LockGuard`] releases when it is dropped, or by [`release`](LockGuard::release), which reports.
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
//! # Choosing a kind
//!
//! [`shlock`](LockFile::shlock), the default on Unix, makes a PID file that is there only while the lock is held, as
//! shlock(1), UUCP and news servers do. [`flock`](LockFile::flock) takes flock(2) on a file that stays, as flock(1)
//! does. [`null`](LockFile::null) excludes only tasks of this process. [`open`](LockFile::open) takes the choice from a
//! URL. Different kinds on one path are different locks; a file of the other kind is refused, not harmed.
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
//! | `make_tempfile` | private: a shlock record is made without a name, or under a private one |
//!
//! # What is logged
//!
//! Events and spans of [`tracing`] have the target `tokio_lockfile` and the fields `path`, `kind`, `waited`,
//! `held_for`, `holder.pid`, `holder.name`, `reason`, `error` where they apply. A lost lock, a takeover from a dead
//! holder and a failed release are warnings; a long wait is reported at info level after a second, then at growing
//! intervals; the rest is at debug level.
//!
//! # What it does not guarantee
//!
//! - A program that reads a PID and then unlinks blindly (PEAK, old NetBSD, `rm`) can remove a live lock. The guard
//!   tells: [`lost`](LockGuard::lost), [`run`](LockGuard::run), [`release`](LockGuard::release).
//! - On network and unknown file systems a free flock(2) proves nothing, so what looks stale there is
//!   [`LockError::Stale`]; see [`LockFileBuilder::break_stale_anywhere`].
//! - Programs that go by the PID alone do not see into other PID namespaces.
//! - A user's own file that holds just the number of a dead process cannot be told from a foreign lock.
//! - A holder that closes all its descriptors, as when it daemonises, gives up the lock.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod blocking;
mod builder;
mod error;
mod guard;
mod handover;
mod holder;
mod kind;
mod lock;
mod process;
mod protocol;
mod registry;
mod singleton;
mod spell;
mod sys;
mod trace;
mod url;
mod wait;

pub use builder::LockFileBuilder;
pub use error::{LockError, LostReason};
pub use guard::LockGuard;
pub use holder::Holder;
pub use kind::LockKind;
pub use lock::LockFile;
pub use process::pid_exists;
#[cfg(unix)]
pub use protocol::shlock::check_lock;
pub use singleton::{Restart, Singleton, SingletonError};
pub use url::LockUrl;
