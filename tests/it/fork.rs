//! fork(2) without exec, as worker processes, daemons and crash handlers use it: the child uses the library, too.
#![expect(unsafe_code, reason = "fork(2) is an unsafe call")]
#![expect(clippy::incompatible_msrv, reason = "only the library supports the oldest Rust version")]

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::pin::Pin;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LockGuard};

use crate::kinds::{FILE_KINDS, SHARED_KINDS};
use crate::support::{HANG, Holder, in_own_process, poll_once};

/// A forked child that runs a closure and ends. It talks to its parent by two pipes.
pub(crate) struct Forked {
    pub(crate) pid: libc::pid_t,
    from_child: PipeReader,
    pub(crate) to_child: Option<PipeWriter>,
}

/// The child's end of the pipes.
pub(crate) struct Parent {
    to_parent: PipeWriter,
    from_parent: PipeReader,
}

impl Parent {
    pub(crate) fn say(&mut self, word: u8) {
        self.to_parent.write_all(&[word]).unwrap();
    }

    /// Waits until the parent lets the child go on.
    pub(crate) fn wait(&mut self) {
        self.from_parent.read_to_end(&mut Vec::new()).unwrap();
    }
}

impl Forked {
    pub(crate) fn new(child: impl FnOnce(Parent)) -> Self {
        let (from_child, to_parent) = std::io::pipe().unwrap();
        let (from_parent, to_child) = std::io::pipe().unwrap();
        // SAFETY: these tests are about what the child does until its end. The child never returns from here.
        match unsafe { libc::fork() } {
            0 => {
                drop((from_child, to_child));
                let work = std::panic::AssertUnwindSafe(|| child(Parent { to_parent, from_parent }));
                let status = std::panic::catch_unwind(work).map_or(1, |()| 0);
                // SAFETY: `_exit` ends the process at once.
                unsafe { libc::_exit(status) }
            }
            pid => Self { pid, from_child, to_child: Some(to_child) },
        }
    }

    pub(crate) fn hears(&mut self, word: u8) {
        let mut heard = [0];
        self.from_child.read_exact(&mut heard).expect("the child goes on");
        assert_eq!(heard[0], word);
    }

    /// Lets the child go on, and waits until it has ended well.
    pub(crate) fn finish(mut self) {
        drop(self.to_child.take());
        let mut status = 0;
        // SAFETY: `status` is a local variable that may be written.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        assert_eq!(status, 0, "the child failed");
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) type Waiting<'a> = Pin<Box<dyn Future<Output = Result<LockGuard, LockError>> + 'a>>;

/// Polls a wait until it has certainly found that the lock is held.
pub(crate) fn begin_wait<'a>(runtime: &Runtime, lock: &'a LockFile) -> Waiting<'a> {
    let mut waiting: Waiting = Box::pin(lock.obtain());
    runtime.block_on(async {
        // Attempts on the blocking pool do not report when they are done.
        for _ in 0..1_000 {
            assert!(!poll_once(waiting.as_mut()).await, "the wait ended, although the lock is held");
        }
    });
    waiting
}

#[test]
fn a_process_that_forks_while_it_waits_and_its_child_do_not_both_hold() {
    if !in_own_process("fork::a_process_that_forks_while_it_waits_and_its_child_do_not_both_hold") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let mut holder = Some(Holder::holding(&lock));
        let ours = runtime();
        let mut waiting = begin_wait(&ours, &lock);
        let mut child = Forked::new(|mut parent| {
            // The child has a copy of the pipe to the holder. The holder sees the end of the pipe only when all copies
            // are closed.
            drop(holder.take());
            let guard = runtime().block_on(async { timeout(HANG, waiting.as_mut()).await.expect("hangs").unwrap() });
            parent.say(b'h');
            parent.wait();
            assert!(guard.is_held());
            drop(guard);
        });
        holder.expect("the parent still has its holder").release();
        child.hears(b'h');
        let both = ours.block_on(async { timeout(Duration::from_millis(100), waiting.as_mut()).await });
        assert!(both.is_err(), "two holders");
        child.finish();
        drop(ours.block_on(async { timeout(HANG, waiting).await.expect("hangs").unwrap() }));
    }
}

