//! At most two jobs at a time on this host, whoever starts them.
//!
//! ```text
//! cargo run --example at_most
//! ```
//!
//! The program starts six copies of itself as jobs. Each job waits for one of two permits, works for a moment, and ends.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio_lockfile::Semaphore;

const JOBS: usize = 6;
const AT_MOST: usize = 2;

const USAGE: &str = "usage: at_most [job PATH NAME]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => several_jobs(),
        ["--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        ["job", path, name] => job(Path::new(path), name).await,
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

/// The same path and the same number in every process make the same permits: PATH.0 and PATH.1.
async fn job(path: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let permits = Semaphore::numbered(path, AT_MOST)?;
    let guard = permits.obtain().await?;
    println!("job {name} works");
    guard.run(tokio::time::sleep(Duration::from_millis(200))).await?;
    println!("job {name} is done");
    Ok(())
}

fn several_jobs() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("jobs.lock");
    println!("{JOBS} jobs, at most {AT_MOST} at a time");
    let program = std::env::current_exe()?;
    let start = |number: usize| Command::new(&program).arg("job").arg(&path).arg(number.to_string()).spawn();
    let jobs = (1..=JOBS).map(start).collect::<Result<Vec<_>, _>>()?;
    for mut job in jobs {
        if !job.wait()?.success() {
            return Err("a job failed".into());
        }
    }
    Ok(())
}
