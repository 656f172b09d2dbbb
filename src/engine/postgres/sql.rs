//! The statements.
//!
//! Every name is qualified, so that no `search_path` changes what it means. The first column of every row says in which
//! server session the statement ran. The second is true on a hot standby. Both are asked for in every statement: what is
//! between us and the server may send each one somewhere else.
//!
//! A balancer such as pgpool-II sends a statement to a standby if it only reads. It takes one that calls a volatile
//! function, as pg_is_in_recovery() is, for one that writes.
//!
//! The texts differ only in constants that the server does not count. So pg_stat_statements has few rows of them.

use std::sync::LazyLock;
use std::time::Duration;

use super::config::LockNumber;
use super::queue;
use crate::words::mode::Mode;

const WHO: &str = "pg_catalog.concat_ws(' ', pg_catalog.pg_backend_pid(), \
                   pg_catalog.current_setting('tokio_lockfile.stamp', true)), pg_catalog.pg_is_in_recovery()";

/// Whether the session is still the one that it was. It is also the heartbeat.
pub(super) fn beat() -> String {
    format!("SELECT {WHO}")
}

/// Lifts the limits that the role may have, for this transaction only. A transaction that waits for us is longer than most.
fn unlimited() -> String {
    format!(
        "SELECT {WHO}, (SELECT pg_catalog.count(pg_catalog.set_config(name, '0', true)) FROM (VALUES \
         ('statement_timeout'), ('idle_in_transaction_session_timeout'), ('transaction_timeout')) AS limits (name) \
         WHERE pg_catalog.current_setting(name, true) IS NOT NULL)"
    )
}

/// Looks at a session that may belong to a pool, and changes nothing there. The third column is NULL where the server has no
/// `idle_session_timeout`.
pub(super) fn look() -> String {
    format!("{}; SELECT {WHO}, pg_catalog.current_setting('idle_session_timeout', true)", unlimited())
}

/// Takes a lock and gives it back. The third column of the rows: whether the lock was free, how many advisory locks the
/// server says this session has, whether it had the lock, and how many it has now.
pub(super) fn try_and_count(key: i64) -> String {
    let count = format!(
        "SELECT {WHO}, (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks \
         WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() \
         AND locktype OPERATOR(pg_catalog.=) 'advisory' AND granted)"
    );
    format!(
        "{}; SELECT {WHO}, pg_catalog.pg_try_advisory_lock({key}); {count}; \
         SELECT {WHO}, pg_catalog.pg_advisory_unlock({key}); {count}",
        unlimited()
    )
}

/// Begins a transaction and takes a lock. A pool gives nobody else the server session before [`unlock_and_commit`].
pub(super) fn begin_and_lock(key: i64) -> String {
    let unlimited = unlimited();
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; {unlimited}; SELECT {WHO}, pg_catalog.pg_try_advisory_lock({key})")
}

pub(super) fn unlock_and_commit(key: i64) -> String {
    format!("SELECT {WHO}, pg_catalog.pg_advisory_unlock({key}); COMMIT")
}

/// The third column is NULL if somebody has the lock. No lock outlives this, in whatever session it runs.
pub(super) fn try_and_unlock(key: i64) -> String {
    format!(
        "{}; SELECT {WHO}, CASE WHEN pg_catalog.pg_try_advisory_lock({key}) \
         THEN pg_catalog.pg_advisory_unlock({key}) END",
        unlimited()
    )
}

