//! The competing processes: each takes the lock, runs the critical section and releases the lock, until the end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use tokio_lockfile::{LockFile, LockGuard};

use crate::arena::{Arena, Instance};
use crate::chaos::{reap, take_a_strange_turn};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Ours.
    Shlock,
    /// Ours.
    Flock,
    /// Ours, in processes that fork, end their runtimes and remove their lock files.
    ShlockInChaos,
    FlockInChaos,
    /// Ours, sometimes shared.
    SharedFlock,
    /// INN's shlock(1).
    InnShlock,
    /// flock(1) of util-linux.
    Flock1,
    /// The port of PEAK's `SHLockFile`.
    Peak,
}

impl Role {
    const ALL: [Self; 8] = [
        Self::Shlock,
        Self::Flock,
        Self::ShlockInChaos,
        Self::FlockInChaos,
        Self::SharedFlock,
        Self::InnShlock,
        Self::Flock1,
        Self::Peak,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shlock => "our shlock",
            Self::Flock => "our flock",
            Self::ShlockInChaos => "our shlock in chaos",
            Self::FlockInChaos => "our flock in chaos",
            Self::SharedFlock => "our shared flock",
            Self::InnShlock => "shlock(1)",
            Self::Flock1 => "flock(1)",
            Self::Peak => "naive PEAK",
        }
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A worker process, until the end of the campaign.
pub(crate) fn work(role: &str, dir: &Path, number: u64) {
    let role = Role::ALL.into_iter().find(|known| known.name() == role).unwrap();
    let instance = Instance { arena: Arena::open(dir), number, children: Default::default() };
    instance.begin();
    runtime().block_on(async {
        match role {
            Role::Shlock => ours(instance, |path| LockFile::shlock(path).unwrap(), 0).await,
            Role::Flock => ours(instance, |path| LockFile::flock(path).unwrap(), 0).await,
            Role::ShlockInChaos => chaos(&instance, |path| LockFile::shlock(path).unwrap()).await,
            Role::FlockInChaos => chaos(&instance, |path| LockFile::flock(path).unwrap()).await,
            Role::SharedFlock => ours(instance, |path| LockFile::flock(path).unwrap(), 60).await,
            Role::InnShlock => inn_shlock(&instance, dir).await,
            Role::Flock1 => flock1(&instance, dir),
            Role::Peak => peak(&instance, dir).await,
        }
    });
}

/// The process that flock(1) runs: it runs the critical section once.
pub(crate) fn section(dir: &Path, number: u64) {
    runtime().block_on(Instance { arena: Arena::open(dir), number, children: Default::default() }.section());
}

async fn chaos(instance: &Instance, open: fn(&Path) -> LockFile) {
    let lock = open(&instance.arena.lock());
    while !instance.arena.is_over() {
        take_a_strange_turn(&lock, instance).await;
    }
    reap(rustix::process::WaitOptions::empty());
}

/// Some processes have two tasks. Each task has its own handle on the same lock. Of a hundred turns, `reads` only read.
async fn ours(instance: Instance, open: fn(&Path) -> LockFile, reads: u8) {
    let instance = Rc::new(instance);
    let local = tokio::task::LocalSet::new();
    let start = |_| {
        let instance = Rc::clone(&instance);
        local.spawn_local(async move {
            let writer = open(&instance.arena.lock());
            let reader = (reads > 0).then(|| writer.shared().unwrap());
            while !instance.arena.is_over() {
                let lock = reader.as_ref().filter(|_| fastrand::u8(..100) < reads).unwrap_or(&writer);
                take_a_turn(lock, &instance).await;
            }
        })
    };
    let tasks: Vec<_> = (0..1 + u8::from(instance.number % 4 == 0)).map(start).collect();
    local.await;
    for task in tasks {
        task.await.unwrap();
    }
}

pub(crate) async fn take_a_turn(lock: &LockFile, instance: &Instance) {
    let Some(guard) = take(lock).await else {
        return pause();
    };
    match guard.is_shared() {
        true => instance.reading().await,
        false => instance.section().await,
    }
    if !guard.is_held() {
        instance.violation();
    }
    if fastrand::bool() {
        drop(guard);
    } else if guard.release().await.is_err() {
        instance.violation();
    }
}

/// Takes the lock in a random way, or gives up.
async fn take(lock: &LockFile) -> Option<LockGuard> {
    let moment = Duration::from_micros(fastrand::u64(..3_000));
    match fastrand::u8(..8) {
        0 => lock.attempt().await.unwrap(),
        1 => tokio::time::timeout(moment, lock.obtain()).await.ok().map(Result::unwrap),
        2 => {
            lock.holder().await.unwrap();
            lock.attempt().await.unwrap()
        }
        _ => Some(lock.obtain().await.unwrap()),
    }
}

/// A pause before the next attempt of a program that does not wait.
fn pause() {
    std::thread::sleep(Duration::from_micros(fastrand::u64(..500)));
}

/// The library to preload; see `age.c`.
const AGE: &str = "age.so";

/// Creates what the role needs in the campaign's directory.
pub(crate) fn prepare(role: Role, dir: &Path) {
    if role == Role::InnShlock {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stress/age.c");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", source, "-o"]).arg(dir.join(AGE));
        assert!(compile.status().unwrap().success(), "{compile:?}");
    }
}

