//! Locks on files: the protocols of [`shlock`] and [`flock`], and how their tries are made and awaited.
//!
//! A protocol is synchronous and knows only one try. [`attempt`] decides whether that try runs inline or on the blocking
//! pool, [`wait`] when the next try is due.

mod attempt;
mod execution;
mod flock;
mod flock_holder;
#[cfg(tokio_lockfile_fuzz)]
pub(crate) mod fuzz;
mod held;
mod outcome;
mod protocol;
mod record;
#[cfg(unix)]
mod shlock;
mod wait;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::contract::{Answer, Attempt, BoxFuture, Contention, Engine};
use crate::sys;
use crate::util::blocking;
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::mode::Mode;
use crate::words::target::{Address, Target};
use crate::words::trace;
use attempt::Tried;
use execution::TargetOnDisk;
use outcome::Contended;
use wait::FileWaiter;
use wait::wake_up::WakeUp;

#[cfg(unix)]
pub use shlock::check_lock;

/// A lock on a file, of any of its kinds.
#[derive(Debug)]
pub(super) struct FileLock(Arc<TargetOnDisk>);

impl FileLock {
    /// Looks at the file system once, which may block.
    pub(super) fn new(target: &Arc<Target>) -> Self {
        outcome::remember_root();
        let target = TargetOnDisk::new(Arc::clone(target));
        target.find_execution();
        Self(Arc::new(target))
    }
}

impl<Turn: Send + 'static> Engine<Turn> for FileLock {
    fn identity(&self) -> Option<Arc<OsStr>> {
        match &self.0.target.address {
            Address::File(path) => Some(resolve_parent(path)),
            Address::Null(_) | Address::Server(_) => None,
        }
    }

    fn attempt(&self, mode: Mode, turn: Turn) -> Answer<Result<Attempt<Turn>, LockError>> {
        let lock = Arc::clone(&self.0);
        let answer = attempt::attempt(&self.0, mode, turn, Contended::default(), WakeUp::Event);
        match answer {
            Answer::Ready(tried) => Answer::Ready(tried.map(|tried| outcome_of(tried, lock, mode))),
            Answer::Later(tried) => Answer::Later(Box::pin(async move { Ok(outcome_of(tried.await?, lock, mode)) })),
        }
    }

    fn holders(&self) -> BoxFuture<'static, Result<Vec<Holder>, LockError>> {
        let lock = Arc::clone(&self.0);
        Box::pin(async move {
            let target = Arc::clone(&lock.target);
            let looked = blocking::run(move || match protocol::holders(&lock.target) {
                Err(error) if lock.lacks_directory(&error) => Ok(Vec::new()),
                looked => looked,
            });
            looked.await.map_err(|error| target.failed("look at", error))?
        })
    }
}

fn outcome_of<Turn: Send + 'static>(tried: Tried<Turn>, lock: Arc<TargetOnDisk>, mode: Mode) -> Attempt<Turn> {
    warn_of_record_locks(&lock, &tried);
    match tried {
        Tried::Acquired(grant) => Attempt::Acquired(grant.boxed(Contention::None)),
        Tried::Busy(turn, last) => Attempt::Busy(turn, Box::new(FileWaiter::new(lock, mode, last))),
    }
}

/// Programs that lock with fcntl(2) or lockf(3) do not see an flock(2), nor we their lock. So both can hold.
fn warn_of_record_locks<Turn>(lock: &TargetOnDisk, tried: &Tried<Turn>) {
    if !lock.is_cheap_to_look_at() || !trace::warnings_are_heard() {
        return;
    }
    let file = match tried {
        Tried::Acquired(grant) => Some(grant.held.lock_file()),
        Tried::Busy(_, last) => last.file(),
    };
    if let Some(pid) = file.and_then(|file| sys::record_lock_holder(file)) {
        trace::record_lock(&lock.target, pid);
    }
}

/// `path` with the symbolic links and the `..` of its directory resolved, as far as that exists; `path` itself where
/// that changes nothing.
fn resolve_parent(path: &Arc<OsStr>) -> Arc<OsStr> {
    let (Some(parent), Some(name)) = (Path::new(path).parent(), Path::new(path).file_name()) else {
        return Arc::clone(path);
    };
    let mut missing = vec![name];
    let mut existing = parent;
    let resolved: PathBuf = loop {
        match (existing.canonicalize(), existing.parent(), existing.file_name()) {
            (Ok(resolved), _, _) => break resolved,
            (Err(_), Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            (Err(_), _, _) => break existing.to_owned(),
        }
    };
    let resolved = missing.iter().rev().fold(resolved, |path, name| path.join(name));
    if resolved.as_os_str() == &**path { Arc::clone(path) } else { resolved.into_os_string().into() }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_identity_by_whatever_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let alias = dir.path().join("alias");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &alias).unwrap();
        let identity = |path: PathBuf| resolve_parent(&path.into_os_string().into());
        let first = identity(real.join("x"));
        assert_eq!(first, identity(alias.join("x")));
        assert_eq!(first, identity(real.join("../alias/x")));
        assert_eq!(identity(real.join("not/yet/x")), identity(alias.join("not/yet/x")));
    }
}
