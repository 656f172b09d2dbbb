//! A thousand locks that are held and a thousand that are waited for, through the bad days of a cluster.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_lockfile::{LockFile, LockGuard};

use crate::cluster::Cluster;
use crate::proxies;
use crate::support::{HANG, this_program};

const MANY: usize = 1_000;

/// How soon the cluster is as quiet as before.
const SOON: Duration = Duration::from_secs(10);

fn lock(endpoints: &str, name: &str, number: usize) -> LockFile {
    LockFile::open(&format!("etcd://{endpoints}/{name}/{number}?ttl=10s")).unwrap()
}

/// All of them at once.
async fn obtain(endpoints: &str, name: &'static str) -> JoinSet<LockGuard> {
    let mut waits = JoinSet::new();
    for number in 0..MANY {
        let lock = lock(endpoints, name, number);
        waits.spawn(async move { lock.obtain().await.unwrap() });
    }
    waits
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_MANY";

/// Another process, which holds what we wait for.
struct Other {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Other {
    fn start(endpoints: &str) -> Self {
        let mut child = this_program()
            .args(["many::hold_many", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, endpoints)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, stdout }
    }

    fn says(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "it ended without {word}");
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Not a real test: [`Other`] runs this.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test, and no work of the library")]
async fn hold_many() {
    let Ok(endpoints) = std::env::var(ROLE) else { return };
    let guards = obtain(&endpoints, "waited").await.join_all().await;
    println!("HELD");
    std::io::stdout().flush().unwrap();
    let told = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let _ = told.await;
    for guard in guards {
        guard.release().await.unwrap();
    }
}

/// Messages from clients in each second.
async fn traffic(cluster: &Cluster) -> u64 {
    const SPAN: Duration = Duration::from_secs(4);
    let before = cluster.messages();
    sleep(SPAN).await;
    cluster.messages().saturating_sub(before) / SPAN.as_secs()
}

async fn calms_down(cluster: &Cluster, idle: u64, after: &str) {
    let began = Instant::now();
    loop {
        let now = traffic(cluster).await;
        println!("{now} messages a second, {:?} after {after}; {idle} before", began.elapsed());
        if now <= 2 * idle + 5 {
            return;
        }
        assert!(began.elapsed() < SOON, "{now} messages a second after {after}, and {idle} before");
    }
}

async fn a_bad_day(mut cluster: Cluster, endpoints: &str) {
    let began = Instant::now();
    let mut other = Other::start(endpoints);
    other.says("HELD");
    let guards = obtain(endpoints, "held").await.join_all().await;
    let waits = obtain(endpoints, "waited").await;
    while cluster.keys("waited").len() < 2 * MANY {
        assert!(began.elapsed() < 2 * HANG, "they do not queue up");
        sleep(Duration::from_millis(200)).await;
    }
    println!("all are there after {:?}", began.elapsed());
    sleep(Duration::from_secs(3)).await;
    let idle = traffic(&cluster).await;
    let are_held = |after: &str| {
        let lost = guards.iter().filter(|guard| !guard.is_held()).count();
        assert_eq!(lost, 0, "locks are lost after {after}");
    };

    for member in 0..3 {
        cluster.kill(member);
        cluster.start(member);
        cluster.wait_until_all_are_healthy();
        if member == 0 {
            calms_down(&cluster, idle, "a restart").await;
        }
    }
    are_held("the restarts");
    calms_down(&cluster, idle, "the restart of all, one after the other").await;

    for number in 0..5 {
        cluster.ask(&["put", "filler", &number.to_string()]);
        let fields = cluster.ask(&["get", "filler", "-w", "fields"]);
        let revision = fields.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
        cluster.ask(&["compact", revision]);
        sleep(Duration::from_secs(1)).await;
        if number == 2 {
            let leader = cluster.leader();
            cluster.kill(leader);
            cluster.start(leader);
            cluster.wait_until_all_are_healthy();
        }
    }
    cluster.move_leader();
    are_held("compactions and a leader's move");
    calms_down(&cluster, idle, "compactions and a leader's move").await;
    are_held("all");

    let released = Instant::now();
    drop(other.stdin.take());
    let served = timeout(2 * HANG, waits.join_all()).await.expect("a wait is not served");
    println!("{} waits are served {:?} after the release", served.len(), released.elapsed());
    assert!(served.iter().all(LockGuard::is_held));
}

#[tokio::test]
async fn a_thousand_locks_outlive_restarts_compactions_and_a_new_leader() {
    let cluster = Cluster::of(3);
    let endpoints = cluster.endpoints();
    a_bad_day(cluster, &endpoints).await;
}

#[tokio::test]
async fn the_same_behind_nginx() {
    let cluster = Cluster::of(3);
    let dir = tempfile::tempdir().unwrap();
    let nginx = proxies::nginx(&cluster, dir.path());
    a_bad_day(cluster, &format!("127.0.0.1:{}", nginx.port)).await;
}
