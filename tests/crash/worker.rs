//! The process that is traced.

use std::io::{IoSlice, Write};
use std::path::Path;

use tokio_lockfile::LockFile;

pub(crate) const ROLE: &str = "--worker";

/// Names that the worker tries to open where its trace begins and ends.
pub(crate) const BEGIN: &str = "/tokio-lockfile-trace-begins";
pub(crate) const END: &str = "/tokio-lockfile-trace-ends";

/// `--worker attempt|obtain URL REPORT`: takes the lock and releases it, and says in the file REPORT how far it got.
pub(crate) fn main() {
    let [way, url, report] = [2, 3, 4].map(|number| std::env::args().nth(number).expect("three arguments"));
    let mut report = std::fs::File::options().append(true).open(report).unwrap();
    // By writev, which is no call of a lock's.
    let mut say =
        |text: String| assert_eq!(report.write_vectored(&[IoSlice::new(text.as_bytes())]).unwrap(), text.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let lock = LockFile::open(&url).unwrap();
        let _ = Path::new(BEGIN).metadata();
        let taken = match way.as_str() {
            "attempt" => lock.attempt().await,
            _ => lock.obtain().await.map(Some),
        };
        match taken {
            Ok(Some(guard)) => {
                say("held\n".into());
                match guard.release().await {
                    Ok(()) => say("released\n".into()),
                    Err(error) => say(format!("error {error}: {error:?}\n")),
                }
            }
            Ok(None) => say("busy\n".into()),
            Err(error) => say(format!("error {error}: {error:?}\n")),
        }
        let _ = Path::new(END).metadata();
    });
}
