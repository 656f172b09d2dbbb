//! The parser of lock files, for fuzzing.

use super::record::{self, Record};

/// A record of ours is written as it is read, and every PID is one that kill(2) takes for a process.
pub(crate) fn record(bytes: &[u8]) {
    let record = Record::parse(bytes);
    match record {
        Record::Shlock(pid, mark) => assert_eq!(bytes, record::shlock(pid, mark)),
        Record::Flock(Some(pid)) => assert_eq!(bytes, record::flock(pid)),
        Record::Flock(None) => assert_eq!(bytes, record::FLOCK_BLANK),
        _ => {}
    }
    assert!(record.pid().is_none_or(|pid| i32::try_from(pid).is_ok_and(|pid| pid > 0)), "{record:?}");
}
