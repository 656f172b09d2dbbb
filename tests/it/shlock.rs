//! The shlock protocol, seen from the file system.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio_lockfile::LockFile;

use crate::support::{HANG, Holder, in_own_process, poll_once, take};

fn place() -> (tempfile::TempDir, PathBuf, LockFile) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let lock = LockFile::shlock(&path).unwrap();
    (dir, path, lock)
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn dead_pid() -> u32 {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[tokio::test]
async fn the_record_is_fourteen_bytes() {
    let (_dir, path, lock) = place();
    let guard = take(&lock).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{:>10}\t \t\n", std::process::id()));
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.nlink(), metadata.permissions().mode() & 0o7133), (1, 0));
    drop(guard);
    let private = LockFile::builder().mode(0o600).shlock(&path).unwrap();
    let guard = take(&private).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(guard);
}

#[tokio::test]
async fn a_lock_file_gets_its_permissions_less_the_umask() {
    if !in_own_process("shlock::a_lock_file_gets_its_permissions_less_the_umask") {
        return;
    }
    let (dir, _, _) = place();
    for (umask, shlock, flock, given) in [(0, 0o644, 0o666, 0o660), (0o027, 0o640, 0o640, 0o640)] {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        let path = |name: &str| dir.path().join(format!("{name}{umask}"));
        let mut with_mode = LockFile::builder();
        with_mode.mode(0o660);
        for (lock, mode) in [
            (LockFile::shlock(path("s")), shlock),
            (LockFile::flock(path("f")), flock),
            (with_mode.shlock(path("sm")), given),
            (with_mode.flock(path("fm")), given),
        ] {
            let lock = lock.unwrap();
            let _guard = take(&lock).await;
            assert_eq!(
                std::fs::metadata(lock.path().unwrap()).unwrap().permissions().mode() & 0o7777,
                mode,
                "{lock:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_foreign_record_holds_while_its_pid_lives() {
    let (dir, path, lock) = place();
    std::fs::write(&path, format!("{:>10}\n", std::process::id())).unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), std::process::id());
    std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
    assert_eq!(lock.holder().await.unwrap(), None);
    take(&lock).await.release().await.unwrap();
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test]
async fn a_marked_record_without_its_flock_is_stale_whatever_its_pid() {
    let (_dir, path, lock) = place();
    std::fs::write(&path, format!("{:>10}\t \t\n", std::process::id())).unwrap();
    assert_eq!(lock.holder().await.unwrap(), None);
    take(&lock).await.release().await.unwrap();
}

#[tokio::test]
async fn a_fresh_blank_file_is_held() {
    let (_dir, path, lock) = place();
    for content in [&b""[..], &[0; 14], &[0; 200]] {
        std::fs::write(&path, content).unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        assert_eq!(lock.holder().await.unwrap().map(|holder| holder.pid()), Some(0));
        assert!(!tokio_lockfile::check_lock(&path).unwrap(), "it names no process");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

#[tokio::test]
async fn links_of_dead_breakers_are_purged() {
    let (dir, path, lock) = place();
    let dead = dead_pid();
    let litter = [
        ".x.lock.tokio-lockfile.break".to_owned(),
        format!("shlock{dead}"),
        format!("shlock{dead}x"),
        format!("shlock{dead}-2"),
    ];
    for name in &litter {
        std::fs::write(&path, format!("{dead}\n")).unwrap();
        std::fs::hard_link(&path, dir.path().join(name)).unwrap();
        take(&lock).await.release().await.unwrap();
        assert_eq!(names(dir.path()), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn what_is_no_record_keeps_a_private_name_and_is_no_reason_to_refuse_a_free_lock() {
    let (dir, path, lock) = place();
    let private = dir.path().join(".x.lock.tokio-lockfile.break");
    for notes in ["my own notes", "somebody's notes, too long for a lock record"] {
        std::fs::write(&private, notes).unwrap();
        let guard = take(&lock).await;
        assert!(path.exists());
        guard.release().await.unwrap();
        assert_eq!(std::fs::read_to_string(&private).unwrap(), notes);
        // Where the name is needed, that is an error, which names it.
        std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
        let error = lock.attempt().await.unwrap_err();
        assert!(error.to_string().contains(".x.lock.tokio-lockfile.break"), "{error}");
        assert_eq!(std::fs::read_to_string(&private).unwrap(), notes);
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn any_record_a_breaker_can_have_linked_is_cleared() {
    let (dir, path, lock) = place();
    let dead = dead_pid();
    for record in [format!("{dead:>10}\t \t\n"), format!("{dead}{}", " ".repeat(200)), "\0".repeat(200), "    ".into()]
    {
        std::fs::write(dir.path().join(".x.lock.tokio-lockfile.break"), record).unwrap();
        std::fs::write(&path, format!("{dead}\n")).unwrap();
        take(&lock).await.release().await.unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

/// In place, as a program does that takes the file over without a new one: the PID first seen says nothing any more.
#[tokio::test]
async fn a_foreign_record_that_is_rewritten_is_read_again() {
    for poll_only in [false, true] {
        let (_dir, path, _) = place();
        std::fs::write(&path, format!("{:>10}\n", std::process::id())).unwrap();
        let lock = LockFile::builder().poll_only(poll_only).shlock(&path).unwrap();
        let mut wait = Box::pin(lock.obtain());
        // The first tries run on the blocking pool, which tells nobody when it is done.
        for _ in 0..1_000 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        std::fs::write(&path, format!("{:>10}\n", dead_pid())).unwrap();
        drop(tokio::time::timeout(HANG, wait).await.expect("hangs").unwrap());
    }
}

#[tokio::test]
async fn unexplained_links_are_not_ours_to_remove() {
    let (dir, path, lock) = place();
    std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
    let precious = dir.path().join("precious");
    std::fs::hard_link(&path, &precious).unwrap();
    let ours_alive = dir.path().join(format!("shlock{}", std::process::id()));
    std::fs::hard_link(&path, &ours_alive).unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    assert!(path.exists() && precious.exists() && ours_alive.exists());
}

#[tokio::test]
async fn the_private_name_of_a_breaker_who_died_between_his_unlinks_goes() {
    let (dir, path, lock) = place();
    std::fs::write(dir.path().join(".x.lock.tokio-lockfile.break"), format!("{}\n", dead_pid())).unwrap();
    take(&lock).await.release().await.unwrap();
    assert!(!path.exists());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test]
async fn questions_never_make_a_try_fail() {
    let (_dir, path, lock) = place();
    Holder::holding(&lock).kill();
    // The record of a dead holder whose PID has been recycled: only the flock tells.
    std::fs::write(&path, format!("{:>10}\t \t\n", std::process::id())).unwrap();
    let question = std::fs::File::open(&path).unwrap();
    question.lock_shared().unwrap();
    let attempt = tokio::spawn(async move { lock.attempt().await.unwrap().is_some() });
    tokio::task::yield_now().await;
    drop(question);
    assert!(attempt.await.unwrap());
}
