//! Work that computes for as long as a server likes: a login, in which the server says how often the password is hashed, and
//! a TLS handshake.
//!
//! On the driver's thread, that would keep every other lock of this process from being renewed. So each step of such work,
//! from one wait to the next, runs on the blocking pool. A step cannot be stopped, but no held lock waits for it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::{Notify, Semaphore};

use crate::sys::per_process::PerProcess;
use crate::util::blocking;

/// How many steps run at the same time for one server. So that server takes no more threads, and none from another server.
const LIMIT: usize = 2;

/// The free places of each server that has work.
static PLACES: PerProcess<Mutex<HashMap<String, Weak<Semaphore>>>> = PerProcess::new();

fn places(server: String) -> Arc<Semaphore> {
    let mut servers = PLACES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    servers.retain(|_, places| places.strong_count() > 0);
    servers.get(&server).and_then(Weak::upgrade).unwrap_or_else(|| {
        let places = Arc::new(Semaphore::new(LIMIT));
        servers.insert(server, Arc::downgrade(&places));
        places
    })
}

/// Wakes the task that waits for the next step.
#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// The output of `work` for this server. Fails if the system starts no thread. To be polled by the driver.
///
/// Dropping this drops `work`, if need be after the step that it is at.
pub(crate) async fn run<F>(server: String, work: F) -> io::Result<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let places = places(server);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut work = Box::pin(work);
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
        let waker = waker.clone();
        let step = move || {
            let _place = place;
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            (polled, work)
        };
        match blocking::run(step).await? {
            (Poll::Ready(output), _) => return Ok(output),
            (Poll::Pending, rest) => work = rest,
        }
        woken.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;
    use crate::support::{HANG, poll_once};

    /// Work that stands still on its thread until something is sent.
    fn stuck() -> (mpsc::Sender<()>, impl Future<Output = ()> + Send + 'static) {
        let (go_on, goes_on) = mpsc::channel();
        (go_on, async move { goes_on.recv_timeout(HANG).unwrap() })
    }

    #[tokio::test]
    async fn a_step_keeps_nobody_waiting() {
        let (go_on, step) = stuck();
        let (begin, begun) = oneshot::channel();
        let (send, answer) = oneshot::channel();
        let work = async move {
            begin.send(()).unwrap();
            step.await;
            answer.await.unwrap()
        };
        let beside = async {
            begun.await.unwrap();
            go_on.send(()).unwrap();
            send.send(42).unwrap();
        };
        let (output, ()) = tokio::join!(run("a".into(), work), beside);
        assert_eq!(output.unwrap(), 42);
    }

    #[tokio::test]
    async fn a_server_has_no_more_than_its_places_and_another_has_its_own() {
        let mut steps = Vec::new();
        for _ in 0..LIMIT {
            let (go_on, step) = stuck();
            let mut running = Box::pin(run("b".into(), step));
            assert!(!poll_once(running.as_mut()).await);
            steps.push((go_on, running));
        }
        let mut late = Box::pin(run("b".into(), async {}));
        assert!(!poll_once(late.as_mut()).await);
        timeout(HANG, run("c".into(), async {})).await.expect("another server waits").unwrap();
        assert!(!poll_once(late.as_mut()).await, "it had a place");
        for (go_on, running) in steps {
            go_on.send(()).unwrap();
            running.await.unwrap();
        }
        timeout(HANG, late).await.expect("no place becomes free").unwrap();
    }

    /// The step goes on, and keeps its place. What was not done is dropped after it.
    #[tokio::test]
    async fn dropped_work_ends_after_its_step() {
        let (go_on, step) = stuck();
        let (kept, is_dropped) = oneshot::channel::<()>();
        let work = async move {
            step.await;
            std::future::pending::<()>().await;
            drop(kept);
        };
        let mut running = Box::pin(run("d".into(), work));
        assert!(!poll_once(running.as_mut()).await);
        drop(running);
        go_on.send(()).unwrap();
        assert!(timeout(HANG, is_dropped).await.expect("it is not dropped").is_err());
    }
}
