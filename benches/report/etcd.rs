//! Locks in a cluster of three members of etcd on this machine, beside Go's client, which does the same requests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_lockfile::LockFile;

use crate::handover::{Holder, now};
use crate::outcome::{Goal, Row, Times};

use cluster::Cluster;

#[path = "../../tests/etcd/cluster.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod cluster;

/// The lease of the locks.
const TTL: Duration = Duration::from_secs(3);

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let rounds = if is_quick { 20 } else { 1_000 };
    let mut cluster = Cluster::of(3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lock = cluster.lock("bench");
    let mut rows = uncontended(&runtime, &cluster, &lock, rounds);
    rows.push(hand_over(&runtime, &lock, rounds / 4));
    rows.push(kill(&runtime, &lock, if is_quick { 1 } else { 5 }));
    rows.extend(held(&runtime, &mut cluster, if is_quick { 10 } else { 1_000 }));
    rows
}

fn milliseconds(what: &str, times: &Times, goal: f64) -> Row {
    Row::new(what, "milliseconds", times.seconds() * 1e3, Goal::AtMost(goal), times.to_string())
}

/// One attempt and one release at a time, ours and those of Go's `concurrency.Mutex` in turn.
fn uncontended(runtime: &Runtime, cluster: &Cluster, lock: &LockFile, rounds: usize) -> Vec<Row> {
    let mut go = Go::start(cluster);
    let (mut attempts, mut releases) = (Times::default(), Times::default());
    let (mut bare_attempts, mut bare_releases) = (Times::default(), Times::default());
    runtime.block_on(async {
        drop(lock.obtain().await.unwrap());
        for _ in 0..rounds {
            let began = Instant::now();
            let guard = lock.attempt().await.unwrap().expect("nobody else is there");
            attempts.push(began.elapsed());
            let began = Instant::now();
            guard.release().await.unwrap();
            releases.push(began.elapsed());
            let (attempt, release) = go.round();
            bare_attempts.push(attempt);
            bare_releases.push(release);
        }
    });
    let beside = |what: &str, ours: &Times, bare: &Times| {
        Row::new(what, "Go's concurrency.Mutex", ours.over(bare), Goal::None, format!("{ours}; reference {bare}"))
    };
    vec![
        milliseconds("etcd: warm attempt", &attempts, 2.0).if_missed(
            "a busy machine, on which three members and both clients share two cores. Go's client takes as long.",
        ),
        beside("etcd: warm attempt", &attempts, &bare_attempts),
        beside("etcd: release", &releases, &bare_releases),
    ]
}

/// From the release in another process to the acquisition in this one.
#[expect(clippy::async_yields_async, reason = "the wait goes on while this thread releases the lock")]
fn hand_over(runtime: &Runtime, lock: &LockFile, rounds: usize) -> Row {
    let mut holder = Holder::start(lock);
    let mut times = Times::default();
    for _ in 0..rounds {
        holder.take();
        let waiting = runtime.block_on(async {
            let lock = lock.clone();
            let waiting = tokio::spawn(async move {
                let guard = lock.obtain().await.unwrap();
                let obtained_at = now();
                guard.release().await.unwrap();
                obtained_at
            });
            // The waiter's key and its watch are there.
            tokio::time::sleep(Duration::from_millis(20)).await;
            waiting
        });
        let released_at = holder.release();
        times.push(runtime.block_on(waiting).unwrap() - released_at);
    }
    milliseconds("etcd: hand-over between processes", &times, 5.0)
}

fn kill(runtime: &Runtime, lock: &LockFile, rounds: usize) -> Row {
    let mut times = Times::default();
    for _ in 0..rounds {
        let mut holder = Holder::start(lock);
        holder.take();
        let killed_at = Instant::now();
        drop(holder);
        runtime.block_on(async { lock.obtain().await.unwrap().release().await.unwrap() });
        times.push(killed_at.elapsed());
    }
    let goal = Goal::AtMost((TTL + Duration::from_secs(1)).as_secs_f64());
    Row::new("etcd: from SIGKILL to takeover, lease of 3 s", "seconds", times.seconds(), goal, times.to_string())
}

/// What locks that are only held cost this process, also when it has to begin their watches anew.
fn held(runtime: &Runtime, cluster: &mut Cluster, count: usize) -> [Row; 2] {
    runtime.block_on(async {
        let mut guards = Vec::new();
        for number in 0..count {
            guards.push(cluster.lock(&format!("held/{number}")).obtain().await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = cpu();
        tokio::time::sleep(TTL * 3).await;
        let share = (cpu() - before).as_secs_f64() / (TTL * 3).as_secs_f64() * 100.0;
        assert!(guards.iter().all(|guard| guard.is_held()));
        let idle = cpu();
        // The one that this process talks to.
        cluster.kill(0);
        cluster.start(0);
        cluster.wait_until_all_are_healthy();
        tokio::time::sleep(TTL).await;
        let restart = (cpu() - idle).as_secs_f64();
        let row = |what: &str, unit, value, goal| {
            Row::new(format!("etcd: {count} held locks{what}"), unit, value, Goal::AtMost(goal), String::new())
        };
        [row("", "percent of a core", share, 1.5), row(", the restart of a member", "seconds of a core", restart, 1.0)]
    })
}

fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// A process with Go's client. It reports the nanoseconds of each lock and unlock.
struct Go {
    child: std::process::Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Go {
    fn start(cluster: &Cluster) -> Self {
        let program = build(cluster.dir());
        let mut child = Command::new(program)
            .args([&cluster.endpoints(), "bare"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn round(&mut self) -> (Duration, Duration) {
        use std::io::Write;
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let mut times = line.split_whitespace().map(|nanos| Duration::from_nanos(nanos.parse().unwrap()));
        (times.next().unwrap(), times.next().unwrap())
    }
}

impl Drop for Go {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Needs Debian's packages of Go and of etcd's client.
fn build(dir: &Path) -> PathBuf {
    let program = dir.join("bare");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/report/etcd.go"))
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode")])
        .env("GOCACHE", dir.join("cache"))
        .status()
        .expect("Go is missing");
    assert!(built.success());
    program
}
