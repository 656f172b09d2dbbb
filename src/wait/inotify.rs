//! Signs that a lock file has changed: one inotify(7) instance for the whole process.
//!
//! Every runtime in which somebody waits has one task, the driver, that reads the events and wakes the waits they are
//! for. Whichever driver reads an event serves all runtimes. When nobody waits any more, drivers end and the instance
//! is closed, with the next tick.

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

use super::Sign;
use crate::blocking;
use crate::kind::LockKind;
use crate::sys;

/// What tells that a file has lost its name, or has got another.
const NAME_CHANGES: WatchFlags = WatchFlags::ATTRIB.union(WatchFlags::MOVE_SELF).union(WatchFlags::DELETE_SELF);

/// How often a driver looks after the watches.
const TICK: Duration = Duration::from_millis(250);

/// How many files' waits a tick wakes although there was no event, for holders that release without one. Rationed for
/// the whole process: ten thousand waits, each with a timer of its own, would cost a tenth of a core.
const PROBES: usize = 25;

/// How many watches are removed in one go; each costs some 15 µs.
const REMOVALS: usize = 64;

/// A watch on one open file.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Weak, so that whoever lets the file go decides where it is closed.
    file: Weak<File>,
    descriptor: i32,
    signal: Arc<Signal>,
    /// Whose driver reads the events, or did when the watch was made.
    runtime: Id,
    /// A foreign holder, whose death is no event on the file.
    holder: Option<u32>,
    process: Option<Box<AsyncFd<OwnedFd>>>,
}

#[derive(Debug, Default)]
struct Signal {
    is_event: AtomicBool,
    /// Nobody reads the events of this watch any more.
    is_orphaned: AtomicBool,
    notify: Notify,
}

impl Watch {
    /// For the release of the lock that `file` stands for, or the end of its holder, if given; `None` where events
    /// cannot be had. The file has to be looked at once more before anybody waits for a [`sign`](Self::sign).
    pub(crate) fn for_release(kind: LockKind, file: &Arc<File>, holder: Option<u32>) -> Option<Self> {
        // Holders made by us and by shlock(1) unlink the file or close what they wrote; flock(1) holds its lock through
        // a descriptor for reading.
        let closing = match kind {
            LockKind::Flock => WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE,
            _ => WatchFlags::CLOSE_WRITE,
        };
        Self::new(file, NAME_CHANGES | closing, holder)
    }

    /// For the loss of `file`'s name; otherwise as [`for_release`](Self::for_release).
    pub(crate) fn for_loss(file: &Arc<File>) -> Option<Self> {
        Self::new(file, NAME_CHANGES, None)
    }

    fn new(file: &Arc<File>, events: WatchFlags, holder: Option<u32>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let (descriptor, signal, driver) = Watches::get().add(events, file, &runtime)?;
        // Outside the lock: a runtime that is shutting down drops the driver here and now.
        if let Some(driver) = driver {
            runtime.spawn(driver.drive());
        }
        let process = holder.and_then(sys::process_descriptor);
        let process = process.and_then(register).and_then(Result::ok).map(Box::new);
        let watch = Self { file: Arc::downgrade(file), descriptor, signal, runtime: runtime.id(), holder, process };
        // Where the runtime is shutting down, the driver has come and gone. To watch anew again and again would keep the
        // shutdown waiting for the task that we are in.
        (!watch.is_orphaned()).then_some(watch)
    }

    /// Whether it still watches, for the runtime we are in, and this file with this holder.
    pub(crate) fn is_on(&self, file: &Arc<File>, holder: Option<u32>) -> bool {
        self.file.as_ptr() == Arc::as_ptr(file) && self.holder == holder && self.is_at_home() && !self.is_orphaned()
    }

    fn is_orphaned(&self) -> bool {
        self.signal.is_orphaned.load(Ordering::Acquire)
    }

    fn is_at_home(&self) -> bool {
        Handle::try_current().is_ok_and(|runtime| runtime.id() == self.runtime)
    }

    /// As a part of [`sign`](Self::sign). Returns also when the wait has moved to another runtime: the first may stand
    /// still, and its driver with it.
    async fn notified(&self) {
        let mut notified = pin!(self.signal.notify.notified());
        poll_fn(|context| match self.is_at_home() {
            true => notified.as_mut().poll(context),
            false => Poll::Ready(()),
        })
        .await
    }

    /// Waits until something happened since the last sign, or since the watch was made. Cancel safe.
    pub(crate) async fn sign(&mut self) -> Sign {
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
                    // It stays readable for ever.
                    self.process = None;
                    return Sign::Event;
                }
            }
        }
        match self.signal.is_event.swap(false, Ordering::AcqRel) {
            true => Sign::Event,
            false => Sign::Probe,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        Watches::get().retire(self.descriptor, &self.signal);
    }
}

