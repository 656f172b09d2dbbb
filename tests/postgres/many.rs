//! A thousand locks, and a thousand holders.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use crate::server::Server;
use crate::support::{HANG, in_own_process, take};

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// All of them stay held, and a heartbeat is cheap.
#[test]
fn a_thousand_locks_are_held() {
    if !in_own_process("many::a_thousand_locks_are_held") {
        return;
    }
    let server = Server::start("max_connections = 1100\nfsync = off");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        take(&server.lock("lock=first&ttl=10s")).await.release().await.unwrap();
        let before = resident_kib();
        let mut tasks = JoinSet::new();
        for number in 0..1_000 {
            let lock = server.lock(&format!("lock=many{number}&ttl=10s"));
            tasks.spawn(async move { lock.obtain().await.unwrap() });
        }
        let guards = tasks.join_all().await;
        let each = (resident_kib() - before) as f64 / 1_000.0;
        let (began, cpu) = (Instant::now(), cpu_time());
        tokio::time::sleep(Duration::from_secs(12)).await;
        let share = (cpu_time() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("1,000 locks at ttl 10 s: {:.1} % of a core, {each:.1} KiB each", share * 100.0);
        assert!(guards.iter().all(|guard| guard.is_held()));
        for guard in guards {
            guard.release().await.unwrap();
        }
    });
}

/// Processes take turns. Each holder has a higher token than the one before, whoever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_over_a_thousand_holders() {
    let server = Server::shared();
    let lock = server.lock("lock=thousand");
    let client = server.client().await;
    client.simple_query("CREATE TABLE tokens (place bigserial, token bigint)").await.unwrap();
    let mut processes = Vec::new();
    for _ in 0..4 {
        let mut command = crate::support::this_program();
        command.args(["many::take_turns", "--exact", "--nocapture"]).env(ROLE, lock.url().to_string());
        command.env("PGHOST", server.dir()).env("PGPORT", server.port.to_string());
        processes.push(command.stdout(std::process::Stdio::null()).spawn().unwrap());
    }
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let query = "SELECT count(*) || ' ' || count(*) FILTER (WHERE token <= before) FROM \
                 (SELECT token, lag(token) OVER (ORDER BY place) AS before FROM tokens) AS pairs";
    assert_eq!(crate::server::value(&client, query).await, "1000 0");
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_TAKE_TURNS";

/// Not a real test: the processes of the test above run this.
#[tokio::test]
async fn take_turns() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let lock = tokio_lockfile::LockFile::open(&url).unwrap();
    let mut config = tokio_postgres::Config::new();
    config.host(std::env::var("PGHOST").unwrap()).port(std::env::var("PGPORT").unwrap().parse().unwrap());
    let (client, connection) = config.user("postgres").dbname("postgres").connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..250 {
        let guard = tokio::time::timeout(HANG, lock.obtain()).await.unwrap().unwrap();
        let token = guard.fencing_token().unwrap() as i64;
        client.execute("INSERT INTO tokens (token) VALUES ($1)", &[&token]).await.unwrap();
        guard.release().await.unwrap();
    }
}
