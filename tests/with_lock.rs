//! The example `with_lock`, as a user runs it. `cargo test` builds the examples before it runs the tests.
#![cfg(unix)]
#![expect(unsafe_code, reason = "only pre_exec can make a program's caller ignore a signal that no shell ignores")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::SignalKind;
use tokio_lockfile::LockFile;

/// The limit for a hang. No wait takes this long when the test succeeds.
const HANG: Duration = Duration::from_secs(120);

/// What a shell does that waits for a signal: dash(1) does not notice one that comes right before a `read`.
const PAUSE: &str = "sleep 0.05";

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/with_lock");
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let source = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/with_lock")).unwrap();
    let is_built = source.flatten().all(|file| changed(&program) >= changed(&file.path()));
    assert!(is_built, "no present {program:?}: run `cargo build --example with_lock` first");
    program
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(HANG, future).await.expect("hangs")
}

struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(lock: &LockFile, command: &str) -> Self {
        Self::with(&[lock.url().to_string().as_str(), "--", "sh", "-c", command])
    }

    fn with(arguments: &[&str]) -> Self {
        Self::run(Command::new(program()).args(arguments))
    }

    fn run(command: &mut Command) -> Self {
        // A shell without job control lets its background processes ignore these. What this process catches is at its
        // default in its children.
        for kind in [SignalKind::interrupt(), SignalKind::quit()] {
            drop(tokio::signal::unix::signal(kind).unwrap());
        }
        // In a group of its own, which is not in the foreground of a terminal.
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdin, stdout, stderr }
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit code, and what it has said.
    async fn end(mut self) -> (i32, String) {
        drop(self.stdin);
        let status = in_time(self.child.wait()).await.unwrap();
        let mut said = String::new();
        in_time(self.stderr.read_to_string(&mut said)).await.unwrap();
        (status.code().expect("it has an exit code"), said)
    }
}

async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> String {
    let mut line = String::new();
    in_time(from.read_line(&mut line)).await.unwrap();
    line.trim_end().into()
}

fn file_kinds(dir: &Path) -> [LockFile; 2] {
    [LockFile::shlock(dir.join("x.lock")).unwrap(), LockFile::flock(dir.join("y.lock")).unwrap()]
}

