//! The identity of a holder: other PID namespaces, stopped processes, fork and exec, other clocks.
#![expect(unsafe_code, reason = "only pre_exec can run code in a forked child before exec")]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_lockfile::{LockError, LockFile, check_lock};

use crate::faults::{answer_by, attempt_by, set_mode};
use crate::{Peer, place, take};

pub(crate) fn url(kind: &str, path: &Path) -> String {
    format!("{kind}:{}", path.display())
}

pub(crate) const KINDS: [&str; 2] = ["shlockfile", "flockfile"];
const ROLE: &str = "TOKIO_LOCKFILE_TEST_IDENTITY";
const CHECK_ROLE: &str = "TOKIO_LOCKFILE_TEST_CHECK";

/// Not a real test: another process runs this. It asks whether the PID in a lock file is that of a living process.
#[test]
fn check_for_parent() {
    let Ok(path) = std::env::var(CHECK_ROLE) else { return };
    println!("\nANSWER {}", check_lock(path).unwrap());
}

/// Not a real test: another process runs this. It takes the lock of a URL, prints "held", and does what `then` says.
#[test]
fn hold_for_parent() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (then, url) = role.split_once(' ').unwrap();
    let guard = LockFile::open(url).unwrap().blocking_obtain().unwrap();
    println!("\nheld");
    std::io::stdout().flush().unwrap();
    if let Some(root) = then.strip_prefix("chroot=") {
        rustix::process::chroot(root).unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        assert!(guard.is_held(), "its path leads to another directory, but the file was not removed");
        let released = tokio::runtime::Runtime::new().unwrap().block_on(guard.release());
        return released.unwrap();
    }
    if then == "exec" {
        panic!("{}", Command::new("cat").exec());
    }
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(guard);
}

/// Starts that process with `command`, and returns it once it holds the lock.
pub(crate) fn holder(command: &mut Command, then: &str, url: &str) -> Peer {
    command.arg(std::env::current_exe().unwrap()).args(["identity::hold_for_parent", "--exact", "--nocapture"]);
    Peer::start_among_lines(command.env(ROLE, format!("{then} {url}")))
}

pub(crate) fn env() -> Command {
    Command::new("env")
}

/// The command for a process in its own PID namespace, where it is PID 1.
pub(crate) fn container() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command
}

#[tokio::test]
async fn containers_exclude_each_other_though_both_are_pid_1() {
    for kind in KINDS {
        let (_dir, path) = place();
        let url = url(kind, &path);
        let first = holder(&mut container(), "wait", &url);
        let lock = LockFile::open(&url).unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        // The kernel's list of locks has the holder's PID in our namespace. Our PID 1 is another process.
        let shown = lock.holder().await.unwrap().unwrap();
        assert_ne!(shown.pid(), 1, "{shown}");
        assert!(shown.name().is_some_and(|name| name.starts_with("interop")), "{shown}");
        assert_eq!(attempt_by(&mut container(), &url), "busy");
        first.kill();
        // The restarted container is PID 1 again, like the dead holder in the record.
        assert_eq!(attempt_by(&mut container(), &url), "held");
    }
}

#[test]
fn a_holder_that_has_no_pid_here_is_alive_all_the_same() {
    let (_dir, path) = place();
    let check = || answer_by(&mut container(), "identity::check_for_parent", (CHECK_ROLE, path.to_str().unwrap()));
    let outside = holder(&mut env(), "wait", &url("shlockfile", &path));
    assert_eq!(check(), "true");
    outside.kill();
    assert_eq!(check(), "false");
}