#[test]
fn a_child_waits_for_its_parent_and_gets_the_lock_then() {
    if !in_own_process("fork::a_child_waits_for_its_parent_and_gets_the_lock_then") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let guard = runtime().block_on(lock.obtain()).unwrap();
        let mut child = Forked::new(|mut parent| {
            assert!(!lock.locked(), "locked() is about this process only");
            assert!(!guard.is_held());
            let runtime = runtime();
            assert!(runtime.block_on(lock.attempt()).unwrap().is_none());
            parent.say(b'w');
            let guard = runtime.block_on(async { timeout(HANG, lock.obtain()).await.expect("hangs").unwrap() });
            assert!(lock.locked());
            drop(guard);
        });
        child.hears(b'w');
        assert!(guard.is_held());
        runtime().block_on(guard.release()).unwrap();
        child.finish();
    }
}

/// A hand-off between the parent's tasks does not concern the child. The parent's watchdog does not run in the child.
#[test]
fn a_child_hands_the_lock_off_in_its_own_tasks() {
    if !in_own_process("fork::a_child_hands_the_lock_off_in_its_own_tasks") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let hand_off = || {
            let runtime = runtime();
            let guard = runtime.block_on(lock.obtain()).unwrap();
            let mut next = Box::pin(lock.obtain());
            assert!(!runtime.block_on(poll_once(next.as_mut())));
            drop(guard);
            // `next` is not polled, so the watchdog must release the lock for the other process.
            Holder::holding(&lock).release();
            drop(runtime.block_on(next).unwrap());
        };
        hand_off();
        Forked::new(|_| hand_off()).finish();
    }
}

/// The child has copies of pending waits, held guards and handles. If it drops them, the parent's are not affected.
#[test]
fn what_a_child_drops_stays_valid_in_its_parent() {
    if !in_own_process("fork::what_a_child_drops_stays_valid_in_its_parent") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let [held, wanted] = ["held", "wanted"].map(|name| kind(&dir.path().join(format!("{name}{number}"))));
        let holder = Holder::holding(&wanted);
        let ours = runtime();
        let guard = ours.block_on(held.obtain()).unwrap();
        let mut copies = Some((begin_wait(&ours, &wanted), guard));
        Forked::new(|_| drop(copies.take())).finish();
        let (waiting, guard) = copies.expect("the parent still has its wait and its guard");
        assert!(guard.is_held());
        holder.release();
        drop(ours.block_on(async { timeout(HANG, waiting).await.expect("hangs").unwrap() }));
        ours.block_on(guard.release()).unwrap();
    }
}

/// The child has copies of the readers' guards. Its readers and its writers begin from nothing.
#[test]
fn copies_of_readers_in_a_child_release_nothing() {
    if !in_own_process("fork::copies_of_readers_in_a_child_release_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, modes) in SHARED_KINDS.iter().enumerate() {
        let path = dir.path().join(number.to_string());
        let (writer, reader) = ((modes.writer)(&path), (modes.reader)(&path));
        let ours = runtime();
        let mut copies = Some([0, 1].map(|_| ours.block_on(reader.attempt()).unwrap().unwrap()));
        Forked::new(|_| {
            let guards = copies.take().unwrap();
            assert!(!reader.locked() && !guards[0].is_held());
            let runtime = runtime();
            let guard = runtime.block_on(reader.attempt()).unwrap().expect("the parent only reads");
            drop(guards);
            assert!(guard.is_held());
            assert!(runtime.block_on(writer.attempt()).unwrap().is_none(), "a writer beside its parent's readers");
            drop(guard);
            assert!(runtime.block_on(writer.attempt()).unwrap().is_none(), "the child has freed its parent's lock");
        })
        .finish();
        let [first, second] = copies.unwrap();
        assert!(first.is_held() && second.is_held());
        assert!(ours.block_on(writer.attempt()).unwrap().is_none());
        ours.block_on(first.release()).unwrap();
        ours.block_on(second.release()).unwrap();
        drop(ours.block_on(writer.attempt()).unwrap().unwrap());
    }
}
