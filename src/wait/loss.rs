//! The wait of a holder: for the loss of the lock.

use std::fs::File;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::events::Watch;
use super::{begin, has_events};
use crate::blocking;
use crate::error::LostReason;
use crate::lock::LockFile;
use crate::pace::Pace;
use crate::protocol::Identity;

/// How often to look where no event tells.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Resolves when `path` no longer leads to the lock file that is held.
pub(crate) async fn lost(lock: &LockFile, file: &Arc<File>, identity: Identity) -> LostReason {
    begin();
    let mut watch: Option<Watch> = None;
    loop {
        match check(lock, identity).await {
            Some(Ok(())) => {}
            Some(Err(reason)) => return reason,
            None => return pending().await,
        }
        match &mut watch {
            Some(watch) if watch.is_on(file, None) => _ = watch.sign().await,
            _ if has_events(lock) => {
                watch = Watch::for_loss(file);
                if watch.is_none() {
                    sleep(LOOK_AGAIN).await;
                }
            }
            _ => sleep(LOOK_AGAIN).await,
        }
    }
}

/// `None` when the runtime shuts down.
async fn check(lock: &LockFile, identity: Identity) -> Option<Result<(), LostReason>> {
    let path = &lock.target().path;
    if lock.slot().pace().is_some_and(|pace| pace != Pace::Poll) {
        return Some(identity.check(path));
    }
    let path = Arc::clone(path);
    blocking::run(move || identity.check(&path)).await.ok()
}
