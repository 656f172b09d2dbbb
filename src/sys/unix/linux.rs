//! What Linux has and other systems lack.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use super::stat::Stat;
use crate::sys::types::{Existence, FileSystem, ProcessDescription};

/// Enough to use a directory with the `*at` calls, without leave to list it.
pub(super) const DIRECTORY: OFlags = OFlags::PATH;

pub(super) fn create_unnamed(dir: impl AsFd, mode: u32) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = retry_on_intr(|| rustix::fs::openat(&dir, ".", flags, Mode::from_raw_mode(mode)))?;
    Ok(file.into())
}

/// By `AT_EMPTY_PATH`, which asks for a capability before Linux 6.10, else through /proc, which may not be mounted:
/// then the answer is ENOENT.
pub(super) fn link_open_file(dir: impl AsFd, file: &File, to: &std::ffi::OsStr) -> rustix::io::Result<()> {
    match rustix::fs::linkat(file, "", &dir, to, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::INVAL) => {
            let from = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, from, &dir, to, AtFlags::SYMLINK_FOLLOW)
        }
        result => result,
    }
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
        // EINVAL, since Linux 6.9 ENOENT: the ID of a thread.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Existence::Gone,
        // No such call (ENOSYS, EPERM in old sandboxes), or no descriptor to be had.
        Err(_) => match test_kill_process(pid) {
            Err(Errno::SRCH) => Existence::Gone,
            _ => Existence::AliveOrZombie,
        },
    }
}

/// Name and start of a process, from /proc/PID/stat (proc_pid_stat(5)); `None` if it cannot be seen.
pub(crate) fn describe_process(pid: u32) -> Option<ProcessDescription> {
    /// What the kernel calls `USER_HZ`: the same on all architectures that Rust supports.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // 4321 (backupd) S 1 …; the name may hold parentheses and spaces.
    let (begin, end) = (stat.iter().position(|&byte| byte == b'(')?, stat.iter().rposition(|&byte| byte == b')')?);
    let fields: Vec<&str> = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace().collect();
    let started_ticks: f64 = fields.get(19)?.parse().ok()?;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_ascii_whitespace().next()?.parse().ok()?;
    let age = Duration::try_from_secs_f64((uptime - started_ticks / TICKS_PER_SECOND).max(0.0)).ok()?;
    Some(ProcessDescription {
        name: String::from_utf8_lossy(stat.get(begin + 1..end)?).into_owned(),
        started: SystemTime::now().checked_sub(age)?,
        is_zombie: matches!(fields.first(), Some(&"Z" | &"X")),
    })
}

/// File systems by the magic numbers of statfs(2). A name here means that their `flock` is this machine's own.
pub(crate) fn filesystem(file: impl AsFd) -> io::Result<FileSystem> {
    Ok(named(rustix::fs::fstatfs(file)?.f_type as u32))
}

/// The same of what a path leads to.
pub(crate) fn filesystem_at(path: &Path) -> io::Result<FileSystem> {
    Ok(named(rustix::fs::statfs(path)?.f_type as u32))
}

fn named(magic: u32) -> FileSystem {
    match magic {
        // tmpfs, ramfs
        0x0102_1994 | 0x8584_58f6 => FileSystem::Memory,
        // ext2 to ext4, XFS, Btrfs, overlayfs, F2FS, ZFS, bcachefs, JFS, ReiserFS, NILFS
        0xef53 | 0x5846_5342 | 0x9123_683e | 0x794c_7630 | 0xf2f5_2010 | 0x2fc1_2fc1 | 0xca45_1a4e | 0x3153_464a
        | 0x5265_4973 | 0x3434 => FileSystem::Local,
        0x6969 => FileSystem::Other("NFS".into()),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => FileSystem::Other("SMB".into()),
        0x6573_5546 => FileSystem::Other("FUSE".into()),
        0x4d44 => FileSystem::Other("FAT".into()),
        0x2011_bab0 => FileSystem::Other("exFAT".into()),
        0x0102_1997 => FileSystem::Other("9P".into()),
        0x00c3_6400 => FileSystem::Other("Ceph".into()),
        0x0bd0_0bd0 => FileSystem::Other("Lustre".into()),
        0x0116_1970 => FileSystem::Other("GFS2".into()),
        magic => FileSystem::Other(format!("a file system of type {magic:#x}")),
    }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
pub(crate) fn process_descriptor(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The process that took an flock(2) on the file, from /proc/locks (proc(5)), by the PID that it has here; `None` if none
/// is listed, which proves nothing: locks of outer PID namespaces are not, nor may be one when the list changes while it
/// is read, and some file systems list another device number than stat(2). An exclusive lock goes before shared ones,
/// which may be questions.
pub(crate) fn flock_holder(stat: &Stat) -> Option<u32> {
    let (device, inode) = stat.device_and_inode();
    let id = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // 12: FLOCK  ADVISORY  WRITE 4321 08:01:1234 0 EOF; a waiter's line has "->" behind the number.
    let on_file = locks.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, mode, pid, file, ..] if file == id => Some((mode == "WRITE", pid.parse().ok()?)),
            _ => None,
        }
    });
    on_file.max_by_key(|&(is_exclusive, _)| is_exclusive).map(|(_, pid)| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_flock_proves_something_only_where_it_is_known_to() {
        for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x794c_7630] {
            assert!(named(local).flock_is_proof(), "{}", named(local));
        }
        for other in [0x6969, 0xff53_4d42, 0x6573_5546, 0x0102_1997, 0x1234_5678] {
            assert!(!named(other).flock_is_proof(), "{}", named(other));
        }
    }
}
