//! Events for changes of a lock file, from inotify(7). The whole process uses one inotify instance.
//!
//! Every runtime with a wait has one task, the driver. The driver reads the events and wakes the waits that they
//! concern, in all runtimes. When nobody waits any more, each driver ends at its next tick. The last driver closes the
//! instance.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Bound;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::wake_up::WakeUp;
use crate::sys;
use crate::sys::per_process::PerProcess;
use crate::sys::process::Owner;
use crate::util::blocking;
use crate::words::kind::LockKind;

/// The events of a file when its name is removed or changed.
const NAME_CHANGES: WatchFlags = WatchFlags::ATTRIB.union(WatchFlags::MOVE_SELF).union(WatchFlags::DELETE_SELF);

/// How often a driver maintains the watches.
const TICK: Duration = Duration::from_millis(250);

/// The number of files for which a tick wakes the waits although there was no event. Some releases make no event, and
/// this finds them. The number is for the whole process. One timer for each of ten thousand waits would use a tenth of
/// a core.
const PROBES: usize = 25;

/// The number of watches that are removed at once. Each removal takes about 15 µs.
const REMOVALS: usize = 64;

/// A watch on one open file.
#[derive(Debug)]
pub(crate) struct Watch {
    /// It is weak, so that the watch does not keep the file open. The owner of the file decides which thread closes it.
    file: Weak<File>,
    descriptor: i32,
    signal: Arc<Signal>,
    /// The current runtime when the watch was made. Its driver reads the events.
    runtime: Id,
    /// The PID of a holder without a lock on the file. The death of such a holder makes no event on the file.
    holder: Option<u32>,
    process: Option<Box<AsyncFd<OwnedFd>>>,
    owner: Owner,
}

#[derive(Debug, Default)]
struct Signal {
    is_event: AtomicBool,
    /// Nobody reads the events of this watch any more.
    is_orphaned: AtomicBool,
    notify: Notify,
}

impl Watch {
    /// Watches for the release of the lock on `file`, and for the end of its holder, if given. `None` if events are not
    /// available. The caller must look at the file once more before it waits for a [`wake_up`](Self::wake_up).
    pub(crate) fn for_release(kind: LockKind, file: &Arc<File>, holder: Option<u32>) -> Option<Self> {
        // Our holders and the holders of shlock(1) unlink the file or close a descriptor for writing. flock(1) holds
        // its lock on a descriptor for reading.
        let closing = match kind {
            LockKind::Flock => WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE,
            _ => WatchFlags::CLOSE_WRITE,
        };
        Self::new(file, NAME_CHANGES | closing, holder)
    }

    /// Watches for a change of the name of `file`. The rest is the same as in [`for_release`](Self::for_release).
    pub(crate) fn for_loss(file: &Arc<File>) -> Option<Self> {
        Self::new(file, NAME_CHANGES, None)
    }

    fn new(file: &Arc<File>, events: WatchFlags, holder: Option<u32>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let (descriptor, signal, driver) = Watches::get().add(events, file, &runtime)?;
        // `WATCHES` must be unlocked here. A runtime that is shutting down drops the driver at once, and that locks it.
        if let Some(driver) = driver {
            runtime.spawn(driver.drive());
        }
        let process = holder.and_then(sys::process_descriptor);
        let process = process.and_then(register).and_then(Result::ok).map(Box::new);
        let (file, runtime, owner) = (Arc::downgrade(file), runtime.id(), Owner::this_process());
        let watch = Self { file, descriptor, signal, runtime, holder, process, owner };
        // In a runtime that is shutting down, the driver has already ended. If we returned the watch, our task would
        // make watches in a loop, and the shutdown waits for our task.
        (!watch.is_orphaned()).then_some(watch)
    }

    /// Whether this watch still works, in the current runtime, for this file and this holder.
    pub(crate) fn is_on(&self, file: &Arc<File>, holder: Option<u32>) -> bool {
        self.file.as_ptr() == Arc::as_ptr(file) && self.holder == holder && self.is_at_home() && !self.is_orphaned()
    }

    fn is_orphaned(&self) -> bool {
        self.signal.is_orphaned.load(Ordering::Acquire)
    }

    fn is_at_home(&self) -> bool {
        Handle::try_current().is_ok_and(|runtime| runtime.id() == self.runtime)
    }

