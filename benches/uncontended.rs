//! What one attempt and release costs with nobody else there, beside the raw system calls of the same protocol.
//!
//! ```text
//! cargo bench --bench uncontended
//! ```
//!
//! All contenders take turns within one run; only the ratios mean anything.
#![expect(clippy::disallowed_methods, reason = "the hop itself is measured")]

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tokio_lockfile::LockFile;

const ROUNDS: usize = 20_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for dir in ["target", "/dev/shm"] {
        let dir = tempfile::tempdir_in(dir).unwrap();
        runtime.block_on(measure(dir.path()));
    }
}

async fn measure(dir: &Path) {
    let shlock = LockFile::shlock(dir.join("shlock")).unwrap();
    let flock = LockFile::flock(dir.join("flock")).unwrap();
    let raw = dir.join("raw");
    let mut times = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        let mut timed = |row: usize, started: Instant| times[row].push(started.elapsed());

        let started = Instant::now();
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        timed(0, started);

        let (started, path, dir) = (Instant::now(), raw.clone(), dir.to_owned());
        tokio::task::spawn_blocking(move || raw_shlock(&dir, &path)).await.unwrap();
        timed(1, started);

        let started = Instant::now();
        drop(shlock.attempt().await.unwrap().unwrap());
        timed(2, started);

        let (started, path) = (Instant::now(), raw.with_extension("flock"));
        tokio::task::spawn_blocking(move || raw_flock(&path)).await.unwrap();
        timed(3, started);

        let started = Instant::now();
        drop(flock.attempt().await.unwrap().unwrap());
        timed(4, started);
    }
    let [hop, raw_shlock, shlock, raw_flock, flock] = times.map(median);
    println!("{}", dir.display());
    let row = |name: &str, time: Duration, reference: Duration| {
        println!("  {name:<40} {:>8.1} µs   ratio {:.2}", time.as_secs_f64() * 1e6, time.div_duration_f64(reference));
    };
    row("a bare spawn_blocking hop", hop, hop);
    row("shlock: raw system calls in one hop", raw_shlock, raw_shlock);
    row("shlock: attempt + drop", shlock, raw_shlock);
    row("flock: raw system calls in one hop", raw_flock, raw_flock);
    row("flock: attempt + drop", flock, raw_flock);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn raw_shlock(dir: &Path, path: &Path) {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file: std::fs::File = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o644)).unwrap().into();
    file.write_all(b"      4321\t \t\n").unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW).unwrap();
    rustix::fs::lstat(path).unwrap();
    rustix::fs::lstat(path).unwrap();
    rustix::fs::unlink(path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
}

fn raw_flock(path: &Path) {
    use std::os::unix::fs::FileExt;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file: std::fs::File = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).unwrap().into();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::fstat(&file).unwrap();
    rustix::fs::lstat(path).unwrap();
    file.write_all_at(b"      4321\t\t \t\t\n", 0).unwrap();
    file.write_all_at(&[0; 16], 0).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
}
