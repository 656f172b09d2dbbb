//! Which process this is, for the price of a load: a forked child is told by a handler.
#![expect(unsafe_code, reason = "a handler for forks is registered by an unsafe call")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::descriptors;

/// The PID of this process; 0 if it is to be asked for.
static PID: AtomicU32 = AtomicU32::new(0);

/// The PID of this process. fork(3) of the C library runs the handlers of pthread_atfork(3). A child made by clone(2) alone
/// does not, and counts as its parent.
pub(crate) fn current_pid() -> u32 {
    match PID.load(Ordering::Relaxed) {
        0 => ask(),
        pid => pid,
    }
}

#[cold]
fn ask() -> u32 {
    static IS_WATCHED: OnceLock<bool> = OnceLock::new();
    let pid = std::process::id();
    // SAFETY: the handler makes only async-signal-safe calls, and it stays valid for ever.
    let is_watched = *IS_WATCHED.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(forget)) } == 0);
    if is_watched {
        PID.store(pid, Ordering::Relaxed);
    }
    pid
}

/// Runs in a forked child, before anything else does.
extern "C" fn forget() {
    PID.store(0, Ordering::Relaxed);
    descriptors::give_up();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_pid() {
        for _asked_then_remembered in 0..2 {
            assert_eq!(current_pid(), std::process::id());
        }
        PID.store(0, Ordering::Relaxed);
        assert_eq!(current_pid(), std::process::id());
    }
}
