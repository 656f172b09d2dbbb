//! Whether this process leads, for the other tasks of this process.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::sys::process::Owner;
use crate::words::error::LockError;
use crate::words::holder::ForTime;

/// Shows whether a [`Singleton`](crate::Singleton) of this process leads: whether it holds its lock and works. It can also
/// make the singleton step down.
///
/// This is a cheap handle for health checks, metrics and administration. It comes from
/// [`Singleton::leadership`](crate::Singleton::leadership), and all handles of one singleton and of its clones show the
/// same.
///
/// Its text is for people, as on a status page: `leads for 3m 12s`, `stands by`, or `cannot get its lock: …`. The last
/// one says that the lock does not work, so that nobody takes this process for a healthy standby. Before the lock has
/// answered for the first time, the text is `has no answer from its lock yet`.
///
/// ```
/// # use tokio_lockfile::{LockFile, Singleton};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let leader = Singleton::new(LockFile::null()); // or LockFile::new("/run/app/leader.lock")?
/// let mut leadership = leader.leadership();
/// tokio::spawn(async move {
///     loop {
///         let leads = leadership.changed().await;
///         println!("leads: {leads}"); // or a metric
///     }
/// });
/// # let work = || async { Ok::<_, std::io::Error>(()) };
/// # leader.run(work, async {}).await.unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct Leadership {
    state: watch::Sender<State>,
    /// What [`changed`](Self::changed) told last.
    told: bool,
}

#[derive(Debug, Default)]
struct State {
    /// How many terms there are now. It is more than one only under a shared lock.
    terms: usize,
    /// The token of the newest term.
    token: Option<u64>,
    /// When the newest term began.
    since: Option<SystemTime>,
    /// How often somebody has called `step_down`.
    step_downs: u64,
    /// The last answer of the lock: held or free, or the text of an error.
    lock: Option<Result<(), String>>,
}

impl State {
    fn is_leader(&self) -> bool {
        self.terms > 0
    }
}

impl Leadership {
    pub(crate) fn new() -> Self {
        Self { state: watch::Sender::default(), told: false }
    }

    /// A handle whose [`changed`](Self::changed) waits for the next change.
    pub(crate) fn handle(&self) -> Self {
        Self { state: self.state.clone(), told: self.is_leader() }
    }

    /// Whether this process leads now. This is `false` from the moment at which the loss of the lock is noticed.
    pub fn is_leader(&self) -> bool {
        self.state.borrow().is_leader()
    }

    /// Waits until this process leads. This returns at once if it leads already.
    ///
    /// # Cancel safety
    /// This is cancel safe, because it only reads.
    pub async fn until_leader(&self) {
        self.until(true).await;
    }

    /// Waits until this process begins or ceases to lead, and returns whether it leads. It compares with what the last
    /// call on this handle returned, or with the time at which the handle was made. If this process has lost the
    /// leadership and won it back between two calls, the second call does not show that.
    ///
    /// # Cancel safety
    /// This is cancel safe: a change that was not returned is returned by the next call.
    pub async fn changed(&mut self) -> bool {
        self.until(!self.told).await;
        self.told = !self.told;
        self.told
    }

    async fn until(&self, is_leader: bool) {
        let mut changes = self.state.subscribe();
        let reached = changes.wait_for(|state| state.is_leader() == is_leader).await;
        assert!(reached.is_ok(), "this handle keeps the channel open");
    }

    /// The [fencing token](crate::LockGuard::fencing_token) of the lock under which this process leads. `None` while it
    /// does not lead, and for locks on files.
    pub fn fencing_token(&self) -> Option<u64> {
        self.state.borrow().token
    }

    /// Since when this process leads. `None` while it does not lead. It is wall-clock time: show it, but do not base a
    /// decision on it.
    pub fn since(&self) -> Option<SystemTime> {
        self.state.borrow().since
    }

    /// Asks the singleton to step down, so that another process can lead. If the singleton does not lead, this has no
    /// effect and returns `false`.
    ///
    /// The work is dropped at its current `await`, after the time of [`grace`](crate::Singleton::grace). Then the lock is
    /// released. After the shortest [pause](crate::Singleton::pause), this process stands by again. It leads again if no
    /// other process wants to.
    ///
    /// If the work ends by itself in the time of grace with an error, this counts as stepping down, and not as a
    /// failure. If it ends with a result, the singleton ends with this result.
    pub fn step_down(&self) -> bool {
        self.state.send_if_modified(|state| {
            state.step_downs += u64::from(state.is_leader());
            state.is_leader()
        })
    }

    /// Notes the last answer of the lock.
    pub(crate) fn note(&self, answer: Result<(), &LockError>) {
        let answer = answer.map_err(LockError::to_string);
        self.state.send_if_modified(|state| {
            state.lock = Some(answer);
            false
        });
    }

    pub(crate) fn begin(&self, token: Option<u64>) -> Term {
        let mut step_downs = 0;
        self.state.send_modify(|state| {
            state.terms += 1;
            state.token = token;
            state.since = Some(SystemTime::now());
            step_downs = state.step_downs;
        });
        Term { state: self.state.clone(), step_downs, owner: Owner::this_process() }
    }
}

impl fmt::Display for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        match &state.lock {
            _ if state.is_leader() => write!(f, "leads{}", ForTime(state.since)),
            Some(Ok(())) => f.write_str("stands by"),
            Some(Err(error)) => write!(f, "cannot get its lock: {error}"),
            None => f.write_str("has no answer from its lock yet"),
        }
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leadership({self})")
    }
}

/// The time in which this process leads. It ends at the drop.
#[derive(Debug)]
pub(crate) struct Term {
    state: watch::Sender<State>,
    /// How often somebody had called `step_down` before.
    step_downs: u64,
    owner: Owner,
}

impl Term {
    pub(crate) fn is_asked_to_step_down(&self) -> bool {
        self.state.borrow().step_downs > self.step_downs
    }

    /// Resolves when somebody has called `step_down` in this term.
    pub(crate) async fn asked_to_step_down(&self) {
        let mut changes = self.state.subscribe();
        let asked = changes.wait_for(|state| state.step_downs > self.step_downs).await;
        assert!(asked.is_ok(), "this term keeps the channel open");
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        // In a forked child, another thread of the parent may have had the mutex of the channel.
        if !self.owner.is_this_process() {
            return;
        }
        self.state.send_modify(|state| {
            state.terms -= 1;
            state.token = state.token.filter(|_| state.terms > 0);
            state.since = state.since.filter(|_| state.terms > 0);
        });
    }
}

// For the same reason as LockFile.
impl UnwindSafe for Leadership {}
impl RefUnwindSafe for Leadership {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_takes_no_mutex_for_a_term_of_its_parent() {
        let leadership = Leadership::new();
        let mut term = leadership.begin(None);
        term.owner = Owner::another_process();
        let _another_thread_has_it = leadership.state.borrow();
        drop(term);
    }

    #[test]
    fn the_token_and_the_time_are_those_of_the_present_term() {
        let leadership = Leadership::new();
        assert_eq!(leadership.since(), None);
        let before = SystemTime::now();
        let term = leadership.begin(Some(7));
        assert_eq!(leadership.fencing_token(), Some(7));
        assert!((before..=SystemTime::now()).contains(&leadership.since().unwrap()));
        drop(term);
        assert_eq!((leadership.fencing_token(), leadership.since()), (None, None));
    }
}
