//! The waits of this process at a server, all on one session.
//!
//! That session has the places of the waits in their queues (`queue.rs`), and nothing else. Once in a while, one statement
//! looks which of the locks are free, and which of the places before ours. Their holders may have been killed, or be other
//! programs. That statement is also the heartbeat. Whoever releases a lock of this crate wakes the session that is first in
//! the queue.
//!
//! A wait that is alone there gets its lock on that same session, which then becomes the session of the lock. So a process
//! that waits for one lock needs no second connection, not even when its turn comes.
//!
//! When the session ends, the waits begin again at the end of their queues, on another one.

use std::collections::HashMap;
use std::future::pending;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::config::{LockNumber, Settings};
use super::failure::Failure;
use super::server::Server;
use super::session::{Advanced, Candidate, Session, Tried};
use crate::engine::server::driver;
use crate::sys::per_process::PerProcess;
use crate::util::backoff::Backoff;
use crate::util::random;
use crate::words::mode::Mode;

/// How often the session looks if nobody wakes it.
const PERIOD: Duration = Duration::from_secs(1);

/// The same where it stands at no turnstile: it would only notice that others have been killed in the queue.
const LONG_PERIOD: Duration = Duration::from_secs(3);

/// The same where it is not even the next one behind a turnstile. Each look of each process costs the server 0.1 ms.
const LONGEST_PERIOD: Duration = Duration::from_secs(5);

/// The pause after a look for nothing, and before the next look if somebody looks at the turnstile just now. Anybody in the
/// database can wake the session.
const SHORT_PAUSE: Duration = Duration::from_millis(5);

/// The pauses before it connects again, the shortest and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Which server, and which thread: there is another driver if one is stuck.
type Key = (Settings, ThreadId);

type Jobs = HashMap<Key, UnboundedSender<Order>>;

/// The ways to the jobs that have the sessions.
static JOBS: PerProcess<Mutex<Jobs>> = PerProcess::new();

fn jobs() -> MutexGuard<'static, Jobs> {
    JOBS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
enum Order {
    Enter(Wait),
    /// Leave for those whose tasks have gone, and tell when that is done.
    Leave(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Wait {
    lock: LockNumber,
    mode: Mode,
    at: At,
    /// Closed if the task has gone.
    turn: Sender<Turn>,
}

/// What a wait comes to.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nobody is before it, and the lock may be free.
    Try,
    /// The session has the lock.
    Granted(Box<Session>, String),
    Failed(Failure),
}

#[derive(Debug, Clone, Copy)]
enum At {
    Outside,
    Place {
        place: i64,
        /// The next place before that was taken.
        before: i64,
    },
    Turnstile,
}

/// A task's end of its wait.
#[derive(Debug)]
pub(super) struct Waiting {
    lock: LockNumber,
    mode: Mode,
    turn: Receiver<Turn>,
    orders: UnboundedSender<Order>,
}

impl Waiting {
    /// Goes to the end of the queue. To be called on the driver.
    pub(super) fn begin(server: &Arc<Server>, lock: LockNumber, mode: Mode) -> Self {
        let (tell, turn) = channel(1);
        let order = Order::Enter(Wait { lock, mode, at: At::Outside, turn: tell });
        let key = (server.settings.clone(), thread::current().id());
        let mut jobs = jobs();
        let order = match jobs.get(&key) {
            Some(orders) => match orders.send(order) {
                Ok(()) => return Self { lock, mode, turn, orders: orders.clone() },
                // That job has panicked.
                Err(refused) => refused.0,
            },
            None => order,
        };
        let (orders, given) = unbounded_channel();
        drop(orders.send(order));
        jobs.insert(key.clone(), orders.clone());
        drop(jobs);
        // On the driver's own thread, this cannot fail. If it failed, the wait would fail.
        let _ = driver::spawn(Waits::new(server, key, given).keep());
        Self { lock, mode, turn, orders }
    }

    /// What comes next. Cancel safe.
    pub(super) async fn turn(&mut self) -> Turn {
        self.turn.recv().await.unwrap_or_else(|| Turn::Failed(driver::panicked().into()))
    }

