//! Names and start times of processes, where the system is not Linux. The only file that may use sysinfo.
//!
//! Linux does without it: sysinfo raises the limit of open files of the whole process when it is first used, and costs
//! an eighth of the time that this crate takes to build.
#![expect(clippy::disallowed_types, reason = "this is the one file that may use sysinfo")]

use std::time::{Duration, SystemTime};

use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

use super::types::ProcessDescription;

/// Name and start of a process; `None` if it cannot be seen.
pub(super) fn describe_process(pid: u32) -> Option<ProcessDescription> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    let refresh = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, refresh);
    system.process(pid).map(|process| ProcessDescription {
        name: process.name().to_string_lossy().into_owned(),
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(process.start_time()),
        is_zombie: process.status() == ProcessStatus::Zombie,
    })
}
