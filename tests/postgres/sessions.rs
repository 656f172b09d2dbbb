//! What other users of the database notice.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::server::{Server, key, until, value};
use crate::support::{HANG, take};

/// Both wait for every transaction that is older than themselves, here the holder of the lock itself. A wait that was
/// one long statement would keep them waiting as long as the lock is held: a deadlock.
#[tokio::test]
async fn waiters_keep_no_index_and_no_vacuum_waiting() {
    let server = Server::start("autovacuum = off");
    let client = server.client().await;
    client.simple_query("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    client.simple_query(&format!("SELECT pg_advisory_lock({})", key("x"))).await.unwrap();
    let lock = server.lock("lock=x&ttl=30s");
    let wait = server.waiting(&lock, "x").await;
    timeout(HANG, client.simple_query("CREATE INDEX CONCURRENTLY i ON t (n)")).await.expect("hangs").unwrap();
    client.simple_query("DELETE FROM t").await.unwrap();
    // Once no statement is as old as the rows, VACUUM removes the rows.
    let began = Instant::now();
    loop {
        client.simple_query("VACUUM t").await.unwrap();
        if value(&client, "SELECT pg_relation_size('t')").await == "0" {
            break;
        }
        assert!(began.elapsed() < HANG, "the wait keeps the rows");
    }
    client.simple_query(&format!("SELECT pg_advisory_unlock({})", key("x"))).await.unwrap();
    timeout(HANG, wait).await.unwrap().unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_released_lock_leaves_a_warm_session_for_a_moment_only() {
    let server = Server::start("");
    let client = server.client().await;
    let lock = server.lock("lock=x&ttl=30s");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%[%]@%'";
    for _ in 0..5 {
        take(&lock).await.release().await.unwrap();
        assert_eq!(value(&client, sessions).await, "1", "the session is used again");
    }
    let released = Instant::now();
    until(&client, sessions, "0").await;
    // The server would end it after the lease.
    assert!(released.elapsed() < Duration::from_secs(25));
    // However long the lease is.
    take(&server.lock("lock=x&ttl=10m")).await.release().await.unwrap();
    until(&client, sessions, "0").await;
}

/// As with passwords that change, or with handles that differ in an option.
#[tokio::test]
async fn all_settings_for_one_server_have_few_warm_sessions_together() {
    let server = Server::start("");
    let client = server.client().await;
    for settings in 0..3 {
        let mut guards = Vec::new();
        for number in 0..12 {
            let lock = server.lock(&format!("lock={settings}.{number}&ttl=5m&application_name=app{settings}"));
            guards.push(take(&lock).await);
        }
        for guard in guards {
            guard.release().await.unwrap();
        }
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'app%[%]@%'";
    let began = Instant::now();
    // The server needs a moment for the end of the others.
    while value(&client, sessions).await.parse::<u32>().unwrap() > 16 {
        assert!(began.elapsed() < Duration::from_secs(5), "more than sixteen stay");
    }
}

/// The server ends the warm session while an attempt takes it. The attempt makes another one.
#[tokio::test]
async fn a_warm_session_that_ends_is_no_error() {
    let server = Server::start("");
    let client = server.client().await;
    let lock = server.lock("lock=x");
    take(&lock).await.release().await.unwrap();
    for _ in 0..60 {
        let warm = value(&client, "SELECT max(pid) FROM pg_stat_activity WHERE application_name LIKE '%[%]@%'").await;
        let terminate = format!("SELECT pg_terminate_backend({warm})");
        let (attempt, _) = tokio::join!(lock.attempt(), client.simple_query(&terminate));
        // It may have been the session of the lock already.
        let _ = attempt.unwrap().expect("nobody else is there").release().await;
        timeout(HANG, lock.obtain()).await.unwrap().unwrap().release().await.unwrap();
    }
}

/// The password file and the variables of libpq, in a process that has them.
#[tokio::test]
async fn the_password_file_and_the_variables_of_libpq_count() {
    let server = Server::start("");
    let client = server.client().await;
    client.simple_query("CREATE ROLE app LOGIN PASSWORD 'S3cret:Pw'").await.unwrap();
    server.require_password();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pgpass");
    std::fs::write(&file, format!("127.0.0.1:{}:*:app:S3cret\\:Pw\n", server.port)).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let run = |variables: &[(&str, &str)]| {
        let mut command = crate::support::this_program();
        command.args(["support::hold_for_parent", "--exact", "--nocapture"]).stdin(Stdio::null());
        command.env("TOKIO_LOCKFILE_TEST_HOLD", "postgres:///postgres?lock=x").env("PGPASSFILE", "/nowhere");
        command.env("PGHOST", "127.0.0.1").env("PGPORT", server.port.to_string()).env("PGUSER", "app");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (said.contains("HELD"), said)
    };
    let file_name = file.to_str().unwrap();
    assert!(run(&[("PGPASSFILE", file_name)]).0);
    assert!(run(&[("PGPASSWORD", "S3cret:Pw")]).0);
    for wrong in [&[][..], &[("PGPASSWORD", "wr0ng")]] {
        let (has_lock, said) = run(wrong);
        assert!(!has_lock && !said.contains("S3cret") && !said.contains("wr0ng"), "{said}");
    }
    // A file that others can read does not count.
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(!run(&[("PGPASSFILE", file_name)]).0);
}

#[tokio::test]
async fn the_first_host_that_answers_is_taken() {
    let server = Server::shared();
    let closed = crate::server::free_port();
    let url = format!("postgres://postgres@127.0.0.1:{closed},127.0.0.1:{}/postgres?lock=hosts", server.port);
    take(&tokio_lockfile::LockFile::open(&url).unwrap()).await.release().await.unwrap();
    let directory = server.dir().to_str().unwrap().replace('/', "%2F");
    let url = format!("postgres://postgres@{directory}:{}/postgres?lock=hosts", server.port);
    take(&tokio_lockfile::LockFile::open(&url).unwrap()).await.release().await.unwrap();
}

/// A server that takes the connection and says nothing, and one whose address nobody answers at.
#[tokio::test]
async fn nothing_hangs_on_a_silent_server() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Nobody accepts here, and the queue of the kernel is full.
    let full = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&full, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let full = std::net::TcpListener::from(full);
    let _filling = std::net::TcpStream::connect(full.local_addr().unwrap()).unwrap();
    for listener in [silent, full] {
        let port = listener.local_addr().unwrap().port();
        let url = format!("postgres://a@127.0.0.1:{port}/a?lock=x&connect_timeout=1");
        let lock = tokio_lockfile::LockFile::open(&url).unwrap();
        for error in [lock.attempt().await.map(drop).unwrap_err(), lock.obtain().await.map(drop).unwrap_err()] {
            assert!(error.to_string().contains("has not answered for 1s"), "{error}");
        }
    }
}

/// The turn of its process is free then, not after the time for the connection.
#[tokio::test]
async fn a_dropped_wait_does_not_go_on_connecting() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://a@127.0.0.1:{port}/a?lock=x&connect_timeout=1h");
    let lock = tokio_lockfile::LockFile::open(&url).unwrap();
    for _ in 0..3 {
        let wait = tokio::spawn({
            let lock = lock.clone();
            async move { lock.obtain().await.map(drop) }
        });
        let (mut connection, _) = timeout(HANG, silent.accept()).await.expect("nobody connects").unwrap();
        wait.abort();
        timeout(HANG, connection.read_to_end(&mut Vec::new())).await.expect("it goes on").unwrap();
    }
}

/// A service that starts while its database is away: each of its locks tells so after one time-out, not after those of all.
#[tokio::test]
async fn many_locks_hear_of_a_silent_server_at_the_same_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let url = format!("postgres://a@127.0.0.1:{port}/a?lock={number}&connect_timeout=1s");
        let lock = tokio_lockfile::LockFile::open(&url).unwrap();
        tasks.spawn(async move { lock.attempt().await.map(drop) });
    }
    let answers = timeout(HANG, tasks.join_all()).await.expect("one waits for the other");
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(error.to_string().contains("has not answered for 1s"), "{error}");
    }
}

