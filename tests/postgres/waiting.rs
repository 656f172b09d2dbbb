//! Waits: who comes next, and what they cost the server.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_lockfile::{LockError, LockFile, LockGuard};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::server::{Server, key, until, value, waiters};
use crate::support::{HANG, Holder, take};

async fn got(wait: JoinHandle<Result<LockGuard, LockError>>) -> LockGuard {
    timeout(HANG, wait).await.expect("the lock does not come").unwrap().unwrap()
}

/// The lock of another process: for the library, two lists of hosts are two servers.
fn of_another(server: &Server, number: usize, parameters: &str) -> LockFile {
    let hosts = vec![server.host(); number + 2].join(",");
    LockFile::open(&format!("postgres://postgres@{hosts}/postgres?{parameters}")).unwrap()
}

/// Holds the lock as psql does.
async fn hold(client: &Client, name: &str) {
    client.simple_query(&format!("SELECT pg_advisory_lock({})", key(name))).await.unwrap();
}

async fn release(client: &Client, name: &str) {
    assert_eq!(value(client, &format!("SELECT pg_advisory_unlock({})", key(name))).await, "t");
}

/// The server processes that wait for the lock, the first one first.
async fn queue(client: &Client, name: &str) -> String {
    let pids = waiters(name).replacen("count(*)", "coalesce(string_agg(pid::text, ' ' ORDER BY objid), '')", 1);
    value(client, &pids).await
}

fn signal(process: &Holder, signal: Signal) {
    kill_process(Pid::from_raw(process.pid() as i32).unwrap(), signal).unwrap();
}

/// Gets the lock again and again, and counts how often.
fn again_and_again(lock: LockFile, hold: Duration) -> (Arc<AtomicUsize>, JoinHandle<()>) {
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let task = tokio::spawn(async move {
        loop {
            let guard = lock.obtain().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            sleep(hold).await;
            guard.release().await.unwrap();
        }
    });
    (count, task)
}

/// Each of them begins to read before the last one ends.
#[tokio::test]
async fn a_writer_gets_the_lock_beside_readers_that_overlap() {
    let server = Server::shared();
    let mut readers = Vec::new();
    for number in 0..3 {
        let reader = of_another(server, number, "lock=overlap&ttl=1s").shared().unwrap();
        readers.push(again_and_again(reader, Duration::from_millis(600)));
        sleep(Duration::from_millis(200)).await;
    }
    let lock = server.lock("lock=overlap&ttl=1s");
    for _ in 0..3 {
        let began = Instant::now();
        timeout(HANG, lock.obtain()).await.expect("the writer starves").unwrap().release().await.unwrap();
        println!("a writer after {:?}", began.elapsed());
    }
    readers.into_iter().for_each(|(_, reader)| reader.abort());
}

#[tokio::test]
async fn eight_processes_take_turns() {
    let server = Server::shared();
    let processes: Vec<_> = (0..8)
        .map(|number| again_and_again(of_another(server, number, "lock=eight"), Duration::from_millis(1)))
        .collect();
    sleep(Duration::from_secs(3)).await;
    let counts: Vec<usize> = processes.iter().map(|(count, _)| count.load(Ordering::Relaxed)).collect();
    println!("{counts:?}");
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    // They begin one after the other.
    assert!(*most <= least + least / 2 + 8, "{counts:?}");
    processes.into_iter().for_each(|(_, process)| process.abort());
}

/// The one that waits is stopped, so the lock stays free for a while.
#[tokio::test]
async fn nobody_overtakes_who_waits() {
    let server = Server::shared();
    let (lock, client) = (server.lock("lock=first&ttl=30s"), server.client().await);
    hold(&client, "first").await;
    let mut waiting = Holder::start(&lock);
    until(&client, &waiters("first"), "1").await;
    signal(&waiting, Signal::STOP);
    release(&client, "first").await;
    for _ in 0..20 {
        assert!(lock.attempt().await.unwrap().is_none());
        assert!(lock.shared().unwrap().attempt().await.unwrap().is_none());
    }
    let next = server.waiting_as(&lock, "first", 2).await;
    assert!(!next.is_finished());
    signal(&waiting, Signal::CONT);
    waiting.has_it();
    waiting.release();
    got(next).await.release().await.unwrap();
    take(&lock).await.release().await.unwrap();
}