/// In half of the attempts, shlock(1) takes a dead process's lock for an old one and breaks it. In the other half it
/// leaves that to our processes.
async fn inn_shlock(instance: &Instance, dir: &Path) {
    let program = std::env::var_os("SHLOCK").expect("SHLOCK must be the path of INN's shlock(1)");
    let (lock, own_pid) = (instance.arena.lock(), std::process::id().to_string());
    while !instance.arena.is_over() {
        let mut shlock = Command::new(&program);
        shlock.arg("-f").arg(&lock).args(["-p", &own_pid]).stderr(Stdio::null());
        if fastrand::bool() {
            shlock.env("LD_PRELOAD", dir.join(AGE));
        }
        if !shlock.status().unwrap().success() {
            pause();
            continue;
        }
        instance.section().await;
        // shlock(1) has no release operation: its users unlink the file. It must still be their own file.
        match std::fs::read_to_string(&lock) {
            Ok(record) if record.trim() == own_pid => std::fs::remove_file(&lock).unwrap(),
            _ => instance.violation(),
        }
    }
}

fn flock1(instance: &Instance, dir: &Path) {
    const BUSY: i32 = 75;
    while !instance.arena.is_over() {
        let mut flock = Command::new("flock");
        flock.args(["-E", &BUSY.to_string()]);
        if fastrand::bool() {
            flock.arg("-n");
        }
        flock.arg(instance.arena.lock()).arg(std::env::current_exe().unwrap());
        flock.arg("section").arg(dir).arg(instance.number.to_string());
        match flock.status().unwrap().code() {
            Some(0) => {}
            Some(BUSY) => pause(),
            other => panic!("{flock:?}: {other:?}"),
        }
    }
}

async fn peak(instance: &Instance, dir: &Path) {
    let (lock, temporary) = (instance.arena.lock(), dir.join(format!("peak-{}", instance.number)));
    while !instance.arena.is_over() {
        std::fs::write(&temporary, format!("{}\n", std::process::id())).unwrap();
        let taken = peak_attempt(&lock, &temporary);
        std::fs::remove_file(&temporary).unwrap();
        if !taken {
            pause();
            continue;
        }
        instance.section().await;
        let _ = std::fs::remove_file(&lock);
    }
}

/// Its error: between reading the PID and the unlink, another holder may have replaced the file.
fn peak_attempt(lock: &Path, temporary: &Path) -> bool {
    for _ in 0..2 {
        if std::fs::hard_link(temporary, lock).is_ok() {
            return true;
        }
        let holder =
            std::fs::read_to_string(lock).ok().and_then(|record| Pid::from_raw(record.trim().parse().unwrap()));
        if holder.is_none_or(|pid| test_kill_process(pid).is_ok()) {
            return false;
        }
        let _ = std::fs::remove_file(lock);
    }
    false
}
