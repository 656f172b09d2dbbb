//! The kinds with which the shared tests run: locks of one database, named by the path that the test wants.

use std::path::Path;

use tokio_lockfile::LockFile;

use crate::server::Server;
use crate::support::{Kind, Modes};

fn open(path: &Path) -> LockFile {
    Server::shared().lock(&format!("lock={}", path.display()).replace('/', "%2F"))
}

pub(crate) const FILE_KINDS: &[Kind] = &[open];

pub(crate) const SHARED_KINDS: &[Modes] = &[Modes { writer: open, reader: |path| open(path).shared().unwrap() }];

pub(crate) fn leaves_its_file(_lock: &LockFile) -> bool {
    false
}