    /// Leaves the queue. Resolves when nothing is left at the server.
    pub(super) async fn end(mut self) {
        self.turn.close();
        if let Ok(Turn::Granted(session, _)) = self.turn.try_recv() {
            session.give_back(self.lock, self.mode).await;
        }
        let (tell, told) = oneshot::channel();
        if self.orders.send(Order::Leave(tell)).is_ok() {
            let _ = told.await;
        }
    }
}

/// The job that has the session.
struct Waits {
    server: Arc<Server>,
    key: Key,
    orders: UnboundedReceiver<Order>,
    waits: Vec<Wait>,
    leaving: Vec<oneshot::Sender<()>>,
    backoff: Backoff,
    /// When the server last answered.
    answered: Instant,
    /// Since when no look has succeeded, although sessions begin.
    failing: Option<Instant>,
    next_look: Instant,
    /// Before that, nobody wakes the session.
    quiet_until: Instant,
    /// Whether somebody has woken it, or an answer has shown that something is free.
    has_news: bool,
}

async fn next(orders: &mut UnboundedReceiver<Order>) -> Order {
    match orders.recv().await {
        Some(order) => order,
        None => pending().await,
    }
}

impl Waits {
    fn new(server: &Arc<Server>, key: Key, orders: UnboundedReceiver<Order>) -> Self {
        let now = Instant::now();
        Self {
            server: Arc::clone(server),
            key,
            orders,
            waits: Vec::new(),
            leaving: Vec::new(),
            backoff: Backoff::new(PAUSES),
            answered: now,
            failing: None,
            next_look: now,
            quiet_until: now,
            has_news: false,
        }
    }

    /// Ends when nobody has waited for a while.
    async fn keep(mut self) {
        loop {
            match self.serve().await {
                Ok(()) if self.is_over() => return,
                Ok(()) => {}
                Err(failure) => self.begin_again(&failure).await,
            }
        }
    }

    /// Whether nobody waits. Then the next wait begins another job.
    fn is_over(&mut self) -> bool {
        let mut jobs = jobs();
        self.take_orders();
        let is_over = self.waits.is_empty();
        if is_over {
            jobs.remove(&self.key);
        }
        is_over
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Enter(wait) => self.waits.push(wait),
            Order::Leave(tell) => self.leaving.push(tell),
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.take(order);
        }
    }

    /// The session has ended, and the places are free. The waits fail if the server has been away for too long, or has let
    /// nobody look for so long.
    async fn begin_again(&mut self, failure: &Failure) {
        let since = self.answered.min(*self.failing.get_or_insert_with(Instant::now));
        let is_away = since.elapsed() >= self.server.settings.connect_timeout;
        self.waits.iter_mut().for_each(|wait| wait.at = At::Outside);
        if is_away {
            // Where it cannot be told, a try is due, which fails as well.
            self.waits.retain(|wait| wait.turn.try_send(Turn::Failed(failure.clone())).is_err());
        }
        let pause = self.backoff.next();
        let _ = self.while_wanted(sleep(pause)).await;
    }

