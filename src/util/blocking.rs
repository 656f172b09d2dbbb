//! The only way to Tokio's blocking pool, and the way into Tokio for code that runs outside a runtime.

use std::any::Any;
use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use super::timer::timeout;

/// Work in a box. What is generic here only boxes and unboxes: each copy of Tokio's tasks would cost every user's build.
type Work = Box<dyn FnOnce() -> (Answer, Rest) + Send>;
type Answer = Box<dyn Any + Send>;
type Rest = Box<dyn FnOnce()>;

/// Runs `work`, which is short, on the blocking pool.
///
/// Work that has begun goes on when its caller goes away. Its result is then dropped on the pool's thread, so the
/// result's drop must clean up. Fails if the work cannot begin: the runtime shuts down, or the system starts no thread.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    run_and_tidy_up(|| (work(), || ())).await
}

/// As [`run`]. `work` also returns what is left to be done. The pool's thread does that while the caller goes on.
pub(crate) async fn run_and_tidy_up<T: Send + 'static, R: FnOnce() + 'static>(
    work: impl FnOnce() -> (T, R) + Send + 'static,
) -> io::Result<T> {
    start(boxed(work))?.finish().await.map(unboxed)
}

fn boxed<T: Send + 'static, R: FnOnce() + 'static>(work: impl FnOnce() -> (T, R) + Send + 'static) -> Work {
    Box::new(|| {
        let (value, rest) = work();
        (Box::new(value), Box::new(rest))
    })
}

fn unboxed<T: 'static>(answer: Answer) -> T {
    *answer.downcast().expect("it is what the work has returned")
}

/// Work that has begun.
struct Started {
    runtime: Id,
    job: JoinHandle<()>,
    answer: oneshot::Receiver<Answer>,
}

fn start(work: Work) -> io::Result<Started> {
    let (sender, answer) = oneshot::channel();
    let job = spawn(Box::new(move || {
        let (value, rest) = work();
        // If nobody waits for the value any more, it is dropped here.
        drop(sender.send(value));
        rest();
    }))?;
    Ok(Started { runtime: Handle::current().id(), job, answer })
}

impl Started {
    async fn finish(self) -> io::Result<Answer> {
        match self.answer.await {
            Ok(value) => Ok(value),
            Err(_) => match self.job.await.map_err(JoinError::try_into_panic) {
                Err(Ok(panic)) => resume_unwind(panic),
                // The task is about to be dropped. It need not see an error first, which it would report.
                _ if is_task_of(self.runtime) => pending().await,
                _ => Err(io::Error::other("the Tokio runtime is shutting down")),
            },
        }
    }
}

/// Whether the caller is a task of this runtime.
fn is_task_of(runtime: Id) -> bool {
    tokio::task::try_id().is_some() && Handle::try_current().is_ok_and(|current| current.id() == runtime)
}

/// Tokio panics where the system starts no thread (`RLIMIT_NPROC`, `pids.max`), and keeps the closure for the next thread
/// that it gets. The work must not run then: our caller has been told that it failed.
#[expect(clippy::disallowed_methods, reason = "this is the one file that may call spawn_blocking")]
fn spawn(work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    let work = Arc::new(Mutex::new(Some(work)));
    let take =
        |work: &Mutex<Option<Box<dyn FnOnce() + Send>>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let job = {
        let work = Arc::clone(&work);
        move || {
            if let Some(work) = take(&work) {
                work()
            }
        }
    };
    catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(job))).or_else(|panic| {
        drop(take(&work));
        match Handle::try_current() {
            Ok(_) => Err(no_thread(&*panic)),
            Err(_) => resume_unwind(panic),
        }
    })
}

/// Tokio tells the cause only in the text of its panic.
fn no_thread(panic: &(dyn Any + Send)) -> io::Error {
    let cause = panic.downcast_ref::<String>().and_then(|text| text.split_once(": "));
    let cause = cause.map_or("is the limit of processes reached?", |(_, cause)| cause);
    io::Error::other(format!("the system starts no thread: {cause}"))
}

/// Runs `work` on the blocking pool, where there is one, and does not wait for it. Elsewhere it runs here and now.
pub(crate) fn detach(work: impl FnOnce() + Send + 'static) {
    match Handle::try_current() {
        // If no thread can be started, the work is dropped, which does what is most needed of it.
        Ok(_) => drop(spawn(Box::new(work))),
        Err(_) => work(),
    }
}

/// A pause of less than the millisecond in which Tokio's timers count. None at all where the system starts no thread.
pub(crate) async fn short_pause(pause: Duration) {
    // All threads of the pool may be busy for long. Then the pause ends by the timer.
    let _ = timeout(Duration::from_millis(1), pin!(run(move || std::thread::sleep(pause)))).await;
}

/// Runs `future` on this thread, in a runtime of its own. The caller pins it: a copy of all this for each future would
/// cost every user's build.
///
/// # Panics
/// Inside an asynchronous context.
#[track_caller]
pub(crate) fn outside_runtime<T>(future: Pin<&mut dyn Future<Output = T>>) -> io::Result<T> {
    let mut output = None;
    block_on(pin!(async { output = Some(future.await) }))?;
    Ok(output.expect("the future has ended"))
}

/// Runs `future`, which is short, also inside an asynchronous context. There it runs on a thread of its own, and the calling
/// thread waits. So it must not need a task of the calling runtime.
pub(crate) fn inside_runtime<T: Send>(future: Pin<&mut (dyn Future<Output = T> + Send)>) -> io::Result<T> {
    let mut output = None;
    block_on_a_thread(pin!(async { output = Some(future.await) }))?;
    Ok(output.expect("the future has ended"))
}

#[track_caller]
fn block_on(future: Pin<&mut dyn Future<Output = ()>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future);
    Ok(())
}

fn block_on_a_thread(future: Pin<&mut (dyn Future<Output = ()> + Send)>) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("lockfile-attempt".into());
        let running = thread.spawn_scoped(scope, || block_on(future))?;
        running.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Whether the calling thread belongs to a runtime.
pub(crate) fn is_inside_runtime() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}
