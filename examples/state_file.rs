//! A JSON file that several processes change. Each reads it, changes it and writes it under a lock.
//!
//! ```text
//! cargo run --example state_file                      # four processes change a new file
//! cargo run --example state_file -- /tmp/state.json   # changes this file once, and creates it on the first run
//! ```
//!
//! The state survives everything: a process that is killed at any moment, a full disk, a crash of the machine. For that, the
//! new state is written into a second file and synced, and only then renamed over the old one. A rename does not take a lock
//! along, so the lock is on a file beside the state. Readers that only want a whole state need no lock.
//!
//! It is less work to lock the state file itself and to write into it, see the guide. But a process that dies in the middle
//! of that leaves half a state.

use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tokio_lockfile::LockFile;

const USAGE: &str = "usage: state_file [FILE [rounds]]";

const PROCESSES: u64 = 4;
const ROUNDS: u64 = 25;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_option = arguments.iter().any(|argument| argument.to_string_lossy().starts_with('-'));
    match &arguments[..] {
        [] => several_processes(),
        [help] if help == "--help" => {
            println!("{USAGE}");
            Ok(())
        }
        [path] if !is_option => {
            println!("{}", count_run(Path::new(path)).await?);
            Ok(())
        }
        [path, rounds] if !is_option && rounds == "rounds" => {
            for _ in 0..ROUNDS {
                count_run(Path::new(path)).await?;
            }
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

async fn count_run(path: &Path) -> Result<Value, Box<dyn Error>> {
    let change = |state: &mut Value| {
        state["runs"] = (state["runs"].as_u64().unwrap_or(0) + 1).into();
        state["last_pid"] = std::process::id().into();
    };
    update(path, change).await
}

/// Reads the state, changes it and writes it, while no other process does so.
async fn update(path: &Path, change: impl FnOnce(&mut Value)) -> Result<Value, Box<dyn Error>> {
    let guard = LockFile::new(beside(path, ".lock"))?.obtain().await?;
    let mut state = read(path)?;
    change(&mut state);
    write(path, &state)?;
    guard.release().await?;
    Ok(state)
}

fn read(path: &Path) -> Result<Value, Box<dyn Error>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(serde_json::from_str(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({})),
        Err(error) => Err(error.into()),
    }
}

fn write(path: &Path, state: &Value) -> io::Result<()> {
    // Under the lock nobody else has it. A process that died may have left it.
    let new = beside(path, ".new");
    let mut file = File::create(&new)?;
    file.write_all(serde_json::to_string_pretty(state)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path)
}

/// Makes the rename last over a crash of the machine, see fsync(2).
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// The path with more behind it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn several_processes() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("state.json");
    let start = || Command::new(std::env::current_exe()?).arg(&path).arg("rounds").spawn();
    let children = (0..PROCESSES).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    for mut child in children {
        if !child.wait()?.success() {
            return Err("a process failed".into());
        }
    }
    let state: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    println!("{PROCESSES} processes have made {ROUNDS} changes each: {state}");
    match state["runs"].as_u64() {
        Some(runs) if runs == PROCESSES * ROUNDS => Ok(()),
        _ => Err("a change was lost".into()),
    }
}