/// A long lease keeps the lock over a long silence of the server. But no call of ours is silent for so long.
#[tokio::test]
async fn a_release_does_not_hang_on_a_server_that_falls_silent() {
    for is_dropped in [false, true] {
        let server = Server::shared();
        let proxy = Proxy::start(server.port).await;
        let url =
            format!("postgres://postgres@127.0.0.1:{}/postgres?lock=silent&ttl=10m&connect_timeout=1s", proxy.port);
        let lock = tokio_lockfile::LockFile::open(&url).unwrap();
        let guard = take(&lock).await;
        proxy.fall_silent();
        if is_dropped {
            drop(guard);
        } else {
            let error = timeout(HANG, guard.release()).await.expect("hangs").unwrap_err();
            assert!(error.to_string().contains("has not answered for 1s"), "{error}");
        }
        let error = timeout(HANG, lock.attempt()).await.expect("hangs").unwrap_err();
        assert!(error.to_string().contains("has not answered for 1s"), "{error}");
        // The network heals, and the server hears that the session has ended.
        proxy.speak();
        let client = server.client().await;
        until(&client, &crate::server::sessions("silent", true), "0").await;
    }
}

/// The first of them connects, which takes a while. The others wait for what comes of it.
#[tokio::test]
async fn readers_try_together_although_the_server_is_slow() {
    let server = Server::shared();
    let proxy = Proxy::start(server.port).await;
    proxy.fall_silent();
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?lock=slow&shared", proxy.port);
    let lock = tokio_lockfile::LockFile::open(&url).unwrap();
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let lock = lock.clone();
        attempts.spawn(async move { lock.attempt().await });
    }
    // Longer than a try for a file may take. If it is not long enough, the test sees less.
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.speak();
    while let Some(attempt) = timeout(HANG, attempts.join_next()).await.expect("hangs") {
        assert!(attempt.unwrap().unwrap().is_some(), "a reader excludes another one");
    }
}

/// Carries bytes to a server and back, or nothing.
struct Proxy {
    port: u16,
    is_silent: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn start(server: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_silent = tokio::sync::watch::Sender::new(false);
        let silence = is_silent.subscribe();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = tokio::net::TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(carry(from_client, to_server, silence.clone()));
                tokio::spawn(carry(from_server, to_client, silence.clone()));
            }
        });
        Self { port, is_silent }
    }

    fn fall_silent(&self) {
        self.is_silent.send_replace(true);
    }

    fn speak(&self) {
        self.is_silent.send_replace(false);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut silence: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = [0; 4096];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if silence.wait_for(|is_silent| !is_silent).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
