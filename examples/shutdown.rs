//! Works under a lock until Ctrl-C, SIGTERM or the end of the work, and releases the lock in each case.
//!
//! ```text
//! cargo run --example shutdown
//! ```

use std::time::Duration;

use tokio_lockfile::LockFile;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help") => {
            println!("usage: shutdown");
            return Ok(());
        }
        Some(_) => {
            eprintln!("usage: shutdown");
            std::process::exit(2);
        }
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("shutdown.lock");
    let lock = LockFile::new(&path)?;
    let guard = lock.obtain().await?;
    println!("holding {} for three seconds; press Ctrl-C to stop early", path.display());

    let stopped_by = guard
        .run(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => "Ctrl-C",
                () = terminated() => "SIGTERM",
                () = work() => "the end of the work",
            }
        })
        .await?;
    println!("stopped by {stopped_by}; the lock is free again: {}", lock.attempt().await?.is_some());
    Ok(())
}

async fn work() {
    for second in 1..=3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        println!("working, second {second}");
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