    /// Does something while there is no session. `None` if nobody waits any more.
    async fn while_wanted<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            self.waits.retain(|wait| !wait.turn.is_closed());
            self.tell_gone();
            if self.waits.is_empty() {
                return None;
            }
            tokio::select! {
                output = &mut work => return Some(output),
                order = next(&mut self.orders) => self.take(order),
            }
        }
    }

    fn tell_gone(&mut self) {
        for tell in self.leaving.drain(..) {
            let _ = tell.send(());
        }
    }

    /// Fails when the session ends.
    async fn serve(&mut self) -> Result<(), Failure> {
        self.take_orders();
        let server = Arc::clone(&self.server);
        let Some(session) = self.while_wanted(server.session()).await else { return Ok(()) };
        let (mut session, _) = session?;
        let bell = session.listen().await?;
        loop {
            self.leave(&mut session).await?;
            self.enter(&mut session).await?;
            let is_due = self.next_look <= Instant::now();
            if is_due && !self.waits.is_empty() {
                if let Some(grant) = self.look(&mut session).await? {
                    self.hand_over(session, grant).await;
                    return Ok(());
                }
            }
            if is_due || self.waits.is_empty() {
                (self.backoff, self.failing) = (Backoff::new(PAUSES), None);
            }
            if let [Wait { at: At::Turnstile, .. }] = self.waits[..] {
                session.prepare_to_try().await?;
            }
            self.answered = Instant::now();
            let next_time = match self.waits.is_empty() {
                true => self.answered + server.settings.warmth(),
                false => self.next_look,
            };
            tokio::select! {
                biased;
                reason = session.ended() => return Err(reason),
                order = next(&mut self.orders) => self.take(order),
                () = bell.rung() => {
                    self.has_news = true;
                    self.next_look = self.next_look.min(self.quiet_until);
                }
                () = sleep_until(next_time) => if self.waits.is_empty() {
                    return Ok(());
                },
            }
            self.take_orders();
        }
    }

    async fn leave(&mut self, session: &mut Session) -> Result<(), Failure> {
        while let Some(gone) = self.waits.iter().position(|wait| wait.turn.is_closed()) {
            let Wait { lock, at, .. } = self.waits.swap_remove(gone);
            match at {
                At::Outside => {}
                At::Turnstile => session.leave(lock.queue(), 0).await?,
                At::Place { place, .. } => session.leave(lock.queue(), place).await?,
            }
        }
        self.tell_gone();
        Ok(())
    }

    async fn enter(&mut self, session: &mut Session) -> Result<(), Failure> {
        let is_new = self.waits.iter().all(|wait| matches!(wait.at, At::Outside));
        let mut has_news = false;
        for wait in self.waits.iter_mut().filter(|wait| matches!(wait.at, At::Outside)) {
            let (place, is_free) = session.enter(wait.lock, wait.mode).await?;
            wait.at = match place {
                Some(0) => At::Turnstile,
                Some(place) => At::Place { place, before: place - 1 },
                // The queue was as long as can be.
                None => At::Outside,
            };
            has_news |= is_free;
        }
        let end = self.end_of_period();
        self.next_look = if is_new { end } else { end.min(self.next_look) };
        if has_news {
            (self.has_news, self.next_look) = (true, Instant::now());
        }
        Ok(())
    }

    fn end_of_period(&self) -> Instant {
        let ttl = self.server.settings.ttl;
        let periods = self.waits.iter().map(|wait| match wait.at {
            At::Turnstile => PERIOD.min(ttl / 3),
            At::Outside | At::Place { before: 0, .. } => LONG_PERIOD.min(ttl / 3),
            // No lock depends on this session. Its place does.
            At::Place { .. } => LONGEST_PERIOD.min(ttl / 2),
        });
        let period = periods.min().unwrap_or(LONG_PERIOD);
        Instant::now() + period.mul_f64(1.0 - random::fraction() / 4.0)
    }

    /// Looks what has become free. Returns the grant if the session has got its lock.
    async fn look(&mut self, session: &mut Session) -> Result<Option<String>, Failure> {
        self.next_look = self.end_of_period();
        let has_news = mem::take(&mut self.has_news);
        let is_alone = self.waits.len() == 1;
        let is_free = match has_news && is_alone {
            true => vec![true],
            false => self.free(session).await?,
        };
        let mut is_vain = true;
        for (wait, _) in self.waits.iter_mut().zip(is_free).filter(|(_, is_free)| *is_free) {
            let Wait { lock, mode, at, .. } = *wait;
            match at {
                At::Outside => {}
                At::Turnstile if is_alone => {
                    if let Tried::Granted(grant) = session.try_lock(lock, mode, Candidate::FirstHere).await? {
                        return Ok(Some(grant));
                    }
                }
                At::Turnstile => {
                    wait.tell();
                    is_vain = false;
                }
                At::Place { place, .. } => match session.advance(lock, mode, place).await? {
                    Advanced::Behind(before) => wait.at = At::Place { place, before },
                    Advanced::Not => self.next_look = self.next_look.min(Instant::now() + SHORT_PAUSE),
                    Advanced::ToTurnstile { is_free } => {
                        wait.at = At::Turnstile;
                        is_vain = false;
                        if is_free {
                            (self.has_news, self.next_look) = (true, Instant::now());
                        }
                    }
                },
            }
        }
        self.next_look = self.next_look.min(self.end_of_period());
        if has_news && is_vain {
            self.quiet_until = Instant::now() + SHORT_PAUSE;
        }
        Ok(None)
    }

    /// For each wait, whether what it needs is free.
    async fn free(&self, session: &mut Session) -> Result<Vec<bool>, Failure> {
        let (at, locks): (Vec<_>, Vec<_>) =
            self.waits.iter().enumerate().filter_map(|(at, wait)| Some((at, wait.needs()?))).unzip();
        let mut is_free = vec![false; self.waits.len()];
        for free in session.free(&locks).await? {
            is_free[at[free]] = true;
        }
        Ok(is_free)
    }

    /// The only wait gets the session, which has its lock.
    async fn hand_over(&mut self, session: Session, grant: String) {
        let Some(Wait { lock, mode, turn, .. }) = self.waits.pop() else { return };
        if let Err(SendError(Turn::Granted(session, _))) = turn.send(Turn::Granted(Box::new(session), grant)).await {
            session.give_back(lock, mode).await;
        }
    }
}

impl Wait {
    /// The lock that has to become free, and whether it can be shared.
    fn needs(&self) -> Option<(i64, bool)> {
        match self.at {
            At::Outside => None,
            At::Place { before, .. } => Some((self.lock.queue().place(before), true)),
            At::Turnstile => Some((self.lock.key, self.mode == Mode::Shared)),
        }
    }

    fn tell(&self) {
        // If it has not heard the last word yet, that one is enough.
        let _ = self.turn.try_send(Turn::Try);
    }
}
