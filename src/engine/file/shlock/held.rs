//! A held shlock, and its release.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use crate::engine::file::outcome::FileIdentity;
use crate::sys::process::Owner;
use crate::sys::{self, Dir, OpenFile, Stat};
use crate::words::error::LockError;
use crate::words::target::Target;

/// A held lock.
#[derive(Debug)]
pub(in crate::engine::file) struct HeldShlock {
    pub(super) dir: Arc<Dir>,
    pub(super) name: OsString,
    pub(super) file: Arc<OpenFile>,
    pub(super) stat: Stat,
    /// Whether the file is on a file system of this machine.
    pub(super) is_local: bool,
    /// `None` when the lock has been released.
    pub(super) owner: Option<Owner>,
}

impl HeldShlock {
    pub(in crate::engine::file) fn file(&self) -> &Arc<OpenFile> {
        &self.file
    }

    pub(in crate::engine::file) fn identity(&self) -> FileIdentity {
        FileIdentity(self.stat)
    }

    pub(in crate::engine::file) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(in crate::engine::file) fn release(mut self, target: &Target) -> Result<(), LockError> {
        self.refresh();
        let checked = self.identity().check(target.path());
        let removed = self.remove().map_err(|error| target.failed("remove lock file", error));
        checked.map_err(|reason| target.lost(reason))?;
        removed
    }

    /// Unlocks the file and leaves its name. To others it looks like the file of a dead holder.
    pub(super) fn abandon(mut self) {
        self.owner = None;
        let _ = sys::unlock(&self.file);
    }

    /// A client of NFS looks at what it knows of the directory. That may be a minute old, and the name may be another
    /// process's lock by now.
    fn refresh(&self) {
        if !self.is_local {
            self.dir.refresh();
        }
    }

    /// Unlinks the name if it is still ours, and then unlocks the file. In the opposite order, two processes could hold
    /// the lock for a moment.
    fn remove(&mut self) -> io::Result<()> {
        self.owner = None;
        let is_ours = |found: Stat| found.is_same_file(&self.stat) && !found.has_lost_its_name_since(&self.stat);
        let ours = self.dir.stat(&self.name)?.is_some_and(is_ours);
        let unlinked = if ours { self.dir.unlink(&self.name) } else { Ok(()) };
        // The unlock frees the lock even if a forked child has inherited the descriptor. A close alone would not.
        unlinked.and(sys::unlock(&self.file))
    }
}

impl Drop for HeldShlock {
    fn drop(&mut self) {
        if self.owner.is_some_and(Owner::is_this_process) {
            self.refresh();
            let _ = self.remove();
        }
    }
}
