//! How the holder of a lock on a server learns that the lock is lost.
//!
//! The keeper of the lock, a job of the driver, tells it. But the driver may be stopped, busy or dead. So the holder also
//! looks at the lease itself, with a timer of its own runtime.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::lease::Lease;
use crate::words::error::LostReason;

/// The keeper's end of the channel. If it is dropped without a reason, nobody keeps the lock any more. So a keeper drops it
/// before the session.
#[derive(Debug)]
pub(crate) struct LossSender(watch::Sender<Option<LostReason>>);

/// The holder's end of the channel.
#[derive(Debug)]
pub(crate) struct Loss {
    lease: Arc<Lease>,
    told: watch::Receiver<Option<LostReason>>,
}

pub(crate) fn channel(lease: Arc<Lease>) -> (LossSender, Loss) {
    let (sender, told) = watch::channel(None);
    (LossSender(sender), Loss { lease, told })
}

impl LossSender {
    pub(crate) fn send(&self, reason: LostReason) {
        self.0.send_replace(Some(reason));
    }
}

impl Loss {
    /// Whether the lock is still ours. Reads the clock.
    pub(crate) fn check(&self) -> Result<(), LostReason> {
        let is_kept = self.told.has_changed().is_ok();
        match *self.told.borrow() {
            Some(reason) => Err(reason),
            None if !is_kept => Err(LostReason::Disconnected),
            None if self.lease.is_alive() => Ok(()),
            None => Err(LostReason::Expired),
        }
    }

    /// Resolves when the lock is lost: at the end of the lease at the latest, whatever the driver does.
    ///
    /// # Panics
    /// Where a runtime has no timers.
    pub(crate) fn wait(&self) -> impl Future<Output = LostReason> + Send + use<> {
        let (lease, told) = (Arc::clone(&self.lease), self.told.clone());
        async move {
            tokio::select! {
                biased;
                reason = word(told) => reason,
                () = lease.expired() => LostReason::Expired,
            }
        }
    }

    /// What the keeper answers. The reason of the loss if the lock is lost before: at the end of the lease at the latest. To
    /// be awaited on the driver's thread, which has timers.
    pub(crate) async fn before<T>(self, mut answer: oneshot::Receiver<T>) -> Result<T, LostReason> {
        let lost = tokio::select! {
            biased;
            Ok(answer) = &mut answer => return Ok(answer),
            reason = word(self.told.clone()) => reason,
            () = self.lease.expired() => LostReason::Expired,
        };
        // A keeper ends right after its answer, which looks like a loss.
        answer.try_recv().map_err(|_| lost)
    }
}

/// The reason that the keeper tells. A keeper that has ended without one counts as disconnected.
async fn word(mut told: watch::Receiver<Option<LostReason>>) -> LostReason {
    told.wait_for(Option::is_some).await.ok().and_then(|told| *told).unwrap_or(LostReason::Disconnected)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::engine::server::lease::Moment;
    use crate::support::poll_once;

    /// The last tenth of a lease is not used.
    const TTL: Duration = Duration::from_millis(500);
    const USED: Duration = Duration::from_millis(450);

    fn lease(ttl: Duration) -> Arc<Lease> {
        Arc::new(Lease::new(ttl, Moment::now()))
    }

    /// Also where the clock of Tokio is paused: it runs ahead of the lease, or it stands still.
    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_lease_is_a_loss_although_nobody_tells_it() {
        let began = Moment::now();
        let (_silent, loss) = channel(lease(TTL));
        let mut wait = pin!(loss.wait());
        let is_lost = poll_once(wait.as_mut()).await || loss.check().is_err();
        assert!(!is_lost || began.elapsed() >= USED, "lost before the lease has ended");
        if !is_lost {
            assert_eq!(wait.await, LostReason::Expired);
            assert!(began.elapsed() >= USED);
        }
        assert_eq!(loss.check(), Err(LostReason::Expired));
    }

    #[tokio::test]
    async fn a_keeper_that_is_gone_is_a_loss() {
        for word in [None, Some(LostReason::Removed)] {
            let (sender, loss) = channel(lease(Duration::from_secs(3600)));
            if let Some(reason) = word {
                sender.send(reason);
            }
            drop(sender);
            let reason = word.unwrap_or(LostReason::Disconnected);
            assert_eq!(loss.check(), Err(reason));
            assert_eq!(loss.wait().await, reason);
        }
    }

    #[tokio::test]
    async fn an_answer_comes_before_the_end_of_the_keeper_and_not_after_the_lease() {
        let (sender, loss) = channel(lease(Duration::from_secs(3600)));
        let (answer, answered) = oneshot::channel();
        let mut wait = pin!(loss.before(answered));
        assert!(!poll_once(wait.as_mut()).await);
        answer.send(42).unwrap();
        drop(sender);
        assert_eq!(wait.await, Ok(42));
        let (_silent, loss) = channel(lease(TTL));
        let (_never, answered) = oneshot::channel::<()>();
        assert_eq!(loss.before(answered).await, Err(LostReason::Expired));
    }
}
