//! A wait with a limit. The limit is kept, however long it takes to find out who holds the lock.

use std::convert::Infallible;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::lock::Lock;
use crate::util::timer::{sleep, timeout};
use crate::words::error::LockError;
use crate::words::holder::Holder;

/// How long before the limit the look for the holder begins, at most. It usually takes a fraction of a millisecond.
const EARLY: Duration = Duration::from_millis(500);

/// The last look begins this long before the limit, or twice as long as the first one took.
const MARGIN: Duration = Duration::from_millis(5);

/// The time that a look has even after the limit: after a very short one, or on a busy machine.
const GRACE: Duration = Duration::from_millis(20);

/// For how long a look is awaited where no limit has to be kept.
const PATIENCE: Duration = Duration::from_millis(500);

/// How old the answer to a look may be.
const FRESHNESS: Duration = Duration::from_millis(10);

/// What is known of the holder.
#[derive(Debug, Default)]
struct Seen {
    /// When the first look began.
    asked: Option<Instant>,
    /// The last answer.
    answer: Option<Result<Option<Holder>, LockError>>,
}

impl Seen {
    fn rest_of_grace(&self) -> Duration {
        match (&self.answer, self.asked) {
            (Some(_), _) => Duration::ZERO,
            (None, None) => GRACE,
            (None, Some(asked)) => GRACE.saturating_sub(asked.elapsed()),
        }
    }
}

/// The output of `wait`, or the error of a wait that was too long.
pub(crate) async fn within<T>(
    limit: Duration,
    lock: &Lock,
    mut wait: Pin<&mut impl Future<Output = Result<T, LockError>>>,
) -> Result<T, LockError> {
    // On the heap, because thousands of waits have it.
    let seen = Box::new(Mutex::default());
    let mut looks = Box::pin(look_before(limit, lock, &seen));
    let both = async {
        tokio::select! {
            biased;
            done = &mut wait => done,
            never = &mut looks => match never {},
        }
    };
    if let Some(done) = timeout(limit, pin!(both)).await {
        return done;
    }
    let grace = seen.lock().unwrap_or_else(PoisonError::into_inner).rest_of_grace();
    Err(Box::pin(too_late(limit, lock, &seen, grace)).await)
}

/// The error of an attempt that has found the lock held.
pub(crate) async fn held(lock: &Lock) -> LockError {
    too_late(Duration::ZERO, lock, &Mutex::default(), PATIENCE).await
}

/// Who holds the lock now, for a message to people.
pub(crate) async fn describe_holder(lock: &Lock) -> Option<Holder> {
    let looked = timeout(PATIENCE, pin!(lock.look_for_holder(FRESHNESS, || ()))).await;
    looked.and_then(Result::ok).flatten()
}

/// Looks before the limit, and again shortly before it: another process may have the lock by then.
async fn look_before(limit: Duration, lock: &Lock, seen: &Mutex<Seen>) -> Infallible {
    let began = Instant::now();
    sleep(limit - EARLY.min(limit / 2)).await;
    loop {
        let asked = Instant::now();
        look(lock, seen).await;
        let rest = limit.saturating_sub(began.elapsed());
        match rest.saturating_sub(MARGIN.max(2 * asked.elapsed())) {
            Duration::ZERO => return std::future::pending().await,
            pause => sleep(pause).await,
        }
    }
}

async fn look(lock: &Lock, seen: &Mutex<Seen>) {
    let seen = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let begin = || _ = seen().asked.get_or_insert_with(Instant::now);
    let answer = lock.look_for_holder(FRESHNESS, begin).await;
    seen().answer = Some(answer);
}

/// Goes on looking for at most `grace`.
async fn too_late(limit: Duration, lock: &Lock, seen: &Mutex<Seen>, grace: Duration) -> LockError {
    if !grace.is_zero() {
        timeout(grace, pin!(look(lock, seen))).await;
    }
    let Seen { asked, answer } = mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    let (holder, trouble) = match (answer, asked) {
        (Some(Ok(holder)), _) => (holder, None),
        (Some(Err(error)), _) => (None, Some(error.cause())),
        (None, asked) => match lock.holder_here() {
            Some(us) => (Some(us), None),
            None => (None, asked.map(|_| lock.no_answer())),
        },
    };
    lock.target().timed_out(limit, holder, trouble)
}
