//! What looks like a server with locks and is none: pools that share sessions, standbys, locks that do nothing.

use std::io::Write as _;
use std::time::Instant;

use tempfile::TempDir;
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile};

use crate::server::{Daemon, Server, free_port, unprivileged_dir, write_for_unprivileged};
use crate::support::{HANG, Holder, take};

struct PgBouncer {
    _daemon: Daemon,
    dir: TempDir,
    port: u16,
}

impl PgBouncer {
    fn start(server: &Server, mode: &str, more: &str) -> Self {
        let (dir, port) = (unprivileged_dir(), free_port());
        let path = dir.path().to_str().unwrap();
        write_for_unprivileged(&dir.path().join("users"), "\"postgres\" \"\"\n");
        let configuration = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {path}/users\npool_mode = {mode}\n{more}\n",
            server.dir().display(),
            server.port,
        );
        let file = dir.path().join("pgbouncer.ini");
        write_for_unprivileged(&file, &configuration);
        let log = dir.path().join("log");
        let daemon = Daemon::start("/usr/sbin/pgbouncer", &["-q", file.to_str().unwrap()], &log, None);
        let bouncer = Self { _daemon: daemon, dir, port };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < HANG, "{}", bouncer.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        bouncer
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn lock(&self, parameters: &str) -> LockFile {
        LockFile::open(&format!("postgres://postgres@127.0.0.1:{}/postgres?{parameters}", self.port)).unwrap()
    }
}

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

/// Many that come at once share one proof, also when there are few connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_first_waits_proves_the_server_once() {
    // One for each of six locks, and one more for the proof.
    let server = Server::start("max_connections = 7\nsuperuser_reserved_connections = 0\nmax_wal_senders = 0");
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
    assert!(said.contains("do not exclude each other"), "{said}");
}

/// What is no server of PostgreSQL, or a hostile one, does not fill the memory.
#[tokio::test]
async fn an_answer_without_an_end_is_refused() {
    const MUCH: usize = 256 << 20;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        // An answer to the first message, with the greatest length that can be said.
        let mut sent = client.write(b"R\x7f\xff\xff\xff").unwrap();
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
