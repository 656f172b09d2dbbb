//! Events for changes of a lock file, from inotify(7). The whole process uses one inotify instance.
//!
//! Every runtime with a wait has one task, the [`driver`]. The driver reads the events and wakes the waits that they
//! concern, in all runtimes. When nobody waits any more, each driver ends at its next tick. The last driver closes the
//! instance.

mod driver;
mod watches;

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;

use rustix::fs::inotify::WatchFlags;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use super::wake_up::WakeUp;
use crate::sys::process::Owner;
use crate::sys::{self, OpenFile};
use crate::words::kind::LockKind;
use crate::words::trace;
use driver::Driver;
use watches::{Added, Descriptors, Signal, Watches, register};

/// The events of a file when its name is removed or changed.
const NAME_CHANGES: WatchFlags = WatchFlags::ATTRIB.union(WatchFlags::MOVE_SELF).union(WatchFlags::DELETE_SELF);

/// A watch on one open file.
#[derive(Debug)]
pub(crate) struct Watch {
    /// It is weak, so that the watch does not keep the file open. The owner of the file decides which thread closes it.
    file: Weak<OpenFile>,
    descriptors: Descriptors,
    signal: Arc<Signal>,
    /// The current runtime when the watch was made. Its driver reads the events.
    runtime: Id,
    /// The PID of a holder without a lock on the file. The death of such a holder makes no event on the file.
    holder: Option<u32>,
    process: Option<Box<AsyncFd<OwnedFd>>>,
    owner: Owner,
}

impl Watch {
    /// Watches for the release of the lock on `file`, and for the end of its holder, if given. `None` if events are not
    /// available. The caller must look at the file once more before it waits for a [`wake_up`](Self::wake_up).
    pub(crate) fn for_release(kind: LockKind, file: &Arc<OpenFile>, holder: Option<u32>) -> Option<Self> {
        // The holders of a shlock unlink the file or close a descriptor for writing. flock(1), and our holders that write
        // no record, have an flock on a descriptor for reading.
        let closing = match kind {
            LockKind::Flock => WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE,
            _ => WatchFlags::CLOSE_WRITE,
        };
        Self::new(file, None, NAME_CHANGES | closing, holder)
    }

    /// Watches for a change of the name of `file` or of the directory of `path`. The rest is the same as in
    /// [`for_release`](Self::for_release).
    pub(crate) fn for_loss(file: &Arc<OpenFile>, path: &Path) -> Option<Self> {
        Self::new(file, path.parent(), NAME_CHANGES, None)
    }

    fn new(file: &Arc<OpenFile>, dir: Option<&Path>, events: WatchFlags, holder: Option<u32>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let added = Watches::get().add(events, file, dir, runtime.id());
        // `WATCHES` must be unlocked here. A runtime that is shutting down drops the driver at once, and that locks it. So
        // may whoever hears of a refusal.
        let Added { descriptors, signal, undriven } = match added {
            Ok(added) => added,
            Err(refused) => {
                refused.into_iter().for_each(|error| trace::no_events(&error));
                return None;
            }
        };
        if let Some(inotify) = undriven {
            runtime.spawn(Driver::new(inotify, runtime.id()).drive());
        }
        let process = holder.and_then(sys::process_descriptor);
        let process = process.and_then(register).and_then(Result::ok).map(Box::new);
        let (file, runtime, owner) = (Arc::downgrade(file), runtime.id(), Owner::this_process());
        let watch = Self { file, descriptors, signal, runtime, holder, process, owner };
        // In a runtime that is shutting down, the driver has already ended. If we returned the watch, our task would
        // make watches in a loop, and the shutdown waits for our task.
        (!watch.is_orphaned()).then_some(watch)
    }

    /// Whether this watch still works, in the current runtime, for this file and this holder.
    pub(crate) fn is_on(&self, file: &Arc<OpenFile>, holder: Option<u32>) -> bool {
        self.file.as_ptr() == Arc::as_ptr(file) && self.holder == holder && self.is_at_home() && !self.is_orphaned()
    }

    fn is_orphaned(&self) -> bool {
        self.signal.is_orphaned.load(Ordering::Acquire)
    }

    fn is_at_home(&self) -> bool {
        Handle::try_current().is_ok_and(|runtime| runtime.id() == self.runtime)
    }

    /// Waits until something has happened since the last wake-up, or since the watch was made. This also returns when the
    /// wait has moved to another runtime. The first runtime may not run any more, and then its driver does not run either.
    /// Cancel safe.
    pub(crate) async fn wake_up(&mut self) -> WakeUp {
        let mut notified = pin!(self.signal.notify.notified());
        let is_holder_dead = poll_fn(|context| {
            if !self.is_at_home() || notified.as_mut().poll(context).is_ready() {
                return Poll::Ready(false);
            }
            match &self.process {
                Some(process) => process.poll_read_ready(context).map(|_| true),
                None => Poll::Pending,
            }
        });
        if is_holder_dead.await {
            // The descriptor stays readable for ever.
            self.process = None;
            return WakeUp::Event;
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
            Watches::get().retire(self.descriptors, &self.signal);
        }
    }
}
