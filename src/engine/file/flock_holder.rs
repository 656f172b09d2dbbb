//! Which processes have an flock(2) on a file.
//!
//! A PID is named only if its process has the lock as far as that can be seen: its open files show it or, where we may not
//! look at them, the kernel's list of locks does. Both have the PIDs of our own PID namespace. A PID in a record may be that
//! of a dead process, or of another process in another namespace.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::per_process::PerProcess;
use crate::sys::process::pid_exists;
use crate::sys::{self, Stat};
use crate::words::mode::Mode;

/// How often the kernel's list is read: it can miss a lock while it changes.
const LOOKS: usize = 4;

/// How old the list may be of which many looks at about the same time have one reading.
const LIST_AGE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct List {
    asked: Option<Instant>,
    read: Option<(Instant, Arc<str>)>,
}

static LIST: PerProcess<Mutex<List>> = PerProcess::new();

/// Whether the kernel's list had an flock of this process on the file a moment ago. Of many looks at about the same time,
/// one reads the list for all. A look that is alone gets `false`.
fn was_listed_lately(pid: u32, stat: &Stat, mode: Mode) -> bool {
    let read = {
        let mut list = LIST.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: Instant| at.elapsed() <= LIST_AGE;
        if !list.asked.replace(Instant::now()).is_some_and(is_recent) {
            return false;
        }
        match &list.read {
            Some((at, read)) if is_recent(*at) => Arc::clone(read),
            _ => {
                let read: Arc<str> = sys::list_of_locks().into();
                list.read = Some((Instant::now(), Arc::clone(&read)));
                read
            }
        }
    };
    sys::is_listed(&read, pid, stat, mode)
}

/// The process that has the file locked exclusively. `recorded` is the PID in the file. 0 if nothing tells who it is.
pub(super) fn find_exclusive(stat: &Stat, recorded: Option<u32>) -> u32 {
    let mode = Mode::Exclusive;
    // Where many look, its files are too many to look at each time.
    if let Some(pid) = recorded.filter(|&pid| was_listed_lately(pid, stat, mode) && pid_exists(pid)) {
        return pid;
    }
    // The record first: everybody on the machine pays for a look at the kernel's list.
    if let Some(pid) = recorded.filter(|&pid| sys::has_flock(pid, stat, mode) == Some(true)) {
        return pid;
    }
    let looks = (0..LOOKS).map(|_| sys::listed_flock_holders(stat, mode, recorded));
    let listed = looks.into_iter().find(|listed| !listed.is_empty()).unwrap_or_default();
    let has_it = |&pid: &u32| sys::has_flock(pid, stat, mode).unwrap_or_else(|| pid_exists(pid));
    let found = listed.into_iter().find(has_it);
    found.or_else(|| sys::find_flock_holders(stat, mode).next()).unwrap_or(0)
}

/// The processes that share the lock. Empty if nobody is seen: a shared lock that was listed may be gone by now.
///
/// Each of them was seen twice. A process that only looks at the file has a shared lock too, for some microseconds.
pub(super) fn find_shared(stat: &Stat) -> Vec<u32> {
    let mode = Mode::Shared;
    let looks = [(); LOOKS].map(|()| sys::listed_flock_holders(stat, mode, None));
    let mut listed = looks.concat();
    listed.sort_unstable();
    listed.dedup();
    let is_seen_again = |pid| {
        let is_listed_again = || looks.iter().filter(|listed| listed.contains(&pid)).count() > 1;
        sys::has_flock(pid, stat, mode).unwrap_or_else(|| is_listed_again() && pid_exists(pid))
    };
    let (mut found, gone): (Vec<u32>, Vec<u32>) = listed.into_iter().partition(|&pid| is_seen_again(pid));
    if !gone.is_empty() {
        // A child may have inherited the lock.
        found.extend(sys::find_flock_holders(stat, mode));
        found.sort_unstable();
        found.dedup();
    }
    found
}

#[cfg(all(test, target_os = "linux", not(tokio_lockfile_test_portable)))]
mod tests {
    use super::*;

    #[test]
    fn of_looks_at_about_the_same_time_one_reads_the_list_for_all() {
        let file = tempfile::tempfile().unwrap();
        let stat = sys::stat(&file).unwrap();
        let is_listed = || was_listed_lately(std::process::id(), &stat, Mode::Exclusive);
        // A list that is older than the file may have another file with this number.
        std::thread::sleep(LIST_AGE);
        assert!(!(0..100).any(|_| is_listed()));
        assert!(sys::try_lock_exclusive(&file).unwrap());
        // The list that the looks before have read may still be in use.
        let began = Instant::now();
        while !is_listed() {
            assert!(began.elapsed() < Duration::from_secs(60), "the list does not show it");
        }
    }
}