/// In the order in which they came, and each release wakes nobody but the next one.
#[tokio::test]
async fn the_queue_is_served_in_order_and_one_by_one() {
    const WAITERS: usize = 12;
    let server = Server::start("");
    let (lock, client) = (server.lock("lock=x"), server.client().await);
    let mut ear = Ear::open(&server).await;
    let guard = take(&lock).await;
    let mut waits = Vec::new();
    for number in 0..WAITERS {
        waits.push(server.waiting_as(&of_another(&server, number, "lock=x"), "x", number + 1).await);
    }
    let order = queue(&client, "x").await;
    let order: Vec<_> = order.split(' ').map(str::to_owned).collect();
    guard.release().await.unwrap();
    for wait in waits {
        got(wait).await.release().await.unwrap();
    }
    until(&client, &waiters("x"), "0").await;
    let woken = ear.heard().await;
    // Each is woken on its way to the turnstile, and when the lock is free. It may have the lock before the second time.
    let mut each_once = Vec::new();
    for process in &woken {
        if !each_once.contains(process) {
            each_once.push(process.clone());
        }
    }
    assert_eq!(each_once, order);
    assert!(woken.len() <= 2 * WAITERS, "{woken:?}");
}

/// Hears who is woken in the database.
struct Ear {
    client: Client,
    heard: UnboundedReceiver<String>,
}

impl Ear {
    async fn open(server: &Server) -> Self {
        let (hear, heard) = unbounded_channel();
        let config = format!("host={} port={} user=postgres", server.address(), server.port);
        let (client, mut connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = hear.send(notification.payload().to_owned());
                }
            }
        });
        let listen: String = (0..64).map(|channel| format!("LISTEN tokio_lockfile_{channel};")).collect();
        client.simple_query(&listen).await.unwrap();
        Self { client, heard }
    }

    /// The numbers of all server processes that were woken until now.
    async fn heard(&mut self) -> Vec<String> {
        self.client.simple_query("NOTIFY tokio_lockfile_0, 'now'").await.unwrap();
        let mut woken = Vec::new();
        loop {
            match timeout(HANG, self.heard.recv()).await.unwrap().unwrap() {
                now if now == "now" => return woken,
                process => woken.push(process),
            }
        }
    }
}

/// Whoever was before another one in the queue, and was killed, keeps nobody waiting.
#[tokio::test]
async fn who_is_killed_in_the_queue_keeps_nobody_waiting() {
    let server = Server::shared();
    let (lock, client) = (server.lock("lock=gaps&ttl=30s"), server.client().await);
    hold(&client, "gaps").await;
    let mut waiting = Vec::new();
    for number in 1..=4 {
        waiting.push(Holder::start(&lock));
        until(&client, &waiters("gaps"), &number.to_string()).await;
    }
    let mut last = waiting.pop().unwrap();
    waiting.into_iter().rev().for_each(Holder::kill);
    until(&client, &waiters("gaps"), "1").await;
    release(&client, "gaps").await;
    last.has_it();
    last.release();
}

/// The least number that PostgreSQL has, and the greatest. The places of their queues have any numbers too.
#[tokio::test]
async fn the_numbers_of_locks_have_all_64_bits() {
    let (server, client) = (Server::shared(), Server::shared().client().await);
    for key in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
        let lock = server.lock(&format!("key={key}"));
        client.simple_query(&format!("SELECT pg_advisory_lock({key})")).await.unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        let mut wait = Box::pin(lock.obtain());
        assert!(timeout(Duration::from_millis(300), wait.as_mut()).await.is_err());
        assert_eq!(value(&client, &format!("SELECT pg_advisory_unlock({key})")).await, "t");
        timeout(HANG, wait).await.expect("hangs").unwrap().release().await.unwrap();
    }
}

