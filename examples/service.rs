//! A service with two replicas: one works and the other stands by, until they are told to shut down.
//!
//! ```text
//! cargo run --example service
//! ```
//!
//! The program starts both replicas. Then it stops the one that works, as a rolling update does, and after that the
//! other one. A replica shuts down at SIGTERM, at Ctrl-C, or when its stdin closes. Before that it cleans up. You can
//! also start each replica by hand: `cargo run --example service -- replica /tmp/service.lock`.

use std::error::Error;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio_lockfile::{LockFile, Singleton};

const USAGE: &str = "usage: service [replica PATH]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => rolling_update().await,
        ["--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        ["replica", path] => replica(Path::new(path)).await,
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

async fn replica(path: &Path) -> Result<(), Box<dyn Error>> {
    let (sender, shutdown) = watch::channel(false);
    tokio::spawn(async move {
        shutdown_signal().await;
        sender.send_replace(true);
    });
    let told = |mut shutdown: watch::Receiver<bool>| async move {
        let _ = shutdown.wait_for(|&told| told).await;
    };

    println!("stands by");
    let singleton = Singleton::new(LockFile::new(path)?).grace(Duration::from_secs(5));
    let served = singleton.run(|| serve(told(shutdown.clone())), told(shutdown.clone())).await?;
    println!("ends, after {} rounds of work", served.unwrap_or(0));
    Ok(())
}

/// The work. When it is told to end, it cleans up and returns within the grace period.
async fn serve(shutdown: impl Future<Output = ()>) -> io::Result<u32> {
    println!("works");
    let mut shutdown = std::pin::pin!(shutdown);
    for round in 1.. {
        tokio::select! {
            () = &mut shutdown => {
                println!("tidies up");
                return Ok(round - 1);
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    unreachable!("the rounds do not end")
}

async fn shutdown_signal() {
    let stdin_closes = async {
        let mut byte = [0];
        while tokio::io::stdin().read(&mut byte).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        () = stdin_closes => {}
        _ = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::terminate()).expect("SIGTERM can be handled").recv().await;
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}

/// A replica, as the parent process sees it.
struct Replica {
    name: &'static str,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Replica {
    fn start(name: &'static str, path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("replica")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no pipe")?;
        Ok(Self { name, child, lines: BufReader::new(stdout).lines() })
    }

    /// Prints the replica's output, until it prints a line that starts with `line`.
    async fn says(&mut self, line: &str) -> Result<(), Box<dyn Error>> {
        while let Some(said) = self.lines.next_line().await? {
            println!("replica {} {said}", self.name);
            if said.starts_with(line) {
                return Ok(());
            }
        }
        Err(format!("replica {} ended before it said: {line}", self.name).into())
    }

    /// Tells the replica to shut down.
    fn stop(&mut self) {
        println!("replica {} is told to shut down", self.name);
        #[cfg(unix)]
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        #[cfg(not(unix))]
        drop(self.child.stdin.take());
    }
}

async fn rolling_update() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("service.lock");
    let mut first = Replica::start("A", &path)?;
    first.says("works").await?;
    let mut second = Replica::start("B", &path)?;
    second.says("stands by").await?;

    first.stop();
    first.says("ends").await?;
    second.says("works").await?;
    second.stop();
    second.says("ends").await?;
    for replica in [&mut first, &mut second] {
        if !replica.child.wait().await?.success() {
            return Err(format!("replica {} failed", replica.name).into());
        }
    }
    println!("the lock is free again: {}", LockFile::new(&path)?.attempt().await?.is_some());
    Ok(())
}
