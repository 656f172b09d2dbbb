//! A wait that times out while another process holds the lock. After it, the program ends.
//!
//! A lock whose waits are threads in flock(2) ends such a program only when the holder releases the lock.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use async_fd_lock::LockWrite;
use tokio_lockfile::{LockError, LockFile};

use crate::bare;
use crate::outcome::{Goal, Panel, Row, Times};

const LIMIT: Duration = Duration::from_millis(100);

/// How long another process holds the lock in the rows of the peer.
const HOLD: Duration = Duration::from_secs(2);

/// The program. Without a URL it only sleeps for the time of the timeout. With a path it uses the peer.
pub(crate) fn time_out(url: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match url {
            "" => tokio::time::sleep(LIMIT).await,
            path if path.starts_with('/') => {
                let file = tokio::fs::File::from_std(bare::open(path.as_ref()));
                assert!(tokio::time::timeout(LIMIT, file.lock_write()).await.is_err());
            }
            url => {
                let timed_out = LockFile::open(url).unwrap().obtain_timeout(LIMIT).await;
                assert!(matches!(timed_out, Err(LockError::TimedOut { .. })));
            }
        }
    });
}

fn start(url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap()).args(["--time-out", url]).spawn().unwrap()
}

fn run(url: &str) -> Duration {
    let started = Instant::now();
    assert!(start(url).wait().unwrap().success());
    started.elapsed()
}

/// The time of the peer's program, with a holder that releases the lock after a while.
fn run_peer(path: &Path) -> Duration {
    let held = bare::open(path);
    assert!(bare::try_flock(&held));
    let started = Instant::now();
    let mut program = start(path.to_str().unwrap());
    std::thread::sleep(HOLD);
    drop(held);
    assert!(program.wait().unwrap().success());
    started.elapsed()
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let (rounds, peers_rounds) = if is_quick { (1, 1) } else { (30, 3) };
    let dir = tempfile::tempdir_in("target").unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let locks = [LockFile::flock(dir.join("f")), LockFile::shlock(dir.join("s"))].map(Result::unwrap);
    let _guards = locks.each_ref().map(|lock| lock.blocking_obtain().unwrap());
    let mut times: [Times; 4] = Default::default();
    for _ in 0..rounds {
        let urls = [String::new(), locks[0].url().to_string(), locks[1].url().to_string()];
        times.iter_mut().zip(urls).for_each(|(times, url)| times.push(run(&url)));
    }
    let [sleep, flock, shlock, peer] = &mut times;
    (0..peers_rounds).for_each(|_| peer.push(run_peer(&dir.join("p"))));
    let late = |times: &Times| times.seconds() - sleep.seconds();
    let row = |kind: &str, times: &Times, goal| {
        let what = format!("{kind}: a timeout of 100 ms, then exit: late by");
        Row::new(what, "milliseconds after a sleep of 100 ms", late(times) * 1e3, goal, times.to_string())
    };
    vec![
        row("flock", flock, Goal::AtMost(25.0)).ours(Panel::Exit, "flock", late(flock)),
        row("shlock", shlock, Goal::AtMost(25.0)).ours(Panel::Exit, "shlock", late(shlock)),
        row("async-fd-lock", peer, Goal::None).other(Panel::Exit, "async-fd-lock *", late(peer)),
    ]
}