/// Fifty locks that psql holds. The server searches for no deadlock, and logs nothing.
#[tokio::test]
async fn waits_that_last_need_one_session_and_no_line_of_the_log() {
    const WAITS: usize = 50;
    let server = Server::start(
        "log_lock_waits = on\ndeadlock_timeout = 100ms\nlog_min_duration_statement = 1s\n\
         shared_preload_libraries = 'pg_stat_statements'",
    );
    let client = server.client().await;
    client.simple_query("CREATE EXTENSION pg_stat_statements").await.unwrap();
    for number in 0..WAITS {
        hold(&client, &number.to_string()).await;
    }
    let before = server.log().len();
    let mut waits = Vec::new();
    for number in 0..WAITS {
        let lock = server.lock(&format!("lock={number}&ttl=3s"));
        waits.push(server.waiting(&lock, &number.to_string()).await);
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%[%]@%'";
    until(&client, sessions, "1").await;
    let calls = || async {
        let calls = "SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE '%pg_is_in_recovery%'";
        value(&client, calls).await.parse::<f64>().unwrap()
    };
    let (began, calls_before, mut oldest) = (Instant::now(), calls().await, 0.0_f64);
    while began.elapsed() < Duration::from_secs(4) {
        let age = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) FROM pg_stat_activity \
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
        oldest = oldest.max(value(&client, age).await.parse().unwrap());
        assert_eq!(value(&client, "SELECT count(*) FROM pg_locks WHERE NOT granted").await, "0");
        sleep(Duration::from_millis(20)).await;
    }
    let (calls, elapsed) = (calls().await - calls_before, began.elapsed().as_secs_f64());
    println!("{:.1} statements a second, the oldest {oldest} s", calls / elapsed);
    assert!(calls / elapsed < 3.0, "{calls} in {elapsed} s");
    assert!(oldest < 1.0, "{oldest} s");
    assert_eq!(server.log().split_off(before), "");
    assert_eq!(value(&client, sessions).await, "1");
    client.simple_query("SELECT pg_advisory_unlock_all()").await.unwrap();
    for wait in waits {
        got(wait).await.release().await.unwrap();
    }
}

/// The last connection is somebody else's.
#[tokio::test]
async fn a_wait_needs_no_second_connection_when_its_turn_comes() {
    let server = Server::start("max_connections = 4\nsuperuser_reserved_connections = 0\nmax_wal_senders = 0");
    let client = server.client().await;
    hold(&client, "x").await;
    let wait = server.waiting(&server.lock("lock=x"), "x").await;
    let config = format!("host={} port={} user=postgres", server.address(), server.port);
    let mut others = Vec::new();
    let mut is_full = false;
    while !is_full {
        match tokio_postgres::connect(&config, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                others.push(client);
            }
            // A connection of the test's own may just be closing.
            Err(_) => is_full = others.len() == 2,
        }
    }
    release(&client, "x").await;
    got(wait).await.release().await.unwrap();
}

/// An administrator ends the session, or the server restarts. The waits go to the end of the queue.
#[tokio::test]
async fn a_wait_outlives_its_session_and_the_server() {
    let mut server = Server::start("");
    let client = server.client().await;
    hold(&client, "x").await;
    let wait = server.waiting(&server.lock("lock=x"), "x").await;
    let first = queue(&client, "x").await;
    client.simple_query(&format!("SELECT pg_terminate_backend({first})")).await.unwrap();
    let began = Instant::now();
    loop {
        let now = queue(&client, "x").await;
        if !now.is_empty() && now != first {
            break;
        }
        assert!(began.elapsed() < HANG, "it does not come back");
        sleep(Duration::from_millis(2)).await;
    }
    assert!(!wait.is_finished());
    server.begin_stop("fast");
    server.has_stopped();
    server.run();
    // The server has forgotten who had the lock.
    got(wait).await.release().await.unwrap();
    until(&server.client().await, &waiters("x"), "0").await;
}

#[tokio::test]
async fn a_wait_outlives_a_failover() {
    let mut primary = Server::start("");
    let standby = primary.standby();
    let url = format!("postgres://postgres@{},{}/postgres?lock=x", primary.host(), standby.host());
    let lock = LockFile::open(&url).unwrap();
    let client = primary.client().await;
    hold(&client, "x").await;
    let wait = primary.waiting(&lock, "x").await;
    primary.begin_stop("immediate");
    primary.has_stopped();
    standby.promote();
    got(wait).await.release().await.unwrap();
}

