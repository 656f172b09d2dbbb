//! The record in a lock file: who holds it. This only reads and writes bytes.

use std::fs::File;
use std::io::{self, Write};

use crate::sys;

/// A shlock record: the PID as HoneyDanBer UUCP writes it, right-aligned in ten columns, then a tail of white space. INN's
/// and NetBSD's shlock and PEAK read the PID and ignore the tail.
pub(super) const SHLOCK_LEN: usize = 14;

/// What the tail of a shlock record says about the flock(2) that its holder keeps on the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The lock was made where everybody sees that flock. If it is free, the holder is dead.
    Proof,
    /// The lock was made on a file system where a free flock proves nothing.
    NoProof,
}

const PROOF_TAIL: &[u8] = b"\t \t\n";
const NO_PROOF_TAIL: &[u8] = b"\t\t \n";

/// An flock record has another tail and another length, so that neither kind takes the other's file for its own.
pub(super) const FLOCK_LEN: usize = 16;
const FLOCK_TAIL: &[u8] = b"\t\t \t\t\n";

/// What an flock record becomes at release.
pub(super) const FLOCK_BLANK: [u8; FLOCK_LEN] = [0; FLOCK_LEN];

/// A longer file is nobody's record. PostgreSQL's postmaster.pid is the longest one known, with two paths in it.
const LIMIT: usize = 1024;

/// The highest PID that Linux can give (pid_max, proc_sys_kernel(5)). A binary record with a higher one is some text.
const PID_MAX: u64 = 1 << 22;

/// What the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// Nothing, or NUL bytes: its writer has not written yet, or the machine crashed.
    Blank,
    /// Ours: the holder keeps an flock on the inode.
    Shlock(u32, Mark),
    /// Another program's. Only the PID tells whether the holder is alive.
    Foreign(u32, Form),
    /// Another program's, of which nothing tells the PID: `0` alone, as liblockfile's dotlockfile(1) writes it.
    Unknown,
    /// Of an flock lock: held by this PID, or idle.
    Flock(Option<u32>),
    /// No record at all.
    Garbage,
}

/// The form of another program's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The PID alone with white space, or in the ten columns of HoneyDanBer UUCP, there also with the name of a program
    /// behind it. With a dead PID this is what shlock(1) and its like remove.
    Shlock,
    /// Any other form. Only its program knows what a dead PID means there.
    Other,
}

impl Record {
    /// Reads the record of an open file.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let mut bytes = [0; LIMIT + 1];
        let filled = read(file, &mut bytes)?;
        Ok(Self::parse(&bytes[..filled]))
    }

    /// As [`of`](Self::of), for a file that somebody else may have locked. On SMB such a file cannot be read.
    pub(super) fn of_lock(file: &File) -> io::Result<Self> {
        match Self::of(file) {
            Err(error) if sys::is_denied_by_lock(file, &error) => Ok(Self::Unknown),
            record => record,
        }
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
        if bytes.trim_ascii() == b"0" {
            return Self::Unknown;
        }
        let Some(pid) = parse_pid(bytes.trim_ascii()) else {
            return parse_other(bytes);
        };
        match bytes {
            _ if bytes == shlock(pid, Mark::Proof) => Self::Shlock(pid, Mark::Proof),
            _ if bytes == shlock(pid, Mark::NoProof) => Self::Shlock(pid, Mark::NoProof),
            _ if bytes == flock(pid) => Self::Flock(Some(pid)),
            _ => Self::Foreign(pid, Form::Shlock),
        }
    }

    #[cfg(unix)]
    pub(super) fn pid(self) -> Option<u32> {
        match self {
            Self::Shlock(pid, _) | Self::Foreign(pid, _) | Self::Flock(Some(pid)) => Some(pid),
            Self::Blank | Self::Unknown | Self::Flock(None) | Self::Garbage => None,
        }
    }
}

