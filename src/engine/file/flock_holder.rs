//! Which process has an flock(2) on a file.

use crate::sys::process::pid_exists;
use crate::sys::{self, Stat};

/// How often the kernel's list is read again when it names nobody: it can miss a lock while it changes.
const SECOND_LOOKS: u32 = 3;

/// The process that has the file locked. `recorded` is the PID in the file. `Some(0)` if somebody has it locked but nothing
/// tells who; `None` if nobody is seen. `is_locked`: somebody has it locked exclusively.
///
/// A PID is named only if its process is alive and has the lock, as far as that can be seen. The record can be that of a
/// dead process, and the list names the process that took the lock, also where only a child of it is left.
pub(super) fn find(stat: &Stat, recorded: Option<u32>, is_locked: bool) -> Option<u32> {
    let has_lock = |pid: &u32| sys::has_flock(*pid, stat).unwrap_or_else(|| is_locked && pid_exists(*pid));
    // The record first: everybody on the machine pays for a look at the kernel's list.
    if let Some(pid) = recorded.filter(has_lock) {
        return Some(pid);
    }
    let mut listed = sys::listed_flock_holders(stat);
    for _ in 0..SECOND_LOOKS {
        if !listed.is_empty() {
            break;
        }
        listed = sys::listed_flock_holders(stat);
    }
    if listed.is_empty() && !is_locked {
        return None;
    }
    let is_holder = |pid: &u32| sys::has_flock(*pid, stat).unwrap_or_else(|| pid_exists(*pid));
    let found = listed.into_iter().find(is_holder).or_else(|| sys::find_flock_holder(stat));
    // A shared lock that was listed may be gone by now; an exclusive one was seen.
    found.or(is_locked.then_some(0))
}
