//! A held lock file, as the contract wants it.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use super::execution::TargetOnDisk;
use super::outcome::FileIdentity;
use super::protocol;
use super::wait::loss;
use crate::engine::contract::{BoxFuture, End, Held};
use crate::sys::OpenFile;
use crate::sys::offer::{Offer, Release, STANDS};
use crate::sys::process::Owner;
use crate::util::blocking;
use crate::words::error::LostReason;
use crate::words::target::Target;

#[derive(Debug)]
pub(super) struct FileHeld {
    /// `None` only when it has been released.
    held: Option<protocol::HeldFile>,
    lock: Arc<TargetOnDisk>,
}

impl FileHeld {
    pub(super) fn new(held: protocol::HeldFile, lock: Arc<TargetOnDisk>) -> Self {
        Self { held: Some(held), lock }
    }

    fn held(&self) -> &protocol::HeldFile {
        self.held.as_ref().expect("present until it is released")
    }

    /// The file, if it was made for the lock.
    pub(super) fn ours(&self) -> Option<Box<FileIdentity>> {
        self.held().ours()
    }

    /// The file that is locked or, for a PID file, linked.
    pub(super) fn lock_file(&self) -> &Arc<OpenFile> {
        self.held().file()
    }
}

impl Held for FileHeld {
    fn check(&self, target: &Target) -> Result<(), LostReason> {
        self.held().identity().check(target.path())
    }

    fn lost<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, LostReason> {
        Box::pin(loss::lost(&self.lock, target, self.held().file(), self.held().identity()))
    }

    fn is_of_this_process(&self) -> bool {
        self.held().owner().is_some_and(Owner::is_this_process)
    }

    fn is_slow_to_release(&self) -> bool {
        !self.lock.is_cheap_to_look_at()
    }

    fn file(&self) -> Option<&File> {
        if !self.is_of_this_process() {
            return None;
        }
        self.lock.remember_record(false);
        self.held().data_file(self.lock.target.path()).map(|file| -> &File { file })
    }

    fn release(mut self: Box<Self>, target: &Target, end: End) {
        let is_slow = self.is_slow_to_release();
        let (target, held) = (target.clone(), self.held.take().expect("present until it is released"));
        // If it cannot be run, the lock goes before the end.
        let release = move || {
            let released = held.release(&target);
            end(released);
        };
        match is_slow {
            true => detach(release),
            false => release(),
        }
    }
}

impl Drop for FileHeld {
    fn drop(&mut self) {
        let is_slow = self.is_slow_to_release();
        if let Some(held) = self.held.take() {
            // The file system may hang, and with it the thread that calls it.
            if is_slow && held.owner().is_some_and(Owner::is_this_process) {
                detach(move || drop(held));
            }
        }
    }
}

/// Work for the blocking pool.
struct Work(Box<dyn FnOnce() + Send>);

impl Release for Work {
    fn release(self, _kept: impl Send + 'static) {
        blocking::detach(self.0);
    }
}

/// Runs `work` on the blocking pool, and does not wait for it. Waits for this very lock may fill that pool
/// (`blocking_obtain` in `spawn_blocking`). So what the pool does not begin in time is run on the pool of the watchdog.
fn detach(work: impl FnOnce() + Send + 'static) {
    let offer = Offer::new();
    offer.make(Work(Box::new(work)), Instant::now() + STANDS);
    let on_pool = Arc::clone(&offer);
    blocking::detach(move || on_pool.take().into_iter().for_each(|Work(work)| work()));
    offer.watch();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::support::HANG;

    #[test]
    fn a_release_does_not_wait_for_a_full_blocking_pool() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (sender, done) = mpsc::channel();
        let waits = runtime.spawn_blocking(move || done.recv_timeout(HANG));
        runtime.block_on(async { detach(move || sender.send(()).unwrap()) });
        assert_eq!(runtime.block_on(waits).unwrap(), Ok(()));
    }
}
