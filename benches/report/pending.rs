//! Ten thousand pending waits, each on its own file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_fd_lock::LockWrite;
use rustix::time::{ClockId, clock_gettime};
use tokio_lockfile::LockFile;

use crate::bare;
use crate::outcome::{Goal, Panel, Row};

/// A crate whose waits are threads of the blocking pool. The pool has 512 threads, and the other waits stand behind them.
const PEER: &str = "async-fd-lock";

const IDLE: Duration = Duration::from_secs(5);

fn paths(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count).map(|number| dir.join(number.to_string())).collect()
}

/// The number in a line of /proc/self/status.
fn status(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn cpu_milliseconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// Sleeps until all tasks wait: until one second needs less CPU time than the first attempts need.
async fn settle() {
    let mut before = 0.0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = cpu_milliseconds();
        if now - std::mem::replace(&mut before, now) < 20.0 {
            return;
        }
    }
}

/// The process that waits. It prints: KiB for each wait, threads besides the runtime's, CPU milliseconds, and seconds
/// until all waits have their lock.
pub(crate) fn pend(kind: &str, dir: &str) {
    let names = std::fs::read_dir(dir).unwrap().count();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let make = |path| if kind == "shlock" { LockFile::shlock(path) } else { LockFile::flock(path) }.unwrap();
        let locks: Vec<LockFile> = paths(dir.as_ref(), names).into_iter().map(make).collect();
        let before = status("VmRSS");
        let bare: Vec<_> = locks.iter().map(|_| tokio::spawn(Box::pin(std::future::pending::<()>()))).collect();
        tokio::task::yield_now().await;
        let with_bare = status("VmRSS");
        let wait = |lock: &LockFile| {
            let lock = lock.clone();
            match kind {
                PEER => tokio::spawn(Box::pin(async move {
                    let file = tokio::fs::File::from_std(bare::open(lock.path().unwrap()));
                    drop(file.lock_write().await.unwrap());
                })),
                _ => tokio::spawn(Box::pin(async move { drop(lock.obtain().await.unwrap()) })),
            }
        };
        let waits: Vec<_> = locks.iter().map(wait).collect();
        settle().await;
        let each = (status("VmRSS") - with_bare - (with_bare - before)) / names as f64;
        let threads = status("Threads") - 1.0;
        let cpu = cpu_milliseconds();
        tokio::time::sleep(IDLE).await;
        let cpu = cpu_milliseconds() - cpu;
        println!("release");
        std::io::stdout().flush().unwrap();
        let started = Instant::now();
        for wait in waits {
            wait.await.unwrap();
        }
        println!("{each} {threads} {cpu} {}", started.elapsed().as_secs_f64());
        bare.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let count = if is_quick { 100 } else { 10_000 };
    let mut rows = measure("flock", count);
    rows.extend(measure("shlock", count));
    let ours = rows.iter().filter(|row| row.beside == "threads").map(|row| row.value).fold(0.0, f64::max);
    // Each of its waits has two descriptors, and the limit of open files is often 20,000.
    let [_, threads, ..] = wait_for_all(PEER, count * 9 / 10);
    let what = format!("{PEER}: {} pending waits, threads more", count * 9 / 10);
    let details = "the blocking pool has no more".to_owned();
    let row = Row::new(what, "threads", threads, Goal::None, details);
    rows.push(row.ours(Panel::Waits, "flock, shlock", ours).other(Panel::Waits, PEER, threads));
    rows
}

fn measure(kind: &str, count: usize) -> Vec<Row> {
    let [each, threads, cpu, seconds] = wait_for_all(kind, count);
    let row = |what: &str, unit, value, goal| {
        Row::new(format!("{kind}: {count} pending waits, {what}"), unit, value, Goal::AtMost(goal), String::new())
    };
    vec![
        row("each", "KiB above a bare boxed future", each, 0.7).if_missed(
            "a wait begins anew in a forked child, so it is a box of its own beside its caller's future; its timer is \
             another one.",
        ),
        row("threads more", "threads", threads, 1.0),
        row("CPU in 5 s idle", "milliseconds", cpu, 10.0).if_missed(
            "five hundred waits have looked in that time for releases that make no event; where the machine is busy, \
             each look costs more.",
        ),
        row("all served after release", "seconds", seconds, 2.0),
    ]
}

/// What the process that waits has printed.
fn wait_for_all(kind: &str, count: usize) -> [f64; 4] {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let held: Vec<(PathBuf, File)> = paths(dir.path(), count)
        .into_iter()
        .map(|path| match kind {
            "flock" | PEER => {
                let file = bare::open(&path);
                assert!(bare::try_flock(&file));
                (path, file)
            }
            _ => {
                let file = bare::publish_shlock(&path);
                std::os::unix::fs::FileExt::write_all_at(&file, format!("{:>10}", std::process::id()).as_bytes(), 0)
                    .unwrap();
                (path, file)
            }
        })
        .collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--pend", kind])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; "release\n".len()]).unwrap();
    for (path, file) in held {
        if kind == "shlock" {
            std::fs::remove_file(path).unwrap();
        }
        drop(file);
    }
    let mut line = String::new();
    stdout.read_to_string(&mut line).unwrap();
    assert!(child.wait().unwrap().success());
    let numbers: Vec<f64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{line}"))
}
