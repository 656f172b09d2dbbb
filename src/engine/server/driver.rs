//! The one thread of this process that talks to servers.
//!
//! A service may block its runtime, or end it. A lock that it holds must be renewed all the same. So no connection
//! depends on a runtime of the service. The thread ends when it has had nothing to do for a while.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::sys::per_process::PerProcess;

/// How long the thread stays without a job.
const IDLE: Duration = Duration::from_secs(2);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

static DRIVER: PerProcess<Mutex<Option<UnboundedSender<Job>>>> = PerProcess::new();

/// Starts `job` on the driver's thread. Any thread may call this. It fails only if the system starts no thread.
pub(crate) fn spawn(job: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let mut job: Job = Box::pin(job);
    // The driver is free again before a job is dropped, which may need it.
    let mut driver = DRIVER.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(jobs) = driver.as_ref() {
        match jobs.send(job) {
            Ok(()) => return Ok(()),
            // The thread is about to end.
            Err(refused) => job = refused.0,
        }
    }
    let jobs = start()?;
    drop(jobs.send(job));
    *driver = Some(jobs);
    Ok(())
}

/// Does the same as [`spawn`] for a job with an output. The job goes on if nobody waits for its output.
pub(crate) fn run<T: Send + 'static>(
    job: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send + 'static {
    let (sender, output) = oneshot::channel();
    let spawned = spawn(async move { drop(sender.send(job.await)) });
    async move {
        spawned?;
        output.await.map_err(|_| panicked())
    }
}

/// A job has ended without its output.
pub(crate) fn panicked() -> io::Error {
    io::Error::other("an internal task for the server panicked")
}

fn start() -> io::Result<UnboundedSender<Job>> {
    let (sender, jobs) = unbounded_channel();
    let (runtime, handed_over) = std::sync::mpsc::channel::<tokio::runtime::Runtime>();
    let thread = std::thread::Builder::new().name("lockfile-driver".into());
    // The thread comes first. Without it, the runtime would be dropped here, which panics inside another runtime.
    thread.spawn(move || handed_over.recv().map(|runtime| runtime.block_on(drive(jobs))))?;
    drop(runtime.send(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
    Ok(sender)
}

async fn drive(mut jobs: UnboundedReceiver<Job>) {
    let mut running = JoinSet::new();
    let mut is_open = true;
    while is_open || !running.is_empty() {
        tokio::select! {
            job = jobs.recv(), if is_open => match job {
                Some(job) => drop(running.spawn(job)),
                None => is_open = false,
            },
            Some(_) = running.join_next() => {}
            // From here on a new job finds the channel closed and starts a new thread. Jobs that are in the channel
            // still come.
            () = tokio::time::sleep(IDLE), if is_open && running.is_empty() => jobs.close(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const HANG: Duration = Duration::from_secs(60);

    #[test]
    fn a_job_runs_beside_a_blocked_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (sender, output) = mpsc::channel();
            let job = async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                sender.send(()).unwrap();
            };
            spawn(job).unwrap();
            output.recv_timeout(HANG).unwrap();
            assert_eq!(run(async { 42 }).await.unwrap(), 42);
        });
    }

    #[test]
    fn a_job_that_panics_is_an_error_and_the_others_go_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert!(run(async { panic!("a test's panic") }).await.is_err());
            assert_eq!(run(async { 42 }).await.unwrap(), 42);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_without_jobs_ends_and_its_last_jobs_run() {
        let (sender, jobs) = unbounded_channel::<Job>();
        let driving = tokio::spawn(drive(jobs));
        let (done, mut output) = unbounded_channel();
        for number in 0..3 {
            let done = done.clone();
            sender.send(Box::pin(async move { done.send(number).unwrap() })).unwrap();
        }
        driving.await.unwrap();
        drop(done);
        let mut seen = Vec::new();
        while let Some(number) = output.recv().await {
            seen.push(number);
        }
        assert_eq!(seen, [0, 1, 2]);
        assert!(sender.send(Box::pin(async {})).is_err());
    }
}
