//! Processes: does this PID live, and what is it called. The only file that may use sysinfo.
#![expect(clippy::disallowed_types, reason = "this is the one file that may use sysinfo")]

use std::time::{Duration, SystemTime};

use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

use crate::sys::{self, Existence};

/// Whether a process with this PID lives, as PEAK's `pid_exists`.
///
/// A zombie is dead: it runs no code and holds no lock. A process of another user, for which `kill` answers `EPERM`,
/// is alive. The ID of a thread that is not its process's first is not a PID. PID 0 and PIDs that the platform cannot
/// have do not exist.
///
/// On Linux pidfd_open(2) answers, which `hidepid` does not blind; elsewhere kill(2) with signal 0 does.
pub fn pid_exists(pid: u32) -> bool {
    match sys::process_existence(pid) {
        Existence::Gone => false,
        Existence::Alive => true,
        Existence::AliveOrZombie => snapshot(pid, |process| process.status() != ProcessStatus::Zombie).unwrap_or(true),
    }
}

pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) started: SystemTime,
}

/// Name and start time of a process, if it can be seen.
pub(crate) fn describe(pid: u32) -> Option<Description> {
    snapshot(pid, |process| Description {
        name: process.name().to_string_lossy().into_owned(),
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(process.start_time()),
    })
}

fn snapshot<T>(pid: u32, read: impl FnOnce(&sysinfo::Process) -> T) -> Option<T> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing().without_tasks(),
    );
    system.process(pid).map(read)
}
