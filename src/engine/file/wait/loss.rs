//! The wait of a holder: for the loss of the lock.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use super::events::Watch;
use crate::engine::file::execution::TargetOnDisk;
use crate::engine::file::outcome::Identity;
use crate::sys::OpenFile;
use crate::util::blocking;
use crate::util::timer::sleep;
use crate::words::error::LostReason;
use crate::words::target::Target;

/// How often to look where no event tells of a change.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Resolves when the path of `target` no longer leads to the lock file that is held.
pub(in crate::engine::file) async fn lost(
    lock: &TargetOnDisk,
    target: &Target,
    file: &Arc<OpenFile>,
    identity: Identity,
) -> LostReason {
    let has_events = lock.is_cheap_to_look_at() && !target.options.poll_only;
    let mut watch: Option<Watch> = None;
    loop {
        match check(lock, target, identity).await {
            Some(Ok(())) => {}
            Some(Err(reason)) => return reason,
            None => return pending().await,
        }
        match &mut watch {
            Some(watch) if watch.is_on(file, None) => _ = watch.wake_up().await,
            _ if has_events => {
                watch = Watch::for_loss(file, &target.path);
                if watch.is_none() {
                    sleep(LOOK_AGAIN).await;
                }
            }
            _ => sleep(LOOK_AGAIN).await,
        }
    }
}

/// `None` when the runtime shuts down.
async fn check(lock: &TargetOnDisk, target: &Target, identity: Identity) -> Option<Result<(), LostReason>> {
    if lock.is_cheap_to_look_at() {
        return Some(identity.check(&target.path));
    }
    let path = Arc::clone(&target.path);
    blocking::run(move || identity.check(&path)).await.ok()
}
