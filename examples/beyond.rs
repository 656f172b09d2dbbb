//! The service of the README, with the URL of its lock on the command line: a lock of this machine, or one on a server.
//!
//! ```text
//! cargo run --example beyond -- lockfile:/tmp/service.lock
//! cargo run --example beyond --features postgres -- 'postgres://app@db/app?lock=service'
//! ```
//!
//! With a lock on a server, start it on two machines. One of them works and the other one stands by. The program ends
//! when its stdin closes. Without a URL it uses a lock file. The log on stderr says why the lock does not work, if it does
//! not.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio_lockfile::{LockFile, Singleton};

const USAGE: &str = "usage: beyond [URL]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let lock = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => LockFile::new(std::env::temp_dir().join("tokio-lockfile-beyond.lock"))?,
        ["--help"] => {
            println!("{USAGE}");
            return Ok(());
        }
        [url] if !url.starts_with('-') => LockFile::open(url)?,
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    };
    println!("waits for {}", lock.url());
    let leader = Singleton::new(lock);
    leader.run(lead, stdin_closes()).await?;
    println!("ends");
    Ok(())
}

/// It is stopped when the lock is lost, for example because the network to the server breaks.
async fn lead() -> Result<(), std::io::Error> {
    loop {
        println!("this process leads");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn stdin_closes() {
    let mut byte = [0];
    while tokio::io::stdin().read(&mut byte).await.is_ok_and(|count| count > 0) {}
}
