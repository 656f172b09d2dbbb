//! A set-uid program, for the tests with every server: this test program, owned by somebody else than its caller.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Debian's nobody.
const OWNER: u32 = 65534;
const CALLER: u32 = 65533;

/// The bits of a set-uid and of a set-gid program.
pub(crate) const MODES: [u32; 2] = [0o4755, 0o2755];

pub(crate) struct Program {
    pub(crate) dir: TempDir,
    path: PathBuf,
}

impl Program {
    /// `None` without root's rights: then there is no other user to be.
    pub(crate) fn new() -> Option<Self> {
        let dir = rustix::process::geteuid().is_root().then(|| TempDir::new().unwrap())?;
        let path = dir.path().join("program");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
        Some(Self { dir, path })
    }

    /// The caller runs one test in the program, which has these permission bits.
    pub(crate) fn run(&self, mode: u32, test: &str) -> Command {
        fs::set_permissions(&self.path, Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(&self.path);
        command.args([test, "--exact", "--nocapture"]).uid(CALLER).gid(CALLER).current_dir("/");
        command
    }
}