#[tokio::test]
async fn its_exit_codes_are_those_of_flock() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    std::fs::write(path("notes"), "not a lock").unwrap();
    let held = LockFile::new(path("held")).unwrap();
    let guard = held.attempt().await.unwrap().unwrap();
    let (free, held) = (path("free"), path("held"));
    for (code, arguments) in [
        (0, &["--help"][..]),
        (0, &[&free, "true"]),
        (3, &["--shared", &format!("flockfile:{}", path("f")), "--", "sh", "-c", "exit 3"]),
        (137, &[&free, "sh", "-c", "kill -KILL $$"]),
        (1, &["--timeout", "10ms", &held, "true"]),
        (1, &[&held, "-n", "--", "true"]),
        (9, &["-w", "0.01", "-E", "9", &held, "true"]),
        (64, &[]),
        (64, &[&free]),
        (64, &["--url-file", &free, "true"]),
        (64, &["--url-env", "TOKIO_LOCKFILE_NO_SUCH_VARIABLE", "true"]),
        (64, &["--url-file", &free, "--url-env", "PATH", "true"]),
        (64, &["--bogus", &free, "true"]),
        (64, &["-w", "soon", &free, "true"]),
        (64, &["nosuchlock:/x", "true"]),
        (65, &[&path("notes"), "true"]),
        (66, &[&path("missing/x.lock"), "true"]),
        (69, &[&free, "/no/such/program"]),
    ] {
        let (ended, said) = Running::with(arguments).end().await;
        assert_eq!(ended, code, "{arguments:?}: {said}");
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn an_option_may_have_its_value_behind_an_equals_sign() {
    let dir = TempDir::new().unwrap();
    let held = LockFile::new(dir.path().join("held")).unwrap();
    let guard = held.attempt().await.unwrap().unwrap();
    let url = held.url().to_string();
    let (code, said) = Running::with(&["--timeout=10ms", "--conflict-exit-code=9", &url, "true"]).end().await;
    assert_eq!(code, 9, "{said}");
    for short in [&["-w10ms", "-E9"], &["-w=10ms", "-E=9"]] {
        let (code, said) = Running::with(&[short[0], short[1], &url, "true"]).end().await;
        assert_eq!(code, 9, "{short:?}: {said}");
    }
    let variable = format!("TOKIO_LOCKFILE_URL={url}");
    let mut command = Command::new("env");
    command.arg(variable).arg(program()).args(["-n", "--url-env=TOKIO_LOCKFILE_URL", "true"]);
    assert_eq!(Running::run(&mut command).end().await.0, 1);
    for wrong in ["--shared=yes", "--nonblock=1", "--bogus=S3cretPw"] {
        let (code, said) = Running::with(&[wrong, &url, "true"]).end().await;
        assert!(code == 64 && said.contains(wrong.split('=').next().unwrap()), "{code}: {said}");
        assert!(!said.contains("S3cretPw"), "{said}");
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_wrong_value_is_told_with_its_option_and_what_is_right() {
    for (option, value, told) in [
        ("-E", "300", "-E 300: it is a number from 0 to 255"),
        ("--conflict-exit-code", "x", "--conflict-exit-code x: it is a number from 0 to 255"),
        ("-w", "5d", "-w 5d: it is a time, such as 5s or 500ms"),
        ("--timeout", "-1", "--timeout -1: it is a time, such as 5s or 500ms"),
    ] {
        let (code, said) = Running::with(&[option, value, "/x", "true"]).end().await;
        assert!(code == 64 && said.contains(told), "{code}: {said}");
    }
}

#[tokio::test]
async fn a_url_file_that_is_no_plain_file_or_has_more_than_a_url_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let fifo = path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let lines = path("lines");
    std::fs::write(&lines, "lockfile:/tmp/x.lock\nlockfile:/tmp/y.lock\n").unwrap();
    for (file, told) in
        [(&fifo, "is not a plain file"), (&lines, "more than one line"), (&path(""), "is not a plain file")]
    {
        let (code, said) = Running::with(&["--url-file", file, "true"]).end().await;
        assert!(code == 64 && said.contains(told), "{code}: {said}");
    }
}

#[tokio::test]
async fn a_lock_for_tasks_of_one_process_is_warned_of() {
    let (code, said) = Running::with(&["nulllockfile:x", "true"]).end().await;
    assert!(code == 0 && said.contains("warning: a null lock excludes no other process"), "{code}: {said}");
}

#[tokio::test]
async fn it_tells_who_holds_the_lock_while_it_waits() {
    let dir = TempDir::new().unwrap();
    for lock in file_kinds(dir.path()) {
        let guard = lock.attempt().await.unwrap().unwrap();
        let mut waiting = Running::start(&lock, "echo works");
        let said = line(&mut waiting.stderr).await;
        assert!(said.contains(&format!("is held by pid {} (", std::process::id())), "{said}");
        guard.release().await.unwrap();
        assert_eq!(line(&mut waiting.stdout).await, "works");
        assert_eq!(waiting.end().await, (0, String::new()));
    }
}

#[tokio::test]
async fn the_lock_is_held_as_long_as_the_command_lives() {
    let dir = TempDir::new().unwrap();
    let is_over = dir.path().join("over");
    for lock in file_kinds(dir.path()) {
        let command = format!(
            "for signal in INT QUIT HUP USR1 USR2 TERM; do trap \"echo $signal\" $signal; done; \
             echo works; until [ -e '{}' ]; do {PAUSE}; done; read line; exit $line",
            is_over.display()
        );
        let mut running = Running::start(&lock, &command);
        assert_eq!(line(&mut running.stdout).await, "works");
        for (signal, name) in [
            (Signal::INT, "INT"),
            (Signal::QUIT, "QUIT"),
            (Signal::HUP, "HUP"),
            (Signal::USR1, "USR1"),
            (Signal::USR2, "USR2"),
            (Signal::TERM, "TERM"),
        ] {
            running.signal(signal);
            assert_eq!(line(&mut running.stdout).await, name);
        }
        assert!(lock.attempt().await.unwrap().is_none());
        running.stdin.write_all(b"5\n").await.unwrap();
        std::fs::write(&is_over, "").unwrap();
        assert_eq!(running.end().await, (5, String::new()));
        drop(lock.attempt().await.unwrap().expect("the lock is not released"));
        std::fs::remove_file(&is_over).unwrap();
    }
}

#[tokio::test]
async fn a_command_whose_lock_is_lost_is_stopped() {
    let dir = TempDir::new().unwrap();
    for lock in file_kinds(dir.path()) {
        let mut running =
            Running::start(&lock, &format!("trap 'echo cleans up; exit' TERM; echo works; while :; do {PAUSE}; done"));
        assert_eq!(line(&mut running.stdout).await, "works");
        std::fs::remove_file(lock.path().unwrap()).unwrap();
        let mut rest = String::new();
        in_time(running.stdout.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "cleans up\n");
        let (code, said) = running.end().await;
        assert!(code == 75 && said.contains("lost the lock"), "{code}: {said}");
    }
}

/// As under nohup(1), and in the background of a script.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_ignores_the_signals_that_its_caller_ignores() {
    let dir = TempDir::new().unwrap();
    let script = "trap '' INT QUIT HUP TERM; exec \"$0\" \"$1\" sh -c 'kill -INT $$; kill -QUIT $$; kill -HUP $$; \
                  kill -TERM $$; echo survived'";
    let mut running = Running::run(Command::new("sh").args(["-c", script]).arg(program()).arg(dir.path().join("x")));
    assert_eq!(line(&mut running.stdout).await, "survived");
    assert_eq!(running.end().await, (0, String::new()));
}

/// As under some daemons. The kernel then keeps no exit code of a child.
#[tokio::test]
async fn the_exit_code_is_there_also_if_the_caller_ignores_the_ends_of_its_children() {
    let dir = TempDir::new().unwrap();
    for (code, script) in [(0, "exit 0"), (3, "exit 3"), (137, "kill -KILL $$")] {
        let mut command = Command::new(program());
        command.arg(dir.path().join("x")).args(["sh", "-c", script]);
        // SAFETY: signal(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| match libc::signal(libc::SIGCHLD, libc::SIG_IGN) {
                libc::SIG_ERR => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            })
        };
        assert_eq!(Running::run(&mut command).end().await, (code, String::new()));
    }
}

