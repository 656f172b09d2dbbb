//! What the protocols need of the operating system, said once; the implementations stand behind this switch.
//!
//! **Everywhere**
//! - [`process_existence`]: does a process with this PID exist, and can a zombie be told from it?
//!
//! **Unix** (used by `protocol::shlock` and `protocol::flock`). Every descriptor is close-on-exec from its first
//! instant, no call follows a symbolic link in the last component, and none waits for somebody else's lock.
//! - [`Dir`]: an open directory; `open_file`, `create_new`, `create_unnamed` (no name until `link`; an error where the
//!   platform or the file system has no such files), `stat` (of a name), `link` (of an *open file*, by descriptor
//!   where the platform can, to a new name), `unlink`, `names`.
//! - [`stat`] of an open file, with what tells files apart: [`Stat::is_same_file`].
//! - [`try_lock_exclusive`], [`try_lock_shared`], [`unlock`]: flock(2) on an open file. `false` means somebody else
//!   holds it; every other failure is an error.
//! - [`filesystem`]: what an open file lives on. [`FileSystem::Memory`] and [`FileSystem::Local`] promise that a free
//!   `flock` proves that nobody, on any machine, holds it.

use std::fmt;

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::*;

#[cfg(not(any(unix, windows)))]
compile_error!("tokio-lockfile supports Unix and Windows");

/// What can be said of a PID without looking at the process's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existence {
    Gone,
    Alive,
    #[cfg_attr(windows, expect(dead_code, reason = "Windows has no zombies"))]
    AliveOrZombie,
}

/// What a file lives on, as far as locks care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// On this machine, and in its memory: no call touches a disk.
    #[cfg_attr(windows, expect(dead_code))]
    Memory,
    /// On this machine.
    #[cfg_attr(windows, expect(dead_code))]
    Local,
    /// On another machine, or of unknown behaviour: its name.
    Other(String),
}

impl FileSystem {
    /// Whether a free `flock` proves that its holder is dead.
    #[cfg(unix)]
    pub(crate) fn flock_is_proof(&self) -> bool {
        matches!(self, Self::Memory | Self::Local)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Local => f.write_str("a local disk"),
            Self::Other(name) => f.write_str(name),
        }
    }
}
