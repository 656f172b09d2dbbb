//! Faults that need root: full and read-only file systems, other users' files, no free descriptors.

use std::fmt::Debug;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;
use tokio_lockfile::{LockError, LockFile, Singleton};
use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

use crate::{succeeds, take};

/// A small tmpfs for one test. It is unmounted at the end.
struct Mount(TempDir);

impl Mount {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        assert!(succeeds(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4096", "none"]).arg(dir.path())));
        Self(dir)
    }

    fn make_read_only(&self) {
        assert!(succeeds(Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path())));
    }

    fn lock_path(&self) -> PathBuf {
        self.0.path().join("x.lock")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg(self.0.path()));
    }
}

fn io_kind(error: &LockError) -> ErrorKind {
    error.io_error().unwrap_or_else(|| panic!("{error:?}")).kind()
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_nothing_is_published() {
    let mount = Mount::new();
    let path = mount.lock_path();
    std::fs::write(mount.0.path().join("filler"), [1; 4096]).unwrap();
    let error = LockFile::shlock(&path).unwrap().attempt().await.unwrap_err();
    assert_eq!(io_kind(&error), ErrorKind::StorageFull);
    assert!(!path.exists());
    // The flock kind does not need its record: it is only information.
    take(&LockFile::flock(&path).unwrap()).await.release().await.unwrap();
    assert_eq!(std::fs::read_dir(mount.0.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn a_read_only_file_system() {
    let mount = Mount::new();
    let (path, existing) = (mount.lock_path(), mount.0.path().join("existing"));
    std::fs::write(&existing, "").unwrap();
    mount.make_read_only();
    for lock in [LockFile::shlock(&path), LockFile::flock(&path)] {
        let error = lock.unwrap().attempt().await.unwrap_err();
        assert_eq!(io_kind(&error), ErrorKind::ReadOnlyFilesystem);
    }
    let lock = LockFile::flock(&existing).unwrap();
    let guard = take(&lock).await;
    assert!(!succeeds(Command::new("flock").arg("-n").arg(&existing).arg("true")));
    guard.release().await.unwrap();
}

const ROLE: &str = "TOKIO_LOCKFILE_TEST_ATTEMPT";

/// Not a real test: attempts once to take the lock of a URL, and prints the result for [`attempt_by`].
#[tokio::test]
async fn attempt_for_parent() {
    let Ok(url) = std::env::var(ROLE) else { return };
    match LockFile::open(&url).unwrap().attempt().await {
        Ok(Some(guard)) => match guard.release().await {
            Ok(()) => println!("ANSWER held"),
            Err(error) => println!("ANSWER held, then {error}"),
        },
        Ok(None) => println!("ANSWER busy"),
        Err(error) => println!("ANSWER {:?}: {error}", error.io_error().map(std::io::Error::kind)),
    }
}

/// Starts another process with `command`. Returns the result of its attempt.
pub(crate) fn attempt_by(command: &mut Command, url: &str) -> String {
    answer_by(command, "faults::attempt_for_parent", (ROLE, url))
}

/// Starts another process with `command`, which runs the test of this name for its parent. Returns its answer.
pub(crate) fn answer_by(command: &mut Command, test: &str, (role, url): (&str, &str)) -> String {
    // Another user may have no access to the directory of this binary.
    let dir = TempDir::new_in("/tmp").unwrap();
    let program = dir.path().join("attempt");
    // Another process makes the copy. If this process did, a child that another thread forks could inherit the
    // descriptor that is open for writing, and execve(2) would fail with ETXTBSY.
    assert!(succeeds(Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program)));
    set_mode(dir.path(), 0o755);
    command.arg(&program).args([test, "--exact", "--nocapture"]).env(role, url);
    let output = command.output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = output.split("ANSWER ").nth(1).unwrap_or_else(|| panic!("{command:?}: {output}"));
    answer.lines().next().unwrap().to_owned()
}

pub(crate) fn attempt_as_nobody(url: &str) -> String {
    attempt_as(65534, 65534, url)
}

fn attempt_as(user: u32, group: u32, url: &str) -> String {
    let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
    attempt_by(Command::new("setpriv").args([&user, &group, "--clear-groups"]), url)
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn other_users_files_and_directories() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.lock");
    let (shlock, flock) = (format!("shlockfile:{}", path.display()), format!("flockfile:{}", path.display()));

    set_mode(dir.path(), 0o755);
    assert!(attempt_as_nobody(&shlock).starts_with("Some(PermissionDenied)"));
    assert!(attempt_as_nobody(&flock).starts_with("Some(PermissionDenied)"));

    // The file need not be world-writable: flock(2) needs only read access.
    std::fs::write(&path, "").unwrap();
    set_mode(&path, 0o644);
    assert_eq!(attempt_as_nobody(&flock), "held");
    let guard = take(&LockFile::flock(&path).unwrap()).await;
    assert_eq!(attempt_as_nobody(&flock), "busy");
    guard.release().await.unwrap();

    set_mode(&path, 0o600);
    assert!(attempt_as_nobody(&flock).starts_with("Some(PermissionDenied)"));
    assert!(attempt_as_nobody(&shlock).starts_with("Some(PermissionDenied)"));

    // As in /run/lock.
    std::fs::remove_file(&path).unwrap();
    set_mode(dir.path(), 0o1777);
    let guard = take(&LockFile::shlock(&path).unwrap()).await;
    assert_eq!(attempt_as_nobody(&shlock), "busy");
    guard.release().await.unwrap();
    assert_eq!(attempt_as_nobody(&shlock), "held");
}

/// See proc_sys_fs(5): with fs.protected_hardlinks, only its owner and users who may write to a file can link it.
#[tokio::test]
async fn a_dead_users_file() {
    let is_protected = std::fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap().trim() != "0";
    let dir = TempDir::new().unwrap();
    set_mode(dir.path(), 0o777);
    let path = dir.path().join("x.lock");
    let url = format!("shlockfile:{}", path.display());
    let leave_stale = |mode| {
        std::fs::write(&path, "   4194305\t \t\n").unwrap();
        set_mode(&path, mode);
    };

    leave_stale(0o644);
    let answer = attempt_as_nobody(&url);
    match is_protected {
        true => {
            assert!(answer.starts_with("Some(PermissionDenied)") && answer.contains("belongs to user 0"), "{answer}")
        }
        false => assert_eq!(answer, "held"),
    }
    leave_stale(0o666);
    assert_eq!(attempt_as_nobody(&url), "held");

    // As the guide recommends.
    let group = 65533;
    leave_stale(0o664);
    std::os::unix::fs::chown(&path, Some(65532), Some(group)).unwrap();
    std::os::unix::fs::chown(dir.path(), None, Some(group)).unwrap();
    set_mode(dir.path(), 0o2775);
    assert_eq!(attempt_as(65534, group, &url), "held");

    // In a sticky directory, a user who may write to a file may still not remove it.
    set_mode(dir.path(), 0o1777);
    leave_stale(0o666);
    let answer = attempt_as_nobody(&url);
    for part in ["Some(PermissionDenied)", "belongs to user 0", "sticky", "by hand"] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "there are leftover files beside it");
    // Another link to it is no reason to take it for held.
    std::fs::hard_link(&path, dir.path().join("planted")).unwrap();
    assert!(attempt_as_nobody(&url).contains("sticky"));
    std::fs::remove_file(dir.path().join("planted")).unwrap();

    leave_stale(0o644);
    take(&LockFile::shlock(&path).unwrap()).await.release().await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The file is made immutable with chattr(1).
#[tokio::test]
async fn a_stale_file_that_cannot_be_changed() {
    let (_dir, path) = crate::place();
    std::fs::write(&path, "   4194305\t \t\n").unwrap();
    let chattr = |flag| Command::new("chattr").arg(flag).arg(&path).status().unwrap().success();
    assert!(chattr("+i"), "this file system has no such flag");
    let refused = LockFile::shlock(&path).unwrap().attempt().await;
    assert!(chattr("-i"));
    assert_eq!(io_kind(&refused.unwrap_err()), ErrorKind::PermissionDenied);
}

/// A lock is not a write: chattr(1) forbids to open these files for writing, or to change what they hold.
#[tokio::test]
async fn files_that_nobody_may_write_can_be_locked() {
    for (flag, content) in [("i", &b"data"[..]), ("a", b"data"), ("i", &[0; 16]), ("a", &[0; 16])] {
        let (_dir, path) = crate::place();
        std::fs::write(&path, content).unwrap();
        let chattr = |sign: &str| succeeds(Command::new("chattr").arg(format!("{sign}{flag}")).arg(&path));
        assert!(chattr("+"), "this file system has no such flag");
        let lock = LockFile::flock(&path).unwrap();
        let mut outcomes = Vec::new();
        for lock in [lock.shared().unwrap(), lock] {
            outcomes.push(match lock.attempt().await {
                Ok(Some(guard)) => {
                    assert!(!succeeds(Command::new("flock").args(["-n", "-x"]).arg(&path).arg("true")));
                    assert!(guard.file().is_some());
                    guard.release().await.map_err(|error| error.to_string())
                }
                other => Err(format!("{other:?}")),
            });
        }
        assert!(chattr("-"));
        assert_eq!(outcomes, [Ok(()), Ok(())], "chattr +{flag}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

/// chattr(1) makes a directory from which no file can be removed.
#[tokio::test]
async fn a_stale_file_in_an_append_only_directory_gets_no_link_that_stays() {
    let (dir, path) = crate::place();
    std::fs::write(&path, "   4194305\t \t\n").unwrap();
    let chattr = |flag| assert!(succeeds(Command::new("chattr").arg(flag).arg(dir.path())));
    chattr("+a");
    let refused = LockFile::shlock(&path).unwrap().attempt().await;
    chattr("-a");
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("append-only"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "there are leftover files beside it");
}

/// The disk has become read-only, so a release could not blank its record. The next holder cannot write one either.
#[tokio::test]
async fn a_record_that_nobody_can_blank_is_no_death() {
    let mount = Mount::new();
    let path = mount.lock_path();
    std::fs::write(&path, "   4194305\t\t \t\t\n").unwrap();
    mount.make_read_only();
    let warnings = Warnings::default();
    let listening = tracing::subscriber::set_default(warnings.subscriber());
    take(&LockFile::flock(&path).unwrap()).await.release().await.unwrap();
    drop(listening);
    assert_eq!(warnings.text(), "");
}

#[test]
fn a_release_that_cannot_blank_its_record_is_an_error() {
    let dir = TempDir::new().unwrap();
    let url = format!("flockfile:{}", dir.path().join("x.lock").display());
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=pwrite64:error=EROFS:when=2"]);
    let answer = attempt_by(&mut strace, &url);
    assert!(answer.contains("cannot blank the record in lock file"), "{answer}");
}

/// The text of the warnings that this thread logs.
#[derive(Clone, Default)]
pub(crate) struct Warnings(Arc<Mutex<String>>);

impl Warnings {
    pub(crate) fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        registry().with(self.clone())
    }

    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            event.record(&mut |field: &Field, value: &dyn Debug| {
                self.0.lock().unwrap().push_str(&format!("{field}={value:?} "));
            });
        }
    }
}

/// chattr(1) makes a directory from which no file can be removed.
#[tokio::test]
async fn a_release_that_fails_is_an_error_and_a_drop_that_fails_a_warning() {
    let (dir, path) = crate::place();
    let chattr = |flag| assert!(succeeds(Command::new("chattr").arg(flag).arg(dir.path())));
    let lock = LockFile::shlock(&path).unwrap();
    for is_dropped in [false, true] {
        let guard = take(&lock).await;
        chattr("+a");
        if is_dropped {
            let warnings = Warnings::default();
            let _listening = tracing::subscriber::set_default(warnings.subscriber());
            drop(guard);
            let warnings = warnings.text();
            for part in ["could not be released properly", path.to_str().unwrap(), "Operation not permitted"] {
                assert!(warnings.contains(part), "{part}: {warnings}");
            }
        } else {
            let error = guard.release().await.unwrap_err();
            assert_eq!((error.path(), io_kind(&error)), (Some(&*path), ErrorKind::PermissionDenied));
        }
        chattr("-a");
        assert!(path.exists() && !lock.locked());
        // The file that is left does not keep other processes out.
        take(&lock).await.release().await.unwrap();
    }
}

/// The lock was held to the end: that its file stays is no reason to do the work twice.
#[tokio::test]
async fn work_that_is_done_is_not_done_again_because_the_release_fails() {
    let (dir, path) = crate::place();
    let chattr = |flag| assert!(succeeds(Command::new("chattr").arg(flag).arg(dir.path())));
    let leader = Singleton::new(LockFile::shlock(&path).unwrap());
    let work = || async {
        chattr("+a");
        Ok::<_, String>("served")
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), leader.run(work, std::future::pending::<()>())).await;
    chattr("-a");
    assert_eq!(ended.expect("hangs").unwrap(), Some("served"));
}

/// The limit is two processes. The program itself counts as one, and its second thread as the other.
#[tokio::test]
async fn no_threads_left() {
    let dir = TempDir::new().unwrap();
    set_mode(dir.path(), 0o777);
    let url = format!("shlockfile:{}", dir.path().join("x.lock").display());
    // No other process runs with this user ID, so none counts towards the limit.
    let user = "--reuid=54321";
    let limited = |limit: usize| {
        let script = format!("ulimit -u {limit}; exec setpriv {user} --regid=54321 --clear-groups \"$@\"");
        attempt_by(Command::new("bash").args(["-c", &script, "bash"]), &url)
    };
    let answers: Vec<String> = (1..8).filter_map(|limit| std::panic::catch_unwind(|| limited(limit)).ok()).collect();
    assert!(answers.iter().any(|answer| answer.contains("the system starts no thread")), "{answers:?}");
    assert!(answers.iter().any(|answer| answer == "held"), "{answers:?}");
    assert!(answers.iter().all(|answer| answer != "busy"), "{answers:?}");
}

#[tokio::test]
async fn a_file_size_limit_leaves_no_half_record() {
    let dir = TempDir::new().unwrap();
    for scheme in ["shlockfile", "flockfile"] {
        let path = dir.path().join(scheme);
        let url = format!("{scheme}:{}", path.display());
        // Every record is longer than 8 bytes.
        let answer = attempt_by(Command::new("prlimit").arg("--fsize=8").arg("--"), &url);
        match scheme {
            "shlockfile" => assert!(answer.contains("FileTooLarge") && !path.exists(), "{answer}"),
            _ => assert!(answer == "held" && std::fs::read(&path).unwrap() == [0; 8], "{answer}"),
        }
    }
}

/// The first case is an ordinary user before Linux 6.10 without /proc: a file without a name cannot be linked. The
/// second case is a sandbox that forbids link(2).
#[tokio::test]
async fn links_that_are_refused() {
    let dir = TempDir::new().unwrap();
    let url = format!("shlockfile:{}", dir.path().join("x.lock").display());
    let inject = |what: &str| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("inject=linkat:{what}"));
        attempt_by(&mut strace, &url)
    };
    assert_eq!(inject("error=ENOENT:when=1..2"), "held");
    for error in ["EPERM", "EACCES", "EXDEV", "ENOSYS"] {
        let answer = inject(&format!("error={error}"));
        let is_named = answer.contains("is not possible at") && answer.contains("use the flock kind");
        assert!(is_named, "{error}: {answer}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files are left");
}

#[tokio::test]
async fn no_descriptors_left() {
    let dir = TempDir::new().unwrap();
    for scheme in ["shlockfile", "flockfile"] {
        let path = dir.path().join(scheme);
        let limits: Vec<String> = (3..40).map(|limit| limit.to_string()).collect();
        let answers: Vec<String> = limits
            .iter()
            .filter_map(|limit| {
                let script = format!("ulimit -n {limit}; exec \"$@\"");
                let url = format!("{scheme}:{}", path.display());
                std::panic::catch_unwind(|| attempt_by(Command::new("sh").args(["-c", &script, "sh"]), &url)).ok()
            })
            .collect();
        assert!(answers.iter().any(|answer| answer == "held"), "{answers:?}");
        assert!(answers.iter().all(|answer| answer != "busy"), "{answers:?}");
        assert!(!dir.path().join("shlockfile").exists());
    }
}

const WATCHING: &str = "TOKIO_LOCKFILE_TEST_WATCHING";

/// Not a real test: another process runs this. It holds locks in a directory, and waits for their loss for a while.
#[tokio::test]
async fn wait_for_losses_for_parent() {
    let Some(dir) = std::env::var_os(WATCHING) else { return };
    let mut holders = tokio::task::JoinSet::new();
    for number in 0..20 {
        let guard = take(&LockFile::flock(Path::new(&dir).join(number.to_string())).unwrap()).await;
        holders.spawn(async move { guard.lost().await });
    }
    assert!(tokio::time::timeout(Duration::from_secs(2), holders.join_next()).await.is_err());
}

/// As where the instances of a user are used up, or the watches.
#[test]
fn events_that_are_refused_are_not_asked_for_again_and_again() {
    for (call, error) in [("inotify_init1", "EMFILE"), ("inotify_add_watch", "ENOSPC")] {
        let dir = TempDir::new().unwrap();
        let trace = dir.path().join("trace");
        let began = std::time::Instant::now();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:error={error}"), "-o"]);
        strace.arg(&trace).arg(std::env::current_exe().unwrap());
        strace.args(["faults::wait_for_losses_for_parent", "--exact"]).env(WATCHING, dir.path());
        assert!(succeeds(&mut strace));
        let refused = std::fs::read_to_string(&trace).unwrap().matches("INJECTED").count();
        let most = 1 + began.elapsed().as_secs() as usize / 2;
        assert!((1..=most).contains(&refused), "{refused} calls of {call} in {:?}", began.elapsed());
    }
}

/// Any user can make such a mount point with fusermount3(1). Its name is in the list of all mounts of the namespace.
#[tokio::test]
async fn a_mount_point_that_is_no_utf8_hides_no_file_system() {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let path = dir.path().join("x.lock");
    for (scheme, answer) in [("shlockfile", "held"), ("flockfile", "held")] {
        std::fs::write(&path, "   4194305\t \t\n").unwrap();
        let script = r#"mkdir "$0"/$'\xff\f-\fnfs' && mount -t tmpfs none "$0"/$'\xff\f-\fnfs' && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", script]).arg(dir.path());
        assert_eq!(attempt_by(&mut command, &format!("{scheme}:{}", path.display())), answer, "{scheme}");
        std::fs::remove_dir(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff\x0c-\x0cnfs"))).unwrap();
    }
}

/// The owner of a directory chooses where a link in it leads. Another user's process must not make anything there.
#[tokio::test]
async fn nothing_is_made_where_another_users_link_leads() {
    let dir = TempDir::new().unwrap();
    let [theirs, secret] = ["theirs", "secret"].map(|name| dir.path().join(name));
    std::fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
    std::fs::create_dir(&secret).unwrap();
    let link = theirs.join("app");
    let put_link = |owner| {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(owner), None).unwrap();
    };
    let attempt = async |scheme: &str, path: &Path| {
        let mut builder = LockFile::builder();
        let url = format!("{scheme}:{}", path.display());
        builder.create_dirs(true).exact_mode(0o666).open(&url).unwrap().attempt().await
    };
    // A link of root in another user's directory can be moved by that user.
    for owner in [65534, 0] {
        put_link(owner);
        for (scheme, name) in
            crate::identity::KINDS.iter().flat_map(|scheme| [(scheme, "x.lock"), (scheme, "new/x.lock")])
        {
            let error = attempt(scheme, &link.join(name)).await.unwrap_err();
            assert_eq!(io_kind(&error), ErrorKind::PermissionDenied);
            let text = error.to_string();
            assert!(text.contains(&format!("{link:?} is a symbolic link")) && text.contains("65534"), "{text}");
            assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 0, "{scheme} {name}: made where the link leads");
        }
    }
    // Root's own link may lead anywhere.
    std::os::unix::fs::chown(&theirs, Some(0), None).unwrap();
    for scheme in crate::identity::KINDS {
        let guard = attempt(scheme, &link.join("new/x.lock")).await.unwrap().unwrap();
        assert!(secret.join("new/x.lock").exists());
        guard.release().await.unwrap();
        std::fs::remove_dir_all(secret.join("new")).unwrap();
    }
}