/// As when the output goes to a program that has ended.
#[tokio::test]
async fn nobody_need_read_what_it_says() {
    let dir = TempDir::new().unwrap();
    for lock in file_kinds(dir.path()) {
        let command = format!("exec 2>&-; trap 'echo cleans up; exit' TERM; echo works; while :; do {PAUSE}; done");
        let Running { mut child, stdin: _stdin, mut stdout, stderr } = Running::start(&lock, &command);
        assert_eq!(line(&mut stdout).await, "works");
        drop(stderr);
        std::fs::remove_file(lock.path().unwrap()).unwrap();
        assert_eq!(line(&mut stdout).await, "cleans up");
        assert_eq!(in_time(child.wait()).await.unwrap().code(), Some(75));
    }
}

/// As when a new version is installed while it waits.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn its_file_may_be_removed_while_it_waits() {
    // A link, which is never open for writing, as a copy may be in a process that another test has just started.
    let dir = TempDir::new_in(program().parent().unwrap()).unwrap();
    let (link, path) = (dir.path().join("with_lock"), dir.path().join("x.lock"));
    std::fs::hard_link(program(), &link).unwrap();
    let guard = LockFile::new(&path).unwrap().attempt().await.unwrap().unwrap();
    let mut waiting = Running::run(Command::new(&link).arg(&path).args(["echo", "works"]));
    line(&mut waiting.stderr).await;
    std::fs::remove_file(&link).unwrap();
    guard.release().await.unwrap();
    assert_eq!(line(&mut waiting.stdout).await, "works");
    assert_eq!(waiting.end().await, (0, String::new()));
}

