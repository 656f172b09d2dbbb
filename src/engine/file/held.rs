//! A held lock file, as the contract wants it.

use std::sync::Arc;

use super::execution::TargetOnDisk;
use super::protocol;
use super::wait::loss;
use crate::engine::contract::{Answer, BoxFuture, Held};
use crate::sys::process::Owner;
use crate::util::blocking;
use crate::words::error::{LockError, LostReason};
use crate::words::target::Target;

#[derive(Debug)]
pub(super) struct FileHeld {
    held: protocol::Held,
    lock: Arc<TargetOnDisk>,
}

impl FileHeld {
    pub(super) fn new(held: protocol::Held, lock: Arc<TargetOnDisk>) -> Self {
        Self { held, lock }
    }
}

impl Held for FileHeld {
    fn check(&self, target: &Target) -> Result<(), LostReason> {
        self.held.identity().check(&target.path)
    }

    fn lost<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, LostReason> {
        Box::pin(loss::lost(&self.lock, target, self.held.file(), self.held.identity()))
    }

    fn is_of_this_process(&self) -> bool {
        self.held.owner().is_some_and(Owner::is_this_process)
    }

    fn release(self: Box<Self>, target: &Target) -> Answer<Result<(), LockError>> {
        if self.lock.is_cheap_to_look_at() {
            return Answer::Ready(self.release_now(target));
        }
        // The file system may hang, and with it whoever calls it.
        let path = Arc::clone(&target.path);
        Answer::Later(Box::pin(async move {
            let work = {
                let path = Arc::clone(&path);
                move || self.held.release(&path)
            };
            blocking::run(work).await.map_err(|error| LockError::io(&path, "release", error))?
        }))
    }

    fn release_now(self: Box<Self>, target: &Target) -> Result<(), LockError> {
        self.held.release(&target.path)
    }
}
