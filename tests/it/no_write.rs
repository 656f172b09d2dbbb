//! A lock is not a write: nobody who uses a file for something else notices that it is locked.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::task::Poll;
use std::time::Instant;

use tokio_lockfile::LockFile;

use crate::support::{HANG, Holder, take};

/// The handles that lock a file which is there already, in every mode.
fn handles(path: &Path) -> [LockFile; 4] {
    let lock = LockFile::native(path).unwrap();
    let bare = LockFile::builder().record(false).native(path).unwrap();
    [lock.shared().unwrap(), lock, bare.shared().unwrap(), bare]
}

/// "Text file busy" is the error of an open for writing.
#[tokio::test]
async fn a_running_program_can_be_locked_and_a_locked_program_can_be_started() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cat");
    // Another process makes the copy: a child of another thread could inherit our descriptor for writing.
    assert!(Command::new("cp").arg("/bin/cat").arg(&path).status().unwrap().success());
    let start = || Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut running = start();
    for lock in handles(&path) {
        let guard = take(&lock).await;
        drop(start().wait_with_output().unwrap());
        let mut start = [0; 4];
        guard.file().unwrap().read_exact(&mut start).unwrap();
        assert!(start.iter().any(|&byte| byte != 0));
        guard.release().await.unwrap();
    }
    drop(running.stdin.take());
    running.wait().unwrap();
    for lock in handles(&path) {
        let guard = take(&lock).await;
        assert!(start().wait_with_output().unwrap().status.success());
        guard.release().await.unwrap();
    }
}

/// Editors, builds and synchronisers watch for IN_CLOSE_WRITE.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_watcher_sees_a_save() {
    // The child of another test could have a copy of our descriptor for writing, and close it later.
    if !in_own_process("no_write::no_watcher_sees_a_save") {
        return;
    }
    use std::mem::MaybeUninit;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

    use crate::support::{in_own_process, poll_once};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let inotify = inotify::init(CreateFlags::NONBLOCK).unwrap();
    for content in [&b""[..], b"data", b"sixteen bytes .."] {
        std::fs::write(&path, content).unwrap();
        let watch = inotify::add_watch(&inotify, &path, WatchFlags::ALL_EVENTS).unwrap();
        for lock in handles(&path) {
            take(&lock).await.release().await.unwrap();
            // A wait, a look, and a wait that is dropped.
            let holder = Holder::holding(&lock);
            let writer = LockFile::native(&path).unwrap();
            let mut wait = Box::pin(writer.obtain());
            assert!(!poll_once(wait.as_mut()).await);
            writer.holder().await.unwrap();
            holder.release();
            drop(wait.await.unwrap());
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&inotify, &mut buffer);
        while let Ok(event) = events.next() {
            let wrote = event.events() & (ReadFlags::CLOSE_WRITE | ReadFlags::MODIFY | ReadFlags::ATTRIB);
            assert!(wrote.is_empty(), "{wrote:?}");
        }
        inotify::remove_watch(&inotify, watch).unwrap();
    }
}

#[tokio::test]
async fn the_guards_file_can_be_written_although_the_lock_is_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, "some data").unwrap();
    for (lock, byte) in handles(&path).into_iter().zip(b"abcd") {
        let guard = take(&lock).await;
        guard.file().unwrap().write_all(&[*byte]).unwrap();
        guard.release().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [&[*byte], &b"some data"[1..]].concat());
    }
}

/// As a state file that starts with this program. The file holds our record until somebody asks for it.
#[tokio::test]
async fn a_file_that_is_asked_for_holds_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let lock = LockFile::native(&path).unwrap();
    let left_by_dead: [&[u8]; 2] = [b"", b"   4194305\t\t \t\t\n"];
    for before in left_by_dead {
        match before {
            b"" => _ = std::fs::remove_file(&path),
            before => std::fs::write(&path, before).unwrap(),
        }
        let guard = take(&lock).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16, "a record");
        let mut text = String::new();
        guard.file().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "", "the file is new");
        guard.release().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
    for _ in 0..3 {
        let guard = take(&lock).await;
        let mut file = guard.file().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        write!(file, "x").unwrap();
        guard.release().await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text + "x");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"xxx");
}

/// The task is busy when its try on the blocking pool has created the file and got the lock. So the lock is taken back,
/// and a later try gets it.
#[tokio::test]
async fn a_new_file_whose_lock_was_taken_back_once_is_empty_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/state.json");
    let lock = LockFile::builder().create_dirs(true).native(&path).unwrap();
    let mut attempt = Box::pin(lock.attempt());
    let is_done = std::future::poll_fn(|context| Poll::Ready(attempt.as_mut().poll(context).is_ready()));
    assert!(!is_done.await, "the directory is made on the pool");
    let began = Instant::now();
    while std::fs::read(&path).ok().is_none_or(|record| record != [0; 16]) {
        assert!(began.elapsed() < HANG, "the lock is not taken back");
        std::hint::spin_loop();
    }
    let guard = attempt.await.unwrap().unwrap();
    assert!(std::fs::read(&path).unwrap().starts_with(b" "), "the holder's record");
    let mut text = String::new();
    guard.file().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    guard.release().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

/// Two numbers that are zero look as a release leaves a record.
#[tokio::test]
async fn data_that_looks_like_a_blank_record_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("counters");
    std::fs::write(&path, [0; 16]).unwrap();
    let guard = take(&LockFile::native(&path).unwrap()).await;
    let mut data = Vec::new();
    guard.file().unwrap().read_to_end(&mut data).unwrap();
    assert_eq!(data, [0; 16]);
    guard.release().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 16]);
}
