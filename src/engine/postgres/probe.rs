//! Proves by a trial that locks exclude at a server. The name and the version of the server prove nothing.
//!
//! CockroachDB and others accept pg_advisory_lock and do nothing. PgBouncer gives two clients one server session, unless its
//! pool_mode is session. The sessions of such a pool are other clients' too, so a trial leaves them as they were: it sets
//! nothing that outlives its transaction, and no lock outlives the statement or the transaction that takes it.

use std::hash::{BuildHasher, RandomState};

use super::config::Settings;
use super::failure::Failure;
use super::session::{Session, column};
use super::sql;

/// How often each of two sessions shows twice that it is still the same one, before anything is tried.
const LOOKS: usize = 4;

/// Returns a session at the server, which is prepared.
pub(super) async fn prove(settings: &Settings) -> Result<Session, Failure> {
    let mut session = Session::connect(settings).await?;
    let key = RandomState::new().hash_one(0) as i64;
    let excludes = match session.is_direct() {
        // One connection is enough, and many processes may start together.
        true => counts(&mut session, key).await?,
        false => keeps_out(&mut session, &mut Session::connect(settings).await?, key).await?,
    };
    if !excludes {
        let reason =
            "locks do not exclude there; use PostgreSQL itself, and no pool in front of it that shares server sessions";
        return Err(Failure::Unsupported(reason.into()));
    }
    session.prepare().await?;
    Ok(session)
}

/// Whether the server knows of the lock of a session.
async fn counts(session: &mut Session, key: i64) -> Result<bool, Failure> {
    let rows = session.rows(&sql::try_and_count(key)).await?;
    let answers: Result<Vec<_>, _> = rows.iter().map(|row| column(row, 2)).collect();
    Ok(answers?.ends_with(&[Some("t"), Some("1"), Some("t"), Some("0")]))
}

/// Whether two sessions exclude each other. Fails if a pool shares them.
async fn keeps_out(first: &mut Session, second: &mut Session, key: i64) -> Result<bool, Failure> {
    // A pool gives the next client the session that was used last, or its sessions in turn, or one that is free by
    // chance. Two looks in a row, so that two clients do not seem to have a session each where two sessions take turns.
    for _ in 0..LOOKS {
        first.look().await?;
        first.look().await?;
        second.look().await?;
        second.look().await?;
    }
    if first.is_in_session_of(second) {
        return Err(Failure::another_session());
    }
    let answers = [
        first.value(&sql::begin_and_lock(key)).await.map_err(without_transactions)?,
        second.value(&sql::try_and_unlock(key)).await?,
        first.value(&sql::unlock_and_commit(key)).await?,
        second.value(&sql::try_and_unlock(key)).await?,
    ];
    first.look().await?;
    second.look().await?;
    Ok(answers == ["t", "", "t", "t"])
}

/// A pool that takes no transactions shares its sessions after each statement, and says so in words of its own.
fn without_transactions(failure: Failure) -> Failure {
    match failure.sql_state() {
        Some("08P01") => Failure::another_session(),
        _ => failure,
    }
}
