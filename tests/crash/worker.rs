//! The process that is traced.

use std::io::{IoSlice, Write};
use std::path::Path;

use tokio_lockfile::LockFile;

pub(crate) const ROLE: &str = "--worker";

/// The worker tries to open these names. These calls mark the start and the end of the part of the trace that is read.
pub(crate) const BEGIN: &str = "/tokio-lockfile-trace-begins";
pub(crate) const END: &str = "/tokio-lockfile-trace-ends";

/// `--worker attempt|obtain URL REPORT`: takes the lock and releases it, and writes its progress to the file REPORT.
pub(crate) fn main() {
    let [way, url, report] = [2, 3, 4].map(|number| std::env::args().nth(number).expect("three arguments"));
    let mut report = std::fs::File::options().append(true).open(report).unwrap();
    // With writev, because the lock does not use that call.
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