    /// A part of [`wake_up`](Self::wake_up). This also returns when the wait has moved to another runtime. The first
    /// runtime may not run any more, and then its driver does not run either.
    async fn notified(&self) {
        let mut notified = pin!(self.signal.notify.notified());
        poll_fn(|context| match self.is_at_home() {
            true => notified.as_mut().poll(context),
            false => Poll::Ready(()),
        })
        .await
    }

    /// Waits until something has happened since the last wake-up, or since the watch was made. Cancel safe.
    pub(crate) async fn wake_up(&mut self) -> WakeUp {
        match &self.process {
            None => self.notified().await,
            Some(process) => {
                let ended = Box::pin(async {
                    tokio::select! {
                        () = self.notified() => false,
                        _ = process.readable() => true,
                    }
                });
                if ended.await {
                    // The descriptor stays readable for ever.
                    self.process = None;
                    return WakeUp::Event;
                }
            }
        }
        match self.signal.is_event.swap(false, Ordering::AcqRel) {
            true => WakeUp::Event,
            false => WakeUp::Probe,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // In a forked child, `self` is a copy, and the child's own `Watches` do not contain it.
        if self.owner.is_this_process() {
            Watches::get().retire(self.descriptor, &self.signal);
        }
    }
}

/// All watches of the process.
#[derive(Debug, Default)]
struct Watches {
    inotify: Option<Arc<OwnedFd>>,
    /// The signals by watch descriptor. The kernel has one descriptor for each inode. A watch without signals is
    /// retired. The next tick removes it, so that the removal does not slow down a wait that has succeeded.
    watched: BTreeMap<i32, Vec<Arc<Signal>>>,
    retired: Vec<i32>,
    /// The number of signals.
    live: usize,
    /// The runtimes that have a driver.
    driven: Vec<Id>,
    /// The runtimes that have no I/O driver. A second attempt in such a runtime would print the panic of Tokio again.
    without_io: Vec<Id>,
    /// The watch descriptor after which the next probe starts.
    cursor: i32,
}

static WATCHES: PerProcess<Mutex<Watches>> = PerProcess::new();

/// The waits to wake after [`Watches`] is unlocked. A waker may do anything. It may drop its wait, and that locks
/// [`Watches`].
#[must_use]
#[derive(Debug, Default)]
struct Due(Vec<Arc<Signal>>);

impl Due {
    fn event(&mut self, signals: &[Arc<Signal>]) {
        signals.iter().for_each(|signal| signal.is_event.store(true, Ordering::Release));
        self.0.extend_from_slice(signals);
    }

