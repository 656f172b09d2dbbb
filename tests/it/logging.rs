//! What is logged, and when: a subscriber records the events.
//!
//! Each test runs in its own process. The reason is a cache in tracing: if a thread without a subscriber logs first,
//! tracing may assume that no subscriber of any thread is interested.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_lockfile::{LockError, LockFile, Semaphore};
use tracing::field::{Field, Visit};
use tracing::span::Attributes;
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Id, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::support::{Holder, each_file_kind, in_own_process, take};

/// An event or a new span.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) level: Level,
    target: String,
    /// With `message` among them.
    pub(crate) fields: BTreeMap<String, String>,
    /// Those of them that are numbers.
    pub(crate) numbers: BTreeMap<String, u64>,
    /// The span that contains it.
    span: Option<&'static str>,
}

impl Visit for Entry {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.numbers.insert(field.name().into(), value);
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name().into(), format!("{value:?}"));
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder {
    pub(crate) events: Arc<Mutex<Vec<Entry>>>,
    spans: Arc<Mutex<Vec<(&'static str, Entry)>>>,
}

impl<S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let span = context.event_span(event).map(|span| span.name());
        let mut entry = entry(metadata, span);
        event.record(&mut entry);
        self.events.lock().unwrap().push(entry);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _id: &Id, _context: Context<'_, S>) {
        let mut entry = entry(attributes.metadata(), None);
        attributes.record(&mut entry);
        self.spans.lock().unwrap().push((attributes.metadata().name(), entry));
    }
}

fn entry(metadata: &tracing::Metadata<'_>, span: Option<&'static str>) -> Entry {
    let (fields, numbers) = (BTreeMap::new(), BTreeMap::new());
    Entry { level: *metadata.level(), target: metadata.target().into(), fields, numbers, span }
}

impl Recorder {
    /// Records the events of this thread until the returned guard is dropped.
    pub(crate) fn listen() -> (Self, DefaultGuard) {
        let recorder = Self::default();
        let listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder.clone()));
        (recorder, listening)
    }

    /// The events of this crate that have `word` in their message.
    pub(crate) fn about(&self, word: &str) -> Vec<Entry> {
        let events = self.events.lock().unwrap();
        let ours = events.iter().filter(|event| event.target.starts_with("tokio_lockfile"));
        ours.filter(|event| event.fields["message"].contains(word)).cloned().collect()
    }

    pub(crate) fn only(&self, word: &str) -> Entry {
        let [entry] = &self.about(word)[..] else { panic!("{word}: {:?}", self.events) };
        entry.clone()
    }
}

#[tokio::test]
async fn acquired_and_released() {
    if !in_own_process("logging::acquired_and_released") {
        return;
    }
    // Where a release may take long, it ends on another thread.
    let recorder = Recorder::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(recorder.clone())).unwrap();
    let recorder = &recorder;
    each_file_kind(|kind, path| async move {
        recorder.events.lock().unwrap().clear();
        recorder.spans.lock().unwrap().clear();
        let guard = kind(&path).obtain().await.unwrap();
        assert!(tracing::Span::current().is_none());
        guard.release().await.unwrap();
        let (acquired, released) = (recorder.only("acquired"), recorder.only("released"));
        assert_eq!((acquired.level, released.level), (Level::DEBUG, Level::DEBUG));
        // The span has the path and the kind.
        assert_eq!(acquired.fields.keys().collect::<Vec<_>>(), ["message", "waited_ms"]);
        assert_eq!(released.fields.keys().collect::<Vec<_>>(), ["held_ms", "message", "path"]);
        assert_eq!(released.fields["path"], path.display().to_string());
        assert!(acquired.numbers.contains_key("waited_ms") && released.numbers.contains_key("held_ms"));
        assert_eq!((acquired.span, released.span), (Some("obtain"), None));
        let spans = recorder.spans.lock().unwrap();
        let [("obtain", span)] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(span.level, Level::DEBUG);
        assert_eq!(span.fields.keys().collect::<Vec<_>>(), ["kind", "path"]);
        assert_eq!(span.fields["path"], path.display().to_string());
    })
    .await;
}