/// Makes a new session independent of the defaults that the server, the database and the role have.
///
/// The third column has the settings that are not what was asked for, as `name=value name=value`. The server's kernel may
/// refuse one, which the server only logs.
pub(super) fn prepare(stamp: &str, ttl: Duration, application: &str) -> String {
    // As the server shows it.
    let ttl_shown = match ttl.as_millis() {
        millis if millis % 60_000 == 0 => format!("{}min", millis / 60_000),
        millis if millis % 1_000 == 0 => format!("{}s", millis / 1_000),
        millis => format!("{millis}ms"),
    };
    // If the server gave up a silent client before the lease ends, there would be two holders.
    let keepalive = (ttl.as_secs() + 1).to_string();
    let user_timeout = (ttl.as_millis() + 1_000).to_string();
    let settings = [
        ("application_name", application),
        ("client_connection_check_interval", "0"),
        ("client_min_messages", "error"),
        ("default_transaction_deferrable", "off"),
        ("default_transaction_isolation", "read committed"),
        ("default_transaction_read_only", "off"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", &ttl_shown),
        ("lock_timeout", "0"),
        // The parameters of a statement change nothing in its plan.
        ("plan_cache_mode", "force_generic_plan"),
        ("search_path", ""),
        ("statement_timeout", "0"),
        // A token is safe once this server has flushed it: another one that takes over begins a new timeline.
        ("synchronous_commit", "local"),
        ("tcp_keepalives_count", "3"),
        ("tcp_keepalives_idle", &keepalive),
        ("tcp_keepalives_interval", &keepalive),
        // Without it, the kernel ends the session when it has sent an answer again for net.ipv4.tcp_retries2 times.
        ("tcp_user_timeout", &user_timeout),
        ("tokio_lockfile.stamp", stamp),
        ("transaction_timeout", "0"),
    ];
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("('{name}', '{value}')")).collect();
    // A setting that this version of the server does not know is NULL. The server reads a value back when it has set it.
    format!(
        "{}; SELECT {WHO}, (SELECT pg_catalog.string_agg(pg_catalog.concat(name, '=', now), ' ') FROM \
         (SELECT name, value, pg_catalog.set_config(name, value, false) AS now FROM (VALUES {}) AS wanted (name, value) \
         WHERE pg_catalog.current_setting(name, true) IS NOT NULL OR name OPERATOR(pg_catalog.=) 'tokio_lockfile.stamp') \
         AS set WHERE now OPERATOR(pg_catalog.<>) value)",
        unlimited(),
        settings.join(", ")
    )
}

/// What a session gets with the lock: the text that [`token`](super::token) reads.
///
/// The message makes the server flush the transaction. The number of a transaction that is not flushed can come again after
/// a crash.
const TOKEN: &str = "pg_catalog.concat_ws(' ', pg_catalog.pg_current_xact_id(), \
                     pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), \
                     pg_catalog.pg_logical_emit_message(true, 'tokio_lockfile', ''))";

/// Calls a function for an advisory lock, or its sibling for the shared lock.
fn for_mode(is_shared: &str, function: &str, key: &str) -> String {
    format!("CASE WHEN {is_shared} THEN pg_catalog.{function}_shared({key}) ELSE pg_catalog.{function}({key}) END")
}

/// Tries for a lock. The third column is the grant, or NULL if somebody else holds the lock.
///
/// Its parameters: the number of the turnstile; whether to try although somebody stands there; whether this session stands
/// there, and leaves with the lock; the number of the lock; whether to share it; whether to get a token; and the
/// application name. Whoever gets the lock adds to this name since when it is held: others read it there.
pub(super) static TRY: LazyLock<String> = LazyLock::new(|| {
    let (is_open, try_lock) = (queue::is_open("$1"), for_mode("$5", "pg_try_advisory_lock", "$4"));
    format!(
        "SELECT {WHO}, CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
         WHEN CASE WHEN $2 THEN true ELSE {is_open} END THEN CASE WHEN {try_lock} THEN pg_catalog.concat_ws(' ', \
         CASE WHEN $6 THEN {TOKEN} ELSE '-' END, CASE WHEN $3 THEN pg_catalog.pg_advisory_unlock($1) END, \
         pg_catalog.set_config('application_name', pg_catalog.concat($7, ' ', \
         pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()))), false)) END END"
    )
});

/// Gives a lock back, and wakes who is the first in the queue if somebody stands at the turnstile. The third column is
/// whether the session had the lock.
///
/// Its parameters: the bounds of the queue; the number of the turnstile; whether to wake the first one wherever it stands;
/// the number of the lock; whether it is shared; and the application name.
pub(super) static UNLOCK: LazyLock<String> = LazyLock::new(|| {
    let (unlock, is_open) = (for_mode("$7", "pg_advisory_unlock", "$6"), queue::is_open("$4"));
    let wake = wake_first(0);
    format!(
        "SELECT {WHO}, had, pg_catalog.set_config('application_name', $8, false), \
         CASE WHEN CASE WHEN $5 THEN false ELSE {is_open} END THEN NULL ELSE {wake} END \
         FROM (SELECT {unlock} AS had OFFSET 0) AS unlocked"
    )
});

fn is_shared(mode: Mode) -> &'static str {
    if mode == Mode::Shared { "true" } else { "false" }
}

/// A transaction with NOTIFY writes to the disk of the server, and nobody has to wait for that. Its commit waits for every
/// other one with NOTIFY, and that may wait for a standby that is away: this gives up soon. A place that is left stays free.
fn wake_first(from: i64) -> String {
    format!(
        "pg_catalog.concat(pg_catalog.set_config('synchronous_commit', 'off', true), \
         pg_catalog.set_config('lock_timeout', '100ms', true), {})",
        queue::wake_first(from)
    )
}

