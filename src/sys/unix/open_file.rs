//! Files that a forked child does not keep open.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};

use super::descriptors::Listed;
use super::fork;

/// An open file. A forked child has another file without content in its place.
#[derive(Debug)]
pub(crate) struct OpenFile {
    // In this order: a number that is listed must not be another file's.
    _listed: Listed,
    file: File,
}

/// Makes a forked child give its copy of a descriptor up. To be dropped before the descriptor is closed.
#[cfg(any(feature = "postgres", feature = "etcd"))]
#[derive(Debug)]
pub(crate) struct NotForChildren(#[expect(dead_code, reason = "its drop is what counts")] Listed);

#[cfg(any(feature = "postgres", feature = "etcd"))]
impl NotForChildren {
    pub(crate) fn new(descriptor: &impl AsRawFd) -> Self {
        // The handler must be there before the first descriptor is listed.
        fork::current_pid();
        Self(Listed::new(descriptor.as_raw_fd()))
    }
}

impl Deref for OpenFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for OpenFile {
    fn from(descriptor: OwnedFd) -> Self {
        // The handler must be there before the first descriptor is listed.
        fork::current_pid();
        Self { _listed: Listed::new(descriptor.as_raw_fd()), file: descriptor.into() }
    }
}
