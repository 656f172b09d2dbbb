//! The shlock protocol, seen from the file system.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_lockfile::{LockError, LockFile};

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

/// A process that lives until this is dropped.
struct Living(std::process::Child);

impl Living {
    fn start() -> Self {
        Self(std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The record formats of gammu(1), minicom(1), maildrop(1), fetchmail(1), Python's filelock, INN's shlock -b,
/// microcom(1).
fn other_forms(pid: u32) -> Vec<Vec<u8>> {
    let texts =
        [format!("{pid} minicom root\n"), format!("{pid}:vm"), format!("{pid}\n300\n"), format!("{pid}\nhost\n")];
    let binary = [pid.to_ne_bytes().to_vec(), u64::from(pid).to_ne_bytes().to_vec()];
    texts.into_iter().map(String::into_bytes).chain(binary).collect()
}

#[tokio::test]
async fn a_living_holder_is_recognized_in_every_record_format() {
    let (_dir, path, lock) = place();
    let living = Living::start();
    for record in other_forms(living.pid()).into_iter().chain([format!("{:>10} gammu\n", living.pid()).into_bytes()]) {
        std::fs::write(&path, &record).unwrap();
        assert!(lock.attempt().await.unwrap().is_none(), "{record:?}");
        assert_eq!(lock.holder().await.unwrap().unwrap().pid(), living.pid(), "{record:?}");
        assert!(tokio_lockfile::check_lock(&path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), record);
    }
}

#[tokio::test]
async fn a_dead_holder_in_another_programs_format_is_named_and_its_file_stays() {
    let (_dir, path, lock) = place();
    let dead = dead_pid();
    for record in other_forms(dead) {
        std::fs::write(&path, &record).unwrap();
        let error = lock.attempt().await.unwrap_err();
        assert!(matches!(error, LockError::Stale { pid, .. } if pid == dead), "{record:?}: {error:?}");
        assert!(error.to_string().contains("another program"), "{error}");
        assert_eq!(lock.holder().await.unwrap(), None);
        assert_eq!(std::fs::read(&path).unwrap(), record);
    }
    // A format that shlock(1) and similar programs remove, with the name of a program after the PID.
    std::fs::write(&path, format!("{dead:>10} gammu\n")).unwrap();
    take(&lock).await.release().await.unwrap();
}

#[tokio::test]
async fn a_zero_alone_is_held_by_an_unknown_process() {
    let (_dir, path, lock) = place();
    std::fs::write(&path, "0\n").unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"0\n");
}

/// An earlier process had the same PID, or the program that started us wrote our PID. Our own records have a mark.
#[tokio::test]
async fn a_foreign_record_with_our_own_pid_is_taken_over() {
    let (_dir, path, lock) = place();
    std::fs::write(&path, format!("{}\n", std::process::id())).unwrap();
    assert_eq!(lock.holder().await.unwrap(), None);
    take(&lock).await.release().await.unwrap();
}

/// After a crash of the machine, the file can exist without its content. Its modification time shows who created it.
#[tokio::test]
async fn a_blank_file_of_ours_is_taken_over_at_once_and_no_other() {
    let (_dir, path, lock) = place();
    let guard = take(&lock).await;
    let ours = std::fs::metadata(&path).unwrap().modified().unwrap();
    let in_2038 = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(2_147_385_600);
    assert_eq!(ours, in_2038);
    guard.release().await.unwrap();
    for content in [&b""[..], &[0; 14]] {
        std::fs::write(&path, content).unwrap();
        assert!(lock.attempt().await.unwrap().is_none());
        std::fs::File::open(&path).unwrap().set_modified(ours).unwrap();
        assert_eq!(lock.holder().await.unwrap(), None);
        take(&lock).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn the_holder_has_held_since_now() {
    let (_dir, _path, lock) = place();
    let _guard = take(&lock).await;
    let since = lock.holder().await.unwrap().unwrap().since().unwrap();
    assert!(since.elapsed().unwrap_or_default() < HANG, "{since:?}");
}

/// The lock was created where a free flock does not prove that the holder is dead, such as on another machine that
/// shares the directory.
#[tokio::test]
async fn a_record_without_proof_is_never_broken() {
    let (_dir, path, lock) = place();
    let dead = dead_pid();
    let record = format!("{dead:>10}\t\t \n");
    std::fs::write(&path, &record).unwrap();
    let error = lock.attempt().await.unwrap_err();
    assert!(matches!(error, LockError::Stale { pid, .. } if pid == dead), "{error:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), record);
    let living = Living::start();
    std::fs::write(&path, format!("{:>10}\t\t \n", living.pid())).unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    std::fs::write(&path, &record).unwrap();
    let bold = LockFile::builder().break_stale_anywhere(true).shlock(&path).unwrap();
    take(&bold).await.release().await.unwrap();
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
async fn another_programs_record_counts_while_its_process_is_alive() {
    let (dir, path, lock) = place();
    let living = Living::start();
    std::fs::write(&path, format!("{:>10}\n", living.pid())).unwrap();
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid(), living.pid());
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
async fn links_of_dead_breakers_are_removed() {
    let (dir, path, lock) = place();
    let dead = dead_pid();
    let leftovers = [
        ".x.lock.tokio-lockfile.break".to_owned(),
        format!("shlock{dead}"),
        format!("shlock{dead}x"),
        format!("shlock{dead}-2"),
    ];
    for name in &leftovers {
        std::fs::write(&path, format!("{dead}\n")).unwrap();
        std::fs::hard_link(&path, dir.path().join(name)).unwrap();
        take(&lock).await.release().await.unwrap();
        assert_eq!(names(dir.path()), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn a_private_name_with_other_content_stays_and_a_free_lock_is_still_obtained() {
    let (dir, path, lock) = place();
    let private = dir.path().join(".x.lock.tokio-lockfile.break");
    for notes in ["my own notes", "somebody's notes, too long for a lock record"] {
        std::fs::write(&private, notes).unwrap();
        let guard = take(&lock).await;
        assert!(path.exists());
        guard.release().await.unwrap();
        assert_eq!(std::fs::read_to_string(&private).unwrap(), notes);
        // If the private name is needed, this is an error, and the error names the file.
        std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
        let error = lock.attempt().await.unwrap_err();
        assert!(error.to_string().contains(".x.lock.tokio-lockfile.break"), "{error}");
        assert_eq!(std::fs::read_to_string(&private).unwrap(), notes);
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn what_is_in_the_way_of_a_takeover_is_named_and_stays() {
    let (dir, path, lock) = place();
    let private = dir.path().join(".x.lock.tokio-lockfile.break");
    std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
    let plants: [fn(&std::path::Path); 2] =
        [|at| std::os::unix::fs::symlink("elsewhere", at).unwrap(), |at| std::fs::create_dir(at).unwrap()];
    for plant in plants {
        plant(&private);
        let error = lock.attempt().await.unwrap_err();
        assert_eq!(error.path(), Some(&*private), "{error}");
        assert!(private.symlink_metadata().is_ok() && path.exists());
        let _ = std::fs::remove_file(&private);
    }
}

/// The directory may have hundreds of thousands of names. In memory, all else runs on the executor.
#[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
#[test]
fn a_search_through_the_directory_runs_on_the_blocking_pool() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("x.lock");
    let lock = LockFile::shlock(&path).unwrap();
    std::fs::write(&path, format!("{}\n", dead_pid())).unwrap();
    std::fs::hard_link(&path, dir.path().join("precious")).unwrap();
    for number in 0..300 {
        std::fs::write(dir.path().join(number.to_string()), "").unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        // The pool's only thread is busy, so what the pool shall do cannot be done.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let busy = runtime.spawn_blocking(move || ended.recv());
        let mut attempt = Box::pin(lock.attempt());
        assert!(!poll_once(attempt.as_mut()).await, "the executor searches");
        drop(end);
        let _ = busy.await.unwrap();
        assert!(attempt.await.unwrap().is_none());
        std::fs::remove_file(dir.path().join("precious")).unwrap();
        let mut attempt = Box::pin(lock.attempt());
        assert!(poll_once(attempt.as_mut()).await, "nothing is to be searched");
    });
}

#[tokio::test]
async fn a_dead_breakers_link_is_removed_whatever_record_it_has() {
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

/// Another program takes the file over in place, without a new file. The PID that was read first is then outdated.
#[tokio::test]
async fn a_foreign_record_that_is_rewritten_is_read_again() {
    for poll_only in [false, true] {
        let (_dir, path, _) = place();
        let living = Living::start();
        std::fs::write(&path, format!("{:>10}\n", living.pid())).unwrap();
        let lock = LockFile::builder().poll_only(poll_only).shlock(&path).unwrap();
        let mut wait = Box::pin(lock.obtain());
        // The first attempts run on the blocking pool, which does not report when they are done.
        for _ in 0..1_000 {
            assert!(!poll_once(wait.as_mut()).await);
        }
        std::fs::write(&path, format!("{:>10}\n", dead_pid())).unwrap();
        drop(tokio::time::timeout(HANG, wait).await.expect("hangs").unwrap());
    }
}

#[tokio::test]
async fn unexplained_links_are_not_removed() {
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
async fn the_private_name_of_a_breaker_that_died_between_its_unlinks_is_removed() {
    let (dir, path, lock) = place();
    std::fs::write(dir.path().join(".x.lock.tokio-lockfile.break"), format!("{}\n", dead_pid())).unwrap();
    take(&lock).await.release().await.unwrap();
    assert!(!path.exists());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test]
async fn queries_never_make_an_attempt_fail() {
    let (_dir, path, lock) = place();
    Holder::holding(&lock).kill();
    // The record of a dead holder whose PID another process has now: only the flock shows that the holder is dead.
    std::fs::write(&path, format!("{:>10}\t \t\n", std::process::id())).unwrap();
    let query = std::fs::File::open(&path).unwrap();
    loop {
        query.lock_shared().unwrap();
        let (lock, began) = (lock.clone(), Instant::now());
        let attempt = tokio::spawn(async move { lock.attempt().await.unwrap().is_some() });
        tokio::task::yield_now().await;
        query.unlock().unwrap();
        // A query takes some microseconds. If this thread was off the CPU for longer, the test tries again.
        let was_short = began.elapsed() < Duration::from_millis(3);
        if attempt.await.unwrap() {
            return;
        }
        assert!(!was_short, "a query has made it fail");
    }
}
