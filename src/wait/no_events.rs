//! Where lock files give no signs that a wait could be woken by: polling only.

use std::convert::Infallible;
use std::fs::File;
use std::sync::Arc;

use super::Sign;
use crate::kind::LockKind;

/// There is none.
#[derive(Debug)]
pub(crate) struct Watch(Infallible);

impl Watch {
    pub(crate) fn for_release(_kind: LockKind, _file: &Arc<File>, _holder: Option<u32>) -> Option<Self> {
        None
    }

    pub(crate) fn for_loss(_file: &Arc<File>) -> Option<Self> {
        None
    }

    pub(crate) fn is_on(&self, _file: &Arc<File>, _holder: Option<u32>) -> bool {
        match self.0 {}
    }

    pub(crate) async fn sign(&mut self) -> Sign {
        match self.0 {}
    }
}
