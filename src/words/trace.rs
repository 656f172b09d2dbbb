//! What is logged. The names of spans, events and fields are only here. The crate's front page lists them.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{Level, Span, debug, debug_span, enabled, info, warn};

use super::error::{LockError, LostReason};
use super::escape::Escaped;
use super::holder::{Brief, Holder};
use super::target::Target;

const TARGET: &str = "tokio_lockfile";

/// Around a wait.
pub(crate) fn obtain_span(target: &Target) -> Span {
    debug_span!(target: TARGET, "obtain", path = %Escaped(&*target.path), kind = %target.kind)
}

pub(crate) fn waiting_is_heard() -> bool {
    enabled!(target: TARGET, Level::INFO)
}

pub(crate) fn warnings_are_heard() -> bool {
    enabled!(target: TARGET, Level::WARN)
}

pub(crate) fn waiting(target: &Target, waited: Duration, holder: Option<&Holder>) {
    info!(
        target: TARGET,
        path = %Escaped(&*target.path),
        waited = ?waited,
        holder.pid = holder.map(Holder::pid),
        holder.name = holder.and_then(Holder::name).map(|name| tracing::field::display(Escaped(name))),
        "waiting for the lock{}", Brief(holder),
    );
}

pub(crate) fn waits_for_itself(target: &Target, waited: Duration) {
    warn!(
        target: TARGET,
        path = %Escaped(&*target.path),
        waited = ?waited,
        "this very task has obtained the lock it waits for: a deadlock, unless another task or another branch of this one releases it",
    );
}

pub(crate) fn record_lock(target: &Target, pid: u32) {
    warn!(
        target: TARGET,
        path = %Escaped(&*target.path),
        holder.pid = pid,
        "another process has a record lock (fcntl) on the lock file, which does not exclude this lock",
    );
}

pub(crate) fn acquired(target: &Target, started: Instant) {
    debug!(
        target: TARGET,
        path = %Escaped(&*target.path),
        kind = %target.kind,
        waited = ?started.elapsed(),
        "acquired",
    );
}

pub(crate) fn taken_over(target: &Target, pid: u32, started: Instant) {
    warn!(
        target: TARGET,
        path = %Escaped(&*target.path),
        kind = %target.kind,
        waited = ?started.elapsed(),
        holder.pid = pid,
        "acquired by takeover: the last holder died with the lock",
    );
}

pub(crate) fn released(target: &Target, since: std::time::Instant) {
    debug!(target: TARGET, path = %Escaped(&*target.path), held_for = ?since.elapsed(), "released");
}

pub(crate) fn lost(target: &Target, reason: LostReason) {
    warn!(target: TARGET, path = %Escaped(&*target.path), reason = %reason, "lost the lock while it was held");
}

pub(crate) fn work_failed(target: &Target, error: &dyn std::fmt::Display) {
    warn!(target: TARGET, path = %Escaped(&*target.path), %error, "the work under the lock failed; standing by again");
}

/// A release that was not in order.
pub(crate) fn not_released(target: &Target, error: &LockError) {
    match error {
        LockError::Lost { reason, .. } => lost(target, *reason),
        error => release_failed(target, error),
    }
}

fn release_failed(target: &Target, error: &LockError) {
    warn!(target: TARGET, path = %Escaped(&*target.path), error = %error, "the lock could not be released properly");
}
