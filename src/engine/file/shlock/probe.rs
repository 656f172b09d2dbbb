//! The flock of a try that looks at a lock file.

use std::fs::File;
use std::sync::Arc;

use crate::sys::{self, OpenFile};

/// A file on which a try has an exclusive flock. The drop unlocks the file before it closes it. A close alone is not
/// enough: another thread may fork at this moment, and the child keeps the lock until it runs another program. The next
/// try would find the file in use.
pub(super) struct Probe(Option<Arc<OpenFile>>);

impl Probe {
    pub(super) fn new(file: Arc<OpenFile>) -> Self {
        Self(Some(file))
    }

    pub(super) fn unlock(mut self) -> Arc<OpenFile> {
        let file = self.0.take().expect("taken only here");
        let _ = sys::unlock(&file);
        file
    }
}

impl std::ops::Deref for Probe {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_deref().expect("present until the end")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            let _ = sys::unlock(file);
        }
    }
}
