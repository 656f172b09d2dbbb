//! The one inotify instance of the process, and who waits for its events.
//!
//! The system may refuse an instance or a watch, as a user has only so many of them. Then nobody asks again for a while:
//! the waits poll, and an attempt with each look would cost more than the looks.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Id;
use tokio::sync::Notify;

use crate::sys;
use crate::sys::per_process::PerProcess;
use crate::util::random;

/// The number of files for which a tick wakes the waits although there was no event. Some releases make no event, and
/// this finds them. The number is for the whole process. One timer for each of ten thousand waits would use a tenth of
/// a core.
const PROBES: usize = 25;

/// The number of watches that are removed at once. Each removal takes about 15 µs.
const REMOVALS: usize = 64;

/// How often the drivers together read events that may be mere looks at a file, once they are ahead of that pace by
/// [`BURST`] and no wait has ended meanwhile. Anybody who may read a lock file can open and close it in a loop. Each time is
/// an event, and a wake-up of all its waits.
const PACE: Duration = Duration::from_millis(1);
const BURST: Duration = Duration::from_millis(64);

/// For how long nobody asks again for what the system has refused, at least. At most it is twice as long.
const REFUSED: Duration = Duration::from_secs(2);

/// The kernel's numbers for the watches on a file and on its directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    file: i32,
    dir: Option<i32>,
}

/// What reaches one wait.
#[derive(Debug, Default)]
pub(super) struct Signal {
    pub(super) is_event: AtomicBool,
    /// Nobody reads the events of this watch any more.
    pub(super) is_orphaned: AtomicBool,
    pub(super) notify: Notify,
}

/// A watch descriptor, and the signal of a wait for it. `None` if no wait is left. Then a tick removes the watch: so the
/// removal does not slow down a wait that has succeeded.
type Entry = (i32, Option<Arc<Signal>>);

/// In the order of the descriptors, and mostly added at the end: the kernel has one descriptor for each inode, and a new one
/// is greater than the others.
#[derive(Debug, Default)]
struct Signals(Vec<Entry>);

impl Signals {
    fn add(&mut self, descriptor: i32, signal: &Arc<Signal>) {
        let entry = (descriptor, Some(Arc::clone(signal)));
        let range = self.range(descriptor);
        match &mut self.0[range.clone()] {
            [(_, None)] => self.0[range.start] = entry,
            _ => self.0.insert(range.end, entry),
        }
    }

    fn end(&mut self, descriptor: i32, signal: &Arc<Signal>) {
        let range = self.range(descriptor);
        let is_it = |(_, other): &Entry| other.as_ref().is_some_and(|other| Arc::ptr_eq(other, signal));
        // The kernel may have removed the watch already, because the inode is gone.
        let Some(place) = self.0[range.clone()].iter().position(is_it) else { return };
        match range.len() {
            1 => self.0[range.start].1 = None,
            _ => drop(self.0.remove(range.start + place)),
        }
    }

    fn of(&self, descriptor: i32) -> &[Entry] {
        &self.0[self.range(descriptor)]
    }

    fn range(&self, descriptor: i32) -> Range<usize> {
        let start = self.0.partition_point(|&(other, _)| other < descriptor);
        start..self.0.partition_point(|&(other, _)| other <= descriptor)
    }

    fn remove(&mut self, descriptor: i32) {
        drop(self.0.drain(self.range(descriptor)));
    }
}

/// All watches of the process.
#[derive(Debug, Default)]
pub(super) struct Watches {
    inotify: Option<Arc<OwnedFd>>,
    files: Signals,
    /// Those of the directories of held locks. There is no probe for them.
    dirs: Signals,
    /// The number of waits.
    live: usize,
    /// Whether one has ended since the last events were read.
    has_ended_a_wait: bool,
    /// When all the reads that found nothing but looks would be due, at their pace.
    paced: Option<Instant>,
    /// The runtimes that have a driver.
    driven: Vec<Id>,
    /// The last runtimes that have turned out to have no I/O driver. They are not asked again.
    without_io: VecDeque<Id>,
    /// The watch descriptor after which the next probe starts.
    cursor: i32,
    /// Until when nobody asks for events, as the system has refused them.
    refused_until: Option<Instant>,
    is_refusal_reported: bool,
}

/// How many runtimes without an I/O driver are remembered.
const MOST_REMEMBERED: usize = 64;

