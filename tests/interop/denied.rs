//! flock(2) is refused, as by AppArmor without `k`, by SELinux without `lock`, or by a file system without locks. Or a file
//! may not be removed.

use std::process::Command;

use tempfile::TempDir;

use crate::faults::{attempt_as_nobody, attempt_by, set_mode};
use crate::identity::{KINDS, url};
use crate::place;

/// What an attempt answers where each flock(2) fails with this error.
fn attempt_where_flock_fails(error: &str, url: &str) -> String {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("inject=flock:error={error}"));
    attempt_by(&mut strace, url)
}

/// A process that may not lock does not hold, and does not take the lock for held.
#[test]
fn a_refused_flock_is_an_error_that_says_so() {
    for kind in KINDS {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x.lock");
        for error in ["EACCES", "EPERM"] {
            let answer = attempt_where_flock_fails(error, &url(kind, &path));
            assert!(answer.starts_with("Some(PermissionDenied)"), "{kind} {error}: {answer}");
            assert!(answer.contains("flock(2)") && answer.contains("AppArmor"), "{kind} {error}: {answer}");
        }
        assert!(kind == "flockfile" || !path.exists());
    }
}

/// 524 is ENOTSUPP, which has no name in libc: Cray DVS, autofs and some NFS.
#[test]
fn where_files_cannot_be_locked_the_advice_fits_the_place() {
    for kind in KINDS {
        let dir = TempDir::new().unwrap();
        let url = url(kind, &dir.path().join("x.lock"));
        for error in ["524", "EOPNOTSUPP", "ENOSYS", "EINVAL"] {
            let answer = attempt_where_flock_fails(error, &url);
            assert!(answer.contains("is not possible at"), "{kind} {error}: {answer}");
            assert!(!answer.contains("use a local file system"), "{kind} {error}: {answer}");
        }
        // The kernel has no memory for a lock on this machine's own files.
        let answer = attempt_where_flock_fails("ENOLCK", &url);
        assert!(answer.contains("cannot lock"), "{kind}: {answer}");
    }
}

/// A process that takes the lock over can die before it has removed its private name. In a sticky directory another user may
/// not remove that name.
#[test]
fn another_users_private_name_keeps_nobody_out() {
    let (dir, path) = place();
    set_mode(dir.path(), 0o1777);
    let private = dir.path().join(".x.lock.tokio-lockfile.break");
    std::fs::write(&private, "   4194305\t \t\n").unwrap();
    assert_eq!(attempt_as_nobody(&url("shlockfile", &path)), "held");
    assert!(private.exists() && !path.exists());
}
