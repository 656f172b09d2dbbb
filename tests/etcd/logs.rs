//! The log, with everything in it that this crate and the libraries below it have to say.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_lockfile::LockFile;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::access::{guarded, url};
use crate::cluster::Settings;
use crate::support::{in_own_process, take};

#[derive(Debug, Clone, Default)]
struct Everything(Arc<Mutex<String>>);

impl Visit for Everything {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        writeln!(self.0.lock().unwrap(), "{field}: {value:?}").unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Everything {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        writeln!(self.0.lock().unwrap(), "{}", event.metadata().target()).unwrap();
        event.record(&mut self.clone());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _id: &Id, _context: Context<'_, S>) {
        attributes.record(&mut self.clone());
    }
}

#[test]
fn no_password_is_in_the_log() {
    if !in_own_process("logs::no_password_is_in_the_log") {
        return;
    }
    let log = Everything::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(log.clone())).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let cluster = guarded(Settings::default());
        let lock = LockFile::open(&url(&cluster, "app:S3cretPw", "app/x")).unwrap();
        let guard = take(&lock).await;
        let holder = lock.holder().await.unwrap();
        let timed_out = lock.obtain_timeout(Duration::from_millis(1)).await.unwrap_err();
        cluster.ask(&["--user", "root:S3cretPw", "del", "--prefix", "app/x/"]);
        guard.lost().await;
        let wrong = LockFile::open(&url(&cluster, "app:S3cretPw2", "app/y")).unwrap();
        let refused = wrong.attempt().await.unwrap_err();
        let shown = format!("{lock:?} {wrong:?} {guard:?} {holder:?} {timed_out} {timed_out:?} {refused} {refused:?}");
        let lost = guard.release().await.unwrap_err();
        let shown = format!("{shown} {lost} {lost:?} {} {:?}", lock.url(), lock.url());
        assert!(!shown.contains("S3cret"), "{shown}");
    });
    let log = log.0.lock().unwrap();
    assert!(log.contains("tokio_lockfile\n") && log.contains("app/x"), "{log}");
    let line = log.lines().find(|line| line.contains("S3cret"));
    assert_eq!(line, None);
}
