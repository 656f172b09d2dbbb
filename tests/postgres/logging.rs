//! What is logged and shown never contains a password.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use tokio_lockfile::LockFile;
use tracing::field::{Field, Visit};
use tracing::span::Attributes;
use tracing::{Event, Id, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::server::{Server, key};
use crate::support::{in_own_process, take};

/// Writes down everything, of this crate and of the client library.
#[derive(Debug, Clone, Default)]
struct Everything(Arc<Mutex<String>>);

impl Visit for Everything {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        writeln!(self.0.lock().unwrap(), "{field}: {value:?}").unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Everything {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        event.record(&mut self.clone());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _id: &Id, _context: Context<'_, S>) {
        attributes.record(&mut self.clone());
    }
}

impl log::Log for Everything {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        writeln!(self.0.lock().unwrap(), "{}: {}", record.target(), record.args()).unwrap();
    }

    fn flush(&self) {}
}

#[test]
fn no_password_is_logged_or_shown() {
    if !in_own_process("logging::no_password_is_logged_or_shown") {
        return;
    }
    let log = Everything::default();
    log::set_boxed_logger(Box::new(log.clone())).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(log.clone())).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let server = Server::start("");
        let client = server.client().await;
        client.simple_query("CREATE ROLE app LOGIN PASSWORD 'S3cretPw'").await.unwrap();
        server.require_password();
        let before = log.0.lock().unwrap().len();
        let url = |password: &str| format!("postgres://app:{password}@{}/postgres?lock=x&ttl=3s", server.host());
        let lock = LockFile::open(&url("S3cretPw")).unwrap();
        let guard = take(&lock).await;
        let holder = lock.holder().await.unwrap();
        let error = lock.obtain_timeout(std::time::Duration::from_millis(1)).await.unwrap_err();
        let terminate = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
             AND (classid::bigint << 32 | objid::bigint) = {}",
            key("x")
        );
        client.simple_query(&terminate).await.unwrap();
        guard.lost().await;
        let wrong = LockFile::open(&url("S3cretPw2")).unwrap();
        let shown = format!("{lock:?} {wrong:?} {guard:?} {holder:?} {error} {error:?} {}", lock.url());
        let lost = guard.release().await.unwrap_err();
        let refused = wrong.attempt().await.unwrap_err();
        let shown = format!("{shown} {lost} {lost:?} {refused} {refused:?}");
        assert!(!shown.contains("S3cret"), "{shown}");
        assert!(refused.to_string().contains("28P01"), "{refused}");
        let log = log.0.lock().unwrap()[before..].to_owned();
        assert!(log.contains("acquired") && log.contains("tokio_postgres"), "{log}");
        assert!(!log.contains("S3cret"), "{log}");
    });
}
