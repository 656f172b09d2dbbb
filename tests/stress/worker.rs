//! Who competes for the lock.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;
use tokio_lockfile::{LockFile, pid_exists};

use crate::witness::Witness;

pub(crate) const MARK: &str = "--worker";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Shlock,
    Flock,
    /// INN's shlock(1), of the variable SHLOCK.
    Inn,
    /// util-linux's flock(1).
    Flock1,
    /// PEAK's algorithm as it stands.
    Peak,
}

const ROLES: [Role; 5] = [Role::Shlock, Role::Flock, Role::Inn, Role::Flock1, Role::Peak];

pub(crate) fn run(role: &str, dir: &Path, id: &str) {
    let role = ROLES.into_iter().find(|known| format!("{known:?}") == role).expect("a role");
    let mut witness = Witness::new(dir, id);
    let path = dir.join("locks/x.lock");
    match role {
        Role::Shlock => ours(&LockFile::shlock(path).unwrap(), &mut witness),
        Role::Flock => ours(&LockFile::flock(path).unwrap(), &mut witness),
        Role::Inn => loop {
            let shlock = std::env::var_os("SHLOCK").expect("SHLOCK is to name INN's shlock(1)");
            let mut command = Command::new(shlock);
            command.arg("-f").arg(&path).args(["-p", &std::process::id().to_string()]).stderr(Stdio::null());
            if command.status().unwrap().success() {
                witness.work();
                std::fs::remove_file(&path).unwrap();
            }
        },
        Role::Flock1 => loop {
            // It locks the open file that we share, and leaves the lock to us.
            let file = File::options().create(true).append(true).open(&path).unwrap();
            let locked = Command::new("flock").args(["-x", "0"]).stdin(file.try_clone().unwrap()).status().unwrap();
            assert!(locked.success());
            witness.work();
        },
        Role::Peak => loop {
            if peak_attempt(&path, id).unwrap_or(false) {
                witness.work();
                let _ = std::fs::remove_file(&path);
            }
        },
    }
}

/// Takes and releases in every way there is.
fn ours(lock: &LockFile, witness: &mut Witness) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        loop {
            let guard = match fastrand::u32(0..10) {
                0..5 => lock.obtain().await.unwrap(),
                5 => match timeout(Duration::from_micros(fastrand::u64(0..2_000)), lock.obtain()).await {
                    Ok(guard) => guard.unwrap(),
                    Err(_) => continue,
                },
                _ => match lock.attempt().await.unwrap() {
                    Some(guard) => guard,
                    None => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                },
            };
            witness.work();
            match fastrand::bool() {
                true => guard.release().await.unwrap(),
                false => drop(guard),
            }
        }
    });
}

/// Link a file with the PID; where the name is taken by a dead process, remove it and link again.
fn peak_attempt(path: &Path, id: &str) -> io::Result<bool> {
    let temporary = path.with_file_name(format!("temporary.{id}"));
    std::fs::write(&temporary, format!("{}\n", std::process::id()))?;
    let mut taken = std::fs::hard_link(&temporary, path).is_ok();
    if !taken {
        let holder = std::fs::read_to_string(path)?.trim().parse().unwrap_or(0);
        if !pid_exists(holder) {
            std::fs::remove_file(path)?;
            taken = std::fs::hard_link(&temporary, path).is_ok();
        }
    }
    std::fs::remove_file(&temporary)?;
    Ok(taken)
}
