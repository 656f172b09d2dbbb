//! Waits for a lock for a limited time. If the lock is not free in time, prints its holder.
//!
//! ```text
//! cargo run --example timeout
//! ```

use std::time::Duration;

use tokio_lockfile::{LockError, LockFile};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help") => {
            println!("usage: timeout");
            return Ok(());
        }
        Some(_) => {
            eprintln!("usage: timeout");
            std::process::exit(2);
        }
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let dir = tempfile::tempdir()?;
    let lock = LockFile::new(dir.path().join("nightly.lock"))?;

    let guard = lock.obtain().await?;
    match lock.obtain_timeout(Duration::from_millis(300)).await {
        Err(error @ LockError::TimedOut { .. }) => println!("as expected: {error}"),
        other => println!("not expected: {other:?}"),
    }
    guard.release().await?;

    let guard = lock.obtain_timeout(Duration::from_millis(300)).await?;
    println!("free again, and ours: {}", guard.is_held());
    Ok(guard.release().await?)
}
