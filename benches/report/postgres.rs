//! Locks on a PostgreSQL server on this machine, beside a bare client that runs the same statements.

use std::future::Future;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_lockfile::LockFile;
use tokio_postgres::{Client, NoTls};

use crate::handover::{Holder, now};
use crate::outcome::{Goal, Row, Times};

use server::{Server, key, sessions, until, waiters};

#[path = "../../tests/postgres/server.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
pub(crate) mod server;

/// What every lock gets with its grant: a number of the server's that is flushed.
const TOKEN: &str = "concat_ws(' ', pg_current_xact_id(), pg_walfile_name(pg_current_wal_insert_lsn()), \
                     pg_logical_emit_message(true, 'tokio_lockfile', ''))";

/// A wait has begun when this has passed since its first sign at the server.
const SETTLED: Duration = Duration::from_millis(5);

fn try_lock(name: &str) -> String {
    format!("SELECT CASE WHEN pg_try_advisory_lock({}) THEN {TOKEN} END", key(name))
}

fn wait_for(name: &str) -> String {
    format!("SELECT pg_advisory_lock({}), {TOKEN}", key(name))
}

fn unlock(name: &str) -> String {
    format!("SELECT pg_advisory_unlock({})", key(name))
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let (rounds, locks) = if is_quick { (20, 50) } else { (1_000, 1_000) };
    let server = Server::start("max_connections = 1100");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut rows = runtime.block_on(uncontended(&server, rounds));
    rows.push(first(&server, rounds / 20));
    rows.push(hand_over(&runtime, &server, rounds / 4));
    rows.push(kill(&runtime, &server, rounds / 50));
    rows.push(runtime.block_on(terminate(&server, rounds / 50)));
    rows.push(runtime.block_on(cancel(&server, rounds / 50)));
    rows.extend(runtime.block_on(held(&server, locks)));
    rows
}

fn beside(what: &str, beside: &'static str, ours: &Times, bare: &Times, goal: f64) -> Row {
    Row::new(what, beside, ours.over(bare), Goal::AtMost(goal), format!("{ours}; reference {bare}"))
}

fn seconds(what: &str, times: &Times, goal: f64) -> Row {
    Row::new(what, "seconds", times.seconds(), Goal::AtMost(goal), times.to_string())
}

async fn timed<T>(times: &mut Times, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    times.push(began.elapsed());
    done
}

async fn connect(server_url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(server_url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The URL of a bare client.
fn bare_url(server: &Server) -> String {
    format!("postgres://postgres@{}/postgres", server.host())
}

async fn uncontended(server: &Server, rounds: usize) -> Vec<Row> {
    let (lock, bare) = (server.lock("lock=bench"), connect(&bare_url(server)).await);
    let [mut attempts, mut releases, mut bare_attempts, mut bare_releases] = <[Times; 4]>::default();
    let (try_lock, unlock) = (try_lock("bare"), unlock("bare"));
    drop(lock.attempt().await.unwrap());
    for _ in 0..rounds {
        let guard = timed(&mut attempts, lock.attempt()).await.unwrap().expect("nobody else is there");
        timed(&mut releases, guard.release()).await.unwrap();
        timed(&mut bare_attempts, bare.simple_query(&try_lock)).await.unwrap();
        timed(&mut bare_releases, bare.simple_query(&unlock)).await.unwrap();
    }
    let reference = "tokio-postgres, the same statement";
    vec![
        beside("postgres: warm attempt, with token", reference, &attempts, &bare_attempts, 1.8),
        beside("postgres: release", reference, &releases, &bare_releases, 3.0),
    ]
}

/// A process of its own: prints how long its first attempt takes, in nanoseconds.
pub(crate) fn first_attempt(whose: &str, url: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let took = runtime.block_on(async {
        let began = Instant::now();
        if whose == "bare" {
            connect(url).await.simple_query(&try_lock("bare")).await.unwrap();
        } else {
            std::mem::forget(LockFile::open(url).unwrap().attempt().await.unwrap().unwrap());
        }
        began.elapsed()
    });
    print!("{}", took.as_nanos());
}

fn first(server: &Server, rounds: usize) -> Row {
    let measure = |whose: &str, url: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(["--first", whose, url]).stdout(Stdio::piped()).spawn().unwrap();
        let mut nanos = String::new();
        child.stdout.take().unwrap().read_to_string(&mut nanos).unwrap();
        assert!(child.wait().unwrap().success());
        Duration::from_nanos(nanos.parse().unwrap())
    };
    let (mut ours, mut bare) = (Times::default(), Times::default());
    for round in 0..rounds.max(5) {
        ours.push(measure("ours", &server.url(&format!("lock=first{round}"))));
        bare.push(measure("bare", &bare_url(server)));
    }
    beside("postgres: first attempt of a process", "tokio-postgres, connect and lock", &ours, &bare, 3.0)
}

/// Another process, which holds the lock with a bare client. It talks as that of `--hold` does.
pub(crate) fn hold_bare(url: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = connect(url).await;
        let mut byte = [0];
        while std::io::stdin().read_exact(&mut byte).is_ok() {
            client.simple_query(&wait_for("bare")).await.unwrap();
            crate::handover::say(now());
            if std::io::stdin().read_exact(&mut byte).is_err() {
                return;
            }
            let released_at = now();
            client.simple_query(&unlock("bare")).await.unwrap();
            crate::handover::say(released_at);
        }
    });
}

