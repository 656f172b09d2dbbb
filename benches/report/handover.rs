//! The time from the end of a hold in one process to the acquisition in another: by a release, and by a kill.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_fd_lock::LockWrite;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_lockfile::LockFile;

use crate::bare::{self, Watch};
use crate::outcome::{Goal, Panel, Row, Times};

/// The idle time before the release, in every row. After it, processors are in a sleep state and caches are cold.
const IDLE: Duration = Duration::from_millis(2);

/// CLOCK_MONOTONIC is the same in all processes.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

pub(crate) fn say(time: Duration) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&(time.as_nanos() as u64).to_be_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// Another process: it reports the time at each byte that it reads.
pub(crate) fn ring() {
    while std::io::stdin().read_exact(&mut [0]).is_ok() {
        say(now());
    }
}

/// The other process: it takes the lock at one byte, releases it at the next, and reports the times.
pub(crate) fn hold(url: &str) {
    let lock = LockFile::open(url).unwrap();
    let mut stdin = std::io::stdin().lock();
    let mut byte = [0];
    while stdin.read_exact(&mut byte).is_ok() {
        let guard = lock.blocking_obtain().unwrap();
        say(now());
        if stdin.read_exact(&mut byte).is_err() {
            return;
        }
        let released_at = now();
        drop(guard);
        say(released_at);
    }
}

