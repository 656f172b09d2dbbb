//! File systems where flock(2) may not work as documented: FUSE, where waits poll. On fuse-overlayfs(1) flock works,
//! but a file cannot be without a name. On bindfs(1) each name of a file is a separate file.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::task::Poll;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_lockfile::{LockError, LockFile, Singleton};

use crate::faults::attempt_by;
use crate::identity::{KINDS, env, holder, url};
use crate::{succeeds, take};

/// Mounted until it is dropped.
struct Mount {
    root: PathBuf,
    process: Child,
    _dir: TempDir,
}

impl Mount {
    fn new(mount: impl FnOnce(&Path, &Path) -> Command) -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["root", "lower", "upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = dir.path().join("root");
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
        // Some of these programs go to the background. Others run until their file system is unmounted.
        let mut process = mount(dir.path(), &root).spawn().unwrap();
        let began = Instant::now();
        while device(&root).ok() == device(dir.path()).ok() {
            assert!(process.try_wait().unwrap().is_none_or(|status| status.success()), "it is not mounted");
            assert!(began.elapsed() < Duration::from_secs(20), "hangs");
            std::thread::yield_now();
        }
        Self { root, process, _dir: dir }
    }

    fn by_fuse_overlayfs() -> Self {
        Self::new(|dir, root| {
            let mut command = Command::new("fuse-overlayfs");
            let dir = dir.display();
            command.arg("-o").arg(format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work")).arg(root);
            command
        })
    }

    fn by_bindfs() -> Self {
        Self::new(|dir, root| {
            let mut command = Command::new("bindfs");
            command.arg(dir.join("upper")).arg(root);
            command
        })
    }

    /// Shows how many requests wait for each FUSE server, by the number of the device.
    fn of_fusectl() -> Self {
        Self::new(|_, root| {
            let mut command = Command::new("mount");
            command.args(["-t", "fusectl", "none"]).arg(root);
            command
        })
    }

    /// The directory to which fuse-overlayfs writes: the same files, as they are on the disk.
    fn upper(&self) -> PathBuf {
        self._dir.path().join("upper")
    }

    /// sshfs(1), connected to its server by a pair of sockets.
    fn by_sshfs() -> Self {
        Self::new(|dir, root| {
            let (ours, servers) = UnixStream::pair().unwrap();
            let [input, output] = [(); 2].map(|()| Stdio::from(OwnedFd::from(servers.try_clone().unwrap())));
            let mut server = Command::new("/usr/lib/openssh/sftp-server");
            let mut server = server.stdin(input).stdout(output).spawn().unwrap();
            // The server ends when the connection ends.
            std::thread::spawn(move || server.wait());
            let mut command = Command::new("sshfs");
            command.arg(format!(":{}/upper", dir.display())).arg(root).args(["-o", "passive"]);
            command.stdin(OwnedFd::from(ours.try_clone().unwrap())).stdout(OwnedFd::from(ours));
            command
        })
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("x.lock")
    }

    fn names(&self) -> usize {
        std::fs::read_dir(&self.root).unwrap().count()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg("--lazy").arg(&self.root));
        let _ = self.process.wait();
    }
}

/// Checks that two processes exclude each other, in both directions, with an attempt and with a wait.
async fn exclude(scheme: &str, mount: &Mount) {
    let url = url(scheme, &mount.lock_path());
    let lock = LockFile::open(&url).unwrap();
    let guard = take(&lock).await;
    assert_eq!(attempt_by(&mut env(), &url), "busy", "{scheme}");
    guard.release().await.unwrap();

    let peer = holder(&mut env(), "wait", &url);
    assert!(lock.attempt().await.unwrap().is_none());
    let waiter = tokio::spawn(async move { lock.obtain().await });
    peer.finish();
    waiter.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn locks_exclude_and_wait_where_flock_works() {
    let mount = Mount::by_fuse_overlayfs();
    for scheme in KINDS {
        exclude(scheme, &mount).await;
    }
    assert_eq!(mount.names(), 1, "only the flock file stays");
}

#[tokio::test]
async fn a_lock_that_looks_stale_is_an_error_unless_we_were_told_to_break_it() {
    let mount = Mount::by_fuse_overlayfs();
    let path = mount.lock_path();
    let url = url("shlockfile", &path);
    let victim = holder(&mut env(), "wait", &url);
    let dead = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    victim.kill();
    let record = std::fs::read(&path).unwrap();

    let error = LockFile::open(&url).unwrap().attempt().await.unwrap_err();
    let LockError::Stale { path: named, pid, .. } = &error else { panic!("{error:?}") };
    assert_eq!((named, *pid), (&path, dead));
    for part in [path.to_str().unwrap(), &pid.to_string(), "FUSE", "break_stale_anywhere"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), record, "the file was changed");

    let bold = LockFile::builder().break_stale_anywhere(true).shlock(&path).unwrap();
    take(&bold).await.release().await.unwrap();
    assert_eq!(mount.names(), 0);
}

