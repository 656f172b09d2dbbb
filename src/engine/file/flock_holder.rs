//! Which processes have an flock(2) on a file.

use crate::sys::process::pid_exists;
use crate::sys::{self, Stat};

/// How often the kernel's list is read: it can miss a lock while it changes.
const LOOKS: u32 = 4;

/// The process that has the file locked exclusively. `recorded` is the PID in the file. 0 if nothing tells who it is.
///
/// A PID is named only if its process is alive and has the lock, as far as that can be seen. The record can be that of a
/// dead process, and the list names the process that took the lock, also where only a child of it is left.
pub(super) fn find_exclusive(stat: &Stat, recorded: Option<u32>) -> u32 {
    // The record first: everybody on the machine pays for a look at the kernel's list.
    if let Some(pid) = recorded.filter(|&pid| is_holder(pid, stat)) {
        return pid;
    }
    let looks = (0..LOOKS).map(|_| sys::listed_flock_holders(stat));
    let listed = looks.into_iter().find(|listed| !listed.is_empty()).unwrap_or_default();
    let found = listed.into_iter().find(|&pid| is_holder(pid, stat));
    found.or_else(|| sys::find_flock_holders(stat).next()).unwrap_or(0)
}

/// The processes that share the lock. Empty if nobody is seen: a shared lock that was listed may be gone by now.
pub(super) fn find_shared(stat: &Stat) -> Vec<u32> {
    let mut listed: Vec<u32> = (0..LOOKS).flat_map(|_| sys::listed_flock_holders(stat)).collect();
    listed.sort_unstable();
    listed.dedup();
    let (mut found, dead): (Vec<u32>, Vec<u32>) = listed.into_iter().partition(|&pid| is_holder(pid, stat));
    if !dead.is_empty() {
        // A child may have inherited the lock.
        found.extend(sys::find_flock_holders(stat));
        found.sort_unstable();
        found.dedup();
    }
    found
}

fn is_holder(pid: u32, stat: &Stat) -> bool {
    sys::has_flock(pid, stat).unwrap_or_else(|| pid_exists(pid))
}
