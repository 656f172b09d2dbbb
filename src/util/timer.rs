//! Tokio's timers, for a future that may move to another runtime. A timer of Tokio belongs to the runtime in which it was
//! made, and panics if it is polled after that runtime has been shut down.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

/// Waits until `duration` has passed, in whatever runtime polls this. For ever if no clock counts that far.
///
/// # Panics
/// Where a runtime has no timers.
pub(crate) fn sleep(duration: Duration) -> Sleep {
    Sleep { deadline: Instant::now().checked_add(duration), timer: None }
}

/// The output of `future`; `None` if it takes longer than `limit`. The caller pins it, because an `async fn` would keep it
/// twice.
pub(crate) async fn timeout<F: Future>(limit: Duration, mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut sleep = sleep(limit);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Pin::new(&mut sleep).poll(context).map(|()| None),
    })
    .await
}

#[derive(Debug)]
#[must_use]
pub(crate) struct Sleep {
    deadline: Option<Instant>,
    /// The timer, and its runtime.
    timer: Option<(Id, Pin<Box<tokio::time::Sleep>>)>,
}

impl Future for Sleep {
    type Output = ();

    // It is awaited in many places, and never in a hurry.
    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let here = Handle::current().id();
        if self.timer.as_ref().is_none_or(|(runtime, _)| *runtime != here) {
            self.timer = Some((here, Box::pin(tokio::time::sleep_until(deadline))));
        }
        let (_, timer) = self.timer.as_mut().expect("just made");
        timer.as_mut().poll(context)
    }
}
