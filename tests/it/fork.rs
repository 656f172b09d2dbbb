//! fork(2) without exec, as worker processes, daemons and crash handlers do: the child uses the library too.
#![expect(unsafe_code, reason = "fork(2) is an unsafe call")]
#![expect(clippy::incompatible_msrv, reason = "only the library keeps to the oldest Rust")]

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::pin::Pin;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile, LockGuard};

use crate::kinds::FILE_KINDS;
use crate::support::{HANG, Holder, in_own_process, poll_once};

/// A forked child that runs a closure and ends. It talks to its parent by two pipes.
struct Forked {
    pid: libc::pid_t,
    from_child: PipeReader,
    to_child: Option<PipeWriter>,
}

/// The child's end of the pipes.
struct Parent {
    to_parent: PipeWriter,
    from_parent: PipeReader,
}

impl Parent {
    fn say(&mut self, word: u8) {
        self.to_parent.write_all(&[word]).unwrap();
    }

    /// Waits until the parent lets the child go on.
    fn wait(&mut self) {
        self.from_parent.read_to_end(&mut Vec::new()).unwrap();
    }
}

impl Forked {
    fn new(child: impl FnOnce(Parent)) -> Self {
        let (from_child, to_parent) = std::io::pipe().unwrap();
        let (from_parent, to_child) = std::io::pipe().unwrap();
        // SAFETY: what the child does until it ends is what these tests are about; it never returns from here.
        match unsafe { libc::fork() } {
            0 => {
                drop((from_child, to_child));
                let work = std::panic::AssertUnwindSafe(|| child(Parent { to_parent, from_parent }));
                let status = std::panic::catch_unwind(work).map_or(1, |()| 0);
                // SAFETY: it ends the process at once.
                unsafe { libc::_exit(status) }
            }
            pid => Self { pid, from_child, to_child: Some(to_child) },
        }
    }

    fn hears(&mut self, word: u8) {
        let mut heard = [0];
        self.from_child.read_exact(&mut heard).expect("the child goes on");
        assert_eq!(heard[0], word);
    }

    /// Lets the child go on, and waits until it has ended well.
    fn finish(mut self) {
        drop(self.to_child.take());
        let mut status = 0;
        // SAFETY: `status` is ours to write.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        assert_eq!(status, 0, "the child failed");
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<LockGuard, LockError>> + 'a>>;

/// Polls a wait until it is sure to have met the holder.
fn begin_wait<'a>(runtime: &Runtime, lock: &'a LockFile) -> Waiting<'a> {
    let mut waiting: Waiting = Box::pin(lock.obtain());
    runtime.block_on(async {
        // Tries on the blocking pool tell nobody when they are done.
        for _ in 0..1_000 {
            assert!(!poll_once(waiting.as_mut()).await, "it is held");
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
            // Its copy of the pipe would keep the holder from seeing the end of it.
            drop(holder.take());
            let guard = runtime().block_on(async { timeout(HANG, waiting.as_mut()).await.expect("hangs").unwrap() });
            parent.say(b'h');
            parent.wait();
            assert!(guard.is_held());
            drop(guard);
        });
        holder.expect("the parent's is still there").release();
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
            assert!(!lock.locked(), "no task of this process has it");
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

/// What the parent passes on in its own tasks is nothing to the child, and nor is its watchdog.
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
            // `next` is not polled, so the watchdog has to let the other process in.
            Holder::holding(&lock).release();
            drop(runtime.block_on(next).unwrap());
        };
        hand_off();
        Forked::new(|_| hand_off()).finish();
    }
}

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[test]
fn a_child_watches_with_an_instance_of_its_own() {
    if !in_own_process("fork::a_child_watches_with_an_instance_of_its_own") {
        return;
    }
    let instances = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        descriptors
            .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.ends_with("anon_inode:inotify")))
            .count()
    };
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let holder = Holder::holding(&lock);
        let ours = runtime();
        let before = instances();
        let watch = |runtime: &Runtime, before: usize| {
            let mut waiting = begin_wait(runtime, &lock);
            runtime.block_on(async {
                let began = std::time::Instant::now();
                while instances() == before {
                    assert!(began.elapsed() < HANG, "it watches with its parent's instance");
                    assert!(!poll_once(waiting.as_mut()).await);
                }
            });
            waiting
        };
        let waiting = watch(&ours, before);
        let parents = instances();
        Forked::new(|_| {
            let runtime = runtime();
            drop(watch(&runtime, parents));
        })
        .finish();
        drop(waiting);
        holder.release();
    }
}

/// Pending waits, held guards and handles are copies in the child. Dropping them there does nothing to the parent's.
#[test]
fn what_a_child_drops_stays_its_parents() {
    if !in_own_process("fork::what_a_child_drops_stays_its_parents") {
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
        let (waiting, guard) = copies.expect("the parent's are still there");
        assert!(guard.is_held());
        holder.release();
        drop(ours.block_on(async { timeout(HANG, waiting).await.expect("hangs").unwrap() }));
        ours.block_on(guard.release()).unwrap();
    }
}
