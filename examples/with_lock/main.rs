//! Runs a command under a lock of any kind, as flock(1) does under an flock.
//!
//! ```text
//! cargo run --example with_lock -- lockfile:/tmp/nightly.lock --timeout 5s -- sh -c 'echo works; sleep 1'
//! cargo run --example with_lock -- --help
//! ```

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::Write;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;
#[cfg(unix)]
use std::{future::poll_fn, task::Poll};

#[cfg(unix)]
use rustix::process::Signal;
use tokio::process::{Child, Command};
#[cfg(unix)]
use tokio::signal::unix::SignalKind;
use tokio_lockfile::{LockError, LockFile, LockGuard};

const HELP: &str = "\
Usage: with_lock [OPTIONS] LOCK [--] COMMAND [ARGUMENT...]

Runs COMMAND while holding LOCK, and tells who holds it while it waits.

LOCK is a URL, such as lockfile:/run/app/x.lock or flockfile:/run/app/x.lock,
or the path of a lock file of the platform's default kind. A path with a colon
begins with / or a dot.

Options, also behind LOCK:
  -s, --shared        take the lock shared
  -n, --nonblock      do not wait
  -w, --timeout TIME  wait at most for TIME: 5, 0.5, 500ms, 5s, 2m, 1h
  -E, --conflict-exit-code N
                      exit code if the lock is not free in time (default 1)
  -h, --help          show this help

Exit codes, as those of flock(1): that of COMMAND; 128 + n if signal n killed
it; N if the lock is not free in time; 64 for wrong usage; 65, 66, 71 or 73 if
the lock fails; 69 if COMMAND cannot be run or the server of the lock does not
answer. 75 if the lock is lost: then COMMAND is stopped.

COMMAND gets Ctrl-C from the terminal, as this program does. SIGTERM, SIGHUP,
SIGUSR1 and SIGUSR2 are passed on to it, and SIGINT and SIGQUIT if they cannot
come from the terminal. The lock is held until COMMAND has ended. Processes that
COMMAND leaves behind do not count, and nobody stops them. If this program is
killed, the lock is free, and on Linux COMMAND is killed too, unless it changes
its user, as sudo(8) does.";

// The codes of sysexits.h that flock(1) uses.
const WRONG_USAGE: u8 = 64;
const BAD_LOCK: u8 = 65;
const CANNOT_OPEN: u8 = 66;
const UNAVAILABLE: u8 = 69;
const SYSTEM_ERROR: u8 = 71;
const CANNOT_CREATE: u8 = 73;
const LOCK_LOST: u8 = 75;

/// How long a command may take to end when its lock is lost.
const PATIENCE: Duration = Duration::from_secs(10);

struct Order {
    lock: LockFile,
    limit: Duration,
    conflict: u8,
    command: Vec<OsString>,
}

// One thread: on Linux the command dies with the thread that has started it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    #[cfg(target_os = "linux")]
    if arguments.first().is_some_and(|argument| argument == under_lock::MARK) {
        return under_lock::become_command(arguments.into_iter().skip(1));
    }
    let order = match parse(arguments.into_iter()) {
        Ok(Some(order)) => order,
        Ok(None) => {
            let _ = writeln!(std::io::stdout(), "{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say(error);
            say("see --help");
            return WRONG_USAGE.into();
        }
    };
    match obtain(&order).await {
        Ok(guard) => run(guard, &order.command).await.into(),
        Err(error) => {
            say(&error);
            code_of(&error, order.conflict).into()
        }
    }
}

fn say(text: impl Display) {
    // Nobody need read it. The command does not suffer by that.
    let _ = writeln!(std::io::stderr(), "with_lock: {text}");
}

