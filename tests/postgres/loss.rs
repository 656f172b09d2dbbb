//! How a lock is lost, and that its holder hears of it before the next one has it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LockGuard, LostReason};

use crate::proxy::Proxy;
use crate::server::{Server, key, until, until_stdin_ends, value, waiters};
use crate::support::{HANG, Holder, take};

async fn lost(guard: &LockGuard) -> LostReason {
    timeout(HANG, guard.lost()).await.expect("the loss is not noticed")
}

/// Ends the session that holds the lock.
fn terminate(name: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted \
         AND (classid::bigint << 32 | objid::bigint) = {}",
        key(name)
    )
}

#[tokio::test]
async fn a_terminated_session_is_a_lost_lock() {
    let server = Server::shared();
    // No heartbeat tells it.
    let (lock, client) = (server.lock("lock=terminated&ttl=10m"), server.client().await);
    let guard = take(&lock).await;
    let began = Instant::now();
    client.simple_query(&terminate("terminated")).await.unwrap();
    assert_eq!(lost(&guard).await, LostReason::Disconnected);
    println!("lost {:?} after pg_terminate_backend", began.elapsed());
    assert!(!guard.is_held());
    let error = guard.release().await.unwrap_err();
    assert!(matches!(error, LockError::Lost { reason: LostReason::Disconnected, .. }), "{error}");
    // The server says that it ends the session, and frees the lock then.
    timeout(HANG, lock.obtain()).await.unwrap().unwrap().release().await.unwrap();
}

/// The server counts from the request. So an answer that comes late says little about what is left of the lease.
#[tokio::test]
async fn a_late_answer_makes_the_lease_no_longer() {
    const LEASE: Duration = Duration::from_secs(10);
    let proxy = Proxy::before(&Server::shared().host());
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?lock=late&ttl=10s", proxy.port);
    let guard = take(&LockFile::open(&url).unwrap()).await;
    proxy.stop_answers();
    let before = proxy.answered();
    while proxy.answered() == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answered = Instant::now();
    tokio::time::sleep(LEASE / 2).await;
    // This answer still comes, and then nothing, not even the end that the server makes.
    proxy.stop_requests();
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.stop();
    let lost = timeout(LEASE.saturating_sub(answered.elapsed()) + LEASE / 5, guard.lost()).await;
    assert_eq!(lost.expect("the lease counts from the answer"), LostReason::Expired);
}

