//! Arbitrary bytes in the lock file, arbitrary URLs and arbitrary paths. Half of the contents are a record or almost
//! a record, so that every branch of the parser is reached. At its end each test checks that this happened.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use tokio_lockfile::{LockError, LockFile, LockUrl, check_lock, pid_exists};

/// The end of our records, after the PID in ten columns.
const SHLOCK_TAIL: &str = "\t \t\n";
/// The same, for a lock created on a file system where a free flock does not prove that the holder is dead.
const NO_PROOF_TAIL: &str = "\t\t \n";
const FLOCK_TAIL: &str = "\t\t \t\t\n";

/// A longer file is no program's record.
const LIMIT: usize = 1024;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The PID of a live process, PIDs that no process can have (Linux ends at 2²²), and text that only looks like a PID.
fn pid_text() -> impl Strategy<Value = String> {
    let own = std::process::id().to_string();
    prop_oneof![
        4 => select(vec![own, "1".into(), "4194305".into(), "2147483647".into(), "0004194305".into()]),
        1 => select(vec!["", "0", "00", "-1", "+1", "2147483648", "4294967297", "99999999999999999999", "1 2", "0x1"])
            .prop_map(String::from),
        1 => "[0-9]{1,12}",
    ]
}

fn white_space() -> impl Strategy<Value = String> {
    prop_oneof!["[ \t\n\r\x0b\x0c]{0,8}", select(vec!["", "\n", SHLOCK_TAIL, FLOCK_TAIL]).prop_map(String::from)]
}

/// A record of some program: the PID, right-aligned or not, and one of the known endings.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let aligned = (pid_text(), white_space()).prop_map(|(pid, tail)| format!("{pid:>10}{tail}"));
    let loose = (white_space(), pid_text(), white_space()).prop_map(|(head, pid, tail)| format!("{head}{pid}{tail}"));
    prop_oneof![2 => aligned, 1 => loose].prop_map(String::into_bytes)
}

/// A record with one byte changed, or cut off, or with more bytes after it.
fn near_record() -> impl Strategy<Value = Vec<u8>> {
    let odd_byte = || prop_oneof![select(b"\0 \t\n0+-x".to_vec()), any::<u8>()];
    prop_oneof![
        (record(), any::<prop::sample::Index>(), odd_byte()).prop_map(|(mut bytes, at, byte)| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        }),
        (record(), any::<prop::sample::Index>()).prop_map(|(mut bytes, at)| {
            bytes.truncate(at.index(bytes.len() + 1));
            bytes
        }),
        (record(), odd_byte(), 0..260_usize).prop_map(|(mut bytes, byte, count)| {
            bytes.extend(std::iter::repeat_n(byte, count));
            bytes
        }),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => record(),
        3 => near_record(),
        1 => prop_oneof![select(vec![0, 1, 13, 14, 15, 16, 17]), 0..300_usize].prop_map(|len| vec![0; len]),
        2 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 0..2_000),
    ]
}

/// What a shlock attempt may do with a file of this content. No process has locked the file.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// A record whose holder is dead.
    Break,
    /// A record whose holder is alive, or a file whose creator may still be writing it.
    Respect,
    /// No lock record.
    Refuse,
    /// Perhaps another program's record: the answer depends on the PID in it, and the file is not changed.
    LeaveAlone,
}

fn verdict(bytes: &[u8]) -> Verdict {
    let is_blank = bytes.iter().all(|&byte| byte == 0) && bytes.len() != 16 && bytes.len() <= LIMIT;
    // Our own records have a mark. So a record of another program with our PID is not ours.
    let is_alive = |pid| pid != std::process::id() && pid_exists(pid);
    match pid(bytes).or_else(|| pid_before_a_name(bytes)) {
        _ if is_blank => Verdict::Respect,
        Some(_) if is_our_record(bytes, FLOCK_TAIL) => Verdict::Refuse,
        Some(_) if is_our_record(bytes, SHLOCK_TAIL) => Verdict::Break,
        Some(pid) if is_alive(pid) => Verdict::Respect,
        Some(_) if is_our_record(bytes, NO_PROOF_TAIL) => Verdict::LeaveAlone,
        Some(_) => Verdict::Break,
        None if may_be_a_record(bytes) => Verdict::LeaveAlone,
        None => Verdict::Refuse,
    }
}