/// The same while the other user exchanges the link and a directory all the time, with renameat2(2).
#[tokio::test]
async fn no_moment_is_right_for_another_users_link() {
    let dir = TempDir::new().unwrap();
    let [theirs, secret] = ["theirs", "secret"].map(|name| dir.path().join(name));
    for directory in [&theirs, &secret, &theirs.join("app")] {
        std::fs::create_dir(directory).unwrap();
    }
    let [app, link] = ["app", "link"].map(|name| theirs.join(name));
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    for path in [&theirs, &app, &link] {
        std::os::unix::fs::lchown(path, Some(65534), None).unwrap();
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let exchange = std::thread::spawn({
        let (app, link, is_over) = (app.clone(), link.clone(), Arc::clone(&is_over));
        move || {
            while !is_over.load(Ordering::Relaxed) {
                renameat_with(CWD, &app, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            }
        }
    });
    let mut builder = LockFile::builder();
    builder.create_dirs(true).exact_mode(0o666);
    let (mut made, mut refused) = (0, 0);
    for round in 0..1_000 {
        for lock in [builder.shlock(app.join(format!("{round}/s"))), builder.flock(app.join(format!("{round}/f")))] {
            match lock.unwrap().attempt().await {
                Ok(_) => made += 1,
                Err(error) if error.to_string().contains("is a symbolic link") => refused += 1,
                // The directory is exchanged between two calls.
                Err(error) => {
                    assert!(matches!(io_kind(&error), ErrorKind::NotFound | ErrorKind::NotADirectory), "{error}");
                }
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    exchange.join().unwrap();
    assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 0, "made where the link leads");
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
}
