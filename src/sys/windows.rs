//! The system calls of Windows.
#![expect(unsafe_code, reason = "this is the one file that may call the system directly")]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, ERROR_INVALID_FUNCTION, ERROR_IO_PENDING,
    ERROR_LOCK_VIOLATION, ERROR_NOT_SUPPORTED, FILETIME, WAIT_OBJECT_0,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_DIRECTORY, FILE_ATTRIBUTE_REPARSE_POINT, FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_OPEN_REPARSE_POINT, FILE_READ_ATTRIBUTES, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE,
    FILE_TYPE_DISK, GetFileInformationByHandle, GetFileType, LOCKFILE_EXCLUSIVE_LOCK, LOCKFILE_FAIL_IMMEDIATELY,
    LockFileEx, UnlockFileEx,
};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::{
    OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE, WaitForSingleObject,
};

use super::types::{Existence, FileSystem};
use crate::words::mode::Mode;

/// The offset of the byte that we lock. It is far behind the record, because other handles cannot read locked bytes. It
/// is within the range that std, fs4 and Cargo lock. They lock the whole file.
const LOCKED_BYTE: u64 = 1 << 62;

/// Nobody can delete or rename a file that is open without `FILE_SHARE_DELETE`. So a holder cannot lose its lock by
/// that.
const SHARED: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE;

/// An open file. No child has it: Windows inherits only what it is told to.
pub(crate) type OpenFile = File;

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).share_mode(SHARED).custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// Opens the file at `path` for reading and writing.
pub(crate) fn open_for_writing(path: &Path) -> io::Result<File> {
    options().write(true).open(path)
}

/// Opens the file once more, for reading and writing. Nobody can rename it meanwhile, see [`SHARED`].
pub(crate) fn reopen_for_writing(_file: &File, path: &Path) -> io::Result<File> {
    open_for_writing(path)
}

/// The system does not tell.
pub(crate) fn is_open_for_writing(_file: &File) -> bool {
    false
}

/// Creates a file. `None` if there is one. Windows has no permission bits.
pub(crate) fn create(path: &Path, _mode: u32, _is_exact: bool) -> io::Result<Option<File>> {
    match options().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        created => created.map(Some),
    }
}

/// Opens the file at `path` for reading. `None` if its directory exists and the file does not.
pub(crate) fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match options().open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(ERROR_FILE_NOT_FOUND as i32) => Ok(None),
        Err(_) if std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) => {
            Err(io::ErrorKind::IsADirectory.into())
        }
        Err(error) => Err(error),
    }
}

/// The identity and the state of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    volume: u32,
    index: u64,
    pub(crate) size: u64,
    /// The time of the last change of the content, since the Unix epoch.
    pub(crate) modified: Duration,
    attributes: u32,
    is_on_disk: bool,
}

impl Stat {
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.volume, self.index) == (other.volume, other.index)
    }

    /// Nobody can remove a file that is open here, see [`SHARED`].
    pub(crate) fn has_lost_its_name_since(&self, _earlier: &Self) -> bool {
        false
    }

    /// The type of the file, as error messages name it. `None` for a regular file.
    pub(crate) fn irregular(&self) -> Option<&'static str> {
        match self.attributes {
            _ if !self.is_on_disk => Some("a device"),
            attributes if attributes & FILE_ATTRIBUTE_REPARSE_POINT != 0 => Some("a symbolic link"),
            attributes if attributes & FILE_ATTRIBUTE_DIRECTORY != 0 => Some("a directory"),
            _ => None,
        }
    }
}

pub(crate) fn stat(file: &File) -> io::Result<Stat> {
    let handle = file.as_raw_handle();
    // SAFETY: the handle is open as long as `file` is borrowed.
    let is_on_disk = unsafe { GetFileType(handle) } == FILE_TYPE_DISK;
    // SAFETY: the structure consists of integers, for which zero is a valid value.
    let mut found: BY_HANDLE_FILE_INFORMATION = unsafe { zeroed() };
    // SAFETY: the handle is open, and `found` is valid for writes.
    if is_on_disk && unsafe { GetFileInformationByHandle(handle, &mut found) } == 0 {
        return Err(io::Error::last_os_error());
    }
    let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    Ok(Stat {
        volume: found.dwVolumeSerialNumber,
        index: wide(found.nFileIndexHigh, found.nFileIndexLow),
        size: wide(found.nFileSizeHigh, found.nFileSizeLow),
        modified: since_unix_epoch(found.ftLastWriteTime),
        attributes: found.dwFileAttributes,
        is_on_disk,
    })
}

/// A `FILETIME` counts tenths of microseconds since 1601.
fn since_unix_epoch(time: FILETIME) -> Duration {
    const EPOCH: u64 = 11_644_473_600 * 10_000_000;
    let ticks = u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    Duration::from_nanos(ticks.saturating_sub(EPOCH).saturating_mul(100))
}

/// The state of the file at a path. `None` if there is no file. This does not follow a symbolic link at the end of the
/// path.
pub(crate) fn stat_path(path: &Path) -> io::Result<Option<Stat>> {
    let opened = OpenOptions::new()
        .access_mode(FILE_READ_ATTRIBUTES)
        .share_mode(SHARED | FILE_SHARE_DELETE)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS)
        .open(path);
    match opened {
        Ok(file) => stat(&file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a directory and its missing parents. It is no error if the directory exists.
pub(crate) fn create_directories(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).create(path)
}

pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(bytes, offset)
}

pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    file.seek_write(bytes, offset)
}

