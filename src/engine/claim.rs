//! The way of a lock from the thread on which a try has got it to the task that has asked for it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::contract::{Grant, Held};
use crate::sys::offer::{Offer, OfferTimeout, Release};
use crate::words::target::Target;

/// A lock that the task can take, as long as it is offered. Dropping this releases the lock.
#[derive(Debug)]
pub(crate) struct Claim<Turn: Send + 'static, H: Held + ?Sized + 'static = dyn Held> {
    offer: Arc<Offer<Unclaimed<Turn, H>>>,
    back: oneshot::Receiver<Turn>,
}

#[derive(Debug)]
struct Unclaimed<Turn, H: ?Sized> {
    grant: Grant<Turn, H>,
    target: Arc<Target>,
    back: oneshot::Sender<Turn>,
}

impl<Turn: Send + 'static, H: Held + ?Sized + 'static> Release for Unclaimed<Turn, H> {
    /// Then the task, if it is still there, gets its turn back and can try again.
    fn release(self, kept: impl Send + 'static) {
        let Self { grant: Grant { held, turn, .. }, target, back } = self;
        let back = GiveBack::new(turn, back);
        held.release(&target, Box::new(move |_| drop((back, kept))));
    }
}

/// Gives a turn back where it is dropped: at the end of a release, or where no thread can run the release. Then the lock
/// has been dropped before.
pub(crate) struct GiveBack<Turn>(Option<(Turn, oneshot::Sender<Turn>)>);

impl<Turn> GiveBack<Turn> {
    pub(crate) fn new(turn: Turn, to: oneshot::Sender<Turn>) -> Self {
        Self(Some((turn, to)))
    }
}

impl<Turn> Drop for GiveBack<Turn> {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|(turn, to)| drop(to.send(turn)));
    }
}

impl<Turn: Send + 'static, H: Held + ?Sized + 'static> Claim<Turn, H> {
    /// Offers what a try for `target` has got. The caller sends the claim to the task, and then calls what this returns as
    /// well, which has the offer watched.
    pub(crate) fn new(
        grant: Grant<Turn, H>,
        target: &Arc<Target>,
        offer_timeout: &OfferTimeout,
    ) -> (Self, impl FnOnce() + Send + use<Turn, H>) {
        let (sender, back) = oneshot::channel();
        let offer = Offer::new();
        offer.make(Unclaimed { grant, target: Arc::clone(target), back: sender }, Instant::now() + offer_timeout.get());
        let offered = Arc::downgrade(&offer);
        let watch = move || _ = offered.upgrade().is_some_and(|offer| offer.watch());
        (Self { offer, back }, watch)
    }

    /// Takes the lock. The turn comes back if the lock has been released, once nothing is left of it.
    pub(crate) async fn take(mut self, offer_timeout: &OfferTimeout) -> Result<Grant<Turn, H>, Turn> {
        if let Some(Unclaimed { grant, .. }) = self.offer.take() {
            offer_timeout.taken();
            return Ok(grant);
        }
        offer_timeout.missed();
        Err((&mut self.back).await.expect("the turn comes back wherever the release ends"))
    }
}

