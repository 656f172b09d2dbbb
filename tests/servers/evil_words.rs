//! What a hostile server says, for the tests with every server.

use std::time::Duration;

use tokio::time::timeout;
use tokio_lockfile::{LockError, LockFile};

use crate::support::HANG;

/// It would clear the terminal, turn a line around, and look like a line of another program in the log.
pub(crate) const EVIL: &str =
    "denied\n\u{1b}[2J\u{7}\r\u{9b}\u{202e}\u{2066}\u{2028}\u{feff}Nov 30 sshd: Accepted password for root";

pub(crate) fn assert_harmless(shown: &str) {
    // Marks in the words that are no control characters.
    let is_evil = |char: char| char.is_control() || "\u{202e}\u{2066}\u{2028}\u{feff}".contains(char);
    let evil: Vec<char> = shown.chars().filter(|&char| is_evil(char)).collect();
    assert_eq!(evil, [], "{shown:?}");
    assert!(shown.len() < 20_000, "{} bytes", shown.len());
}

/// Asks a server that says "denied" and then [`EVIL`] whatever it is asked.
pub(crate) async fn assert_errors_are_harmless(url: &str) {
    let lock = LockFile::open(url).unwrap();
    let tried = timeout(HANG, lock.attempt()).await.expect("hangs").unwrap_err();
    let waited = timeout(HANG, lock.obtain_timeout(Duration::from_secs(1))).await.expect("hangs").unwrap_err();
    let asked = timeout(HANG, lock.holder()).await.expect("hangs").unwrap_err();
    for error in [tried, waited, asked] {
        assert!(matches!(error, LockError::Engine { .. }) && error.to_string().contains("denied"), "{error:?}");
        assert_harmless(&error.to_string());
        assert_harmless(&format!("{error:?}"));
    }
}
