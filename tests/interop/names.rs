//! Who is named as the holder: a process that has the lock, by its PID here. A try that only looks is no holder.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_lockfile::LockFile;

use crate::faults::{answer_by, attempt_by, set_mode};
use crate::identity::{KINDS, container, env, holder, url};
use crate::place;

const ROLE: &str = "TOKIO_LOCKFILE_TEST_NAMES";

/// Not a real test: asks who holds the lock of a URL, and prints the answer for [`holder_seen_by`].
#[tokio::test]
async fn ask_for_parent() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let holder = LockFile::open(&url).unwrap().holder().await.unwrap();
    println!("ANSWER {:?}", holder.map(|holder| (holder.pid(), holder.name().map(str::to_owned))));
}

fn holder_seen_by(command: &mut Command, url: &str) -> String {
    answer_by(command, "names::ask_for_parent", (ROLE, url))
}

fn nobody() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command
}

/// A container whose next process has the PID after this one.
fn container_with_pid(pid: u32) -> Command {
    let mut command = container();
    command.args(["sh", "-c", &format!("echo {pid} >/proc/sys/kernel/ns_last_pid; \"$@\"; true"), "sh"]);
    command
}

fn child_of(process: &Child) -> u32 {
    let pid = process.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}

#[test]
fn a_holder_in_another_container_has_no_name_and_no_pid_here() {
    for kind in KINDS {
        let (_dir, path) = place();
        let url = url(kind, &path);
        let peer = holder(&mut container(), "wait", &url);
        // The asker is PID 1 too.
        assert_eq!(holder_seen_by(&mut container(), &url), "Some((0, None))", "{kind}");
        peer.finish();
    }
}

/// There /proc shows the processes of the outer namespace.
#[test]
fn a_pid_of_an_outer_namespace_is_not_named() {
    for kind in KINDS {
        let (_dir, path) = place();
        let url = url(kind, &path);
        let peer = holder(&mut env(), "wait", &url);
        let mut without_proc = Command::new("unshare");
        without_proc.args(["--pid", "--fork", "--kill-child"]);
        assert_eq!(holder_seen_by(&mut without_proc, &url), "Some((0, None))", "{kind}");
        peer.finish();
    }
}

/// A user may not look at the open files of another user. The kernel's list of locks still names the holder.
#[test]
fn another_users_holder_is_named_by_its_pid_here() {
    for kind in KINDS {
        let (dir, path) = place();
        set_mode(dir.path(), 0o755);
        let url = url(kind, &path);
        let peer = holder(&mut container(), "wait", &url);
        let named = holder_seen_by(&mut nobody(), &url);
        assert!(named.starts_with(&format!("Some(({}, Some(\"interop", child_of(&peer.0))), "{kind}: {named}");
        peer.finish();
    }
}

/// The PID of the holder does not exist in the container of the other process.
#[test]
fn one_look_finds_that_a_lock_is_held_in_another_container() {
    let (dir, path) = place();
    let url = url("shlockfile", &path);
    let peer = holder(&mut container_with_pid(5000), "wait", &url);
    let mut traced = container();
    let trace = dir.path().join("trace");
    traced.args(["strace", "-f", "-qq", "-y", "-e", "trace=pread64", "-o"]).arg(&trace);
    assert_eq!(attempt_by(&mut traced, &url), "busy");
    let trace = std::fs::read_to_string(trace).unwrap();
    let looks = trace.lines().filter(|line| line.contains("      5001")).count();
    assert_eq!(looks, 1, "{trace}");
    peer.finish();
}

/// A process that tries for the lock and is stopped after its flock(2) of this number.
struct Stopped(Child);

impl Stopped {
    fn after_flock(number: u32, dir: &Path, url: &str) -> Self {
        let (trace, url) = (dir.join("trace"), url.to_owned());
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=flock", "-e", &format!("inject=flock:signal=STOP:when={number}"), "-o"]);
        strace.arg(&trace).arg(std::env::current_exe().unwrap());
        strace.args(["faults::attempt_for_parent", "--exact"]).env("TOKIO_LOCKFILE_TEST_ATTEMPT", url);
        let stopped = Self(strace.stdout(std::process::Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while !std::fs::read_to_string(&trace).is_ok_and(|trace| trace.contains("stopped by SIGSTOP")) {
            assert!(began.elapsed() < Duration::from_secs(60), "hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_raw(child_of(&self.0) as i32).unwrap(), Signal::KILL);
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_try_that_looks_at_a_dead_holders_file_is_not_named() {
    // It looks at the file, and it takes the file over.
    for number in [1, 3] {
        let (traces, (_dir, path)) = (TempDir::new().unwrap(), place());
        std::fs::write(&path, "   4194305\t \t\n").unwrap();
        let stopped = Stopped::after_flock(number, traces.path(), &url("shlockfile", &path));
        let lock = LockFile::shlock(&path).unwrap();
        let named = lock.holder().await.unwrap();
        assert_eq!(named.map_or(0, |holder| holder.pid()), 0, "after flock {number}");
        drop(stopped);
        crate::take(&lock).await.release().await.unwrap();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}
