//! A lock for the tasks of this process. Their queue is all that it needs.

use std::ffi::OsStr;
use std::future::{pending, ready};
use std::sync::Arc;

use super::contract::{Answer, Attempt, BoxFuture, Contention, End, Engine, Grant, Held};
use crate::sys::process::Owner;
use crate::words::error::{LockError, LostReason};
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::Target;

#[derive(Debug)]
pub(super) struct Null {
    /// May be empty.
    pub(super) name: Arc<OsStr>,
}

impl<Turn: Send + 'static> Engine<Turn> for Null {
    fn identity(&self) -> Option<Arc<OsStr>> {
        (!self.name.is_empty()).then(|| Arc::clone(&self.name))
    }

    fn attempt(&self, _mode: Mode, turn: Turn) -> Answer<Result<Attempt<Turn>, LockError>> {
        let held: Box<dyn Held> = Box::new(NullHeld(Owner::this_process()));
        let grant = Grant { held, turn, taken_over: None, contention: Contention::None };
        Answer::Ready(Ok(Attempt::Acquired(grant)))
    }

    fn holders(&self) -> BoxFuture<'static, Result<Vec<Holder>, LockError>> {
        Box::pin(ready(Ok(Vec::new())))
    }
}

#[derive(Debug)]
struct NullHeld(Owner);

impl Held for NullHeld {
    fn check(&self, _target: &Target) -> Result<(), LostReason> {
        Ok(())
    }

    fn lost<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, LostReason> {
        Box::pin(pending())
    }

    fn is_of_this_process(&self) -> bool {
        self.0.is_this_process()
    }

    fn is_slow_to_release(&self) -> bool {
        false
    }

    fn release(self: Box<Self>, _target: &Target, end: End) {
        end(Ok(()));
    }
}
