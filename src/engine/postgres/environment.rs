//! The environment, as libpq reads it.

use std::path::{Path, PathBuf};

use crate::sys::environment;

/// A variable of the environment.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variable of this process, if it is there, may be trusted and is not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    match name {
        "HOME" => environment::home(),
        name => environment::variable(name),
    }
}

/// A file that libpq looks for in the home directory; `windows` and `unix` are its names there.
pub(super) fn file_of_user(environment: Environment<'_>, windows: &str, unix: &str) -> Option<PathBuf> {
    match cfg!(windows) {
        true => environment("APPDATA").map(|data| Path::new(&data).join("postgresql").join(windows)),
        false => environment("HOME").map(|home| Path::new(&home).join(unix)),
    }
}

/// The variables that libpq obeys and this library cannot, the values that ask for nothing more, and why others fail. If
/// they were passed over in silence, a lock would go another way than its user believes.
const UNMET: [(&str, &[&str], &str); 9] = [
    ("PGGSSENCMODE", &["disable", "prefer"], "encryption by GSSAPI is not supported"),
    ("PGHOSTADDR", &[], "write the address as the host in the URL"),
    ("PGMINPROTOCOLVERSION", &["3.0"], "the library speaks protocol 3.0"),
    ("PGSERVICE", &[], "no service file is read; write its content into the URL"),
    ("PGSSLCERTMODE", &["disable", "allow"], "client certificates are not supported"),
    ("PGSSLCRL", &[], "no revocation list is read"),
    ("PGSSLCRLDIR", &[], "no revocation list is read"),
    ("PGSSLMINPROTOCOLVERSION", &["TLSv1", "TLSv1.1", "TLSv1.2"], "the library cannot refuse TLS 1.2"),
    ("PGSSLNEGOTIATION", &["postgres"], "TLS begins with an SSLRequest message"),
];

/// Fails if the environment demands what a lock cannot do. `has_directory`: whether a host is a Unix socket.
pub(super) fn check(environment: Environment<'_>, has_directory: bool) -> Result<(), String> {
    let refuse =
        |name, value, reason| Err(format!("{name}={value:?} of the environment cannot be met: {reason}; unset it"));
    for (name, harmless, reason) in UNMET {
        match environment(name) {
            Some(value) if !harmless.contains(&&*value) => return refuse(name, value, reason),
            _ => {}
        }
    }
    match environment("PGREQUIREPEER").filter(|_| has_directory) {
        Some(user) => refuse("PGREQUIREPEER", user, "the library does not check which user runs the server"),
        None => Ok(()),
    }
}
