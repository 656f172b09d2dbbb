//! The kinds of lock with which the tests of the shared behaviour run here: etcd's.

use std::path::Path;
use std::sync::LazyLock;

use tokio_lockfile::LockFile;

use crate::cluster::Cluster;
use crate::support::{Kind, Modes};

/// The cluster of the tests that do it no harm.
pub(crate) static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::of(3));

fn lock(path: &Path) -> LockFile {
    CLUSTER.lock(path.to_str().unwrap())
}

pub(crate) const FILE_KINDS: &[Kind] = &[lock];

pub(crate) const SHARED_KINDS: &[Modes] = &[Modes { writer: lock, reader: |path| lock(path).shared().unwrap() }];

/// Whether the lock file stays when the lock is released.
pub(crate) fn leaves_its_file(_lock: &LockFile) -> bool {
    false
}