/// Anybody in the database can wake a session. That costs a look now and then.
#[tokio::test]
async fn who_wakes_a_wait_for_nothing_wakes_it_seldom() {
    let server = Server::start("shared_preload_libraries = 'pg_stat_statements'");
    let client = server.client().await;
    client.simple_query("CREATE EXTENSION pg_stat_statements").await.unwrap();
    hold(&client, "x").await;
    let wait = server.waiting(&server.lock("lock=x"), "x").await;
    let (began, pid) = (Instant::now(), queue(&client, "x").await);
    for _ in 0..2_000 {
        client.simple_query(&format!("SELECT pg_notify('tokio_lockfile_' || {pid} % 64, '{pid}')")).await.unwrap();
    }
    let looks = "SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE '%pg_try_advisory%'";
    let looks: f64 = value(&client, looks).await.parse().unwrap();
    println!("{looks} looks in {:?}", began.elapsed());
    assert!(looks <= began.elapsed().as_secs_f64() * 200.0 + 10.0, "{looks} looks in {:?}", began.elapsed());
    assert!(looks >= 2.0);
    release(&client, "x").await;
    got(wait).await.release().await.unwrap();
}

/// Anybody in the database can send as much as he likes to a session that listens.
#[tokio::test]
async fn a_flood_of_notifications_costs_no_lock() {
    let server = Server::start("");
    let client = server.client().await;
    hold(&client, "x").await;
    let wait = server.waiting(&server.lock("lock=x&ttl=30s"), "x").await;
    let pid = queue(&client, "x").await;
    release(&client, "x").await;
    let guard = got(wait).await;
    let flood = "repeat('x', 7900) || n) FROM generate_series(1, 6000) AS n";
    client.simple_query(&format!("SELECT pg_notify('tokio_lockfile_' || {pid} % 64, {flood}")).await.unwrap();
    guard.release().await.unwrap();
}

/// Another program's commit waits for a standby that is away, and every commit with a NOTIFY waits behind it.
#[tokio::test]
async fn the_lock_comes_although_nobody_can_be_woken() {
    let server = Server::start("synchronous_standby_names = 'away'");
    let (client, other) = (server.client().await, server.client().await);
    let guard = take(&server.lock("lock=x")).await;
    let mut waits = Vec::new();
    for number in 0..3 {
        waits.push(server.waiting_as(&of_another(&server, number, "lock=x"), "x", number + 1).await);
    }
    let stuck = tokio::spawn(async move { other.simple_query("CREATE TABLE t (); NOTIFY news").await.map(drop) });
    until(&client, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", "1").await;
    let began = Instant::now();
    guard.release().await.unwrap();
    for wait in waits {
        got(wait).await.release().await.unwrap();
    }
    println!("after {:?}", began.elapsed());
    assert!(!stuck.is_finished());
}

/// The same, and somebody ends every statement that waits for long: the lock is released by then.
#[tokio::test]
async fn a_cancel_request_that_meets_a_release_makes_no_loss_of_it() {
    let server = Server::start("synchronous_standby_names = 'away'");
    let (client, other) = (server.client().await, server.client().await);
    let mut guard = take(&server.lock("lock=x")).await;
    let stuck = tokio::spawn(async move { other.simple_query("CREATE TABLE t (); NOTIFY news").await.map(drop) });
    until(&client, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", "1").await;
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    for number in 0.. {
        let wait = server.waiting_as(&of_another(&server, number, "lock=x"), "x", 1).await;
        let release = tokio::spawn(guard.release());
        while !release.is_finished() {
            client.simple_query(cancel).await.unwrap();
        }
        release.await.unwrap().unwrap();
        guard = got(wait).await;
        if server.log().contains("canceling statement due to user request") {
            break;
        }
    }
    assert!(!stuck.is_finished());
}

/// Nobody but the superuser may wake anybody.
#[tokio::test]
async fn a_role_that_may_not_notify_gets_a_lock_and_gives_it_back() {
    let server = Server::start("");
    let client = server.client().await;
    client.batch_execute("CREATE ROLE app LOGIN; REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC").await.unwrap();
    let lock = |hosts: &str| LockFile::open(&format!("postgres://app@{hosts}/postgres?lock=x&ttl=30s")).unwrap();
    let guard = take(&lock(&server.host())).await;
    let wait = server.waiting(&lock(&[server.host(), server.host()].join(",")), "x").await;
    guard.release().await.unwrap();
    let guard = got(wait).await;
    let lost = timeout(Duration::from_secs(1), guard.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    guard.release().await.unwrap();
}