/// The record of a program that writes more than a PID, or writes it in binary.
fn parse_other(bytes: &[u8]) -> Record {
    let binary = match *bytes {
        // INN's shlock -b and microcom(1): a pid_t or a long of this machine.
        [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    };
    if (1..=PID_MAX).contains(&binary) {
        return Record::Foreign(binary as u32, Form::Other);
    }
    let line_end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (line, more) = (&bytes[..line_end], bytes[line_end..].trim_ascii());
    let padding = line.len() - line.trim_ascii_start().len();
    let end = line[padding..].iter().position(|byte| !byte.is_ascii_digit()).map_or(line.len(), |at| padding + at);
    let Some(pid) = parse_pid(&line[padding..end]) else { return Record::Garbage };
    let (separator, text) = line[end..].split_first().map_or((None, &[][..]), |(first, rest)| (Some(*first), rest));
    let text = text.trim_ascii();
    let is_text = text.first().is_some_and(|first| first.is_ascii_graphic() && !first.is_ascii_digit());
    match separator {
        // fetchmail(1), PostgreSQL, Python's filelock: the PID on the first of several lines.
        _ if line.trim_ascii().len() == end - padding && !more.is_empty() => Record::Foreign(pid, Form::Other),
        // gammu(1), minicom(1), uucico(8): the name of the program, or of the user, behind the PID.
        Some(b' ' | b'\t') if is_text && more.is_empty() => match line[..end] == *format!("{pid:>10}").as_bytes() {
            true => Record::Foreign(pid, Form::Shlock),
            false => Record::Foreign(pid, Form::Other),
        },
        // maildrop(1): PID:host.
        Some(b':') if is_text && more.is_empty() => Record::Foreign(pid, Form::Other),
        _ => Record::Garbage,
    }
}

/// Whether the file holds these bytes and no more.
pub(super) fn is_all_of(file: &File, record: &[u8; FLOCK_LEN]) -> bool {
    let mut bytes = [0; FLOCK_LEN + 1];
    read_once(file, &mut bytes, 0).is_ok_and(|filled| bytes[..filled] == *record)
}

/// Whether the file begins with this record.
#[cfg(unix)]
pub(super) fn starts_with(file: &File, record: &[u8]) -> bool {
    let mut bytes = [0; SHLOCK_LEN];
    read(file, &mut bytes).is_ok_and(|filled| &bytes[..filled] == record)
}

/// Whether the file holds a record that a shlock can have, or the part of one that its creator wrote before it died.
#[cfg(unix)]
pub(super) fn is_record_or_begun(file: &File) -> io::Result<bool> {
    let mut bytes = [0; LIMIT + 1];
    let filled = read(file, &mut bytes)?;
    let bytes = &bytes[..filled];
    let is_begun = filled < SHLOCK_LEN && bytes.trim_ascii().is_empty();
    Ok(is_begun
        || matches!(Record::parse(bytes), Record::Blank | Record::Shlock(..) | Record::Foreign(_, Form::Shlock)))
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

/// Writes to the start of the file with one call. For so few bytes it writes all or nothing, except where the limit of
/// file sizes of this process is even smaller (RLIMIT_FSIZE): then a second call would end the process by SIGXFSZ.
pub(super) fn write(file: &File, bytes: &[u8]) -> io::Result<()> {
    loop {
        match sys::write_at(file, bytes, 0) {
            Ok(count) if count == bytes.len() => return Ok(()),
            Ok(count) => {
                // What is half a record now must not name a process.
                let _ = sys::write_at(file, &FLOCK_BLANK[..count.min(FLOCK_LEN)], 0);
                return Err(io::ErrorKind::FileTooLarge.into());
            }
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

pub(super) fn shlock(pid: u32, mark: Mark) -> [u8; SHLOCK_LEN] {
    match mark {
        Mark::Proof => with_tail(pid, PROOF_TAIL),
        Mark::NoProof => with_tail(pid, NO_PROOF_TAIL),
    }
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
        assert_eq!(&shlock(4321, Mark::Proof), b"      4321\t \t\n");
        for mark in [Mark::Proof, Mark::NoProof] {
            assert_eq!(Record::parse(&shlock(4321, mark)), Record::Shlock(4321, mark));
        }
    }

    #[test]
    fn the_kinds_do_not_take_each_others_records() {
        assert_eq!(Record::parse(&flock(4321)), Record::Flock(Some(4321)));
        assert_eq!(Record::parse(&FLOCK_BLANK), Record::Flock(None));
        assert_eq!(Record::parse(&[0; SHLOCK_LEN]), Record::Blank);
    }

    #[test]
    fn a_pid_alone_or_in_ten_columns_is_shlocks_form() {
        for text in ["4321", "4321\n", "      4321\n", "  4321 \n\n", "      4321 gammu\n", "      4321 uucico root\n"]
        {
            assert_eq!(Record::parse(text.as_bytes()), Record::Foreign(4321, Form::Shlock), "{text:?}");
        }
    }

    #[test]
    fn other_programs_records_name_their_holder() {
        let postmaster = "4321\n/var/lib/postgresql/15/main\n1700000000\n5432\n/run/postgresql\nlocalhost\nready   \n";
        for text in
            ["4321 minicom root\n", "0000004321 x\n", "4321:vm", "4321\n300\n", "4321\nhost.example\n", postmaster]
        {
            assert_eq!(Record::parse(text.as_bytes()), Record::Foreign(4321, Form::Other), "{text:?}");
        }
        assert_eq!(Record::parse(&4321_i32.to_ne_bytes()), Record::Foreign(4321, Form::Other));
        assert_eq!(Record::parse(&4321_i64.to_ne_bytes()), Record::Foreign(4321, Form::Other));
        assert_eq!(Record::parse(b"0\n"), Record::Unknown);
    }

    #[test]
    fn anything_else_is_garbage() {
        for text in [
            "-1",
            "+1",
            "2147483648",
            "99999999999999999999",
            "12 34",
            "12\0",
            " ",
            "\n",
            "x",
            "4321x",
            "4321:",
            "4321 x\ny\n",
            "text",
            "sometext",
            "0\n1\n",
            "1 \u{fc}",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), Record::Garbage, "{text:?}");
        }
        assert_eq!(Record::parse(&[b' '; LIMIT + 1]), Record::Garbage);
        assert_eq!(Record::parse(&(PID_MAX as u32 + 1).to_ne_bytes()), Record::Garbage);
    }
}