    fn wake(self) {
        self.0.iter().for_each(|signal| signal.notify.notify_one());
    }
}

impl Watches {
    fn get() -> MutexGuard<'static, Self> {
        WATCHES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&mut self, events: WatchFlags, file: &File, runtime: &Handle) -> Option<(i32, Arc<Signal>, Option<Driver>)> {
        let runtime = runtime.id();
        if self.without_io.contains(&runtime) {
            return None;
        }
        let inotify = match &self.inotify {
            Some(inotify) => Arc::clone(inotify),
            None => Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?),
        };
        let registered = match self.driven.contains(&runtime) {
            true => None,
            false => {
                // In a runtime without timers, `interval` panics. Here the caller panics and not the driver.
                let tick = interval(TICK);
                let Some(inotify) = register(Arc::clone(&inotify)) else {
                    self.without_io.push(runtime);
                    return None;
                };
                Some((inotify.ok()?, tick))
            }
        };
        // We use the descriptor, because the name may already belong to another file.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let descriptor = inotify::add_watch(&*inotify, path, events | WatchFlags::MASK_ADD).ok()?;
        let driver = registered.map(|(inotify, tick)| {
            self.driven.push(runtime);
            Driver { inotify: Some(inotify), tick, runtime, owner: Owner::this_process() }
        });
        self.inotify = Some(inotify);
        let signal = Arc::<Signal>::default();
        self.watched.entry(descriptor).or_default().push(Arc::clone(&signal));
        self.live += 1;
        Some((descriptor, signal, driver))
    }

    fn retire(&mut self, descriptor: i32, signal: &Arc<Signal>) {
        self.live -= 1;
        // The kernel may have removed the watch already, because the inode is gone.
        let Some(signals) = self.watched.get_mut(&descriptor) else { return };
        signals.retain(|other| !Arc::ptr_eq(other, signal));
        if signals.is_empty() {
            self.retired.push(descriptor);
        }
    }

    /// Reads the events of inotify and returns the waits that they concern.
    fn dispatch(&mut self) -> Due {
        let mut due = Due::default();
        let Some(inotify) = self.inotify.clone() else { return due };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&*inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    self.watched.values().for_each(|signals| due.event(signals));
                }
                Ok(event) => {
                    self.watched.get(&event.wd()).into_iter().for_each(|signals| due.event(signals));
                    if event.events().contains(ReadFlags::IGNORED) {
                        self.watched.remove(&event.wd());
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return due,
            }
        }
    }

    /// The next [`PROBES`] files with waits. The ticks go through all files in turn.
    fn probe(&mut self) -> Due {
        let mut due = Due::default();
        let after = self.watched.range((Bound::Excluded(self.cursor), Bound::Unbounded));
        let from_start = self.watched.range(..=self.cursor);
        let live = after.chain(from_start).filter(|(_, signals)| !signals.is_empty());
        let mut last = self.cursor;
        for (&descriptor, signals) in live.take(PROBES) {
            due.0.extend_from_slice(signals);
            last = descriptor;
        }
        self.cursor = last;
        due
    }

    /// Removes up to [`REMOVALS`] retired watches. Returns whether there are more.
    fn clear(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let batch = self.retired.len().saturating_sub(REMOVALS);
        for descriptor in self.retired.drain(batch..) {
            if self.watched.get(&descriptor).is_some_and(Vec::is_empty) {
                self.watched.remove(&descriptor);
                let _ = inotify::remove_watch(&**inotify, descriptor);
            }
        }
        !self.retired.is_empty()
    }

    /// A driver ends. The last driver drops the instance. The remaining waits try once more. If they have moved to
    /// another runtime, they make new watches there.
    fn leave(&mut self, runtime: Id) -> Due {
        self.driven.retain(|&driven| driven != runtime);
        let mut due = Due::default();
        if !self.driven.is_empty() {
            return due;
        }
        self.watched.values().for_each(|signals| due.event(signals));
        due.0.iter().for_each(|signal| signal.is_orphaned.store(true, Ordering::Release));
        self.inotify = None;
        self.watched.clear();
        self.retired.clear();
        due
    }
}

/// Registers a descriptor with the current runtime. `None` if the runtime has no I/O driver: then Tokio panics.
#[allow(deprecated, reason = "the successor is unsafe, and too new for the Tokio versions we support")]
fn register<T: AsRawFd>(descriptor: T) -> Option<io::Result<AsyncFd<T>>> {
    catch_unwind(AssertUnwindSafe(|| AsyncFd::with_interest(descriptor, Interest::READABLE))).ok()
}

/// The task of one runtime that reads the events.
#[derive(Debug)]
struct Driver {
    /// `None` only after the driver has ended.
    inotify: Option<AsyncFd<Arc<OwnedFd>>>,
    tick: Interval,
    runtime: Id,
    owner: Owner,
}

impl Driver {
    async fn drive(mut self) {
        self.tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.tick.reset();
        loop {
            let Some(inotify) = self.inotify.as_ref().filter(|_| self.owner.is_this_process()) else { return };
            tokio::select! {
                ready = inotify.readable() => {
                    let Ok(mut ready) = ready else { return };
                    // Clear first. An event that arrives during the read then makes the descriptor ready again.
                    ready.clear_ready();
                    let due = Watches::get().dispatch();
                    due.wake();
                }
                _ = self.tick.tick() => if !self.tend().await { return },
            }
        }
    }

    /// The work of every tick. Returns `false` when nobody waits any more.
    async fn tend(&mut self) -> bool {
        let (idle, due) = {
            let mut watches = Watches::get();
            // One critical section covers both steps, so that no new wait relies on a driver that is about to end.
            match watches.live {
                0 => (true, watches.leave(self.runtime)),
                _ => (false, watches.probe()),
            }
        };
        due.wake();
        if idle {
            // The close takes some milliseconds, because the kernel removes the watches first.
            let inotify = self.inotify.take();
            let _ = blocking::run(move || drop(inotify.map(AsyncFd::into_inner))).await;
            return false;
        }
        while Watches::get().clear() {
            tokio::task::yield_now().await;
        }
        true
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.inotify.is_some() && self.owner.is_this_process() {
            let due = Watches::get().leave(self.runtime);
            due.wake();
        }
    }
}
