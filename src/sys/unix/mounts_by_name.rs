//! What file system a file is on (Unix systems other than Linux).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::sys::types::FileSystem;

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
