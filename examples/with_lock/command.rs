//! The command, from its start to its exit code.
#![cfg_attr(
    unix,
    expect(
        unsafe_code,
        reason = "only pre_exec can run code in the child before the command, and the guard does not give its descriptor"
    )
)]

use std::io;
#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::process::ExitStatus;

use tokio::process::{Child, Command};
use tokio_lockfile::LockGuard;

use super::order::Order;

pub(crate) fn start(order: &Order, guard: &LockGuard) -> io::Result<Child> {
    let mut command = Command::new(&order.command[0]);
    command.args(&order.command[1..]);
    if let Some(variable) = &order.own_variable {
        command.env_remove(variable);
    }
    #[cfg(unix)]
    bind(&mut command, if order.is_closed { None } else { descriptor_of(guard) });
    #[cfg(not(unix))]
    let _ = guard;
    command.spawn()
}

/// A copy of the descriptor that has the flock. The file of the guard can be another one, which is open for writing:
/// then the command could not be the program that is the lock (ETXTBSY, execve(2)).
#[cfg(target_os = "linux")]
fn descriptor_of(guard: &LockGuard) -> Option<OwnedFd> {
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use tokio_lockfile::LockKind;

    let path = guard.path().filter(|_| guard.kind() == LockKind::Flock)?;
    let inode = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    // proc_pid_fdinfo(5)
    let has_flock = |number| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
    };
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return file_of(guard) };
    let lock = descriptors.flatten().filter(|entry| inode(&entry.path()) == inode(path));
    let number = lock.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|&number| has_flock(number))?;
    // SAFETY: the guard keeps it open.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().ok()
}

#[cfg(all(unix, not(target_os = "linux")))]
use file_of as descriptor_of;

#[cfg(unix)]
fn file_of(guard: &LockGuard) -> Option<OwnedFd> {
    guard.file()?.try_clone().ok().map(OwnedFd::from)
}

/// Lets the command have `lock` open, and on Linux also die with this program.
#[cfg(unix)]
fn bind(command: &mut Command, lock: Option<OwnedFd>) {
    use rustix::io::{FdFlags, fcntl_setfd};

    #[cfg(target_os = "linux")]
    let parent = rustix::process::getpid();
    let before_exec = move || {
        #[cfg(target_os = "linux")]
        die_with(parent)?;
        match &lock {
            Some(lock) => Ok(fcntl_setfd(lock, FdFlags::empty())?),
            None => Ok(()),
        }
    };
    // SAFETY: these are system calls alone, and so async-signal-safe.
    unsafe { command.pre_exec(before_exec) };
}

/// Asks the kernel to kill this process when its parent dies. Otherwise the command would go on without the lock.
#[cfg(target_os = "linux")]
fn die_with(parent: rustix::process::Pid) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that. A parent in another PID namespace has no PID here.
    match getppid() {
        Some(other) if other != parent => Err(io::ErrorKind::NotFound.into()),
        _ => Ok(()),
    }
}

/// Why no process can be started, if that is due to the PID namespace.
#[cfg(target_os = "linux")]
pub(crate) fn namespace_problem() -> Option<&'static str> {
    // The PID namespaces of this process and of its children, see namespaces(7).
    let namespace = |of: &str| std::fs::read_link(format!("/proc/self/ns/{of}")).ok();
    (namespace("pid") != namespace("pid_for_children")).then_some(
        "it runs under unshare --pid without --fork: there it can start no thread, and no process once the first one \
         has ended",
    )
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn namespace_problem() -> Option<&'static str> {
    None
}

/// The exit code of the command. `None` if it has none.
pub(crate) fn exit_code(status: ExitStatus) -> Option<u8> {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    #[cfg(not(unix))]
    let signal = None;
    status.code().or(signal).and_then(|code| u8::try_from(code).ok())
}
