//! Unix systems other than Linux: no files without names, no links by descriptor, no process descriptors.
//!
//! With `--cfg tokio_lockfile_test_portable` this stands for Linux too, where its tests can run.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::stat::Stat;
use crate::sys::types::{Existence, FileSystem};

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY;

pub(super) fn create_unnamed(_dir: impl AsFd, _mode: u32) -> io::Result<File> {
    Err(Errno::OPNOTSUPP.into())
}

pub(super) fn link_open_file(_dir: impl AsFd, _file: &File, _to: &std::ffi::OsStr) -> rustix::io::Result<()> {
    Err(Errno::NOENT)
}

pub(crate) fn process_existence(pid: u32) -> Existence {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Existence::Gone;
    };
    match test_kill_process(pid) {
        Err(Errno::SRCH) => Existence::Gone,
        _ => Existence::AliveOrZombie,
    }
}

/// By the names of statfs(2).
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
pub(crate) fn filesystem(file: impl AsFd) -> io::Result<FileSystem> {
    Ok(named(&rustix::fs::fstatfs(file)?))
}

/// The same of what a path leads to.
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
pub(crate) fn filesystem_at(path: &Path) -> io::Result<FileSystem> {
    Ok(named(&rustix::fs::statfs(path)?))
}

#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
fn named(raw: &rustix::fs::StatFs) -> FileSystem {
    let name: Vec<u8> = raw.f_fstypename.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    match name.as_slice() {
        b"tmpfs" => FileSystem::Memory,
        b"apfs" | b"hfs" | b"ufs" | b"zfs" => FileSystem::Local,
        name => FileSystem::Other(String::from_utf8_lossy(name).into_owned()),
    }
}

#[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
pub(crate) fn filesystem(_file: impl AsFd) -> io::Result<FileSystem> {
    Ok(unknown())
}

#[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
pub(crate) fn filesystem_at(_path: &Path) -> io::Result<FileSystem> {
    Ok(unknown())
}

#[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
fn unknown() -> FileSystem {
    match cfg!(tokio_lockfile_test_portable) {
        // So that all calls are made on one thread, where tests/crash can count them.
        true => FileSystem::Memory,
        false => FileSystem::Other("an unknown file system".into()),
    }
}

/// No such list.
pub(crate) fn flock_holder(_stat: &Stat) -> Option<u32> {
    None
}
