//! Helpers for all tests.

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio_lockfile::{LockFile, LockGuard};

pub(crate) use crate::kinds::{FILE_KINDS, SHARED_KINDS};

/// The limit for a hang. No wait takes this long when the test succeeds.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// One kind of lock: each call creates a new handle on `path`.
pub(crate) type Kind = fn(&Path) -> LockFile;

/// One kind of lock in both modes.
#[derive(Clone, Copy)]
pub(crate) struct Modes {
    pub(crate) writer: Kind,
    pub(crate) reader: Kind,
}

/// Runs one test with every kind that uses a file.
pub(crate) async fn each_file_kind<F: Future<Output = ()>>(behaviour: impl Fn(Kind, PathBuf) -> F) {
    for kind in FILE_KINDS {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x.lock");
        println!("kind {:?}", kind(&path).kind());
        tokio::time::timeout(HANG, behaviour(*kind, path)).await.expect("hangs");
    }
}

/// Runs one test with every kind that uses a file and can be shared.
pub(crate) async fn each_shared_file_kind<F: Future<Output = ()>>(behaviour: impl Fn(Modes, PathBuf) -> F) {
    for modes in SHARED_KINDS {
        let dir = TempDir::new().unwrap();
        tokio::time::timeout(HANG, behaviour(*modes, dir.path().join("x.lock"))).await.expect("hangs");
    }
}

/// The same with every kind and every mode.
pub(crate) async fn each_file_kind_and_mode<F: Future<Output = ()>>(behaviour: impl Fn(Kind, PathBuf) -> F) {
    each_file_kind(&behaviour).await;
    println!("shared");
    each_shared_file_kind(|modes, path| behaviour(modes.reader, path)).await;
}

/// Runs one test with every kind, also null locks. The test gets two handles on the same lock.
pub(crate) async fn each_kind<F: Future<Output = ()>>(behaviour: impl Fn(LockFile, LockFile) -> F) {
    each_file_kind(|kind, path| behaviour(kind(&path), kind(&path))).await;
    let null = LockFile::null();
    behaviour(null.clone(), null).await;
    let unique = tempfile::TempDir::new().unwrap();
    let name = unique.path().file_name().unwrap().to_str().unwrap();
    let named = || LockFile::open(&format!("nulllockfile:{name}")).unwrap();
    behaviour(named(), named()).await;
}

/// Runs one test with every kind that can be shared, also null locks. The test gets a handle for writers and one for
/// readers.
pub(crate) async fn each_shared_kind<F: Future<Output = ()>>(behaviour: impl Fn(LockFile, LockFile) -> F) {
    each_shared_file_kind(|modes, path| behaviour((modes.writer)(&path), (modes.reader)(&path))).await;
    let null = LockFile::null();
    let shared = null.shared().unwrap();
    behaviour(null, shared).await;
}

/// Runs one test with two handles that exclude each other: both exclusive, or one of them shared.
pub(crate) async fn each_pair<F: Future<Output = ()>>(behaviour: impl Fn(LockFile, LockFile) -> F) {
    each_kind(&behaviour).await;
    println!("the first one shared");
    each_shared_kind(|writer, reader| behaviour(reader, writer)).await;
    println!("the second one shared");
    each_shared_kind(&behaviour).await;
}

/// Attempts once to take the lock, and panics if that fails.
pub(crate) async fn take(lock: &LockFile) -> LockGuard {
    lock.attempt().await.expect("the attempt fails").expect("the lock is not free")
}

/// Polls the future once, and lets the other tasks of the runtime run. Returns whether the future was ready.
pub(crate) async fn poll_once<F: Future + ?Sized>(mut future: std::pin::Pin<&mut F>) -> bool {
    let ready = std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready())).await;
    tokio::task::yield_now().await;
    ready
}

/// Runs `work`, whose task does something else for `late` before each poll. Panics if `work` does not end within some
/// dozens of polls.
pub(crate) async fn polled_late<F: Future>(late: Duration, work: F) -> F::Output {
    let something_else = async {
        for _ in 0..100 {
            std::thread::sleep(late);
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        output = work => output,
        () = something_else => panic!("no end after a hundred polls"),
    }
}

/// Another process that holds a lock: the test binary itself, which runs [`hold_for_parent`].
pub(crate) struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_HOLD";

/// The command that starts the test binary. Where .ci/platforms runs it for another architecture, the emulator is in
/// front.
pub(crate) fn this_program() -> Command {
    let program = std::env::current_exe().unwrap();
    let Ok(emulator) = std::env::var("TOKIO_LOCKFILE_TEST_EMULATOR") else {
        return Command::new(program);
    };
    let mut words = emulator.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(program);
    command
}

impl Holder {
    /// Starts a process that waits for the lock. The process holds the lock once [`has_it`](Self::has_it) returns.
    pub(crate) fn start(lock: &LockFile) -> Self {
        Self::start_role("support::hold_for_parent", ROLE, lock)
    }

    /// Starts a process that runs the test named `test`, with the URL of the lock in the variable `role`. Waits until the
    /// process says `word`.
    #[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
    pub(crate) fn run(test: &str, role: &str, lock: &LockFile, word: &str) -> Self {
        let mut process = Self::start_role(test, role, lock);
        process.says(word);
        process
    }

    pub(crate) fn start_role(test: &str, role: &str, lock: &LockFile) -> Self {
        Self::spawn(this_program().args([test, "--exact", "--nocapture", "--test-threads=1"]), role, lock)
    }

    /// Starts a process that has the URL of the lock in the variable `role`.
    pub(crate) fn spawn(command: &mut Command, role: &str, lock: &LockFile) -> Self {
        let command = command.env(role, lock.url().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stdin = child.stdin.take();
        Self { child, stdin, stdout }
    }

    /// Starts a process and waits until it holds the lock.
    pub(crate) fn holding(lock: &LockFile) -> Self {
        let mut holder = Self::start(lock);
        holder.has_it();
        holder
    }

    pub(crate) fn has_it(&mut self) {
        self.says("HELD");
    }

    /// The next line that contains `word`.
    pub(crate) fn says(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the holder ended early");
        }
        line
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills the process and does not wait for it: it stays a zombie until the returned value is dropped.
    #[cfg(unix)]
    pub(crate) fn kill_to_zombie(mut self) -> Child {
        self.child.kill().unwrap();
        let pid = rustix::process::Pid::from_child(&self.child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), ended).unwrap();
        self.child
    }

    /// Lets the process release the lock and end.
    pub(crate) fn release(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// Not a real test: a [`Holder`] process runs this. In an ordinary test run it passes at once.
#[tokio::test]
async fn hold_for_parent() {
    let Ok(url) = std::env::var(ROLE) else { return };
    let lock = LockFile::open(&url).unwrap();
    let guard = tokio::time::timeout(HANG, lock.obtain()).await.expect("hangs").unwrap();
    println!("HELD");
    std::io::stdout().flush().unwrap();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    guard.release().await.unwrap();
}

/// For tests that examine the whole process: runs the test named `test` in its own process. In that process this
/// returns `true`.
pub(crate) fn in_own_process(test: &str) -> bool {
    const ALONE: &str = "TOKIO_LOCKFILE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let test_run =
        this_program().args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
    let printed = String::from_utf8_lossy(&test_run.stdout);
    assert!(printed.contains("1 passed"), "{printed}{}", String::from_utf8_lossy(&test_run.stderr));
    false
}
