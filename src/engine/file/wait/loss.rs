//! The wait of a holder: for the loss of the lock.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use super::events::Watch;
use crate::engine::file::execution::TargetOnDisk;
use crate::engine::file::outcome::FileIdentity;
use crate::sys::OpenFile;
use crate::util::backoff::Backoff;
use crate::util::blocking;
use crate::util::timer::sleep;
use crate::words::error::LostReason;
use crate::words::target::Target;

/// The shortest and the longest time between two looks where no event tells of a change. Locks are often held for moments
/// only, and hundreds of them for hours must cost little.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Resolves when the path of `target` no longer leads to the lock file that is held.
pub(in crate::engine::file) async fn lost(
    lock: &TargetOnDisk,
    target: &Target,
    file: &Arc<OpenFile>,
    identity: FileIdentity,
) -> LostReason {
    let (mut watch, mut pauses): (Option<Watch>, _) = (None, Backoff::new(LOOK_AGAIN));
    loop {
        match check(lock, target, identity).await {
            Some(Ok(())) => {}
            Some(Err(reason)) => return reason,
            None => return pending().await,
        }
        match &mut watch {
            Some(watch) if watch.is_on(file, None) => _ = watch.wake_up().await,
            _ => {
                watch = if lock.has_events() { Watch::for_loss(file, target.path()) } else { None };
                if watch.is_none() {
                    sleep(pauses.next()).await;
                }
            }
        }
    }
}

/// `None` when the runtime shuts down.
async fn check(lock: &TargetOnDisk, target: &Target, identity: FileIdentity) -> Option<Result<(), LostReason>> {
    if lock.is_cheap_to_look_at() {
        return Some(identity.check(target.path()));
    }
    let target = target.clone();
    blocking::run(move || identity.check(target.path())).await.ok()
}
