//! Runs a command under a lock of any kind, as flock(1) does under an flock.
//!
//! ```text
//! cargo run --example with_lock -- lockfile:/tmp/nightly.lock --timeout 5s -- sh -c 'echo works; sleep 1'
//! cargo run --example with_lock -- --help
//! ```

mod command;
mod order;
mod signals;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use tokio::process::Child;
use tokio_lockfile::{LockError, LockGuard};

use order::Order;
use signals::{Signal, Signals, send};

const HELP: &str = "\
Usage: with_lock [OPTIONS] LOCK [--] COMMAND [ARGUMENT...]

Runs COMMAND while holding LOCK, and tells who holds it while it waits.

LOCK is a URL, such as lockfile:/run/app/x.lock or flockfile:/run/app/x.lock,
or the path of a lock file of the platform's default kind. A path with a colon
begins with / or a dot.

Options, before or after LOCK. A value may be behind an equals sign, as in
--timeout=5s:
  -s, --shared        take the lock shared
  -n, --nonblock      do not wait
  -w, --timeout TIME  wait at most for TIME: 5, 0.5, 500ms, 5s, 2m, 1h
  -E, --conflict-exit-code N
                      exit code if the lock is not free in time (default 1)
  -o, --close         COMMAND does not get the descriptor of an flock, see below
  --url-file FILE     LOCK is the only line of FILE
  --url-env NAME      LOCK is the value of the variable NAME; COMMAND does not
                      get this variable
  -h, --help          show this help

All users can see the arguments of a program. So do not write a password there:
use --url-file or --url-env. A file with a password must be closed to other
users (chmod 600). COMMAND gets all variables but NAME, also those that a lock
on a server reads, such as PGPASSWORD.

Exit codes, as those of flock(1): that of COMMAND; 128 + n if signal n killed
it; N if the lock is not free in time; 64 for wrong usage; 65, 66, 71 or 73 if
the lock fails; 69 if COMMAND cannot be run or the server of the lock does not
answer. 75 if the lock is lost: COMMAND is stopped then.

COMMAND gets Ctrl-C from the terminal, as this program does. SIGTERM, SIGHUP,
SIGUSR1 and SIGUSR2 are passed on to it, and SIGINT and SIGQUIT if they cannot
come from the terminal. The lock is held until COMMAND has ended. Processes that
COMMAND leaves behind do not keep the lock, and nobody stops them.

If this program is killed, COMMAND is killed too on Linux, unless it changes its
user, as sudo(8) does. What COMMAND has started goes on. On Unix an flock is then
held until the last of these processes has ended, because they have inherited
its descriptor. With --close, and for every other kind, the lock is free.";

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

// One thread: on Linux the command dies with the thread that has started it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let order = match order::parse(std::env::args_os().skip(1)) {
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
        Ok(guard) => run(guard, &order).await.into(),
        Err(error) => {
            say(&error);
            say_why_nothing_starts();
            code_of(&error, order.conflict).into()
        }
    }
}

fn say(text: impl Display) {
    // Nobody need read it. The command does not suffer by that.
    let _ = writeln!(std::io::stderr(), "with_lock: {text}");
}

/// Waits for the lock, and tells who holds it: soon, and then at growing intervals.
async fn obtain(order: &Order) -> Result<LockGuard, LockError> {
    let tell = async {
        let mut interval = Duration::from_millis(50);
        loop {
            tokio::time::sleep(interval).await;
            if let Ok(Some(holder)) = order.lock.holder().await {
                say(format_args!("{} is held by {holder}", order.lock.url()));
            }
            interval = (interval * 2).max(Duration::from_secs(10));
        }
    };
    tokio::select! {
        biased;
        obtained = order.lock.obtain_timeout(order.limit) => obtained,
        () = tell => unreachable!("it tells for ever"),
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
async fn run(guard: LockGuard, order: &Order) -> u8 {
    let mut signals = Signals::catch();
    let mut child = match command::start(order, &guard) {
        Ok(child) => child,
        Err(error) => {
            say(format_args!("cannot run {:?}: {error}", order.command[0]));
            say_why_nothing_starts();
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
        say(&error);
        if matches!(error, LockError::Lost { .. }) {
            return LOCK_LOST;
        }
    }
    match ended {
        Ok(status) => command::exit_code(status).unwrap_or(SYSTEM_ERROR),
        Err(error) => {
            say(format_args!("cannot tell how the command has ended: {error}"));
            SYSTEM_ERROR
        }
    }
}

/// Beside an error that need not come from there.
fn say_why_nothing_starts() {
    command::namespace_problem().into_iter().for_each(say);
}

async fn stop(child: &mut Child) {
    send(child, Signal::TERM);
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        say("it does not end; killing it");
        let _ = child.kill().await;
    }
}
