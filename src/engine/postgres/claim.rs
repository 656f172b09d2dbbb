//! The way of a lock from the driver to the task that has asked for it.
//!
//! The task may have gone, or it may do something else. It does not know yet that it has the lock. So the lock must not
//! keep other processes out for long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How long a lock waits for its task. A server needs some milliseconds to give the lock to another process, so a task that
/// is only a little late keeps it.
const LONGEST: Duration = Duration::from_millis(100);

type Place<T> = Arc<Mutex<Option<T>>>;

/// The end of the driver.
#[derive(Debug)]
pub(super) struct Offer<T> {
    to: oneshot::Sender<Place<T>>,
    /// Resolves when the task has looked, or has gone.
    looked: oneshot::Receiver<()>,
}

/// The end of the task.
#[derive(Debug)]
pub(super) struct Claim<T> {
    offered: oneshot::Receiver<Place<T>>,
    _looks: oneshot::Sender<()>,
}

pub(super) fn channel<T>() -> (Offer<T>, Claim<T>) {
    let (to, offered) = oneshot::channel();
    let (_looks, looked) = oneshot::channel();
    (Offer { to, looked }, Claim { offered, _looks })
}

fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl<T> Offer<T> {
    /// Resolves when the task has gone.
    pub(super) async fn abandoned(&mut self) {
        self.to.closed().await;
    }

    /// Tells the task something that keeps nobody out. It can look at any time.
    pub(super) fn tell(self, value: T) {
        let _ = self.to.send(Arc::new(Mutex::new(Some(value))));
    }

    /// Gives a lock to the task. Returns it if the task has gone, or does not take it in time.
    pub(super) async fn give(self, value: T) -> Result<(), T> {
        let place = Arc::new(Mutex::new(Some(value)));
        if self.to.send(Arc::clone(&place)).is_ok() {
            let _ = tokio::time::timeout(LONGEST, self.looked).await;
        }
        take(&place).map_or(Ok(()), Err)
    }
}

impl<T> Claim<T> {
    /// The value; `None` if it was taken back, or if there is none.
    pub(super) async fn value(self) -> Option<T> {
        take(&*self.offered.await.ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_value_that_nobody_takes_comes_back() {
        let (offer, claim) = channel();
        assert_eq!(offer.give(1).await, Err(1));
        assert_eq!(claim.value().await, None);
        let (offer, claim) = channel();
        drop(claim);
        assert_eq!(offer.give(2).await, Err(2));
        let (offer, claim) = channel();
        assert_eq!(tokio::join!(offer.give(3), claim.value()), (Ok(()), Some(3)));
        let (offer, claim) = channel();
        offer.tell(4);
        tokio::time::sleep(LONGEST * 2).await;
        assert_eq!(claim.value().await, Some(4));
        let (mut offer, claim) = channel::<()>();
        drop(claim);
        offer.abandoned().await;
        let (offer, claim) = channel::<()>();
        drop(offer);
        assert_eq!(claim.value().await, None);
    }
}
