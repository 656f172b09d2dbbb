//! Processes: whether a PID is alive, and what its process is called.

use std::time::{Duration, SystemTime};

use super::types::Existence;
use super::{current_pid, describe_process, process_existence};
use crate::words::holder::Holder;

/// Whether a process with this PID lives, as PEAK's `pid_exists`.
///
/// A zombie is dead: it runs no code and holds no lock. A process of another user, for which `kill` answers `EPERM`,
/// is alive. The ID of a thread that is not the first of its process is not a PID. PID 0 and PIDs that the platform does
/// not allow do not exist.
///
/// On Linux this asks pidfd_open(2), which works also where `hidepid` hides the process; elsewhere it asks kill(2) with
/// signal 0.
pub fn pid_exists(pid: u32) -> bool {
    match process_existence(pid) {
        Existence::Gone => false,
        Existence::Alive => true,
        Existence::AliveOrZombie => describe_process(pid).is_none_or(|process| !process.is_zombie),
    }
}

/// The holder with this PID, who has held the lock `since` then. Its name is left out if the process started later: then
/// the PID was recycled or comes from another PID namespace, and the name would be that of a stranger.
pub(crate) fn holder(pid: u32, since: Option<SystemTime>) -> Holder {
    // Start times have whole seconds, and a holder writes its record a moment after its start at the earliest.
    const SLACK: Duration = Duration::from_secs(2);
    let is_older =
        |started: SystemTime| since.is_none_or(|since| started.duration_since(since).unwrap_or_default() <= SLACK);
    let name = describe_process(pid).filter(|process| is_older(process.started)).map(|process| process.name);
    Holder::new(pid, name, since)
}

/// This process as the holder of a lock.
pub(crate) fn this_process(since: SystemTime) -> Holder {
    holder(std::process::id(), Some(since))
}

/// The process that did something. A forked child is another one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner(u32);

impl Owner {
    pub(crate) fn this_process() -> Self {
        Self(current_pid())
    }

    pub(crate) fn is_this_process(self) -> bool {
        self.0 == current_pid()
    }

    #[cfg(test)]
    pub(crate) fn another_process() -> Self {
        Self(std::process::id() + 1)
    }

    pub(crate) fn pid(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_younger_than_the_lock_is_not_named() {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(this_process(long_ago).name(), None);
        assert!(this_process(SystemTime::now()).name().is_some());
    }

    /// Anybody can set the times of a file.
    #[cfg(unix)]
    #[test]
    fn a_lock_from_the_end_of_time_is_looked_up() {
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        assert!(this_process(last).to_string().contains("pid"));
    }
}
