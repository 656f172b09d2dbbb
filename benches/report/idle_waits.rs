//! What waits that last cost a PostgreSQL server.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_lockfile::LockFile;

use crate::outcome::{Goal, Row};
use crate::postgres::server::{Server, key, until, value};

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let counts: &[usize] = if is_quick { &[20] } else { &[1, 50, 300, 500] };
    let mut rows = Vec::new();
    for (whose, sessions) in [("one process", false), ("as many processes", true)] {
        for &count in counts {
            rows.push(runtime.block_on(idle(whose, count, sessions)));
        }
    }
    rows
}

/// `have_sessions`: all wait for one lock, as if in processes of their own. The library takes another list of hosts for
/// another server.
async fn idle(whose: &str, count: usize, have_sessions: bool) -> Row {
    let server = Server::start(
        "max_connections = 600\nlog_lock_waits = on\nlog_min_duration_statement = 1s\n\
         shared_preload_libraries = 'pg_stat_statements'",
    );
    let client = server.client().await;
    client.simple_query("CREATE EXTENSION pg_stat_statements").await.unwrap();
    for number in 0..count {
        client.simple_query(&format!("SELECT pg_advisory_lock({})", key(&number.to_string()))).await.unwrap();
    }
    let mut waits = JoinSet::new();
    for number in 0..count {
        let (hosts, name) = if have_sessions { (number + 1, 0) } else { (1, number) };
        let hosts = vec![server.host(); hosts].join(",");
        let url = format!("postgres://postgres@{hosts}/postgres?lock={name}&connect_timeout=1m");
        let lock = LockFile::open(&url).unwrap();
        waits.spawn(async move { lock.obtain().await.unwrap() });
    }
    // Each lock is held, and has a place that is taken.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'";
    until(&client, locks, &(2 * count).to_string()).await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%[%]@%'";
    // The sessions of the first attempts end after a while.
    let expected = if have_sessions { count } else { 1 };
    until(&client, sessions, &expected.to_string()).await;
    let calls = "SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE '%pg_is_in_recovery%'";
    let calls = async || value(&client, calls).await.parse::<f64>().unwrap();
    let (calls_before, cpu_before, log_before) = (calls().await, cpu_time(&server), server.log().len());
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (elapsed, cpu) = (began.elapsed(), cpu_time(&server) - cpu_before);
    let per_second = (calls().await - calls_before) / elapsed.as_secs_f64();
    let (log, connections) = (server.log().len() - log_before, value(&client, sessions).await);
    let share = cpu.div_duration_f64(elapsed) * 100.0;
    let details = format!("{connections} connections, {per_second:.1} statements a second, {log} bytes of log");
    waits.shutdown().await;
    Row::new(
        format!("postgres: {count} idle waits of {whose}"),
        "% of a core of the server",
        share,
        Goal::AtMost(1.0),
        details,
    )
}

/// The CPU time of all processes of the server, exact where proc(5) counts in hundredths of a second.
fn cpu_time(server: &Server) -> Duration {
    let file = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let postmaster = file.lines().next().unwrap();
    let mut nanos = 0;
    for process in std::fs::read_dir("/proc").unwrap() {
        let dir = process.unwrap().path();
        let Ok(stat) = std::fs::read_to_string(dir.join("stat")) else { continue };
        let (pid, rest) = (stat.split(' ').next().unwrap(), stat.rsplit_once(") ").unwrap().1);
        if pid == postmaster || rest.split(' ').nth(1) == Some(postmaster) {
            let times = std::fs::read_to_string(dir.join("schedstat")).unwrap();
            nanos += times.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    Duration::from_nanos(nanos)
}
