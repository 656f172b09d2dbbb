//! What looks like a server with locks and is none: pools that share sessions, standbys, locks that do nothing.

use std::collections::BTreeMap;
use std::io::Write as _;

use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile};

use crate::pools::PgBouncer;
use crate::server::{Server, value};
use crate::support::{HANG, Holder, take};

async fn refusal(lock: &LockFile) -> String {
    match timeout(HANG, lock.attempt()).await.expect("hangs") {
        Err(error @ LockError::Unsupported { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pool_that_shares_sessions_is_refused() {
    let server = Server::start("");
    for mode in ["transaction", "statement"] {
        // Taking turns over many server sessions hides it from those who look only once.
        for more in ["", "server_round_robin = 1", "min_pool_size = 5", "server_round_robin = 1\nmin_pool_size = 4"] {
            let bouncer = PgBouncer::start(&server, mode, more);
            // Each name of the parameter is a server of its own for this process, so each one is proven.
            for ttl in ["3s", "4s", "5s"] {
                let said = refusal(&bouncer.lock(&format!("lock=x&ttl={ttl}"))).await;
                assert!(said.contains("pool_mode session"), "{mode} {more}: {said}");
            }
        }
    }
}

/// The settings of each of the five server sessions of a pool, and its advisory locks.
async fn state(bouncer: &PgBouncer) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let client = bouncer.client().await;
        let query = "SELECT pg_backend_pid() || E'\\n' || string_agg(name || '=' || coalesce(setting, ''), E'\\n' ORDER BY name) || \
                     coalesce((SELECT string_agg(l::text, E'\\n') FROM pg_locks l WHERE locktype = 'advisory'), '') \
                     FROM pg_settings";
        // In a transaction that stays open, so that the next client gets another session.
        let found = value(&client, &format!("BEGIN; {query}")).await;
        let (pid, found) = found.split_once('\n').unwrap();
        state.insert(pid.to_owned(), found.to_owned());
        clients.push(client);
    }
    for client in clients {
        client.simple_query("COMMIT").await.unwrap();
    }
    state
}

/// An application that has three clients at work, until it is dropped.
async fn application(bouncer: &PgBouncer) -> tokio::task::JoinSet<()> {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let client = bouncer.client().await;
        clients.spawn(async move {
            loop {
                client.simple_query("SELECT 1").await.unwrap();
            }
        });
    }
    clients
}

/// The application that has the pool finds its sessions as it left them.
#[tokio::test]
async fn a_refused_pool_is_as_it_was() {
    let server = Server::start("");
    let pool = "default_pool_size = 5\nmin_pool_size = 5";
    for more in [pool.to_owned(), format!("{pool}\nserver_round_robin = 1")] {
        let bouncer = PgBouncer::start(&server, "transaction", &more);
        let before = state(&bouncer).await;
        assert_eq!(before.len(), 5);
        for ttl in 1..=10 {
            let lock = bouncer.lock(&format!("lock=x&ttl={ttl}s"));
            let busy = if ttl % 2 == 0 { Some(application(&bouncer).await) } else { None };
            refusal(&lock).await;
            for refused in [lock.obtain().await.map(drop), lock.holder().await.map(drop)] {
                assert!(matches!(refused, Err(LockError::Unsupported { .. })), "{refused:?}");
            }
            drop(busy);
            let after = state(&bouncer).await;
            assert_eq!(after, before, "{more}");
        }
    }
}

#[tokio::test]
async fn a_pool_of_sessions_works() {
    let server = Server::start("");
    let bouncer = PgBouncer::start(&server, "session", "default_pool_size = 10");
    let (lock, direct) = (bouncer.lock("lock=x&ttl=4s"), server.lock("lock=x"));
    let holder = Holder::holding(&lock);
    assert!(direct.attempt().await.unwrap().is_none() && lock.attempt().await.unwrap().is_none());
    let wait = server.waiting(&lock, "x").await;
    holder.kill();
    let guard = timeout(HANG, wait).await.unwrap().unwrap().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    drop(take(&direct).await);
}

/// A service of many processes that all start at the same moment: each needs one connection.
#[tokio::test]
async fn a_burst_of_processes_needs_a_connection_each() {
    const PROCESSES: usize = 12;
    let limit = format!("max_connections = {PROCESSES}\nsuperuser_reserved_connections = 0\nmax_wal_senders = 0");
    let server = Server::start(&limit);
    let start = |number| Holder::start(&server.lock(&format!("lock={number}")));
    let mut processes: Vec<_> = (0..PROCESSES).map(start).collect();
    processes.iter_mut().for_each(Holder::has_it);
    processes.into_iter().for_each(Holder::release);
    assert!(!server.log().contains("too many"), "{}", server.log());
}

/// Many that come at once share one proof, also when there are few connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_first_waits_proves_the_server_once() {
    // One for each of six locks.
    let server = Server::start("max_connections = 6\nsuperuser_reserved_connections = 0\nmax_wal_senders = 0");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..6 {
        let lock = server.lock(&format!("lock={number}"));
        tasks.spawn(async move { lock.obtain().await.unwrap() });
    }
    let guards = timeout(HANG, tasks.join_all()).await.expect("hangs");
    assert!(guards.iter().all(|guard| guard.is_held()));
}

