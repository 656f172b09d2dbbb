//! Lock files for [Tokio](https://tokio.rs): one process at a time works, the others wait without a thread, and everybody
//! can see who holds the lock.
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
//! // … the work …
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! - A [`LockFile`] is the handle of a lock. [`attempt`](LockFile::attempt) tries once, [`obtain`](LockFile::obtain) waits,
//!   and [`holder`](LockFile::holder) tells who holds it.
//! - The [`LockGuard`] is the held lock. Dropping it releases the lock, and [`release`](LockGuard::release) also reports
//!   errors. [`run`](LockGuard::run) stops the work if the lock is lost.
//! - A [`Singleton`] runs a service of which only one replica works. A [`Semaphore`] lets N processes work at a time.
//!
//! The [`guide`] leads from choosing a kind to containers and other users. It is one page, with a table for those who
//! [come from elsewhere](guide#coming-from-elsewhere). The page [`beyond`] is about locks on servers, for several machines.
//! The [examples](https://docs.rs/crate/tokio-lockfile/latest/source/examples/) are programs to start from.
//!
//! # When to use it, and when not
//!
//! This crate is for programs on Tokio that must not run twice, or not at the same time. It is also for files that
//! several programs change. In std's `File::lock`, fs4 and fd-lock, a wait blocks a thread, and has no limit of time.
//! async-fd-lock does the same on Tokio's blocking pool, so a dropped wait goes on there. None of them notices that
//! somebody removes a lock file, or tells who holds it.
//!
//! Something else is better in these cases:
//!
//! - Only tasks of one process share something: take a `Mutex` of Tokio.
//! - The program does not use Tokio and may wait for ever: take std's `File::lock`.
//! - The data is in a database: let its transactions and its row locks protect it.
//! - A program that does not take the lock must be kept out. These locks are advisory: they bind only those who ask.
//! - Several machines share no server. A lock on a network file system proves little, see the
//!   [guide](guide#network-file-systems).
//!
//! # Kinds
//!
//! | Constructor, URL | The lock, and who takes part |
//! |---|---|
//! | [`LockFile::new`], `lockfile:` | the platform's default: shlock on Unix, winflock on Windows |
//! | [`LockFile::native`], `nativelockfile:` | the kernel's own file lock: flock on Unix, winflock on Windows |
//! | [`LockFile::shlock`], `shlockfile:` | a PID file that exists only while the lock is held; shlock(1), UUCP, Usenet news and mail tools |
//! | [`LockFile::flock`], `flockfile:` | flock(2) on a file that stays; flock(1), Cargo, Python, std's `File::lock` |
//! | [`LockFile::winflock`], `winflockfile:` | `LockFileEx` on a file that stays; std's `File::lock`, fs4, Cargo |
//! | [`LockFile::null`], `nulllockfile:` | no file; only tasks of this process |
//! | `postgres:`, with the feature `postgres` | a lock of a PostgreSQL session; psql, other machines |
//! | `etcd:`, with the feature `etcd` | a key under a lease; etcdctl, other machines |
//!
//! [`LockFile::open`] opens any kind by its URL, so that a configuration file can choose.
//! [`LockFile::builder`] sets options. [`LockFile::shared`] is a handle for readers.
//!
//! # What it promises
//!
//! - **Never two holders**, among processes of this library and other programs that keep the same protocol.
//! - **Never stuck.** A dead holder's lock file is free at once, and its lock on a server at the latest when its lease
//!   has ended. A wait that is dropped leaves nothing behind.
//! - **Never someone else's file.** What is not certainly a lock record is not removed or overwritten.
//! - **Never in the way.** No thread waits, and an idle wait costs almost no CPU.
//! - **Always an answer**: who holds it, since when, why it failed, and often what to do.
//!
//! The page of [`guarantees`] names the test behind each of them, and says what is not guaranteed.
//!
//! # What is logged
//!
//! Events and spans of [`tracing`](https://docs.rs/tracing) have the target `tokio_lockfile`. An event is known by its name
//! (`metadata().name()`). The names and the fields stay; the messages are for people and may change. The example `metrics`
//! counts events by their names.
//!
//! | Name | Level | Message | Fields besides `path` |
//! |---|---|---|---|
//! | `acquired` | DEBUG; INFO if the log has reported the wait | acquired | `kind`, `waited_ms` |
//! | `taken_over` | WARN | acquired by takeover: the last holder died with the lock | `kind`, `waited_ms`, `holder.pid` |
//! | `waiting` | INFO, after 1 s, 3 s, 7 s, … | waiting for the lock, held by … | `kind`, `waited_ms`, `holder.pid`, `holder.name` |
//! | `waits_for_itself` | WARN | this very task has obtained the lock it waits for | `waited_ms` |
//! | `record_lock` | WARN | another process has a record lock (fcntl) on the lock file | `holder.pid` |
//! | `released` | DEBUG | released | `held_ms` |
//! | `lost` | WARN | lost the lock while it was held | `held_ms`, `reason` |
//! | `release_failed` | WARN | the lock could not be released properly | `error` |
//! | `no_events` | WARN, once for the process, without `path` | no events from inotify | `error` |
//!
//! While a task waits for a permit of a [`Semaphore`], the log shows a wait for the first of its locks.
//! A release on a server, or on a file system that may be slow, ends on another thread. So only a subscriber for the whole
//! program hears of it.
//!
//! A [`Singleton`] adds these:
//!
//! | Name | Level | Message | Fields besides `path` |
//! |---|---|---|---|
//! | `stands_by` | INFO | stands by | `kind` |
//! | `leads` | INFO | leads | `kind`, `waited_ms` |
//! | `stepped_down` | INFO | stepped down | `held_ms`, `reason` |
//! | `work_failed` | WARN | the work under the lock failed; standing by again, or shutting down | `held_ms`, `error` |
//! | `lock_failed` | WARN | the lock failed; standing by again | `error` |
//!
//! Locks on servers add these, once for each file or cluster:
//!
//! | Name | Level | Message | Fields |
//! |---|---|---|---|
//! | `password_file_ignored` | WARN | password file "…" has group or world access, or is not a plain file: it is not used | none |
//! | `password_in_clear` | WARN | the password goes to etcd without encryption | `path`: the cluster |
//!
//! For a lock on a server, `path` is its URL without the password. Times are whole milliseconds. The span `obtain`
//! (DEBUG; `path`, `kind`) covers a wait. An event inside that span does not repeat the fields of the span. The crate
//! looks up a holder for an event only if a subscriber is interested in that event.
//!
//! # Features
//!
//! No feature is on by default.
//!
//! - `serde` makes a [`LockUrl`] a string in a configuration file.
//! - `postgres` adds locks in a PostgreSQL database, and `postgres-tls` the same with TLS.
//! - `etcd` adds locks in an etcd cluster, with TLS.
//!
//! # Platforms
//!
//! Linux is the main platform. The crate also runs on Windows, and it is written for other Unix systems too. See
//! [`guarantees`](guarantees#platforms). It needs a Tokio runtime with timers (`enable_time`). On Linux it waits for
//! events instead of polling if the runtime has the I/O driver (`enable_io`).
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
//! | `make_tempfile` | not public |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]

// What users call.
mod builder;
mod guard;
mod leadership;
mod lock;
mod semaphore;
mod singleton;
mod url;

#[cfg(tokio_lockfile_fuzz)]
#[doc(hidden)]
pub mod fuzz;

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
#[doc = include_str!("../docs/beyond.md")]
pub mod beyond {}
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
pub use url::LockUrl;
pub use words::error::{LockError, LostReason};
pub use words::holder::Holder;
pub use words::kind::{LockKind, UnknownLockKind};

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
