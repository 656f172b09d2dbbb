//! Functions that use features which only Linux has.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use super::open_file::OpenFile;
use super::stat::Stat;
use crate::sys::types::{Existence, ProcessDescription};
use crate::words::mode::Mode as LockMode;

/// O_PATH needs no permission to list the directory, and it is enough for the `*at` calls.
pub(super) const DIRECTORY: OFlags = OFlags::PATH;

pub(super) fn create_unnamed(dir: impl AsFd, mode: u32) -> io::Result<OpenFile> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = retry_on_intr(|| rustix::fs::openat(&dir, ".", flags, Mode::from_raw_mode(mode)))?;
    Ok(file.into())
}

/// Tries `AT_EMPTY_PATH` first, which needs a capability before Linux 6.10. Then it tries /proc. If /proc is not
/// mounted, the error is ENOENT.
pub(super) fn link_open_file(dir: impl AsFd, file: &File, to: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::linkat(file, "", &dir, to, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::INVAL) => {
            let from = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, from, &dir, to, AtFlags::SYMLINK_FOLLOW)
        }
        result => result,
    }
}

/// Whether this program has more rights than its caller: set-uid, set-gid, or with capabilities (getauxval(3)).
#[cfg(any(feature = "postgres", feature = "etcd"))]
#[expect(unsafe_code, reason = "getauxval(3) has no safe wrapper")]
pub(crate) fn is_set_uid() -> bool {
    // SAFETY: it only reads what the kernel has told the process at its start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Opens the file that is open. If /proc is not mounted, the error is ENOENT.
pub(super) fn reopen(file: &File, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    retry_on_intr(|| rustix::fs::open(&path, flags, Mode::empty()))
}

/// The owner of the symbolic link with this name, and where it leads; `None` if it is no link. Both are of one inode.
pub(super) fn read_link(dir: impl AsFd, name: &OsStr) -> rustix::io::Result<Option<(u32, PathBuf)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = retry_on_intr(|| rustix::fs::openat(&dir, name, flags, Mode::empty()))?;
    let found = rustix::fs::fstat(&link)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    Ok(Some((found.st_uid, OsString::from_vec(target.into_bytes()).into())))
}

pub(crate) fn process_existence(pid: u32) -> Existence {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Existence::Gone;
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // The descriptor becomes readable when the last thread of the process has ended (pidfd_open(2)).
        Ok(pidfd) => match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&Timespec::default())) {
            Ok(0) => Existence::Alive,
            Ok(_) => Existence::Gone,
            Err(_) => Existence::AliveOrZombie,
        },
        // EINVAL, or ENOENT since Linux 6.9, means that this is the ID of a thread and not of a process.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Existence::Gone,
        // The call is not available (ENOSYS, or EPERM in old sandboxes), or no descriptor is available.
        Err(_) => match test_kill_process(pid) {
            Err(Errno::SRCH) => Existence::Gone,
            _ => Existence::AliveOrZombie,
        },
    }
}

/// The text of a file in /proc. Names in it, such as those of mount points, need not be UTF-8: that must not hide the rest.
pub(super) fn read_lossy(path: impl AsRef<Path>) -> Option<String> {
    Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned())
}

/// The path, unless /proc shows another PID namespace than ours, as in `unshare --pid` without a new /proc.
fn in_our_proc(path: &str) -> Option<PathBuf> {
    let this_process = std::fs::read_link("/proc/self").ok()?;
    (this_process.to_str()?.parse() == Ok(std::process::id())).then(|| Path::new("/proc").join(path))
}

/// The name and the start time of a process, from /proc/PID/stat (proc_pid_stat(5)). `None` if they are not visible.
pub(crate) fn describe_process(pid: u32) -> Option<ProcessDescription> {
    /// The kernel calls this `USER_HZ`. It is the same on all architectures that Rust supports.
    const TICKS_PER_SECOND: f64 = 100.0;
    let (name, state, started_ticks) = parse_stat(&std::fs::read(in_our_proc(&format!("{pid}/stat"))?).ok()?)?;
    let uptime: f64 = read_lossy("/proc/uptime")?.split_ascii_whitespace().next()?.parse().ok()?;
    let age = Duration::try_from_secs_f64((uptime - started_ticks / TICKS_PER_SECOND).max(0.0)).ok()?;
    let started = SystemTime::now().checked_sub(age)?;
    Some(ProcessDescription { name, started, is_zombie: matches!(&*state, "Z" | "X") })
}

/// The name, the state and the start time. An example is "4321 (backupd) S 1 …". The name may contain parentheses and
/// spaces.
pub(super) fn parse_stat(stat: &[u8]) -> Option<(String, String, f64)> {
    let (begin, end) = (stat.iter().position(|&byte| byte == b'(')?, stat.iter().rposition(|&byte| byte == b')')?);
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let name = String::from_utf8_lossy(stat.get(begin + 1..end)?).into_owned();
    Some((name, fields.next()?.to_owned(), fields.nth(18)?.parse().ok()?))
}