/// `None` if the user asks for help.
fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Order>, Box<dyn Error>> {
    let (mut name, mut is_shared, mut limit, mut conflict) = (None, false, Duration::MAX, 1);
    let mut command: Vec<OsString> = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().and_then(|value| value.into_string().ok()).ok_or("a value is missing");
        match argument.to_str() {
            Some("--") => break,
            Some("-h" | "--help") => return Ok(None),
            Some("-s" | "--shared") => is_shared = true,
            Some("-n" | "--nonblock") => limit = Duration::ZERO,
            Some("-w" | "--timeout") => limit = time(&value()?)?,
            Some("-E" | "--conflict-exit-code") => conflict = value()?.parse()?,
            Some(option) if option.starts_with('-') => return Err(format!("unknown option {option}").into()),
            _ if name.is_none() => name = Some(argument),
            _ => {
                command.push(argument);
                break;
            }
        }
    }
    command.extend(arguments);
    let name = name.ok_or("no lock is given")?;
    if command.is_empty() {
        return Err("no command is given".into());
    }
    let lock = open(&name)?;
    let lock = if is_shared { lock.shared()? } else { lock };
    Ok(Some(Order { lock, limit, conflict, command }))
}

fn open(name: &OsStr) -> Result<LockFile, Box<dyn Error>> {
    let text = name.to_string_lossy();
    if text.starts_with(['/', '.']) || !text.contains(':') {
        return Ok(LockFile::new(name)?);
    }
    // As a path it would be shown in errors, with the password that it may contain.
    let url = name.to_str().ok_or("the URL is not UTF-8; write such bytes as %FF")?;
    Ok(LockFile::open(url)?)
}

/// `5s`, `500ms`, `2m`, `1h`, or seconds without a unit.
fn time(text: &str) -> Result<Duration, Box<dyn Error>> {
    let unit = text.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} is not a time such as 5s or 500ms").into()),
    };
    let number: f64 = text[..text.len() - unit.len()].parse()?;
    Ok(Duration::try_from_secs_f64(number * seconds)?)
}

/// Waits for the lock, and tells who holds it: at once, and then at growing intervals.
async fn obtain(order: &Order) -> Result<LockGuard, LockError> {
    if let Some(guard) = order.lock.attempt().await? {
        return Ok(guard);
    }
    let tell = async {
        let mut interval = Duration::from_secs(10);
        loop {
            tell_holder(&order.lock).await;
            tokio::time::sleep(interval).await;
            interval *= 2;
        }
    };
    tokio::select! {
        biased;
        () = tell => unreachable!("it tells for ever"),
        obtained = order.lock.obtain_timeout(order.limit) => obtained,
    }
}

async fn tell_holder(lock: &LockFile) {
    match lock.holder().await {
        Ok(Some(holder)) => say(format_args!("{} is held by {holder}", lock.url())),
        _ => say(format_args!("{} is held", lock.url())),
    }
}

fn code_of(error: &LockError, conflict: u8) -> u8 {
    // ENOMEM, ENFILE and EMFILE have these numbers on every Unix.
    const NO_RESOURCES: [i32; 3] = [12, 23, 24];
    match error {
        LockError::TimedOut { .. } => conflict,
        LockError::InvalidUrl { .. } | LockError::InvalidPath { .. } => WRONG_USAGE,
        LockError::Io { error, .. } => match error.kind() {
            std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::StorageFull => CANNOT_CREATE,
            _ if error.raw_os_error().is_some_and(|number| NO_RESOURCES.contains(&number)) => SYSTEM_ERROR,
            _ => CANNOT_OPEN,
        },
        LockError::Engine { .. } => UNAVAILABLE,
        _ => BAD_LOCK,
    }
}

/// Runs the command to its end, and releases the lock then.
async fn run(guard: LockGuard, command: &[OsString]) -> u8 {
    let mut signals = Signals::catch();
    let mut child = match start(command) {
        Ok(child) => child,
        Err(error) => {
            say(format_args!("cannot run {:?}: {error}", command[0]));
            return UNAVAILABLE;
        }
    };
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended,
            signal = signals.next() => send(&mut child, signal),
            reason = guard.lost() => {
                say(format_args!("lost the lock: {reason}; stopping the command"));
                stop(&mut child).await;
                return LOCK_LOST;
            }
        }
    };
    if let Err(error) = guard.release().await {
        say(error);
        return LOCK_LOST;
    }
    ended.map_or(SYSTEM_ERROR, code_of_command)
}