#[tokio::test]
async fn an_event_outside_the_span_shows_the_lock() {
    if !in_own_process("logging::an_event_outside_the_span_shows_the_lock") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let (recorder, _listening) = Recorder::listen();
        take(&kind(&path)).await.release().await.unwrap();
        let acquired = recorder.only("acquired");
        assert_eq!(acquired.fields.keys().collect::<Vec<_>>(), ["kind", "message", "path", "waited_ms"]);
        assert_eq!(acquired.fields["path"], path.display().to_string());
    })
    .await;
}

/// The span is at DEBUG.
#[tokio::test(start_paused = true)]
async fn a_log_without_spans_shows_the_lock_and_the_end_of_a_reported_wait() {
    if !in_own_process("logging::a_log_without_spans_shows_the_lock_and_the_end_of_a_reported_wait") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        let guard = take(&lock).await;
        let recorder = Recorder::default();
        let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO).with(recorder.clone());
        let _listening = tracing::subscriber::set_default(subscriber);
        let next = tokio::spawn({
            let lock = lock.clone();
            async move { lock.obtain().await.unwrap() }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(guard);
        next.await.unwrap().release().await.unwrap();
        let [after_a_second, after_three] = &recorder.about("waiting")[..] else { panic!("{recorder:?}") };
        let acquired = recorder.only("acquired");
        for entry in [after_a_second, after_three, &acquired] {
            assert_eq!((entry.level, entry.span), (Level::INFO, None));
            assert_eq!(entry.fields["path"], path.display().to_string());
            assert_eq!(entry.fields["kind"], lock.kind().to_string());
        }
        assert!(after_three.numbers["waited_ms"] >= 3_000 && acquired.numbers["waited_ms"] >= 5_000);
        assert_eq!(recorder.about("").len(), 3, "{recorder:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_names_the_holder_at_growing_intervals() {
    if !in_own_process("logging::a_long_wait_names_the_holder_at_growing_intervals") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let (recorder, _listening) = Recorder::listen();
        let lock = kind(&path);
        let holder = Holder::holding(&lock);
        let error = lock.obtain_timeout(Duration::from_secs(12)).await.unwrap_err();
        assert!(matches!(error, LockError::TimedOut { .. }), "{error:?}");
        let waiting = recorder.about("waiting");
        // After 1, 3 and 7 seconds.
        assert_eq!(waiting.len(), 3, "{waiting:?}");
        for entry in waiting {
            assert_eq!(entry.level, Level::INFO);
            assert_eq!(entry.span, Some("obtain"));
            assert_eq!(entry.fields["holder.pid"], holder.pid().to_string());
            assert!(entry.fields.contains_key("holder.name"), "{entry:?}");
            assert!(entry.fields["message"].contains(&format!("held by pid {} (", holder.pid())), "{entry:?}");
        }
        holder.release();
    })
    .await;
}

/// Whoever has the turn waits for all locks at once, and the others for the turn.
#[tokio::test(start_paused = true)]
async fn each_task_that_waits_for_a_permit_has_one_report() {
    if !in_own_process("logging::each_task_that_waits_for_a_permit_has_one_report") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let permits = Semaphore::new((0..50).map(|_| LockFile::null()));
    let mut guards = Vec::new();
    for _ in 0..permits.permits() {
        guards.push(permits.obtain().await.unwrap());
    }
    let wait = || {
        tokio::spawn({
            let permits = permits.clone();
            async move { permits.obtain().await }
        })
    };
    let waits: Vec<_> = (0..20).map(|_| wait()).collect();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let waiting = recorder.about("waiting");
    assert_eq!(waiting.len(), 20, "{waiting:?}");
    drop(guards);
    for wait in waits {
        drop(wait.await.unwrap().unwrap());
    }
    let told = recorder.about("acquired").into_iter().filter(|entry| entry.level == Level::INFO);
    assert_eq!(told.count(), 20);
}

