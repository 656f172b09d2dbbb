//! The thread that talks to the server stands still, and the holder hears of the loss all the same.

use std::fs;
use std::future::{pending, poll_fn};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LostReason};

use crate::support::{HANG, take};

/// `lock` has a lock with this short lease for each number. To be called in a process of its own.
pub(crate) async fn is_a_loss_in_time(lease: Duration, lock: impl Fn(usize) -> LockFile) {
    let [lock, other, third, ref more @ ..]: [LockFile; 11] = std::array::from_fn(lock);
    let (guard, at_work, late) = (take(&lock).await, take(&other).await, take(&third).await);
    let stopped = StoppedDriver::new();
    let began = Instant::now();
    // As in a process that is stopped for longer than the lease.
    let mut polls = 0;
    let stands_still = poll_fn(|context| {
        polls += 1;
        assert!(polls <= 2, "the work goes on after the lease");
        while polls == 2 && began.elapsed() < lease {
            std::thread::sleep(Duration::from_millis(10));
        }
        context.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    let (reason, run, late) = tokio::join!(
        timeout(HANG, guard.lost()),
        timeout(HANG, at_work.run(pending::<()>())),
        timeout(HANG, late.run(stands_still)),
    );
    let late = late.expect("the loss is not noticed").unwrap_err();
    assert!(matches!(late, LockError::Lost { reason: LostReason::Expired, .. }), "{late}");
    assert_eq!(reason.expect("nobody hears of the loss"), LostReason::Expired);
    assert!(!guard.is_held());
    let run = run.expect("the work goes on").unwrap_err();
    assert!(matches!(run, LockError::Lost { reason: LostReason::Expired, .. }), "{run}");
    let release = timeout(HANG, guard.release()).await.expect("the release hangs").unwrap_err();
    assert!(matches!(release, LockError::Lost { reason: LostReason::Expired, .. }), "{release}");
    // Soon there is another thread for the jobs to come. The first of them still wait for the one that was stopped.
    let began = Instant::now();
    let mut more = more.iter();
    let guard = loop {
        let attempt =
            timeout(Duration::from_secs(8), more.next().expect("only the first thread works").attempt()).await;
        if let Ok(attempt) = attempt {
            break attempt.unwrap().expect("it is free");
        }
    };
    println!("a lock on another thread {:?} after the loss", began.elapsed());
    guard.release().await.unwrap();
    drop(stopped);
    for lock in [lock, other] {
        timeout(HANG, lock.obtain()).await.expect("hangs").unwrap().release().await.unwrap();
    }
}

/// The driver's thread of this process stands still while this exists: strace(1) delays its next wait for events.
struct StoppedDriver(Child);

impl StoppedDriver {
    fn new() -> Self {
        let is_driver =
            |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap() == "lockfile-driver\n";
        let driver = fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap).find(is_driver).expect("it runs");
        let mut strace = Command::new("strace");
        strace.args([
            "-e",
            "trace=epoll_wait,epoll_pwait",
            "-e",
            "inject=epoll_wait,epoll_pwait:delay_enter=600000000",
        ]);
        strace.arg("-p").arg(driver.file_name()).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut strace = strace.spawn().expect("strace is installed");
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
        let attached = lines.next().expect("strace attaches").unwrap();
        assert!(attached.contains("attached"), "{attached}");
        // Else strace would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self(strace)
    }
}

impl Drop for StoppedDriver {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
