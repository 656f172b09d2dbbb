//! A writer beside processes that read without a break, so that one of them always has the lock.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio_lockfile::LockFile;

use crate::bare;
use crate::outcome::{Goal, Row, Times};

/// The tasks or threads of each process that reads.
const READERS: usize = 4;

const HOLD: Duration = Duration::from_micros(200);

/// One process: it reads until stdin closes. The raw kind locks the file as flock(1) does, and takes no turns.
pub(crate) fn read(kind: &str, path: &str) {
    let is_over = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
            is_over.store(true, Ordering::Relaxed);
        }
    });
    match kind {
        "raw" => read_raw(&is_over, path.as_ref()),
        _ => read_ours(&is_over, &LockFile::flock(path).unwrap().shared().unwrap()),
    }
}

fn read_raw(is_over: &AtomicBool, path: &Path) {
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let file = bare::open(path);
                    rustix::fs::flock(&file, FlockOperation::LockShared).unwrap();
                    std::thread::sleep(HOLD);
                }
            });
        }
    });
}

fn read_ours(is_over: &Arc<AtomicBool>, lock: &LockFile) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(READERS).enable_all().build().unwrap();
    runtime.block_on(async {
        let reader = |_| {
            let (is_over, lock) = (Arc::clone(is_over), lock.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let _guard = lock.obtain().await.unwrap();
                    std::thread::sleep(HOLD);
                }
            })
        };
        let readers: Vec<_> = (0..READERS).map(reader).collect();
        for reader in readers {
            reader.await.unwrap();
        }
    });
}

/// The waits of a writer in this time. The last one may not have ended: then it lasted at least so long.
fn write(kind: &str, processes: usize, path: &Path, time: Duration) -> (usize, Times) {
    let start = |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--read", kind]).arg(path).stdin(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = (0..processes).map(start).collect();
    // Until they all read.
    std::thread::sleep(time / 4);
    let lock = LockFile::flock(path).unwrap();
    let (mut writes, mut waits) = (0, Times::default());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let began = Instant::now();
            let obtained = lock.obtain_timeout(end - began).await;
            waits.push(began.elapsed());
            if let Ok(guard) = obtained {
                writes += 1;
                guard.release().await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    for mut child in children {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    (writes, waits)
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let time = if is_quick { Duration::from_millis(500) } else { Duration::from_secs(8) };
    let dir = tempfile::tempdir_in("target").unwrap();
    let mut rows = Vec::new();
    for processes in [1, 2, 8] {
        for (kind, whose, goal) in [("ours", "our", Goal::AtLeast(2.0)), ("raw", "other", Goal::None)] {
            let (writes, waits) = write(kind, processes, &dir.path().join(kind), time);
            let what = format!("flock: a writer beside {processes} × {READERS} of {whose} readers");
            let details = format!("{writes} writes; longest wait {:.0} ms", waits.quantile(1.0).as_secs_f64() * 1e3);
            let value = writes as f64 / time.as_secs_f64();
            rows.push(Row::new(what, "writes a second", value, goal, details));
        }
    }
    rows
}
