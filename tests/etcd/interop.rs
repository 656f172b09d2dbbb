//! Other programs that take part in the same locks: etcdctl, and Go's `concurrency.Mutex`. Each waits for us, and we for it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use crate::kinds::CLUSTER;
use crate::support::{Holder, poll_once, take};

/// Starts a program that takes the lock of this name, says so in one line, and keeps it until it is told to end.
type Program = fn(&str) -> Command;

fn etcdctl(name: &str) -> Command {
    CLUSTER.etcdctl_command(&["lock", "--ttl", "5", name])
}

/// Built from tests/etcd/mutex.go with Debian's packages of Go and of etcd's client.
static GO_PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = CLUSTER.dir().join("mutex");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/etcd/mutex.go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", CLUSTER.dir().join("cache"))
        .status()
        .expect("Go is missing");
    assert!(built.success());
    program
});

fn go(name: &str) -> Command {
    let mut command = Command::new(&*GO_PROGRAM);
    command.arg(CLUSTER.endpoints()).arg(name);
    command
}

struct Other {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits until it has the lock. Returns the key.
    fn key(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "it ended without the lock");
        line.trim().to_owned()
    }

    fn interrupt(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap();
    }
}

fn is_queued(name: &str, keys: usize) {
    let began = std::time::Instant::now();
    while CLUSTER.keys(name).len() != keys {
        assert!(began.elapsed() < crate::support::HANG, "{:?}", CLUSTER.keys(name));
    }
}

async fn we_wait_for_each_other(name: &str, program: Program) {
    // It may have to be built, which takes longer than a lease lasts on a machine with much to do.
    let command = program(name);
    let lock = CLUSTER.lock(name);
    let guard = take(&lock).await;
    let mut other = Other::start(command);
    is_queued(name, 2);
    // It stands in the queue behind us, and we do not mistake it for the holder.
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
    guard.release().await.unwrap();
    let key = other.key();
    assert_eq!(CLUSTER.keys(name), [key]);
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), 0);
    let mut wait = Box::pin(lock.obtain());
    while CLUSTER.keys(name).len() < 2 {
        assert!(!poll_once(wait.as_mut()).await);
    }
    other.interrupt();
    let guard = wait.await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    assert_eq!(CLUSTER.keys(name), [""; 0]);
}

#[tokio::test]
async fn etcdctl_lock() {
    we_wait_for_each_other("interop/etcdctl", etcdctl).await;
}

/// An election has the same keys. Their values are what the candidates propose.
#[tokio::test]
async fn etcdctl_elect() {
    we_wait_for_each_other("interop/elect", |name| CLUSTER.etcdctl_command(&["elect", name, "exclusive proposal"]))
        .await;
}

#[tokio::test]
async fn gos_mutex() {
    we_wait_for_each_other("interop/go", go).await;
}

/// A reader of ours is a holder like any other for who knows no readers, and waits for him as for a writer.
#[tokio::test]
async fn readers_and_etcdctl() {
    let name = "interop/readers";
    let reader = CLUSTER.lock(name).shared().unwrap();
    let reading = take(&reader).await;
    let mut etcdctl = Other::start(etcdctl(name));
    is_queued(name, 2);
    let mut other_reader = Holder::start(&reader);
    is_queued(name, 3);
    reading.release().await.unwrap();
    // Not the reader, which came later.
    let key = etcdctl.key();
    assert_eq!(CLUSTER.keys(name).len(), 2);
    assert!(CLUSTER.keys(name).contains(&key));
    assert!(reader.attempt().await.unwrap().is_none());
    let mut wait = Box::pin(reader.obtain());
    while CLUSTER.keys(name).len() < 3 {
        assert!(!poll_once(wait.as_mut()).await, "a reader beside a writer");
    }
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(!poll_once(wait.as_mut()).await, "a reader beside a writer");
    }
    etcdctl.interrupt();
    other_reader.has_it();
    let reading = wait.await.unwrap();
    assert_eq!(reader.holders().await.unwrap().len(), 2);
    reading.release().await.unwrap();
    other_reader.release();
}
