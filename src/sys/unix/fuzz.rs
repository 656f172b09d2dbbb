//! The parsers of files in /proc, for fuzzing. Any user can choose the names in them.

use super::imp;
use super::mounts::Mount;
use crate::words::mode::Mode;

pub(crate) fn mountinfo(bytes: &[u8]) {
    String::from_utf8_lossy(bytes).lines().for_each(|line| drop(Mount::parse(line)));
}

pub(crate) fn locks(bytes: &[u8]) {
    let holders = imp::parse_locks(&String::from_utf8_lossy(bytes), "08:01:1234", Mode::Exclusive, Some(4321));
    assert!(holders.is_empty() || bytes.windows(5).any(|word| word == b"FLOCK"));
}

/// Whatever a process calls itself, its name ends where the kernel ends it.
pub(crate) fn stat(bytes: &[u8]) {
    imp::parse_stat(bytes);
    let stat = [b"7 (", bytes, b") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1234 20"].concat();
    let expected = (String::from_utf8_lossy(bytes).into_owned(), "S".to_owned(), 1234.0);
    assert_eq!(imp::parse_stat(&stat), Some(expected));
}
