//! The flock of a try that looks at a lock file.

use std::fs::File;
use std::sync::Arc;

use crate::sys::{self, OpenFile};

/// A file on which a try has an exclusive flock. The drop unlocks the file before it closes it. A close alone is not
/// enough: another thread may fork at this moment, and the child keeps the lock until it runs another program. The next
/// try would find the file in use.
pub(super) struct Probe(Arc<OpenFile>);

impl Probe {
    pub(super) fn new(file: Arc<OpenFile>) -> Self {
        Self(file)
    }
}

impl std::ops::Deref for Probe {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = sys::unlock(&self.0);
    }
}
