//! What the protocols need of the operating system, said once; the implementations stand behind this switch.
//!
//! Every descriptor and handle stays in this process: close-on-exec, or not inheritable, from its first instant. No call
//! follows a symbolic link in the last component of a path, and none waits for somebody else's lock.
//!
//! **Everywhere**
//! - [`open_or_create`]: the file that stays, made if need be; read-only where it may not be written.
//!   [`open_existing`]: the same file, only to look. What an open's error says about the thing at the path:
//!   [`irregular_from_open`].
//! - [`stat`] of an open file and [`stat_path`] of a name, with what tells files apart, [`Stat::is_same_file`], and
//!   regular ones from others, [`Stat::irregular`].
//! - [`read_at`], [`write_at`]: at an offset, as far as one call gets.
//! - [`try_lock_exclusive`], [`try_lock_shared`], [`unlock`]: the lock that the kernel keeps on an open file, and takes
//!   away when its holder dies. `false` means somebody else holds it; every other failure is an error.
//!   [`is_lock_unsupported`]: that the file system has no such locks.
//! - [`filesystem_at`]: what a path lives on. [`FileSystem::Memory`] and [`FileSystem::Local`] promise that a free lock
//!   proves that nobody, on any machine, holds it, and that looking and locking touch nothing but memory.
//! - [`process_existence`]: does a process with this PID exist, and can a zombie be told from it? [`flock_holder`]:
//!   whom the kernel lists as the one who locked a file.
//!
//! **Unix**, for `protocol::shlock`
//! - [`Dir`]: an open directory; `open_file`, `open_writable`, `create_new`, `create_unnamed` (no name until `link`; an
//!   error where the platform or the file system has no such files), `stat` (of a name), `link` (of an *open file*, by
//!   descriptor where the platform can, to a new name), `unlink`, `lets_us_unlink`, `names`.
//! - [`Stat`] tells links, times and `is_another_users` too.
//! - `filesystem`: what an open file lives on. `is_link_unsupported`: that a file cannot have two names there.
//!   `is_lock_for_writers`: that it must be open for writing to be locked.
//!
//! **Linux**, for `wait`
//! - `process_descriptor`: becomes readable when a process ends.

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
#[allow(dead_code, reason = "no platform has all of them")]
pub(crate) enum Existence {
    Gone,
    Alive,
    AliveOrZombie,
}

/// What a file lives on, as far as locks care.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "no platform has all of them")]
pub(crate) enum FileSystem {
    /// On this machine, and in its memory: no call touches a disk.
    Memory,
    /// On this machine.
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