/// Wakes who is the first in a queue. Its parameters are the bounds of the queue.
pub(super) static WAKE: LazyLock<String> = LazyLock::new(|| format!("SELECT {WHO}, {}", wake_first(0)));

/// Whether nobody has a lock, by a try. What it gets ends with the statement.
fn is_free(key: &str, is_shared: &str) -> String {
    for_mode(is_shared, "pg_try_advisory_xact_lock", key)
}

/// Takes the place behind the last one. The third column is that place; NULL if there is none. The fourth is whether the
/// place before is free by now, or the lock itself if this is the turnstile.
pub(super) fn enter(lock: LockNumber, mode: Mode) -> String {
    let queue = lock.queue();
    let (taken, first, last) = (queue.taken(), queue.place(0), queue::LAST);
    let is_lock_free = is_free(&lock.key.to_string(), is_shared(mode));
    format!(
        "SELECT {WHO}, place, CASE WHEN place = 0 THEN {is_lock_free} \
         ELSE pg_catalog.pg_try_advisory_xact_lock_shared({first} + place - 1) END \
         FROM (SELECT (SELECT place FROM (SELECT pg_catalog.generate_series(\
         (SELECT coalesce(pg_catalog.max(place) + 1, 0) FROM {taken}), {last}) AS place) AS places \
         WHERE pg_catalog.pg_try_advisory_lock({first} + place) LIMIT 1) AS place OFFSET 0) AS entered"
    )
}

/// Goes from a place to the turnstile if nobody is before. The third column is the next place before that is taken. The
/// fourth is NULL unless this is the turnstile now, and then whether the lock is free.
pub(super) fn advance(lock: LockNumber, mode: Mode, place: i64) -> String {
    let queue = lock.queue();
    let (taken, turnstile, key) = (queue.taken(), queue.place(0), queue.place(place));
    let is_lock_free = is_free(&lock.key.to_string(), is_shared(mode));
    format!(
        "SELECT {WHO}, before, CASE WHEN has_moved THEN {is_lock_free} END FROM (SELECT before, \
         CASE WHEN before IS NULL THEN CASE WHEN pg_catalog.pg_try_advisory_lock({turnstile}) \
         THEN pg_catalog.pg_advisory_unlock({key}) END END AS has_moved \
         FROM (SELECT pg_catalog.max(place) AS before FROM {taken} WHERE place < {place}) AS places OFFSET 0) AS moved"
    )
}

/// Leaves a place, and wakes who is the first now but not at the turnstile yet. Its parameters are the bounds of the
/// queue and the number of the place.
pub(super) static LEAVE: LazyLock<String> = LazyLock::new(|| {
    let wake = wake_first(1);
    format!("SELECT {WHO}, had, {wake} FROM (SELECT pg_catalog.pg_advisory_unlock($4) AS had OFFSET 0) AS unlocked")
});

/// From now on, the server tells the session of this process when somebody wakes it.
pub(super) fn listen(process: u32) -> String {
    format!("LISTEN tokio_lockfile_{}; SELECT {WHO}", process % queue::CHANNELS)
}

/// Which of these locks nobody has. Its parameters are the numbers of the locks, and for each whether to try for the shared
/// lock. The third column has the places in the list, from 1 on, as a text: an array says how long it is before it is there.
pub(super) static FREE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {WHO}, pg_catalog.array_to_string(ARRAY(SELECT at FROM ROWS FROM (pg_catalog.unnest($1), \
         pg_catalog.unnest($2)) WITH ORDINALITY AS locks (key, is_shared, at) WHERE {}), ' ')",
        is_free("key", "is_shared")
    )
});

pub(super) fn unlock_all() -> String {
    format!("SELECT {WHO}, pg_catalog.pg_advisory_unlock_all()")
}

/// One row for each holder, from the third column on: the PID of its server process, its application name, the address
/// of its client, and how many seconds it has had what its application name tells. No role needs a right for that, but
/// the address of another role's client is shown only to members of pg_read_all_stats.
pub(super) fn holders(lock: LockNumber) -> String {
    let (class, object) = ((lock.key >> 32) as u32, lock.key as u32);
    format!(
        "SELECT {WHO}, locks.pid, activity.application_name, pg_catalog.host(activity.client_addr), \
         pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())) \
         FROM pg_catalog.pg_locks AS locks LEFT JOIN pg_catalog.pg_stat_activity AS activity USING (pid) \
         WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1 \
         AND locks.classid = '{class}'::pg_catalog.oid AND locks.objid = '{object}'::pg_catalog.oid \
         AND locks.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         ORDER BY locks.pid"
    )
}