impl<Turn: Send + 'static, H: Held + ?Sized + 'static> Drop for Claim<Turn, H> {
    fn drop(&mut self) {
        if let Some(unclaimed) = self.offer.take() {
            unclaimed.release(());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::engine;
    use crate::engine::contract::{Attempt, BoxFuture, Contention, End};
    use crate::engine::memory::{SUFFIX, fault};
    use crate::support::HANG;
    use crate::words::error::LostReason;
    use crate::words::kind::LockKind;
    use crate::words::mode::Mode;
    use crate::words::options::Options;

    /// Closes its channel when it goes.
    type Turn = oneshot::Sender<()>;

    const SHORT: Duration = Duration::from_millis(10);

    /// A lock that a try has got. The release of a lock in memory takes a while.
    async fn granted(name: &str) -> (Arc<Target>, Grant<Turn>, oneshot::Receiver<()>) {
        let path = std::env::temp_dir().join(format!("{name}.{SUFFIX}"));
        let target = Arc::new(Target::file(LockKind::PLATFORM_DEFAULT, &path, Options::default()).unwrap());
        let (turn, gone) = oneshot::channel();
        match engine::of::<Turn>(&target).unwrap().attempt(Mode::Exclusive, turn).get().await.unwrap() {
            Attempt::Acquired(grant) => (target, grant, gone),
            Attempt::Busy(..) => panic!("the lock is not free"),
        }
    }

    fn is_held(target: &Target) -> bool {
        fault::holders(target.path()) > 0
    }

    #[tokio::test]
    async fn a_task_that_takes_its_lock_in_time_has_it() {
        let (target, grant, mut gone) = granted("claim_is_taken").await;
        let offer_timeout = OfferTimeout::new(HANG);
        let (claim, watch) = Claim::new(grant, &target, &offer_timeout);
        watch();
        let grant = claim.take(&offer_timeout).await.expect("it is offered");
        assert!(is_held(&target));
        assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(grant);
        assert!(!is_held(&target));
    }

    #[tokio::test]
    async fn a_lock_that_nobody_takes_is_released_and_then_the_turn_goes_back() {
        let (target, grant, _gone) = granted("claim_is_late").await;
        let offer_timeout = OfferTimeout::new(SHORT);
        let (mut claim, watch) = Claim::new(grant, &target, &offer_timeout);
        watch();
        let turn = timeout(HANG, &mut claim.back).await.expect("hangs").unwrap();
        assert!(!is_held(&target), "the turn came first");
        assert!(!turn.is_closed());
        assert!(claim.offer.take().is_none(), "two holders");
    }

    /// As for a task that is always polled so late.
    #[tokio::test]
    async fn the_next_claim_stands_longer() {
        let offer_timeout = OfferTimeout::new(SHORT);
        for times in [1, 2, 4] {
            assert_eq!(offer_timeout.get(), SHORT * times);
            let (target, grant, _gone) = granted("claim_stands_longer").await;
            let (claim, watch) = Claim::new(grant, &target, &offer_timeout);
            watch();
            while is_held(&target) {
                tokio::task::yield_now().await;
            }
            assert!(timeout(HANG, claim.take(&offer_timeout)).await.expect("hangs").is_err());
        }
    }

    #[tokio::test]
    async fn a_claim_that_is_dropped_releases_the_lock_at_once_and_then_the_turn() {
        let (target, grant, gone) = granted("claim_is_dropped").await;
        let (claim, watch) = Claim::new(grant, &target, &OfferTimeout::new(HANG));
        watch();
        drop(claim);
        assert!(timeout(HANG, gone).await.expect("hangs").is_err());
        assert!(!is_held(&target), "the turn came first");
    }

    /// A lock whose release cannot run: the system starts no thread, or the runtime shuts down.
    #[derive(Debug)]
    struct OnlyDropped;

    impl Held for OnlyDropped {
        fn check(&self, _target: &Target) -> Result<(), LostReason> {
            Ok(())
        }

        fn lost<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, LostReason> {
            Box::pin(std::future::pending())
        }

        fn is_of_this_process(&self) -> bool {
            true
        }

        fn release(self: Box<Self>, _target: &Target, end: End) {
            drop(end);
        }

        fn is_slow_to_release(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn the_turn_goes_back_also_if_the_release_cannot_run() {
        let target = Arc::new(Target::null("".as_ref(), Options::default()));
        let (turn, _gone) = oneshot::channel::<()>();
        let grant = Grant { held: Box::new(OnlyDropped), turn, taken_over: None, contention: Contention::None };
        let offer_timeout = OfferTimeout::new(SHORT);
        let (mut claim, watch) = Claim::new(grant, &target, &offer_timeout);
        watch();
        let turn = timeout(HANG, &mut claim.back).await.expect("hangs").expect("the turn is lost");
        assert!(!turn.is_closed());
    }
}
