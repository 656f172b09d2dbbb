//! The one thread of this process that talks to servers.
//!
//! A service may block its runtime, or end it. A lock that it holds must be renewed all the same. So no connection
//! depends on a runtime of the service. The thread ends when it has had nothing to do for a while.
//!
//! All locks share the thread. So no job may compute for long, see [`steps`](super::steps).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::sys::per_process::PerProcess;

/// How long the thread stays without a job.
const IDLE: Duration = Duration::from_secs(2);

/// A thread that takes no job for so long is stopped, or at something that does not end. Then there is another one for the
/// jobs to come.
const STUCK: Duration = Duration::from_secs(2);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

static DRIVER: PerProcess<Driver> = PerProcess::new();

#[derive(Default)]
struct Driver(Mutex<Option<Jobs>>);

/// The way to a thread.
struct Jobs {
    sender: UnboundedSender<Job>,
    waiting: Arc<WaitingSince>,
}

/// Since when a job waits for the thread.
type WaitingSince = Mutex<Option<Instant>>;

/// Starts `job` on the driver's thread. Any thread may call this. It fails only if the system starts no thread.
pub(crate) fn spawn(job: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    DRIVER.get_or_init(Driver::default).spawn(Box::pin(job))
}

impl Driver {
    fn spawn(&self, mut job: Job) -> io::Result<()> {
        // The driver is free again before a job is dropped, which may need it.
        let mut driver = lock(&self.0);
        if let Some(jobs) = driver.as_ref() {
            match jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(refused) => job = refused,
            }
        }
        let jobs = start()?;
        drop(jobs.send(job));
        *driver = Some(jobs);
        Ok(())
    }
}

impl Jobs {
    /// Gives the job back if the thread is about to end, or is stuck.
    fn send(&self, job: Job) -> Result<(), Job> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_some_and(|since| since.elapsed() > STUCK) {
            return Err(job);
        }
        self.sender.send(job).map_err(|refused| refused.0)?;
        waiting.get_or_insert_with(Instant::now);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

fn start() -> io::Result<Jobs> {
    let (sender, jobs) = unbounded_channel();
    let waiting = Arc::<WaitingSince>::default();
    let (runtime, handed_over) = std::sync::mpsc::channel::<tokio::runtime::Runtime>();
    let thread = std::thread::Builder::new().name("lockfile-driver".into());
    let driving = drive(jobs, Arc::clone(&waiting));
    // The thread comes first. Without it, the runtime would be dropped here, which panics inside another runtime.
    thread.spawn(move || handed_over.recv().map(|runtime| runtime.block_on(driving)))?;
    drop(runtime.send(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
    Ok(Jobs { sender, waiting })
}

async fn drive(mut jobs: UnboundedReceiver<Job>, waiting: Arc<WaitingSince>) {
    let mut running = JoinSet::new();
    let mut is_open = true;
    while is_open || !running.is_empty() {
        tokio::select! {
            job = jobs.recv(), if is_open => {
                match job {
                    Some(job) => drop(running.spawn(job)),
                    None => is_open = false,
                }
                let mut waiting = lock(&waiting);
                *waiting = (!jobs.is_empty()).then(Instant::now);
            }
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

    const HANG: Duration = Duration::from_secs(120);

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
        let driving = tokio::spawn(drive(jobs, Arc::default()));
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

    #[test]
    fn a_thread_that_is_stuck_is_replaced() {
        let driver = Driver::default();
        let (go_on, goes_on) = mpsc::channel();
        driver.spawn(Box::pin(async move { _ = goes_on.recv_timeout(HANG) })).unwrap();
        let began = Instant::now();
        let (done, is_done) = mpsc::channel();
        let runs = || {
            let done = done.clone();
            driver.spawn(Box::pin(async move { _ = done.send(()) })).unwrap();
            is_done.recv_timeout(Duration::from_millis(100)).ok()
        };
        while runs().is_none() {
            assert!(began.elapsed() < HANG, "no job runs beside the one that is stuck");
        }
        go_on.send(()).unwrap();
    }
}