/// From the release in another process to the acquisition in this one.
fn hand_over(runtime: &Runtime, server: &Server, rounds: usize) -> Row {
    let lock = server.lock("lock=bench");
    let (mut ours, mut bare) = (Times::default(), Times::default());
    let mut holder = Holder::start(&lock);
    let mut bare_holder = Holder::by(&["--hold-bare", &bare_url(server)]);
    runtime.block_on(async {
        let (client, look) = (connect(&bare_url(server)).await, server.client().await);
        for _ in 0..rounds {
            holder.take();
            let waiting = tokio::spawn({
                let lock = lock.clone();
                async move {
                    let guard = lock.obtain().await.unwrap();
                    let obtained_at = now();
                    guard.release().await.unwrap();
                    obtained_at
                }
            });
            until(&look, &waiters("bench"), "1").await;
            sleep(SETTLED).await;
            let released_at = holder.release();
            ours.push(waiting.await.unwrap().saturating_sub(released_at));

            bare_holder.take();
            let waiting = async {
                client.simple_query(&wait_for("bare")).await.unwrap();
                let obtained_at = now();
                client.simple_query(&unlock("bare")).await.unwrap();
                obtained_at
            };
            let releasing = async {
                until(&look, &sessions("bare", false), "1").await;
                sleep(SETTLED).await;
                bare_holder.release()
            };
            let (obtained_at, released_at) = tokio::join!(waiting, releasing);
            bare.push(obtained_at.saturating_sub(released_at));
        }
    });
    beside("postgres: hand-over between processes", "tokio-postgres, blocking, with token", &ours, &bare, 1.5).if_missed(
        "the reference waits inside the server, which gives it the lock at once. A wait of ours must not stay there, as a \
         migration with CREATE INDEX CONCURRENTLY would fail: the release wakes it by NOTIFY, and it tries in a statement \
         of its own.",
    )
}

fn kill(runtime: &Runtime, server: &Server, rounds: usize) -> Row {
    let lock = server.lock("lock=killed");
    let mut times = Times::default();
    for _ in 0..rounds.max(5) {
        let mut holder = Holder::start(&lock);
        holder.take();
        runtime.block_on(async {
            let wait = server.waiting(&lock, "killed").await;
            let killed_at = now();
            drop(holder);
            let guard = wait.await.unwrap().unwrap();
            times.push(now().saturating_sub(killed_at));
            guard.release().await.unwrap();
        });
    }
    seconds("postgres: from SIGKILL to the next holder", &times, 1.0)
}

async fn terminate(server: &Server, rounds: usize) -> Row {
    let (lock, client) = (server.lock("lock=ended"), server.client().await);
    let terminate = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE (classid::bigint << 32 | objid::bigint) = {}",
        key("ended")
    );
    let mut times = Times::default();
    for _ in 0..rounds.max(5) {
        // The server says that it ends the session, and frees the lock then.
        let guard = lock.obtain().await.unwrap();
        let began = Instant::now();
        let (_, _) = tokio::join!(guard.lost(), client.simple_query(&terminate));
        times.push(began.elapsed());
        drop(guard);
    }
    seconds("postgres: from pg_terminate_backend to lost", &times, 0.5)
}

async fn cancel(server: &Server, rounds: usize) -> Row {
    let (lock, client, look) = (server.lock("lock=cancel"), server.client().await, server.client().await);
    client.simple_query(&wait_for("cancel")).await.unwrap();
    let mut times = Times::default();
    for _ in 0..rounds.max(5) {
        let wait = server.waiting(&lock, "cancel").await;
        wait.abort();
        timed(&mut times, until(&look, &waiters("cancel"), "0")).await;
    }
    seconds("postgres: from a dropped wait to the end of the queue's entry", &times, 0.5)
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A process of its own: prints how many KiB it needs for each of so many locks that it holds.
pub(crate) fn hold_many(whose: &str, url: &str, count: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = resident_kib();
        let (mut guards, mut clients) = (JoinSet::new(), JoinSet::new());
        for number in 0..count {
            let url = url.to_owned();
            if whose == "bare" {
                clients.spawn(async move {
                    let client = connect(&url).await;
                    client.simple_query(&try_lock(&format!("held{number}"))).await.unwrap();
                    client
                });
            } else {
                let lock = LockFile::open(&format!("{url}?lock=held{number}&ttl=10s&connect_timeout=1m")).unwrap();
                guards.spawn(async move { lock.obtain().await.unwrap() });
            }
        }
        let (guards, clients) = (guards.join_all().await, clients.join_all().await);
        print!("{}", (resident_kib() - before) / (guards.len() + clients.len()) as f64);
    });
}

fn kib_of_each(server: &Server, whose: &str, count: u32) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--hold-many", whose, &bare_url(server), &count.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

async fn held(server: &Server, count: u32) -> Vec<Row> {
    let (each, bare) = (kib_of_each(server, "ours", count), kib_of_each(server, "bare", count));
    // The sessions of those processes end.
    until(&server.client().await, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'", "1")
        .await;
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let lock = server.lock(&format!("lock=held{number}&ttl=10s&connect_timeout=1m"));
        tasks.spawn(async move { lock.obtain().await.unwrap() });
    }
    let guards = tasks.join_all().await;
    let (began, cpu) = (Instant::now(), cpu_time());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = (cpu_time() - cpu).div_duration_f64(began.elapsed()) * 100.0;
    drop(guards);
    let what = |what: &str| format!("postgres: {count} held locks, {what}");
    vec![
        Row::new(what("CPU"), "% of a core, ttl 10 s", share, Goal::AtMost(3.0), String::new()),
        Row::new(
            what("each"),
            "KiB",
            each,
            Goal::AtMost(24.0),
            format!("tokio-postgres alone, connected and locked: {bare:.1} KiB"),
        )
        .if_missed(
            "tokio-postgres needs most of it: each connection has 16 KiB of buffers, and all connect at once here: the \
             allocator keeps what that has needed.",
        ),
    ]
}
