//! The statements.
//!
//! Every name is qualified, so that no `search_path` changes what it means. The first column of every answer is the stamp
//! of the session: it shows that the statement ran in the very server session that was asked before.

use std::time::Duration;

use super::config::LockNumber;
use crate::words::mode::Mode;

/// Comes before all other statements: the timeout of the role may be shorter than one statement takes.
pub(super) const NO_STATEMENT_TIMEOUT: &str = "SET statement_timeout = 0";

const STAMP: &str = "pg_catalog.current_setting('tokio_lockfile.stamp', true)";

/// Whether the session is still the one that it was. It is also the heartbeat.
pub(super) fn beat() -> String {
    format!("SELECT {STAMP}")
}

/// Makes a new session independent of the defaults that the server, the database and the role have.
///
/// The second column is true on a hot standby. The third is NULL where the server has no `idle_session_timeout`.
pub(super) fn prepare(stamp: &str, ttl: Duration, application: &str) -> String {
    let ttl_ms = ttl.as_millis().to_string();
    // If the server gave up a silent client before the lease ends, there would be two holders.
    let keepalive = (ttl.as_secs() + 1).to_string();
    let settings = [
        ("application_name", application),
        ("client_connection_check_interval", "0"),
        ("default_transaction_deferrable", "off"),
        ("default_transaction_isolation", "read committed"),
        ("default_transaction_read_only", "off"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", &ttl_ms),
        ("lock_timeout", "0"),
        ("search_path", ""),
        // A token is safe once this server has flushed it: another one that takes over begins a new timeline.
        ("synchronous_commit", "local"),
        ("tcp_keepalives_count", "3"),
        ("tcp_keepalives_idle", &keepalive),
        ("tcp_keepalives_interval", &keepalive),
        ("tcp_user_timeout", "0"),
        ("transaction_timeout", "0"),
    ];
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("('{name}', '{value}')")).collect();
    // A setting that this version of the server does not know is NULL.
    format!(
        "SELECT pg_catalog.set_config('tokio_lockfile.stamp', '{stamp}', false), pg_catalog.pg_is_in_recovery(), \
         pg_catalog.current_setting('idle_session_timeout', true), \
         (SELECT pg_catalog.count(pg_catalog.set_config(name, value, false)) FROM (VALUES {}) AS wanted (name, value) \
         WHERE pg_catalog.current_setting(name, true) IS NOT NULL)",
        settings.join(", ")
    )
}

/// What a session gets with the lock: the text that [`token`](super::token) reads.
///
/// The message makes the server flush the transaction. The number of a transaction that is not flushed can come again after
/// a crash.
fn grant(lock: LockNumber) -> &'static str {
    match lock.has_token {
        true => {
            "pg_catalog.concat_ws(' ', pg_catalog.pg_current_xact_id(), \
             pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), \
             pg_catalog.pg_logical_emit_message(true, 'tokio_lockfile', ''))"
        }
        false => "'-'",
    }
}

/// Says in the application name since when the lock is held. Others read it there.
fn announce(application: &str) -> String {
    format!(
        "pg_catalog.set_config('application_name', pg_catalog.concat('{application} ', \
         pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()))), false)"
    )
}

fn suffix(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "",
        Mode::Shared => "_shared",
    }
}

/// The second column is true on a hot standby. The third is the grant, or NULL if somebody else holds the lock.
pub(super) fn try_lock(lock: LockNumber, mode: Mode, application: &str) -> String {
    let (suffix, key, grant, announce) = (suffix(mode), lock.key, grant(lock), announce(application));
    format!(
        "SELECT {STAMP}, pg_catalog.pg_is_in_recovery(), CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
         AND pg_catalog.pg_try_advisory_lock{suffix}({key}) THEN pg_catalog.concat_ws(' ', {grant}, {announce}) END"
    )
}

/// Waits for up to `slice`. The answer is that of [`try_lock`], with an empty text for NULL.
///
/// A server may cancel the wait, or end it at its limit, in the instant in which it has got the lock. So the handler unlocks.
/// Each slice has a snapshot of its own: a longer one would keep VACUUM and CREATE INDEX CONCURRENTLY waiting.
pub(super) fn wait(lock: LockNumber, mode: Mode, application: &str, slice: Duration) -> String {
    let (suffix, key, grant, announce) = (suffix(mode), lock.key, grant(lock), announce(application));
    let slice_ms = slice.as_millis();
    format!(
        "DO $tokio_lockfile$ BEGIN \
         PERFORM pg_catalog.set_config('tokio_lockfile.grant', '', true); \
         IF pg_catalog.pg_is_in_recovery() THEN RETURN; END IF; \
         BEGIN \
         PERFORM pg_catalog.set_config('lock_timeout', '{slice_ms}', true); \
         PERFORM pg_catalog.pg_advisory_lock{suffix}({key}); \
         PERFORM pg_catalog.set_config('tokio_lockfile.grant', {grant}, true); \
         PERFORM {announce}; \
         EXCEPTION WHEN lock_not_available OR query_canceled THEN \
         PERFORM pg_catalog.pg_advisory_unlock_all(); \
         END; END $tokio_lockfile$; \
         SELECT {STAMP}, pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('tokio_lockfile.grant', true)"
    )
}

/// The second column is whether the session had the lock.
pub(super) fn unlock(lock: LockNumber, mode: Mode, application: &str) -> String {
    let (suffix, key) = (suffix(mode), lock.key);
    format!(
        "SELECT {STAMP}, pg_catalog.pg_advisory_unlock{suffix}({key}), \
         pg_catalog.set_config('application_name', '{application}', false)"
    )
}

pub(super) fn unlock_all() -> String {
    format!("SELECT {STAMP}, pg_catalog.pg_advisory_unlock_all()")
}

/// One row for each holder: the PID of its server process, its application name, the address of its client, and how many
/// seconds it has had what its application name tells. No role needs a right for that, but the address of another role's
/// client is shown only to members of pg_read_all_stats.
pub(super) fn holders(lock: LockNumber) -> String {
    let (class, object) = ((lock.key >> 32) as u32, lock.key as u32);
    format!(
        "SELECT {STAMP}, locks.pid, activity.application_name, pg_catalog.host(activity.client_addr), \
         pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())) \
         FROM pg_catalog.pg_locks AS locks LEFT JOIN pg_catalog.pg_stat_activity AS activity USING (pid) \
         WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1 \
         AND locks.classid = '{class}'::pg_catalog.oid AND locks.objid = '{object}'::pg_catalog.oid \
         AND locks.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         ORDER BY locks.pid"
    )
}
