//! A client as many write it: PostgreSQL's advisory locks, without a lease.

use std::path::Path;
use std::time::Duration;

use rustix::process::getppid;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls};

use crate::client::{how_long, is_over, lease_of, runtime};
use crate::history::{Journal, LOCKS, Outcome, Turn, Way, now};
use crate::server::key;

pub(crate) fn work(journal: &Path, url: &str, seed: u64) {
    fastrand::seed(seed);
    let (dir, parent) = (journal.parent().unwrap(), getppid());
    let is_over = || is_over(dir, parent);
    let (journal, lease) = (Journal::create(journal), lease_of(url));
    let mut config: Config = url.split_once('?').unwrap().0.parse().unwrap();
    config.connect_timeout(Duration::from_secs(2)).target_session_attrs(TargetSessionAttrs::ReadWrite);
    runtime().block_on(async {
        while !is_over() {
            let Ok(Ok((client, connection))) = timeout(Duration::from_secs(3), config.connect(NoTls)).await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            tokio::spawn(connection);
            while !is_over() && take_a_turn(&client, &journal, lease, is_over).await {}
        }
    });
}

/// Returns whether the session can still be used.
async fn take_a_turn(client: &Client, journal: &Journal, lease: Duration, is_over: impl Fn() -> bool) -> bool {
    let lock = fastrand::usize(..2);
    let mut entry = journal.begin(Turn::begin(lock, false, Way::Other, lease));
    let call = |function: &str| format!("SELECT {function}({})", key(LOCKS[lock]));
    let is_ours: bool = match timeout(lease, client.query_one(&call("pg_try_advisory_lock"), &[])).await {
        Ok(Ok(row)) => row.get(0),
        _ => {
            entry.end(Outcome::Failed);
            return false;
        }
    };
    if !is_ours {
        sleep(Duration::from_millis(20)).await;
        entry.end(Outcome::Busy);
        return true;
    }
    // Longer than ours: it has only short moments in which it is caught.
    let until = now() + if fastrand::bool() { lease } else { how_long(lease) };
    loop {
        let asked = now();
        if client.is_closed() {
            entry.end(Outcome::Lost);
            return false;
        }
        entry.held(asked);
        if asked > until || is_over() {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    let unlocked = timeout(lease, client.query_one(&call("pg_advisory_unlock"), &[])).await;
    entry.end(Outcome::Released);
    matches!(unlocked, Ok(Ok(_)))
}