fn other_process(arguments: &[&str]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn start(lock: &LockFile) -> Self {
        Self::by(&["--hold", &lock.url().to_string()])
    }

    /// A process of this program with other arguments.
    pub(crate) fn by(arguments: &[&str]) -> Self {
        Self(other_process(arguments))
    }

    fn send(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b".").unwrap();
    }

    fn receive(&mut self) -> Duration {
        let mut bytes = [0; 8];
        self.0.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
        Duration::from_nanos(u64::from_be_bytes(bytes))
    }

    pub(crate) fn take(&mut self) {
        self.send();
        self.receive();
    }

    /// Returns when it released the lock.
    pub(crate) fn release(&mut self) -> Duration {
        self.send();
        self.receive()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a contender waits. The result is the time at which it obtained the lock.
#[derive(Clone, Copy)]
enum Waiter {
    Ours,
    /// A reader of inotify, which attempts to take the lock after each event.
    Bare,
    /// async-fd-lock: a thread of the blocking pool waits in flock(2).
    AsyncFdLock,
    /// A look every 50 ms, as Python's filelock does it.
    Polling,
}

impl Waiter {
    async fn wait(self, lock: LockFile) -> Duration {
        let path = lock.path().unwrap().to_owned();
        match self {
            Self::Ours => {
                let guard = lock.obtain().await.unwrap();
                let obtained_at = now();
                drop(guard);
                obtained_at
            }
            Self::Bare => {
                let file = bare::open(&path);
                let watch = Watch::new(&file);
                while !bare::try_flock(&file) {
                    watch.event().await;
                }
                now()
            }
            Self::AsyncFdLock => {
                let guard = tokio::fs::File::from_std(bare::open(&path)).lock_write().await.unwrap();
                let obtained_at = now();
                drop(guard);
                obtained_at
            }
            Self::Polling => {
                let file = bare::open(&path);
                while !bare::try_flock(&file) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                now()
            }
        }
    }
}

/// One hand-over: the waiter sleeps, and the holder releases the lock.
async fn hand_over(holder: &mut Holder, lock: &LockFile, waiter: Waiter) -> Duration {
    hand_over_after(IDLE, holder, lock, waiter).await
}

async fn hand_over_after(idle: Duration, holder: &mut Holder, lock: &LockFile, waiter: Waiter) -> Duration {
    holder.take();
    let waiting = tokio::spawn(waiter.wait(lock.clone()));
    tokio::time::sleep(idle).await;
    holder.send();
    let obtained_at = waiting.await.unwrap();
    obtained_at.saturating_sub(holder.receive())
}

/// The lower limit for a shlock: a pipe from another process wakes a task, which then creates the file.
struct Ringer {
    child: Child,
    bell: Option<pipe::Receiver>,
}

impl Ringer {
    fn start() -> Self {
        let mut child = other_process(&["--ring"]);
        let bell = pipe::Receiver::from_owned_fd(OwnedFd::from(child.stdout.take().unwrap())).unwrap();
        Self { child, bell: Some(bell) }
    }

    async fn ring_then_publish(&mut self, path: &Path) -> Duration {
        let mut bell = self.bell.take().unwrap();
        let path = path.to_owned();
        let waiting = tokio::spawn(async move {
            let sent_at = Duration::from_nanos(bell.read_u64().await.unwrap());
            drop(bare::publish_shlock(&path));
            let obtained_at = now();
            std::fs::remove_file(&path).unwrap();
            (obtained_at.saturating_sub(sent_at), bell)
        });
        tokio::time::sleep(IDLE).await;
        self.child.stdin.as_mut().unwrap().write_all(b".").unwrap();
        let (time, bell) = waiting.await.unwrap();
        self.bell = Some(bell);
        time
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn rows(is_quick: bool) -> Vec<Row> {
    let rounds = if is_quick { 5 } else { 1_000 };
    let kills = if is_quick { 3 } else { 300 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir_in("target").unwrap();
    runtime.block_on(async {
        let mut rows = released(dir.path(), rounds).await;
        rows.extend(killed(dir.path(), kills).await);
        rows
    })
}

async fn released(dir: &Path, rounds: usize) -> Vec<Row> {
    let (flock, shlock) = (LockFile::flock(dir.join("f")).unwrap(), LockFile::shlock(dir.join("s")).unwrap());
    let (mut flock_holder, mut shlock_holder) = (Holder::start(&flock), Holder::start(&shlock));
    let mut ringer = Ringer::start();
    let mut times: [Times; 6] = Default::default();
    let [ours_f, bare_f, async_fd_lock, ours_s, pipe, polling] = &mut times;
    for round in 0..rounds {
        if round % 5 == 0 {
            // The first look and the release would come at fixed times.
            let shift = Duration::from_millis(fastrand::u64(0..50));
            polling.push(hand_over_after(shift, &mut flock_holder, &flock, Waiter::Polling).await);
        }
        ours_f.push(hand_over(&mut flock_holder, &flock, Waiter::Ours).await);
        bare_f.push(hand_over(&mut flock_holder, &flock, Waiter::Bare).await);
        async_fd_lock.push(hand_over(&mut flock_holder, &flock, Waiter::AsyncFdLock).await);
        ours_s.push(hand_over(&mut shlock_holder, &shlock, Waiter::Ours).await);
        pipe.push(ringer.ring_then_publish(&dir.join("p")).await);
    }
    let inotify = "AsyncFd on inotify, then flock";
    let p99 = ours_f.quantile(0.99).as_secs_f64() * 1e3;
    vec![
        Row::new(
            "flock: hand-over between processes",
            inotify,
            ours_f.over(bare_f),
            Goal::AtMost(1.5),
            ours_f.to_string(),
        )
        .ours(Panel::HandOver, "flock", ours_f.seconds())
        .ours(Panel::HandOver, "shlock", ours_s.seconds())
        .other(Panel::HandOver, "async-fd-lock", async_fd_lock.seconds())
        .other(Panel::HandOver, "a look every 50 ms", polling.seconds())
        .if_missed(
            "after the wake-up ours passes the event from the task that reads it to the one that waits, looks whether \
             the file is still the lock's, reads what is in it and writes its record: seven calls, with a processor \
             that has just woken up, where the reference makes one. The reference with four of these calls and a task \
             that passes the event on takes 1.27 to 1.31.",
        ),
        Row::new("flock: hand-over, 99th percentile", "milliseconds", p99, Goal::AtMost(20.0), bare_f.to_string()),
        Row::new(
            "async-fd-lock: the same hand-over",
            inotify,
            async_fd_lock.over(bare_f),
            Goal::None,
            async_fd_lock.to_string(),
        ),
        Row::new(
            "a look every 50 ms, as Python's filelock: the same",
            inotify,
            polling.over(bare_f),
            Goal::None,
            polling.to_string(),
        ),
        Row::new(
            "shlock: hand-over between processes",
            "pipe to task, then O_TMPFILE … linkat",
            ours_s.over(pipe),
            Goal::AtMost(2.2),
            format!("{ours_s}; reference {pipe}"),
        )
        .if_missed(
            "the try goes to the blocking pool and back, because it may wait for the disk; the reference makes its \
             calls in the task. The same calls in one hop to the pool take 1.55 to 1.60 of the reference.",
        ),
    ]
}

/// The time from SIGKILL to the acquisition.
async fn killed(dir: &Path, rounds: usize) -> Vec<Row> {
    let (flock, shlock) = (LockFile::flock(dir.join("kf")).unwrap(), LockFile::shlock(dir.join("ks")).unwrap());
    let mut times: [Times; 6] = Default::default();
    let [ours_f, event_f, ours_s, event_s, async_fd_lock, polling] = &mut times;
    for round in 0..rounds {
        if round % 3 == 0 {
            async_fd_lock.push(take_over(&flock, Waiter::AsyncFdLock, IDLE).await);
            let shift = Duration::from_millis(fastrand::u64(0..50));
            polling.push(take_over(&flock, Waiter::Polling, shift).await);
        }
        ours_f.push(take_over(&flock, Waiter::Ours, IDLE).await);
        event_f.push(see_the_end(&flock, |_, _| now()).await);
        ours_s.push(take_over(&shlock, Waiter::Ours, IDLE).await);
        let steps = |file: &std::fs::File, path: &Path| {
            // The event comes a moment before the kernel releases the lock. Perhaps this task even runs on the
            // processor that the kernel needs for the release.
            while !bare::try_flock(file) {
                std::thread::yield_now();
            }
            bare::break_shlock(file, path);
            drop(bare::publish_shlock(path));
            let obtained_at = now();
            std::fs::remove_file(path).unwrap();
            obtained_at
        };
        event_s.push(see_the_end(&shlock, steps).await);
    }
    let row = |what: &str, beside, ours: &Times, reference: &Times, goal| {
        Row::new(what, beside, ours.over(reference), Goal::AtMost(goal), format!("{ours}; reference {reference}"))
    };
    vec![
        row("flock: from SIGKILL to takeover", "the close event at a bare reader", ours_f, event_f, 1.25)
            .ours(Panel::Crash, "flock", ours_f.seconds())
            .ours(Panel::Crash, "shlock", ours_s.seconds())
            .other(Panel::Crash, "async-fd-lock", async_fd_lock.seconds())
            .other(Panel::Crash, "a look every 50 ms", polling.seconds()),
        row("shlock: from SIGKILL to takeover", "that, and the raw steps of the break", ours_s, event_s, 1.3),
    ]
}

async fn take_over(lock: &LockFile, waiter: Waiter, idle: Duration) -> Duration {
    let mut holder = Holder::start(lock);
    holder.take();
    let waiting = tokio::spawn(waiter.wait(lock.clone()));
    tokio::time::sleep(idle).await;
    let killed_at = now();
    holder.0.kill().unwrap();
    waiting.await.unwrap().saturating_sub(killed_at)
}

async fn see_the_end(
    lock: &LockFile,
    then: impl FnOnce(&std::fs::File, &Path) -> Duration + Send + 'static,
) -> Duration {
    let mut holder = Holder::start(lock);
    holder.take();
    let path = lock.path().unwrap().to_owned();
    let waiting = tokio::spawn(async move {
        let file = std::fs::File::open(&path).unwrap();
        // Closing an inotify instance takes milliseconds, so this task keeps it to the end.
        let watch = Watch::new(&file);
        watch.event().await;
        then(&file, &path)
    });
    tokio::time::sleep(IDLE).await;
    let killed_at = now();
    holder.0.kill().unwrap();
    waiting.await.unwrap().saturating_sub(killed_at)
}