/// All watches of the process.
#[derive(Debug)]
struct Watches {
    inotify: Option<Arc<OwnedFd>>,
    /// By watch descriptor, of which there is one for each inode. Without signals: retired, removed at the next tick,
    /// so that no wait that has ended successfully pays for the removal.
    watched: BTreeMap<i32, Vec<Arc<Signal>>>,
    retired: Vec<i32>,
    /// How many signals there are.
    live: usize,
    /// The runtimes that have a driver.
    driven: Vec<Id>,
    /// The runtimes that have no I/O driver. Few, and asking one again would print its panic again.
    without_io: Vec<Id>,
    /// Where the next probe starts.
    cursor: i32,
}

static WATCHES: Mutex<Watches> = Mutex::new(Watches {
    inotify: None,
    watched: BTreeMap::new(),
    retired: Vec::new(),
    live: 0,
    driven: Vec::new(),
    without_io: Vec::new(),
    cursor: 0,
});

/// Whom to wake when [`Watches`] is unlocked again: a waker may do anything, also drop its wait.
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
        WATCHES.lock().unwrap_or_else(PoisonError::into_inner)
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
                // Here, so that where there are no timers our caller panics, not the driver.
                let tick = interval(TICK);
                let Some(inotify) = register(Arc::clone(&inotify)) else {
                    self.without_io.push(runtime);
                    return None;
                };
                Some((inotify.ok()?, tick))
            }
        };
        // By descriptor: the name may stand for another file by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let descriptor = inotify::add_watch(&*inotify, path, events | WatchFlags::MASK_ADD).ok()?;
        let driver = registered.map(|(inotify, tick)| {
            self.driven.push(runtime);
            Driver { inotify: Some(inotify), tick, runtime }
        });
        self.inotify = Some(inotify);
        let signal = Arc::<Signal>::default();
        self.watched.entry(descriptor).or_default().push(Arc::clone(&signal));
        self.live += 1;
        Some((descriptor, signal, driver))
    }

    fn retire(&mut self, descriptor: i32, signal: &Arc<Signal>) {
        self.live -= 1;
        // The kernel may have ended the watch before, with its inode.
        let Some(signals) = self.watched.get_mut(&descriptor) else { return };
        signals.retain(|other| !Arc::ptr_eq(other, signal));
        if signals.is_empty() {
            self.retired.push(descriptor);
        }
    }

    /// Passes on what inotify has to say.
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

    /// The next few waits in turn.
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

    /// Removes retired watches; says whether there are more.
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

    /// A driver ends. The last one takes the instance along: waits that are left try once more and then watch anew, in
    /// another runtime, or never.
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

/// Registers a descriptor with the current runtime; `None` if that has no I/O driver, which only a panic tells.
#[allow(deprecated, reason = "the successor is unsafe, and too new for the Tokio versions we support")]
fn register<T: AsRawFd>(descriptor: T) -> Option<io::Result<AsyncFd<T>>> {
    catch_unwind(AssertUnwindSafe(|| AsyncFd::with_interest(descriptor, Interest::READABLE))).ok()
}

/// The task of one runtime that reads the events.
#[derive(Debug)]
struct Driver {
    /// `None` only at the end.
    inotify: Option<AsyncFd<Arc<OwnedFd>>>,
    tick: Interval,
    runtime: Id,
}

impl Driver {
    async fn drive(mut self) {
        self.tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.tick.reset();
        loop {
            let Some(inotify) = &self.inotify else { return };
            tokio::select! {
                ready = inotify.readable() => {
                    let Ok(mut ready) = ready else { return };
                    // Cleared first: an event that comes while the rest is read makes it ready again.
                    ready.clear_ready();
                    let due = Watches::get().dispatch();
                    due.wake();
                }
                _ = self.tick.tick() => if !self.tend().await { return },
            }
        }
    }

    /// What is due at every tick; `false` when nobody waits any more.
    async fn tend(&mut self) -> bool {
        let (idle, due) = {
            let mut watches = Watches::get();
            // In one breath, so that nobody can count on a driver that is about to leave.
            match watches.live {
                0 => (true, watches.leave(self.runtime)),
                _ => (false, watches.probe()),
            }
        };
        due.wake();
        if idle {
            // Closing an instance waits for the kernel to forget its watches: some milliseconds.
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
        if self.inotify.is_some() {
            let due = Watches::get().leave(self.runtime);
            due.wake();
        }
    }
}