async fn stop(child: &mut Child) {
    send(child, Signal::TERM);
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        say("it does not end; killing it");
        let _ = child.kill().await;
    }
}

#[cfg(unix)]
fn code_of_command(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(SYSTEM_ERROR)
}

#[cfg(not(unix))]
fn code_of_command(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(SYSTEM_ERROR)
}

/// The signals that would end this program before its command, and those that are meant for the command.
#[cfg(unix)]
struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    fn catch() -> Self {
        let kinds = [Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2, Signal::TERM];
        let ignored = ignored_signals();
        let catch = |kind: Signal| {
            let signal = tokio::signal::unix::signal(SignalKind::from_raw(kind.as_raw()));
            (kind, signal.expect("the signal can be handled"))
        };
        // The command inherits what is ignored, as under nohup(1), but not what is caught.
        Self(kinds.into_iter().filter(|kind| ignored >> (kind.as_raw() - 1) & 1 == 0).map(catch).collect())
    }

    /// The next one that the command does not get from the terminal.
    async fn next(&mut self) -> Signal {
        loop {
            let signal = poll_fn(|context| {
                for (kind, signal) in &mut self.0 {
                    if signal.poll_recv(context).is_ready() {
                        return Poll::Ready(*kind);
                    }
                }
                Poll::Pending
            })
            .await;
            let has_key = matches!(signal, Signal::INT | Signal::QUIT);
            if !(has_key && is_in_foreground()) {
                return signal;
            }
        }
    }
}

/// A bit for each signal that this process ignores. Only Linux tells.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the keys of the terminal send their signals to this program, and so to its command.
#[cfg(unix)]
fn is_in_foreground() -> bool {
    let group = std::fs::File::open("/dev/tty").ok().and_then(|tty| rustix::termios::tcgetpgrp(tty).ok());
    group == Some(rustix::process::getpgrp())
}

#[cfg(unix)]
fn send(child: &mut Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Windows has no signals that could be passed on.
#[cfg(not(unix))]
#[derive(Clone, Copy)]
struct Signal;

#[cfg(not(unix))]
impl Signal {
    const TERM: Self = Self;
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn catch() -> Self {
        // Ctrl-C reaches the command, and its end ends this program.
        tokio::spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
        Self
    }

    async fn next(&mut self) -> Signal {
        std::future::pending().await
    }
}

#[cfg(not(unix))]
fn send(child: &mut Child, Signal: Signal) {
    let _ = child.start_kill();
}

#[cfg(not(target_os = "linux"))]
fn start(command: &[OsString]) -> std::io::Result<Child> {
    Command::new(&command[0]).args(&command[1..]).spawn()
}

#[cfg(target_os = "linux")]
fn start(command: &[OsString]) -> std::io::Result<Child> {
    let parent = std::process::id().to_string();
    // Not the name of the file: that may be gone, or another version.
    Command::new("/proc/self/exe").args([under_lock::MARK, &parent]).args(command).spawn()
}

/// This program once more, on its way to become the command: it asks the kernel to be killed when its parent dies.
/// Otherwise the command would go on without the lock.
#[cfg(target_os = "linux")]
mod under_lock {
    use std::ffi::OsString;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, ExitCode};

    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    pub(crate) const MARK: &str = "--under-the-lock-of";

    pub(crate) fn become_command(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
        let parent = arguments.next().and_then(|pid| pid.into_string().ok()?.parse().ok()).and_then(Pid::from_raw);
        let is_asked = set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
        let Some(program) = arguments.next() else { return super::WRONG_USAGE.into() };
        if !is_asked || getppid() != parent {
            super::say("the holder of the lock is gone");
            return super::LOCK_LOST.into();
        }
        let error = Command::new(&program).args(arguments).exec();
        super::say(format_args!("cannot run {program:?}: {error}"));
        super::UNAVAILABLE.into()
    }
}
