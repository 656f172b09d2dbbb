//! A cluster as this process sees it: one connection, to a member that answers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::Config;
use super::connect;
use super::failure::Failure;
use super::grpc::{Channel, Stream};
use super::proto::Call;
use crate::engine::server::lease::Moment;

/// The pause before all members are asked once more.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Cluster {
    pub(super) config: Config,
    channel: AsyncMutex<Option<Channel>>,
    /// The member that the next connection tries first.
    next: AtomicUsize,
    /// What the present tries to connect have failed with last.
    pub(super) last_failure: Arc<Mutex<Option<Failure>>>,
}

/// What a member has answered.
pub(super) struct Answered<T> {
    pub(super) value: T,
    /// When the request was sent.
    pub(super) sent: Moment,
    /// Whether the same request, sent earlier, may be carried out too, now or later.
    pub(super) is_in_doubt: bool,
}

impl Cluster {
    pub(super) fn new(config: Config) -> Self {
        Self { config, channel: AsyncMutex::default(), next: AtomicUsize::default(), last_failure: Arc::default() }
    }

    /// The time by which an operation that begins now must have its answer.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.config.limit
    }

    /// Makes a call that ends by `deadline`. If a member does not answer, the next one is asked.
    pub(super) async fn call<C: Call>(&self, call: &C, deadline: Instant) -> Result<Answered<C::Answer>, Failure> {
        let share = deadline.saturating_duration_since(Instant::now()) / 3;
        let (mut is_in_doubt, mut foreign) = (false, HashSet::new());
        for tries in 1.. {
            let channel = self.channel(deadline).await.map_err(|failure| failure.doubted(is_in_doubt))?;
            let sent = Moment::now();
            let latest = deadline.min(Instant::now() + share);
            let answered = timeout_at(latest, channel.call(call)).await;
            let failure = match answered.unwrap_or_else(|_| Err(Failure::no_answer())) {
                Ok(value) => return Ok(Answered { value, sent, is_in_doubt }),
                Err(failure) => failure.at(channel.origin()),
            };
            is_in_doubt |= failure.is_in_doubt();
            if !failure.is_passing() {
                return Err(failure.doubted(is_in_doubt));
            }
            self.give_up(&channel, &failure);
            if failure.is_foreign() && foreign.insert(channel.origin().to_owned()) && self.are_all(&foreign) {
                return Err(failure.doubted(is_in_doubt));
            }
            if tries % self.config.endpoints.len() == 0 {
                sleep(PAUSE).await;
            }
            if Instant::now() >= deadline {
                return Err(failure.doubted(is_in_doubt));
            }
        }
        unreachable!("the loop has no end")
    }

    /// Whether each member of the URL is one of these.
    fn are_all(&self, foreign: &HashSet<String>) -> bool {
        foreign.len() >= self.config.endpoints.len()
    }

    /// Asks one member, and takes the first answer. A member that has not answered after `patience` is not given up: the
    /// next one is asked beside it. What is asked may be carried out more than once.
    pub(super) async fn ask_beside<T, F>(
        &self,
        ask: impl Fn(Channel) -> F + Clone + Send + 'static,
        patience: Duration,
        deadline: Instant,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (first, members) = (self.channel(deadline).await?, self.config.endpoints.len());
        let tries = (1..).map(|tries| {
            let (ask, config) = (ask.clone(), self.config.clone());
            let open = (tries == 1).then(|| first.clone());
            let member = if open.is_some() { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) + 1 };
            let asked = async move {
                let channel = match open {
                    Some(channel) => channel,
                    None => connect::to(config.clone(), config.endpoints[member % members].clone()).await?,
                };
                let answered = ask(channel.clone()).await;
                answered.map(|answer| (channel.clone(), answer)).map_err(|failure| failure.at(channel.origin()))
            };
            // Each member is asked soon after the one before has failed, but none is asked again so soon.
            let pause = if tries < members { PAUSE } else { patience };
            async move {
                let asked = asked.await;
                if asked.as_ref().is_err_and(Failure::is_passing) {
                    sleep(pause).await;
                }
                asked
            }
        });
        let asked = timeout_at(deadline, connect::hedge(tries, patience)).await;
        let (channel, answer) = asked.unwrap_or_else(|_| Err(Failure::no_answer()))?;
        self.prefer(channel);
        Ok(answer)
    }

    /// A call with a stream of requests and one of answers.
    pub(super) async fn stream<C: Call>(&self, deadline: Instant) -> Result<Stream<C>, Failure> {
        let channel = self.channel(deadline).await?;
        let begun = channel.stream().await;
        begun.inspect_err(|failure| self.give_up(&channel, failure))
    }

    /// The connection. Whoever comes first makes it.
    async fn channel(&self, deadline: Instant) -> Result<Channel, Failure> {
        let current = timeout_at(deadline, self.channel.lock()).await;
        let mut current = current.map_err(|_| Failure::no_connection())?;
        if let Some(channel) = &*current {
            return Ok(channel.clone());
        }
        let channel =
            connect::to_any(&self.config, self.next.load(Ordering::Relaxed), &self.last_failure, deadline).await?;
        Ok(current.insert(channel).clone())
    }

    /// All who use the connection go over to `channel`, whose member has answered.
    fn prefer(&self, channel: Channel) {
        // Whoever has the mutex now is connecting.
        let Ok(mut current) = self.channel.try_lock() else { return };
        if let Some(old) = current.replace(channel.clone()).filter(|old| !old.is_same(&channel)) {
            old.close();
        }
    }

    /// The member at the other end does not answer as it should. So all who use the connection go to another one.
    fn give_up(&self, channel: &Channel, failure: &Failure) {
        // Whoever has the mutex now is connecting, so this connection has been given up already.
        let Ok(mut current) = self.channel.try_lock() else { return };
        if current.as_ref().is_some_and(|current| current.is_same(channel)) {
            *current = None;
            self.next.fetch_add(1, Ordering::Relaxed);
            // One that has not taken the request may end well what it has: a proxy takes only so many on one connection.
            if !failure.is_not_sent() {
                channel.close();
            }
        }
    }
}