#[tokio::test]
async fn a_lock_that_nobody_else_would_see_is_not_obtained() {
    let mount = Mount::by_bindfs();
    exclude("flockfile", &mount).await;
    let path = mount.root.join("y.lock");
    let error = LockFile::shlock(&path).unwrap().attempt().await.unwrap_err();
    assert!(matches!(error, LockError::Unsupported { .. }), "{error:?}");
    for part in [path.to_str().unwrap(), "FUSE", "use the flock kind"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(mount.names(), 1, "files are left");
}

/// A lock that was created through FUSE, seen from the disk below. There its flock is on another inode, so a free flock
/// does not prove that the holder is dead.
#[tokio::test]
async fn a_lock_whose_flock_cannot_be_seen_from_here_is_not_broken() {
    let mount = Mount::by_fuse_overlayfs();
    let peer = holder(&mut env(), "wait", &url("shlockfile", &mount.lock_path()));
    let below = mount.upper().join("x.lock");
    let lock = LockFile::shlock(&below).unwrap();
    assert!(lock.attempt().await.unwrap().is_none(), "its holder is alive");
    let record = std::fs::read(&below).unwrap();
    peer.kill();
    let error = lock.attempt().await.unwrap_err();
    assert!(matches!(error, LockError::Stale { .. }), "{error:?}");
    assert_eq!(std::fs::read(&below).unwrap(), record);
}

/// sshfs shows each name of a file as a separate inode.
#[tokio::test]
async fn a_name_that_shows_another_inode_is_removed_again() {
    let mount = Mount::by_sshfs();
    for _ in 0..2 {
        let error = LockFile::shlock(mount.lock_path()).unwrap().attempt().await.unwrap_err();
        assert!(matches!(error, LockError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("use the flock kind"), "{error}");
        assert_eq!(mount.names(), 0, "files are left");
    }
}

/// bindfs(1) as a process that can be stopped. The kernel remembers nothing of what it has said.
fn bindfs_that_can_hang() -> Mount {
    Mount::new(|dir, root| {
        let mut command = Command::new("bindfs");
        command.args(["-f", "-o", "attr_timeout=0,entry_timeout=0"]).arg(dir.join("upper")).arg(root);
        command
    })
}

/// A process that stands still as long as this exists.
struct Stopped(rustix::process::Pid);

impl Stopped {
    fn new(process: &Child) -> Self {
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::CONT).unwrap();
    }
}

async fn is_ready<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

/// Both locks wait for tasks that are not polled, and are overdue. The release of the first one hangs.
#[tokio::test]
async fn a_file_system_that_hangs_keeps_no_other_lock_taken() {
    const LONG: Duration = Duration::from_secs(20);
    let mount = bindfs_that_can_hang();
    let slow = LockFile::flock(mount.lock_path()).unwrap();
    take(&slow).await.release().await.unwrap();
    let found = std::fs::metadata(mount.lock_path()).unwrap();
    let listed = format!("{:02x}:{:02x}:{} ", found.dev() >> 8, found.dev() & 0xff, found.ino());
    let is_taken = || std::fs::read_to_string("/proc/locks").unwrap().contains(&listed);
    let connections = Mount::of_fusectl();
    let requests = connections.root.join(format!("{}/waiting", found.dev()));
    let hangs = || std::fs::read_to_string(&requests).unwrap().trim() != "0";
    let mut attempt = Box::pin(slow.attempt());
    let began = Instant::now();
    let stopped = loop {
        assert!(began.elapsed() < LONG, "hangs");
        if is_ready(attempt.as_mut()).await {
            // The pool was faster than the poll.
            attempt = Box::pin(slow.attempt());
            continue;
        }
        let polled = Instant::now();
        while !is_taken() && polled.elapsed() < Duration::from_millis(5) {}
        if !is_taken() {
            continue;
        }
        let stopped = Stopped::new(&mount.process);
        while is_taken() && !hangs() {
            assert!(began.elapsed() < LONG, "the lock is overdue, and is not released");
        }
        if hangs() {
            break stopped;
        }
    };

    let dir = TempDir::new_in("/dev/shm").unwrap();
    let url = url("flockfile", &dir.path().join("x.lock"));
    let lock = LockFile::open(&url).unwrap();
    let guard = take(&lock).await;
    let mut next = Box::pin(lock.obtain());
    assert!(!is_ready(next.as_mut()).await);
    drop(guard);
    let began = Instant::now();
    while attempt_by(&mut env(), &url) != "held" {
        assert!(began.elapsed() < LONG, "the lock that was offered stays taken");
    }
    drop(stopped);
    drop(next.await.unwrap());
    attempt.await.unwrap().expect("it is free").release().await.unwrap();
}

/// The server of the file system is stopped. A release, or the drop of a guard, must not block the executor meanwhile.
#[tokio::test]
async fn a_file_system_that_hangs_does_not_hold_up_a_release() {
    let mount = bindfs_that_can_hang();
    for is_dropped in [false, true] {
        let lock = LockFile::flock(mount.lock_path()).unwrap();
        let guard = take(&lock).await;
        let stopped = Stopped::new(&mount.process);
        let began = Instant::now();
        let is_released = match is_dropped {
            true => {
                drop(guard);
                false
            }
            false => tokio::time::timeout(Duration::from_millis(50), guard.release()).await.is_ok(),
        };
        let waited = began.elapsed();
        drop(stopped);
        assert!(!is_released, "the release ended, although the server is stopped");
        assert!(waited < Duration::from_secs(5), "the executor hung for {waited:?}");
        // The release continues by itself once the server runs again.
        lock.obtain_timeout(Duration::from_secs(20)).await.unwrap().release().await.unwrap();
    }
}

/// It has led, and its release has no answer.
#[tokio::test]
async fn a_file_system_that_hangs_does_not_keep_a_singleton_from_its_shutdown() {
    let mount = bindfs_that_can_hang();
    for does_the_work_end in [false, true] {
        let stopped = Mutex::new(None);
        let leader = Singleton::new(LockFile::flock(mount.lock_path()).unwrap());
        let shutdown = Notify::new();
        let work = || async {
            *stopped.lock().unwrap() = Some(Stopped::new(&mount.process));
            shutdown.notify_one();
            if !does_the_work_end {
                std::future::pending::<()>().await;
            }
            Ok::<_, String>("done")
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), leader.run(work, shutdown.notified())).await;
        drop(stopped);
        assert_eq!(ended.expect("it does not end").unwrap(), does_the_work_end.then_some("done"));
        // The release goes on by itself once the server runs again.
        let lock = LockFile::flock(mount.lock_path()).unwrap();
        lock.obtain_timeout(Duration::from_secs(20)).await.unwrap().release().await.unwrap();
    }
}

/// The release runs on the blocking pool there. It must not wait until the executor is free to start it.
#[tokio::test]
async fn a_drop_releases_although_its_task_blocks_the_executor_afterwards() {
    let mount = Mount::by_bindfs();
    let guard = take(&LockFile::flock(mount.lock_path()).unwrap()).await;
    drop(guard);
    // This blocks the only thread of the runtime until the other process has the lock.
    holder(&mut env(), "wait", &url("flockfile", &mount.lock_path())).kill();
}
