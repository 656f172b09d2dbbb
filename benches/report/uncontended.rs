//! One attempt and one release, without any other process or task.

use std::path::Path;
use std::time::Instant;

use async_fd_lock::LockWrite;
use tokio_lockfile::LockFile;

use crate::bare;
use crate::outcome::{Goal, Panel, Row, Times};

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let rounds = if is_quick { 200 } else { 20_000 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let places = [("disk", "target"), ("tmpfs", "/dev/shm")];
    let measured = places.map(|(name, dir)| {
        std::fs::create_dir_all(dir).unwrap();
        let dir = tempfile::tempdir_in(dir).unwrap();
        runtime.block_on(measure(name, dir.path(), rounds))
    });
    let mut rows = measured.concat();
    rows.push(runtime.block_on(measure_span(rounds)));
    rows
}

/// The cost of logging when no subscriber is set. Only `obtain` has a span and reports the wait.
async fn measure_span(rounds: usize) -> Row {
    const EACH: usize = 100;
    let lock = LockFile::null();
    let mut times: [Times; 2] = Default::default();
    let [obtain, attempt] = &mut times;
    for _ in 0..rounds / EACH {
        let started = Instant::now();
        for _ in 0..EACH {
            drop(lock.attempt().await.unwrap().unwrap());
        }
        attempt.push(started.elapsed() / EACH as u32);

        let started = Instant::now();
        for _ in 0..EACH {
            drop(lock.obtain().await.unwrap());
        }
        obtain.push(started.elapsed() / EACH as u32);
    }
    let details = format!("{:?}, {:?}", obtain.median(), attempt.median());
    Row::new(
        "null: obtain, with its span, heard by nobody",
        "attempt",
        obtain.over(attempt),
        Goal::AtMost(1.5),
        details,
    )
}

async fn measure(place: &str, dir: &Path, rounds: usize) -> Vec<Row> {
    let path = |name: &str| dir.join(name);
    let (ours_flock, ours_shlock) = (path("flock"), path("shlock"));
    let [raw_flock, raw_shlock, open_only, of_std, of_fs4, of_fd_lock, of_async_fd_lock] =
        ["raw-flock", "raw-shlock", "open", "std", "fs4", "fd-lock", "async-fd-lock"].map(path);
    let (flock, shlock) = (LockFile::flock(ours_flock).unwrap(), LockFile::shlock(ours_shlock).unwrap());
    let mut times: [Times; 10] = Default::default();
    let [hop, raw_f, our_f, raw_s, our_s, bare, std_, fs4_, fd_lock_, async_fd_lock_] = &mut times;
    for _ in 0..rounds {
        let started = Instant::now();
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        hop.push(started.elapsed());

        let started = Instant::now();
        bare::flock(&raw_flock);
        raw_f.push(started.elapsed());

        let started = Instant::now();
        drop(flock.attempt().await.unwrap().unwrap());
        our_f.push(started.elapsed());

        let (started, raw) = (Instant::now(), raw_shlock.clone());
        tokio::task::spawn_blocking(move || bare::shlock(&raw)).await.unwrap();
        raw_s.push(started.elapsed());

        let started = Instant::now();
        drop(shlock.attempt().await.unwrap().unwrap());
        our_s.push(started.elapsed());

        let started = Instant::now();
        assert!(bare::try_flock(&bare::open(&open_only)));
        bare.push(started.elapsed());

        let started = Instant::now();
        bare::open(&of_std).try_lock().unwrap();
        std_.push(started.elapsed());

        let started = Instant::now();
        fs4::FileExt::try_lock(&bare::open(&of_fs4)).unwrap();
        fs4_.push(started.elapsed());

        let started = Instant::now();
        drop(fd_lock::RwLock::new(bare::open(&of_fd_lock)).try_write().unwrap());
        fd_lock_.push(started.elapsed());

        let started = Instant::now();
        drop(tokio::fs::File::from_std(bare::open(&of_async_fd_lock)).lock_write().await.unwrap());
        async_fd_lock_.push(started.elapsed());
    }
    let row = |what: &str, beside, value: &Times, reference: &Times, goal| {
        Row::new(format!("{what}, {place}"), beside, value.over(reference), goal, value.to_string())
    };
    let mut rows = vec![
        row("flock: attempt, drop", "its raw calls, inline", our_f, raw_f, Goal::AtMost(1.15))
            .if_missed("beyond the raw calls, what the file holds is read before it is written over."),
        row("shlock: attempt, drop", "its raw calls, in one hop", our_s, raw_s, Goal::AtMost(1.2)),
        row("the flock protocol's raw calls", "open, flock, close", raw_f, bare, Goal::None),
        row("std: open, try_lock, drop", "open, flock, close", std_, bare, Goal::None),
        row("fs4: the same", "open, flock, close", fs4_, bare, Goal::None),
        row("fd-lock: the same", "open, flock, close", fd_lock_, bare, Goal::None),
        row("async-fd-lock: the same", "open, flock, close", async_fd_lock_, bare, Goal::None),
        row("an empty spawn_blocking", "open, flock, close", hop, bare, Goal::None),
    ];
    if place == "disk" {
        let bars = [
            ("flock", true, our_f),
            ("shlock", true, our_s),
            ("std File::try_lock", false, std_),
            ("fs4", false, fs4_),
            ("fd-lock", false, fd_lock_),
            ("async-fd-lock", false, async_fd_lock_),
        ];
        let row = rows.remove(0);
        rows.insert(
            0,
            bars.into_iter().fold(row, |row, (label, is_ours, times)| match is_ours {
                true => row.ours(Panel::Free, label, times.seconds()),
                false => row.other(Panel::Free, label, times.seconds()),
            }),
        );
    }
    rows
}
