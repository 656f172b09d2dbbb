//! What is logged. The names of spans, events and fields are only here. The crate's front page lists them, and a test
//! compares the two. A name and its fields stay; a message is for people.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{DisplayValue, display};
use tracing::{Level, Span, debug, debug_span, enabled, info, warn};

use super::error::{LockError, LostReason};
use super::escape::Escaped;
use super::holder::{Brief, Holder};
use super::kind::LockKind;
use super::target::{Address, Target};

const TARGET: &str = "tokio_lockfile";

const OBTAIN: &str = "obtain";

/// The number of this error is the same on every Linux.
const EMFILE: i32 = 24;

/// Around a wait.
pub(crate) fn obtain_span(target: &Target) -> Span {
    debug_span!(target: TARGET, OBTAIN, path = %target.address, kind = %target.kind)
}

pub(crate) fn waiting_is_heard() -> bool {
    enabled!(target: TARGET, Level::INFO)
}

pub(crate) fn warnings_are_heard() -> bool {
    enabled!(target: TARGET, Level::WARN)
}

/// The path, for an event that may be inside the `obtain` span, which shows it already.
fn path(target: &Target) -> Option<DisplayValue<&Address>> {
    (!is_in_obtain_span()).then(|| display(&target.address))
}

/// The kind, likewise.
fn kind(target: &Target) -> Option<DisplayValue<LockKind>> {
    (!is_in_obtain_span()).then(|| display(target.kind))
}

fn is_in_obtain_span() -> bool {
    Span::current().metadata().is_some_and(|span| span.target() == TARGET && span.name() == OBTAIN)
}

/// Whole milliseconds, as a number that can be aggregated.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An event about the lock with this path.
macro_rules! event {
    ($level:ident, $name:literal, $path:expr, $($fields_and_message:tt)*) => {
        $level!(name: $name, target: TARGET, path = $path, $($fields_and_message)*)
    };
}

pub(crate) fn waiting(target: &Target, waited: Duration, holder: Option<&Holder>) {
    let (pid, name) = (holder.map(Holder::pid), holder.and_then(Holder::name).map(|name| display(Escaped(name))));
    let (path, kind, waited_ms, by) = (path(target), kind(target), millis(waited), Brief(holder));
    event!(info, "waiting", path, kind, waited_ms, holder.pid = pid, holder.name = name, "waiting for the lock{by}");
}

pub(crate) fn waits_for_itself(target: &Target, waited: Duration) {
    let message = "this very task has obtained the lock it waits for: a deadlock, unless another task or another branch \
                   of this one releases it";
    event!(warn, "waits_for_itself", path(target), waited_ms = millis(waited), "{message}");
}

pub(crate) fn record_lock(target: &Target, pid: u32) {
    let message = "another process has a record lock (fcntl) on the lock file, which does not exclude this lock";
    event!(warn, "record_lock", path(target), holder.pid = pid, "{message}");
}

/// Once for the whole process. inotify(7) names the limits.
#[allow(dead_code, reason = "only Linux has such events")]
pub(crate) fn no_events(error: &std::io::Error) {
    let what_to_do = match error.kind() {
        std::io::ErrorKind::StorageFull => "; the sysctl fs.inotify.max_user_watches may be too small",
        _ if error.raw_os_error() == Some(EMFILE) => {
            "; the sysctl fs.inotify.max_user_instances or the limit of open files (ulimit -n) may be too small"
        }
        _ => "",
    };
    warn!(
        name: "no_events",
        target: TARGET,
        error = %error,
        "no events from inotify: waits poll, and the loss of a lock is noticed only within a second{what_to_do}",
    );
}

/// `is_reported`: whether the log says that a task waits.
pub(crate) fn acquired(target: &Target, started: Instant, is_reported: bool) {
    macro_rules! acquired {
        ($level:ident) => {{
            let waited_ms = || millis(started.elapsed());
            event!($level, "acquired", path(target), kind = kind(target), waited_ms = waited_ms(), "acquired")
        }};
    }
    if is_reported { acquired!(info) } else { acquired!(debug) }
}

pub(crate) fn taken_over(target: &Target, pid: u32, started: Instant) {
    let (kind, waited_ms) = (kind(target), millis(started.elapsed()));
    let message = "acquired by takeover: the last holder died with the lock";
    event!(warn, "taken_over", path(target), kind, waited_ms, holder.pid = pid, "{message}");
}

pub(crate) fn released(target: &Target, since: std::time::Instant) {
    event!(debug, "released", display(&target.address), held_ms = millis(since.elapsed()), "released");
}

/// `held`: how long, if that is known.
pub(crate) fn lost(target: &Target, reason: LostReason, held: Option<Duration>) {
    event!(warn, "lost", display(&target.address), held_ms = held.map(millis), %reason, "lost the lock while it was held");
}

/// A release that was not in order.
pub(crate) fn not_released(target: &Target, error: &LockError, held: Option<Duration>) {
    match error {
        LockError::Lost { reason, .. } => lost(target, *reason, held),
        error => {
            event!(warn, "release_failed", display(&target.address), %error, "the lock could not be released properly")
        }
    }
}

pub(crate) fn stands_by(target: &Target) {
    event!(info, "stands_by", display(&target.address), kind = %target.kind, "stands by");
}

pub(crate) fn leads(target: &Target, waited: Duration) {
    event!(info, "leads", display(&target.address), kind = %target.kind, waited_ms = millis(waited), "leads");
}