#[tokio::test]
async fn a_standby_is_refused_until_it_is_the_primary() {
    let mut primary = Server::start("wal_keep_size = 64");
    let standby = primary.standby();
    let said = refusal(&standby.lock("lock=x")).await;
    assert!(said.contains("hot standby"), "{said}");
    // In a list of hosts, the primary is taken.
    let both = format!("postgres://postgres@{},{}/postgres?lock=x&ttl=3s", standby.host(), primary.host());
    let lock = LockFile::open(&both).unwrap();
    let guard = take(&lock).await;
    assert!(primary.lock("lock=x").attempt().await.unwrap().is_none());
    let old = guard.fencing_token().unwrap();
    primary.crash();
    timeout(HANG, guard.lost()).await.expect("the loss is not noticed");
    assert!(guard.release().await.is_err());
    standby.promote();
    let guard = take(&lock).await;
    let new = guard.fencing_token().unwrap();
    assert!(new > old && new >> 48 > old >> 48, "{new:x} after {old:x}");
    assert!(standby.lock("lock=x").attempt().await.unwrap().is_none());
    guard.release().await.unwrap();
}

/// A server that takes every statement and locks nothing, as some that speak the protocol of PostgreSQL do.
#[tokio::test]
async fn locks_that_do_nothing_are_refused() {
    let server = Server::start("allow_system_table_mods = on");
    let client = server.client().await;
    for name in ["pg_try_advisory_lock", "pg_advisory_unlock"] {
        let replaced = format!(
            "CREATE OR REPLACE FUNCTION pg_catalog.{name}(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        );
        client.simple_query(&replaced).await.unwrap();
    }
    let said = refusal(&server.lock("lock=x")).await;
    assert!(said.contains("do not exclude"), "{said}");
}

/// What is no server of PostgreSQL, or a hostile one, does not fill the memory.
#[tokio::test]
async fn an_answer_without_an_end_is_refused() {
    const MUCH: usize = 256 << 20;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        // A refusal, with the greatest length that can be said.
        let mut sent = client.write(b"E\x7f\xff\xff\xff").unwrap();
        while sent < MUCH {
            match client.write(&[0; 1 << 16]) {
                Ok(more) => sent += more,
                Err(_) => break,
            }
        }
        sent
    });
    let url = format!("postgres://a@127.0.0.1:{port}/a?lock=x&sslmode=disable&connect_timeout=1h");
    let attempt = timeout(HANG, LockFile::open(&url).unwrap().attempt()).await.expect("hangs");
    let error = attempt.unwrap_err().to_string();
    assert!(server.join().unwrap() < MUCH);
    assert!(error.contains("more than was asked for"), "{error}");
}
