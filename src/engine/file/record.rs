//! The record in a lock file: who holds it. This only reads and writes bytes.

use std::fs::File;
use std::io::{self, Write};

use crate::sys;

/// A shlock record: the PID as HoneyDanBer UUCP writes it, right-aligned in ten columns, then a tail of white space. The
/// tail says that the holder also keeps an flock(2) on this inode. INN's and NetBSD's shlock and PEAK read the PID and
/// ignore the tail.
pub(super) const SHLOCK_LEN: usize = 14;
const SHLOCK_TAIL: &[u8] = b"\t \t\n";

/// An flock record has another tail and another length, so that neither kind takes the other's file for its own.
pub(super) const FLOCK_LEN: usize = 16;
const FLOCK_TAIL: &[u8] = b"\t\t \t\t\n";

/// What an flock record becomes at release.
pub(super) const FLOCK_BLANK: [u8; FLOCK_LEN] = [0; FLOCK_LEN];

/// A file longer than this is nobody's record.
const LIMIT: usize = 256;

/// What the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// Nothing, or NUL bytes: its writer has not written yet, or the machine crashed.
    Blank,
    /// Ours: the holder keeps an flock on the inode.
    Shlock(u32),
    /// A PID and white space: of another program. Only the PID tells whether the holder is alive.
    Foreign(u32),
    /// Of an flock lock: held by this PID, or idle.
    Flock(Option<u32>),
    /// No record at all.
    Garbage,
}

impl Record {
    /// Reads the record of an open file.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let mut bytes = [0; LIMIT + 1];
        let filled = read(file, &mut bytes)?;
        Ok(Self::parse(&bytes[..filled]))
    }

    /// Of an open file of [`FLOCK_LEN`] bytes that may hold the record of an flock lock: with one call.
    pub(super) fn of_flock(file: &File) -> io::Result<Self> {
        let mut bytes = [0; FLOCK_LEN];
        let filled = read(file, &mut bytes)?;
        Ok(Self::parse(&bytes[..filled]))
    }

    pub(super) fn parse(bytes: &[u8]) -> Self {
        if bytes.len() > LIMIT {
            return Self::Garbage;
        }
        if bytes == FLOCK_BLANK {
            return Self::Flock(None);
        }
        if bytes.iter().all(|&byte| byte == 0) {
            return Self::Blank;
        }
        let Some(pid) = parse_pid(bytes.trim_ascii()) else {
            return Self::Garbage;
        };
        match bytes {
            _ if bytes == shlock(pid) => Self::Shlock(pid),
            _ if bytes == flock(pid) => Self::Flock(Some(pid)),
            _ => Self::Foreign(pid),
        }
    }

    #[cfg(unix)]
    pub(super) fn pid(self) -> Option<u32> {
        match self {
            Self::Shlock(pid) | Self::Foreign(pid) | Self::Flock(Some(pid)) => Some(pid),
            Self::Blank | Self::Flock(None) | Self::Garbage => None,
        }
    }
}

/// Whether the file holds these bytes and no more.
pub(super) fn is_all_of(file: &File, record: &[u8; FLOCK_LEN]) -> bool {
    let mut bytes = [0; FLOCK_LEN + 1];
    read_once(file, &mut bytes, 0).is_ok_and(|filled| bytes[..filled] == *record)
}

/// Whether the file holds a record that a shlock can have, or the part of one that its creator wrote before it died.
#[cfg(unix)]
pub(super) fn is_record_or_begun(file: &File) -> io::Result<bool> {
    let mut bytes = [0; LIMIT + 1];
    let filled = read(file, &mut bytes)?;
    let bytes = &bytes[..filled];
    let is_begun = filled < SHLOCK_LEN && bytes.trim_ascii().is_empty();
    Ok(is_begun || matches!(Record::parse(bytes), Record::Blank | Record::Shlock(_) | Record::Foreign(_)))
}

/// Reads from the start of the file until `bytes` are full or the file ends. Returns the number of bytes.
fn read(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match read_once(file, &mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn read_once(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match sys::read_at(file, bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Writes to the start of the file: one call, which for so few bytes is all or nothing on a local file system.
pub(super) fn write(file: &File, bytes: &[u8]) -> io::Result<()> {
    loop {
        match sys::write_at(file, bytes, 0) {
            Ok(count) if count == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The PID in these digits, if kill(2) takes it for one process: 1 to 2³¹ − 1.
pub(super) fn parse_pid(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let pid: i32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    u32::try_from(pid).ok().filter(|&pid| pid != 0)
}

pub(super) fn shlock(pid: u32) -> [u8; SHLOCK_LEN] {
    with_tail(pid, SHLOCK_TAIL)
}

pub(super) fn flock(pid: u32) -> [u8; FLOCK_LEN] {
    with_tail(pid, FLOCK_TAIL)
}

fn with_tail<const LEN: usize>(pid: u32, tail: &[u8]) -> [u8; LEN] {
    let mut record = [0; LEN];
    write!(&mut record[..10], "{pid:>10}").expect("ten columns hold every PID");
    record[10..].copy_from_slice(tail);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shlock_record_is_fourteen_bytes_of_honey_dan_ber() {
        assert_eq!(&shlock(4321), b"      4321\t \t\n");
        assert_eq!(Record::parse(&shlock(4321)), Record::Shlock(4321));
    }

    #[test]
    fn the_kinds_do_not_take_each_others_records() {
        assert_eq!(Record::parse(&flock(4321)), Record::Flock(Some(4321)));
        assert_eq!(Record::parse(&FLOCK_BLANK), Record::Flock(None));
        assert_eq!(Record::parse(&[0; SHLOCK_LEN]), Record::Blank);
    }

    #[test]
    fn foreign_records_are_a_pid_and_white_space() {
        for text in ["4321", "4321\n", "      4321\n", "  4321 \n\n"] {
            assert_eq!(Record::parse(text.as_bytes()), Record::Foreign(4321), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_garbage() {
        for text in ["0", "-1", "+1", "2147483648", "99999999999999999999", "12 34", "12\0", " ", "\n", "x", "4321x"] {
            assert_eq!(Record::parse(text.as_bytes()), Record::Garbage, "{text:?}");
        }
        assert_eq!(Record::parse(&[b' '; LIMIT + 1]), Record::Garbage);
    }
}