pub(crate) fn stepped_down(target: &Target, held: Duration, reason: &str) {
    event!(info, "stepped_down", display(&target.address), held_ms = millis(held), %reason, "stepped down");
}

/// `goes_on`: whether this process will stand by again.
pub(crate) fn work_failed(target: &Target, held: Duration, error: &dyn fmt::Display, goes_on: bool) {
    let then = if goes_on { "standing by again" } else { "shutting down" };
    let (path, held_ms) = (display(&target.address), millis(held));
    let error = format!("{error:#}");
    event!(warn, "work_failed", path, held_ms, %error, "the work under the lock failed; {then}");
}

pub(crate) fn lock_failed(target: &Target, error: &LockError) {
    // The text of an error for a lock on a server begins with its URL, which is in the other field.
    let cause = matches!(error, LockError::Engine { .. }).then(|| error.cause());
    let error = cause.unwrap_or_else(|| error.to_string());
    event!(warn, "lock_failed", display(&target.address), %error, "the lock failed; standing by again");
}

/// In the words of libpq. `fault`: what is wrong with the file.
#[cfg(feature = "postgres")]
pub(crate) fn password_file_passed_over(file: &std::path::Path, fault: &str) {
    warn!(
        name: "password_file_ignored",
        target: TARGET,
        "password file \"{}\" {fault}",
        Escaped(file),
    );
}

#[cfg(feature = "etcd")]
pub(crate) fn password_in_clear(cluster: &dyn fmt::Display) {
    warn!(
        name: "password_in_clear",
        target: TARGET,
        path = %cluster,
        "the password goes to etcd without encryption; add tls=on to the URL",
    );
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    #[cfg(feature = "postgres")]
    use std::path::Path;
    use std::sync::Mutex;

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::support::in_own_process;
    use crate::words::options::Options;

    /// The levels and the fields of the events with each name.
    type Events = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

    #[derive(Default)]
    struct Names(Mutex<Events>);

    impl Subscriber for &'static Names {
        fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
            true
        }

        fn event(&self, event: &Event<'_>) {
            let metadata = event.metadata();
            let mut events = self.0.lock().unwrap();
            let (levels, fields) = events.entry(metadata.name().into()).or_default();
            levels.insert(metadata.level().to_string());
            fields.extend(metadata.fields().iter().map(|field| field.name().into()));
            fields.remove("message");
        }

        fn new_span(&self, _span: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _span: &Id, _values: &Record<'_>) {}
        fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
        fn enter(&self, _span: &Id) {}
        fn exit(&self, _span: &Id) {}
    }

    /// `| `name` | LEVEL, LEVEL … | message | `field`, … |`
    fn told_by_the_front_page() -> Events {
        let page = include_str!("../lib.rs").lines().skip_while(|line| !line.contains("# What is logged"));
        let rows = page.take_while(|line| !line.contains("# Features")).filter(|line| line.starts_with("//! | `"));
        let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let codes = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
        let levels = |cell: &str| {
            let words = cell.split(|char: char| !char.is_alphabetic());
            words.filter(|word| ["DEBUG", "INFO", "WARN"].contains(word)).map(str::to_owned).collect()
        };
        rows.map(cells).map(|row| (row[1].replace('`', ""), (levels(&row[2]), codes(&row[4])))).collect()
    }

    #[tokio::test]
    async fn the_front_page_names_every_event_with_its_level_and_fields() {
        if !in_own_process("words::trace::tests::the_front_page_names_every_event_with_its_level_and_fields") {
            return;
        }
        let names: &'static Names = Box::leak(Box::default());
        let _listening = tracing::subscriber::set_default(names);
        let target = Target::null("x".as_ref(), Options::default());
        let (second, now, error) = (Duration::from_secs(1), Instant::now(), std::io::Error::from_raw_os_error(EMFILE));
        waiting(&target, second, None);
        waits_for_itself(&target, second);
        record_lock(&target, 7);
        no_events(&error);
        acquired(&target, now, true);
        acquired(&target, now, false);
        taken_over(&target, 7, now);
        released(&target, now.into_std());
        lost(&target, LostReason::Removed, Some(second));
        not_released(&target, &target.failed("unlock", error), Some(second));
        stands_by(&target);
        leads(&target, second);
        stepped_down(&target, second, "asked to");
        work_failed(&target, second, &"no disk", true);
        lock_failed(&target, &target.lost(LostReason::Removed));
        #[cfg(feature = "postgres")]
        password_file_passed_over(Path::new("/x"), "is not used");
        #[cfg(feature = "etcd")]
        password_in_clear(&"x");

        let mut told = told_by_the_front_page();
        told.retain(|name, _| cfg!(feature = "postgres") || name != "password_file_ignored");
        told.retain(|name, _| cfg!(feature = "etcd") || name != "password_in_clear");
        let mut seen = names.0.lock().unwrap().clone();
        for (name, (_, fields)) in &mut seen {
            let is_always_there = |field: &str| field == "path" && !name.starts_with("password");
            fields.retain(|field| !is_always_there(field));
        }
        assert_eq!(seen, told);
        let others = [cfg!(feature = "postgres"), cfg!(feature = "etcd")].iter().filter(|is_built| !**is_built).count();
        let page = include_str!("trace.rs").split("mod tests").next().unwrap();
        let named = |begin| page.split(begin).skip(1).filter_map(|event: &str| event.split('"').nth(1));
        assert_eq!(
            seen.len() + others,
            ["event!(", "name: "].into_iter().flat_map(named).collect::<BTreeSet<_>>().len()
        );
    }
}