#[tokio::test]
async fn it_shows_no_password() {
    use std::os::unix::ffi::OsStrExt;

    for lock in [&b"postgres://app:S3cretPw@db/app?lock=\xff"[..], b"postgres://app:S3cretPw@[db/app?lock=x"] {
        let mut command = Command::new(program());
        command.arg(std::ffi::OsStr::from_bytes(lock)).arg("true");
        let (code, said) = Running::run(&mut command).end().await;
        assert!(code == 64 && !said.contains("S3cretPw"), "{code}: {said}");
    }
}

/// A URL without a server is enough to see what becomes of the password.
const WITH_PASSWORD: &str = "postgres://app:S3cretPw@127.0.0.1:1/app?lock=x";

#[tokio::test]
async fn a_password_on_the_command_line_is_warned_of() {
    let (_, said) = Running::with(&[WITH_PASSWORD, "true"]).end().await;
    assert!(said.contains("warning: ps(1) shows") && !said.contains("S3cretPw"), "{said}");
    let (_, said) = Running::with(&["postgres://app@127.0.0.1:1/app:a?lock=x:@y", "true"]).end().await;
    assert!(!said.contains("warning"), "{said}");
}

#[tokio::test]
async fn a_url_comes_from_a_file_that_others_cannot_read() {
    let dir = TempDir::new().unwrap();
    let (file, lock) = (dir.path().join("url"), LockFile::flock(dir.path().join("x.lock")).unwrap());
    let file = file.to_str().unwrap();
    let write = |url: &str, mode| {
        std::fs::write(file, url).unwrap();
        std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    write(&format!("{}\n", lock.url()), 0o644);
    let mut running = Running::with(&["--url-file", file, "sh", "-c", "echo works; read line; exit 5"]);
    assert_eq!(line(&mut running.stdout).await, "works");
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(running.end().await, (5, String::new()));

    for (mode, is_refused) in [(0o644, true), (0o602, true), (0o660, true), (0o600, false)] {
        write(WITH_PASSWORD, mode);
        let (code, said) = Running::with(&["--url-file", file, "true"]).end().await;
        assert!(code != 0 && !said.contains("S3cretPw") && !said.contains("warning"), "{code}: {said}");
        assert_eq!(code == 64 && said.contains("chmod"), is_refused, "{mode:o}: {code}: {said}");
    }
}

/// It is no URL, and as the path of a lock file it would be shown.
#[tokio::test]
async fn what_libpq_takes_for_a_connection_is_no_path() {
    let dir = TempDir::new().unwrap();
    for text in ["host=db user=app password=S3cretPw", "S3cretPw", "//app:S3cretPw@db/app?lock=x"] {
        let file = dir.path().join("url");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (code, said) = Running::with(&["--url-file", file.to_str().unwrap(), "true"]).end().await;
        assert!(code == 64 && said.contains("scheme") && !said.contains("S3cretPw"), "{code}: {said}");
    }
}

#[tokio::test]
async fn a_command_does_not_get_the_variable_with_the_url() {
    let dir = TempDir::new().unwrap();
    let lock = LockFile::flock(dir.path().join("x.lock")).unwrap();
    let script = "echo ${APP_LOCK-none} $PGPASSWORD; read line";
    let mut command = Command::new(program());
    command.args(["--url-env", "APP_LOCK", "--", "sh", "-c", script]);
    let mut running = Running::run(command.env("APP_LOCK", lock.url().to_string()).env("PGPASSWORD", "ours"));
    assert_eq!(line(&mut running.stdout).await, "none ours");
    assert!(lock.attempt().await.unwrap().is_none());
    assert_eq!(running.end().await.1, "");

    let (code, said) = Running::run(command.env("APP_LOCK", format!("{WITH_PASSWORD}&x=[")).arg("true")).end().await;
    assert!(code == 64 && !said.contains("S3cretPw"), "{code}: {said}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_has_no_file_of_its_lock_open_but_that_of_an_flock() {
    let dir = TempDir::new().unwrap();
    let [shlock, flock] = file_kinds(dir.path());
    let path = flock.path().unwrap();
    for (lock, option, expected) in [(&shlock, "--", vec![]), (&flock, "--", vec![path]), (&flock, "--close", vec![])] {
        let url = lock.url().to_string();
        let mut running = Running::with(&[&url, option, "sh", "-c", "echo $$; read line"]);
        let pid = line(&mut running.stdout).await;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let files = files.map(|file| std::fs::read_link(file.path()).unwrap());
        // Others come from whoever has started this test.
        let files: Vec<PathBuf> = files
            .filter(|file| file.starts_with(dir.path()) || file.to_string_lossy().starts_with("anon_inode:"))
            .collect();
        assert_eq!(files, expected, "{url} {option}");
        running.end().await;
    }
}

/// A process that a command has started, and that goes on.
#[cfg(target_os = "linux")]
const WITH_CHILD: &str = "exec 3<&0; sh -c 'echo works; read line <&3' & ";

/// As with flock(1): nobody else begins while something of the killed run still works.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_flock_whose_holder_is_killed_is_held_until_what_its_command_has_started_ends() {
    let dir = TempDir::new().unwrap();
    // The second one was made by touch(1) or flock(1): it holds no record.
    std::fs::write(dir.path().join("y.lock"), "").unwrap();
    for (name, option) in ["x.lock", "y.lock"].iter().flat_map(|name| ["--", "--close"].map(|option| (name, option))) {
        let lock = LockFile::flock(dir.path().join(name)).unwrap();
        let url = lock.url().to_string();
        let mut running = Running::with(&[&url, option, "sh", "-c", &format!("{WITH_CHILD} wait")]);
        assert_eq!(line(&mut running.stdout).await, "works");
        running.child.kill().await.unwrap();
        let attempt = lock.attempt().await.unwrap();
        assert_eq!(attempt.is_none(), option == "--", "{option}");
        running.stdin.write_all(b"end\n").await.unwrap();
        drop(attempt);
        drop(in_time(lock.obtain()).await.unwrap());
    }
}

/// The idiom of `flock "$0"`, see flock(1). A program that somebody has open for writing cannot be started.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_can_be_its_own_lock() {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("true");
    assert!(Command::new("cp").arg("/bin/true").arg(&program).status().await.unwrap().success());
    let (url, program) = (format!("flockfile:{}", program.display()), program.to_str().unwrap());
    for option in ["--", "--close"] {
        assert_eq!(Running::with(&[&url, option, program]).end().await, (0, String::new()), "{option}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_command_leaves_behind_does_not_keep_its_lock() {
    let dir = TempDir::new().unwrap();
    for lock in file_kinds(dir.path()) {
        let mut running = Running::start(&lock, WITH_CHILD);
        assert_eq!(line(&mut running.stdout).await, "works");
        assert!(in_time(running.child.wait()).await.unwrap().success());
        drop(lock.attempt().await.unwrap().expect("it is still held"));
        running.stdin.write_all(b"end\n").await.unwrap();
    }
}

/// Without its holder the lock is free, so the command must not go on.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_whose_holder_is_killed_dies_too() {
    let dir = TempDir::new().unwrap();
    for lock in file_kinds(dir.path()) {
        let mut running = Running::start(&lock, "echo works; exec sleep 1000");
        assert_eq!(line(&mut running.stdout).await, "works");
        running.child.kill().await.unwrap();
        let mut rest = String::new();
        in_time(running.stdout.read_to_string(&mut rest)).await.unwrap();
        drop(in_time(lock.obtain()).await.unwrap());
    }
}

#[tokio::test]
async fn readers_run_together() {
    let dir = TempDir::new().unwrap();
    let lock = LockFile::flock(dir.path().join("x.lock")).unwrap().shared().unwrap();
    let mut first = Running::start(&lock, "echo works; read line");
    assert_eq!(line(&mut first.stdout).await, "works");
    assert_eq!(Running::start(&lock, "true").end().await, (0, String::new()));
    first.stdin.write_all(b"end\n").await.unwrap();
    assert_eq!(first.end().await.0, 0);
}
