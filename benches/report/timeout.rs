//! A wait that times out while another process holds the lock. After it, the program ends.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio_lockfile::{LockError, LockFile};

use crate::outcome::{Goal, Row, Times};

const LIMIT: Duration = Duration::from_millis(100);

/// The program. With an empty URL it only sleeps for the time of the timeout.
pub(crate) fn time_out(url: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match url {
            "" => tokio::time::sleep(LIMIT).await,
            url => {
                let timed_out = LockFile::open(url).unwrap().obtain_timeout(LIMIT).await;
                assert!(matches!(timed_out, Err(LockError::TimedOut { .. })));
            }
        }
    });
}

fn run(url: &str) -> Duration {
    let started = Instant::now();
    assert!(Command::new(std::env::current_exe().unwrap()).args(["--time-out", url]).status().unwrap().success());
    started.elapsed()
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let rounds = if is_quick { 1 } else { 30 };
    let dir = tempfile::tempdir_in("target").unwrap();
    let locks = [LockFile::flock(dir.path().join("f")), LockFile::shlock(dir.path().join("s"))].map(Result::unwrap);
    let _guards = locks.each_ref().map(|lock| lock.blocking_obtain().unwrap());
    let mut times: [Times; 3] = Default::default();
    for _ in 0..rounds {
        let urls = [String::new(), locks[0].url().to_string(), locks[1].url().to_string()];
        times.iter_mut().zip(urls).for_each(|(times, url)| times.push(run(&url)));
    }
    let [sleep, flock, shlock] = &times;
    let row = |kind: &str, times: &Times| {
        let late = (times.median().as_secs_f64() - sleep.median().as_secs_f64()) * 1e3;
        let what = format!("{kind}: a timeout of 100 ms, then exit: late by");
        Row::new(what, "milliseconds after a sleep of 100 ms", late, Goal::AtMost(25.0), times.to_string())
    };
    vec![row("flock", flock), row("shlock", shlock)]
}
