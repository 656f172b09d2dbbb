//! Counts the events of the library: how often each one happened, how long tasks waited, and how long locks were held.
//!
//! ```text
//! cargo run --example metrics
//! ```
//!
//! Three tasks take a lock in turn. Then the program prints the metrics in the text format of Prometheus.
//!
//! The label is the name of the event, which never changes. The message and the fields are no labels: each time that a
//! wait reports would make a new series.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_lockfile::LockFile;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

const USAGE: &str = "usage: metrics";

/// The upper ends of the buckets, in milliseconds.
const BUCKETS: [u64; 7] = [1, 10, 100, 1_000, 10_000, 60_000, 600_000];

/// How many times were at most as long as each bucket says, how many there were, and their sum.
#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_ms: u64,
}

#[derive(Default)]
struct Numbers {
    events: BTreeMap<&'static str, u64>,
    waited: Histogram,
    held: Histogram,
}

#[derive(Clone, Default)]
struct Metrics(Arc<Mutex<Numbers>>);

/// The times in the fields of one event.
#[derive(Default)]
struct Times {
    waited_ms: Option<u64>,
    held_ms: Option<u64>,
}

impl Visit for Times {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "waited_ms" => self.waited_ms = Some(value),
            "held_ms" => self.held_ms = Some(value),
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

impl<S: Subscriber> Layer<S> for Metrics {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut times = Times::default();
        event.record(&mut times);
        let mut numbers = self.0.lock().unwrap();
        let name = event.metadata().name();
        *numbers.events.entry(name).or_default() += 1;
        // A wait that goes on says `waited_ms` too, and so does a singleton that leads.
        match (name, times) {
            ("acquired" | "taken_over", Times { waited_ms: Some(waited), .. }) => numbers.waited.add(waited),
            ("released" | "lost", Times { held_ms: Some(held), .. }) => numbers.held.add(held),
            _ => {}
        }
    }
}

impl Histogram {
    fn add(&mut self, milliseconds: u64) {
        let buckets = self.buckets.iter_mut().zip(BUCKETS);
        buckets.for_each(|(count, end)| *count += u64::from(milliseconds <= end));
        self.count += 1;
        self.sum_ms += milliseconds;
    }

    fn print(&self, name: &str) {
        for (count, end) in self.buckets.iter().zip(BUCKETS) {
            println!("{name}_bucket{{le=\"{}\"}} {count}", end as f64 / 1_000.0);
        }
        println!("{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        println!("{name}_sum {}", self.sum_ms as f64 / 1_000.0);
        println!("{name}_count {}", self.count);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help") => {
            println!("{USAGE}");
            return Ok(());
        }
        Some(_) => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
    // The metrics need DEBUG events of this library. The log for people need not have them.
    let metrics = Metrics::default();
    let counted = metrics.clone().with_filter(filter_fn(|event| event.target() == "tokio_lockfile"));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(counted).with(log).init();

    let dir = tempfile::tempdir()?;
    let lock = LockFile::native(dir.path().join("metrics.lock"))?;
    let work = || async { lock.obtain().await?.run(tokio::time::sleep(Duration::from_millis(20))).await };
    tokio::try_join!(work(), work(), work())?;

    let numbers = metrics.0.lock().unwrap();
    for (name, count) in &numbers.events {
        println!("lock_events_total{{name=\"{name}\"}} {count}");
    }
    numbers.waited.print("lock_wait_seconds");
    numbers.held.print("lock_held_seconds");
    Ok(())
}