/// The HoneyDanBer format, with the name of a program after the PID.
fn pid_before_a_name(bytes: &[u8]) -> Option<u32> {
    let (columns, rest) = bytes.split_at_checked(10).filter(|_| bytes.len() <= LIMIT)?;
    let (separator, name) = rest.split_first()?;
    let name = name.trim_ascii_end();
    let is_name = matches!(separator, b' ' | b'\t')
        && !name.contains(&b'\n')
        && name.trim_ascii_start().first().is_some_and(|first| first.is_ascii_graphic() && !first.is_ascii_digit());
    pid(columns).filter(|pid| is_name && columns == format!("{pid:>10}").as_bytes())
}

/// The content begins with a number, or may be a binary number.
fn may_be_a_record(bytes: &[u8]) -> bool {
    let is_text = bytes.trim_ascii_start().first().is_some_and(u8::is_ascii_digit);
    bytes.len() <= LIMIT && (is_text || [4, 8].contains(&bytes.len()))
}

fn is_our_record(bytes: &[u8], tail: &str) -> bool {
    pid(bytes).is_some_and(|pid| bytes == format!("{pid:>10}{tail}").as_bytes())
}

/// The PID in a text that contains only the PID and white space.
fn pid(bytes: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= LIMIT)?;
    let digits = text.trim_matches([' ', '\t', '\n', '\r', '\x0c']);
    let pid: i32 = digits.parse().ok()?;
    (pid > 0 && !digits.starts_with('+')).then_some(pid as u32)
}

/// The properties of a file that must stay the same if an attempt leaves the file alone.
fn state(path: &Path) -> (Vec<u8>, u64, u64, u32, i64, i64) {
    let stat = std::fs::symlink_metadata(path).unwrap();
    (std::fs::read(path).unwrap(), stat.ino(), stat.nlink(), stat.mode(), stat.mtime(), stat.mtime_nsec())
}

#[test]
fn shlock_breaks_a_dead_holders_record_and_leaves_any_other_file_alone() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let path = dir.path().join("x.lock");
    let lock = LockFile::shlock(&path).unwrap();
    let seen = [const { Cell::new(0) }; 4];
    let result = TestRunner::new(config(1_500)).run(&content(), |bytes| {
        std::fs::write(&path, &bytes).unwrap();
        let before = state(&path);
        let verdict = verdict(&bytes);
        let is_refusal = |error: &LockError| matches!(error, LockError::NotALockFile { .. });

        let alive = check_lock(&path);
        let holder = runtime.block_on(lock.holder());
        prop_assert_eq!(&state(&path), &before, "after queries");
        match &verdict {
            Verdict::LeaveAlone => {
                let is_taken = runtime.block_on(lock.attempt()).is_ok_and(|guard| guard.is_some());
                prop_assert!(!is_taken);
                prop_assert_eq!(&state(&path), &before, "after an attempt");
            }
            Verdict::Break => {
                prop_assert!(!alive.unwrap());
                prop_assert_eq!(holder.unwrap(), None);
                let guard = runtime.block_on(lock.attempt()).unwrap().expect("the holder is dead");
                runtime.block_on(guard.release()).unwrap();
            }
            Verdict::Respect => {
                prop_assert_eq!(alive.unwrap(), !bytes.iter().all(|&byte| byte == 0));
                holder.unwrap();
                prop_assert!(runtime.block_on(lock.attempt()).unwrap().is_none());
                prop_assert_eq!(&state(&path), &before, "after an attempt");
            }
            Verdict::Refuse => {
                prop_assert!(is_refusal(&alive.unwrap_err()));
                prop_assert!(is_refusal(&holder.unwrap_err()));
                prop_assert!(is_refusal(&runtime.block_on(lock.attempt()).unwrap_err()));
                prop_assert_eq!(&state(&path), &before, "after an attempt");
            }
        }
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        prop_assert_eq!(left, usize::from(verdict != Verdict::Break));
        let seen = &seen[verdict as usize];
        seen.set(seen.get() + 1);
        // Each case has its own file: the inode shows whether the file was replaced.
        let _ = std::fs::remove_file(&path);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.iter().all(|seen| seen.get() > 50), "not every verdict occurred often enough: {seen:?}");
}

