//! What a forked child keeps of its parent's open lock files and watches: nothing.
#![expect(unsafe_code, reason = "kill(2) and waitpid(2) are unsafe calls")]

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
use tokio::runtime::Runtime;
use tokio_lockfile::LockFile;

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
use crate::fork::begin_wait;
use crate::fork::{Forked, runtime};
use crate::kinds::FILE_KINDS;
use crate::support::in_own_process;
#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
use crate::support::{HANG, Holder, poll_once};

#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[test]
fn a_child_watches_with_an_instance_of_its_own() {
    if !in_own_process("fork_files::a_child_watches_with_an_instance_of_its_own") {
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
                    assert!(began.elapsed() < HANG, "the child has no inotify instance of its own");
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

/// The child has no copy of the open file, so the release closes it for good. That is the event on which others wait.
#[test]
#[cfg(target_os = "linux")]
fn a_release_makes_its_close_event_although_a_child_lives() {
    if !in_own_process("fork_files::a_release_makes_its_close_event_although_a_child_lives") {
        return;
    }
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let ours = runtime();
    let guard = ours.block_on(LockFile::flock(&path).unwrap().obtain()).unwrap();
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&events, &path, WatchFlags::CLOSE_WRITE).unwrap();
    let mut child = Forked::new(|mut parent| {
        parent.say(b'l');
        parent.wait();
    });
    child.hears(b'l');
    ours.block_on(guard.release()).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let event = Reader::new(&events, &mut buffer).next().expect("there is no event").events();
    assert!(event.contains(ReadFlags::CLOSE_WRITE), "{event:?}");
    child.finish();
}

#[test]
fn a_killed_holders_lock_is_free_although_a_child_of_it_lives() {
    if !in_own_process("fork_files::a_killed_holders_lock_is_free_although_a_child_of_it_lives") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let mut holder = Forked::new(|mut parent| {
            let _guard = runtime().block_on(lock.obtain()).unwrap();
            let mut grandchild = Forked::new(|mut holder| {
                holder.say(b'l');
                parent.wait();
            });
            grandchild.hears(b'l');
            parent.say(b'h');
            // Until the kill.
            grandchild.finish();
        });
        holder.hears(b'h');
        // SAFETY: the child exists, because nobody has waited for it yet.
        assert_eq!(unsafe { libc::kill(holder.pid, libc::SIGKILL) }, 0);
        // SAFETY: a null pointer means that the status is not wanted.
        assert_eq!(unsafe { libc::waitpid(holder.pid, std::ptr::null_mut(), 0) }, holder.pid);
        let guard = runtime().block_on(lock.attempt()).unwrap().expect("the child of the dead holder keeps the lock");
        drop(guard);
        // The child of the dead holder ends when this pipe ends.
        drop(holder.to_child.take());
    }
}
