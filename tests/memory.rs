//! How much memory a wait takes, as the allocator counts it.

#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio_lockfile::LockFile;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator needs it; this one passes everything on to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// Each wait has a descriptor open, and so has each holder.
const WAITS: usize = 300;

#[tokio::test]
async fn ten_thousand_waits_would_take_few_megabytes() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..WAITS).map(|number| dir.path().join(number.to_string())).collect();
    let hold = |path| {
        let file = File::create(path).unwrap();
        file.lock().unwrap();
        file
    };
    let _held: Vec<File> = paths.iter().map(hold).collect();
    let without = allocated();
    let locks: Vec<LockFile> = paths.iter().map(|path| LockFile::flock(path).unwrap()).collect();
    let with_handles = allocated();
    let mut waits = Vec::with_capacity(WAITS);
    for lock in &locks {
        let mut wait = Box::pin(lock.obtain());
        for _ in 0..3 {
            let is_ready = poll_fn(|context| Poll::Ready(wait.as_mut().poll(context).is_ready())).await;
            assert!(!is_ready, "it is held");
            tokio::task::yield_now().await;
        }
        waits.push(wait);
    }
    let (handle, wait) = ((with_handles - without) / WAITS, (allocated() - with_handles) / WAITS);
    println!("a handle takes {handle} bytes, a wait {wait}");
    assert!(handle <= 632, "a handle takes {handle} bytes");
    assert!(wait <= 912, "a wait takes {wait} bytes");
}
