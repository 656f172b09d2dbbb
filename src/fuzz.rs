//! The parsers of what others write, for `.ci/fuzz`. No part of the public API: built only with
//! `--cfg tokio_lockfile_fuzz`. (cargo-fuzz says `--cfg fuzzing` to every crate below the one that it fuzzes.)

use crate::engine::fuzz::{etcd, file, postgres};
use crate::{LockFile, LockUrl, sys};

/// Each parser by its name. It panics where it has a fault.
pub const PARSERS: &[(&str, fn(&[u8]))] = &[
    ("url", url),
    ("password", password),
    ("record", file::record),
    ("mountinfo", sys::fuzz::mountinfo),
    ("locks", sys::fuzz::locks),
    ("stat", sys::fuzz::stat),
    ("etcd_answer", etcd::answer),
    ("etcd_status", etcd::status),
    ("etcd_value", etcd::value),
    ("postgres_answer", postgres::answer),
    ("postgres_login", postgres::login),
    ("postgres_scram", postgres::scram),
    ("certificate", postgres::certificate),
    ("postgres_token", postgres::token),
    ("application_name", postgres::application_name),
    ("password_file", postgres::password_file),
];

/// Any text is a URL that prints as an equal one, or an error that is safe to show.
fn url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let said = match text.parse::<LockUrl>() {
        Ok(url) => {
            let printed = url.to_string();
            let again: LockUrl = printed.parse().expect("a printed URL is a URL");
            assert_eq!(again, url);
            assert_eq!(again.to_string(), printed);
            printed
        }
        Err(error) => error.to_string(),
    };
    let opened = LockFile::open(&text).map_or_else(|error| error.to_string(), |lock| lock.url().to_string());
    assert!(!(said + &opened).contains(char::is_control));
}

/// Whatever follows a password, no text shows it.
fn password(bytes: &[u8]) {
    const PASSWORD: &str = "S3cretPw";
    let rest = String::from_utf8_lossy(bytes);
    for text in [format!("postgres://app:{PASSWORD}{rest}"), format!("etcd://app:{PASSWORD}{rest}")] {
        let shown = format!("{:?} {:?}", text.parse::<LockUrl>(), LockFile::open(&text));
        assert!(!shown.replace(&*rest, "").contains(PASSWORD), "{text:?} is shown as {shown}");
    }
}