#[tokio::test]
async fn a_takeover_is_a_warning() {
    if !in_own_process("logging::a_takeover_is_a_warning") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let (recorder, _listening) = Recorder::listen();
        let lock = kind(&path);
        let holder = Holder::holding(&lock);
        let pid = holder.pid();
        holder.kill();
        take(&lock).await.release().await.unwrap();
        let acquired = recorder.only("acquired");
        assert_eq!(acquired.level, Level::WARN);
        assert_eq!(acquired.fields["holder.pid"], pid.to_string());
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_is_a_warning_also_when_the_guard_is_dropped() {
    if !in_own_process("logging::a_lost_lock_is_a_warning_also_when_the_guard_is_dropped") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let (recorder, _listening) = Recorder::listen();
        let guard = take(&kind(&path)).await;
        std::fs::remove_file(&path).unwrap();
        drop(guard);
        let lost = recorder.only("lost");
        assert_eq!(lost.level, Level::WARN);
        assert_eq!(lost.fields["reason"], "it was removed");
        assert!(lost.numbers.contains_key("held_ms"));
        assert_eq!(recorder.about("released").len(), 0);
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_loss_is_logged_once_when_it_is_noticed() {
    if !in_own_process("logging::a_loss_is_logged_once_when_it_is_noticed") {
        return;
    }
    each_file_kind(|kind, path| async move {
        let (recorder, _listening) = Recorder::listen();
        let guard = take(&kind(&path)).await;
        std::fs::remove_file(&path).unwrap();
        guard.lost().await;
        assert_eq!(recorder.only("lost").fields["reason"], "it was removed");
        assert!(recorder.only("lost").numbers.contains_key("held_ms"));
        guard.lost().await;
        assert!(guard.release().await.is_err());
        recorder.only("lost");
    })
    .await;
}

/// No descriptor is left for inotify, as where the instances of a user are used up.
#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[tokio::test]
async fn that_events_are_refused_is_logged_once_and_they_come_back() {
    use crate::support::{HANG, poll_once};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::os::fd::AsRawFd;

    if !in_own_process("logging::that_events_are_refused_is_logged_once_and_they_come_back") {
        return;
    }
    let has_inotify = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        descriptors
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|file| file.ends_with("anon_inode:inotify"))
    };
    let dir = tempfile::TempDir::new().unwrap();
    let mut guards = Vec::new();
    for name in ["1", "2", "3"] {
        guards.push(take(&LockFile::native(dir.path().join(name)).unwrap()).await);
    }
    let limit = getrlimit(Resource::Nofile);
    let first_free = std::fs::File::open("/").unwrap().as_raw_fd();
    setrlimit(Resource::Nofile, Rlimit { current: Some(first_free as u64), ..limit }).unwrap();
    let (recorder, _listening) = Recorder::listen();
    for guard in &guards[..2] {
        let mut lost = Box::pin(guard.lost());
        assert!(!poll_once(lost.as_mut()).await);
        std::fs::remove_file(guard.path().unwrap()).unwrap();
        lost.await;
    }
    let warning = recorder.only("inotify");
    assert_eq!((warning.level, &*warning.fields["error"]), (Level::WARN, "Too many open files (os error 24)"));
    assert!(warning.fields["message"].contains("fs.inotify.max_user_instances"), "{warning:?}");

    setrlimit(Resource::Nofile, limit).unwrap();
    let come_back = async {
        while !has_inotify() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        reason = guards[2].lost() => panic!("{reason}"),
        come_back = tokio::time::timeout(HANG, come_back) => come_back.expect("they do not"),
    }
    recorder.only("inotify");
}

