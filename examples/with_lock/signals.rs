//! The signals that would end this program before its command, and those that are meant for the command.

#[cfg(not(unix))]
pub(crate) use other::{Signal, Signals, send};
#[cfg(unix)]
pub(crate) use rustix::process::Signal;
#[cfg(unix)]
pub(crate) use unix::{Signals, send};

#[cfg(unix)]
mod unix {
    #![expect(unsafe_code, reason = "whether a signal is ignored is asked by an unsafe call")]

    use std::future::poll_fn;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::task::Poll;

    use rustix::process::{Pid, Signal, getpgrp, kill_process};
    use tokio::process::Child;
    use tokio::signal::unix::{self, SignalKind};

    pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

    impl Signals {
        pub(crate) fn catch() -> Self {
            let kinds = [Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2, Signal::TERM];
            let catch = |kind: SignalKind| unix::signal(kind).expect("the signal can be handled");
            // Where a caller ignores the ends of its children, the kernel would keep no exit code for us.
            drop(catch(SignalKind::child()));
            // The command inherits what is ignored, as under nohup(1), but not what is caught.
            let kinds = kinds.into_iter().filter(|&kind| !is_ignored(kind));
            Self(kinds.map(|kind| (kind, catch(SignalKind::from_raw(kind.as_raw())))).collect())
        }

        /// The next one that the command does not get from the terminal.
        pub(crate) async fn next(&mut self) -> Signal {
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

    fn is_ignored(signal: Signal) -> bool {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the call changes nothing without a new action. All zeroes are a valid action, should it fail.
        let action = unsafe {
            libc::sigaction(signal.as_raw(), ptr::null(), action.as_mut_ptr());
            action.assume_init()
        };
        action.sa_sigaction == libc::SIG_IGN
    }

    /// Whether the keys of the terminal send their signals to this program, and so to its command.
    fn is_in_foreground() -> bool {
        let group = std::fs::File::open("/dev/tty").ok().and_then(|tty| rustix::termios::tcgetpgrp(tty).ok());
        group == Some(getpgrp())
    }

    pub(crate) fn send(child: &mut Child, signal: Signal) {
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Windows has no signals that could be passed on.
#[cfg(not(unix))]
mod other {
    use tokio::process::Child;

    #[derive(Clone, Copy)]
    pub(crate) struct Signal;

    impl Signal {
        pub(crate) const TERM: Self = Self;
    }

    pub(crate) struct Signals;

    impl Signals {
        pub(crate) fn catch() -> Self {
            // Ctrl-C reaches the command, and its end ends this program.
            tokio::spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
            Self
        }

        pub(crate) async fn next(&mut self) -> Signal {
            std::future::pending().await
        }
    }

    pub(crate) fn send(child: &mut Child, Signal: Signal) {
        let _ = child.start_kill();
    }
}
