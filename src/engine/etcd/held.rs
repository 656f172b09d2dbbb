//! A lock that is held. A job of the driver has the place in front of the queue, and this is the handle of that job.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::failure::Failure;
use super::place::Place;
use super::session::Session;
use crate::engine::contract::{BoxFuture, End, Held};
use crate::engine::server::driver;
use crate::engine::server::loss::{self, Loss, LossSender};
use crate::sys::process::Owner;
use crate::words::error::LostReason;
use crate::words::target::Target;

/// Whether the key was still there.
type Released = Result<bool, Failure>;

pub(super) struct EtcdHeld {
    parts: Option<Parts>,
    token: u64,
    owner: Owner,
}

/// A lock that is held for a shorter time than this costs the cluster no watch.
const SHORT: Duration = Duration::from_millis(10);

/// What a forked child must not touch, not even by dropping it.
struct Parts {
    session: Arc<Session>,
    loss: Loss,
    /// Asks the job to delete the key, and to answer here. Dropping it asks too.
    release: oneshot::Sender<oneshot::Sender<Released>>,
}

impl EtcdHeld {
    /// Fails if no thread can be started for the job. Then the session deletes the key.
    pub(super) fn new(place: Place, tells_since: bool) -> Result<Self, Failure> {
        let (release, asked) = oneshot::channel();
        let (session, token) = (Arc::clone(place.session()), place.token());
        let (lost, loss) = loss::channel(Arc::clone(&session.lease));
        let job = Job { lost, place, tells_since, asked };
        driver::spawn(job.keep()).map_err(|error| {
            session.set_in_doubt();
            Failure::not_sent(error)
        })?;
        Ok(Self { parts: Some(Parts { session, loss, release }), token, owner: Owner::this_process() })
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("only a release takes them")
    }

    /// Asks for the release. The answer comes later; the reason of the loss if the lock is lost before.
    fn begin_release(mut self) -> impl Future<Output = Result<Released, LostReason>> + Send + use<> {
        let Parts { loss, release, .. } = self.parts.take().expect("a lock is released once");
        let (answer, released) = oneshot::channel();
        drop(release.send(answer));
        loss.before(released)
    }
}

/// Keeps a place until it is released.
struct Job {
    lost: LossSender,
    place: Place,
    tells_since: bool,
    asked: oneshot::Receiver<oneshot::Sender<Released>>,
}

impl Job {
    async fn keep(mut self) {
        let asked = tokio::select! {
            biased;
            asked = &mut self.asked => asked,
            reason = watch_for_loss(&self.place, self.tells_since) => {
                self.lost.send(reason);
                self.asked.await
            }
        };
        let deleted = self.place.delete().await;
        let is_deleted = deleted.is_ok();
        if let Ok(answer) = asked {
            drop(answer.send(deleted));
        }
        if !is_deleted {
            self.place.delete_at_last().await;
        }
    }
}

async fn watch_for_loss(place: &Place, tells_since: bool) -> LostReason {
    sleep(SHORT).await;
    if tells_since {
        place.tell_since(SystemTime::now()).await;
    }
    place.lost().await
}

impl Drop for EtcdHeld {
    fn drop(&mut self) {
        if !self.owner.is_this_process() {
            // Another thread of the parent may have had a mutex in it at the fork.
            mem::forget(self.parts.take());
        }
    }
}

impl fmt::Debug for EtcdHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdHeld").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Held for EtcdHeld {
    fn check(&self, _target: &Target) -> Result<(), LostReason> {
        self.parts().loss.check()
    }

    fn lost<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, LostReason> {
        Box::pin(self.parts().loss.wait())
    }

    fn is_of_this_process(&self) -> bool {
        self.owner.is_this_process()
    }

    fn is_slow_to_release(&self) -> bool {
        true
    }

    fn release(self: Box<Self>, target: &Target, end: End) {
        let lost = self.parts().loss.check();
        let session = Arc::clone(&self.parts().session);
        let released = self.begin_release();
        if let Err(reason) = lost {
            return end(Err(target.lost(reason)));
        }
        let target = target.clone();
        // Without a thread, nobody hears how the release ends.
        let _ = driver::spawn(async move {
            let reason = match released.await {
                Ok(Ok(true)) => return end(Ok(())),
                Ok(Ok(false)) => LostReason::Removed,
                Ok(Err(failure)) if session.lease.is_alive() => {
                    return end(Err(failure.into_error(&target, "release")));
                }
                Ok(Err(_)) => LostReason::Expired,
                Err(reason) => reason,
            };
            end(Err(target.lost(reason)));
        });
    }

    fn token(&self) -> Option<u64> {
        Some(self.token)
    }
}