/// Many locks, so that the requests meet heartbeats.
#[tokio::test]
async fn a_cancel_request_does_not_harm_a_lock() {
    let server = Server::start("");
    let client = server.client().await;
    let mut guards = Vec::new();
    for number in 0..80 {
        guards.push(take(&server.lock(&format!("lock={number}&ttl=4s"))).await);
    }
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'";
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) || server.log().matches("canceling statement").count() < 3 {
        client.simple_query(cancel).await.unwrap();
        assert!(guards.iter().all(LockGuard::is_held));
        assert!(began.elapsed() < HANG, "no request meets a heartbeat");
    }
    for guard in guards {
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn an_idle_holder_keeps_its_lock_and_shows_no_transaction() {
    let server = Server::shared();
    let (lock, client) = (server.lock("lock=idle&ttl=4s"), server.client().await);
    let guard = take(&lock).await;
    let is_idle = format!(
        "SELECT state = 'idle' AND xact_start IS NULL FROM pg_stat_activity JOIN pg_locks USING (pid) \
         WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = {}",
        key("idle")
    );
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        // A heartbeat may be under way, but it ends.
        until(&client, &is_idle, "t").await;
        assert!(guard.is_held());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guard.release().await.unwrap();
}

/// The process is stopped for longer than its lease: another one has the lock, and the first one knows it when it goes on.
#[tokio::test]
async fn a_stopped_holder_knows_that_it_has_lost_the_lock() {
    let lock = Server::shared().lock("lock=stopped&ttl=1s");
    let mut holder = Holder::run("loss::hold_and_tell", ROLE, &lock, "HELD");
    let pid = Pid::from_raw(holder.pid() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    let guard = timeout(HANG, lock.obtain()).await.expect("the lock does not come").unwrap();
    println!("next holder {:?} after SIGSTOP", began.elapsed());
    kill_process(pid, Signal::CONT).unwrap();
    holder.says("is_held=false lost=true");
    guard.release().await.unwrap();
    holder.kill();
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_HOLD_AND_TELL";

/// Not a real test: the process of the test above runs this.
#[tokio::test]
async fn hold_and_tell() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let guard = tokio_lockfile::LockFile::open(&url).unwrap().obtain().await.unwrap();
    println!("HELD");
    while guard.is_held() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // It hears of the loss on every way.
    let is_held = guard.is_held();
    let is_lost = timeout(HANG, guard.lost()).await.is_ok();
    println!("is_held={is_held} lost={is_lost}");
    until_stdin_ends();
}

#[tokio::test]
async fn a_smart_stop_waits_for_the_holder_and_refuses_others() {
    let mut server = Server::start("");
    let lock = server.lock("lock=smart&ttl=4s");
    let guard = take(&lock).await;
    server.begin_stop("smart");
    let began = Instant::now();
    let other = server.lock("lock=other&ttl=2s");
    let error = loop {
        match other.attempt().await {
            Err(error) => break error,
            Ok(_) => assert!(began.elapsed() < HANG),
        }
    };
    assert!(matches!(error, LockError::Engine { .. }) && error.to_string().contains("57P03"), "{error}");
    // More than a lease later.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    drop(other);
    server.has_stopped();
    server.run();
    take(&lock).await.release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_takes_the_lock_and_tells_those_who_wait() {
    for mode in ["fast", "immediate"] {
        let mut server = Server::start("");
        let lock = server.lock("lock=x&ttl=3s");
        let client = server.client().await;
        client.simple_query(&format!("SELECT pg_advisory_lock({})", key("waited"))).await.unwrap();
        let wait = server.waiting(&server.lock("lock=waited&ttl=3s"), "waited").await;
        let guard = take(&lock).await;
        server.begin_stop(mode);
        let began = Instant::now();
        assert_eq!(lost(&guard).await, LostReason::Disconnected);
        println!("lost {:?} after stop -m {mode}", began.elapsed());
        let error = timeout(HANG, wait).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, LockError::Engine { .. }), "{error}");
        assert!(guard.release().await.is_err());
        server.has_stopped();
        let error = lock.attempt().await.unwrap_err();
        assert_eq!(error.io_error().map(std::io::Error::kind), Some(std::io::ErrorKind::ConnectionRefused), "{error}");
        server.run();
        take(&lock).await.release().await.unwrap();
    }
}

/// Without the flush of the token, the number of the transaction came again in every crash.
#[tokio::test]
async fn a_token_grows_over_restarts_and_crashes() {
    let mut server = Server::start("synchronous_commit = off\nwal_writer_delay = 10s\nwal_writer_flush_after = 0");
    let lock = server.lock("lock=x");
    let mut last = 0;
    for round in 0..6 {
        let guard = take(&lock).await;
        let token = guard.fencing_token().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
        if round % 3 == 0 {
            server.begin_stop("fast");
            server.has_stopped();
        } else {
            server.crash();
        }
        lost(&guard).await;
        server.run();
    }
}

#[tokio::test]
async fn the_defaults_of_a_role_change_nothing() {
    let server = Server::shared();
    let client = server.client().await;
    let settings = [
        ("statement_timeout", "30ms"),
        ("lock_timeout", "30ms"),
        ("idle_session_timeout", "1s"),
        ("idle_in_transaction_session_timeout", "30ms"),
        ("search_path", "hostile"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("synchronous_commit", "off"),
        ("client_connection_check_interval", "10ms"),
    ];
    client
        .simple_query("CREATE ROLE hostile LOGIN; CREATE SCHEMA hostile; GRANT USAGE ON SCHEMA hostile TO PUBLIC")
        .await
        .unwrap();
    client
        .simple_query(
            "CREATE FUNCTION hostile.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        )
        .await
        .unwrap();
    for (name, value) in settings {
        client.simple_query(&format!("ALTER ROLE hostile SET {name} = '{value}'")).await.unwrap();
    }
    let url = server.url("lock=hostile&ttl=6s").replace("postgres@", "hostile@");
    let lock = tokio_lockfile::LockFile::open(&url).unwrap();
    let guard = take(&lock).await;
    assert!(guard.fencing_token().is_some());
    let wait = {
        // Another process has to wait at the server.
        let mut process = Holder::start(&lock);
        until(&client, &waiters("hostile"), "1").await;
        let place = waiters("hostile").replace("count(*)", "max(pid)");
        let first = value(&client, &place).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            assert!(guard.is_held());
            // No timeout of the role ends its session.
            assert_eq!(value(&client, &place).await, first);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        guard.release().await.unwrap();
        process.has_it();
        process
    };
    wait.release();
}
