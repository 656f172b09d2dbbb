//! The answers that every platform gives.

use std::fmt;
use std::time::SystemTime;

use crate::words::escape::Escaped;

/// What a PID alone tells, without a look at the status of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "no platform has all of them")]
pub(crate) enum Existence {
    Gone,
    Alive,
    AliveOrZombie,
}

/// What the system tells of a process.
#[derive(Debug)]
pub(crate) struct ProcessDescription {
    pub(crate) name: String,
    pub(crate) started: SystemTime,
    pub(crate) is_zombie: bool,
}

/// The file system of a file, as far as it matters for locks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "no platform has all of them")]
pub(crate) enum FileSystem {
    /// In the memory of this machine: no call touches a disk.
    Memory,
    /// On a disk of this machine.
    Local,
    /// On another machine, or of unknown behaviour. This is its name.
    Other(String),
    /// Nothing tells at the moment, for example because /proc is not mounted.
    Unknown,
}

impl FileSystem {
    /// Whether a free `flock` proves that its holder is dead.
    #[cfg(unix)]
    pub(crate) fn flock_is_proof(&self) -> bool {
        self.is_of_this_machine()
    }

    /// Whether the kernel of this machine alone decides about it.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        matches!(self, Self::Memory | Self::Local)
    }

    /// Whether it is SMB, by any of the names that kernels have for it.
    #[cfg(unix)]
    pub(crate) fn is_smb(&self) -> bool {
        matches!(self, Self::Other(name) if ["SMB", "cifs", "smb3", "smbfs"].contains(&&**name))
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Local => f.write_str("a local disk"),
            // Any user can choose the name of a file system on FUSE.
            Self::Other(name) => Escaped(&**name).fmt(f),
            Self::Unknown => f.write_str("a file system that only /proc/self/mountinfo could tell"),
        }
    }
}
