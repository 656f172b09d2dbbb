//! Lock files for inter-process communication, for Tokio.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod blocking;
mod builder;
mod error;
mod guard;
mod holder;
mod kind;
mod lock;
mod process;
mod protocol;
mod registry;
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
pub use url::LockUrl;
