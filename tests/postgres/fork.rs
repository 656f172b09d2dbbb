//! A child that was forked and goes on without exec(3) has no part in the locks of its parent.
#![expect(unsafe_code, reason = "fork(2) is unsafe")]

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::runtime::Runtime;
use tokio_lockfile::LockFile;

use crate::server::{Server, sessions, until, until_stdin_ends};
use crate::support::{Holder, in_own_process, take};

/// Forks. `work` runs in the child, which then ends.
fn fork(work: impl FnOnce()) -> Pid {
    // SAFETY: the child calls only what this crate promises to work there.
    match unsafe { libc::fork() } {
        0 => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: it runs no destructors of the parent.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        pid => Pid::from_raw(pid).expect("fork works"),
    }
}

fn ends_well(child: Pid) {
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
}

#[test]
fn a_child_that_drops_the_guard_does_not_release_the_lock() {
    if !in_own_process("fork::a_child_that_drops_the_guard_does_not_release_the_lock") {
        return;
    }
    let lock = Server::shared().lock("lock=forked&ttl=4s");
    let runtime = Runtime::new().unwrap();
    let guard = runtime.block_on(take(&lock));
    let child = fork(|| {
        assert!(!guard.is_held());
        // SAFETY: the parent's value is another one.
        drop(unsafe { std::ptr::read(&guard) });
    });
    ends_well(child);
    // A session that the child had ended would be gone by the next heartbeat.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(guard.is_held());
    runtime.block_on(guard.release()).unwrap();
}

#[test]
fn a_child_tries_for_itself() {
    if !in_own_process("fork::a_child_tries_for_itself") {
        return;
    }
    let lock = Server::shared().lock("lock=forked_tries");
    let runtime = Runtime::new().unwrap();
    let guard = runtime.block_on(take(&lock));
    let child = fork(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(lock.attempt()).unwrap().is_none());
    });
    ends_well(child);
    drop(guard);
    let child = fork(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { lock.obtain().await.unwrap().release().await.unwrap() });
    });
    ends_well(child);
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_FORK_AND_DIE";

/// The server hears of the death of the process, although a child of it lives.
#[test]
fn a_living_child_does_not_keep_the_lock_of_a_dead_parent() {
    let server = Server::shared();
    let lock = server.lock("lock=orphan&ttl=10m");
    let mut process = Holder::start_role("fork::fork_and_hold", ROLE, &lock);
    let line = process.says("CHILD");
    let child = line.rsplit(' ').next().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)).unwrap();
    process.kill();
    Runtime::new().unwrap().block_on(async {
        until(&server.client().await, &sessions("orphan", true), "0").await;
    });
    kill_process(child, Signal::KILL).unwrap();
}

/// Not a real test: the process of the test above runs this.
#[test]
fn fork_and_hold() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let runtime = Runtime::new().unwrap();
    let _guard = runtime.block_on(take(&LockFile::open(&url).unwrap()));
    let child = fork(|| {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
    println!("CHILD {}", child.as_raw_nonzero());
    until_stdin_ends();
}
