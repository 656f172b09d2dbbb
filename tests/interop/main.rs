//! Real programs that take locks, tested with our library in both directions, and faults that only root can cause. If a
//! tool is missing, the test fails.
//!
//! ```text
//! SHLOCK=/usr/lib/news/bin/shlock cargo test --test interop
//! ```
#![cfg(unix)]

mod bind_mounts;
mod denied;
mod elsewhere;
mod faults;
mod grace;
mod identity;
mod leases;
mod names;
mod with_lock;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio_lockfile::{LockError, LockFile, check_lock};

fn place() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.lock");
    (dir, path)
}

fn shlock() -> Command {
    Command::new(std::env::var_os("SHLOCK").expect("SHLOCK must be the path of INN's shlock(1)"))
}

fn succeeds(command: &mut Command) -> bool {
    command.status().unwrap_or_else(|error| panic!("{command:?}: {error}")).success()
}

/// A program that prints "held" once it has the lock, and holds it until its stdin closes.
struct Peer(Child);

impl Peer {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n", "{command:?}");
        Self(child)
    }

    /// The same for a program that prints other lines before.
    fn start_among_lines(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = Vec::new();
        let mut byte = [0];
        // Byte by byte, because the later output is read elsewhere.
        while !said.ends_with(b"\nheld\n") {
            let read = child.stdout.as_mut().unwrap().read(&mut byte).unwrap();
            assert_ne!(read, 0, "{command:?}: {}", String::from_utf8_lossy(&said));
            said.extend(byte);
        }
        Self(child)
    }

    fn python(program: &str, path: &Path) -> Self {
        Self::start(Command::new("python3").args(["-c", program]).arg(path))
    }

    fn flock1(path: &Path) -> Self {
        Self::start(Command::new("flock").arg(path).args(["-c", "echo held; cat"]))
    }

    fn finish(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn take(lock: &LockFile) -> tokio_lockfile::LockGuard {
    lock.attempt().await.unwrap().expect("the lock is free")
}

#[tokio::test]
async fn flock1_and_ours() {
    let (_dir, path) = place();
    let lock = LockFile::flock(&path).unwrap();

    let guard = take(&lock).await;
    assert!(!succeeds(Command::new("flock").arg("-n").arg(&path).arg("true")));
    guard.release().await.unwrap();
    assert!(succeeds(Command::new("flock").arg("-n").arg(&path).arg("true")));

    // The record of a dead process of ours is in the file. It does not name the holder, flock(1).
    std::fs::write(&path, "   4194305\t\t \t\t\n").unwrap();
    let peer = Peer::flock1(&path);
    assert!(lock.attempt().await.unwrap().is_none());
    let holder = lock.holder().await.unwrap().unwrap();
    assert_eq!((holder.pid(), holder.name(), holder.since()), (peer.0.id(), Some("flock"), None));
    assert!(matches!(lock.obtain_timeout(Duration::from_millis(20)).await, Err(LockError::TimedOut { .. })));
    peer.finish();
    lock.obtain().await.unwrap().release().await.unwrap();
}

/// A program that takes the lock in this mode and keeps it until its input ends.
fn python_flock(mode: &str) -> String {
    format!(
        "
import fcntl, sys
f = open(sys.argv[1], 'a')
fcntl.flock(f, fcntl.{mode} | fcntl.LOCK_NB)
print('held', flush=True)
sys.stdin.read()
"
    )
}

#[tokio::test]
async fn python_flock_and_ours() {
    let program = &python_flock("LOCK_EX");
    let (_dir, path) = place();
    let lock = LockFile::flock(&path).unwrap();
    let peer = Peer::python(program, &path);
    assert!(lock.attempt().await.unwrap().is_none());
    peer.kill();
    let guard = take(&lock).await;
    assert!(!succeeds(
        Command::new("python3").args(["-c", program]).arg(&path).stderr(Stdio::null()).stdin(Stdio::null())
    ));
    drop(guard);
    Peer::python(program, &path).finish();
}

/// Whether flock(1) gets the lock at once, in this mode.
fn flock1_gets(mode: &str, path: &Path) -> bool {
    succeeds(Command::new("flock").args(["-n", mode]).arg(path).arg("true"))
}

#[tokio::test]
async fn shared_locks_of_flock1_and_ours() {
    let (_dir, path) = place();
    let writer = LockFile::flock(&path).unwrap();
    let reader = writer.shared().unwrap();

    let guard = take(&reader).await;
    assert!(flock1_gets("-s", &path) && !flock1_gets("-x", &path));
    guard.release().await.unwrap();
    let guard = take(&writer).await;
    assert!(!flock1_gets("-s", &path));
    guard.release().await.unwrap();
    assert!(flock1_gets("-x", &path));

    let peer = Peer::start(Command::new("flock").arg("-s").arg(&path).args(["-c", "echo held; cat"]));
    let guard = take(&reader).await;
    assert!(writer.attempt().await.unwrap().is_none());
    let mut holders: Vec<u32> = writer.holders().await.unwrap().iter().map(|holder| holder.pid()).collect();
    holders.sort_unstable();
    let mut expected = vec![peer.0.id(), std::process::id()];
    // The shell that flock(1) has started inherits the lock.
    holders.retain(|pid| expected.contains(pid));
    expected.sort_unstable();
    assert_eq!(holders, expected);
    drop(guard);
    peer.finish();
    writer.obtain().await.unwrap().release().await.unwrap();

    let peer = Peer::flock1(&path);
    assert!(reader.attempt().await.unwrap().is_none());
    peer.finish();
    reader.obtain().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn shared_locks_of_python_and_ours() {
    let program = &python_flock("LOCK_SH");
    let (_dir, path) = place();
    let writer = LockFile::flock(&path).unwrap();
    let reader = writer.shared().unwrap();
    let peer = Peer::python(program, &path);
    drop(take(&reader).await);
    assert!(writer.attempt().await.unwrap().is_none());
    peer.kill();
    let guard = take(&reader).await;
    Peer::python(program, &path).finish();
    drop(guard);
    let guard = take(&writer).await;
    assert!(!succeeds(
        Command::new("python3").args(["-c", program]).arg(&path).stderr(Stdio::null()).stdin(Stdio::null())
    ));
    drop(guard);
}

/// The `flock` child of the shell takes the lock and dies. The kernel's list of locks still has its PID.
#[tokio::test]
async fn a_holder_that_inherited_the_lock_is_named() {
    let (_dir, path) = place();
    let script = "exec 9>>\"$0\"; flock 9; echo held; read _";
    for _ in 0..2 {
        let peer = Peer::start(Command::new("bash").args(["-c", script]).arg(&path));
        let lock = LockFile::flock(&path).unwrap();
        let holder = lock.holder().await.unwrap().unwrap();
        assert_eq!((holder.pid(), holder.name()), (peer.0.id(), Some("bash")));
        peer.kill();
        assert_eq!(lock.holder().await.unwrap(), None);
        // The record of a dead holder of ours in the file does not name anyone.
        std::fs::write(&path, "   4194305\t\t \t\t\n").unwrap();
    }
}

#[tokio::test]
async fn a_shared_holder_is_named() {
    let (_dir, path) = place();
    let peer = Peer::start(Command::new("flock").arg("-s").arg(&path).args(["-c", "echo held; cat"]));
    let lock = LockFile::flock(&path).unwrap();
    let error = lock.obtain_timeout(Duration::from_millis(300)).await.unwrap_err();
    let LockError::TimedOut { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
    assert!(["flock", "sh", "cat"].contains(&holder.name().unwrap()), "{holder}");
    peer.finish();
}

/// Python's `fcntl.lockf` takes a record lock, as apt, s6 and others do. A record lock does not exclude an flock.
#[tokio::test]
async fn a_record_lock_causes_a_warning() {
    const PROGRAM: &str = "
import fcntl, sys
f = open(sys.argv[1], 'a')
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
print('held', flush=True)
sys.stdin.read()
";
    let (_dir, path) = place();
    let peer = Peer::python(PROGRAM, &path);
    let warnings = faults::Warnings::default();
    let listening = tracing::subscriber::set_default(warnings.subscriber());
    let guard = take(&LockFile::flock(&path).unwrap()).await;
    drop(listening);
    assert!(warnings.text().contains("record lock"), "{}", warnings.text());
    assert!(warnings.text().contains(&format!("holder.pid={}", peer.0.id())), "{}", warnings.text());
    drop(guard);
    peer.finish();
}

#[tokio::test]
async fn std_and_ours() {
    let (_dir, path) = place();
    let lock = LockFile::flock(&path).unwrap();
    let guard = take(&lock).await;
    let file = std::fs::File::open(&path).unwrap();
    assert!(matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    drop(guard);
    file.try_lock().unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    drop(file);
    drop(take(&lock).await);
}

/// procmail's lockfile(1) with `-l` removes a file that has not changed for the given number of seconds.
#[tokio::test]
async fn a_program_that_breaks_locks_by_age_leaves_a_held_shlock_alone() {
    let (_dir, path) = place();
    let breaks = || {
        let mut lockfile = Command::new("lockfile");
        lockfile.args(["-1", "-r", "0", "-l", "300", "-s", "1"]).arg(&path).stderr(Stdio::null());
        succeeds(&mut lockfile)
    };
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(600);
    std::fs::File::create(&path).unwrap().set_modified(long_ago).unwrap();
    assert!(breaks(), "lockfile(1) does not break an old file");
    std::fs::remove_file(&path).unwrap();
    let guard = take(&LockFile::shlock(&path).unwrap()).await;
    assert!(!breaks());
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn shlock1_respects_ours() {
    let (_dir, path) = place();
    let lock = LockFile::shlock(&path).unwrap();
    let own_pid = std::process::id().to_string();
    let shlock_takes = || succeeds(shlock().args(["-p", &own_pid, "-f"]).arg(&path).stderr(Stdio::null()));
    let shlock_sees_it = || !succeeds(shlock().args(["-c", "-f"]).arg(&path).stderr(Stdio::null()));

    let guard = take(&lock).await;
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 14);
    assert!(shlock_sees_it(), "shlock -c reads our record");
    assert!(!shlock_takes());
    assert!(guard.is_held());
    guard.release().await.unwrap();
    assert!(shlock_takes());
}

#[tokio::test]
async fn ours_respects_shlock1() {
    let (dir, path) = place();
    let lock = LockFile::shlock(&path).unwrap();
    let holder = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let mut holder = Peer(holder);
    assert!(succeeds(shlock().args(["-p", &holder.0.id().to_string(), "-f"]).arg(&path)));

    assert!(check_lock(&path).unwrap());
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), holder.0.id());
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    assert!(!check_lock(&path).unwrap());
    take(&lock).await.release().await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The algorithm of PEAK's `SHLockFile`: it links a temporary file to the name. If the name exists, it reads the PID,
/// and breaks the lock if `kill(pid, 0)` finds no such process.
const PEAK: &str = "
import os, sys, tempfile
path = sys.argv[1]
def pid_exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
def check_lock():
    with open(path) as f:
        return pid_exists(int(f.read().strip()))
def attempt():
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    os.write(fd, b'%d\\n' % os.getpid())
    os.close(fd)
    try:
        for _ in range(2):
            try:
                os.link(temporary, path)
                return True
            except FileExistsError:
                if check_lock():
                    return False
                os.unlink(path)
    finally:
        os.unlink(temporary)
    return False
print('held' if attempt() else 'busy', flush=True)
sys.stdin.read()
if len(sys.argv) < 3:
    os.unlink(path)
";

#[tokio::test]
async fn peak_and_ours() {
    let (_dir, path) = place();
    let lock = LockFile::shlock(&path).unwrap();

    let peer = Peer::python(PEAK, &path);
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), peer.0.id());
    peer.finish();

    let guard = take(&lock).await;
    let mut peer = Command::new("python3")
        .args(["-c", PEAK])
        .arg(&path)
        .arg("leave")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answer = String::new();
    peer.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    peer.wait().unwrap();
    assert_eq!(answer, "busy\n");
    guard.release().await.unwrap();

    Peer::python(PEAK, &path).kill();
    take(&lock).await.release().await.unwrap();
}