#[test]
fn flock_takes_a_file_of_any_content_and_writes_only_where_a_record_belongs() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let path = dir.path().join("x.lock");
    let lock = LockFile::flock(&path).unwrap();
    let seen = [const { Cell::new(0) }; 2];
    let result = TestRunner::new(config(1_500)).run(&content(), |bytes| {
        std::fs::write(&path, &bytes).unwrap();
        let before = state(&path);
        // An empty file may be somebody's data.
        let is_record = bytes == [0; 16] || is_our_record(&bytes, FLOCK_TAIL);

        prop_assert_eq!(runtime.block_on(lock.holder()).unwrap(), None);
        let guard = runtime.block_on(lock.attempt()).unwrap().expect("the lock is free");
        let holder = runtime.block_on(lock.holder()).unwrap().expect("held");
        prop_assert!(!is_record || holder.pid() == std::process::id());
        let held = state(&path);
        runtime.block_on(guard.release()).unwrap();
        let after = state(&path);
        if is_record {
            let record = format!("{:>10}{FLOCK_TAIL}", std::process::id());
            prop_assert_eq!(&held.0, record.as_bytes());
            prop_assert_eq!((&after.0[..], after.1, after.3), (&[0; 16][..], before.1, before.3));
        } else {
            prop_assert_eq!(&held, &before);
            prop_assert_eq!(&after, &before);
        }
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let seen = &seen[usize::from(is_record)];
        seen.set(seen.get() + 1);
        std::fs::remove_file(&path).unwrap();
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.iter().all(|seen| seen.get() > 10), "records or other contents occurred too seldom: {seen:?}");
}

fn url() -> impl Strategy<Value = String> {
    let scheme = select(vec!["lockfile", "shlockfile", "FlockFile", "winflockfile", "nulllockfile", "file", ""]);
    let host = select(vec!["", "/", "//", "///", "////", "//localhost", "//LOCALHOST/", "//host/", "//host"]);
    let piece = prop_oneof![
        4 => "[a-zA-Z0-9._~/-]{1,8}",
        2 => "%[0-9a-fA-F]{2}",
        1 => "%[0-9a-gA-G+ ]{0,2}",
        1 => "[:?#%@+ é\u{0}\u{10ffff}]",
    ];
    let built =
        (scheme, host, vec(piece, 0..6)).prop_map(|(scheme, host, path)| format!("{scheme}:{host}{}", path.concat()));
    prop_oneof![4 => built, 1 => any::<String>()]
}

#[test]
fn any_string_is_a_url_that_prints_as_an_equal_one_or_an_error() {
    let seen = [const { Cell::new(0) }; 2];
    let result = TestRunner::new(config(4_000)).run(&url(), |url| {
        let parsed = url.parse::<LockUrl>();
        match &parsed {
            Ok(parsed) => {
                let printed = parsed.to_string();
                let again: LockUrl = printed.parse().unwrap();
                prop_assert_eq!(&again, parsed);
                // Equal paths may have different bytes; the bytes must stay the same, too.
                prop_assert_eq!(again.to_string(), printed);
            }
            // What may be a password is not shown.
            Err(LockError::InvalidUrl { url: named, .. }) => prop_assert!(*named == url || named.contains("***")),
            Err(other) => prop_assert!(false, "{:?}", other),
        }
        if let Ok(lock) = LockFile::open(&url) {
            let printed = lock.url().to_string();
            prop_assert_eq!(LockFile::open(&printed).unwrap().url().to_string(), printed);
        }
        let seen = &seen[usize::from(parsed.is_ok())];
        seen.set(seen.get() + 1);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.iter().all(|seen| seen.get() > 200), "valid or invalid URLs occurred too seldom: {seen:?}");
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn any_path_is_the_same_after_a_round_trip_through_its_url(
        is_absolute in any::<bool>(),
        bytes in prop_oneof![vec(any::<u8>(), 0..40), vec(select(b"/.%:?# \\a\0\xff".to_vec()), 0..12)],
    ) {
        let bytes = if is_absolute { [b"/", &bytes[..]].concat() } else { bytes };
        match LockFile::flock(OsStr::from_bytes(&bytes)) {
            Ok(lock) => {
                let url = lock.url();
                let printed = url.to_string();
                prop_assert_eq!(&printed.parse::<LockUrl>().unwrap(), &url);
                let opened = LockFile::open(&printed).unwrap();
                prop_assert_eq!(opened.path().unwrap().as_os_str(), lock.path().unwrap().as_os_str());
                prop_assert_eq!(opened.kind(), lock.kind());
            }
            Err(LockError::InvalidPath { path, .. }) => prop_assert_eq!(path.as_os_str().as_bytes(), &bytes[..]),
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }
}
