//! A JSON file that several processes change. Each reads it, changes it and writes it under the lock.
//!
//! ```text
//! cargo run --example state_file                      # four processes change a new file
//! cargo run --example state_file -- /tmp/state.json   # changes this file once, and creates it on the first run
//! ```
//!
//! The lock is on the file itself, so there is no second file. This has rules:
//!
//! - Use the file of the guard. Do not open the path again.
//! - Make the new content first, then truncate the file and write it. A process that dies in between leaves an empty file
//!   or half of the content. Here an empty file counts as a first run. If that is not good enough, lock another file,
//!   write the new content to a temporary file, and rename it over the old one.
//! - Do not rename another file over a file that is locked itself. The lock stays with the old file, so the next process
//!   locks the new one while you still work. The guard reports this as a lost lock.
//! - `record(false)` keeps the library's own record out of the file.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tokio_lockfile::LockFile;

const PROCESSES: u64 = 4;
const ROUNDS: u64 = 25;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(path) = arguments.next() else { return several_processes().await };
    let rounds = if arguments.next().is_some() { ROUNDS } else { 1 };
    for _ in 0..rounds {
        let state = update(Path::new(&path), |state| {
            state["runs"] = (state["runs"].as_u64().unwrap_or(0) + 1).into();
            state["last_pid"] = std::process::id().into();
        });
        let state = state.await?;
        if rounds == 1 {
            println!("{state}");
        }
    }
    Ok(())
}

/// Reads the state, changes it and writes it, while no other process does so.
async fn update(path: &Path, change: impl FnOnce(&mut Value)) -> Result<Value, Box<dyn Error>> {
    let lock = LockFile::builder().record(false).native(path)?;
    let guard = lock.obtain().await?;
    let file = guard.file().ok_or("a native lock has a file")?;
    let mut state = read(file)?;
    change(&mut state);
    write(file, &state)?;
    guard.release().await?;
    Ok(state)
}

fn read(mut file: &File) -> Result<Value, Box<dyn Error>> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    match text.is_empty() {
        true => Ok(json!({})),
        false => Ok(serde_json::from_str(&text)?),
    }
}

fn write(mut file: &File, state: &Value) -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(state)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

async fn several_processes() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("state.json");
    let start = || Command::new(std::env::current_exe()?).arg(&path).arg("rounds").spawn();
    let children = (0..PROCESSES).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    for mut child in children {
        if !child.wait()?.success() {
            return Err("a process failed".into());
        }
    }
    let state: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    println!("{PROCESSES} processes have made {ROUNDS} changes each: {state}");
    match state["runs"].as_u64() {
        Some(runs) if runs == PROCESSES * ROUNDS => Ok(()),
        _ => Err("a change was lost".into()),
    }
}
