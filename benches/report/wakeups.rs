//! Checks that a wait misses no release: releases of every style happen at random moments of a wait.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tokio_lockfile::{LockFile, LockKind};

use crate::bare;
use crate::handover::Holder;
use crate::outcome::{Goal, Row, Times};

/// If a wait takes longer than this, its periodic check noticed the release: the release itself did not wake it.
const LATE: Duration = Duration::from_millis(50);

/// The limit for a hang. No wait takes this long without an error.
const NEVER: Duration = Duration::from_secs(20);

/// The number of locks that are waited for at the same time, where only the periodic checks notice the release. These
/// checks are limited in number.
const AT_ONCE: usize = 100;

type Release = Box<dyn FnOnce() + Send>;

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    releases(if is_quick { 10 } else { 1_000 })
}

/// Measures this number of releases of each style.
pub(crate) fn releases(rounds: usize) -> Vec<Row> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir_in("target").unwrap();
    let flock = LockFile::flock(dir.path().join("f")).unwrap();
    let shlock = LockFile::shlock(dir.path().join("s")).unwrap();
    runtime.block_on(async {
        vec![
            late(&flock, "drop", rounds, dropping(&flock)).await,
            late(&shlock, "drop", rounds, dropping(&shlock)).await,
            late(&flock, "rm", rounds, removing).await,
            late(&shlock, "rm", rounds, removing).await,
            late(&flock, "SIGKILL", rounds, killing).await,
            late(&shlock, "SIGKILL", rounds, killing).await,
            late(&flock, "flock(1)'s exit", rounds, exiting).await,
            unlocked_only(dir.path(), rounds).await,
        ]
    })
}

/// Counts the waits that got their lock late.
async fn late(lock: &LockFile, style: &str, rounds: usize, mut hold: impl FnMut(&LockFile) -> Release) -> Row {
    let mut times = Times::default();
    for _ in 0..rounds {
        let release = hold(lock);
        let waiting = tokio::spawn(obtain(lock.clone()));
        // The release comes before the wait has begun, or while it starts, or when it sleeps.
        let pause = Duration::from_micros(fastrand::u64(0..1_000));
        let released_at = tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            let now = Instant::now();
            release();
            now
        });
        let released_at = released_at.await.unwrap();
        times.push(waiting.await.unwrap().saturating_duration_since(released_at));
    }
    let what = format!("{}: {rounds} releases by {style}, missed", lock.kind());
    let late = times.count(|time| time > LATE);
    Row::new(what, "served later than in 50 ms", late as f64, Goal::AtMost(0.0), times.to_string())
}

async fn obtain(lock: LockFile) -> Instant {
    let guard = tokio::time::timeout(NEVER, lock.obtain()).await.expect("missed for ever").unwrap();
    let had_at = Instant::now();
    drop(guard);
    had_at
}

fn dropping(lock: &LockFile) -> impl FnMut(&LockFile) -> Release {
    let holder = Arc::new(Mutex::new(Holder::start(lock)));
    move |_| {
        holder.lock().unwrap().take();
        let holder = Arc::clone(&holder);
        Box::new(move || {
            holder.lock().unwrap().release();
        })
    }
}

fn killing(lock: &LockFile) -> Release {
    let mut holder = Holder::start(lock);
    holder.take();
    Box::new(move || drop(holder))
}

/// Removes the lock file, as a careless administrator does. The holder continues to run.
fn removing(lock: &LockFile) -> Release {
    let path = lock.path().unwrap().to_owned();
    let file = match lock.kind() {
        LockKind::Flock => bare::open(&path),
        _ => {
            let file = bare::publish_shlock(&path);
            file.write_all_at(format!("{:>10}", std::process::id()).as_bytes(), 0).unwrap();
            file
        }
    };
    assert!(lock.kind() != LockKind::Flock || bare::try_flock(&file));
    Box::new(move || {
        std::fs::remove_file(path).unwrap();
        // The file is closed later, because its unlock must not wake the waiter.
        std::thread::spawn(move || {
            std::thread::sleep(LATE * 2);
            drop(file);
        });
    })
}

fn exiting(lock: &LockFile) -> Release {
    let mut command = Command::new("flock");
    command.arg("--no-fork").arg(lock.path().unwrap()).args(["sh", "-c", "echo; read _"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("flock(1) of util-linux");
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    Box::new(move || {
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
    })
}

/// An unlock that causes no event, because the descriptor stays open.
async fn unlocked_only(dir: &Path, rounds: usize) -> Row {
    let mut times = Times::default();
    let locks: Vec<LockFile> =
        (0..AT_ONCE.min(rounds)).map(|number| LockFile::flock(dir.join(number.to_string())).unwrap()).collect();
    for _ in 0..rounds / locks.len() {
        let holds = |lock: &LockFile| {
            let file = bare::open(lock.path().unwrap());
            assert!(bare::try_flock(&file));
            file
        };
        let held: Vec<_> = locks.iter().map(holds).collect();
        let waiting: Vec<_> = locks.iter().map(|lock| tokio::spawn(obtain(lock.clone()))).collect();
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..3_000))).await;
        let released_at = Instant::now();
        held.iter().for_each(|file| flock(file, FlockOperation::Unlock).unwrap());
        for wait in waiting {
            times.push(wait.await.unwrap().saturating_duration_since(released_at));
        }
    }
    let missed = times.count(|time| time >= NEVER);
    let what = format!("flock: {rounds} releases by LOCK_UN only, missed");
    Row::new(what, "served by the looks, a hundred waits at once", missed as f64, Goal::AtMost(0.0), times.to_string())
}
