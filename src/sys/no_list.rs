//! Where the system shows nobody which process has an flock: it is not Linux.

use crate::words::mode::Mode;

pub(crate) fn listed_flock_holders<Stat>(_stat: &Stat, _mode: Mode, _writer: Option<u32>) -> Vec<u32> {
    Vec::new()
}

pub(crate) fn list_of_locks() -> String {
    String::new()
}

pub(crate) fn is_listed<Stat>(_list: &str, _pid: u32, _stat: &Stat, _mode: Mode) -> bool {
    false
}

pub(crate) fn find_flock_holders<Stat>(_stat: &Stat, _mode: Mode) -> impl Iterator<Item = u32> {
    std::iter::empty()
}