/// Whether this process has a descriptor of epoll(7), without which no runtime of Tokio has an I/O driver. `true` if that
/// cannot be seen.
pub(crate) fn has_event_poll() -> bool {
    let Ok(mut descriptors) = std::fs::read_dir("/proc/self/fd") else { return true };
    descriptors.any(|descriptor| match descriptor.and_then(|descriptor| std::fs::read_link(descriptor.path())) {
        Ok(file) => file.as_os_str() == "anon_inode:[eventpoll]",
        // Another thread has just closed it.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    })
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
pub(crate) fn process_descriptor(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether no name can be removed from the directory, see chattr(1).
pub(super) fn keeps_its_names(dir: impl AsFd) -> bool {
    let kept = StatxAttributes::APPEND | StatxAttributes::IMMUTABLE;
    statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).is_ok_and(|found| found.stx_attributes.intersects(kept))
}

pub(super) fn refresh(dir: impl AsFd) {
    let _ = statx(dir, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
}

/// How the kernel writes the mode of an flock(2).
fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Exclusive => "WRITE",
        LockMode::Shared => "READ",
    }
}

/// The processes that /proc/locks (proc_locks(5)) lists for an flock(2) on the file. The PIDs are those of our PID
/// namespace. `writer` is the PID in the file: for this process the inode's number is enough, because on some file systems
/// the listed device differs from that of stat(2).
///
/// An empty list proves nothing. The list does not contain the locks of outer PID namespaces. Any lock may be missing
/// if the list changes while we read it. A listed process may be dead, because its lock can pass to a child process.
pub(crate) fn listed_flock_holders(stat: &Stat, mode: LockMode, writer: Option<u32>) -> Vec<u32> {
    parse_locks(&list_of_locks(), &name_in_list(stat), mode, writer)
}

/// The kernel's list of all locks (proc_locks(5)), for [`is_listed`]. Everybody on the machine pays for a reading.
pub(crate) fn list_of_locks() -> String {
    in_our_proc("locks").and_then(read_lossy).unwrap_or_default()
}

/// Whether the list has an flock(2) of this process on the file.
pub(crate) fn is_listed(list: &str, pid: u32, stat: &Stat, mode: LockMode) -> bool {
    parse_locks(list, &name_in_list(stat), mode, Some(pid)).contains(&pid)
}

/// How the list names a file.
fn name_in_list(stat: &Stat) -> String {
    let (device, inode) = stat.device_and_inode();
    format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// An example is "12: FLOCK  ADVISORY  WRITE 4321 08:01:1234 0 EOF". The line of a waiter has "->" after the number.
pub(super) fn parse_locks(locks: &str, id: &str, mode: LockMode, writer: Option<u32>) -> Vec<u32> {
    let inode = id.rfind(':').map_or(id, |at| &id[at..]);
    // Most lines are those of other files.
    let on_file = locks.lines().filter(|line| line.contains(inode)).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, locked, pid, file, ..] if locked == mode_name(mode) => {
                let pid = pid.parse().ok()?;
                (file == id || Some(pid) == writer && file.ends_with(inode)).then_some(pid)
            }
            _ => None,
        }
    });
    on_file.collect()
}

/// Whether a process has the file open with an flock(2) on it, according to /proc/PID/fdinfo (proc_pid_fdinfo(5)).
/// `None` if we may not look at that process, or if there is none.
pub(crate) fn has_flock(pid: u32, stat: &Stat, mode: LockMode) -> Option<bool> {
    has_flock_there(&in_our_proc(&pid.to_string())?, stat, mode)
}

fn has_flock_there(process: &Path, stat: &Stat, mode: LockMode) -> Option<bool> {
    let descriptors = std::fs::read_dir(process.join("fd")).ok()?;
    let is_file =
        |path: &Path| std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == stat.device_and_inode());
    let is_lock =
        |line: &str| line.starts_with("lock:") && ["FLOCK", mode_name(mode)].iter().all(|word| line.contains(word));
    let is_locked = |descriptor: &OsStr| {
        let info = read_lossy(process.join("fdinfo").join(descriptor)).unwrap_or_default();
        info.lines().any(is_lock)
    };
    Some(descriptors.flatten().any(|entry| is_file(&entry.path()) && is_locked(&entry.file_name())))
}

/// Finds the processes that have the file open with an flock(2) on it. This looks at every process that it may look at.
pub(crate) fn find_flock_holders(stat: &Stat, mode: LockMode) -> impl Iterator<Item = u32> {
    let processes = in_our_proc("").map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
    processes.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        has_flock_there(&entry.path(), stat, mode)?.then_some(pid)
    })
}
