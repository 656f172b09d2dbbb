//! The whole log, of this crate and of the libraries below it, for the tests with every server.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Writes down all that is logged by tracing, and by the crate log.
#[derive(Debug, Clone, Default)]
pub(crate) struct WholeLog(Arc<Mutex<String>>);

impl WholeLog {
    /// Begins to write. A process can do this only once.
    pub(crate) fn begin() -> Self {
        let this = Self::default();
        log::set_boxed_logger(Box::new(this.clone())).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(this.clone())).unwrap();
        this
    }

    /// What has been logged until now.
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }

    fn write(&self, line: fmt::Arguments<'_>) {
        writeln!(self.0.lock().unwrap(), "{line}").unwrap();
    }
}

impl Visit for WholeLog {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(format_args!("{field}: {value:?}"));
    }
}

impl<S: Subscriber> Layer<S> for WholeLog {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        self.write(format_args!("{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut self.clone());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _id: &Id, _context: Context<'_, S>) {
        attributes.record(&mut self.clone());
    }

    fn on_record(&self, _id: &Id, values: &Record<'_>, _context: Context<'_, S>) {
        values.record(&mut self.clone());
    }
}

impl log::Log for WholeLog {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.write(format_args!("{} {}: {}", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}