/// Nobody can remove a file that is open here, see [`SHARED`].
pub(crate) fn is_removed(_file: &File, _stat: &Stat, _path: &Path) -> bool {
    false
}

/// Makes the file empty.
pub(crate) fn truncate(file: &File) -> io::Result<()> {
    file.set_len(0)
}

/// The type of the file at the path, if the open failed because it is not a regular file.
pub(crate) fn irregular_from_open(error: &io::Error) -> Option<&'static str> {
    (error.kind() == io::ErrorKind::IsADirectory).then_some("a directory")
}

/// Windows has no leases that refuse an open for a moment.
pub(crate) fn is_open_refused_for_now(_error: &io::Error) -> bool {
    false
}

/// Windows has no record locks as Unix has them.
pub(crate) fn record_lock_holder(_file: &File) -> Option<u32> {
    None
}

/// `LockFileEx` needs no handle for writing, and our one byte binds no reading and writing to the handle that has it.
pub(crate) const LOCKS_MAY_NEED_WRITERS: bool = false;

/// `LockFileEx` needs no handle for writing.
pub(crate) fn is_lock_for_writers(_error: &io::Error) -> bool {
    false
}

/// Nobody can remove a file that is open here, see [`SHARED`].
pub(crate) fn is_file_gone(_error: &io::Error) -> bool {
    false
}

/// Whether the file system cannot lock files at all.
pub(crate) fn is_lock_unsupported(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(|code| code as u32);
    matches!(code, Some(ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED))
}

/// Whether a read failed because somebody else has the file locked.
pub(crate) fn is_denied_by_lock(_file: &File, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Windows does not tell.
pub(crate) fn is_out_of_locks(_error: &io::Error) -> bool {
    false
}

fn locked_byte() -> OVERLAPPED {
    // SAFETY: the structure consists of integers and a handle, for which zero is a valid value.
    let mut place: OVERLAPPED = unsafe { zeroed() };
    place.Anonymous.Anonymous.Offset = LOCKED_BYTE as u32;
    place.Anonymous.Anonymous.OffsetHigh = (LOCKED_BYTE >> 32) as u32;
    place
}

pub(crate) fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    try_lock(file, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY)
}

pub(crate) fn try_lock_shared(file: &File) -> io::Result<bool> {
    try_lock(file, LOCKFILE_FAIL_IMMEDIATELY)
}

fn try_lock(file: &File, flags: u32) -> io::Result<bool> {
    let mut place = locked_byte();
    // SAFETY: the handle is open. It is synchronous, so the system does not use `place` after the call returns.
    if unsafe { LockFileEx(file.as_raw_handle(), flags, 0, 1, 0, &mut place) } != 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error().map(|code| code as u32) {
        // Other lock libraries have seen ERROR_ACCESS_DENIED under contention. It means that the lock is held.
        Some(ERROR_LOCK_VIOLATION | ERROR_IO_PENDING | ERROR_ACCESS_DENIED) => Ok(false),
        _ => Err(error),
    }
}

pub(crate) fn unlock(file: &File) -> io::Result<()> {
    let mut place = locked_byte();
    // SAFETY: the same reasons as in `try_lock`.
    match unsafe { UnlockFileEx(file.as_raw_handle(), 0, 1, 0, &mut place) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

pub(crate) fn process_existence(pid: u32) -> Existence {
    if pid == 0 {
        return Existence::Gone;
    }
    // SAFETY: the call takes no pointers.
    let process = unsafe { OpenProcess(PROCESS_SYNCHRONIZE | PROCESS_QUERY_LIMITED_INFORMATION, 0, pid) };
    if process.is_null() {
        let denied = io::Error::last_os_error().raw_os_error() == Some(ERROR_ACCESS_DENIED as i32);
        return if denied { Existence::Alive } else { Existence::Gone };
    }
    // A process that has ended still exists as long as somebody has a handle to it.
    // SAFETY: the handle is open.
    let has_ended = unsafe { WaitForSingleObject(process, 0) } == WAIT_OBJECT_0;
    // SAFETY: the handle is open, we own it, and nobody uses it after this.
    unsafe { CloseHandle(process) };
    if has_ended { Existence::Gone } else { Existence::Alive }
}

/// No file system of Windows is known well enough to make a try without the blocking pool, or to wait for its events.
pub(crate) fn filesystem_at(_path: &Path) -> io::Result<FileSystem> {
    Ok(FileSystem::Other("this file system".into()))
}

/// Each process has a clock of its own here.
pub(crate) fn uptime() -> Duration {
    Duration::ZERO
}

/// The time on a clock that nobody sets and that goes on while the machine is suspended, since the first question.
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) fn time_since_boot() -> Duration {
    static FIRST: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    FIRST.elapsed()
}

/// There are no forked children here.
#[cfg(any(feature = "postgres", feature = "etcd"))]
#[derive(Debug)]
pub(crate) struct NotForChildren;

#[cfg(any(feature = "postgres", feature = "etcd"))]
impl NotForChildren {
    pub(crate) fn new<T>(_descriptor: &T) -> Self {
        Self
    }
}

/// The name of this host; empty if it has none.
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

/// Programs on Windows have the rights of their caller.
#[cfg(any(feature = "postgres", feature = "etcd"))]
pub(crate) fn is_set_uid() -> bool {
    false
}

/// The PID of this process.
pub(crate) fn current_pid() -> u32 {
    std::process::id()
}

/// A PID means the same to everybody, so a living process is believed.
pub(crate) fn has_flock(pid: u32, _stat: &Stat, _mode: Mode) -> Option<bool> {
    Some(process_existence(pid) != Existence::Gone)
}
