//! Where the system shows nobody which process has an flock: it is not Linux.

use super::types::Existence;
use super::{Stat, process_existence};
use crate::words::mode::Mode;

pub(crate) fn listed_flock_holders(_stat: &Stat, _mode: Mode, _writer: Option<u32>) -> Vec<u32> {
    Vec::new()
}

pub(crate) fn list_of_locks() -> String {
    String::new()
}

pub(crate) fn is_listed(_list: &str, _pid: u32, _stat: &Stat, _mode: Mode) -> bool {
    false
}

/// There are no PID namespaces either: a PID means the same to everybody. So a living process is believed.
pub(crate) fn has_flock(pid: u32, _stat: &Stat, _mode: Mode) -> Option<bool> {
    Some(process_existence(pid) != Existence::Gone)
}

pub(crate) fn find_flock_holders(_stat: &Stat, _mode: Mode) -> impl Iterator<Item = u32> {
    std::iter::empty()
}
