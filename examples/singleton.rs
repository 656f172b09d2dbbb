//! Several processes compete for one lock. The first holder is killed, and the next process takes over.
//!
//! ```text
//! cargo run --example singleton
//! ```
//!
//! The program starts copies of itself as workers. Each worker waits for the lock, works under it for one second, and
//! ends. The program then ends by itself. It also works with stdin closed.

use std::error::Error;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_lockfile::LockFile;

const WORKERS: usize = 3;
const WORK: Duration = Duration::from_millis(800);

const USAGE: &str = "usage: singleton [worker PATH]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => parent().await,
        ["--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        ["worker", path] => worker(Path::new(path)).await,
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

/// Prints one line when it waits, one when it holds the lock, and one when it is done.
async fn worker(path: &Path) -> Result<(), Box<dyn Error>> {
    let lock = LockFile::new(path)?;
    let started = Instant::now();
    let guard = match lock.attempt().await? {
        Some(guard) => guard,
        None => {
            match lock.holder().await? {
                Some(holder) => println!("waits for {holder}"),
                None => println!("waits"),
            }
            lock.obtain().await?
        }
    };
    println!("holds the lock after {:.0?}", started.elapsed());
    let done = guard.run(tokio::time::sleep(WORK)).await;
    println!("{}", if done.is_ok() { "is done, lock released" } else { "lost the lock" });
    Ok(done?)
}

async fn parent() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("singleton.lock");
    println!("{WORKERS} processes, one lock: {}\n", path.display());

    let started = Instant::now();
    let (sender, mut lines) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for number in 1..=WORKERS {
        workers.push(start_worker(number, &path, sender.clone())?);
    }
    drop(sender);

    let (mut holder, mut waiting, mut killed) = (None, 0, false);
    while let Some((number, line)) = lines.recv().await {
        println!("{:>6.3} s  worker {number} (pid {}) {line}", started.elapsed().as_secs_f64(), workers[number - 1].0);
        match line.starts_with("holds") {
            true => holder = Some(number),
            false => waiting += usize::from(line.starts_with("waits")),
        }
        if let (Some(number), false, true) = (holder, killed, waiting == WORKERS - 1) {
            killed = true;
            let (pid, child) = &mut workers[number - 1];
            child.start_kill()?;
            println!("{:>6.3} s  SIGKILL for pid {pid}, which holds the lock", started.elapsed().as_secs_f64());
        }
    }

    let mut finished = 0;
    for (_, child) in &mut workers {
        finished += usize::from(child.wait().await?.success());
    }
    let free = LockFile::new(&path)?.attempt().await?.is_some();
    println!("\n{finished} workers did their work one after the other, 1 was killed; the lock is free again: {free}");
    if finished != WORKERS - 1 || !free {
        return Err("the lock did not do what it promises".into());
    }
    Ok(())
}

fn start_worker(
    number: usize,
    path: &Path,
    lines: mpsc::UnboundedSender<(usize, String)>,
) -> Result<(u32, Child), Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("worker")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = output.next_line().await {
            if lines.send((number, line)).is_err() {
                return;
            }
        }
    });
    Ok((child.id().ok_or("the worker ended at once")?, child))
}