/// The watchdog, which releases a lock that no task takes, goes on after the panic.
#[cfg(unix)]
#[tokio::test]
async fn a_subscriber_that_panics_does_not_keep_other_processes_out() {
    if !in_own_process("logging::a_subscriber_that_panics_does_not_keep_other_processes_out") {
        return;
    }
    use std::sync::atomic::{AtomicBool, Ordering};

    static HAS_PANICKED: AtomicBool = AtomicBool::new(false);
    struct Panicker;
    impl<S: Subscriber> Layer<S> for Panicker {
        fn on_event(&self, _event: &Event<'_>, _context: Context<'_, S>) {
            if std::thread::current().name() == Some("lockfile-watchdog") {
                HAS_PANICKED.store(true, Ordering::SeqCst);
                panic!("the subscriber panics on purpose: this is part of the test");
            }
        }
    }
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Panicker)).unwrap();
    each_file_kind(|kind, path| async move {
        let lock = kind(&path);
        HAS_PANICKED.store(false, Ordering::SeqCst);
        while !HAS_PANICKED.load(Ordering::SeqCst) {
            let guard = take(&lock).await;
            let mut next = Box::pin(lock.obtain());
            assert!(!crate::support::poll_once(next.as_mut()).await);
            drop(guard);
            // If the watchdog looked before the file was gone, it found no loss. Then the test tries again.
            let _ = std::fs::remove_file(&path);
            let began = std::time::Instant::now();
            while !HAS_PANICKED.load(Ordering::SeqCst) && began.elapsed() < Duration::from_millis(100) {
                std::thread::yield_now();
            }
        }
        let guard = take(&lock).await;
        let mut next = Box::pin(lock.obtain());
        assert!(!crate::support::poll_once(next.as_mut()).await);
        drop(guard);
        // `next` is not polled, so only the watchdog can release the lock for this process.
        Holder::holding(&lock).release();
    })
    .await;
}

/// Each look for a holder takes a thread of the blocking pool.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn the_reports_of_many_waits_do_not_take_many_threads() {
    if !in_own_process("logging::the_reports_of_many_waits_do_not_take_many_threads") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let dir = tempfile::tempdir().unwrap();
    let locks: Vec<_> = (0..200).map(|name| LockFile::flock(dir.path().join(name.to_string())).unwrap()).collect();
    let _programs: Vec<_> = locks.iter().map(crate::other_program::OtherProgram::holding).collect();
    let waits: Vec<_> = locks
        .into_iter()
        .map(|lock| tokio::spawn(async move { lock.obtain_timeout(Duration::from_secs(2)).await }))
        .collect();
    for wait in waits {
        assert!(matches!(wait.await.unwrap(), Err(LockError::TimedOut { holder: Some(_), .. })));
    }
    assert_eq!(recorder.about("waiting").len(), 200);
    assert!(crate::other_program::threads() < 50, "{}", crate::other_program::threads());
}

/// A report of a wait is due in the first runtime when the wait moves to the second one.
#[test]
fn a_wait_that_reports_goes_on_in_another_runtime() {
    if !in_own_process("logging::a_wait_that_reports_goes_on_in_another_runtime") {
        return;
    }
    let (_recorder, _listening) = Recorder::listen();
    let new_runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (number, kind) in crate::kinds::FILE_KINDS.iter().enumerate() {
        let lock = kind(&dir.path().join(number.to_string()));
        let first = new_runtime();
        let guard = first.block_on(take(&lock));
        let mut wait = Box::pin(lock.obtain_timeout(crate::support::HANG));
        assert!(!first.block_on(crate::support::poll_once(wait.as_mut())));
        drop(first);
        new_runtime().block_on(async {
            assert!(!crate::support::poll_once(wait.as_mut()).await);
            drop(guard);
            drop(wait.await.unwrap());
        });
    }
}

/// The lock of a guard whose drop is logged to a subscriber that panics. On Windows a drop logs on another thread.
#[cfg(unix)]
#[tokio::test]
async fn a_subscriber_that_panics_at_a_drop_leaves_the_lock_free() {
    if !in_own_process("logging::a_subscriber_that_panics_at_a_drop_leaves_the_lock_free") {
        return;
    }
    struct Panicker;
    impl<S: Subscriber> Layer<S> for Panicker {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            if event.fields().any(|field| field.name() == "held_ms") {
                panic!("the subscriber panics on purpose: this is part of the test");
            }
        }
    }
    let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(Panicker));
    crate::support::each_kind(|lock, same| async move {
        for somebody_waits in [false, true] {
            let guard = take(&lock).await;
            let mut next = Box::pin(same.obtain());
            if somebody_waits {
                assert!(!crate::support::poll_once(next.as_mut()).await);
            }
            let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(guard)));
            assert!(dropped.is_err(), "nothing was logged");
            assert!(!lock.locked());
            let next = next.await.unwrap();
            assert!(next.is_held());
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(next))).is_err());
        }
    })
    .await;
}

