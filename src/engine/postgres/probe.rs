//! Proves by a trial that locks exclude at a server. The name and the version of the server prove nothing.
//!
//! CockroachDB and others accept pg_advisory_lock and do nothing. PgBouncer gives two clients one server session, unless its
//! pool_mode is session.

use std::hash::{BuildHasher, RandomState};

use super::config::{LockNumber, Settings};
use super::failure::Failure;
use super::session::{Session, Tried};
use crate::words::mode::Mode;

/// Shows that two sessions exclude each other on a random lock. Returns one of them.
pub(super) async fn prove(settings: &Settings) -> Result<Session, Failure> {
    let (mut first, mut second) = tokio::try_join!(Session::open(settings), Session::open(settings))?;
    let limit = settings.connect_timeout;
    let lock = LockNumber { key: RandomState::new().hash_one(0) as i64, has_token: false };
    let mut tries = Vec::new();
    tries.push(is_granted(first.try_lock(lock, Mode::Exclusive).await?));
    tries.push(is_granted(second.try_lock(lock, Mode::Exclusive).await?));
    // The first session makes an odd number of statements in a row. So the trial fails also at a pool that sends the
    // statements to two server sessions in turn.
    first.beat(limit).await?;
    tries.push(first.unlock(lock, Mode::Exclusive, limit).await?);
    tries.push(first.unlock(lock, Mode::Exclusive, limit).await?);
    tries.push(is_granted(second.try_lock(lock, Mode::Exclusive).await?));
    tries.push(second.unlock(lock, Mode::Exclusive, limit).await?);
    match tries == [true, false, true, false, true, true] {
        true => Ok(first),
        false => {
            let reason = "two sessions do not exclude each other there; use PostgreSQL itself, and no pool in front of it \
                          that shares server sessions";
            Err(Failure::Unsupported(reason.into()))
        }
    }
}

fn is_granted(tried: Tried) -> bool {
    matches!(tried, Tried::Granted(_))
}
