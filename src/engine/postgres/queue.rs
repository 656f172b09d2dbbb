//! The queue of a lock, in SQL. Its places are numbers of locks as well, and whoever waits at a place has its lock.
//!
//! The first place is the turnstile: only who stands there, or finds nobody there, tries for the lock. So nobody overtakes a
//! writer. A newcomer takes the place behind the last one. No place is waited for in the server: a request that is older
//! than a second is noticed by CREATE INDEX CONCURRENTLY, by the search for deadlocks and by the log.

use super::config::LockNumber;
use super::key;

/// How many bits of a number are the place in a queue.
const BITS: u32 = 20;
pub(super) const LAST: i64 = (1 << BITS) - 1;

/// Sessions listen on so many channels. The name of a channel is a text of its own in pg_stat_statements.
pub(super) const CHANNELS: u32 = 64;

/// The places of a queue: the turnstile and those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queue(i64);

impl LockNumber {
    pub(super) fn queue(self) -> Queue {
        Queue(key::of_name(&format!("tokio_lockfile {}", self.key)) & !LAST)
    }
}

impl Queue {
    /// The number of the lock that who stands there has.
    pub(super) fn place(self, place: i64) -> i64 {
        self.0 + place
    }

    pub(super) fn turnstile(self) -> i64 {
        self.place(0)
    }

    /// The places that are taken, as a table.
    pub(super) fn taken(self) -> String {
        taken(&self.bounds().map(|number| format!("'{number}'::pg_catalog.oid")))
    }

    /// The parts of its numbers in `pg_locks`: the upper half, and the first and the last lower half.
    pub(super) fn bounds(self) -> [u32; 3] {
        [(self.0 >> 32) as u32, self.0 as u32, (self.0 + LAST) as u32]
    }
}

/// Whether nobody stands at the turnstile with this number. The look keeps others out only for as long as this expression
/// takes.
pub(super) fn is_open(turnstile: &str) -> String {
    format!(
        "CASE WHEN pg_catalog.pg_try_advisory_lock_shared({turnstile}) \
         THEN pg_catalog.pg_advisory_unlock_shared({turnstile}) ELSE false END"
    )
}

/// Who only looks whether a place is free has it in the other mode.
fn taken([class, first, last]: &[String; 3]) -> String {
    format!(
        "(SELECT objid::pg_catalog.int8 & {LAST} AS place, pid FROM pg_catalog.pg_locks \
         WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' AND objsubid = 1 \
         AND classid = {class} AND objid >= {first} AND objid <= {last} \
         AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) AS taken"
    )
}

/// Wakes the session of the first one, if its place is `from` or later. The bounds of the queue are the parameters $1 to $3.
pub(super) fn wake_first(from: i64) -> String {
    format!(
        "(SELECT pg_catalog.count(pg_catalog.pg_notify(pg_catalog.concat('tokio_lockfile_', pid % {CHANNELS}), \
         pid::pg_catalog.text)) FROM (SELECT * FROM {} ORDER BY place LIMIT 1) AS first WHERE place >= {from})",
        taken(&[1, 2, 3].map(|number| format!("${number}")))
    )
}