/// The same where the question whether anybody listens panics.
#[cfg(unix)]
#[tokio::test]
async fn a_subscriber_that_panics_when_a_drop_asks_for_it_leaves_the_lock_free() {
    if !in_own_process("logging::a_subscriber_that_panics_when_a_drop_asks_for_it_leaves_the_lock_free") {
        return;
    }
    use std::sync::atomic::{AtomicBool, Ordering};
    static IS_DROP: AtomicBool = AtomicBool::new(false);
    struct Panicker;
    impl<S: Subscriber> Layer<S> for Panicker {
        fn register_callsite(&self, _metadata: &'static tracing::Metadata<'static>) -> tracing::subscriber::Interest {
            tracing::subscriber::Interest::sometimes()
        }

        fn enabled(&self, _metadata: &tracing::Metadata<'_>, _context: Context<'_, S>) -> bool {
            if IS_DROP.load(Ordering::SeqCst) {
                panic!("the subscriber panics on purpose: this is part of the test");
            }
            false
        }
    }
    let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(Panicker));
    crate::support::each_kind(|lock, same| async move {
        for somebody_waits in [false, true] {
            let guard = take(&lock).await;
            let mut next = Box::pin(same.obtain());
            if somebody_waits {
                assert!(!crate::support::poll_once(next.as_mut()).await);
            }
            IS_DROP.store(true, Ordering::SeqCst);
            let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(guard)));
            IS_DROP.store(false, Ordering::SeqCst);
            assert!(dropped.is_err(), "nobody was asked");
            assert!(!lock.locked(), "it counts as held");
            assert!(next.await.unwrap().is_held());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn only_a_task_that_waits_for_its_own_lock_gets_a_warning() {
    if !in_own_process("logging::only_a_task_that_waits_for_its_own_lock_gets_a_warning") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let lock = LockFile::null();
    let guard = lock.obtain().await.unwrap();
    assert!(lock.obtain_timeout(Duration::from_secs(2)).await.is_err());
    assert_eq!(recorder.only("waiting").level, Level::INFO);
    assert_eq!(recorder.only("waiting").fields["holder.pid"], std::process::id().to_string());
    assert_eq!(recorder.only("this very task").level, Level::WARN);

    let other = tokio::spawn(async move { lock.obtain_timeout(Duration::from_secs(2)).await.is_err() });
    assert!(other.await.unwrap());
    assert_eq!(recorder.about("waiting").len(), 2);
    recorder.only("this very task");
    drop(guard);
}

/// A lock does not change its mode: the writer would wait for itself as a reader.
#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_to_write_gets_a_warning() {
    if !in_own_process("logging::a_reader_that_waits_to_write_gets_a_warning") {
        return;
    }
    let (recorder, _listening) = Recorder::listen();
    let writer = LockFile::null();
    let reader = writer.shared().unwrap();
    let guards = [reader.obtain().await.unwrap(), reader.obtain().await.unwrap()];
    let write = || writer.obtain_timeout(Duration::from_secs(2));
    assert!(write().await.is_err());
    assert_eq!(recorder.only("this very task").level, Level::WARN);
    let [first, second] = guards;
    drop(first);
    let reading = tokio::spawn({
        let reader = reader.clone();
        async move { reader.obtain().await.unwrap() }
    });
    let other = reading.await.unwrap();
    assert!(write().await.is_err());
    assert_eq!(recorder.about("this very task").len(), 2);
    drop(second);
    assert!(write().await.is_err());
    assert_eq!(recorder.about("this very task").len(), 2, "another task reads");
    drop(other);
}
