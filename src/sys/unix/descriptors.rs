//! The descriptors that a forked child gives up.
//!
//! A lock belongs to the open file, which a child shares with its parent. If the child kept its copy, the lock of a parent
//! that is killed would stay taken as long as the child lives, and the parent's release would make no close event. So a
//! handler (pthread_atfork(3)) replaces the copies in the child by a descriptor of nothing.
#![expect(unsafe_code, reason = "the handler may make only async-signal-safe calls, see signal-safety(7)")]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// A place in the list of descriptors.
#[derive(Debug)]
pub(super) struct Listed {
    chunk: &'static Chunk,
    place: usize,
}

const NONE: RawFd = -1;

/// Some places of the list. Chunks are never freed, so the handler can read them at any time.
#[derive(Debug)]
struct Chunk {
    places: [AtomicI32; 64],
    next: AtomicPtr<Chunk>,
}

static FIRST: Chunk = Chunk::new();

/// A chunk in which there may be a free place.
static HINT: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

impl Chunk {
    const fn new() -> Self {
        Self { places: [const { AtomicI32::new(NONE) }; 64], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: the pointer is null or comes from `Box::leak`.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    fn list(&'static self, descriptor: RawFd) -> Option<Listed> {
        let take = |place: &AtomicI32| {
            place.load(Ordering::Relaxed) == NONE
                && place.compare_exchange(NONE, descriptor, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        self.places.iter().position(take).map(|place| Listed { chunk: self, place })
    }

    fn all() -> impl Iterator<Item = &'static Self> {
        std::iter::successors(Some(&FIRST), |chunk| chunk.next())
    }

    /// Appends a new chunk.
    fn append() -> &'static Self {
        let new: &'static Self = Box::leak(Box::new(Self::new()));
        let mut last = &FIRST;
        loop {
            let to = ptr::from_ref(new).cast_mut();
            match last.next.compare_exchange(ptr::null_mut(), to, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return new,
                Err(_) => last = last.next().expect("it is not null"),
            }
        }
    }
}

impl Listed {
    pub(super) fn new(descriptor: RawFd) -> Self {
        // SAFETY: the pointer is null or that of a chunk, and chunks are never freed.
        let hint = unsafe { HINT.load(Ordering::Relaxed).as_ref() }.unwrap_or(&FIRST);
        if let Some(listed) = hint.list(descriptor) {
            return listed;
        }
        loop {
            if let Some(listed) = Chunk::all().find_map(|chunk| chunk.list(descriptor)) {
                HINT.store(ptr::from_ref(listed.chunk).cast_mut(), Ordering::Relaxed);
                return listed;
            }
            Chunk::append();
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.chunk.places[self.place].store(NONE, Ordering::Release);
        HINT.store(ptr::from_ref(self.chunk).cast_mut(), Ordering::Relaxed);
    }
}

/// Runs in a forked child before anything else does. Replaces the listed descriptors there.
pub(super) fn give_up() {
    let mut listed = Chunk::all().flat_map(|chunk| &chunk.places).map(|place| place.load(Ordering::Acquire));
    let Some(first) = listed.find(|&descriptor| descriptor != NONE) else { return };
    let mut pipe = [NONE; 2];
    // SAFETY: pipe(2), close(2) and dup2(2) are async-signal-safe, and `pipe` has two elements.
    unsafe {
        if libc::pipe(pipe.as_mut_ptr()) != 0 {
            return;
        }
        libc::close(pipe[1]);
        for descriptor in std::iter::once(first).chain(listed.filter(|&descriptor| descriptor != NONE)) {
            if libc::dup2(pipe[0], descriptor) == descriptor {
                libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        libc::close(pipe[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_has_one_place_as_long_as_it_is_listed() {
        // Higher than any descriptor of the tests that run at the same time.
        let descriptors = 1_000_000..1_000_200;
        let places = |descriptor| {
            Chunk::all()
                .flat_map(|chunk| &chunk.places)
                .filter(|place| place.load(Ordering::Acquire) == descriptor)
                .count()
        };
        for _again in 0..3 {
            let listed: Vec<_> = descriptors.clone().map(Listed::new).collect();
            assert!(descriptors.clone().all(|descriptor| places(descriptor) == 1));
            drop(listed);
            assert!(descriptors.clone().all(|descriptor| places(descriptor) == 0));
        }
        assert!(Chunk::all().count() < 8, "the places were not used again");
    }
}
