//! The one inotify instance of the process, and who waits for its events.
//!
//! The system may refuse an instance or a watch, as a user has only so many of them. Then nobody asks again for a while:
//! the waits poll, and an attempt with each look would cost more than the looks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Bound;
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

/// All watches of the process.
#[derive(Debug, Default)]
pub(super) struct Watches {
    inotify: Option<Arc<OwnedFd>>,
    /// The signals by watch descriptor. The kernel has one descriptor for each inode. A watch without signals is
    /// retired. The next tick removes it, so that the removal does not slow down a wait that has succeeded.
    files: BTreeMap<i32, Vec<Arc<Signal>>>,
    /// The same for the directories of held locks. There is no probe for them.
    dirs: BTreeMap<i32, Vec<Arc<Signal>>>,
    retired: Vec<i32>,
    /// The number of waits.
    live: usize,
    /// Whether one has ended since the last events were read.
    has_ended_a_wait: bool,
    /// When all the reads that found nothing but looks would be due, at their pace.
    paced: Option<Instant>,
    /// The runtimes that have a driver.
    driven: Vec<Id>,
    /// The runtimes that have no I/O driver. They are not asked again.
    without_io: Vec<Id>,
    /// The watch descriptor after which the next probe starts.
    cursor: i32,
    /// Until when nobody asks for events, as the system has refused them.
    refused_until: Option<Instant>,
    is_refusal_reported: bool,
}

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
    fn event(&mut self, signals: &[Arc<Signal>]) {
        signals.iter().for_each(|signal| signal.is_event.store(true, Ordering::Release));
        self.signals.extend_from_slice(signals);
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
        self.files.entry(file).or_default().push(Arc::clone(&signal));
        dir.into_iter().for_each(|dir| self.dirs.entry(dir).or_default().push(Arc::clone(&signal)));
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
            self.without_io.push(runtime);
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
                self.without_io.push(runtime);
                Err(None)
            }
        }
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
        let Self { files, dirs, retired, .. } = self;
        for (watched, descriptor) in [(files, Some(descriptors.file)), (dirs, descriptors.dir)] {
            // The kernel may have removed the watch already, because the inode is gone.
            let Some((descriptor, signals)) = descriptor.and_then(|at| Some((at, watched.get_mut(&at)?))) else {
                continue;
            };
            signals.retain(|other| !Arc::ptr_eq(other, signal));
            if signals.is_empty() {
                retired.push(descriptor);
            }
        }
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
                    self.files.values().chain(self.dirs.values()).for_each(|signals| due.event(signals));
                }
                Ok(event) => {
                    match event.events() {
                        ReadFlags::CLOSE_NOWRITE => looks += 1,
                        _ => others += 1,
                    }
                    let at = event.wd();
                    let signals = self.files.get(&at).into_iter().chain(self.dirs.get(&at));
                    signals.for_each(|signals| due.event(signals));
                    if event.events().contains(ReadFlags::IGNORED) {
                        self.files.remove(&at);
                        self.dirs.remove(&at);
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
        let after = self.files.range((Bound::Excluded(self.cursor), Bound::Unbounded));
        let from_start = self.files.range(..=self.cursor);
        let live = after.chain(from_start).filter(|(_, signals)| !signals.is_empty());
        let mut last = self.cursor;
        for (&descriptor, signals) in live.take(PROBES) {
            due.signals.extend_from_slice(signals);
            last = descriptor;
        }
        self.cursor = last;
        due
    }

    /// Removes up to [`REMOVALS`] retired watches. Returns whether there are more.
    pub(super) fn clear(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let batch = self.retired.len().saturating_sub(REMOVALS);
        for descriptor in self.retired.drain(batch..) {
            let watched = if self.files.contains_key(&descriptor) { &mut self.files } else { &mut self.dirs };
            if watched.get(&descriptor).is_some_and(Vec::is_empty) {
                watched.remove(&descriptor);
                let _ = inotify::remove_watch(&**inotify, descriptor);
            }
        }
        !self.retired.is_empty()
    }

    /// A driver ends. The last driver drops the instance. The remaining waits try once more. If they have moved to
    /// another runtime, they make new watches there.
    pub(super) fn leave(&mut self, runtime: Id) -> Due {
        self.driven.retain(|&driven| driven != runtime);
        let mut due = Due::default();
        if !self.driven.is_empty() {
            return due;
        }
        self.files.values().for_each(|signals| due.event(signals));
        due.signals.iter().for_each(|signal| signal.is_orphaned.store(true, Ordering::Release));
        self.inotify = None;
        self.files.clear();
        self.dirs.clear();
        self.retired.clear();
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