/// What a wait has got.
pub(super) struct Added {
    pub(super) descriptors: Descriptors,
    pub(super) signal: Arc<Signal>,
    /// The instance for a new driver, if the runtime has none yet.
    pub(super) undriven: Option<AsyncFd<Arc<OwnedFd>>>,
}

/// Why a wait has got nothing: the error, if that is to be reported.
type Refused = Option<io::Error>;

static WATCHES: PerProcess<Mutex<Watches>> = PerProcess::new();

/// The waits to wake after [`Watches`] is unlocked. A waker may do anything. It may drop its wait, and that locks
/// [`Watches`].
#[must_use]
#[derive(Debug, Default)]
pub(super) struct Due {
    signals: Vec<Arc<Signal>>,
    /// How long the driver waits before it reads again.
    pub(super) pause: Duration,
}

impl Due {
    fn event(&mut self, entries: &[Entry]) {
        for signal in entries.iter().filter_map(|(_, signal)| signal.as_ref()) {
            signal.is_event.store(true, Ordering::Release);
            self.signals.push(Arc::clone(signal));
        }
    }

    pub(super) fn wake(self) {
        self.signals.iter().for_each(|signal| signal.notify.notify_one());
    }
}

impl Watches {
    pub(super) fn get() -> MutexGuard<'static, Self> {
        WATCHES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a watch on `file`, and on the directory `dir` if it may be renamed. `runtime` is the current one.
    pub(super) fn add(
        &mut self,
        events: WatchFlags,
        file: &File,
        dir: Option<&Path>,
        runtime: Id,
    ) -> Result<Added, Refused> {
        let (inotify, undriven) = self.instance(runtime)?;
        // We use the descriptor, because the name may already belong to another file.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = match inotify::add_watch(&*inotify, path, events | WatchFlags::MASK_ADD) {
            Ok(file) => file,
            // The owner of this file may have taken it from us. Others have their events.
            Err(Errno::ACCESS) if self.inotify.is_some() => return Err(None),
            Err(error) => return Err(self.refused(error.into())),
        };
        let renamed = WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR | WatchFlags::MASK_ADD;
        let dir = dir.and_then(|dir| inotify::add_watch(&*inotify, dir, renamed).ok());
        if undriven.is_some() {
            self.driven.push(runtime);
        }
        self.inotify = Some(inotify);
        let signal = Arc::<Signal>::default();
        self.files.add(file, &signal);
        dir.into_iter().for_each(|dir| self.dirs.add(dir, &signal));
        self.live += 1;
        Ok(Added { descriptors: Descriptors { file, dir }, signal, undriven })
    }

    /// The instance; once more for a new driver, if `runtime` has none yet.
    #[expect(clippy::type_complexity, reason = "the parts go different ways")]
    fn instance(&mut self, runtime: Id) -> Result<(Arc<OwnedFd>, Option<AsyncFd<Arc<OwnedFd>>>), Refused> {
        let is_driven = self.driven.contains(&runtime);
        let is_too_early = self.refused_until.is_some_and(|until| Instant::now() < until);
        if is_too_early || self.without_io.contains(&runtime) {
            return Err(None);
        }
        if !is_driven && !sys::has_event_poll() {
            self.remember_without_io(runtime);
            return Err(None);
        }
        let inotify = match self.inotify.clone() {
            Some(inotify) => inotify,
            None => {
                let made = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
                Arc::new(made.map_err(|error| self.refused(error.into()))?)
            }
        };
        if is_driven {
            return Ok((inotify, None));
        }
        match register(Arc::clone(&inotify)) {
            Some(Ok(undriven)) => Ok((inotify, Some(undriven))),
            Some(Err(error)) if error.raw_os_error().is_some() => Err(self.refused(error)),
            // The runtime is shutting down.
            Some(Err(_)) => Err(None),
            None => {
                self.remember_without_io(runtime);
                Err(None)
            }
        }
    }

    /// A program may make a runtime for each of its calls.
    fn remember_without_io(&mut self, runtime: Id) {
        self.without_io.truncate(MOST_REMEMBERED - 1);
        self.without_io.push_front(runtime);
    }

    /// The processes of a user, who share a limit, do not ask again in step.
    fn refused(&mut self, error: io::Error) -> Refused {
        self.refused_until = Some(Instant::now() + REFUSED.mul_f64(1.0 + random::fraction()));
        let is_reported = std::mem::replace(&mut self.is_refusal_reported, true);
        (!is_reported).then_some(error)
    }

    pub(super) fn retire(&mut self, descriptors: Descriptors, signal: &Arc<Signal>) {
        self.live -= 1;
        self.has_ended_a_wait = true;
        self.files.end(descriptors.file, signal);
        descriptors.dir.into_iter().for_each(|dir| self.dirs.end(dir, signal));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.live == 0
    }

    /// Reads the events of inotify and returns the waits that they concern.
    pub(super) fn dispatch(&mut self) -> Due {
        let mut due = Due::default();
        let may_be_looks = self.read(&mut due);
        let now = Instant::now();
        if std::mem::take(&mut self.has_ended_a_wait) {
            self.paced = None;
        }
        if may_be_looks {
            let paced = self.paced.map_or(now, |paced| paced.max(now)) + PACE;
            self.paced = Some(paced);
            due.pause = (paced - now).saturating_sub(BURST);
        }
        due
    }

    /// Returns whether each event is the close of a file by somebody who could not write it. Such a close can be the release
    /// of a lock, or a mere look at the file. `false` if another driver has read all events.
    fn read(&mut self, due: &mut Due) -> bool {
        let (mut looks, mut others) = (0, 0);
        let Some(inotify) = self.inotify.clone() else { return false };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&*inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    others += 1;
                    [&self.files, &self.dirs].iter().for_each(|signals| due.event(&signals.0));
                }
                Ok(event) => {
                    match event.events() {
                        ReadFlags::CLOSE_NOWRITE => looks += 1,
                        _ => others += 1,
                    }
                    let at = event.wd();
                    [&self.files, &self.dirs].iter().for_each(|signals| due.event(signals.of(at)));
                    if event.events().contains(ReadFlags::IGNORED) {
                        self.files.remove(at);
                        self.dirs.remove(at);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return looks > 0 && others == 0,
            }
        }
    }

    /// The next [`PROBES`] files with waits. The ticks go through all files in turn.
    pub(super) fn probe(&mut self) -> Due {
        let mut due = Due::default();
        let (before, after) = self.files.0.split_at(self.files.0.partition_point(|&(file, _)| file <= self.cursor));
        let mut files = 0;
        for (file, signal) in after.iter().chain(before) {
            let Some(signal) = signal else { continue };
            if *file != self.cursor {
                if files == PROBES {
                    break;
                }
                (files, self.cursor) = (files + 1, *file);
            }
            due.signals.push(Arc::clone(signal));
        }
        due
    }

    /// Removes up to [`REMOVALS`] watches for which nobody waits. Returns whether there may be more.
    pub(super) fn clear(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut left = REMOVALS;
        for signals in [&mut self.files, &mut self.dirs] {
            signals.0.retain(|(descriptor, signal)| {
                let is_kept = signal.is_some() || left == 0;
                if !is_kept {
                    left -= 1;
                    let _ = inotify::remove_watch(&**inotify, *descriptor);
                }
                is_kept
            });
        }
        left == 0
    }

    /// A driver ends. The last driver drops the instance. The remaining waits try once more. If they have moved to
    /// another runtime, they make new watches there.
    pub(super) fn leave(&mut self, runtime: Id) -> Due {
        self.driven.retain(|&driven| driven != runtime);
        let mut due = Due::default();
        if !self.driven.is_empty() {
            return due;
        }
        due.event(&self.files.0);
        due.signals.iter().for_each(|signal| signal.is_orphaned.store(true, Ordering::Release));
        self.inotify = None;
        (self.files, self.dirs) = Default::default();
        due
    }
}

/// Registers a descriptor with the current runtime. `None` if the runtime has no I/O driver. Tokio tells that only by a
/// panic, which ends a process with `panic = "abort"`, or with a hook that aborts. So [`Watches::add`] asks only where
/// some runtime of the process has one.
#[allow(deprecated, reason = "the successor is unsafe, and too new for the Tokio versions we support")]
pub(super) fn register<T: AsRawFd>(descriptor: T) -> Option<io::Result<AsyncFd<T>>> {
    catch_unwind(AssertUnwindSafe(|| AsyncFd::with_interest(descriptor, Interest::READABLE))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_runtimes_without_io_are_remembered() {
        let mut watches = Watches::default();
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap().handle().id();
        let runtimes: Vec<_> = (0..2 * MOST_REMEMBERED).map(|_| runtime()).collect();
        runtimes.iter().for_each(|&runtime| watches.remember_without_io(runtime));
        assert_eq!(watches.without_io.len(), MOST_REMEMBERED);
        assert!(runtimes[MOST_REMEMBERED..].iter().all(|runtime| watches.without_io.contains(runtime)));
    }
}
