//! What is logged. The names of spans, events and fields are only here. The crate's front page lists them.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{DisplayValue, display};
use tracing::{Level, Span, debug, debug_span, enabled, info, warn};

use super::error::{LockError, LostReason};
use super::escape::Escaped;
use super::holder::{Brief, Holder};
use super::kind::LockKind;
use super::target::Target;

const TARGET: &str = "tokio_lockfile";

const OBTAIN: &str = "obtain";

/// The number of this error is the same on every Linux.
const EMFILE: i32 = 24;

/// Around a wait.
pub(crate) fn obtain_span(target: &Target) -> Span {
    debug_span!(target: TARGET, OBTAIN, path = %Escaped(&*target.path), kind = %target.kind)
}

pub(crate) fn waiting_is_heard() -> bool {
    enabled!(target: TARGET, Level::INFO)
}

pub(crate) fn warnings_are_heard() -> bool {
    enabled!(target: TARGET, Level::WARN)
}

/// The path, for an event that may be inside the `obtain` span, which shows it already.
fn path(target: &Target) -> Option<DisplayValue<Escaped<&Path>>> {
    (!is_in_obtain_span()).then(|| display(Escaped(&*target.path)))
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

pub(crate) fn waiting(target: &Target, waited: Duration, holder: Option<&Holder>) {
    info!(
        target: TARGET,
        path = path(target),
        kind = kind(target),
        waited_ms = millis(waited),
        holder.pid = holder.map(Holder::pid),
        holder.name = holder.and_then(Holder::name).map(|name| display(Escaped(name))),
        "waiting for the lock{}", Brief(holder),
    );
}

pub(crate) fn waits_for_itself(target: &Target, waited: Duration) {
    warn!(
        target: TARGET,
        path = path(target),
        waited_ms = millis(waited),
        "this very task has obtained the lock it waits for: a deadlock, unless another task or another branch of this one releases it",
    );
}

pub(crate) fn record_lock(target: &Target, pid: u32) {
    warn!(
        target: TARGET,
        path = path(target),
        holder.pid = pid,
        "another process has a record lock (fcntl) on the lock file, which does not exclude this lock",
    );
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
        target: TARGET,
        %error,
        "no events from inotify: waits poll, and the loss of a lock is noticed only within a second{what_to_do}",
    );
}

/// `is_reported`: whether the log says that a task waits.
pub(crate) fn acquired(target: &Target, started: Instant, is_reported: bool) {
    macro_rules! acquired {
        ($level:ident) => {
            $level!(
                target: TARGET,
                path = path(target),
                kind = kind(target),
                waited_ms = millis(started.elapsed()),
                "acquired",
            )
        };
    }
    match is_reported {
        true => acquired!(info),
        false => acquired!(debug),
    }
}

pub(crate) fn taken_over(target: &Target, pid: u32, started: Instant) {
    warn!(
        target: TARGET,
        path = path(target),
        kind = kind(target),
        waited_ms = millis(started.elapsed()),
        holder.pid = pid,
        "acquired by takeover: the last holder died with the lock",
    );
}

pub(crate) fn released(target: &Target, since: std::time::Instant) {
    debug!(target: TARGET, path = %Escaped(&*target.path), held_ms = millis(since.elapsed()), "released");
}

/// `held`: how long, if that is known.
pub(crate) fn lost(target: &Target, reason: LostReason, held: Option<Duration>) {
    warn!(
        target: TARGET,
        path = %Escaped(&*target.path),
        held_ms = held.map(millis),
        %reason,
        "lost the lock while it was held",
    );
}

/// A release that was not in order.
pub(crate) fn not_released(target: &Target, error: &LockError, held: Option<Duration>) {
    match error {
        LockError::Lost { reason, .. } => lost(target, *reason, held),
        error => release_failed(target, error),
    }
}

fn release_failed(target: &Target, error: &LockError) {
    warn!(target: TARGET, path = %Escaped(&*target.path), error = %error, "the lock could not be released properly");
}

pub(crate) fn stands_by(target: &Target) {
    info!(target: TARGET, path = %Escaped(&*target.path), kind = %target.kind, "stands by");
}

pub(crate) fn leads(target: &Target, waited: Duration) {
    info!(
        target: TARGET,
        path = %Escaped(&*target.path),
        kind = %target.kind,
        waited_ms = millis(waited),
        "leads",
    );
}

pub(crate) fn stepped_down(target: &Target, held: Duration, reason: &str) {
    info!(target: TARGET, path = %Escaped(&*target.path), held_ms = millis(held), %reason, "stepped down");
}

/// `goes_on`: whether this process will stand by again.
pub(crate) fn work_failed(target: &Target, held: Duration, error: &dyn fmt::Display, goes_on: bool) {
    warn!(
        target: TARGET,
        path = %Escaped(&*target.path),
        held_ms = millis(held),
        error = %format_args!("{error:#}"),
        "the work under the lock failed; {}", if goes_on { "standing by again" } else { "shutting down" },
    );
}

pub(crate) fn lock_failed(target: &Target, error: &LockError) {
    warn!(target: TARGET, path = %Escaped(&*target.path), %error, "the lock failed; standing by again");
}

/// In the words of libpq. `fault`: what is wrong with the file.
#[cfg(feature = "postgres")]
pub(crate) fn password_file_passed_over(file: &Path, fault: &str) {
    warn!(target: TARGET, "password file \"{}\" {fault}", Escaped(file));
}

#[cfg(feature = "etcd")]
pub(crate) fn password_in_clear(cluster: &Path) {
    warn!(
        target: TARGET,
        path = %Escaped(cluster),
        "the password goes to etcd without encryption; add tls=on to the URL",
    );
}