#[tokio::test]
async fn a_stopped_holder_keeps_its_lock() {
    for kind in KINDS {
        let (_dir, path) = place();
        let lock = LockFile::open(&url(kind, &path)).unwrap();
        let stopped = holder(&mut env(), "wait", &url(kind, &path));
        let pid = Pid::from_child(&stopped.0);
        kill_process(pid, Signal::STOP).unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        let waited = lock.obtain_timeout(Duration::from_millis(300)).await;
        assert!(matches!(waited, Err(LockError::TimedOut { .. })));
        kill_process(pid, Signal::CONT).unwrap();
        stopped.finish();
        take(&lock).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn exec_gives_up_the_lock() {
    for kind in KINDS {
        let (_dir, path) = place();
        let lock = LockFile::open(&url(kind, &path)).unwrap();
        let mut other = holder(&mut env(), "exec", &url(kind, &path));
        // When it answers, it has become cat(1).
        other.0.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        other.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        take(&lock).await.release().await.unwrap();
        other.finish();
    }
}

/// Between fork and exec, a child has all descriptors of its parent.
#[tokio::test]
async fn a_child_that_has_not_execed_does_not_keep_the_lock() {
    for kind in KINDS {
        let (_dir, path) = place();
        let lock = LockFile::open(&url(kind, &path)).unwrap();
        let guard = take(&lock).await;
        let (mut forked, child_forked) = std::io::pipe().unwrap();
        let (child_waits, go_on) = std::io::pipe().unwrap();
        let child = std::thread::spawn(move || {
            let mut command = Command::new("true");
            let (mut child_forked, mut child_waits) = (child_forked, child_waits);
            let before_exec = move || {
                child_forked.write_all(b"!")?;
                child_waits.read_exact(&mut [0])
            };
            // SAFETY: the closure only writes to a pipe and reads from one.
            unsafe { command.pre_exec(before_exec) };
            command.status().unwrap()
        });
        forked.read_exact(&mut [0]).unwrap();
        guard.release().await.unwrap();
        assert_eq!(attempt_by(&mut env(), &url(kind, &path)), "held");
        (&go_on).write_all(b"!").unwrap();
        assert!(child.join().unwrap().success());
    }
}

#[tokio::test]
async fn a_forked_child_that_drops_the_guard_leaves_the_parents_lock_alone() {
    for kind in KINDS {
        let (_dir, path) = place();
        let url = url(kind, &path);
        let mut guard = Some(take(&LockFile::open(&url).unwrap()).await);
        let mut command = Command::new("true");
        let drop_it = move || {
            drop(guard.take());
            Err(std::io::ErrorKind::Other.into())
        };
        // SAFETY: the drop of a guard in a process that did not take the lock closes a descriptor and takes no lock.
        unsafe { command.pre_exec(drop_it) };
        assert!(command.status().is_err(), "the child has run");
        assert_eq!(attempt_by(&mut env(), &url), "busy");
        // The parent's guard is dropped together with the closure.
        drop(command);
        assert_eq!(attempt_by(&mut env(), &url), "held");
    }
}

/// The process forks after an attempt has obtained the lock, but before its result is polled.
#[test]
fn a_forked_child_that_drops_a_pending_attempt_leaves_the_parents_lock_alone() {
    struct Bell(std::sync::mpsc::Sender<()>);
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.send(()).unwrap();
        }
    }
    let (_dir, path) = place();
    let url = url("shlockfile", &path);
    let lock = LockFile::open(&url).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (bell, rings) = std::sync::mpsc::channel();
    let waker = Waker::from(Arc::new(Bell(bell)));
    let mut attempt = Box::pin(async move { lock.attempt().await });
    assert!(attempt.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    rings.recv().unwrap();
    // In a mutex, because the closure that runs before an exec must be Sync.
    let attempt = Arc::new(Mutex::new(Some(attempt)));
    let mut command = Command::new("true");
    let copy = Arc::clone(&attempt);
    let drop_it = move || {
        drop(copy.lock().unwrap().take());
        Err(std::io::ErrorKind::Other.into())
    };
    // SAFETY: no other thread of this process is in the middle of anything that the drop might wait for.
    unsafe { command.pre_exec(drop_it) };
    assert!(command.status().is_err(), "the child has run");
    let attempt = attempt.lock().unwrap().take().expect("only the child has dropped it");
    let guard = runtime.block_on(attempt).unwrap().expect("the child has taken the lock along");
    assert!(guard.is_held());
    assert_eq!(attempt_by(&mut env(), &url), "busy");
    drop(guard);
    assert_eq!(attempt_by(&mut env(), &url), "held");
}

#[tokio::test]
async fn the_id_of_a_thread_is_no_pid() {
    let (_dir, path) = place();
    let (sender, id) = std::sync::mpsc::channel();
    let (_stay, stays) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        sender.send(rustix::thread::gettid()).unwrap();
        let _ = stays.recv();
    });
    let id = id.recv().unwrap().as_raw_nonzero();
    std::fs::write(&path, format!("{id}\n")).unwrap();
    assert!(!check_lock(&path).unwrap());
    take(&LockFile::shlock(&path).unwrap()).await.release().await.unwrap();
}

/// hidepid=2 hides other users' processes in /proc, but not from kill(2) and pidfd_open(2).
#[tokio::test]
async fn hidden_processes_are_alive() {
    let (dir, path) = place();
    set_mode(dir.path(), 0o1777);
    std::fs::write(&path, format!("{}\n", std::process::id())).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command
        .arg("mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"");
    command.arg("sh");
    assert_eq!(attempt_by(&mut command, &url("shlockfile", &path)), "busy");
    assert!(path.exists());
}

/// faketime(1) changes the clock of one process.
#[tokio::test]
async fn a_step_of_the_clock_changes_nothing() {
    for step in ["+1h", "-1h"] {
        let stepped = || {
            let mut command = Command::new("faketime");
            command.args(["-f", step]).stderr(Stdio::null());
            command
        };
        for kind in KINDS {
            let (_dir, path) = place();
            let url = url(kind, &path);
            let guard = take(&LockFile::open(&url).unwrap()).await;
            assert_eq!(attempt_by(&mut stepped(), &url), "busy");
            guard.release().await.unwrap();
            let stepped_holder = holder(&mut stepped(), "wait", &url);
            assert_eq!(attempt_by(&mut env(), &url), "busy");
            stepped_holder.finish();
        }
        let (_dir, path) = place();
        std::fs::write(&path, "").unwrap();
        assert_eq!(attempt_by(&mut stepped(), &url("shlockfile", &path)), "busy", "a fresh blank file");
    }
}

/// After a chroot(2) the path leads to another directory. The process can then learn nothing about the file, so the
/// lock does not count as lost.
#[test]
fn a_holder_that_changes_its_root_still_holds() {
    for kind in KINDS {
        let (dir, path) = place();
        let inner = dir.path().join("root");
        std::fs::create_dir(&inner).unwrap();
        let peer = holder(&mut env(), &format!("chroot={}", inner.display()), &url(kind, &path));
        let lock = LockFile::open(&url(kind, &path)).unwrap();
        assert!(lock.blocking_attempt().unwrap().is_none());
        peer.finish();
        drop(lock.blocking_attempt().unwrap().expect("it was released in its new root"));
    }
}
