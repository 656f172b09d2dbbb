//! Where no event tells that a lock file has changed. All waits poll.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use super::wake_up::WakeUp;
use crate::sys::OpenFile;
use crate::words::kind::LockKind;

/// A watch that nobody can have.
#[derive(Debug)]
pub(crate) struct Watch(Infallible);

impl Watch {
    pub(crate) fn for_release(_kind: LockKind, _file: &Arc<OpenFile>, _holder: Option<u32>) -> Option<Self> {
        None
    }

    pub(crate) fn for_loss(_file: &Arc<OpenFile>, _path: &Path) -> Option<Self> {
        None
    }

    pub(crate) fn is_on(&self, _file: &Arc<OpenFile>, _holder: Option<u32>) -> bool {
        match self.0 {}
    }

    pub(crate) async fn wake_up(&mut self) -> WakeUp {
        match self.0 {}
    }
}
