//! Eight processes compete for one lock, compared with processes that block in flock(2).

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio_lockfile::LockFile;

use crate::bare;
use crate::outcome::{Goal, Row};

const PROCESSES: usize = 8;

fn hold(time: Duration) {
    match time >= Duration::from_millis(1) {
        true => std::thread::sleep(time),
        false => {
            let started = Instant::now();
            while started.elapsed() < time {
                std::hint::spin_loop();
            }
        }
    }
}

/// One process: it waits for a byte, competes until stdin closes, and prints how often it obtained the lock.
pub(crate) fn compete(kind: &str, time: &str, path: &str) {
    let time = Duration::from_micros(time.parse().unwrap());
    std::io::stdin().read_exact(&mut [0]).unwrap();
    let is_over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            let _ = std::io::stdin().read(&mut [0]);
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let goes_on = || !is_over.load(std::sync::atomic::Ordering::Relaxed);
    let mut count = 0;
    if kind == "blocking" {
        while goes_on() {
            let file = bare::open(path.as_ref());
            rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
            hold(time);
            count += 1;
            rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
        }
    } else {
        let lock = if kind == "flock" { LockFile::flock(path) } else { LockFile::shlock(path) }.unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            while goes_on() {
                let guard = lock.obtain().await.unwrap();
                hold(time);
                count += 1;
                drop(guard);
            }
        });
    }
    println!("{count}");
}

/// How often each process obtained the lock.
fn run(kind: &str, time: Duration, path: &Path, duration: Duration) -> Vec<f64> {
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--compete", kind, &time.as_micros().to_string()]).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut children: Vec<Child> = (0..PROCESSES).map(|_| start()).collect();
    children.iter_mut().for_each(|child| child.stdin.as_mut().unwrap().write_all(b".").unwrap());
    std::thread::sleep(duration);
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap().stdout);
    outputs.map(|output| String::from_utf8(output).unwrap().trim().parse().unwrap()).collect()
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let (rounds, duration) = if is_quick { (1, Duration::from_millis(200)) } else { (3, Duration::from_secs(3)) };
    let dir = tempfile::tempdir_in("target").unwrap();
    let mut rows = Vec::new();
    for (time, throughput, spread) in [(1_000, 0.9, 1.8), (50, 0.75, 5.0)] {
        let kinds = ["blocking", "flock", "shlock"];
        let mut counts = [const { [0.0; PROCESSES] }; 3];
        for _ in 0..rounds {
            for (kind, counts) in kinds.iter().zip(&mut counts) {
                let more = run(kind, Duration::from_micros(time), &dir.path().join(kind), duration);
                counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
            }
        }
        let total = |counts: &[f64; PROCESSES]| counts.iter().sum::<f64>();
        let ratio = |counts: &[f64; PROCESSES]| {
            let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
            counts.iter().copied().fold(0.0, f64::max) / least.max(1.0)
        };
        let [blocking, flock, shlock] = &counts;
        for (kind, counts) in [("flock", flock), ("shlock", shlock)] {
            // The goals are for flock only: a shlock creates and removes a file each time.
            let is_flock = kind == "flock";
            let (least, most) = match is_flock {
                true => (Goal::AtLeast(throughput), Goal::AtMost(spread)),
                false => (Goal::None, Goal::None),
            };
            let what = format!("{kind}: 8 processes, {time} µs holds");
            let of_blocking = format!("blocking: {:.2}", ratio(blocking));
            let share = total(counts) / total(blocking);
            let throughput = Row::new(format!("{what}, throughput"), "blocking flock(2)", share, least, String::new());
            rows.push(throughput.if_missed(
                "the kernel wakes one of those who block in flock(2), a release of ours all who wait, and here they \
                 take the holder's core.",
            ));
            rows.push(Row::new(format!("{what}, most to least"), "times", ratio(counts), most, of_blocking));
        }
    }
    rows
}
