//! Permission bits that the umask does not change.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio_lockfile::LockFile;

use crate::support::{each_file_kind, in_own_process, take};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The umask belongs to the whole process.
#[tokio::test]
async fn the_umask_changes_a_mode_and_leaves_an_exact_one() {
    if !in_own_process("exact_mode::the_umask_changes_a_mode_and_leaves_an_exact_one") {
        return;
    }
    for umask in [0, 0o022, 0o077] {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        each_file_kind(|kind, path| async move {
            let url = kind(&path).url().to_string();
            let mut builder = LockFile::builder();
            let guard = take(&builder.exact_mode(0o666).open(&url).unwrap()).await;
            assert_eq!(mode(&path), 0o666);
            guard.release().await.unwrap();
            let _ = std::fs::remove_file(&path);
            let guard = take(&builder.mode(0o644).open(&url).unwrap()).await;
            assert_eq!(mode(&path), 0o644 & !umask);
            guard.release().await.unwrap();
        })
        .await;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
}

#[tokio::test]
async fn a_file_that_was_there_before_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    for given in [0o600, 0o640] {
        std::fs::write(&path, "data").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(given)).unwrap();
        let guard = take(&LockFile::builder().exact_mode(0o666).native(&path).unwrap()).await;
        assert_eq!(mode(&path), given);
        guard.release().await.unwrap();
        assert_eq!((mode(&path), std::fs::read(&path).unwrap()), (given, b"data".to_vec()));
    }
}
